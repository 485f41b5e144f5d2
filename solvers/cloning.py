"""Cloning of populations: who is the parent of whom, in proportion to powers of the growth since the last time."""

from __future__ import annotations

import math

import numpy as np
from numba import njit


@njit(nogil=True, error_model="numpy")
def choose_parents(logs, order, mark, weights, parents):
    """Systematic resampling (Kitagawa 1996) by exp(order * logs), once the effective number of clones is under half.

    Parameters
    ----------
    logs : float array (clones,)
        Logarithms of the growth of each.
    order : float
    mark : float
        Uniform in (0, 1].
    weights : float array (clones,)
        To work in.
    parents : int array (clones,)
        Filled where it takes place.

    Returns
    -------
    float
        The logarithm of the mean weight, or nan where the clones stay as they are.
    """
    clones = logs.size
    top = -np.inf
    for i in range(clones):
        top = max(top, order * logs[i])
    mean, square = 0.0, 0.0
    for i in range(clones):
        weights[i] = math.exp(order * logs[i] - top)
        mean += weights[i]
        square += weights[i] * weights[i]
    if mean * mean > 0.5 * clones * square:
        return np.nan
    reached, source = weights[0], 0
    for i in range(clones):
        wanted = (i + mark) / clones * mean
        while reached < wanted and source < clones - 1:
            source += 1
            reached += weights[source]
        parents[i] = source
    return top + math.log(mean / clones)


def log_mean(exponents: np.ndarray) -> float:
    """The logarithm of the mean of exponentials."""
    top = exponents.max()
    return float(top + np.log(np.exp(exponents - top).mean()))
