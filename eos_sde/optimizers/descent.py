"""What is certain about CAEO's descent on a smooth loss: the margin needed, the certified rate, its consequences.

The statements and their proofs are in ``docs/caeo_descent.md``; the names there are used here. Everything concerns
gradient steps of the whole loss, theta_{t+1} = theta_t - eta_t g_t, without momentum.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.optimize import brentq

from eos_sde.optimizers.rule import EDGE, validate
from solvers.errors import InvalidInput

WITHIN_STEP = 1 / 3
"""Share of a step's length at which the mean sharpness along it is reached: 2 * integral of (1 - s) s over (0, 1)."""


def sharpness_rise(learning_rate: Any, gradient_norm: Any, *, lipschitz: Any, travelled: Any = 0.0) -> Any:
    """Return r = eta rho (D + eta |g| / 3), the most that eta * sharpness can have risen since the estimate.

    Parameters
    ----------
    learning_rate : float or array
        eta_t.
    gradient_norm : float or array
        |g_t|.
    lipschitz : float or array
        rho, the fastest rise of the sharpness per length of the path; a Lipschitz constant of the Hessian will do.
    travelled : float or array, optional
        D_t, length of the path since the estimate of the sharpness.

    Returns
    -------
    float or array
        Without unit, as eta * sharpness.
    """
    return learning_rate * lipschitz * (travelled + WITHIN_STEP * learning_rate * gradient_norm)


def guaranteed_decrease(delta: Any, *, error: Any = 0.0, rise: Any = 0.0) -> Any:
    """Return c in L(theta_{t+1}) <= L(theta_t) - c eta_t |g_t|^2 (Theorem 1).

    Parameters
    ----------
    delta : float or array
        Distance kept from the edge.
    error : float or array, optional
        e >= 0: by how much the estimate is too low, in units of the larger of itself and the sharpness at which the cap
        begins to bind.
    rise : float or array, optional
        r, from `sharpness_rise`.

    Returns
    -------
    float or array
        1 - ((2 - delta)(1 + e) + r)/2. Nothing is certain where it is negative.

    Examples
    --------
    >>> round(guaranteed_decrease(0.1, error=0.02), 3)
    0.031
    """
    return 1 - 0.5 * ((EDGE - delta) * (1 + error) + rise)


def certain_delta(*, error: Any = 0.0, rise: Any = 0.0) -> Any:
    """Return the delta above which the loss is certain to fall, (2 e + r)/(1 + e).

    Parameters
    ----------
    error, rise : float or array, optional
        As for `guaranteed_decrease`.

    Returns
    -------
    float or array
        In units of eta * sharpness.

    Examples
    --------
    >>> round(certain_delta(error=0.02), 4)
    0.0392
    """
    return (2 * error + rise) / (1 + error)


def certified_learning_rate(
    base: Any,
    sharpness: Any,
    delta: Any,
    *,
    gradient_norm: Any,
    lipschitz: Any,
    error_bound: Any = 0.0,
    travelled: Any = 0.0,
    xp: Any = np,
) -> Any:
    """Return the largest rate up to `base` that keeps its distance from the edge all along the step (Theorem 2).

    It solves ``eta (sharpness + error_bound + rho D + rho eta |g| / 3) = 2 - delta`` where that is below `base`. The
    loss then falls by at least ``delta eta |g|^2 / 2``, however stale the sharpness. With rho = 0 it is
    `rule.learning_rate`.

    Parameters
    ----------
    base, sharpness, delta : float or array
        As for `rule.learning_rate`.
    gradient_norm : float or array
        |g_t|.
    lipschitz : float or array
        rho >= 0, as for `sharpness_rise`.
    error_bound : float or array, optional
        Of the sharpness.
    travelled : float or array, optional
        Length of the path since the sharpness was estimated.
    xp : module, optional
        Namespace of the arrays: ``numpy`` or ``jax.numpy``.

    Returns
    -------
    float or array
        The rate. NaN where the sharpness or the gradient is.

    Examples
    --------
    >>> float(certified_learning_rate(1.0, 2.0, 1.0, gradient_norm=3.0, lipschitz=0.0))
    0.5
    >>> float(certified_learning_rate(1.0, 2.0, 1.0, gradient_norm=3.0, lipschitz=8.0))
    0.25
    """
    allowed = EDGE - delta
    constant = sharpness + error_bound + lipschitz * travelled
    slope = WITHIN_STEP * lipschitz * gradient_norm
    stable = base * (constant + base * slope) <= allowed  # false at NaN
    # the positive root of slope eta^2 + constant eta = allowed, in the form without cancellation for either sign
    root = xp.hypot(constant, 2 * xp.sqrt(slope * allowed))
    down = constant < 0
    large = root + xp.where(down, -constant, constant)
    divisor = xp.where(stable, 1.0, xp.where(down, 2 * slope, large))
    rate = xp.where(down, large, 2 * allowed) / divisor
    return xp.where(stable, base, rate)[()]


def guaranteed_time(
    steps: int,
    *,
    base: float,
    sharpness: float,
    decrease: float,
    delta: float,
    lipschitz: float,
    error: float = 0.0,
) -> float:
    """Return a lower bound of S_T, the sum of the certified rates over T steps (Theorem 2).

    Parameters
    ----------
    steps : int
        T.
    base : float
        The base rate.
    sharpness : float
        At the first weights.
    decrease : float
        Delta >= 0: the loss there less its infimum, or less any number that it does not fall below.
    delta : float
        In (0, 2).
    lipschitz : float
        rho >= 0.
    error : float, optional
        e >= 0: by how much sharpness plus error bound may exceed the sharpness, relative to it.

    Returns
    -------
    float
        The sum, in units of the rate. `guaranteed_gradient` makes a bound on the gradient of it.

    Raises
    ------
    InvalidInput
        For numbers out of these ranges.
    """
    validate(learning_rate=base, delta=delta)
    if delta <= 0:
        raise InvalidInput(
            f"delta={delta} must be positive: on the edge and beyond it descent is not certain"
        )
    if steps < 1 or int(steps) != steps:
        raise InvalidInput(f"steps={steps} must be a positive whole number")
    for name, value in (("decrease", decrease), ("lipschitz", lipschitz), ("error", error)):
        if not (math.isfinite(value) and value >= 0):
            raise InvalidInput(f"{name}={value} must be a finite number, zero or above")
    if not math.isfinite(sharpness):
        raise InvalidInput(f"sharpness={sharpness} must be a finite number")

    def least_steps(total: float) -> float:
        risen = max(sharpness, 0.0) + lipschitz * math.sqrt(2 * decrease * total / delta)
        return total * max(1 / base, (1 + error) * risen / (EDGE - delta))

    most = steps * base
    if least_steps(most) <= steps:
        return most
    root: Any = brentq(lambda total: least_steps(total) - steps, 0.0, most, xtol=1e-14 * most)
    return float(root)


def guaranteed_gradient(steps: int, *, decrease: float, delta: float, **settings: float) -> float:
    """Return what min |g_t|^2 over T steps at the certified rate is certain not to exceed (Theorem 2).

    Parameters
    ----------
    steps : int
        T.
    decrease, delta : float
        As for `guaranteed_time`.
    **settings
        Its other arguments.

    Returns
    -------
    float
        2 Delta/(delta S_T), of order T^(-2/3) at worst and 1/T where the sharpness rests.
    """
    return 2 * decrease / (delta * guaranteed_time(steps, decrease=decrease, delta=delta, **settings))


def validate_lipschitz(
    lipschitz: Any, *, held: bool, momentum: Any = None, edge_factor: Any = 1.0, known: bool = True
) -> None:
    """Refuse what the certified rate of an optimizer cannot be made of.

    Parameters
    ----------
    lipschitz : float
        rho, as for `certified_learning_rate`.
    held : bool
        Whether the estimate of the sharpness is held between measurements.
    momentum : float, optional
        Of the optimizer.
    edge_factor : float
        How many times further than gradient descent's the edge is taken to lie.
    known : bool
        Whether `lipschitz` has a value yet.

    Raises
    ------
    InvalidInput
        Naming the argument.
    """
    if known and not (isinstance(lipschitz, float | int) and 0 <= lipschitz < math.inf):
        raise InvalidInput(f"lipschitz must be a finite number, zero or above, got {lipschitz!r}.")
    if momentum is not None:
        raise InvalidInput(f"lipschitz={lipschitz!r} is for gradient steps: leave momentum={momentum!r} out.")
    if not held:
        raise InvalidInput(
            f"lipschitz={lipschitz!r} pays for the age of an estimate that is held: give refresh a number of updates."
        )
    if edge_factor != 1.0:
        raise InvalidInput(
            f"lipschitz={lipschitz!r} is for gradient steps: leave edge_factor={edge_factor!r} out."
        )
