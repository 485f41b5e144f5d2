"""Mean-square threshold of a rule with momentum: where the noise it removes is the noise it puts back.

With random batch curvatures H_B = H + noise, the second moments of a stable linear rule driven by extra covariance
M of the batch gradient settle at P_ij = G_ij(eta) M_ij in the eigenbasis of H, G the response of a pair of modes
to a kick. The iterate itself causes M = N(P) = p (mean_i H_i P H_i - H P H); the second moments are stable exactly
while the spectral radius of N after G, the noise kernel, is below 1 and eta below the deterministic edge. Both
maps keep positive semi-definite matrices so, hence the radius is an eigenvalue.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.sparse.linalg import LinearOperator, eigs

from eos_sde.training.linear_rules import LinearRule

_DENSE_RANK = 6
_TOLERANCE: Any = 1e-8
_CLOSE = 1e-9  # relative distance from the deterministic edge, where the response has a pole


class Curvatures(NamedTuple):
    """What the second moments need of a minimum, in the eigenbasis of H.

    Attributes
    ----------
    mean : array, shape (r,)
        Positive eigenvalues of H.
    sandwich : callable
        X -> mean_i H_i X H_i on symmetric (r, r).
    """

    mean: np.ndarray
    sandwich: Callable[[np.ndarray], np.ndarray]


def dense_curvatures(mean: np.ndarray, each: np.ndarray) -> Curvatures:
    """Curvatures from per-example Hessians on some modes, definite or not.

    Parameters
    ----------
    mean : array, shape (r,)
        Eigenvalues of the mean Hessian.
    each : array, shape (n, r, r)
        Per example, in the eigenvectors.
    """
    n, r, _ = each.shape
    beside = each.transpose(1, 0, 2).reshape(r, n * r)

    def sandwich(x: np.ndarray) -> np.ndarray:
        return beside @ np.matmul(x, each).reshape(n * r, r) / n

    return Curvatures(np.asarray(mean, float), sandwich)


def noise_kernel(rule: LinearRule, curvatures: Curvatures, eta: float, p: float) -> float:
    """Spectral radius of the noise kernel; infinite from the deterministic edge on.

    Parameters
    ----------
    rule : LinearRule
        The step.
    curvatures : Curvatures
        Of the minimum.
    eta : float
        Learning rate, > 0.
    p : float
        Variance of a batch mean over that of one example.
    """
    h = curvatures.mean
    if eta >= rule.edge(float(np.max(h))):
        return np.inf
    r = len(h)
    first, second = np.broadcast_arrays(h[:, None], h[None, :])
    response = rule.response(eta, first, second)

    def apply(flat: np.ndarray) -> np.ndarray:
        moments = response * flat.reshape(r, r)
        moments = (moments + moments.T) / 2
        return p * (curvatures.sandwich(moments) - h[:, None] * moments * h).ravel()

    if r <= _DENSE_RANK:
        matrix = np.stack([apply(column) for column in np.eye(r * r)], axis=1)
        return float(np.max(np.abs(np.linalg.eigvals(matrix))))
    operator = LinearOperator((r * r, r * r), matvec=apply, dtype=float)  # pyright: ignore[reportCallIssue]
    start = np.diag(h).ravel()
    values = eigs(operator, k=1, which="LM", v0=start, tol=_TOLERANCE, return_eigenvectors=False)
    return float(np.abs(values[0]))


def mean_square_limit(rule: LinearRule, curvatures: Curvatures, p: float) -> float:
    """Largest learning rate at which the second moments of a rule are stable.

    Parameters
    ----------
    rule, curvatures, p
        As for `noise_kernel`.

    Returns
    -------
    float
        The root of noise kernel = 1, or the deterministic edge where the noise vanishes on the edge's mode.
    """
    edge = float(rule.edge(float(np.max(curvatures.mean))))
    high = edge * (1 - _CLOSE)
    if p == 0 or noise_kernel(rule, curvatures, high, p) < 1:
        return edge

    def excess(log_eta: float) -> float:
        return float(np.log(max(noise_kernel(rule, curvatures, float(np.exp(log_eta)), p), 1e-300)))

    low = float(np.log(high / 2))
    while excess(low) > 0:
        low -= 1.0
    root = float(brentq(excess, low, float(np.log(high)), xtol=1e-8))  # pyright: ignore[reportArgumentType]
    return float(np.exp(root))
