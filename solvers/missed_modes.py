"""Modes that an iteration from one vector has missed: of equal eigenvalues it sees one, whatever its start."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from solvers.errors import ConvergenceFailure
from solvers.factorisation import start_vector
from solvers.mode_order import real_span

# Steps of a search, at least and at most, and the residual from which on a Ritz value is believed.
_FEWEST, _STEPS, _SEEN = 8, 200, 1e-3
# Missed modes are sought down to this part of the modulus that matters: nearly equal ones do not hide each other.
_MARGIN = 0.99
_ROUNDS = 100
# Directions in the span of what was found whose squares are smaller than this are rounding.
_DEPENDENT = 1e-12
# Residual of a mode that is added, and of one value seen from both sides.
_SETTLED, _AGREEMENT = 1e-8, 1e-5

Block = Callable[[np.ndarray], np.ndarray]
Pairs = tuple[np.ndarray, np.ndarray]


def same_values(values: np.ndarray, others: np.ndarray, count: int, near: float | np.ndarray) -> bool:
    """Whether each of the first `count` values has as many copies, to within `near`, among the others."""
    copies = [np.sum(np.abs(values[:count, None] - side) <= near, axis=1) for side in (values, others)]
    return min(len(values), len(others)) >= count and bool(np.all(copies[0] == copies[1]))


def both_completed(
    apply: Sequence[Block], found: Sequence[Pairs], count: int, smallest: float, tol: float
) -> tuple[Pairs, Pairs]:
    """Right and left pairs, wanted ones first, together with those that were missed.

    Left ones are sought only if a right one was missed, or the first `count` do not agree.
    """
    right, left = found
    whole = completed(apply[0], *right, smallest, tol)
    near = _AGREEMENT * np.abs(right[0][:count, None])
    if whole[0] is right[0] and same_values(right[0], left[0], count, near):
        return right, left
    return whole, completed(apply[1], *left, smallest, tol)


def completed(
    apply: Block,
    values: np.ndarray,
    vectors: np.ndarray,
    smallest: float,
    tol: float,
) -> Pairs:
    """Eigenpairs of an operator together with those that were missed.

    Parameters
    ----------
    apply : callable
        The real operator on a block, an array of shape (n, p).
    values : ndarray of shape (m,)
        Eigenvalues found, pairs with the positive imaginary part first.
    vectors : ndarray of shape (n, m)
    smallest : float
        Pairs of at least this modulus must all be there.
    tol : float
        Residual of the pairs, relative to the value.

    Returns
    -------
    values, vectors : ndarray
        Those given, if none was missed; else anew, together with these, largest modulus first.

    Raises
    ------
    ConvergenceFailure
        If some are still missing after several rounds.

    Notes
    -----
    What has been found spans an invariant subspace; orthogonal to it the operator has the other eigenvalues. Arnoldi's
    method there, from another vector, sees one more mode of each eigenspace.
    """
    limit = _MARGIN * smallest
    known = real_span(values, vectors)
    size, turn = np.linalg.eigh(known.T @ known)
    kept = size > _DEPENDENT * size[-1]
    known = known @ (turn[:, kept] / np.sqrt(size[kept]))
    count = known.shape[1]
    for number in range(1, _ROUNDS + 1):
        missed = _missed(apply, known, limit, min(tol, _SETTLED), start_vector(len(known), number))
        if missed is None:
            break
        known = np.linalg.qr(np.hstack([known, missed]))[0]
    else:
        raise ConvergenceFailure(
            "Arnoldi's method keeps missing modes (a large cluster of eigenvalues); ask for more modes, or use "
            "method='dense' on a coarser grid"
        )
    if known.shape[1] == count:
        return values, vectors
    values, small = np.linalg.eig(known.T @ apply(known))
    order = np.lexsort((-values.imag, -np.abs(values)))
    return values[order], known @ small[:, order]


def _missed(
    apply: Block, known: np.ndarray, limit: float, tol: float, vector: np.ndarray
) -> np.ndarray | None:
    """Real vectors that span modes above the limit orthogonal to what is known; None if there is none.

    Arnoldi steps until the Ritz value of largest modulus, with its residual, is below the limit or has converged above.
    """

    def rest(x: np.ndarray) -> np.ndarray:
        x = x - known @ (known.T @ x)
        return x - known @ (known.T @ x)

    steps = min(_STEPS, len(known) - known.shape[1])
    basis, projected = np.empty((len(known), steps), order="F"), np.zeros((steps, steps))
    vector = rest(vector)
    size, error = 0.0, 0.0
    for step in range(steps):
        basis[:, step] = vector / np.linalg.norm(vector)
        so_far = basis[:, : step + 1]
        vector = rest(apply(basis[:, [step]])[:, 0])
        for _ in range(2):
            share = so_far.T @ vector
            projected[: step + 1, step] += share
            vector -= so_far @ share
        beside = float(np.linalg.norm(vector))
        ritz, small = np.linalg.eig(projected[: step + 1, : step + 1])
        sizes, errors = np.abs(ritz), beside * np.abs(small[-1])
        largest = int(np.argmax(sizes))
        size, error = float(sizes[largest]), float(errors[largest])
        exhausted = beside <= np.finfo(float).eps * limit
        if (exhausted or step + 1 >= min(_FEWEST, steps)) and size + error <= limit:
            return None
        if size > limit and error <= tol * size:
            above = (sizes > limit) & (errors <= tol * sizes)
            return so_far @ real_span(ritz[above], small[:, above])
        if step + 1 < steps:
            projected[step + 1, step] = beside
    if size > limit and error <= _SEEN * size:
        raise ConvergenceFailure(
            f"a missed mode did not converge in {steps} steps (residual {error / size:.2g}); ask for more modes, or "
            "use method='dense' on a coarser grid"
        )
    return None
