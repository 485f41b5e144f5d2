"""Means with intervals, paired comparisons over seeds, and Holm's correction for many of them."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from solvers.errors import InvalidInput


class Interval(NamedTuple):
    """A mean with its confidence interval; all NaN where there are not two values or one of them is no number."""

    mean: float
    low: float
    high: float


class Paired(NamedTuple):
    """A comparison over pairs: the mean difference (or ratio) with its interval, and the two-sided p-value."""

    mean: float
    low: float
    high: float
    p: float


_NONE = Paired(math.nan, math.nan, math.nan, math.nan)


def mean_interval(values: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Mean of independent values with Student's interval.

    Parameters
    ----------
    values : array
        One of each seed.
    confidence : float
        In (0, 1).

    Returns
    -------
    Interval
        Exact for normal values; of few seeds it leans on that.

    Raises
    ------
    InvalidInput
        For another confidence.
    """
    _check_confidence(confidence)
    x = np.asarray(values, float)
    if x.size < 2 or not np.isfinite(x).all():
        return Interval(*_NONE[:3])
    half = stats.t.ppf(0.5 + confidence / 2, x.size - 1) * x.std(ddof=1) / math.sqrt(x.size)
    return Interval(float(x.mean()), float(x.mean() - half), float(x.mean() + half))


def paired_difference(values: ArrayLike, reference: ArrayLike, *, confidence: float = 0.95) -> Paired:
    """Mean of the differences of pairs, by the paired t-test.

    Parameters
    ----------
    values, reference : array
        In the same order of seeds.
    confidence : float
        In (0, 1).

    Returns
    -------
    Paired
        NaN where there are not two pairs, or a value is no number. Pairs that are all equal have p = 1; differences
        that are all the same and not 0 leave p at 0.

    Raises
    ------
    InvalidInput
        If they are not pairs.
    """
    one, two = np.asarray(values, float), np.asarray(reference, float)
    if one.shape != two.shape or one.ndim != 1:
        raise InvalidInput(f"values {one.shape} and reference {two.shape} must be pairs, one of each seed")
    interval = mean_interval(one - two, confidence=confidence)
    if not math.isfinite(interval.mean):
        return _NONE
    spread = (one - two).std(ddof=1) / math.sqrt(one.size)
    if spread == 0:
        return Paired(*interval, float(interval.mean == 0))
    return Paired(*interval, float(2 * stats.t.sf(abs(interval.mean) / spread, one.size - 1)))


def paired_ratio(values: ArrayLike, reference: ArrayLike, *, confidence: float = 0.95) -> Paired:
    """Geometric mean of the ratios of pairs, by the paired t-test of the logarithms.

    Parameters
    ----------
    values, reference : array
        Positive, in the same order of seeds.
    confidence : float
        In (0, 1).

    Returns
    -------
    Paired
        Ratios; NaN as for `paired_difference`, or where a value is not positive.
    """
    one, two = np.asarray(values, float), np.asarray(reference, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = paired_difference(np.log(one), np.log(two), confidence=confidence)
    return Paired(math.exp(found.mean), math.exp(found.low), math.exp(found.high), found.p)


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """P-values corrected for their number, by Holm's step-down method: valid whatever their dependence.

    Parameters
    ----------
    p : array
        Of the family, shape (m,); NaN entries are no tests and stay so.

    Returns
    -------
    ndarray
        Corrected, at most 1.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p, float)
    tested = np.flatnonzero(np.isfinite(values))
    order = tested[np.argsort(values[tested], kind="stable")]
    stepped = values[order] * np.arange(len(order), 0, -1)
    found = np.full(values.shape, np.nan)
    found[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return found


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise InvalidInput(f"confidence={confidence!r} must lie between 0 and 1")
