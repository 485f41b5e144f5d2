"""What `simulate` was asked for: every argument checked and put into the form that the kernels take."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from solvers import schemes, wiener
from solvers.autocorrelation import Window, checked_window
from solvers.collecting import checked_statistics, require_memory
from solvers.errors import InvalidInput
from solvers.exit_times import StopRule
from solvers.grid import Grid
from solvers.model_forms import form_of
from solvers.path_store import checked_place
from solvers.quantiles import checked_levels
from solvers.sources import checked_increments
from solvers.stability import refuse_unstable_step

if TYPE_CHECKING:
    from solvers.sde import SDE
    from solvers.vector_form import VectorSDE

TITLE = "ensemble of SDE paths"
_ROUNDING = 1e-6


class Before(NamedTuple):
    """The paths of an earlier run that is continued."""

    diverged: np.ndarray
    exits: np.ndarray | None  # none if it had no stop condition
    increments: str | None

    def first(self, count: int) -> Before:
        """The first paths alone."""
        exits = None if self.exits is None else self.exits[:count]
        return self._replace(diverged=self.diverged[:count], exits=exits)


# variables of a run beside those that no axis of a grid may be named after
_RUN_NAMES = frozenset(
    [
        "autocorrelation",
        "autocorrelation_stderr",
        "autocovariance",
        "autocovariance_stderr",
        "kurtosis",
        "lag",
    ]
    + ["maximum", "mean_stderr", "minimum", "q", "quantile", "quantile_error", "skewness"]
    + [
        f"{mean}step_{end}imum{error}"
        for mean in ("", "mean_")
        for end in ("max", "min")
        for error in ("", "_stderr")
    ]
    + [f"mean_{end}imum{error}" for end in ("max", "min") for error in ("", "_stderr")]
)


@dataclass(frozen=True)
class Request:
    """The checked arguments of `simulate`.

    Attributes
    ----------
    sde : SDE or VectorSDE
        In the convention of the scheme.
    start : ndarray (1, d) or (paths, d)
    scheme_reason : str or None
        Why scheme="auto" chose it.
    first_step, last_step : int
        Numbers of the steps that the run begins and ends with, counted from t0.
    saves : ndarray of int
        Steps at which results are taken.
    times : ndarray
        Their times.
    save_paths : bool or Path
        A path: the store to which they go.
    levels : tuple of float
        Of the quantiles.
    window : Window or None
        Of the autocorrelation.
    before : Before or None
        What happened to the paths in the run that this one continues.
    """

    sde: Any
    scheme: schemes.Scheme
    scheme_reason: str | None
    resolution: int
    increments: Any
    start: np.ndarray
    t0: float
    dt: float
    first_step: int
    last_step: int
    paths: int
    seed: int
    saves: np.ndarray
    times: np.ndarray
    statistics: tuple[str, ...]
    save_paths: bool | Path
    grid: Any
    levels: tuple[float, ...]
    window: Window | None
    stop: StopRule | None
    threads: int
    chunk: int | None
    before: Before | None

    @property
    def steps(self) -> int:
        """How many steps there are to take."""
        return self.last_step - self.first_step

    @property
    def to_store(self) -> bool:
        """Whether the paths go to a store and not to memory."""
        return isinstance(self.save_paths, Path)

    @property
    def pairs(self) -> bool:
        """Whether products of different components are summed."""
        return "covariance" in self.statistics

    @property
    def sums(self) -> int:
        """How many sums of squares and products are kept per saved time."""
        d = self.sde.dimension
        if not {"variance", "covariance"} & set(self.statistics):
            return d  # cheap, and one kernel serves all
        return d * (d + 1) // 2 if self.pairs else d


def checked(
    sde: Any,
    y0: Any,
    *,
    t0: float,
    t1: float,
    dt: float,
    paths: int,
    seed: int,
    scheme: str,
    resolution: int,
    increments: Any,
    save_at: Any,
    save_every: int | None,
    save_paths: bool | str | Path,
    statistics: Sequence[str] | str,
    histogram: Any,
    quantiles: Any,
    autocorrelation: Any,
    stop: Callable[..., Any] | None,
    threads: int | None,
    chunk: int | None,
    allow_unstable_step: bool,
    runs: int = 1,
) -> Request:
    """Check everything that can be checked before work begins; `runs` is how many such runs are held at once."""
    form = form_of(sde)
    if increments is not None:
        scheme = checked_increments(increments, scheme, sde.convention)
    found, reason = form.scheme(scheme, sde)
    counts = (("paths", paths), ("threads", threads), ("chunk", chunk), ("save_every", save_every))
    for name, value in counts:
        if value is not None and wiener.checked_integer(name, value) < 1:
            raise InvalidInput(f"{name}={value} must be at least 1")
    seed = wiener.checked_seed(seed)
    before, first_step = None, 0
    if isinstance(y0, xr.Dataset):
        t0, dt, first_step, y0, before = _continued(y0, sde, t0, dt, int(paths), seed, found.name, resolution)
    t0, dt, steps = checked_steps(t0, t1, dt)
    if steps <= first_step:
        raise InvalidInput(
            f"t1={t1} is not later than t={t0 + first_step * dt:.12g}, where the earlier run ended"
        )
    start = y0 if before is not None else checked_start(sde, y0, paths)
    if save_at is not None and save_every is not None:
        raise InvalidInput(f"save_at and save_every={save_every} are both given; give one of them")
    new = first_step + (before is not None)  # the end of an earlier run is in its own result
    if save_at is not None:
        saves = _checked_saves(save_at, t0, dt, new, steps)
    else:
        saves = np.arange(new, steps + 1, save_every or 1)
        if saves[-1] != steps:
            saves = np.append(saves, steps)
    statistics = checked_statistics(statistics, stop)
    form.refuse_beyond(sde, histogram, statistics)
    if found.strong is None and stop is not None:
        raise InvalidInput(
            f"stop asks where single paths go, and {found.name!r} has the right distribution only at the ends of "
            "steps; use another scheme, such as 'euler-maruyama'"
        )
    if histogram is not None:
        refuse_other(histogram, Grid, "histogram")
    if histogram is not None and tuple(histogram.names) != sde.names:
        raise InvalidInput(
            f"histogram has axes {tuple(histogram.names)}, but the SDE has components {sde.names}"
        )
    if histogram is not None and not _RUN_NAMES.isdisjoint(histogram.names):
        taken = next(name for name in histogram.names if name in _RUN_NAMES)
        raise InvalidInput(
            f"axis {taken!r} of the histogram has the name of a variable of a run, which a dataset cannot hold beside "
            f"it; call the component something else"
        )
    if not allow_unstable_step:
        refuse_unstable_step(sde, start[: form.probes], t0, dt, found)
    request = Request(
        sde=sde.to(found.convention),
        scheme=found,
        scheme_reason=reason,
        resolution=resolution,
        increments=increments,
        start=start,
        t0=t0,
        dt=dt,
        first_step=first_step,
        last_step=steps,
        paths=int(paths),
        seed=seed,
        saves=saves.astype(np.int64),
        times=np.where(saves == steps, t1, t0 + saves * dt),
        statistics=statistics,
        save_paths=checked_place(save_paths),
        grid=histogram,
        levels=checked_levels(quantiles),
        window=checked_window(
            autocorrelation, t0=t0, dt=dt, first_step=first_step, last_step=steps, paths=int(paths)
        ),
        stop=None if stop is None else form.stop_rule(stop, sde, bridge=increments is None),
        threads=available_cores() if threads is None else int(threads),
        chunk=None if chunk is None else int(chunk),
        before=before,
    )
    require_memory(request, runs)
    return request


def refuse_other(value: Any, kind: type, name: str) -> None:
    """Refuse an argument of another type."""
    if not isinstance(value, kind):
        raise InvalidInput(f"{name} is a {type(value).__name__}; pass a solvers.{kind.__name__}")


def checked_steps(t0: float, t1: float, dt: float) -> tuple[float, float, int]:
    """The times as floats and the number of steps, which must be whole."""
    for name, value in (("t0", t0), ("t1", t1), ("dt", dt)):
        if not isinstance(value, (int, float, np.number)) or not math.isfinite(value):
            raise InvalidInput(f"{name}={value!r} is not a finite time; give one")
    if not dt > 0:
        raise InvalidInput(f"dt={dt} must be positive")
    if not t1 > t0:
        raise InvalidInput(f"t1={t1} must be later than t0={t0}")
    ratio = (t1 - t0) / dt
    steps = max(round(ratio), 1)
    if abs(ratio - steps) > _ROUNDING * max(1.0, ratio * 1e-6):
        raise InvalidInput(
            f"dt={dt} does not divide the time from t0={t0} to t1={t1}; the nearest step that does is "
            f"{(t1 - t0) / steps!r} ({steps} steps)"
        )
    # dt itself where it fits to rounding, so that a run and its continuation take the same steps.
    fits = abs(t0 + steps * dt - t1) <= 8 * np.finfo(float).eps * max(abs(t0), abs(t1))
    return float(t0), float(dt) if fits else (float(t1) - float(t0)) / steps, steps


def _numbers(name: str, value: Any) -> np.ndarray:
    try:
        if not np.iscomplexobj(value):
            return np.asarray(value, dtype=float)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{name}={value!r} is not made of numbers; give real numbers") from error
    raise InvalidInput(f"{name}={value!r} is complex; give real numbers")


def checked_start(sde: SDE | VectorSDE, y0: Any, paths: int) -> np.ndarray:
    """The start as an array (1, d) or (paths, d) of finite floats."""
    d = sde.dimension
    start = _numbers("y0", y0)
    if start.ndim == 0 and d == 1:
        start = start.reshape(1, 1)
    elif start.shape == (d,):
        start = start.reshape(1, d)
    elif start.shape != (paths, d):
        scalar = "a number, " if d == 1 else ""
        raise InvalidInput(
            f"y0 has shape {start.shape}; give {scalar}shape ({d},) for one start or "
            f"({paths}, {d}) for one per path"
        )
    if not np.isfinite(start).all():
        bad = np.argwhere(~np.isfinite(start))[0]
        raise InvalidInput(
            f"y0 is {start[tuple(bad)]} in component {sde.names[bad[1]]!r}; give finite starting values"
        )
    return np.ascontiguousarray(start)


def _checked_saves(save_at: Any, t0: float, dt: float, first: int, steps: int) -> np.ndarray:
    times = np.atleast_1d(_numbers("save_at", save_at))
    if times.ndim != 1 or times.size == 0 or not np.isfinite(times).all():
        raise InvalidInput("save_at must be a non-empty list of finite times, or None for every step")
    if (np.diff(times) <= 0).any():
        raise InvalidInput("save_at must increase; sort it and remove repeated times")
    position = (times - t0) / dt
    saves = np.rint(position)
    outside = (saves < first) | (saves > steps)
    if outside.any():
        raise InvalidInput(
            f"save_at contains {times[outside][0]}, outside the run from {t0 + first * dt:.12g} to "
            f"{t0 + steps * dt:.12g}"
        )
    off = np.abs(position - saves) > _ROUNDING * np.maximum(1.0, np.abs(position) * 1e-6)
    if off.any():
        low = math.floor(position[off][0])
        raise InvalidInput(
            f"save_at contains {times[off][0]}, which is not on the step grid; the nearest times are "
            f"{t0 + low * dt:.12g} and {t0 + (low + 1) * dt:.12g}"
        )
    return saves.astype(np.int64)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _continued(
    earlier: xr.Dataset, sde: SDE, t0: float, dt: float, paths: int, seed: int, scheme: str, resolution: int
) -> tuple[float, float, int, np.ndarray, Before]:
    """t0, dt, number of steps, end state and fate of the paths of the run that y0 is the result of."""
    told = earlier.attrs
    if told.get("title") != TITLE or "final" not in earlier:
        raise InvalidInput("y0 is a dataset, but no result of simulate with `final`; give one, or an array")
    same = {
        "seed": (str(told["seed"]), str(seed)),
        "paths": (int(told["paths"]), paths),
        "scheme": (told["scheme"], scheme),
        "resolution": (int(told.get("normal_resolution_bits", resolution)), resolution),
        "components": (tuple(str(n) for n in earlier["component"].values), sde.names),
    }
    for name, (then, now) in same.items():
        if then != now:
            raise InvalidInput(
                f"{name} is {now!r}, but the run that y0 continues had {then!r}; give the same"
            )
    used = float(told["dt"])
    if abs(used - dt) > _ROUNDING * used:
        raise InvalidInput(f"dt is {dt!r}, but the run that y0 continues had {used!r}; give the same")
    if t0 not in {0.0, float(told["t0"])}:
        raise InvalidInput(f"t0={t0}, but the run that y0 continues began at {told['t0']}; leave t0 out")
    start, steps = float(told["t0"]), int(told["steps"])
    diverged = np.full(paths, -1, dtype=np.int64)
    if "divergence_time" in earlier:
        bad = earlier["diverged"].values.astype(bool)
        diverged[bad] = np.rint((earlier["divergence_time"].values[bad] - start) / used)
    exits = np.array(earlier["exit_time"].values, dtype=float) if "exit_time" in earlier else None
    state = np.ascontiguousarray(earlier["final"].transpose("path", "component").values, dtype=float)
    return start, used, steps, state, Before(diverged, exits, told.get("increments"))
