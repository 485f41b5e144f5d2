"""Refusals of steps at which a scheme amplifies what the drift damps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from solvers import schemes, tangent
from solvers.errors import InvalidInput
from solvers.sde import SDE


def refuse_unstable_step(sde: SDE, start: np.ndarray, t0: float, dt: float, scheme: schemes.Scheme) -> None:
    """Refuse a step at which the scheme amplifies a mode that the drift damps, at up to 100 of the starts."""
    points = np.unique(start, axis=0)[:100]
    with np.errstate(all="ignore"):
        speeds = np.sqrt(sum(component**2 for component in sde.drift_at(t0, tuple(points.T))))
        tamed = np.asarray(scheme.taming(dt * speeds))[:, None, None]
        rates = _rates(_drift_jacobians(sde, t0, points) / tamed)
        if _amplified(rates, dt, scheme.amplification).any():
            # a jump of the drift looks as stiff as its difference is fine: only exact derivatives count
            rates = _rates(_exact_jacobians(sde, t0, points) / tamed)
    refuse_amplified(
        rates,
        dt,
        scheme.amplification,
        what="the drift: its Jacobian at y0",
        name=repr(scheme.name),
        insist=" (allow_unstable_step=True to insist)",
    )


def _rates(jacobians: np.ndarray) -> np.ndarray:
    """All eigenvalues; matrices that are not finite are left out."""
    return np.linalg.eigvals(jacobians[np.isfinite(jacobians).all(axis=(1, 2))]).ravel()


def refuse_amplified(
    rates: np.ndarray,
    dt: float,
    amplification: Callable[[np.ndarray], np.ndarray],
    *,
    what: str,
    name: str,
    insist: str = "",
) -> None:
    """Refuse a step at which a linear mode with one of these rates grows although it is damped."""
    if not _amplified(rates, dt, amplification).any():
        return
    damped = rates[rates.real < 0]
    largest = _largest_stable_step(damped, dt, amplification)
    worst = damped[np.argmax(np.abs(amplification(dt * damped)))]
    shown = f"{worst.real:.6g}" if worst.imag == 0 else f"{worst:.6g}"
    raise InvalidInput(
        f"dt={dt:.6g} is too large for {what} has the eigenvalue {shown}, which {name} amplifies; the largest "
        f"stable dt is {largest:.6g}{insist}"
    )


def _amplified(rates: np.ndarray, dt: float, amplification: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Which of the damped rates a step amplifies."""
    # A Jacobian by differences is exact to about 1e-9 relative: a step exactly at the edge passes.
    return np.abs(amplification(dt * rates[rates.real < 0])) > 1 + 1e-6


def _exact_jacobians(sde: SDE, t0: float, points: np.ndarray) -> np.ndarray:
    """Symbolic derivatives at every point, zero for jumps."""
    try:
        exact = tangent.jacobian(sde)
    except InvalidInput:  # a drift that cannot be traced is judged by its differences
        return _drift_jacobians(sde, t0, points)
    return np.array([exact(t0, point) for point in points])


def _drift_jacobians(sde: SDE, t0: float, points: np.ndarray) -> np.ndarray:
    """Central differences at every point."""
    n, d = points.shape
    h = 6e-6 * np.maximum(1.0, np.abs(points))
    above, below = (points[:, None] + sign * h[:, :, None] * np.eye(d) for sign in (1.0, -1.0))
    shifted = np.concatenate([above, below]).reshape(-1, d)  # all in one call of the drift
    up, down = np.stack(sde.drift_at(t0, tuple(shifted.T)), axis=-1).reshape(2, n, d, d)
    width = np.einsum("njj->nj", above - below)
    return ((up - down) / width[:, :, None]).swapaxes(1, 2)


def _largest_stable_step(rates: np.ndarray, dt: float, amplification: Callable[..., Any]) -> float:
    """Bisection between a step small enough and dt; the stable set of these schemes is an interval."""
    low, high = 0.0, dt
    for _ in range(60):
        middle = 0.5 * (low + high)
        if (np.abs(amplification(middle * rates)) <= 1).all():
            low = middle
        else:
            high = middle
    return low
