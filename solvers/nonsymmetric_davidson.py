"""Eigenpairs of least real part of a large nonsymmetric operator by a preconditioned block Davidson method."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solvers.davidson import EPS, HOVERING, PATIENCE, PIECE, ROUNDING, Map, append_orthonormal
from solvers.errors import ConvergenceFailure
from solvers.mode_order import real_span

# Eigenvalues whose imaginary part is below this share of their size count as real.
_REAL = 1e-10


@dataclass
class ComplexPairs:
    """Eigenvalues, least real part first, eigenvectors as rows, residual norms, further vectors (real), work."""

    values: np.ndarray
    vectors: np.ndarray
    residuals: np.ndarray
    spare: np.ndarray
    steps: int
    corrections: int


def nonsymmetric_davidson(
    apply: Map,
    apply_transposed: Map,
    precondition: Map,
    start: np.ndarray,
    *,
    wanted: int,
    tol: float,
    norm: float,
    known: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    common_scale: bool = False,
    max_steps: int = 200,
) -> ComplexPairs:
    """The eigenpairs of least real part of an operator whose symmetric part is positive semidefinite.

    As `davidson.davidson`, with Ritz pairs of the projected nonsymmetric matrix, ordered by their real part, and
    real bases: of a complex pair the real and imaginary parts of one vector are iterated. For an operator that
    is close to normal Ritz values lie near its spectrum.

    Parameters
    ----------
    apply, apply_transposed, precondition : callable
        x -> A x, x -> A^T x, and an approximate inverse of A, on flat arrays.
    start : ndarray of shape (b, n)
        Approximate eigenvectors, or real bases of pairs of them, as rows.
    wanted : int
        A complex pair that this would split is completed.
    tol : float
        A pair has converged when |A x - theta x| <= tol * |theta| |x|, or at the level of rounding.
    norm : float
        A norm of A.
    known : ndarray of shape (z, n), optional
        Orthonormal rows; the subspace orthogonal to them is invariant, and searched.
    weight : ndarray of shape (n,), optional
        Positive: the residual must also be small in the 1-norm with these weights.
    common_scale : bool
        Measure all residuals against the largest wanted eigenvalue.
    max_steps : int

    Returns
    -------
    ComplexPairs

    Raises
    ------
    ConvergenceFailure
        If `max_steps` do not suffice.

    References
    ----------
    Morgan, J. Comput. Phys. 101 (1992) 287; Sadkane, Numer. Math. 64 (1993) 195.
    """
    n = start.shape[1]
    keep = max(len(start), wanted + 1)
    capacity = min(keep + 3 * (wanted + 1) + 3, n)
    basis, form = np.empty((capacity, n)), np.zeros((capacity, capacity))
    basis[: len(start)] = start
    size = append_orthonormal(basis, 0, len(start), known)
    _extend_form(apply, apply_transposed, basis, form, 0, size)
    before: np.ndarray | None = None
    best: dict[int, float] = {}
    waited: dict[int, int] = {}
    corrections, residuals, allowed = 0, np.zeros(0), np.zeros(0)
    for step in range(max_steps):
        theta, ritz = _ritz(form[:size, :size])
        count = closed(theta, wanted)
        if count > size:
            raise ConvergenceFailure(f"only {size} of {wanted} start vectors are independent")
        scale = np.full(count, np.abs(theta[:count]).max()) if common_scale else np.abs(theta[:count])
        allowed = np.maximum(tol * scale, ROUNDING * EPS * norm)
        residuals, missing = np.zeros(count), []
        for j in range(count):
            if theta[j].imag < 0:
                residuals[j] = residuals[j - 1]
                continue
            rest, vector = _residual(apply, basis[:size], theta[j], ritz[:, j])
            residuals[j] = _size(rest, vector, weight)
            waited[j] = 0 if residuals[j] < 0.5 * best.get(j, np.inf) else waited[j] + 1
            best[j] = min(best.get(j, np.inf), residuals[j])
            hovers = waited[j] >= PATIENCE and residuals[j] <= HOVERING * EPS * norm
            if residuals[j] > allowed[j] and not hovers:
                missing += rest
        if not missing:
            vectors = _combined(basis[:size], ritz[:, :count])
            spare = real_span(theta[count:], ritz[:, count:])[:, : max(keep - count, 0)].T @ basis[:size]
            return ComplexPairs(theta[:count], vectors, residuals, spare, step, corrections)
        if size + len(missing) > capacity:
            size = _restart(basis, form, theta, ritz, before, keep, capacity - len(missing))
            before = None
            coordinates = np.eye(size)[:, :count]
        else:
            coordinates = real_span(theta[:count], ritz[:, :count])
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
        _extend_form(apply, apply_transposed, basis, form, previous, size)
        before = np.zeros((size, coordinates.shape[1]))
        before[: len(coordinates)] = coordinates
    raise ConvergenceFailure(
        f"{max_steps} steps leave residuals up to {residuals.max():.2g} where {allowed.min():.2g} is asked for; "
        "use a larger tol, or fewer modes"
    )


def closed(values: np.ndarray, wanted: int) -> int:
    """The least count >= wanted that splits no complex pair of values in the order of `_ritz`."""
    split = 0 < wanted < len(values) and values[wanted - 1].imag > 0
    return wanted + int(split)


def _ritz(form: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values by real part, complex pairs together with the positive imaginary part first; unit vectors."""
    values, vectors = np.linalg.eig(form)
    values, vectors = values.astype(complex), vectors.astype(complex)
    real = np.abs(values.imag) <= _REAL * np.abs(values)
    values[real] = values[real].real
    paired = np.abs(values.imag)
    order = np.lexsort((-values.imag, np.round(paired, 12), values.real))
    order = _adjacent(values, order)
    return values[order], vectors[:, order]


def _adjacent(values: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The order with both members of each complex pair next to each other."""
    result: list[int] = []
    left = order.tolist()
    while left:
        first = left.pop(0)
        result.append(first)
        if values[first].imag != 0:
            partner = min(left, key=lambda other: abs(values[other] - np.conj(values[first])))
            left.remove(partner)
            result.append(partner)
            if values[first].imag < 0:
                result[-2:] = result[:-3:-1]
    return np.array(result, dtype=int)


def _residual(
    apply: Map, basis: np.ndarray, theta: complex, ritz: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """A x - theta x and x, a Ritz vector: their real parts and, for complex theta, their imaginary parts."""
    real = ritz.real @ basis
    if theta.imag == 0:
        return [apply(real) - theta.real * real], [real]
    imaginary = ritz.imag @ basis
    rest = [
        apply(real) - theta.real * real + theta.imag * imaginary,
        apply(imaginary) - theta.real * imaginary - theta.imag * real,
    ]
    return rest, [real, imaginary]


def _size(rest: list[np.ndarray], vector: list[np.ndarray], weight: np.ndarray | None) -> float:
    size = float(np.sqrt(sum(part @ part for part in rest)))
    if weight is None:
        return size
    sums = [
        float(weight @ np.abs(parts[0] if len(parts) == 1 else np.hypot(*parts))) for parts in (rest, vector)
    ]
    return max(size, sums[0] / max(sums[1], 1e-300))


def _combined(basis: np.ndarray, ritz: np.ndarray) -> np.ndarray:
    vectors = np.empty((ritz.shape[1], basis.shape[1]), complex)
    for row, column in zip(vectors, ritz.T, strict=True):
        row.real = column.real @ basis
        row.imag = column.imag @ basis
    return vectors


def _extend_form(
    apply: Map, apply_transposed: Map, basis: np.ndarray, form: np.ndarray, old: int, size: int
) -> None:
    for a in range(old, size):
        form[: a + 1, a] = basis[: a + 1] @ apply(basis[a])
        form[a, :a] = basis[:a] @ apply_transposed(basis[a])


def _restart(
    basis: np.ndarray,
    form: np.ndarray,
    theta: np.ndarray,
    ritz: np.ndarray,
    before: np.ndarray | None,
    keep: int,
    room: int,
) -> int:
    """Replace the basis by the span of the slowest Ritz vectors and of those before; how many are left."""
    size = len(theta)
    count = closed(theta, min(keep, room - 1, size))
    span = [real_span(theta[:count], ritz[:, :count])]
    if before is not None:
        old = np.zeros((size, before.shape[1]))
        old[: len(before)] = before
        span.append(old)
    rotation = np.zeros((size, 0))
    for columns in span:
        for _ in range(2):
            columns = columns - rotation @ (rotation.T @ columns)
        left, weights, _ = np.linalg.svd(columns, full_matrices=False)
        good = weights > 1e-10 * max(weights.max(initial=0.0), 1e-300)
        rotation = np.hstack([rotation, left[:, good][:, : room - rotation.shape[1]]])
    small = rotation.T @ form[:size, :size] @ rotation
    count = rotation.shape[1]
    for begin in range(0, basis.shape[1], PIECE):
        piece = slice(begin, begin + PIECE)
        basis[:count, piece] = rotation.T @ basis[:size, piece]
    form[:count, :count] = small
    return count
