"""What the exits of an ensemble say: survival with censoring, the rate of the tail, the mean time, the place."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy import special, stats

from solvers.errors import AccuracyWarning, InvalidInput
from solvers.provenance import provenance

_FEWEST = 20
"""Exits that a tail must keep for its rate to be fitted."""
_CONSTANT = 2.0
"""z-score up to which the hazards of a tail's two halves count as equal."""


class _Exits(NamedTuple):
    """The paths that count: ``times`` of exit or of censoring, in the order of the paths."""

    times: np.ndarray
    exited: np.ndarray
    start: float
    end: float
    used: np.ndarray


def survival(result: xr.Dataset, *, times: Any = None, level: float = 0.95) -> xr.Dataset:
    """Survival curve of an ensemble with a stop condition (Kaplan and Meier 1958).

    Parameters
    ----------
    result : Dataset
        From `simulate` with ``stop=``. Paths that did not exit are censored at the end of the run; paths
        that diverged before they exited are left out.
    times : array of float, optional
        Where to evaluate, within the run; at the start and every distinct exit time if not given.
    level : float
        Confidence of the pointwise interval.

    Returns
    -------
    Dataset over time
        ``survival``, the probability not to have exited by that time, exits at it included; ``stderr`` by
        Greenwood's formula (nan once nobody is left); ``low``, ``high``, the interval on the scale of
        log(-log), inside [0, 1]; ``at_risk``, paths in the run just before the time.

    Raises
    ------
    InvalidInput
        If the result has no exit times, or an argument cannot be used.

    Warns
    -----
    AccuracyWarning
        If diverged paths were left out.

    Examples
    --------
    >>> run = simulate(sde, 0.0, t1=5.0, dt=0.01, paths=10_000, seed=1,
    ...                stop=lambda t, y, p, xp: xp.abs(y[0]) > 1.0)  # doctest: +SKIP
    >>> survival(run, times=[1.0, 2.0])["survival"].values  # doctest: +SKIP
    array([0.37, 0.11])
    """
    _check_level(level)
    exits = _exits(result)
    ordered = np.sort(exits.times)
    sample = stats.CensoredData.right_censored(exits.times, ~exits.exited)
    curve = stats.ecdf(sample).sf
    jumps = np.unique(exits.times[exits.exited])
    if times is None:
        at = np.unique(np.concatenate([[exits.start], jumps]))
    else:
        at = np.atleast_1d(np.asarray(times, dtype=float))
        if at.ndim != 1 or not ((at >= exits.start) & (at <= exits.end)).all():
            raise InvalidInput(
                f"times must be a list of numbers within the run, from {exits.start:g} to {exits.end:g}"
            )
    probability = curve.evaluate(at)
    left = np.sort(exits.times[exits.exited])
    died = np.searchsorted(left, jumps, side="right") - np.searchsorted(left, jumps)
    risk = exits.times.size - np.searchsorted(ordered, jumps)
    with np.errstate(divide="ignore"):  # the last path at risk exits: Greenwood's formula ends there
        terms = np.where(died < risk, died / (risk * np.maximum(risk - died, 1)), np.nan)
    summed = np.concatenate([[0.0], np.cumsum(terms)])[np.searchsorted(jumps, at, side="right")]
    stderr = probability * np.sqrt(summed)
    low, high = _log_log_interval(probability, summed, level)

    def about(text):
        return {"units": "1", "long_name": text}

    return xr.Dataset(
        {
            "survival": ("time", probability, about("probability of not having exited")),
            "stderr": ("time", stderr, about("standard error of the survival (Greenwood)")),
            "low": ("time", low, about("lower end of the interval")),
            "high": ("time", high, about("upper end of the interval")),
            "at_risk": (
                "time",
                exits.times.size - np.searchsorted(ordered, at),
                about("paths that had neither exited nor been censored before the time"),
            ),
        },
        coords={"time": ("time", at, {"units": "time", "long_name": "time"})},
        attrs=_attributes(result, "survival of an ensemble", exits, level=level),
    )


def exit_summary(result: xr.Dataset, *, tail_start: float | None = None, level: float = 0.95) -> xr.Dataset:
    """Rate, mean time and place of the exits of an ensemble with a stop condition.

    Parameters
    ----------
    result : Dataset
        From `simulate` with ``stop=``; censoring as in `survival`.
    tail_start : float, optional
        Time from which exits are taken to come at a constant rate. If not given: twice the (elapsed) time from
        which the hazards of the two halves of the tail agree within two standard errors; doubling it
        squares what is left of the transient.
    level : float
        Confidence of the intervals.

    Returns
    -------
    Dataset
        ``paths``, ``exits``, ``censored`` (numbers); ``rate``, ``rate_stderr``, ``rate_low``, ``rate_high``:
        exits per time at risk after ``tail_start``, nan with fewer than 20 exits, interval exact for exponential
        times; ``tail_agreement``: z-score between the hazards of its two halves;
        ``restricted_mean``, ``restricted_mean_stderr``: mean of min(exit time, end) - start;
        ``mean_time``, ``mean_time_stderr``: mean exit time since the start. Where paths are censored their
        remaining time is taken to be exponential with the fitted rate, which attrs["censoring"] says;
        ``place_mean``, ``place_stderr``, ``place_sd`` (component): state at the exit, over the exited paths;
        and where the stop condition is a set of levels ``fraction``, ``fraction_stderr`` (side): the share
        of the exits through each level, with coordinates ``side_component`` and ``side_level``. Exits of
        paths that met the condition at the start count to no side.

    Raises
    ------
    InvalidInput
        If the result has no exit times, no path exited, or an argument cannot be used.

    Warns
    -----
    AccuracyWarning
        If no tail of constant rate was found, or diverged paths were left out.

    Notes
    -----
    The rate is the maximum likelihood estimate d / R (d exits in time R at risk), the ends of its interval
    chi2(2 d) and chi2(2 d + 2) quantiles over 2 R. Standard errors are those of the linearised estimators
    (influence functions), so they hold with censoring and with the correlation of the two terms of
    ``mean_time``. With a `tail_start` found from the data the interval knows nothing of that search.
    """
    _check_level(level)
    exits = _exits(result)
    total, count = exits.times.size, int(exits.exited.sum())
    if count == 0:
        raise InvalidInput(
            f"none of the {total} paths exited by t={exits.end:g}: nothing to summarise; run longer, or use "
            "rare_exit"
        )
    begin = _tail_start(exits) if tail_start is None else _checked_tail(tail_start, exits)
    tail = _Tail(exits, begin)
    if tail.exits >= _FEWEST and abs(tail.agreement()) > 2 * _CONSTANT:
        warnings.warn(
            f"the exit rate after tail_start={begin:g} is not constant: its two halves differ by "
            f"{abs(tail.agreement()):.1f} standard errors; run longer, or choose a later tail_start",
            AccuracyWarning,
            stacklevel=2,
        )
    data: dict[str, Any] = {
        "paths": ((), total, _about("paths counted")),
        "exits": ((), count, _about("paths that exited")),
        "censored": ((), total - count, _about("paths still inside at the end")),
        "tail_start": ((), begin, _about("time from which the rate is taken to be constant", "time")),
        "tail_agreement": ((), tail.agreement(), _about("z-score between the hazards of the tail's halves")),
        **tail.rate(level),
        **_means(exits, tail),
    }
    place, coords = _place(result, exits)
    data.update(place)
    return xr.Dataset(
        data, coords=coords, attrs=_attributes(result, "exits of an ensemble", exits, level=level)
    )


class _Tail:
    """The exits after a time, and the time that the paths spent at risk of them."""

    def __init__(self, exits: _Exits, begin: float):
        self.begin = begin
        self.exposure = np.maximum(exits.times - begin, 0.0)
        self.hits = exits.exited & (exits.times > begin)
        self.exits, self.time = int(self.hits.sum()), float(self.exposure.sum())
        self._times = exits.times

    def fitted(self) -> float:
        """Exits per time at risk."""
        return self.exits / self.time if self.exits >= _FEWEST else math.nan

    def agreement(self) -> float:
        """z-score of the log ratio of the hazards before and after the tail's median exit."""
        if self.exits < _FEWEST:
            return math.nan
        middle = float(np.median(self._times[self.hits]))
        early = np.minimum(self.exposure, middle - self.begin).sum()
        late = self.time - early
        first = int((self.hits & (self._times <= middle)).sum())
        second = self.exits - first
        if not (second and late > 0):
            return math.nan
        return float(math.log(first * late / (second * early)) / math.sqrt(1 / first + 1 / second))

    def rate(self, level: float) -> dict[str, Any]:
        """The variables about the rate."""
        low = high = stderr = math.nan
        if self.exits >= _FEWEST:
            stderr = math.sqrt(self.exits) / self.time
            low = stats.chi2.ppf(0.5 - 0.5 * level, 2 * self.exits) / (2 * self.time)
            high = stats.chi2.ppf(0.5 + 0.5 * level, 2 * self.exits + 2) / (2 * self.time)
        return {
            "rate": ((), self.fitted(), _about("exit rate in the tail", "1/time")),
            "rate_stderr": ((), stderr, _about("standard error of the exit rate", "1/time")),
            "rate_low": ((), float(low), _about("lower end of the interval of the rate", "1/time")),
            "rate_high": ((), float(high), _about("upper end of the interval of the rate", "1/time")),
        }


def _tail_start(exits: _Exits) -> float:
    """Twice the elapsed time from which the hazard looks constant, if enough exits come after it."""
    left = exits.times[exits.exited]
    for share in np.arange(0.0, 0.91, 0.05):
        begin = exits.start if share == 0 else float(np.quantile(left, share))
        tail = _Tail(exits, begin)
        if tail.exits < _FEWEST:
            break
        if abs(tail.agreement()) <= _CONSTANT:
            later = exits.start + 2 * (begin - exits.start)
            return later if _Tail(exits, later).exits >= _FEWEST else begin
    if left.size < _FEWEST:
        return exits.start
    return float(np.quantile(left, max(0.0, 1 - 2 * _FEWEST / left.size)))


def _means(exits: _Exits, tail: _Tail) -> dict[str, Any]:
    """Restricted and extrapolated mean exit times with their standard errors."""
    n = exits.times.size
    elapsed = exits.times - exits.start
    restricted = float(elapsed.mean())
    influence = elapsed - restricted
    surviving = ~exits.exited
    share, rate = float(surviving.mean()), tail.fitted()
    mean = restricted
    spread = influence
    if share > 0:
        mean = restricted + share / rate
        per_path = (tail.hits - rate * tail.exposure) / tail.exposure.mean()  # influence on the rate
        spread = influence + (surviving - share) / rate - share / rate**2 * per_path
    return {
        "restricted_mean": ((), restricted, _about("mean of min(exit time, end) - start", "time")),
        "restricted_mean_stderr": ((), _error(influence, n), _about("standard error", "time")),
        "mean_time": ((), mean, _about("mean exit time since the start", "time")),
        "mean_time_stderr": ((), _error(spread, n), _about("standard error of the mean exit time", "time")),
    }


def _error(influence: np.ndarray, n: int) -> float:
    return float(np.sqrt((influence**2).sum() / max(n - 1, 1) / n)) if n > 1 else math.nan


def _place(result: xr.Dataset, exits: _Exits) -> tuple[dict[str, Any], dict[str, Any]]:
    """Moments of the state at the exit, and the share of each level."""
    names = result["component"].values
    states = result["final"].values[exits.used][exits.exited]
    count = len(states)
    sd = states.std(axis=0, ddof=1) if count > 1 else np.full(states.shape[1], math.nan)
    data: dict[str, Any] = {
        "place_mean": ("component", states.mean(axis=0), _about("mean state at the exit")),
        "place_stderr": ("component", sd / math.sqrt(count), _about("standard error of the mean state")),
        "place_sd": ("component", sd, _about("standard deviation of the state at the exit")),
    }
    coords: dict[str, Any] = {"component": result["component"]}
    marks = result["exit_time"].attrs
    if "levels" in marks:
        levels = np.atleast_1d(np.asarray(marks["levels"], dtype=float))
        about = marks["level_components"].split(", ")
        index = [list(names).index(name) for name in about]
        inside = exits.times[exits.exited] > exits.start
        share = (states[:, index] == levels)[inside].sum(axis=0) / count
        error = np.sqrt(share * (1 - share) / count)
        data["fraction"] = ("side", share, _about("share of the exits through the level"))
        data["fraction_stderr"] = ("side", error, _about("standard error of the share"))
        coords["side_component"] = ("side", about, {"long_name": "component that reaches the level"})
        coords["side_level"] = ("side", levels, _about("level"))
    return data, coords


def _exits(result: Any) -> _Exits:
    """Times of exit or censoring of the paths that did not diverge first."""
    if not isinstance(result, xr.Dataset):
        raise InvalidInput(f"result is a {type(result).__name__}; pass the Dataset of simulate")
    if "exit_time" not in result:
        raise InvalidInput("result has no exit_time; call simulate with stop=")
    missing = [name for name in ("t0", "dt", "steps") if name not in result.attrs]
    if missing:
        raise InvalidInput(
            f"result lacks the attribute {missing[0]!r}, by which its end is known; pass the Dataset of "
            "simulate itself"
        )
    start = float(result.attrs["t0"])
    end = start + float(result.attrs["dt"]) * int(result.attrs["steps"])
    when = result["exit_time"].values
    exited = ~np.isnan(when)
    lost = ~exited & result["diverged"].values.astype(bool) if "diverged" in result else np.zeros_like(exited)
    if lost.all():
        raise InvalidInput("every path diverged; reduce dt or check the model")
    if lost.any():
        warnings.warn(
            f"{lost.sum()} of {lost.size} paths diverged before they exited and are left out: if those differ "
            "from the others, the result is biased; reduce dt",
            AccuracyWarning,
            stacklevel=3,
        )
    used = ~lost
    return _Exits(np.where(exited, when, end)[used], exited[used], start, end, used)


def _log_log_interval(
    probability: np.ndarray, summed: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pointwise interval of a survival curve whose Greenwood sums are given."""
    low, high = probability.copy(), probability.copy()
    inner = (probability > 0) & (probability < 1) & np.isfinite(summed)
    hazard = -np.log(probability[inner])
    factor = np.exp(special.ndtri(0.5 + 0.5 * level) * np.sqrt(summed[inner]) / hazard)
    low[inner], high[inner] = np.exp(-hazard * factor), np.exp(-hazard / factor)
    low[probability == 0], high[probability == 0] = math.nan, math.nan
    return low, high


def _checked_tail(tail_start: float, exits: _Exits) -> float:
    if not exits.start <= tail_start < exits.end:
        raise InvalidInput(
            f"tail_start={tail_start!r} is outside the run from {exits.start:g} to {exits.end:g}; choose a "
            "time inside"
        )
    return float(tail_start)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise InvalidInput(f"level={level!r} must lie between 0 and 1")


def _about(long_name: str, units: str = "1") -> dict[str, str]:
    return {"units": units, "long_name": long_name}


def _attributes(result: xr.Dataset, title: str, exits: _Exits, **details: Any) -> dict[str, Any]:
    censored = int((~exits.exited).sum())
    known = {
        key: result.attrs[key]
        for key in ("convention", "scheme", "dt", "seed", "parameters")
        if key in result.attrs
    }
    text = "none"
    if censored:
        text = f"{censored} of {exits.exited.size} paths still inside at t={exits.end:g}"
        if title.startswith("exits"):
            text += "; their remaining time is taken to be exponential with the rate of the tail"
    return provenance(
        title=title, found=result["exit_time"].attrs.get("found"), censoring=text, **known, **details
    )
