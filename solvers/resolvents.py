"""Resolvents (1 - g L)^-1 of a Markov chain: what implicit steps and rational Krylov spaces are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sps
from scipy.linalg import lapack

from solvers import memory
from solvers.chain import Chain
from solvers.conjugate_directions import conjugate_residuals
from solvers.errors import ConvergenceFailure
from solvers.factorisation import factor
from solvers.lattice_operator import LatticeOperator, prefers_cycles

_KEPT = 4
# Directions of one solve: the shift 1 / g leaves no slow modes.
_DIRECTIONS = 6
# Relative residuals of iterative solves: their share of what is allowed, the default, and their limits.
_SHARE, _DEFAULT, _TIGHTEST, _LOOSEST = 1e-2, 1e-12, 1e-14, 1e-9
_UNUSABLE = 100.0
# Bytes per cell, measured: hierarchy, operator and directions, and what each further g adds.
_BYTES, _BYTES_PER_POLE = 350, 40


class Resolvents:
    """Solvers with 1 - g L, or its transpose, for any g > 0; the last few factorisations are kept.

    The matrix is an M-matrix: its inverse has no negative entry, and columns (of the transpose: rows) that
    sum to one where probability is conserved. A chain on a line is solved by LAPACK's tridiagonal LU, in time
    proportional to the cells; one on a large grid in three dimensions by conjugate residuals with multigrid
    cycles; any other by sparse LU.

    Since columns of 1 - g L sum to one, the mass that an iterative solution u of (1 - g L) u = x lacks is
    exactly that of its residual r, and u + r has the mass of x to rounding. As the inverse does not increase
    1-norms, u + r is wrong by at most 2 |r|_1. For functions u is wrong by at most the largest entry of r.

    Parameters
    ----------
    chain : Chain
    transposed : bool
        Solve with L^T (functions) in place of L (masses).

    Attributes
    ----------
    factorisations, solves, cycles : int
        How many were made so far.

    Raises
    ------
    InvalidInput
        If memory would not suffice.
    """

    def __init__(self, chain: Chain, transposed: bool):
        self._chain, self._transposed = chain, transposed
        self._tol = _DEFAULT
        self._kept: dict[float, Callable[[np.ndarray], np.ndarray]] = {}
        # LAPACK's wrapper wants three states
        self._line = chain.linear and chain.size > 2 and bool(np.all(chain.second == chain.first + 1))
        self.factorisations = self.solves = self.cycles = 0
        self._lattice: LatticeOperator | None = None
        self.iterative = prefers_cycles(chain)
        if self.iterative:
            memory.require(
                (_BYTES + _KEPT * _BYTES_PER_POLE) * chain.size,
                f"implicit steps on {chain.size} cells",
                "use fewer cells",
            )

    def aim(self, allowed: float) -> None:
        """Let iterative solves be a hundred times as good as `allowed`, relative and in the 1-norm (maximum norm)."""
        # norms of n numbers differ by at most sqrt(n)
        self._tol = min(max(_SHARE * allowed / math.sqrt(self._chain.size), _TIGHTEST), _LOOSEST)

    def told(self) -> dict[str, int]:
        """How many solves, and factorisations or cycles."""
        work = {"cycles": self.cycles} if self.iterative else {"factorisations": self.factorisations}
        return work | {"solves": self.solves}

    def __call__(self, g: float) -> Callable[[np.ndarray], np.ndarray]:
        """X -> (1 - g L)^-1 x."""
        if g not in self._kept:
            while len(self._kept) >= _KEPT:
                self._kept.pop(next(iter(self._kept)))
            make = self._cycled if self.iterative else self._tridiagonal if self._line else self._sparse
            self._kept[g] = make(g)
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

    def _cycled(self, g: float) -> Callable[[np.ndarray], np.ndarray]:
        if self._lattice is None:
            self._lattice = LatticeOperator(self._chain, "backward" if self._transposed else "forward")
        system = self._lattice.shifted(1.0 / g)
        rounding = np.finfo(float).eps * (1.0 + g * float(self._chain.outflow.max()))

        def apply(x: np.ndarray) -> np.ndarray:
            b = x / g
            result, residual, cycles = conjugate_residuals(
                system, system.precondition, b, tol=max(self._tol, rounding), kept=_DIRECTIONS, max_cycles=100
            )
            self.solves += 1
            self.cycles += cycles
            if not residual < _UNUSABLE * max(self._tol, rounding):
                raise ConvergenceFailure(
                    f"an implicit step of {g:.3g} leaves a residual of {residual:.2g} after {cycles} multigrid "
                    "cycles; use shorter times"
                )
            return result if self._transposed else result + g * (b - system(result))

        return apply
