"""Resolvents (1 - g L)^-1 of a Markov chain: what implicit steps and rational Krylov spaces are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sps
from scipy.linalg import lapack

from solvers.chain import Chain
from solvers.errors import ConvergenceFailure
from solvers.factorisation import factor

_KEPT = 4


class Resolvents:
    """Solvers with 1 - g L, or its transpose, for any g > 0; the last few factorisations are kept.

    The matrix is an M-matrix: its inverse has no negative entry, and columns (of the transpose: rows) that
    sum to one where probability is conserved. A chain on a line is solved by LAPACK's tridiagonal LU, in time
    proportional to the cells; any other by sparse LU.

    Parameters
    ----------
    chain : Chain
    transposed : bool
        Solve with L^T (functions) in place of L (masses).

    Attributes
    ----------
    factorisations, solves : int
        How many were made so far.
    """

    def __init__(self, chain: Chain, transposed: bool):
        self._chain, self._transposed = chain, transposed
        self._kept: dict[float, Callable[[np.ndarray], np.ndarray]] = {}
        # LAPACK's wrapper wants three states
        self._line = chain.linear and chain.size > 2 and bool(np.all(chain.second == chain.first + 1))
        self.factorisations = self.solves = 0

    def __call__(self, g: float) -> Callable[[np.ndarray], np.ndarray]:
        """X -> (1 - g L)^-1 x."""
        if g not in self._kept:
            while len(self._kept) >= _KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[g] = self._tridiagonal(g) if self._line else self._sparse(g)
            self.factorisations += 1
        return self._kept[g]

    def _tridiagonal(self, g: float) -> Callable[[np.ndarray], np.ndarray]:
        chain, n = self._chain, self._chain.size
        below, above = np.zeros(n - 1), np.zeros(n - 1)
        below[chain.first], above[chain.first] = -g * chain.forward, -g * chain.backward
        if self._transposed:
            below, above = above, below
        *factors, info = lapack.dgttrf(below, 1.0 + g * chain.outflow, above)
        if info:
            raise ConvergenceFailure(f"1 - {g:.3g} L is singular to rounding; use shorter times")
        solve = lapack.dgttrs

        def apply(x: np.ndarray) -> np.ndarray:
            self.solves += 1
            return solve(*factors, x)[0]

        return apply

    def _sparse(self, g: float) -> Callable[[np.ndarray], np.ndarray]:
        generator = self._chain.generator
        system = sps.csc_array(sps.eye_array(self._chain.size) - g * generator)
        lu: Any = factor(system, symmetric=False)
        mode = "T" if self._transposed else "N"

        def apply(x: np.ndarray) -> np.ndarray:
            self.solves += 1
            return lu.solve(x, trans=mode)

        return apply
