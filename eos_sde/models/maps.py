"""The discrete rules themselves, with Gaussian noise: the ground truth of every continuous model.

Each is one Euler-Maruyama step of an Ito SDE. That SDE comes along (`NoisyMap.as_sde`), so that a transfer
operator or a compiled simulation with the step `NoisyMap.dt` *is* the map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from eos_sde.models.arguments import finite, non_negative, positive
from eos_sde.models.capped_rate import capped_rate
from eos_sde.models.landscapes import LineLoss, line_loss, quadratic
from eos_sde.models.noisy_map import NoisyMap
from eos_sde.models.normal_forms import SelfStabilization, _self_stabilization_params
from eos_sde.models.sme import gradient_flow
from solvers.errors import InvalidInput
from solvers.sde import SDE

__all__ = [
    "NoisyMap",
    "caeo_map",
    "catapult_map",
    "line_map",
    "loss_map",
    "quadratic_map",
    "self_stabilization_map",
]


def quadratic_map(eta: float, curvature: float, noise: float, spread: float = 0.0) -> NoisyMap:
    """SGD on h x^2/2: x+ = (1 - eta h) x + eta sqrt(s^2 + c^2 x^2) xi.

    With c > 0 this has the law of the random recurrence x+ = (1 - eta h_k) x + eta s xi, the curvature h_k of each
    batch normal with mean h and standard deviation c.

    Parameters
    ----------
    eta : float
        Learning rate, > 0.
    curvature : float
        h.
    noise : float
        s >= 0, standard deviation of the gradient noise.
    spread : float
        c >= 0, standard deviation of the batch curvature.

    Returns
    -------
    NoisyMap
        With ``dt = eta``. For s = 0 and c > 0 the noise is c x, and x = 0 a fixed point.

    Raises
    ------
    InvalidInput
        If an argument is out of range.
    """
    c = non_negative("spread", spread, "give the standard deviation of the batch curvature, >= 0")
    if c == 0:
        return NoisyMap("quadratic map", gradient_flow(curvature=curvature, eta=eta, noise=noise), float(eta))
    s = non_negative("noise", noise, "give the standard deviation of the gradient noise, >= 0")
    params = {"curvature": finite("curvature", curvature), "spread": c} | ({"noise": s} if s > 0 else {})
    rule = loss_map(quadratic, eta, _both_noises if s > 0 else _curvature_noise, params=params)
    return NoisyMap("quadratic map", rule.sde, rule.dt)


def _curvature_noise(t: float, y: Any, p: Any, xp: Any) -> Any:  # noqa: ARG001
    return (p.spread * y[0],)


def _both_noises(t: float, y: Any, p: Any, xp: Any) -> Any:  # noqa: ARG001
    return (xp.sqrt(p.noise * p.noise + p.spread * p.spread * y[0] * y[0]),)


def line_map(
    eta: float, noise: float, *, curvature: float, third: float = 0.0, fourth: float = 0.0
) -> NoisyMap:
    """SGD on the loss along a line, h x^2/2 + f3 x^3/6 + f4 x^4/24: x+ = x - eta f'(x) + eta s xi.

    Parameters
    ----------
    eta : float
        Learning rate, > 0.
    noise : float
        s >= 0, standard deviation of the gradient noise.
    curvature, third, fourth : float
        Derivatives of the loss at 0.

    Returns
    -------
    NoisyMap
        With ``dt = eta``.

    Raises
    ------
    InvalidInput
        If an argument is out of range.
    """
    return loss_map(line_loss, eta, noise, params=LineLoss(curvature, third, fourth))


def loss_map(
    potential: Callable[..., Any],
    eta: float,
    noise: float | Callable[..., Any],
    *,
    params: Any = None,
    names: Sequence[str] = ("x",),
) -> NoisyMap:
    """SGD with Gaussian noise on any loss: y+ = y - eta grad L(y) + eta sigma(y) xi.

    Parameters
    ----------
    potential, eta, noise, params, names
        As for `eos_sde.models.gradient_flow`.

    Returns
    -------
    NoisyMap
        With ``dt = eta``.

    Raises
    ------
    InvalidInput
        If an argument is out of range.
    """
    return NoisyMap(
        "SGD map", gradient_flow(potential, eta=eta, noise=noise, params=params, names=names), float(eta)
    )


def self_stabilization_map(alpha: float, beta: float, eta: float, noise: float = 0.0) -> NoisyMap:
    """Damian, Nichani and Lee's map: x+ = -(1 + eta y) x + eta s xi, y+ = y + eta (alpha - beta x^2/2).

    Parameters
    ----------
    alpha, beta, eta, noise
        As for `eos_sde.models.self_stabilization`; here x is the displacement along u itself, which changes
        sign at every step.

    Returns
    -------
    NoisyMap
        With ``dt = 1``.

    Raises
    ------
    InvalidInput
        If an argument is out of range.

    References
    ----------
    arXiv:2209.15594, eq. 3; stationary sharpness gap -E y = (eta beta/(4 alpha)) [s^2 + (beta/2) Var x^2 +
    E x^2 y^2], from the stationarity of E x^2 and E y^2.
    """
    params = _self_stabilization_params(alpha, beta, eta, noise)
    sde = SDE(_alternating_drift, _stabilization_noise, params=params, names=("x", "y"), convention="ito")
    return NoisyMap("self-stabilization map", sde, 1.0)


def _alternating_drift(t: float, y: Any, p: SelfStabilization, xp: Any) -> Any:  # noqa: ARG001
    x, excess = y
    return (-(2.0 + p.eta * excess) * x, p.eta * (p.alpha - 0.5 * p.beta * x * x))


def _stabilization_noise(t: float, y: Any, p: SelfStabilization, xp: Any) -> Any:  # noqa: ARG001
    return (p.eta * p.noise, 0.0)


class Caeo(NamedTuple):
    """Parameters of the reduced CAEO map."""

    eta_base: float
    delta: float
    alpha: float
    beta: float
    noise: float


def caeo_map(
    eta_base: float, *, delta: float = 0.1, alpha: float, beta: float, noise: float = 0.0
) -> NoisyMap:
    """The reduced CAEO rule: eta_t = min(eta_base, (2 - delta)/S) in the self-stabilization map.

    x+ = (1 - eta_t S) x + eta_t s xi, S+ = S + eta_t (alpha - beta x^2/2), S the sharpness itself. For S <= 0
    the rate is eta_base.

    Parameters
    ----------
    eta_base : float
        Uncapped learning rate, > 0.
    delta : float
        Distance kept from the edge, < 2; 0 rests on it, a negative value allows the oscillation.
    alpha, beta, noise
        As for `eos_sde.models.self_stabilization`.

    Returns
    -------
    NoisyMap
        Components "x" and "S", with ``dt = 1``.

    Raises
    ------
    InvalidInput
        If an argument is out of range; delta >= 2 would stop or reverse training.
    """
    margin = finite("delta", delta)
    if margin >= 2:
        raise InvalidInput(f"delta={margin} makes the learning rate zero or negative; give delta < 2")
    params = Caeo(
        positive("eta_base", eta_base),
        margin,
        positive("alpha", alpha, "the reduced model needs progressive sharpening, alpha > 0"),
        positive("beta", beta, "the reduced model needs a sharpness gradient, beta > 0"),
        non_negative("noise", noise, "give the standard deviation of the gradient noise, >= 0"),
    )
    sde = SDE(_caeo_drift, _caeo_noise, params=params, names=("x", "S"), convention="ito")
    return NoisyMap("CAEO map", sde, 1.0)


def _caeo_drift(t: float, y: Any, p: Caeo, xp: Any) -> Any:  # noqa: ARG001
    x, sharpness = y
    rate = capped_rate(p.eta_base, sharpness, p.delta, xp)
    return (-rate * sharpness * x, rate * (p.alpha - 0.5 * p.beta * x * x))


def _caeo_noise(t: float, y: Any, p: Caeo, xp: Any) -> Any:  # noqa: ARG001
    return (capped_rate(p.eta_base, y[1], p.delta, xp) * p.noise, 0.0)


class Catapult(NamedTuple):
    """Parameters of the catapult map."""

    eta: float
    width: float


def catapult_map(eta: float, width: float) -> NoisyMap:
    """Gradient descent on (v.u)^2/(2 n): f+ = f (1 - eta l + eta^2 f^2/n), l+ = l + (eta f^2/n)(eta l - 4).

    f is the output of the two-layer linear network v.u/sqrt(n) on one example with target 0, l its tangent kernel
    (|u|^2 + |v|^2)/n, which is the sharpness where f = 0; a state of the network has l >= 2 |f|/sqrt(n). From a small
    f it converges without leaving for eta l < 2, leaves and lands where eta l < 2 from there to eta l = 4, and
    diverges beyond. eta l < 4 never diverges, from any state: l falls, so that eta f^2/n <= eta l^2/4 stays bounded.

    Parameters
    ----------
    eta : float
        Learning rate, > 0.
    width : float
        n > 0.

    Returns
    -------
    NoisyMap
        Components "f", "l", without noise; ``dt = eta``.

    Raises
    ------
    InvalidInput
        If an argument is out of range.

    References
    ----------
    Lewkowycz et al. 2020, arXiv:2003.02218, section 2.
    """
    params = Catapult(positive("eta", eta), positive("width", width))
    sde = SDE(_catapult_drift, _no_noise, params=params, names=("f", "l"), convention="ito")
    return NoisyMap("catapult map", sde, params.eta)


def _catapult_drift(t: float, y: Any, p: Catapult, xp: Any) -> Any:  # noqa: ARG001
    f, kernel = y
    size = f * f / p.width
    return (f * (p.eta * size - kernel), size * (p.eta * kernel - 4.0))


def _no_noise(t: float, y: Any, p: Catapult, xp: Any) -> Any:  # noqa: ARG001
    return (0.0, 0.0)
