"""The runaway and its cure in the reduced model: an oscillation, the sharpness, and a descent that pays for it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from eos_sde.optimizers import rule as caeo_rule
from eos_sde.optimizers import runaway
from eos_sde.optimizers import self_stabilizing_rule as stabilizing
from solvers.errors import InvalidInput

RULES = ("gd", "caeo", "on edge", "beyond edge", "cdat 1.9", "self-stabilizing")
_FIXED = {"caeo": 0.1, "on edge": 0.0, "beyond edge": -0.05}

LANDSCAPES: dict[str, dict[str, float]] = {
    "quadratic": {"noise": 1e-4},
    "noisy": {"noise": 0.05},
    "no two-cycle": {"quartic": 20.0, "noise": 1e-4},
    "no two-cycle, noisy": {"quartic": 20.0, "noise": 0.05},
    "slow sharpening": {"alpha": 0.002, "noise": 1e-4},
}
"""Settings of `reduced_path`. A little noise is what other directions supply: without any, x shrinks to 0 below the
edge and cannot come back. Where the fourth derivative is positive, gradient descent beyond the edge has no stable
two-cycle and self-stabilization fails (3 f'''^2 < f'' f'''')."""


def reduced_path(
    rule: str,
    *,
    start: float,
    steps: int,
    base: float = 1.0,
    alpha: float = 0.02,
    beta: float = 2.0,
    slope: float = 0.3,
    quartic: float = 0.0,
    noise: float = 0.0,
    offset: float = 1e-3,
    seed: int = 0,
) -> dict[str, Any]:
    r"""Run a rule on the reduced model.

    .. math:: x_{t+1} = x_t - \eta_t (S_t x_t + f_4 x_t^3/6 + s \xi_t), \qquad
        S_{t+1} = S_t + \eta_t (\alpha - \beta x_t^2/2)

    beside a flat direction with a constant gradient :math:`g_\perp`, which is what the directional sharpness sees.
    The sharpness that rules measure is :math:`S + f_4 x^2/2`, at the iterate. Equation 3 of Damian, Nichani and Lee
    (2209.15594) is this with constant rate and f4 = 0.

    Parameters
    ----------
    rule : {"gd", "caeo", "on edge", "beyond edge", "cdat 1.9", "self-stabilizing"}
        Constant rate; the rule with delta = 0.1, 0, -0.05; 1.9 times |g|^2/g'Hg; `self_stabilizing_learning_rate`.
    start : float
        S_0, positive.
    steps : int
        Updates.
    base : float
        The base rate.
    alpha, beta : float
        Progressive sharpening and what the oscillation does against it.
    slope : float
        The gradient along the flat direction.
    quartic : float
        f4, the fourth derivative along x.
    noise : float
        s, standard deviation of the gradient noise along x.
    offset : float
        x_0.
    seed : int
        Of the noise.

    Returns
    -------
    dict
        ``x``, ``sharpness``, ``rate``, ``runaway`` of each update (before it; the alarm after it), and ``lost``:
        whether x left the numbers for which a model of this kind has a meaning, 1e3.

    Raises
    ------
    InvalidInput
        For an unknown rule, or a start or base that is not positive.
    """
    if rule not in RULES:
        raise InvalidInput(f"rule={rule!r} is not known: choose one of {', '.join(RULES)}")
    for name, value in (("start", start), ("base", base)):
        if not (value > 0 and math.isfinite(value)):
            raise InvalidInput(f"{name}={value!r} must be positive and finite")
    noises = noise * np.random.default_rng(seed).standard_normal(steps)
    x, level, mean, lost = offset, start, 0.0, False
    monitor = runaway.start()
    rows = []
    for step in range(steps):
        gradient = level * x + quartic * x**3 / 6 + noises[step]
        sharpness = level + quartic * x * x / 2
        square = gradient**2 + slope**2
        directional = sharpness * gradient**2 / square
        mean = stabilizing.descent(mean, 2 * slope**2, step)
        if rule == "gd":
            rate = base
        elif rule == "cdat 1.9":
            rate = float(caeo_rule.learning_rate(base, directional, 0.1))
        elif rule in _FIXED:
            rate = float(caeo_rule.learning_rate(base, sharpness, _FIXED[rule]))
        else:
            released = bool(mean > 0 or monitor.runaway)
            given = stabilizing.self_stabilizing_learning_rate(
                base, sharpness, directional, released=released
            )
            rate = float(given)
        monitor = runaway.watch(monitor, sharpness, rate < base, edge=2.0 / base)
        rows.append((x, sharpness, rate, bool(monitor.runaway)))
        x, level = x - rate * gradient, level + rate * (alpha - beta * x * x / 2)
        if not abs(x) < 1e3:
            lost = True
            break
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    return dict(zip(("x", "sharpness", "rate", "runaway"), columns, strict=True)) | {"lost": lost}
