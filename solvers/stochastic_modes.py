"""Leading eigenmodes of stochastic matrices, by Arnoldi's method on the balanced matrix or on the matrix itself."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sps
import scipy.sparse.linalg as spl

from solvers.errors import ConvergenceFailure
from solvers.factorisation import arpack, start_vector
from solvers.missed_modes import both_completed, same_values
from solvers.mode_order import closed_count, ordered
from solvers.nonreversible import MORE, balancing, dense_modes, left_functions, selected
from solvers.starts import Start

# Smaller eigenvalues, beside the largest, are rounding.
_RESOLVED = 1e-11

Found = tuple[np.ndarray, np.ndarray, np.ndarray, Start | None]


def stochastic_modes(
    matrix: sps.csr_array, k: int, method: str, tol: float, start: Start | None = None
) -> Found:
    """The k eigenvalues of largest modulus of a (sub)stochastic matrix, columns summing to at most 1.

    Beside them right and left vectors and a start for a neighbour, as from `nonreversible_modes`. Scaling by the
    slowest pair balances a chain whose tails are small. Where states leave with certainty, or are never reached, as
    on an axis without noise, that pair says nothing of them, and scaled vectors are rounding there: if residuals
    show it, the matrix is taken as it is.

    Raises
    ------
    ConvergenceFailure
        If left and right iterations disagree, or modes are at rounding level.
    """
    n = matrix.shape[0]  # pyright: ignore[reportOptionalSubscript]
    if start is not None and len(start.left) != n:
        start = None
    balance = _slowest_scaling(matrix, start)
    try:
        found = _scaled_modes(matrix, balance, k, method, tol, start)
        worst = _worst_residual(matrix, found)
    except ConvergenceFailure:
        return _scaled_modes(matrix, np.ones(n), k, method, tol, start)
    if worst <= tol:
        return found
    plain = _scaled_modes(matrix, np.ones(n), k, method, tol, start)
    return plain if _worst_residual(matrix, plain) < worst else found


def _slowest_scaling(matrix: sps.csr_array, start: Start | None) -> np.ndarray:
    n = matrix.shape[0]  # pyright: ignore[reportOptionalSubscript]
    transposed = sps.csr_array(matrix.T)
    right, left = (np.full(n, 1.0 / n), np.ones(n)) if start is None else start.slowest_pair()
    for _ in range(300):  # only to balance the matrix: need not converge
        before = right, left
        right, left = matrix @ right, transposed @ left
        right, left = right / right.sum(), left / left.max()
        if all(_settled(now, then) for now, then in zip((right, left), before, strict=True)):
            break
    return balancing(right, left)


def _scaled_modes(
    matrix: sps.csr_array, balance: np.ndarray, k: int, method: str, tol: float, start: Start | None
) -> Found:
    n = matrix.shape[0]  # pyright: ignore[reportOptionalSubscript]
    scaled = sps.csr_array(sps.diags_array(1 / balance) @ matrix @ sps.diags_array(balance))
    spare = None
    if method == "dense":
        values, y, z = dense_modes(scaled, _largest_first)
    else:
        count, first = min(2 * k + 10, n - 2), (start_vector(n), start_vector(n))
        near = None if start is None else start.scaled(0, balance)
        if near is not None and k < near[2] <= count:
            count, first = near[2], near[:2]
        settings = {"k": count, "which": "LM", "tol": 0.01 * tol, "ncv": min(2 * count + 10, n)}
        found = []
        for operator, vector in zip((scaled, sps.csr_array(scaled.T)), first, strict=True):
            nu, vectors = arpack(spl.eigs, operator, v0=vector, **settings)
            found.append(ordered(nu, vectors, _largest_first))
        values = found[0][0]
        kept = closed_count(values, k, cluster=True)
        smallest = max(abs(values[kept - 1]), _RESOLVED * abs(values[0]))
        applied = [scaled.__matmul__, sps.csr_array(scaled.T).__matmul__]
        found = both_completed(applied, found, k, smallest, 0.1 * tol)
        found = [ordered(*pairs, _largest_first) for pairs in found]
        (values, y), (values_left, z) = found
        if not same_values(values, values_left, k, max(1e-6, 0.1 * tol)):
            apart = float(np.abs(values[:k, None] - values_left).min(axis=1).max())
            raise ConvergenceFailure(
                f"left and right Arnoldi runs differ by {apart:.1g}, so rounding moves these modes, as on an axis "
                "without noise; ask for fewer, give every axis noise, or use method='dense'"
            )
        more = closed_count(values, k + MORE, cluster=False)
        spare = Start(values[:more], y[:, :more] * balance[:, None], z[:, :more] / balance[:, None])
    resolved = int(np.sum(np.abs(values[:k]) > _RESOLVED * np.abs(values[0])))
    if resolved < k:
        raise ConvergenceFailure(
            f"only {resolved} modes have a modulus above rounding (next: {abs(values[resolved]):.2g}); ask "
            f"for k <= {resolved}"
        )
    values, y, z = selected(values, y, z, k)
    adjoint = sps.csr_array(matrix.T)
    return values, y * balance[:, None], left_functions(adjoint, values, z, balance), spare


def _worst_residual(matrix: sps.csr_array, found: Found) -> float:
    """The largest relative residual; of functions where the slowest mode has mass."""
    values, right, left, _ = found
    weight = np.abs(right[:, :1])
    wrong = np.abs(matrix @ right - right * values).sum(axis=0) / np.abs(right).sum(axis=0)
    size = (weight * np.abs(left)).sum(axis=0)
    wrong_left = (weight * np.abs(matrix.T @ left - left * values)).sum(axis=0)
    both = np.concatenate([wrong, wrong_left / np.maximum(size, 1e-300)])
    return float(both.max()) if np.isfinite(both).all() else np.inf


def _settled(now: np.ndarray, then: np.ndarray) -> bool:
    """Whether a step changed no entry that balancing would notice by more than a percent."""
    noticed = now > 1e-200 * now.max()
    return bool(np.all(np.abs(now[noticed] - then[noticed]) <= 0.01 * now[noticed]))


def _largest_first(values: np.ndarray) -> np.ndarray:
    return np.lexsort((-values.imag, np.round(-values.real, 9), np.round(-np.abs(values), 9)))
