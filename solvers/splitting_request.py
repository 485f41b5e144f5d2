"""What `rare_exit` was asked for: every argument checked and put into the form that its kernels take."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from solvers import excursions, memory, scalar, schemes, wiener
from solvers.compiling import Keyed
from solvers.errors import InvalidInput
from solvers.exit_times import StopRule, met_at_start, never, read_on_arrays, region_rule
from solvers.purity import plain_function, purity_key
from solvers.request import checked_start, checked_steps, refuse_other, refuse_unstable_step
from solvers.sde import SDE

_FEWEST = 10
_BURN = 10
"""One part in so many of the duration is left out as the approach to the stationary state."""
_NOWHERE = StopRule(never.py_func, never, np.empty((0, 2)), np.empty(0, dtype=np.int64))


class Job(NamedTuple):
    """Checked arguments."""

    sde: SDE
    scheme: schemes.Scheme
    split: Any
    circulate: Any
    starts: np.ndarray
    times: tuple[float, float, int, bool]
    seed: int
    particles: int
    repeats: int
    window: tuple[int, int] | None
    """Steps left out and steps counted, to measure the flux."""
    target: StopRule
    source: StopRule


def checked(
    sde, y0, target, score, dt, seed, source, t0, t1, duration, particles, repeats, scheme, level, max_steps
) -> Job:
    """The checked arguments of `rare_exit`.

    Raises
    ------
    InvalidInput
        As for `rare_exit`.
    """
    refuse_other(sde, SDE, "sde")
    found = schemes.find(scheme, sde)
    for name, value, least in (
        ("particles", particles, _FEWEST),
        ("repeats", repeats, 2),
        ("max_steps", max_steps, 1),
    ):
        if wiener.checked_integer(name, value) < least:
            raise InvalidInput(f"{name}={value} is too few; give at least {least}")
    memory.require(
        16 * int(particles) * (sde.dimension + 4),
        f"particles={particles}",
        "use fewer particles and more repeats",
    )
    if not 0 < level < 1:
        raise InvalidInput(f"level={level!r} must lie between 0 and 1")
    if source is None and t1 is None:
        raise InvalidInput("source is missing: paths must end somewhere; give source, t1, or both")
    start_time, step, last = _checked_times(t0, t1, dt, max_steps)
    rows = len(y0) if np.ndim(y0) == 2 else 1
    starts = checked_start(sde, y0, rows)
    refuse_unstable_step(sde, starts, start_time, step, found)
    goal = region_rule(target, sde, "target")
    origin = _NOWHERE if source is None else region_rule(source, sde, "source")
    compiled_score = _checked_score(score, sde)
    in_target = met_at_start(goal, start_time, starts, sde.params)
    in_source = (
        np.zeros(rows, bool) if source is None else met_at_start(origin, start_time, starts, sde.params)
    )
    if in_target.any():
        raise InvalidInput(f"y0={starts[in_target][0].tolist()} lies in the target already; start outside it")
    window = None
    if duration is not None:
        window = _checked_duration(sde, duration, step, start_time, t1, starts, in_source)
    elif in_source.any():
        raise InvalidInput(
            f"y0={starts[in_source][0].tolist()} lies in the source: give duration= for the rate of passages, "
            "or start outside the source for a probability"
        )
    _check_regions(score, goal, source, origin, sde, starts, start_time)
    split, circulate = excursions.compiled(
        schemes.stepper(found, sde, 1), origin.condition, goal.condition, compiled_score
    )
    if window is not None:  # a rate does not depend on where returns are seen
        origin = origin._replace(gaps=_NOWHERE.gaps, components=_NOWHERE.components)
    return Job(
        sde, found, split, circulate, starts, (start_time, step, last, t1 is not None),
        wiener.checked_seed(seed), int(particles), int(repeats), window, goal, origin,
    )  # fmt: skip


def _checked_times(t0: Any, t1: Any, dt: Any, max_steps: int) -> tuple[float, float, int]:
    """Start, step, and the step at which paths end."""
    if t1 is not None:
        return checked_steps(t0, t1, dt)
    for name, value in (("t0", t0), ("dt", dt)):
        if not isinstance(value, (int, float, np.number)) or not math.isfinite(value):
            raise InvalidInput(f"{name}={value!r} is not a finite time; give one")
    if not dt > 0:
        raise InvalidInput(f"dt={dt} must be positive")
    return float(t0), float(dt), int(max_steps)


def _checked_score(score: Any, sde: SDE) -> Any:
    """The compiled score, once it is known to return one number."""
    function = plain_function(score, "score")
    value = read_on_arrays(function, sde, "score")
    if isinstance(value, (tuple, list)):
        raise InvalidInput(
            "score must return one number, got a tuple; return a reaction coordinate such as y[0]"
        )
    if np.asarray(value).dtype.kind not in "fiu":
        raise InvalidInput(f"score returns {np.asarray(value).dtype} and no number; return one, such as y[0]")
    return _score(Keyed(purity_key(score, "score"), function))


@lru_cache(maxsize=256)
def _score(keyed: Keyed) -> Any:
    function = njit(error_model="numpy")(keyed.function)

    @njit(error_model="numpy")
    def score(t, y, p):
        return float(function(t, y, p, scalar))

    return score


def _checked_duration(sde, duration, dt, t0, t1, starts, in_source) -> tuple[int, int]:
    """The numbers of steps to leave out and to count."""
    if t1 is not None:
        raise InvalidInput("duration and t1 exclude each other: a rate knows no last time; leave one out")
    if not (isinstance(duration, (int, float, np.number)) and 10 * dt <= duration < math.inf):
        raise InvalidInput(f"duration={duration!r} must be a time of at least ten steps dt={dt:g}")
    if not in_source.all() or len(starts) > 1:
        raise InvalidInput(
            f"y0={starts[~in_source][:1].tolist() or starts.tolist()} must be one point inside the source when "
            "duration is given; move it there, or leave duration out for the probability from y0"
        )
    point = tuple(np.float64(v) for v in starts[0])
    now, later = (
        np.array([*sde.drift_at(t, point), *_flat(sde.diffusion_at(t, point))])
        for t in (t0, t0 + duration / 3)
    )
    if not np.array_equal(now, later):
        raise InvalidInput("the model depends on time, so it has no rate; leave duration out and give t1")
    counted = math.ceil(duration / dt)
    return math.ceil(counted / _BURN), counted


def _flat(rows: tuple[Any, ...]) -> list[Any]:
    return [value for row in rows for value in (row if isinstance(row, tuple) else (row,))]


def _check_regions(
    score: Any, target: StopRule, source: Any, origin: StopRule, sde: SDE, starts: np.ndarray, t0: float
) -> None:
    """Refuse regions that overlap, and scores that are constant or rise nowhere, at points drawn around y0."""
    function = plain_function(score, "score")
    rng = np.random.Generator(np.random.Philox(0))
    reach = 2.0 ** rng.uniform(-6, 6, (4096, 1)) * max(1.0, float(np.abs(starts).max()))
    points = starts[:1] + reach * rng.standard_normal((4096, sde.dimension))
    with np.errstate(all="ignore"):
        here = np.broadcast_to(np.asarray(function(t0, tuple(starts.T), sde.params, np), float), len(starts))
        there = np.broadcast_to(np.asarray(function(t0, tuple(points.T), sde.params, np), float), len(points))
        inside = met_at_start(target, t0, points, sde.params)
        both = (
            np.zeros_like(inside) if source is None else inside & met_at_start(origin, t0, points, sde.params)
        )
    if both.any():
        raise InvalidInput(
            f"source and target overlap, for example at {points[both][0].tolist()}; make them disjoint"
        )
    if not np.isfinite(here).all():
        place = starts[~np.isfinite(here)][0].tolist()
        raise InvalidInput(
            f"score is not finite at y0={place}; let it return a finite number outside the target"
        )
    if (there == there[0]).all() and (here == there[0]).all():
        raise InvalidInput(f"score is {here[0]:g} everywhere; let it rise from the source to the target")
    reached = there[inside & np.isfinite(there)]
    if reached.size and not reached.max() > here.min():
        raise InvalidInput(
            f"score does not rise towards the target: it is {here.min():g} at y0 and at most {reached.max():g} at "
            f"{reached.size} points of the target; reverse its sign?"
        )
