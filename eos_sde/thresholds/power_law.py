"""Escape of SGD whose noise grows with the loss: power laws in the loss instead of exponentials."""

from __future__ import annotations

import math

from scipy.optimize import brentq

from eos_sde.models.arguments import count, positive
from eos_sde.thresholds.result import Threshold
from solvers.errors import InvalidInput

_SOURCE = "Mori, Ziyin, Liu and Ueda 2022, ICML, arXiv:2105.09557, eqs. 16 to 19"


def power_law_exponent(eta: float, *, curvature: float, batch_size: int) -> float:
    """Exponent phi of the stationary density ~ L^-phi of ``dw = -L'(w) dt + sqrt(2 eta h L(w) / B) dW`` (Ito).

    phi = 1 + B/(eta h).

    Parameters
    ----------
    eta : float
        Learning rate.
    curvature : float
        h > 0, of the loss at the minimum.
    batch_size : int
        B.

    Returns
    -------
    float
        Greater than 1. The variance of w is finite only for phi > 3/2.

    Raises
    ------
    InvalidInput
        If an argument is not positive.
    """
    return 1.0 + _stiffness(eta, curvature, batch_size)


def power_law_escape_rate(
    eta: float,
    *,
    curvature: float,
    saddle_curvature: float,
    loss: float,
    saddle_loss: float,
    batch_size: int,
) -> float:
    """Rate of leaving a minimum over a saddle, per unit of the time t = eta k, in one dimension.

    ``sqrt(h |h_s|) / (2 pi) (L_s / L)^-(1/2 + B/(eta h))``: Kramers' rate for the logarithm of the loss. It holds
    for B/(eta h) large, with a relative error of 3/8 of its inverse and more.

    Parameters
    ----------
    eta : float
        Learning rate.
    curvature, saddle_curvature : float
        h > 0 at the minimum, |h_s| > 0 at the saddle.
    loss, saddle_loss : float
        L > 0 at the minimum and L_s > L at the saddle.
    batch_size : int
        B.

    Returns
    -------
    float

    Raises
    ------
    InvalidInput
        If an argument is not positive, or the saddle is not higher than the minimum.
    """
    stiffness = _stiffness(eta, curvature, batch_size)
    return math.exp(
        _log_prefactor(curvature, saddle_curvature) - (0.5 + stiffness) * _barrier(loss, saddle_loss)
    )


def power_law_escape(
    *,
    curvature: float,
    saddle_curvature: float,
    loss: float,
    saddle_loss: float,
    batch_size: int,
    steps: int,
) -> Threshold:
    """Learning rate at which one escape is expected within a number of steps.

    Parameters
    ----------
    curvature, saddle_curvature, loss, saddle_loss, batch_size
        As for `power_law_escape_rate`.
    steps : int
        Horizon k; rate times eta times k is 1 at the threshold.

    Returns
    -------
    Threshold
        In the units of the learning rate; criterion "escape". Infinite if the formula gives less than one escape at
        every learning rate up to 2/h.

    Raises
    ------
    InvalidInput
        As for `power_law_escape_rate`.
    """
    horizon = count("steps", steps)
    stiffness_per_rate = _stiffness(1.0, curvature, batch_size)
    barrier = _barrier(loss, saddle_loss)
    constant = _log_prefactor(curvature, saddle_curvature) + math.log(horizon) - 0.5 * barrier

    def excess(log_eta: float) -> float:  # rises with eta
        return constant + log_eta - stiffness_per_rate * math.exp(-log_eta) * barrier

    top = math.log(2.0 / curvature)
    method = "root of rate * eta * steps = 1; error: root tolerance, not that of the formula"
    if excess(top) < 0:
        return Threshold(math.inf, 0.0, "escape", method, _SOURCE)
    bottom = top
    while excess(bottom) > 0:
        bottom -= 1.0
    eta = math.exp(float(brentq(excess, bottom, top, xtol=1e-14)))  # pyright: ignore[reportArgumentType]
    return Threshold(eta, 1e-13 * eta, "escape", method, _SOURCE)


def _stiffness(eta: float, curvature: float, batch_size: int) -> float:
    return count("batch_size", batch_size) / (positive("eta", eta) * positive("curvature", curvature))


def _log_prefactor(curvature: float, saddle_curvature: float) -> float:
    product = positive("curvature", curvature) * positive("saddle_curvature", saddle_curvature)
    return 0.5 * math.log(product) - math.log(2 * math.pi)


def _barrier(loss: float, saddle_loss: float) -> float:
    low, high = positive("loss", loss), positive("saddle_loss", saddle_loss)
    if high <= low:
        raise InvalidInput(f"saddle_loss={high} is not above loss={low}; give the higher loss at the saddle")
    return math.log(high / low)
