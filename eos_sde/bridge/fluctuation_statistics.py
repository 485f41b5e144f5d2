"""What is said of a fluctuation, measured on replicas of a path about their mean, with jackknife errors."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from eos_sde.bridge.alternation import count_flips
from eos_sde.thresholds.random_recurrence import hill_exponent

STATISTICS = {
    "variance": ("weight^2", "variance about the averaged path, mean over the steps"),
    "kurtosis": ("1", "excess kurtosis"),
    "autocorrelation": ("1", "correlation between a step and the next"),
    "amplitude": ("weight", "period-2 amplitude, mean of |x(k+1) - x(k)|/2"),
    "flip_rate": ("1/step", "sign changes of (-1)^k x(k) per step"),
    "hysteresis_flip_rate": ("1/step", "phase flips of (-1)^k x(k) per step, beyond the hysteresis"),
    "tail": ("1", "Hill exponent of the largest 2 % of |x|"),
}
RUNAWAY = 1e50
"""Displacement beyond which a replica has run away: there is no law to show."""

_GROUPS = 20


def path_statistics(x: NDArray[np.float64], *, hysteresis: float) -> dict[str, tuple[float, float]]:
    """Statistics of independent replicas about their mean at each step, with jackknife errors over the replicas.

    The mean over R replicas takes a share 1/R of the variance with it; here sums of squares are divided by R - 1, and
    fourth cumulants are Fisher's k-statistics, so that neither is biased. (Autocorrelation, amplitude and tail are, by
    1/R relative.) Nothing is smoothed in time: what slowly drives replicas apart counts as fluctuation.

    Parameters
    ----------
    x : ndarray
        Shape (replicas, steps): one component, at consecutive steps; at least 40 replicas, 2 steps.
    hysteresis : float
        Of the phase, in standard deviations of the step.

    Returns
    -------
    dict
        A name of `STATISTICS` to (value, standard error).
    """
    return jackknife(lambda sample: _statistics(sample, hysteresis), x)


def jackknife(
    statistics: Callable[[NDArray[np.float64]], dict[str, float]], x: NDArray[np.float64]
) -> dict[str, tuple[float, float]]:
    """Values and jackknife errors over up to twenty groups of rows.

    Parameters
    ----------
    statistics : callable
        Sample to named numbers.
    x : ndarray
        Independent rows.

    Returns
    -------
    dict
        Name to (value, standard error).
    """
    whole = statistics(x)
    groups = np.array_split(np.arange(len(x)), min(_GROUPS, len(x)))
    left_out = [statistics(np.delete(x, group, axis=0)) for group in groups]
    scale = len(groups) - 1
    return {
        name: (value, float(np.sqrt(scale * np.var([one[name] for one in left_out]))))
        for name, value in whole.items()
    }


def _statistics(x: NDArray[np.float64], hysteresis: float) -> dict[str, float]:
    replicas = len(x)
    centred = x - x.mean(axis=0)
    square = np.mean(centred**2, axis=0)
    variance = square * replicas / (replicas - 1)
    deviation = np.sqrt(variance)
    fourth = np.mean(centred**4, axis=0)
    # Fisher's k-statistic of the fourth cumulant
    cumulant = replicas**2 * ((replicas + 1) * fourth - 3 * (replicas - 1) * square**2)
    cumulant /= (replicas - 1) * (replicas - 2) * (replicas - 3)
    products = np.sum(centred[:, 1:] * centred[:, :-1], axis=0) / (replicas - 1)
    steps = x.shape[1] - 1
    return {
        "variance": float(variance.mean()),
        "kurtosis": float(cumulant.mean() / np.mean(variance**2)),
        "autocorrelation": float(products.sum() / np.sum(deviation[1:] * deviation[:-1])),
        "amplitude": float(np.mean(np.abs(np.diff(centred, axis=1))) / 2),
        "flip_rate": float(count_flips(centred, 0.0).mean() / steps),
        "hysteresis_flip_rate": float(count_flips(centred, hysteresis * deviation).mean() / steps),
        "tail": hill_exponent((centred / deviation).ravel())[0],
    }


def histogram(
    x: NDArray[np.float64], edges: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Density of replicas about their mean over all steps, and its jackknife error.

    Parameters
    ----------
    x : ndarray
        Shape (replicas, steps).
    edges : ndarray
        Of the bins, shape (m + 1,); what lies outside them counts in the total.

    Returns
    -------
    density, stderr : ndarray
        Shape (m,), in 1/weight.
    """
    centred = x - x.mean(axis=0)
    groups = np.array_split(centred, min(_GROUPS, len(x)))
    counts = np.array([np.histogram(group, edges)[0] for group in groups], float)
    sizes = np.array([group.size for group in groups], float)
    width = np.diff(edges)
    shares = counts / sizes[:, None] / width
    return counts.sum(axis=0) / sizes.sum() / width, shares.std(axis=0, ddof=1) / np.sqrt(len(groups))
