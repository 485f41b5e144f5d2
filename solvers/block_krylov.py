"""Extreme eigenpairs of a large operator from a good start: Krylov spaces of blocks of vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import blas

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
        The operator on a block, an array of shape (n, p), which it may overwrite.
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
    width = start.shape[1]
    block, length = start, np.linalg.norm(start, axis=0)
    residual = np.full(wanted, np.inf)
    for _ in range(_RESTARTS):
        for _ in range(2):
            block, _ = _orthonormal(block, length)
            length = np.ones(block.shape[1])
        basis, ends = [block], [block.shape[1]]
        projected = np.zeros(((steps + 1) * width, steps * width))
        known, end, values, small = 0, 0, np.zeros(0), np.zeros((0, 0))
        for _ in range(steps):
            known = ends[-1]
            begin = known - basis[-1].shape[1]
            new = apply(basis[-1].copy())
            length, factor = np.linalg.norm(new, axis=0), np.eye(known - begin)
            # a third time: the second orthonormalisation magnifies what the first left of nearly dependent columns
            for _ in range(3):
                share = np.vstack([old.T @ new for old in basis])
                _add_combination(new, basis, -share)
                projected[:known, begin:known] += share @ factor
                new, back = _orthonormal(new, length)
                factor, length = back @ factor, np.ones(new.shape[1])
            end = known + new.shape[1]
            projected[known:end, begin:known] = factor
            basis.append(new)
            ends.append(end)
            values, small = _ritz(projected[:known, :known], symmetric)
            residual = np.linalg.norm(projected[known:end, :known] @ small, axis=0) / np.abs(values)
            if end == known or (known >= wanted and np.all(residual[:wanted] <= tol)):
                break
        first = min(width, known)
        if not symmetric and first < known and values[first - 1].imag != 0:
            conjugate = abs(values[first - 1] - np.conj(values[first])) < 1e-9 * abs(values[first])
            first -= int(conjugate and first > wanted)  # half a pair has no real span
        # the operator applied once more costs nothing: the last block is in the basis
        improved = (projected[:end, :known] @ small[:, :first]) / values[:first]
        if first >= wanted and np.all(residual[:wanted] <= tol):
            kept = max(wanted, int(np.sum(residual[:first] < _USEFUL)))
            return RitzPairs(values, _combination(basis, improved[:, :kept]), residual)
        if symmetric:
            # in their order: mixed with a vector of a much larger value, others would drown in its rounding
            directions, triangle = np.linalg.qr(improved / np.linalg.norm(improved, axis=0))
            directions = directions[:, np.abs(np.diag(triangle)) > 1e-10]
        else:
            real = np.hstack([improved.real, improved.imag])
            scale = np.linalg.norm(real, axis=0).max()
            directions, sizes, _ = np.linalg.svd(real / scale, full_matrices=False)
            directions = directions[:, :width][:, sizes[:width] > 1e-10]
        kept = directions.shape[1]
        block, length = _combination(basis, directions), np.ones(kept)
    raise ConvergenceFailure(
        f"{wanted} modes did not converge: a residual is {residual[:wanted].max():.2g}, allowed {tol:.2g}; ask "
        "for another number of modes, or use a coarser grid"
    )


def _ritz(projected: np.ndarray, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
    if symmetric:
        values, vectors = np.linalg.eigh(0.5 * (projected + projected.T))
    else:
        values, vectors = np.linalg.eig(projected)
    order = np.lexsort((-values.imag, -np.abs(values)))
    return values[order], vectors[:, order]


def _combination(basis: list[np.ndarray], small: np.ndarray) -> np.ndarray:
    if np.iscomplexobj(small):
        return _combination(basis, small.real.copy()) + 1j * _combination(basis, small.imag.copy())
    result = np.zeros((len(basis[0]), small.shape[1]))
    _add_combination(result, basis, small)
    return result


def _add_combination(block: np.ndarray, basis: list[np.ndarray], small: np.ndarray) -> None:
    """Add columns of the basis to a block, in place; arrays in C order are their transposes to BLAS."""
    at = 0
    for old in basis:
        if old.shape[1] and block.shape[1]:
            part = small[at : at + old.shape[1]]
            blas.dgemm(1.0, part.T, old.T, beta=1.0, c=block.T, overwrite_c=1)
        at += old.shape[1]


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
    if kept.all():  # nearest to the block itself, which may be of vectors of very different values
        return block @ ((turn / root) @ turn.T / size[:, None]), (turn * root) @ turn.T * back
    return block @ (turn / size[:, None] / root), root[:, None] * turn.T * back
