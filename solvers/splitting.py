"""rare_exit(): probabilities and rates of rare exits by adaptive multilevel splitting, with their errors."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr
from scipy import stats

from solvers import excursions, wiener
from solvers.errors import AccuracyWarning, InvalidInput
from solvers.provenance import provenance
from solvers.request import available_cores
from solvers.splitting_request import Job, checked

if TYPE_CHECKING:
    from solvers.sde import SDE

_BUDGET = 1 << 18
"""Steps per call of a kernel: tens of milliseconds, so that Ctrl-C is prompt."""
_COMMON = 100
"""Arrivals while exits are counted that make the exit no rare one: counting them alone is accurate to 10 %."""


def rare_exit(
    sde: SDE,
    y0: Any,
    *,
    target: Callable[..., Any],
    score: Callable[..., Any],
    dt: float,
    seed: int,
    source: Callable[..., Any] | None = None,
    t0: float = 0.0,
    t1: float | None = None,
    duration: float | None = None,
    particles: int = 200,
    repeats: int = 20,
    scheme: str = "euler-maruyama",
    level: float = 0.95,
    max_steps: int = 10_000_000,
    threads: int | None = None,
    progress: Callable[[float], Any] | None = None,
) -> xr.Dataset:
    """Probability, and rate, of reaching a target that is hardly ever reached.

    From a start outside the source: the probability to reach `target` before `source`, or before t1. From a
    start inside the source, with `duration`: also the rate of the passages from source to target.

    Parameters
    ----------
    sde : SDE
        In any convention; converted exactly to the one the scheme converges to.
    y0 : float or array
        A number (d = 1), shape (d,), or several starts, shape (r, d): the result is their average.
    target, source : callable
        ``(t, y, p, xp)`` -> bool. If the condition sets levels for single components (as for `stop` of
        `simulate`), crossings inside a step are found by a Brownian bridge, else at the ends of steps, which
        biases the probability from a given start by order sqrt(dt). Rates need no bridge at the source:
        they do not depend on it. Source may be left out if t1 is given.
    score : callable
        ``score(t, y, p, xp)`` -> float, larger the nearer the target (a reaction coordinate). Any function
        gives an unbiased result; the better it orders states by their chance (the committor is the ideal), the
        smaller the standard error.
    dt : float
        Step. The result is that of the discretised equation: weak order 1.
    seed : int
        0 <= seed < 2^64: same seed, same bits, for any number of threads.
    t0, t1 : float
        Start; and, optionally, the time by which the target must be reached.
    duration : float, optional
        Time for which each repeat follows one path inside the source to count its exits; a tenth more is
        simulated first and left out. It should hold hundreds of exits. The model must not depend on time.
    particles, repeats : int
        Size of a population, and number of independent populations: the standard error comes from these.
    scheme : str
        As in `simulate`.
    level : float
        Confidence of the intervals.
    max_steps : int
        Refuse to go on when a path reaches neither source nor target in so many steps.
    threads : int, optional
        All cores of the process if not given; they share the repeats.
    progress : callable, optional
        Called from the calling thread with the finished fraction in [0, 1].

    Returns
    -------
    Dataset
        ``probability``, ``probability_stderr``, ``probability_low``, ``probability_high``;
        ``ideal_stderr``, the standard error with the best score, p sqrt(-log(p) / (particles repeats)); over
        repeat: ``log_weight`` (log of the estimate, -inf if extinct), ``levels``, ``path_steps`` (steps
        taken), ``diverged`` (paths). With `duration` also ``rate``, ``rate_stderr``, ``rate_low``,
        ``rate_high`` and ``flux`` (exits from the source per time), ``flux_stderr``, and over repeat
        ``exits`` and ``repeat_flux``; the probability is then that from an exit point.

    Raises
    ------
    InvalidInput
        If an argument cannot be used, a path reaches neither region, or a repeat sees no exit from the source.

    Warns
    -----
    AccuracyWarning
        If paths diverged, no repeat reached the target, the repeats scatter so much that their mean is not
        to be trusted, or the target was reached often while exits were counted.

    Notes
    -----
    Adaptive multilevel splitting for Markov chains (Brehier, Gazeau, Goudenege, Lelievre, Rousset 2016, Ann.
    Appl. Probab. 26, 3559): of n paths those whose best score is lowest, all that tie, are replaced by
    copies of others up to their first point strictly above that score; the estimate is the product of the
    surviving fractions, and unbiased for any n and score. Independent of the source's place, the rate is the
    flux of exits from it times the probability that an exit reaches the target before it returns (Hill
    relation; Cerou, Guyader, Lelievre, Pommier 2011, J. Chem. Phys. 134, 054108). Each repeat multiplies its
    own flux with the probability from its own exits, so rates are unbiased too and their standard error is
    that of independent numbers. Best = ideal variance: Guyader, Hengartner, Matzner-Lober 2011.

    Examples
    --------
    >>> well = from_potential(lambda t, y, p, xp: (y[0] ** 2 - 1) ** 2 / 4, lambda t, y, p, xp: (0.2,),
    ...                       convention="ito")  # doctest: +SKIP
    >>> rare_exit(well, -1.0, source=lambda t, y, p, xp: y[0] < -0.8, target=lambda t, y, p, xp: y[0] > 0.8,
    ...           score=lambda t, y, p, xp: y[0], dt=0.01, seed=1, duration=500.0)["rate"]  # doctest: +SKIP
    """
    job = checked(
        sde,
        y0,
        target,
        score,
        dt,
        seed,
        source,
        t0,
        t1,
        duration,
        particles,
        repeats,
        scheme,
        level,
        max_steps,
    )
    count = available_cores() if threads is None else wiener.checked_integer("threads", threads)
    if count < 1:
        raise InvalidInput(f"threads={threads} must be at least 1")
    outcomes: list[Any] = [None] * job.repeats
    for done, (repeat, outcome) in enumerate(_outcomes(job, min(count, job.repeats)), start=1):
        outcomes[repeat] = outcome
        if progress is not None:
            progress(done / job.repeats)
    return _dataset(job, outcomes, level)


class _Outcome(NamedTuple):
    """What one repeat found."""

    log_weight: float
    levels: int
    path_steps: int
    diverged: int
    highest_failure: float
    exits: int
    arrivals: int


def _outcomes(job: Job, threads: int) -> Iterator[tuple[int, _Outcome]]:
    """Finished repeats in any order."""
    cancelled = threading.Event()
    if threads == 1:
        for repeat in range(job.repeats):
            yield repeat, _repeat(job, repeat, cancelled)
        return
    pool = ThreadPoolExecutor(threads)
    try:
        waiting = {pool.submit(_repeat, job, repeat, cancelled): repeat for repeat in range(job.repeats)}
        while waiting:
            for future in wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED).done:
                yield waiting.pop(future), future.result()
    finally:  # also on Ctrl-C: running repeats notice within one call of a kernel
        cancelled.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _repeat(job: Job, repeat: int, cancelled: threading.Event) -> _Outcome:
    """One population, started at y0 or at the exits that it has found itself."""
    n, d = job.particles, job.sde.dimension
    seed, starts, exits, arrivals, spent = np.uint64(job.seed), job.starts, 0, 0, 0
    walls = (job.target.gaps, job.target.components, job.source.gaps, job.source.components)
    if job.window is not None:
        starts, exits, arrivals = _exits(job, repeat, walls, cancelled)
        spent = sum(job.window)
    particles = (
        np.empty((n, d)), np.zeros(n, np.int64), np.zeros(n, np.int64), np.empty(n), np.empty(n),
    )  # fmt: skip
    counters, tallies = np.zeros(7, np.int64), np.array([0.0, -np.inf])
    counters[2] = 1  # clone 0 is the path of the flux
    while counters[0] == excursions.UNFINISHED:
        if cancelled.is_set():
            raise InterruptedError("the run was cancelled")
        job.split(
            job.sde.params, job.times, seed, repeat, starts, particles, counters, tallies, walls, _BUDGET
        )
    if counters[0] == excursions.FAILED:
        _explain(job, int(counters[6]))
    return _Outcome(
        float(tallies[0]), int(counters[3]), int(counters[4]) + spent, int(counters[5]), float(tallies[1]), exits,
        arrivals,
    )  # fmt: skip


def _explain(job: Job, reason: int) -> None:
    """Why a population could not be carried on."""
    if reason == excursions.LONG:
        raise InvalidInput(
            f"a path reached neither source nor target in max_steps={job.times[2]} steps; enlarge the source "
            "so that it holds the state where paths linger, give t1, or raise max_steps"
        )
    if reason == excursions.AWAITED:
        raise RuntimeError("a path did not repeat itself bit for bit; please report this model")
    raise InvalidInput(
        f"score let {excursions.CLONES} paths be replaced without reaching the target; choose a score that "
        "is bounded outside the target"
    )


def _exits(job: Job, repeat: int, walls: Any, cancelled: threading.Event) -> tuple[np.ndarray, int, int]:
    """A sample of the points where one long path leaves the source, how often it did, and its arrivals."""
    burn, counted = job.window  # type: ignore[misc]
    origin = job.starts[0]
    state = origin.copy()
    counters, exits = np.array([1, 0, 0, 0]), np.empty((job.particles, job.sde.dimension))
    for first in range(0, burn + counted, _BUDGET):
        if cancelled.is_set():
            raise InterruptedError("the run was cancelled")
        window = (first, min(first + _BUDGET, burn + counted), burn)
        job.circulate(
            job.sde.params,
            job.times,
            np.uint64(job.seed),
            repeat,
            origin,
            state,
            window,
            counters,
            exits,
            walls,
        )
        if counters[3]:
            raise InvalidInput(
                f"a path diverged inside the source at dt={job.times[1]:g}; reduce dt or choose a tamed scheme"
            )
    found = int(counters[1])
    if found == 0:
        raise InvalidInput(
            f"no path left the source in duration={counted * job.times[1]:g}; choose a longer duration or a "
            "smaller source"
        )
    return exits[: min(found, len(exits))], found, int(counters[2])


def _dataset(job: Job, outcomes: list[_Outcome], level: float) -> xr.Dataset:
    logs = np.array([outcome.log_weight for outcome in outcomes])
    weights = np.exp(logs)
    probability, data = float(weights.mean()), {}
    _warn(outcomes, weights, probability)
    data |= _estimate("probability", weights, level, "1", "probability to reach the target")
    ideal = (
        probability * math.sqrt(-math.log(probability) / (job.particles * job.repeats))
        if probability
        else 0.0
    )
    data["ideal_stderr"] = ((), ideal, _about("standard error with the best score"))
    for name, text in (
        ("log_weight", "log of the estimated probability"),
        ("levels", "levels"),
        ("path_steps", "steps simulated"),
        ("diverged", "paths that left the finite numbers"),
    ):
        data[name] = ("repeat", np.array([getattr(outcome, name) for outcome in outcomes]), _about(text))
    details: dict[str, Any] = {}
    if job.window is not None:
        exits = np.array([outcome.exits for outcome in outcomes])
        flux = exits / (job.window[1] * job.times[1])
        data |= _estimate("rate", flux * weights, level, "1/time", "rate of passages from source to target")
        data |= _estimate("flux", flux, level, "1/time", "exits from the source per time")
        data["exits"] = ("repeat", exits, _about("exits from the source"))
        data["repeat_flux"] = ("repeat", flux, _about("exits from the source per time", "1/time"))
        details["duration"] = job.window[1] * job.times[1]
    if job.times[3]:
        details["t1"] = job.times[0] + job.times[2] * job.times[1]
    bridged = [name for name in ("target", "source") if getattr(job, name).components.size]
    return xr.Dataset(
        data,
        coords={"repeat": ("repeat", np.arange(job.repeats), _about("number of the population"))},
        attrs=provenance(
            title="rare exits by adaptive multilevel splitting",
            convention=job.sde.convention,
            scheme=job.scheme.name,
            dt=job.times[1],
            t0=job.times[0],
            seed=job.seed,
            particles=job.particles,
            repeats=job.repeats,
            level=level,
            bridged=", ".join(bridged) or "none: crossings are seen at the ends of steps",
            parameters=repr(job.sde.params),
            **details,
        ),
    )


def _estimate(name: str, values: np.ndarray, level: float, units: str, text: str) -> dict[str, Any]:
    """Mean, standard error and Student's interval of independent nonnegative numbers."""
    mean, stderr = float(values.mean()), float(values.std(ddof=1) / math.sqrt(values.size))
    reach = float(stats.t.ppf(0.5 + 0.5 * level, values.size - 1)) * stderr
    return {
        name: ((), mean, _about(text, units)),
        f"{name}_stderr": ((), stderr, _about(f"standard error of the {name}", units)),
        f"{name}_low": (
            (),
            max(mean - reach, 0.0),
            _about(f"lower end of the interval of the {name}", units),
        ),
        f"{name}_high": ((), mean + reach, _about(f"upper end of the interval of the {name}", units)),
    }


def _warn(outcomes: list[_Outcome], weights: np.ndarray, probability: float) -> None:
    """Say what makes the numbers doubtful."""
    doubts = []
    lost = sum(outcome.diverged for outcome in outcomes)
    if lost:
        doubts.append(f"{lost} paths diverged and count as not arriving; reduce dt")
    arrivals = sum(outcome.arrivals for outcome in outcomes)
    if arrivals >= _COMMON:
        doubts.append(
            f"the target was reached {arrivals} times while exits were counted: it is not rare, and simulate(stop=) "
            "measures it directly"
        )
    if probability == 0:
        best = max(outcome.highest_failure for outcome in outcomes)
        doubts.append(
            f"no repeat reached the target (best score {best:g}); use more particles, or a score that rises "
            "all the way to the target"
        )
    elif weights.std(ddof=1) > probability:
        doubts.append(
            f"the repeats scatter by {weights.std(ddof=1) / probability:.1f} times their mean, so few of them "
            "decide it; use more particles or a score closer to the chance of arriving"
        )
    for doubt in doubts:
        warnings.warn(doubt, AccuracyWarning, stacklevel=4)


def _about(long_name: str, units: str = "1") -> dict[str, str]:
    return {"units": units, "long_name": long_name}
