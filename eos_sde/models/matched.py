"""The linear SDE that agrees exactly with SGD on a quadratic at every step."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from eos_sde.models.arguments import finite, non_negative, positive
from solvers.errors import InvalidInput
from solvers.sde import SDE


class Linear(NamedTuple):
    """Parameters of dX = -rate X dt + strength dW."""

    rate: float
    strength: float


def matched_linear(curvature: float, *, eta: float, noise: float) -> SDE:
    """The Ornstein-Uhlenbeck process whose law at times k eta is that of SGD on h x^2/2 after k steps.

    SGD: x+ = (1 - eta h) x + eta s xi. The process: dX = -a X dt + b dW with a = -log|1 - eta h|/eta and
    b^2 = 2 a eta^2 s^2/(1 - exp(-2 a eta)). Below eta h = 1 the laws agree; above, x_k has the law of
    (-1)^k X(k eta) ("folded"). Stationary variance eta s^2/(h (2 - eta h)). At eta h = 2 the rate a is 0, and
    beyond it negative: the process, like SGD, is unstable.

    Parameters
    ----------
    curvature : float
        h, finite; eta h = 1 is refused, since SGD then forgets its state in one step.
    eta : float
        Learning rate, > 0. Time unit: eta per step.
    noise : float
        s, standard deviation of the gradient noise, >= 0.

    Returns
    -------
    SDE
        One component "x", parameters ``rate`` (per time) and ``strength``; additive noise,
        Ito (all conventions agree).

    Raises
    ------
    InvalidInput
        If eta is not positive, the noise negative, or eta * curvature is 1 to rounding.
    """
    h = finite("curvature", curvature)
    eta = positive("eta", eta, "give a learning rate above 0")
    s = non_negative("noise", noise, "give the standard deviation of the gradient noise, >= 0")
    factor = abs(1.0 - eta * h)
    if factor < 1e-15:
        raise InvalidInput(
            f"eta * curvature = {eta * h} gives an infinite rate: SGD forgets its state in one step; move "
            "eta off 1/curvature, or use models.maps.quadratic_map"
        )
    rate = -math.log(factor) / eta
    doubled = 2 * rate * eta
    # z / (1 - exp(-z)), which is 1 at the edge z = 0
    growth = 1.0 if doubled == 0 else doubled / -math.expm1(-doubled)
    sde = SDE(_drift, _diffusion, params=Linear(rate, s * math.sqrt(eta * growth)), convention="ito")
    sde.potential = _potential
    return sde


def _drift(t: float, y: Any, p: Linear, xp: Any) -> Any:  # noqa: ARG001
    return (-p.rate * y[0],)


def _diffusion(t: float, y: Any, p: Linear, xp: Any) -> Any:  # noqa: ARG001
    return (p.strength,)


def _potential(t: float, y: Any, p: Linear, xp: Any) -> Any:  # noqa: ARG001
    return 0.5 * p.rate * y[0] * y[0]
