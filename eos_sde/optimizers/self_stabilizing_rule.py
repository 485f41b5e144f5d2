"""The learning rate on the edge of the curvature along the gradient: NumPy, plain numbers and JAX use this file."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from eos_sde.optimizers import rule
from solvers.errors import InvalidInput

RELEASES = ("descent", "always")
"""When the margin may be given up: where there is descent to pay for it, or at every update."""

GROWTH = 1.0
"""A released rate goes up to ``(2 + GROWTH)/sharpness``: an oscillation at most doubles in one update. The edge is at
2; at 4 the catapult of a two-layer network turns into divergence (arXiv 2003.02218). This is half-way."""

WINDOW = 64.0
"""Time constant of the running mean of the descent, in updates: its error is 0.09 of the scatter of one update."""


def self_stabilizing_learning_rate(
    base: Any,
    sharpness: Any,
    directional: Any,
    *,
    released: Any,
    delta: Any = 0.1,
    growth: Any = GROWTH,
    least_growth: Any = None,
    error_bound: Any = 0.0,
    xp: Any = np,
) -> Any:
    r"""Return the rate of the proposal, or where it is released that on the edge of the directional sharpness.

    .. math:: \eta = \min(\eta_{base},\ (2 - \delta)/\lambda) \quad\text{or, released,}\quad
        \eta = \min(\eta_{base},\ 2/R,\ (2 + \gamma)/\lambda), \qquad R = g^T H g/|g|^2,

    with :math:`\gamma` the growth; no curvature <= 0 throttles. Both are made of
    `eos_sde.optimizers.rule.learning_rate`.

    :math:`2/R` is the largest rate at which the second-order expansion of the loss along the step,
    :math:`L - \eta |g|^2 + \eta^2 g^T H g/2`, does not rise. In terms of :math:`\lambda` it is a feedback on the
    oscillation. Let the gradient be :math:`\lambda x` along the top direction and :math:`g_\perp` in flat ones:
    :math:`\eta \lambda = 2 + 2 g_\perp^2/(\lambda x)^2`, so that

    .. math:: x_{t+1}^2 = x_t^2 \left(1 + \frac{2 g_\perp^2}{\lambda^2 x_t^2}\right)^2
        \ge x_t^2 + \frac{4 g_\perp^2}{\lambda^2}.

    A small oscillation grows by factors, a large one by the constant amount that is worth, as
    :math:`\lambda x^2/2`, the :math:`2 g_\perp^2/\lambda` by which the loss falls along the flat directions: to
    leading order the oscillation takes no more than the descent gives. It does not stop growing while the cap
    binds, so it passes the :math:`x^2 = 2 \alpha/\beta` beyond which the sharpness of the reduced model falls,
    whatever alpha and beta: there is no runaway. With :math:`\sigma/R`, :math:`\sigma < 2`, the oscillation would
    rest at :math:`(\lambda x)^2 = \sigma g_\perp^2/(2 - \sigma)`, which may be below that, and the runaway comes
    back. A fixed delta < 0 instead grows x by a factor each update whatever its size, until the base rate is
    reached: from far beyond the edge it overshoots. A strongly positive fourth derivative bounds x by itself: from
    ten times the edge the sharpness may then fall slowly (`eos_sde.optimizers.reduced_model` shows where).

    Parameters
    ----------
    base : float or array
        The learning rate that is never exceeded, eta_base >= 0.
    sharpness : float or array
        The largest algebraic eigenvalue of the loss Hessian.
    directional : float or array
        R, the directional sharpness.
    released : bool or array
        Whether the margin is given up for the edge of R.
    delta : float or array
        Distance kept from the edge where it is not.
    growth : float
        At least 0.
    least_growth : float, optional
        A released rate is at least min(base, (2 + least_growth)/sharpness).
    error_bound : float or array, optional
        Added to the sharpness.
    xp : module
        ``numpy`` or ``jax.numpy``.

    Returns
    -------
    float or array
        The rate, of the broadcast shape of the arguments.

    References
    ----------
    Roulet et al. 2024 (2407.06183), CDAT: :math:`\sigma \max(-g \cdot u, 0)/|u^T H u|` for an update u, "on edge"
    at sigma = 2. The bound by the sharpness and the release are ours.

    Examples
    --------
    Kept from the edge, on it for a gradient along the top direction, beyond it for one that is mostly not:

    >>> float(self_stabilizing_learning_rate(1.0, 10.0, 10.0, released=False))
    0.19
    >>> float(self_stabilizing_learning_rate(1.0, 10.0, 10.0, released=True))
    0.2
    >>> float(self_stabilizing_learning_rate(1.0, 10.0, 0.1, released=True))
    0.3
    """
    margin = xp.where(released, -growth, delta)
    ceiling = rule.learning_rate(base, sharpness, margin, error_bound=error_bound, xp=xp)
    edge = rule.learning_rate(ceiling, directional, 0.0, xp=xp)
    if least_growth is not None:
        least = rule.learning_rate(base, sharpness, -least_growth, error_bound=error_bound, xp=xp)
        edge = xp.maximum(edge, least)
    return xp.where(released, edge, ceiling)[()]


def directional_sharpness(sharpness: Any, share: Any, rest: Any) -> Any:
    """Return g' H g / |g|^2 from the top eigenpair and the rest of the gradient.

    Parameters
    ----------
    sharpness : float or array
        The top eigenvalue, of the unit vector u.
    share : float or array
        (g.u)^2 / |g|^2, in [0, 1].
    rest : float or array
        The Rayleigh quotient of the part of g that is orthogonal to u.

    Returns
    -------
    float or array
        Exact for an eigenvector u; with an old u and `rest` it follows the gradient between two measurements.
    """
    return share * sharpness + (1.0 - share) * rest


def rest_quotient(quotient: Any, share: Any, sharpness: Any, *, xp: Any = np) -> Any:
    """Return the Rayleigh quotient of the part of the gradient that is orthogonal to the top eigenvector.

    Parameters
    ----------
    quotient : float or array
        g' H g / |g|^2, measured.
    share : float or array
        (g.u)^2 / |g|^2, in [0, 1].
    sharpness : float or array
        The top eigenvalue, of the unit vector u.
    xp : module
        ``numpy`` or ``jax.numpy``.

    Returns
    -------
    float or array
        What `directional_sharpness` takes; the sharpness where nothing of the gradient is left.

    Examples
    --------
    >>> float(rest_quotient(4.0, 0.25, 10.0))
    2.0
    """
    left = 1.0 - share
    some = left > 0
    return xp.where(some, (quotient - share * sharpness) / xp.where(some, left, 1.0), sharpness)[()]


def descent(mean: Any, product: Any, updates: Any, *, xp: Any = np) -> Any:
    r"""Return the running mean of g_t . (g_{t-1} + g_{t-2}): where it is positive, the margin may be given up.

    It weighs the descent of the averaged path against what gradient noise undoes. About a minimum along a direction
    of curvature h, SGD with noise of variance c there has
    :math:`E\, g_t g_{t-k} = -c\, \eta h\, a^{k-1}/(1 + a)`, a = 1 - eta h, so that the two lags add up to
    :math:`-\eta h c` exactly. A two-cycle adds nothing (the two lags cancel), and a slow drift along flat directions
    :math:`2 |\nabla L|^2`. In all

    .. math:: E\, g_t \cdot (g_{t-1} + g_{t-2}) = 2 |\nabla L|^2 - \eta\, \mathrm{tr}(H C):

    2/eta times what an update takes from the loss, :math:`\eta |\nabla L|^2`, less what noise adds to it,
    :math:`\eta^2 \mathrm{tr}(H C)/2`. The part along the top eigenvector is left out: it receives, and a decaying
    oscillation there would count against it. Where noise wins, there is no descent to pay for an oscillation, and
    the noise already drives one; the margin then stays.

    Parameters
    ----------
    mean : float or array
        The last mean.
    product : float or array
        g_t . (g_{t-1} + g_{t-2}) now, of the parts orthogonal to the top eigenvector.
    updates : int or array
        Updates before this one.
    xp : module
        ``numpy`` or ``jax.numpy``.

    Returns
    -------
    float or array
        The new mean; 0 for the first two updates. A product that is not finite changes nothing.
    """
    gain = 1.0 / xp.minimum(xp.maximum(updates - 1.0, 1.0), WINDOW)
    sound = xp.isfinite(product) & (updates >= 2)
    return mean + xp.where(sound, gain * (xp.where(sound, product, 0.0) - mean), 0.0)


def validate_growth(growth: Any, *, name: str = "growth", most: float = math.inf) -> None:
    """Refuse a growth with which the rule cannot work.

    Parameters
    ----------
    growth : float
        See `self_stabilizing_learning_rate`.
    name : str
        Of the argument.
    most : float
        The largest that is allowed.

    Raises
    ------
    InvalidInput
        If it is not a finite number of at least 0, or above the largest.
    """
    try:
        number = float(growth)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{name} must be a single number, got {growth!r}.") from error
    if not (math.isfinite(number) and number >= 0):
        raise InvalidInput(
            f"{name} must be a finite number of at least 0, got {number!r}: below 0 the iterate cannot oscillate "
            "and the rate runs away; use 1."
        )
    if number > most:
        raise InvalidInput(f"{name}={number!r} must be at most growth, {most!r}: lower it or raise growth.")


def validate_release(release: Any) -> None:
    """Refuse what is no time to give up the margin.

    Parameters
    ----------
    release : str
        One of `RELEASES`.

    Raises
    ------
    InvalidInput
        If it is not.
    """
    if release not in RELEASES:
        raise InvalidInput(f"release must be one of {', '.join(RELEASES)}, got {release!r}.")
