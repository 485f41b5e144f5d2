"""Largest eigenvalues of maps of symmetric matrices, and the learning rates at which second moments lose stability."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from eos_sde.thresholds.curvature_factors import Factors, rounding
from eos_sde.thresholds.result import Threshold
from solvers import memory
from solvers.errors import ConvergenceFailure

# Below this the operator on symmetric matrices has at most 78 entries a side: solve it whole.
_DENSE_RANK = 12
_TOLERANCE = 1e-7  # relative residual; the eigenvalue itself is then good to about its square
_MAX_RESTARTS = 500
_KRYLOV = 12


def second_moment_edge(factors: Factors, p: float, *, mean: float, criterion: str, source: str) -> Threshold:
    """2 / lambda_max(C^-1/2 D C^-1/2), D X = (mean - p) H X H + p mean_i H_i X H_i, C X = (H X + X H)/2.

    Parameters
    ----------
    factors : Factors
        Of the curvatures.
    p : float
        Variance of a batch mean over that of one example.
    mean : float
        Share of the mean step's own square: 1 for SGD, 0 for its SDE.
    criterion, source : str
        For the threshold.
    """
    h = factors.curvatures
    scale = 1.0 / np.sqrt((h[:, None] + h[None, :]) / 2)

    def apply(x: np.ndarray) -> np.ndarray:
        return scale * factors.second_order(scale * x, p, mean)

    # The operator maps positive semi-definite matrices to such, so its leading eigenmatrix is one of them and
    # the identity is never orthogonal to it.
    leading = largest_eigenvalue(apply, np.diag(np.sqrt(h)))
    eta, residual = 2 / leading.value, leading.residual / leading.value
    method = f"{leading.how}, rank {len(h)}, residual {residual:.1e}; error: bound"
    return Threshold(eta, eta * (residual + rounding(factors)), criterion, method, source)


class Leading(NamedTuple):
    """Largest eigenvalue, its residual norm, and how it was found."""

    value: float
    residual: float
    how: str


def largest_eigenvalue(apply: Callable[[np.ndarray], np.ndarray], start: np.ndarray) -> Leading:
    """Largest eigenvalue of a symmetric operator on symmetric r x r matrices."""
    r = len(start)
    if r <= _DENSE_RANK:
        upper = np.triu_indices(r)
        norm = np.where(upper[0] == upper[1], 1.0, np.sqrt(2.0))
        columns = []
        for i, j, size in zip(*upper, norm, strict=True):
            unit = np.zeros((r, r))
            unit[i, j] = unit[j, i] = 1.0 / size if i != j else 1.0
            columns.append(apply(unit)[upper] * norm)
        matrix = np.array(columns)
        value = float(eigh((matrix + matrix.T) / 2, eigvals_only=True)[-1])
        return Leading(value, 0.0, "2/lambda_max, dense")
    memory.require(
        8 * (_KRYLOV + 8) * r**2, f"Lanczos on matrices of side {r}", "give fewer examples or outputs"
    )
    calls = 0

    def matvec(v: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        return apply(v.reshape(r, r)).ravel()

    operator = LinearOperator((r * r, r * r), matvec=matvec, dtype=float)  # pyright: ignore[reportCallIssue]
    try:
        values, vectors = eigsh(
            operator,
            k=1,
            which="LA",
            v0=start.ravel(),
            tol=_TOLERANCE,  # pyright: ignore[reportArgumentType]
            ncv=_KRYLOV,
            maxiter=_MAX_RESTARTS,
        )
    except ArpackNoConvergence as error:
        raise ConvergenceFailure(
            f"Lanczos did not reach {_TOLERANCE:g} in {calls} products: the leading eigenvalues lie too close"
        ) from error
    value, matrix = float(values[0]), vectors[:, 0].reshape(r, r)
    residual = float(np.linalg.norm(apply(matrix) - value * matrix))
    return Leading(value, residual, f"2/lambda_max, Lanczos with {calls} products")
