"""Lowest eigenpairs of a large symmetric operator by a preconditioned block Davidson method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from solvers.errors import ConvergenceFailure

Map = Callable[[np.ndarray], np.ndarray]
EPS = np.finfo(float).eps
# A residual cannot fall below about eps of the norm; if it hovers below this many of them, it is rounding.
ROUNDING, HOVERING = 2.0, 200.0
PATIENCE = 4
_DEPENDENT = 1e-12
PIECE = 32768  # columns at a time


@dataclass
class Pairs:
    """Eigenvalues, eigenvectors as rows, residual norms, and how often operator and preconditioner were used."""

    values: np.ndarray
    vectors: np.ndarray
    residuals: np.ndarray
    spare: np.ndarray
    steps: int
    corrections: int


def davidson(
    apply: Map,
    precondition: Map,
    start: np.ndarray,
    *,
    wanted: int,
    tol: float,
    norm: float,
    known: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    common_scale: bool = False,
    max_basis: int | None = None,
    max_steps: int = 200,
) -> Pairs:
    """The lowest eigenpairs of a symmetric positive semidefinite operator orthogonal to known vectors.

    Generalised Davidson: the residuals of all wanted pairs that have not converged are preconditioned,
    orthonormalised against the basis and added to it. When the basis is full it is restarted with the best
    Ritz vectors and, as in the locally optimal conjugate gradient method, those of the step before (GD+k).

    Parameters
    ----------
    apply, precondition : callable
        x -> A x, and an approximate inverse, on flat arrays.
    start : ndarray of shape (b, n)
        Approximate eigenvectors as rows, b >= wanted.
    wanted : int
    tol : float
        A pair has converged when |A x - theta x| <= tol * theta |x|, or at the level of rounding.
    norm : float
        A norm of A.
    known : ndarray of shape (z, n), optional
        Orthonormal rows, eigenvectors that are deflated exactly.
    weight : ndarray of shape (n,), optional
        Positive: the residual must also be small in the 1-norm with these weights.
    common_scale : bool
        Measure all residuals against the largest wanted eigenvalue.
    max_basis, max_steps : int

    Returns
    -------
    Pairs
        In increasing order; `spare` holds the next Ritz vectors, not converged.

    Raises
    ------
    ConvergenceFailure
        If `max_steps` do not suffice.

    References
    ----------
    Morgan and Scott, SIAM J. Sci. Stat. Comput. 7 (1986) 817; Stathopoulos, SIAM J. Sci. Comput. 29 (2007)
    481; Knyazev, SIAM J. Sci. Comput. 23 (2001) 517.
    """
    n = start.shape[1]
    spare = max(len(start) - wanted, 0)
    keep = wanted + spare
    capacity = min(max_basis or keep + 3 * wanted + 3, n)
    basis = np.empty((capacity, n))
    form = np.zeros((capacity, capacity))
    size = corrections = 0
    basis[: len(start)] = start
    size += append_orthonormal(basis, 0, len(start), known)
    if size < wanted:
        raise ConvergenceFailure(f"only {size} of {wanted} start vectors are independent")
    _extend_form(apply, basis, form, 0, size)
    before: np.ndarray | None = None
    best, waited = np.full(wanted, np.inf), np.zeros(wanted, dtype=int)
    residuals, allowed = best, np.zeros(wanted)
    for step in range(max_steps):
        theta, ritz = np.linalg.eigh(form[:size, :size])
        scale = np.full(wanted, theta[wanted - 1]) if common_scale else theta[:wanted]
        allowed = np.maximum(tol * scale, ROUNDING * EPS * norm)
        residuals, missing = np.zeros(wanted), []
        vectors = ritz[:, :wanted].T @ basis[:size]
        for j in range(wanted):
            rest = apply(vectors[j]) - theta[j] * vectors[j]
            residuals[j] = _size(rest, vectors[j], weight)
            waited[j] = 0 if residuals[j] < 0.5 * best[j] else waited[j] + 1
            best[j] = min(best[j], residuals[j])
            hovers = waited[j] >= PATIENCE and residuals[j] <= HOVERING * EPS * norm
            if residuals[j] > allowed[j] and not hovers:
                missing.append(rest)
        if not missing:
            extra = ritz[:, wanted : wanted + spare].T @ basis[:size]
            return Pairs(theta[:wanted], vectors, residuals, extra, step, corrections)
        del vectors
        if size + len(missing) > capacity:
            size = _restart(basis, form, theta, ritz, before, keep, capacity - len(missing))
            before = None
            coordinates = np.eye(size)[:, :wanted]
        else:
            coordinates = ritz[:, :wanted]
        previous = size
        for j, rest in enumerate(missing):
            basis[size + j] = precondition(rest)
        corrections += len(missing)
        size += append_orthonormal(basis, size, len(missing), known)
        missing.clear()
        if size == previous:
            raise ConvergenceFailure(
                f"corrections bring nothing new at residual {residuals.max():.2g}; use a larger tol"
            )
        _extend_form(apply, basis, form, previous, size)
        before = np.zeros((size, wanted))
        before[: len(coordinates)] = coordinates
    raise ConvergenceFailure(
        f"{max_steps} steps leave residuals up to {residuals.max():.2g} where {allowed.min():.2g} is asked for; "
        "use a larger tol, or fewer modes"
    )


def _size(rest: np.ndarray, vector: np.ndarray, weight: np.ndarray | None) -> float:
    size = float(np.sqrt(rest @ rest))
    if weight is None:
        return size
    return max(size, float(weight @ np.abs(rest)) / max(float(weight @ np.abs(vector)), 1e-300))


def append_orthonormal(basis: np.ndarray, size: int, new: int, known: np.ndarray | None) -> int:
    """Orthonormalise the `new` rows behind the basis in place; how many are left once dependent ones are gone."""
    block = basis[size : size + new]
    for _ in range(2):
        for row in block:
            norm = np.sqrt(row @ row)
            row *= 1.0 / norm if np.isfinite(norm) and norm > 1e-200 else 0.0
        if known is not None:
            _project(block, known)
        _project(block, basis[:size])
    count = 0
    for row in block:
        kept = basis[size : size + count]
        for _ in range(3):
            _project(row[None], kept)
            left = np.sqrt(row @ row)
            if left < _DEPENDENT:
                break
            row *= 1.0 / left
            if left > 0.1:
                basis[size + count] = row
                count += 1
                break
            if known is not None:
                _project(row[None], known)
            _project(row[None], basis[:size])
    return count


def _project(block: np.ndarray, known: np.ndarray) -> None:
    """Remove from the rows of a block, in place, what lies along orthonormal rows."""
    if not len(known):
        return
    products = block @ known.T
    for begin in range(0, block.shape[1], PIECE):
        piece = slice(begin, begin + PIECE)
        block[:, piece] -= products @ known[:, piece]


def _extend_form(apply: Map, basis: np.ndarray, form: np.ndarray, old: int, size: int) -> None:
    for a in range(old, size):
        products = basis[: a + 1] @ apply(basis[a])
        form[a, : a + 1] = products
        form[: a + 1, a] = products


def _restart(
    basis: np.ndarray,
    form: np.ndarray,
    theta: np.ndarray,
    ritz: np.ndarray,
    before: np.ndarray | None,
    keep: int,
    room: int,
) -> int:
    """Replace the basis by the best Ritz vectors and what the vectors before differ from them."""
    size = len(theta)
    keep = min(keep, room, size)
    rotation = ritz[:, :keep]
    if before is not None and room > keep:
        old = np.zeros((size, before.shape[1]))
        old[: len(before)] = before
        for _ in range(2):
            old -= rotation @ (rotation.T @ old)
        left, weights, _ = np.linalg.svd(old, full_matrices=False)
        rotation = np.hstack(
            [rotation, left[:, weights > 1e-12 * max(weights.max(), 1e-300)][:, : room - keep]]
        )
    small = rotation.T @ form[:size, :size] @ rotation
    count = rotation.shape[1]
    for begin in range(0, basis.shape[1], PIECE):  # in place, piece by piece
        piece = slice(begin, begin + PIECE)
        basis[:count, piece] = rotation.T @ basis[:size, piece]
    form[:count, :count] = 0.5 * (small + small.T)
    return count
