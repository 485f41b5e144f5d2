"""Extreme eigenpairs of a large operator from a good start: Krylov spaces of blocks of vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from solvers.errors import ConvergenceFailure

# Directions of a block that are smaller than this beside its columns are rounding.
_DEPENDENT = 1e-13
# Residual from which on a vector beyond the wanted ones is returned as well.
_USEFUL = 1e-6
_RESTARTS = 30


@dataclass
class RitzPairs:
    """Values, largest modulus first, vectors (columns) of the first of them, residuals relative to the values."""

    values: np.ndarray
    vectors: np.ndarray
    residual: np.ndarray


def block_krylov(
    apply: Callable[[np.ndarray], np.ndarray],
    start: np.ndarray,
    wanted: int,
    tol: float,
    *,
    symmetric: bool,
    steps: int = 3,
) -> RitzPairs:
    """The eigenpairs of largest modulus of an operator.

    All work on vectors is by linear combinations of columns, so that each row keeps its own digits: rows may
    differ in size by hundreds of orders of magnitude, as the entries of an eigenvector of a Fokker-Planck
    operator do.

    Parameters
    ----------
    apply : callable
        The operator on a block, an array of shape (n, p).
    start : ndarray of shape (n, p)
        Near the wanted vectors, and some more.
    wanted : int
        How many pairs must converge; never more than p.
    tol : float
        Residual, relative to the value.
    symmetric : bool
    steps : int
        Applications between restarts.

    Returns
    -------
    RitzPairs
        With the wanted vectors, and others that have converged somewhat. Their rounding is that of the largest
        value: apply the operator once more where that matters.

    Raises
    ------
    ConvergenceFailure
        If a wanted pair does not converge.
    """
    n, width = start.shape
    basis = np.empty((n, (steps + 1) * width))
    block, length = start, np.linalg.norm(start, axis=0)
    for _ in range(3):
        block, _ = _orthonormal(block, length)
        length = np.ones(block.shape[1])
    residual = np.full(wanted, np.inf)
    for _ in range(_RESTARTS):
        size = block.shape[1]
        basis[:, :size] = block
        projected = np.zeros((basis.shape[1], basis.shape[1]))
        known, end = 0, size
        for _ in range(steps):
            new = apply(basis[:, known:end])
            length = np.linalg.norm(new, axis=0)
            factor = np.eye(end - known)
            # a third time: the second orthonormalisation magnifies what the first left of nearly dependent columns
            for _ in range(3):
                share = basis[:, :end].T @ new
                new -= basis[:, :end] @ share
                projected[:end, known:end] += share @ factor
                new, inner = _orthonormal(new, length)
                factor, length = inner @ factor, np.ones(new.shape[1])
            more = new.shape[1]
            projected[end : end + more, known:end] = factor
            basis[:, end : end + more] = new
            known, end = end, end + more
            if not more:
                break
        inner = projected[:known, :known]
        if symmetric:
            values, small = np.linalg.eigh(0.5 * (inner + inner.T))
        else:
            values, small = np.linalg.eig(inner)
        order = np.argsort(-np.abs(values), kind="stable")
        values, small = values[order], small[:, order]
        residual = np.linalg.norm(projected[known:end, :known] @ small, axis=0) / np.abs(values)
        first = min(width, known)
        if not symmetric and first < known and abs(values[first - 1] - np.conj(values[first])) < 1e-9 * abs(
            values[first]
        ):
            first -= values[first - 1].imag != 0 and first > 1  # half a pair has no real span
        # the operator applied once more costs nothing: the last block is in the basis
        improved = (projected[:end, :known] @ small[:, :first]) / values[:first]
        if np.all(residual[:wanted] <= tol):
            vectors = basis[:, :end] @ improved[:, : max(wanted, int(np.sum(residual[:first] < _USEFUL)))]
            return RitzPairs(values, vectors, residual)
        real = improved if symmetric else np.hstack([improved.real, improved.imag])
        directions, sizes, _ = np.linalg.svd(real / np.linalg.norm(real, axis=0).max(), full_matrices=False)
        kept = min(width, int(np.sum(sizes > 1e-10)))
        block = basis[:, :end] @ directions[:, :kept]
    raise ConvergenceFailure(
        f"{wanted} modes did not converge: a residual is {residual[:wanted].max():.2g}, allowed {tol:.2g}; ask "
        "for another number of modes, or use a coarser grid"
    )


def _orthonormal(block: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Q and B with block = Q B up to directions that are rounding beside columns of the given lengths.

    Orthonormal to rounding if the columns, scaled, were nearly so.
    """
    gram = block.T @ block
    size = np.sqrt(np.diag(gram))
    size = np.where(size > _DEPENDENT * length, size, np.inf)
    values, turn = np.linalg.eigh(gram / np.outer(size, size))
    kept = values > _DEPENDENT
    turn, root = turn[:, kept], np.sqrt(values[kept])
    back = np.where(np.isfinite(size), size, 0.0)
    return block @ (turn / size[:, None] / root), root[:, None] * turn.T * back
