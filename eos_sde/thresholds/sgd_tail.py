"""Tail exponent of SGD's linear random map in several modes: where its moment Lyapunov exponent is zero again."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from eos_sde.models.arguments import count, positive
from eos_sde.thresholds.curvature_factors import curvature_factors
from eos_sde.thresholds.moment_growth import sgd_moment_exponents
from eos_sde.thresholds.random_recurrence import TailExponent
from solvers.errors import AccuracyWarning

_FIRST, _HIGHEST, _LOWEST, _REFINED = 2.0, 16.0, 0.1, 3


def sgd_tail_exponent(
    jacobian: Any,
    eta: float,
    *,
    batch_size: int,
    seed: int,
    weights: Any = None,
    replacement: bool = False,
    clones: int = 256,
    populations: int = 4,
    steps: int = 500,
) -> TailExponent:
    """Exponent of the stationary tail of w+ = (I - eta H_B) w + kicks: the p > 0 with Lambda(p) = 0.

    All directions share it, however slowly the tail comes in along those that expand little. Lambda(p), the growth of
    E|w|^p per step under products of the batches' matrices, comes from cloning (`sgd_moment_exponents`).

    Parameters
    ----------
    jacobian, batch_size, weights, replacement
        As for `sgd_mean_square`.
    eta : float
        Learning rate.
    seed, clones, populations, steps
        Of the cloning.

    Returns
    -------
    TailExponent
        Infinite where no batch expands any direction, ``eta lambda_max(H_B) <= 2`` by a bound over all batches, or,
        with `low` 16, where Lambda(16) is still negative. Its error is that of Lambda, and the bias of the
        number of clones, over the slope.

    Raises
    ------
    InvalidInput
        As for `sgd_moment_exponents`.

    References
    ----------
    Kesten 1973, Acta Math. 131, 207; Gurbuzbalaban, Simsekli and Zhu 2021, ICML, arXiv:2006.04740.
    """
    eta, batch_size = positive("eta", eta), count("batch_size", batch_size)
    rows = curvature_factors(jacobian, weights).rows
    tops = np.sort(np.linalg.norm(rows, ord=2, axis=(1, 2)) ** 2)
    most = tops[-1] if replacement else tops[-batch_size:].mean()
    if eta * most <= 2:
        return TailExponent(
            math.inf,
            0.0,
            math.inf,
            f"eta lambda_max(H_B) is at most {eta * most:.4g} <= 2: no batch expands, light tails",
        )
    settings: dict[str, Any] = {"batch_size": batch_size, "replacement": replacement, "seed": seed}
    settings |= {"clones": clones, "populations": populations, "steps": steps}
    known: dict[float, tuple[float, float]] = {0.0: (0.0, 0.0)}

    def growth(p: float) -> float:
        if p not in known:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", AccuracyWarning)  # the bias goes into the error
                found = sgd_moment_exponents(jacobian, eta, p, weights=weights, **settings)
            known[p] = (float(found[0]), math.hypot(float(found["stderr"][0]), float(found["bias"][0])))
        return known[p][0]

    high = _FIRST
    while growth(high) < 0:
        high *= 2
        if high > _HIGHEST:
            return TailExponent(
                math.inf, 0.0, _HIGHEST, f"Lambda({_HIGHEST:g}) = {growth(_HIGHEST):.3g} is negative"
            )
    low = high / 2
    while growth(low) >= 0:
        low /= 2
        if low < _LOWEST:
            return TailExponent(0.0, 0.0, 0.0, f"Lambda({2 * low:g}) is not negative: no stationary law")
    for _ in range(_REFINED):
        root = _between(low, growth(low), high, growth(high))
        if growth(root) < 0:
            low = root
        else:
            high = root
    root = _between(low, growth(low), high, growth(high))
    slope = (growth(high) - growth(low)) / (high - low)
    error = max(known[low][1], known[high][1]) / slope
    return TailExponent(
        root, error, max(root - 2 * error, 0.0), "Lambda(kappa) = 0 of the products of batch matrices"
    )


def _between(low: float, below: float, high: float, above: float) -> float:
    """Root of the quadratic through 0, (low, below < 0) and (high, above >= 0): Lambda is convex and zero at 0."""
    at_low, at_high = below / low, above / high  # Lambda/p is nearly linear
    return low + (high - low) * at_low / (at_low - at_high)
