"""What a run collects: the statistics there are, which observers they take, and the memory of it all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from solvers import memory
from solvers.autocorrelation import Autocorrelation
from solvers.errors import InvalidInput
from solvers.extremes import EXTREMES, Extremes, checked_extremes
from solvers.histogram import Histogram
from solvers.moments import SHAPES, Shape
from solvers.observers import Observer
from solvers.quantiles import Quantiles
from solvers.sources import WIDEST

if TYPE_CHECKING:
    from solvers.request import Request

STATISTICS = ("mean", "variance", "covariance", "mean_stderr", *SHAPES, *EXTREMES)
_CORE = STATISTICS[:4]
"""Those that the kernel itself sums."""
_PARTIAL = 1 << 25
"""Bytes of what one task collects, unless a single block collects more."""


def checked_statistics(asked: Any, stop: Any) -> tuple[str, ...]:
    """The names of statistics as a tuple.

    Raises
    ------
    InvalidInput
        If one does not exist or cannot be had with `stop`.
    """
    if not isinstance(asked, (str, Sequence)):
        raise InvalidInput(f"statistics={asked!r}; give some of {', '.join(STATISTICS)}")
    names = (asked,) if isinstance(asked, str) else tuple(asked)
    for name in names:
        if name not in STATISTICS:
            raise InvalidInput(f"statistics contains {name!r}; available: {', '.join(STATISTICS)}")
    checked_extremes(names, stop)
    return names


def observers(request: Request) -> list[Observer]:
    """New observers for one run."""
    d, saves = request.sde.dimension, request.saves.size
    found: list[Observer] = []
    if request.grid is not None:
        found.append(Histogram(request.grid, saves))
    for group in (SHAPES, EXTREMES[:2], EXTREMES[2:]):
        names = tuple(name for name in group if name in request.statistics)
        if names:
            found.append(Shape(names, saves, d) if group is SHAPES else Extremes(names, request))
    if request.window is not None:
        found.append(Autocorrelation(request.window, d))
    if request.levels:
        found.append(Quantiles(request.levels, request))
    return found


def in_kernel(statistics: Sequence[str]) -> bool:
    """Whether any of the statistics is summed by the kernel itself."""
    return any(name in _CORE for name in statistics)


def blocks_per_task(request: Request, collectors: Sequence[Observer], width: int) -> int:
    """How many blocks of paths a task may have for what it collects to stay small; at least one."""
    if request.chunk is not None:
        return math.ceil(request.chunk / width)
    return max(1, _PARTIAL // _block_bytes(request, collectors, width))


def _block_bytes(request: Request, collectors: Sequence[Observer], width: int) -> int:
    """Bytes that a task collects for each of its blocks."""
    d, times = request.sde.dimension, request.saves.size
    size = times * (d + request.sums) if in_kernel(request.statistics) else 0
    size += sum(math.prod(observer.sums) + width * observer.carried for observer in collectors)
    size += width * times * d if request.to_store else 0
    return max(1, 8 * size)


def require_memory(request: Request, runs: int = 1) -> None:
    """Refuse a request that would not fit when `runs` such runs are held at once.

    Raises
    ------
    InvalidInput
        Naming what takes the memory, and the remedy.
    """
    d, times, paths = request.sde.dimension, request.saves.size, request.paths
    tasks = request.threads + 2
    fewer_times = "give fewer times in save_at"
    paths *= runs
    per_path = 8 * d + 8 + 1 + (9 if request.stop is not None else 0)  # final, diverged; exits
    per_path += 8 * d if len(request.start) > 1 else 0
    size = paths * per_path
    memory.require(size, f"paths={paths}", "use fewer paths")
    collectors = observers(request)
    blocks = min(blocks_per_task(request, collectors, WIDEST), math.ceil(request.paths / WIDEST))
    if in_kernel(request.statistics):
        size += 8 * times * (d + request.sums) * (tasks * blocks + runs)
        memory.require(size, f"keeping statistics at {times} times", fewer_times)
    if request.to_store:
        size += 8 * WIDEST * blocks * times * d * tasks
        memory.require(size, f"writing paths of {times} times, {WIDEST * blocks} at once", fewer_times)
    elif request.save_paths:
        size += 8 * paths * times * d
        memory.require(
            size,
            f"save_paths=True for {paths} paths at {times} times",
            f"{fewer_times} or fewer paths, or save_paths='paths.zarr' to keep them in a file",
        )
    for observer in collectors:
        per_block = 8 * (math.prod(observer.sums) + WIDEST * observer.carried)
        size += tasks * (blocks * per_block + 8 * math.prod(observer.counts)) + runs * observer.held
        memory.require(size, observer.purpose, observer.remedy)
