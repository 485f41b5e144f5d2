"""Almost-sure stability of SGD: where the Lyapunov exponent of its random matrix product is zero.

Typical runs follow this threshold; second moments, dominated by rare large excursions, give way earlier, at
the mean-square threshold. Between the two almost every run converges while E|w|^2 grows.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq

from eos_sde.models.arguments import count, non_negative, positive
from eos_sde.thresholds.batch_products import CHUNK, CopyGrowth, Sampling
from eos_sde.thresholds.curvature_factors import factors_and_noise
from eos_sde.thresholds.map_exponents import mean_log_shifted_normal
from eos_sde.thresholds.mean_square import sgd_mean_square
from eos_sde.thresholds.result import Threshold
from solvers.errors import AccuracyWarning, ConvergenceFailure, InvalidInput

_SOURCE = "Furstenberg and Kesten 1960, Ann. Math. Statist. 31, 457"
_BURN_IN = 0.2
_RATIO = 1.05
_MOST_STEPS_UP = 400
_FIRST_STEPS = 1000


def scalar_almost_sure(mean: float, variance: float) -> Threshold:
    """Almost-sure threshold of SGD on one weight with Gaussian curvature.

    w+ = (1 - eta h_k) w with independent h_k ~ N(mean, variance): the first eta above the mean-square
    threshold with E log|1 - eta h| = 0.

    Parameters
    ----------
    mean, variance : float
        Of the batch curvature: mean > 0, variance >= 0.

    Returns
    -------
    Threshold
        In the units of the learning rate; criterion "almost-sure".

    Raises
    ------
    InvalidInput
        If mean is not positive or variance negative.
    """
    h = positive("mean", mean)
    spread = math.sqrt(non_negative("variance", variance)) / h
    if spread == 0:
        return Threshold(2 / h, 0.0, "almost-sure", "2/h, no noise", _SOURCE)

    def exponent(u: float) -> float:  # eta = u / h
        size = u * spread
        return math.log(size) + mean_log_shifted_normal(abs(1 - u) / size)

    low = 2 / (1 + spread**2)  # mean-square threshold, where the exponent is negative by Jensen's inequality
    high = low * _RATIO
    while exponent(high) < 0:
        low, high = high, high * _RATIO
    root = float(brentq(exponent, low, high, xtol=1e-13)) / h  # pyright: ignore[reportArgumentType]
    return Threshold(
        root, 1e-11 * root, "almost-sure", "root of E log|1 - eta h|; error: quadrature", _SOURCE
    )


def sgd_almost_sure(
    jacobian: Any,
    *,
    batch_size: int,
    seed: int,
    weights: Any = None,
    replacement: bool = False,
    rtol: float = 0.005,
    steps: int | None = None,
    max_steps: int = 128_000,
    copies: int = 32,
) -> Threshold:
    """Learning rate at which a typical run of SGD at an interpolating minimum stops converging.

    The top Lyapunov exponent of the product of I - eta H_batch on the range of H, by simulation of
    independent copies with the same batches at every learning rate, is followed upwards from the
    mean-square threshold, below which it is negative, to its zero. The number of steps is doubled until the
    sampling error of that zero and its change by the last doubling are together below the tolerance.

    Parameters
    ----------
    jacobian, batch_size, weights, replacement
        As for `sgd_mean_square`; a Gram matrix up to n c = 3000.
    seed : int
        Of the batches.
    rtol : float
        Relative error to reach, in (0, 1).
    steps : int, optional
        SGD steps, at least 100, instead of the stopping rule; rounded up to a multiple of 100. The first fifth
        is discarded. The error is then that of sampling alone.
    max_steps : int
        Where doubling ends.
    copies : int
        Independent copies, at least 4.

    Returns
    -------
    Threshold
        In the units of the learning rate; criterion "almost-sure". Its stderr is the sampling error of the
        exponent over its slope above the threshold and, under the stopping rule, the change by the last
        doubling: slow directions make the exponent nearly flat below the threshold, and a finite run then finds
        a zero that is too high by about 1/(steps * slope).

    Raises
    ------
    InvalidInput
        As for `sgd_mean_square`, or if a count is too small or the batches would not fit in memory.
    ConvergenceFailure
        If no sign change is found.

    Warns
    -----
    AccuracyWarning
        If `max_steps` are not enough for `rtol`; the error that was reached is the stderr.
    """
    if steps is not None:
        steps = count("steps", steps, least=100)
    max_steps = count("max_steps", max_steps, least=_FIRST_STEPS)
    copies, seed = count("copies", copies, least=4), count("seed", seed, least=0)
    if not positive("rtol", rtol) < 1:
        raise InvalidInput(f"rtol={rtol} is not below 1; give the relative error to reach")
    factors, p = factors_and_noise(jacobian, weights, batch_size, replacement)
    if p == 0:
        edge = 2 / float(factors.curvatures[-1])
        return Threshold(edge, 1e-14 * edge, "almost-sure", "2/lambda_max, a batch is the whole set", _SOURCE)
    lowest = float(sgd_mean_square(jacobian, batch_size=batch_size, weights=weights, replacement=replacement))
    growth = CopyGrowth(factors.rows, Sampling(int(batch_size), replacement, seed), copies)
    if steps is not None:
        zero = _zero(growth, lowest, math.ceil(steps / CHUNK))
        return _threshold(zero, zero.sampling, copies, steps, "sampling")
    used = _FIRST_STEPS
    zero = _zero(growth, lowest, used // CHUNK)
    while True:
        used *= 2
        before, zero = zero, _zero(growth, zero.eta, used // CHUNK)
        change = abs(zero.eta - before.eta)
        error = math.hypot(zero.sampling, change)
        if error <= rtol * zero.eta:
            break
        if 2 * used > max_steps:
            warnings.warn(
                f"the almost-sure threshold is known to {error / zero.eta:.1%} after {used} steps, not to "
                f"rtol={rtol:g}; raise max_steps or copies",
                AccuracyWarning,
                stacklevel=2,
            )
            break
    return _threshold(zero, error, copies, used, "sampling and change by the last doubling of the steps")


def _threshold(zero: _Zero, error: float, copies: int, steps: int, what: str) -> Threshold:
    method = f"zero of the Lyapunov exponent of {copies} copies over {steps} steps; error: {what}"
    return Threshold(zero.eta, error, "almost-sure", method, _SOURCE)


class _Zero(NamedTuple):
    """Where the exponent of a number of steps is zero, and the sampling error of that."""

    eta: float
    sampling: float


def _zero(growth: CopyGrowth, guess: float, chunks: int) -> _Zero:
    burn = int(_BURN_IN * chunks)

    def exponents(eta: float) -> np.ndarray:
        return growth.rates(eta, chunks, burn)

    def mean(eta: float) -> float:
        return float(np.mean(exponents(eta)))

    low, high = guess / _RATIO, guess * _RATIO
    for _ in range(_MOST_STEPS_UP):
        if mean(high) > 0:
            break
        low, high = high, high * _RATIO
    else:
        raise ConvergenceFailure(
            f"the Lyapunov exponent is still negative at eta={high:.3g}; no threshold found"
        )
    for _ in range(_MOST_STEPS_UP):
        if mean(low) < 0:
            break
        low, high = low / _RATIO, low
    else:
        raise ConvergenceFailure(f"the Lyapunov exponent is not negative at eta={low:.3g}; raise steps")
    root = float(brentq(mean, low, high, xtol=1e-5 * guess))  # pyright: ignore[reportArgumentType]
    here = exponents(root)
    step = 0.02 * root
    slope = (mean(root + step) - float(np.mean(here))) / step
    sampling = float(np.std(here, ddof=1)) / math.sqrt(len(here))
    return _Zero(root, math.hypot(sampling / slope, 1e-5 * guess) if slope > 0 else math.inf)
