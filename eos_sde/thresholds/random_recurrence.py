"""The random recurrence x+ = a x + b in one dimension: its stationary moments and the exponent of its tail."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import logsumexp

from eos_sde.models.arguments import fraction, positive
from solvers.errors import InvalidInput

_UNSEEN = 3.0  # what a sample of m draws missed has probability below 3/m, 19 times in 20
_GROUPS = 20
_FEW = 30
_LARGEST = 1e4  # exponents beyond this are as good as none


class TailExponent(NamedTuple):
    """Exponent kappa of a tail P(|x| > t) ~ t^-kappa.

    Attributes
    ----------
    value : float
        Moments of order below it are finite. Infinite: none diverges. Zero: there is no stationary law.
    stderr : float
        From sampling; 0 where the law of the multipliers is given.
    low : float
        Below `value` by what draws that were never seen could do, at 95 %.
    reason : str
        Why, in words.
    """

    value: float
    stderr: float
    low: float
    reason: str


def kesten_exponent(
    multipliers: ArrayLike, *, probabilities: ArrayLike | None = None, largest: float | None = None
) -> TailExponent:
    """Tail exponent of the stationary law of x+ = a x + b: the root kappa > 0 of E|a|^kappa = 1.

    SGD along a direction is such a recurrence, with a = 1 - eta h_B for the curvature h_B of the batch. The tail is a
    power law if E log|a| < 0 and |a| exceeds 1 with positive probability, whatever the law of b (light-tailed, not
    making x a constant; log|a| no lattice); if |a| never exceeds 1 no moment diverges that b has.

    Parameters
    ----------
    multipliers : array
        Values of a: draws, or the atoms of its law with `probabilities`.
    probabilities : array, optional
        Of the atoms. Left out, the values are equally likely draws and the error is that of sampling.
    largest : float, optional
        Upper bound of |a| over the whole law, seen or not; that of the values if left out.

    Returns
    -------
    TailExponent

    Raises
    ------
    InvalidInput
        If there is no multiplier, or one is not finite, or the probabilities do not fit.

    References
    ----------
    Kesten 1973, Acta Math. 131, 207; Goldie 1991, Ann. Appl. Probab. 1, 126; for SGD Gurbuzbalaban, Simsekli and Zhu
    2021, ICML, arXiv:2006.04740.
    """
    size, weights = _law(multipliers, probabilities)
    with np.errstate(divide="ignore"):
        logs = np.log(size)
    draws = 0 if probabilities is not None else size.size
    top = float(size.max()) if largest is None else max(positive("largest", largest), float(size.max()))
    drift = float(np.sum(weights * logs))
    if drift >= 0:
        return TailExponent(0.0, 0.0, 0.0, f"E log|a| = {drift:.3g} is not negative: no stationary law")
    if top <= 1:
        return TailExponent(math.inf, 0.0, math.inf, f"|a| never exceeds 1 (at most {top:.4g}): light tails")
    value = _root(logs, weights)
    low = value
    if draws:
        share = min(_UNSEEN / draws, 0.5)
        low = _root(np.append(logs, math.log(top)), np.append((1 - share) * weights, share), at_most=value)
    if not math.isfinite(value):
        return TailExponent(
            math.inf, 0.0, low, f"none of {draws} draws exceeds 1, though {top:.4g} is possible: tail unseen"
        )
    powers = np.exp(value * logs)
    error = math.sqrt(float(powers.var()) / draws) if draws else 0.0
    slope = float(np.sum(weights * powers * np.where(powers > 0, logs, 0.0)))
    effective = 1 / float(np.sum((weights * powers) ** 2))
    trust = "" if effective >= _FEW or not draws else ", too few: take the lower bound"
    reason = f"E|a|^kappa = 1, resting on {effective:.0f} effective multipliers{trust}"
    return TailExponent(value, error / slope, low, reason)


def recurrence_moments(multipliers: ArrayLike, kicks: ArrayLike) -> NDArray[np.float64]:
    """The first four stationary moments of x+ = a x + b.

    Parameters
    ----------
    multipliers, kicks : array
        Equally likely pairs (a, b).

    Returns
    -------
    ndarray, shape (4,)
        E x to E x^4, from ``(1 - E a^m) E x^m = sum_j binom(m, j) E[a^j b^(m - j)] E x^j``; infinite from the first
        even order on with E a^m >= 1.

    Raises
    ------
    InvalidInput
        If the pairs do not match or are not finite, or E|a| >= 1 and so not even the mean is sure to exist.
    """
    a, b = np.asarray(multipliers, float).ravel(), np.asarray(kicks, float).ravel()
    if a.shape != b.shape or a.size == 0 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InvalidInput(
            f"{a.size} multipliers and {b.size} kicks must be finite pairs; give one kick for each"
        )
    if np.mean(np.abs(a)) >= 1:
        raise InvalidInput(f"E|a| = {np.mean(np.abs(a)):.4g} is not below 1: lower the learning rate")
    moments = [1.0]
    for order in range(1, 5):
        gain = float(np.mean(a**order))
        if np.mean(np.abs(a) ** order) >= 1 or not math.isfinite(moments[-1]):
            moments.append(math.inf)
            continue
        driven = sum(
            math.comb(order, j) * float(np.mean(a**j * b ** (order - j))) * moments[j] for j in range(order)
        )
        moments.append(driven / (1 - gain))
    return np.array(moments[1:])


def hill_exponent(sample: ArrayLike, *, tail: float = 0.02) -> tuple[float, float]:
    """Hill's estimate of the exponent of the tail of |x|.

    Parameters
    ----------
    sample : array
        Shape (n,), independent values; or (rows, ...), rows independent of one another.
    tail : float
        Fraction of the values, the largest, that is taken for the tail.

    Returns
    -------
    value, stderr : float
        One over the mean of log(|x|/threshold) over the tail; its error is value/sqrt(count), or for rows a jackknife
        over up to 20 groups of them. Light tails give a value that grows without bound as `tail` shrinks: a normal
        sample reads 6.8 at 2 %.

    Raises
    ------
    InvalidInput
        If fewer than ten values are in the tail or the threshold is zero.

    References
    ----------
    Hill 1975, Ann. Stat. 3, 1163.
    """
    values = np.abs(np.asarray(sample, float))
    tail = fraction("tail", tail)
    if not np.isfinite(values).all():
        raise InvalidInput("sample holds numbers that are not finite; leave them out")
    if values.ndim <= 1 or len(values) < 2:
        value, count = _hill(values.ravel(), tail)
        return value, value / math.sqrt(count)
    value, _ = _hill(values.ravel(), tail)
    groups = np.array_split(np.arange(len(values)), min(_GROUPS, len(values)))
    others = [_hill(np.delete(values, group, axis=0).ravel(), tail)[0] for group in groups]
    return value, float(np.sqrt((len(groups) - 1) * np.var(others)))


def _hill(values: NDArray[np.float64], tail: float) -> tuple[float, int]:
    count = int(tail * values.size)
    if count < 10:
        raise InvalidInput(f"tail={tail} of {values.size} values is {count}; give ten or more")
    top = np.partition(values, values.size - count - 1)[values.size - count - 1 :]
    if top[0] <= 0:
        raise InvalidInput("more values are zero than tail leaves out; give a smaller tail")
    excess = float(np.mean(np.log(top[1:] / top[0])))
    return (1 / excess if excess > 0 else math.inf), count


def _law(
    multipliers: ArrayLike, probabilities: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    size = np.abs(np.asarray(multipliers, float)).ravel()
    if size.size == 0 or not np.isfinite(size).all():
        raise InvalidInput("multipliers must be finite numbers, at least one; leave out what diverged")
    if probabilities is None:
        return size, np.full(size.size, 1 / size.size)
    weights = np.asarray(probabilities, float).ravel()
    if weights.shape != size.shape or not (np.all(weights >= 0) and math.isclose(weights.sum(), 1.0)):
        raise InvalidInput(
            f"probabilities must be {size.size} numbers of at least 0 with sum 1, one for each multiplier"
        )
    return size[weights > 0], weights[weights > 0]


def _root(logs: NDArray[np.float64], weights: NDArray[np.float64], at_most: float = math.inf) -> float:
    """Where log E|a|^p, convex with a negative slope at 0, is zero again; infinite if it is not below 1e4."""

    def growth(p: float) -> float:
        return float(np.asarray(logsumexp(p * logs, b=weights)))

    if logs.max() <= 0:
        return math.inf
    high = 1.0
    while growth(high) <= 0:
        high *= 2
        if high > _LARGEST:
            return min(math.inf, at_most)
    low = high / 2
    while growth(low) >= 0:  # the slope at 0 is negative, but perhaps not with the unseen share
        low /= 2
        if low < 1e-6:
            return 0.0
    root = float(brentq(growth, low, high, xtol=1e-12))  # pyright: ignore[reportArgumentType]
    return min(root, at_most)
