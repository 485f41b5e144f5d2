"""Sparse factorisations and ARPACK, called the same way every time."""

from __future__ import annotations

import inspect
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sps
import scipy.sparse.linalg as spl

from solvers.chain import Chain
from solvers.errors import ConvergenceFailure
from solvers.multifrontal import Factors
from solvers.nested_dissection import dissect

# From so many states on, chains on a grid are factored by dense fronts instead of SuperLU.
_FRONTS = 4000


class Solver(Protocol):
    """What has factors of a matrix: solves for vectors or columns, with trans="T" for the transpose."""

    def solve(self, right: np.ndarray, /, trans: str = "N") -> np.ndarray: ...  # noqa: D102


def factor(matrix: sps.csc_array, *, symmetric: bool) -> Any:
    """Sparse LU of an M-matrix (SciPy's `SuperLU`)."""
    # Generators are M-matrices: diagonal pivots are stable, and the ordering of A + A^T fills in least.
    options = {"SymmetricMode": True} if symmetric else None
    return spl.splu(
        matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0 if symmetric else 0.01, options=options
    )


def on_fronts(chain: Chain) -> bool:
    """Whether a chain is large, on a grid of at most three axes, and its generator a rate matrix."""
    place = chain.place
    return chain.size >= _FRONTS and chain.extra is None and place is not None and len(place.shape) <= 3


def resolvent(chain: Chain, shift: float) -> Solver:
    """Factors of (shift - L) for the generator L; shift >= 0, and 0 only if every state is removed in the end."""
    if not on_fronts(chain):
        return factor(sps.csc_array(shift * sps.eye_array(chain.size) - chain.generator), symmetric=False)
    return TransposedFactors(Factors(chain.matrix("backward", shift), _dissection(chain), symmetric=False))


def symmetric_resolvent(chain: Chain, shift: float) -> Solver:
    """Factors of (shift - S) for the symmetrised generator S."""
    matrix = chain.matrix("symmetrised", shift)
    if not on_fronts(chain):
        return factor(sps.csc_array(matrix.T), symmetric=True)
    return Factors(matrix, _dissection(chain), symmetric=True)


def _dissection(chain: Chain):
    assert chain.place is not None
    return dissect(chain.place.shape, chain.place.wrapped, chain.place.cells)


class TransposedFactors:
    """Factors of a matrix serve its transpose; the backward operator has dominant rows, L dominant columns."""

    def __init__(self, factors: Factors):
        self._factors, self.order = factors, factors.order

    def solve_ordered(self, given: np.ndarray, trans: str = "N") -> None:
        """In place, rows in elimination order."""
        self._factors.solve_ordered(given, "N" if trans == "T" else "T")

    def solve(self, right: np.ndarray, /, trans: str = "N") -> np.ndarray:
        """As SuperLU's."""
        return self._factors.solve(right, "N" if trans == "T" else "T")


def start_vector(n: int, number: int = 0) -> np.ndarray:
    """One of some fixed start vectors, so that the same call gives the same bits.

    Iterations from one vector find one mode of each eigenspace; what looks for the others needs another number.
    """
    return np.random.Generator(np.random.PCG64(20240501 + number)).standard_normal(n)


def arpack(solver: Any, operator: Any, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """Call SciPy's `eigs` or `eigsh`, the same bits each time.

    Raises
    ------
    ConvergenceFailure
        If it does not converge.
    """
    if "rng" in inspect.signature(solver).parameters:  # SciPy >= 1.17: also fixes restarts
        settings["rng"] = np.random.Generator(np.random.PCG64(20240501))
    try:
        return solver(operator, **settings)
    except spl.ArpackNoConvergence as error:
        raise ConvergenceFailure(
            f"ARPACK found {len(error.eigenvalues)} of {settings['k']} modes; ask for fewer, or use "
            "method='dense' on a coarser grid"
        ) from error
