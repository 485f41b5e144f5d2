"""What the levels of multilevel Monte Carlo say: rates of decay, remaining bias, sample numbers, costs."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

SHARE = 0.75
"""Share of the squared error given to sampling. Adding a level is cheap beside halving the variance."""

_MODEL = 0.15
"""Relative deviation from a power law that a fit of rates allows for, besides sampling noise."""


class Rate(NamedTuple):
    """A fitted power law q_l ~ M^(-rate l); not a number where fewer than two levels are resolved."""

    value: float
    stderr: float


class Bias(NamedTuple):
    """The estimated sum of all finer levels, signed, and its standard error."""

    value: float
    stderr: float

    @property
    def bound(self) -> float:
        """Its size plus one standard error: what is held against the tolerance."""
        return abs(self.value) + self.stderr


def fitted_rate(values: np.ndarray, stderrs: np.ndarray, refinement: int) -> Rate:
    """Fit |values[l]| ~ M^(-rate l) over the coupled levels l = 1, 2, ... by weighted least squares of logs.

    Levels whose value is within two standard errors of zero are left out.

    Parameters
    ----------
    values, stderrs : ndarray (levels,)
        Entry 0 belongs to the coarsest level and is not used.
    refinement : int
        M.
    """
    numbers = np.arange(1, len(values))
    size, error = np.abs(values[1:]), stderrs[1:]
    resolved = size > 2 * error
    if resolved.sum() < 2:
        return Rate(math.nan, math.nan)
    x = -numbers[resolved] * math.log(refinement)
    y = np.log(size[resolved])
    weight = 1.0 / ((error[resolved] / size[resolved]) ** 2 + _MODEL**2)
    centre = np.average(x, weights=weight)
    spread = float((weight * (x - centre) ** 2).sum())
    return Rate(float((weight * (x - centre) * y).sum()) / spread, 1.0 / math.sqrt(spread))


def used_rate(fitted: Rate, stated: float) -> float:
    """The rate for extrapolation: the stated one unless the fit contradicts it from below; at least 1/2."""
    if not fitted.value + 2 * fitted.stderr < stated:
        return stated
    return max(fitted.value, 0.5)


def remaining_bias(means: np.ndarray, stderrs: np.ndarray, rate: float, refinement: int) -> Bias:
    """The sum of the levels beyond the last, extrapolated from the last three.

    Each of them predicts the sum, mean_j M^(-rate (L - j)) / (M^rate - 1). Where the predictions agree within
    their sampling errors they are averaged, weighted by these; else the largest is taken (Giles 2015, Acta
    Numerica 24, sec. 3.1), the levels having not yet settled to a power law.

    Parameters
    ----------
    means, stderrs : ndarray (levels,)
        Of the levels; entry 0, the coarsest, is not used.
    rate : float
    refinement : int
    """
    last = min(3, len(means) - 1)
    factor = refinement ** (-rate * np.arange(last)[::-1]) / (refinement**rate - 1.0)
    predicted, error = means[-last:] * factor, stderrs[-last:] * factor
    if not (error > 0).all():
        worst = int(np.argmax(np.abs(predicted)))
        return Bias(float(predicted[worst]), float(error[worst]))
    weight = 1.0 / error**2
    mean = float(np.average(predicted, weights=weight))
    disagreement = float((weight * (predicted - mean) ** 2).sum())
    if last > 1 and disagreement > stats.chi2.ppf(0.99, last - 1):
        worst = int(np.argmax(np.abs(predicted)))
        return Bias(float(predicted[worst]), float(error[worst]))
    return Bias(mean, float(weight.sum() ** -0.5))


def steadied_variances(variances: np.ndarray, rate: float, refinement: int) -> np.ndarray:
    """Variances kept from falling by more than twice the expected factor: few samples may all be alike."""
    steady = variances.copy()
    for level in range(2, len(steady)):
        steady[level] = max(steady[level], 0.5 * steady[level - 1] * refinement**-rate)
    return steady


def optimal_samples(variances: np.ndarray, unit_costs: np.ndarray, target: float) -> np.ndarray:
    """Numbers of samples of least cost for which the variance of the sum is `target` (Giles 2008, eq. 12)."""
    total = float(np.sqrt(variances * unit_costs).sum())
    return np.ceil(np.sqrt(variances / unit_costs) * total / target)


class Plain(NamedTuple):
    """Plain Monte Carlo at its best: time steps of a path, standard error to reach, time steps altogether."""

    steps: int
    stderr: float
    cost: float


def plain_monte_carlo(error: float, variance: float, bias: float, steps: int, weak: float) -> Plain:
    """What plain Monte Carlo would need for the same error, at its best step and its best split.

    With a bias b dt^weak the cost V steps / (share error^2) is least for share = 2 weak / (2 weak + 1).

    Parameters
    ----------
    error : float
        Root-mean-square.
    variance : float
        Of the observable.
    bias : float
        On a grid of `steps` steps.
    steps : int
    weak : float
        Order of the bias.
    """
    share = 2 * weak / (2 * weak + 1)
    needed = max(1, math.ceil(steps * (abs(bias) / (math.sqrt(1 - share) * error)) ** (1 / weak)))
    return Plain(needed, math.sqrt(share) * error, variance / (share * error**2) * needed)
