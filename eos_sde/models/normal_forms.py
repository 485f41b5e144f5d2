"""Normal forms at the edge of stability: the flip (period doubling) and self-stabilization.

Time unit of both: one SGD step.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from eos_sde.models.arguments import finite, non_negative, positive
from solvers.errors import InvalidInput
from solvers.sde import SDE


class Flip(NamedTuple):
    """Parameters of dA = (mu A - C A^3) dk + s dW."""

    mu: float
    C: float
    s: float


class ShakenFlip(NamedTuple):
    """Parameters of dA = (mu A - C A^3) dk + sqrt(s^2 + m^2 A^2) dW."""

    mu: float
    C: float
    s: float
    m: float


class ScaledFlip(NamedTuple):
    """Parameters of dA = (mu A - C A^3) dk + m A dW."""

    mu: float
    C: float
    m: float


class SelfStabilization(NamedTuple):
    """Parameters of the self-stabilization model."""

    alpha: float
    beta: float
    eta: float
    noise: float


def flip_normal_form(mu: float, C: float, s: float, m: float = 0.0) -> SDE:
    """The two-step amplitude A_k = (-1)^k x_k near the edge: dA = (mu A - C A^3) dk + s dW.

    For mu > 0 and C > 0 it is bistable: the two phases of the period-2 oscillation, which noise exchanges.

    Parameters
    ----------
    mu : float
        eta * curvature - 2, per step; negative inside the stable range.
    C : float
        Cubic coefficient, per step and weight^2; `flip_coefficients` gives both. Not positive: no saturation,
        and A runs away beyond sqrt(mu/C).
    s : float
        Standard deviation of the kick to the weight per step, >= 0: eta times that of the gradient noise.
    m : float
        Standard deviation of the growth factor of a step, >= 0: eta times that of the batch curvature. The noise is
        then sqrt(s^2 + m^2 A^2), gradient and curvature noise taken as uncorrelated, and m A where s = 0: A = 0 is
        then a fixed point, and the model has no parameter s.

    Returns
    -------
    SDE
        One component "A"; convention Ito (for m = 0 all conventions agree, and the SDE carries its potential).
        Time unit: one step.

    Raises
    ------
    InvalidInput
        If a number is not finite, or s or m negative.
    """
    params = Flip(finite("mu", mu), finite("C", C), non_negative("s", s, "give the kick per step, >= 0"))
    if non_negative("m", m, "give the spread of the growth factor, >= 0") > 0:
        if params.s == 0:
            scaled = ScaledFlip(params.mu, params.C, float(m))
            return SDE(_flip_drift, _scaled_diffusion, params=scaled, names=("A",), convention="ito")
        shaken = ShakenFlip(*params, float(m))
        return SDE(_flip_drift, _shaken_diffusion, params=shaken, names=("A",), convention="ito")
    sde = SDE(_flip_drift, _flip_diffusion, params=params, names=("A",), convention="ito")
    sde.potential = _flip_potential
    return sde


def _flip_drift(t: float, y: Any, p: Flip, xp: Any) -> Any:  # noqa: ARG001
    (amplitude,) = y
    return (amplitude * (p.mu - p.C * amplitude * amplitude),)


def _flip_diffusion(t: float, y: Any, p: Flip, xp: Any) -> Any:  # noqa: ARG001
    return (p.s,)


def _shaken_diffusion(t: float, y: Any, p: ShakenFlip, xp: Any) -> Any:  # noqa: ARG001
    (amplitude,) = y
    return (xp.sqrt(p.s * p.s + p.m * p.m * amplitude * amplitude),)


def _scaled_diffusion(t: float, y: Any, p: ScaledFlip, xp: Any) -> Any:  # noqa: ARG001
    return (p.m * y[0],)


def _flip_potential(t: float, y: Any, p: Flip, xp: Any) -> Any:  # noqa: ARG001
    square = y[0] * y[0]
    return square * (0.25 * p.C * square - 0.5 * p.mu)


def flip_coefficients(
    eta: float, curvature: float, third: float, fourth: float, *, feedback: float = 0.0
) -> tuple[float, float]:
    """Coefficients (mu, C) of the flip normal form from the derivatives of the loss along the line.

    mu = eta f'' - 2, C = eta^2 f'''^2/4 - eta f''''/6 + eta feedback/2, at the minimum. Just beyond the edge a stable
    2-cycle exists exactly when C > 0, on a line (feedback = 0) if 3 f'''^2 > f'' f''''.

    Parameters
    ----------
    eta : float
        Learning rate, > 0.
    curvature, third, fourth : float
        f'' > 0, f''' and f'''' at the minimum.
    feedback : float
        What the other directions add: g' H^-1 g >= 0 at a minimum, where g is the gradient of the curvature along u
        and H the Hessian, both across u. The oscillation pushes the other weights to -H^-1 g A^2/2, where
        the curvature is lower (self-stabilization that has come to rest). In weight^-4 time^-1.

    Returns
    -------
    tuple of float
        mu per step, C per step and weight^2.

    Raises
    ------
    InvalidInput
        If a number is not finite, or eta or the curvature not positive.

    References
    ----------
    Kuznetsov 2004, Elements of Applied Bifurcation Theory, eq. 5.59, of w -> w - eta grad L.
    """
    eta = positive("eta", eta, "give a learning rate above 0")
    h = positive("curvature", curvature, "give the curvature at a minimum")
    f3, f4 = finite("third", third), finite("fourth", fourth)
    pushed = finite("feedback", feedback)
    return eta * h - 2.0, eta**2 * f3**2 / 4.0 - eta * f4 / 6.0 + eta * pushed / 2.0


def two_cycle_amplitude(eta: float, curvature: float, third: float, fourth: float) -> float:
    """Amplitude of the stable period-2 oscillation just beyond the edge, sqrt(mu/C).

    To leading order in mu = eta f'' - 2 the cycle is +-amplitude about the minimum; exact for a loss
    h x^2/2 + f4 x^4/24.

    Parameters
    ----------
    eta, curvature, third, fourth
        As for `flip_coefficients`.

    Returns
    -------
    float
        In units of the weight.

    Raises
    ------
    InvalidInput
        If eta * curvature <= 2 (no oscillation) or C <= 0 (no saturation).
    """
    mu, c = flip_coefficients(eta, curvature, third, fourth)
    if mu <= 0:
        raise InvalidInput(f"eta * curvature = {mu + 2:.6g} is not above 2: there is no 2-cycle; raise eta")
    if c <= 0:
        raise InvalidInput(f"C = {c:.6g} is not positive (f'' f'''' >= 3 f'''^2): the 2-cycle is unstable")
    return math.sqrt(mu / c)


def flip_rate_kramers(mu: float, C: float, s: float) -> float:
    """Rate of phase flips by Kramers' formula: sqrt(2) mu/(2 pi) exp(-mu^2/(2 C s^2)), each way.

    The relaxation rate between the two phases (the spectral gap) is twice this. Good for mu^2/(2 C s^2) >> 1,
    with a relative error of the order of its inverse.

    Parameters
    ----------
    mu, C, s : float
        As for `flip_normal_form`, all positive.

    Returns
    -------
    float
        Per step.

    Raises
    ------
    InvalidInput
        If mu, C or s is not positive.
    """
    mu, c = positive("mu", mu, "below the edge there are no phases to flip between"), positive("C", C)
    s = positive("s", s, "without noise the phase never flips")
    return math.sqrt(2.0) * mu / (2.0 * math.pi) * math.exp(-(mu**2) / (2.0 * c * s**2))


def self_stabilization(alpha: float, beta: float, eta: float, noise: float = 0.0) -> SDE:
    """Continuous model of self-stabilization: dx = eta y x dk + eta s dW, dy = eta (alpha - beta x^2/2) dk.

    x is the two-step amplitude (-1)^k u.(w - w*) along the top eigenvector u, y = S - 2/eta the sharpness
    above the edge. Its Euler-Maruyama step of size 1 is the map of Damian, Nichani and Lee in that amplitude.
    Without noise `self_stabilization_invariant` is constant, and small oscillations about x^2 = 2 alpha/beta,
    y = 0 have period 2 pi/(eta sqrt(2 alpha)) steps; the map spirals out by sqrt(1 + 2 alpha eta^2) a step.

    Parameters
    ----------
    alpha : float
        Progressive sharpening -grad L . grad S, > 0; sharpness per time.
    beta : float
        |grad S|^2 across u, > 0.
    eta : float
        Learning rate, > 0. Time unit: one step.
    noise : float
        s >= 0, standard deviation of the batch gradient along u; x is kicked by eta s per step.

    Returns
    -------
    SDE
        Components "x", "y"; noise in x only; convention Ito (all conventions agree).

    Raises
    ------
    InvalidInput
        If alpha, beta or eta is not positive, or the noise negative.

    References
    ----------
    Damian, Nichani and Lee 2023, ICLR, arXiv:2209.15594, eq. 3; noise as in arXiv:2604.21016.
    """
    params = _self_stabilization_params(alpha, beta, eta, noise)
    return SDE(
        _stabilization_drift, _stabilization_diffusion, params=params, names=("x", "y"), convention="ito"
    )


def _self_stabilization_params(alpha: float, beta: float, eta: float, noise: float) -> SelfStabilization:
    return SelfStabilization(
        positive("alpha", alpha, "self-stabilization needs progressive sharpening, alpha > 0"),
        positive("beta", beta, "self-stabilization needs a sharpness gradient, beta > 0"),
        positive("eta", eta, "give a learning rate above 0"),
        non_negative("noise", noise, "give the standard deviation of the gradient noise, >= 0"),
    )


def _stabilization_drift(t: float, y: Any, p: SelfStabilization, xp: Any) -> Any:  # noqa: ARG001
    x, excess = y
    return (p.eta * excess * x, p.eta * (p.alpha - 0.5 * p.beta * x * x))


def _stabilization_diffusion(t: float, y: Any, p: SelfStabilization, xp: Any) -> Any:  # noqa: ARG001
    return (p.eta * p.noise, 0.0)


def self_stabilization_invariant(x: Any, y: Any, *, alpha: float, beta: float) -> Any:
    """y^2/2 + beta x^2/4 - alpha log|x|, constant along the noiseless model; x must not be 0.

    Parameters
    ----------
    x, y : number or array
        State.
    alpha, beta : float
        As for `self_stabilization`.

    Returns
    -------
    number or array
        In units of sharpness^2.

    Raises
    ------
    InvalidInput
        If an x is 0, where the invariant is infinite.
    """
    if np.any(np.asarray(x) == 0):
        raise InvalidInput("x=0 has no invariant (it is infinite there); give x != 0")
    return np.square(y) / 2 + beta * np.square(x) / 4 - alpha * np.log(np.abs(x))
