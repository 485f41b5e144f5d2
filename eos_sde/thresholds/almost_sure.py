"""Almost-sure stability of SGD: where the Lyapunov exponent of its random matrix product is zero.

Typical runs follow this threshold; second moments, dominated by rare large excursions, give way earlier, at
the mean-square threshold. Between the two almost every run converges while E|w|^2 grows.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import dawsn

from eos_sde.models.arguments import count, non_negative, positive
from eos_sde.thresholds.mean_square import _prepare, sgd_mean_square
from eos_sde.thresholds.result import Threshold
from solvers import memory
from solvers.errors import ConvergenceFailure

_SOURCE = "Furstenberg and Kesten 1960, Ann. Math. Statist. 31, 457"
_BURN_IN = 0.2
_RATIO = 1.05
_MOST_STEPS_UP = 400


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
        # E log|a + N| = -(gamma + log 2)/2 + int_0^a sqrt(2) Dawson(v/sqrt 2) dv, the derivative being the
        # principal value of E 1/(a + N)
        size = u * spread
        a = abs(1 - u) / size
        integral = quad(lambda v: math.sqrt(2) * dawsn(v / math.sqrt(2)), 0, a, epsabs=1e-13, epsrel=1e-13)[0]
        return math.log(size) - (np.euler_gamma + math.log(2)) / 2 + integral

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
    steps: int = 4000,
    copies: int = 32,
) -> Threshold:
    """Learning rate at which a typical run of SGD at an interpolating minimum stops converging.

    The top Lyapunov exponent of the product of I - eta H_batch on the range of H, by simulation of
    independent copies with the same batches at every learning rate, is followed upwards from the
    mean-square threshold, below which it is negative, to its zero.

    Parameters
    ----------
    jacobian, batch_size, weights, replacement
        As for `sgd_mean_square`.
    seed : int
        Of the batches.
    steps, copies : int
        SGD steps (the first fifth is discarded) and independent copies, at least 10 and 4.

    Returns
    -------
    Threshold
        In the units of the learning rate; criterion "almost-sure". Its stderr is the sampling error of the
        exponent over its slope above the threshold; where slow directions make the exponent nearly flat below
        it, the true value can lie lower by about 1/(steps * slope).

    Raises
    ------
    InvalidInput
        As for `sgd_mean_square`, or if a count is too small or the batches would not fit in memory.
    ConvergenceFailure
        If no sign change is found.
    """
    steps, copies = count("steps", steps, least=10), count("copies", copies, least=4)
    seed = count("seed", seed, least=0)
    factors, p = _prepare(jacobian, weights, batch_size, replacement)
    if p == 0:
        edge = 2 / float(factors.curvatures[-1])
        return Threshold(edge, 1e-14 * edge, "almost-sure", "2/lambda_max, a batch is the whole set", _SOURCE)
    lowest = float(sgd_mean_square(jacobian, batch_size=batch_size, weights=weights, replacement=replacement))
    batches = _batches(len(factors.rows), int(batch_size), replacement, seed, (copies, steps))
    start = np.random.Generator(np.random.Philox(key=[seed, 1])).standard_normal(
        (copies, len(factors.curvatures))
    )

    def exponents(eta: float) -> np.ndarray:
        return _growth_rates(factors.rows, batches, start, eta, int(_BURN_IN * steps))

    def mean(eta: float) -> float:
        return float(np.mean(exponents(eta)))

    low, high = lowest / _RATIO, lowest * _RATIO
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
    root = float(brentq(mean, low, high, xtol=1e-5 * lowest))  # pyright: ignore[reportArgumentType]
    here = exponents(root)
    step = 0.02 * root
    slope = (mean(root + step) - float(np.mean(here))) / step
    sampling = float(np.std(here, ddof=1)) / math.sqrt(copies)
    stderr = math.hypot(sampling / slope, 1e-5 * lowest) if slope > 0 else math.inf
    method = f"zero of the Lyapunov exponent of {copies} copies over {steps} steps; error: sampling"
    return Threshold(root, stderr, "almost-sure", method, _SOURCE)


def _batches(n: int, size: int, replacement: bool, seed: int, shape: tuple[int, int]) -> np.ndarray:
    """Indices (copies, steps, size) of the examples in each batch."""
    copies, steps = shape
    memory.require(
        8 * copies * steps * size, f"batches of {size} for {copies} copies", "lower steps or copies"
    )
    generator = np.random.Generator(np.random.Philox(key=[seed, 0]))
    if replacement or size == 1:
        return generator.integers(n, size=(copies, steps, size))
    chosen = np.empty((copies, steps, size), dtype=np.int64)
    for copy in range(copies):
        _choose(chosen[copy], generator.random((steps, size)), n)
    return chosen


@njit
def _choose(chosen, uniforms, n):
    """Draw without replacement, Floyd's way, one batch per row."""
    steps, size = chosen.shape
    for k in range(steps):
        for i in range(size):
            last = n - size + i
            pick = min(int(uniforms[k, i] * (last + 1)), last)
            for j in range(i):
                if chosen[k, j] == pick:
                    pick = last
                    break
            chosen[k, i] = pick


@njit
def _advance(rows, batches, w, eta, burn):
    """Mean log growth per step of one copy after the burn-in."""
    steps, size = batches.shape
    _, c, r = rows.shape
    projections = np.empty((size, c))
    total = 0.0
    for k in range(steps):
        for b in range(size):
            for o in range(c):
                value = 0.0
                for i in range(r):
                    value += rows[batches[k, b], o, i] * w[i]
                projections[b, o] = value * eta / size
        for b in range(size):
            for o in range(c):
                for i in range(r):
                    w[i] -= projections[b, o] * rows[batches[k, b], o, i]
        norm = 0.0
        for i in range(r):
            norm += w[i] * w[i]
        norm = math.sqrt(norm)
        if norm == 0.0:
            return -np.inf
        if k >= burn:
            total += math.log(norm)
        for i in range(r):
            w[i] /= norm
    return total / (steps - burn)


def _growth_rates(
    rows: np.ndarray, batches: np.ndarray, start: np.ndarray, eta: float, burn: int
) -> np.ndarray:
    rows = np.ascontiguousarray(rows)
    return np.array(
        [_advance(rows, batch, w.copy(), eta, burn) for batch, w in zip(batches, start, strict=True)]
    )
