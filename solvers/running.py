"""Running ensembles: paths cut into tasks, tasks spread over threads, their results merged in order."""

from __future__ import annotations

import math
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from solvers import memory
from solvers.collecting import blocks_per_task, in_kernel, observers
from solvers.errors import InvalidInput, PerformanceNotice
from solvers.kernels import run_blocks
from solvers.model_forms import form_of
from solvers.moments import Moments
from solvers.request import Request
from solvers.sde import SDE
from solvers.sources import NARROWEST, block_width, source
from solvers.vectorisation import explain

if TYPE_CHECKING:
    from solvers.path_store import PathStore

_WORK = 1 << 23
"""Component-steps per call of the kernel: some hundredths of a second, so that Ctrl-C is prompt."""
_PER_COUNT = 16
"""Component-steps per integer that a task counts, at least: merging the counts then costs little."""


class Part(NamedTuple):
    """Consecutive paths: what one task returns."""

    first: int
    paths: int
    mean: np.ndarray
    second: np.ndarray
    carried: tuple[np.ndarray, ...]
    sums: tuple[np.ndarray, ...]
    counts: tuple[np.ndarray, ...]
    states: np.ndarray


class Run:
    """One ensemble: the arrays of its results and the tasks that fill them.

    Attributes
    ----------
    done : int
        Paths whose results are merged.
    store : PathStore or None
        Takes the paths if they go to a file.
    """

    def __init__(self, request: Request):
        self.request = request
        sde, d, times = request.sde, request.sde.dimension, request.saves.size
        form = form_of(sde)
        draws = form.draws(request.scheme, sde)
        self.numbers = sum(draws)
        self.width = block_width(max(d, self.numbers), request.paths)
        if request.increments is None:
            self.source = source(draws, request.resolution, self.width)
        else:
            self.source = request.increments.source(self.numbers, self.width)
        told = self.source.about.get("increments")
        if request.before is not None and request.before.increments != told:
            raise InvalidInput(
                f"increments are {told or 'Gaussian'!r}, but the run that y0 continues had "
                f"{request.before.increments or 'Gaussian'!r}; give the same"
            )
        self.parameters = form.flat_parameters(sde)
        self.advance = form.advance(request.scheme, sde, request.stop, self.width, self.source.packing)
        # The notice tells how to write a component form; it is read from a loop, and LLVM unrolls short ones.
        if request.stop is None and isinstance(sde, SDE) and self.width > NARROWEST:
            _notice_once(self.advance)
        before = request.before
        self.final = np.empty((request.paths, d))
        self.diverged = (
            np.full(request.paths, -1, dtype=np.int64) if before is None else before.diverged.copy()
        )
        self.exits = None
        if request.stop is not None:
            told_exits = None if before is None else before.exits
            self.exits = np.full(request.paths, np.nan) if told_exits is None else told_exits.copy()
        kept = request.paths if request.save_paths and not request.to_store else 0
        self.states = np.empty((kept, times, d))
        self.moments = Moments(times, d, request.pairs)
        self.observers = observers(request)
        for observer in self.observers:
            observer.prepare(self)
        self.store: PathStore | None = None
        self.done = 0

    def tasks(self) -> Iterator[tuple[int, int]]:
        """First path and number of paths of each task still to do."""
        chunk = self.paths_per_task()
        for first in range(self.done, self.request.paths, chunk):
            yield first, min(chunk, self.request.paths - first)

    def paths_per_task(self) -> int:
        """A multiple of the block width."""
        request, d = self.request, self.request.sde.dimension
        blocks = blocks_per_task(request, self.observers, self.width)
        if request.chunk is None:
            counted = sum(math.prod(observer.counts) for observer in self.observers)
            by_work = max(_WORK, _PER_COUNT * counted) // (self.width * d * request.steps)
            by_threads = math.ceil(math.ceil(request.paths / self.width) / request.threads)
            blocks = max(1, min(by_work, blocks, by_threads))
        return blocks * self.width

    def work(self, first: int, count: int, cancelled: threading.Event) -> Part:
        """Carry `count` paths from `first` through all steps."""
        request, d, times = self.request, self.request.sde.dimension, self.request.saves.size
        blocks = math.ceil(count / self.width)
        x = _blocks(request.start, first, count, blocks, self.width)
        kept = blocks if in_kernel(request.statistics) else 0
        mean, second = np.empty((kept, times, d)), np.empty((kept, times, request.sums))
        here = slice(first, first + count)
        diverged, exits = (
            np.full(blocks * self.width, -1, dtype=np.int64),
            np.full(blocks * self.width, np.nan),
        )
        diverged[:count] = self.diverged[here]
        gaps, gap_components = np.empty((0, 2)), np.empty(0, dtype=np.int64)
        if request.stop is not None and self.exits is not None:
            gaps, gap_components = request.stop.gaps, request.stop.components
            exits[:count] = self.exits[here]
            if request.before is None or request.before.exits is None:
                start = request.start if len(request.start) == 1 else request.start[here]
                now = request.t0 + request.first_step * request.dt
                met = form_of(request.sde).met_at_start(request.stop, request.sde, now, start)
                exits[:count] = np.where(met, now, np.nan)
        states = np.empty((count, times, d)) if request.to_store else self.states[here]
        carried, sums, counts = self._observed(blocks, first)
        observations = self._watched(), self._passes(carried, sums, counts)
        source, space = self.source, self._space()
        leg = max(1, _WORK // (blocks * self.width * d))
        leg += leg % 2  # even: normals come in pairs of steps
        for step in range(request.first_step, request.last_step, leg):
            if cancelled.is_set():
                raise InterruptedError("the run was cancelled")
            # A step where a leg ends is saved by that leg; only the start has none before it.
            side = "right" if step > request.first_step else "left"
            run_blocks(
                self.advance.address,
                source.fill.address,
                self.parameters,
                np.uint64(request.seed),
                (request.t0, request.dt),
                (
                    first,
                    request.paths,
                    step,
                    min(step + leg, request.last_step),
                    int(np.searchsorted(request.saves, step, side=side)),
                ),
                (self.numbers, source.depth, source.table),
                request.saves,
                x,
                (request.pairs, mean, second),
                states,
                (diverged, exits, gaps, gap_components),
                observations,
                space,
            )
        self.final[here] = x.reshape(blocks, d, self.width).transpose(0, 2, 1).reshape(-1, d)[:count]
        self.diverged[here] = diverged[:count]
        if self.exits is not None:
            self.exits[here] = exits[:count]
        return Part(first, count, mean, second, carried, sums, counts, states)

    def _space(self) -> tuple[np.ndarray, ...]:
        """What the kernel works in: random numbers in two precisions, the source's words, a padded block."""
        numbers = self.source.depth * self.numbers * self.width
        # A source fills one of the two; both have the full size, since the kernel is not told which.
        made = memory.aligned(numbers), memory.aligned(numbers, np.float32)
        padded = self.request.sde.dimension * self.width
        return *made, memory.aligned(self.source.words, np.uint64), memory.aligned(padded)

    def _watched(self) -> int:
        """0: no observers, 1: some at saved steps, 2: some at every step."""
        return 0 if not self.observers else 2 if any(o.every_step for o in self.observers) else 1

    def _observed(self, blocks: int, first: int) -> tuple[tuple[np.ndarray, ...], ...]:
        """The arrays that observers fill in one task: carried, sums, counts."""
        carried = tuple(np.zeros((blocks, o.carried, self.width)) for o in self.observers)
        for observer, rows in zip(self.observers, carried, strict=True):
            observer.begin(rows, first)
        return (
            carried,
            tuple(np.zeros((blocks, *o.sums)) for o in self.observers),
            tuple(np.zeros(o.counts, dtype=np.int64) for o in self.observers),
        )

    def _passes(self, carried: Any, sums: Any, counts: Any) -> np.ndarray:
        """Addresses, strides and sizes as `run_blocks` takes them."""
        rows = [
            (
                *(observer.observe.address, c.ctypes.data, c.strides[0], c.shape[1]),
                *(s.ctypes.data, s.strides[0], *s.shape[1:]),
                *(n.ctypes.data, *n.shape),
                *(observer.settings.ctypes.data, observer.settings.size),
            )
            for observer, c, s, n in zip(self.observers, carried, sums, counts, strict=True)
        ]
        return np.array(rows, dtype=np.int64).reshape(-1, 13)

    def take(self, part: Part) -> None:
        """Merge the next part; parts come in the order of their paths."""
        if self.store is not None:
            self.store.write(part.first, part.states)
        blocks = math.ceil(part.paths / self.width)
        sizes = np.minimum(self.width, part.paths - self.width * np.arange(blocks))
        if len(part.mean):
            self.moments.merge(part.mean, part.second, sizes)
        for k, observer in enumerate(self.observers):
            observer.merge(part.sums[k], sizes)
            observer.add_counts(part.counts[k])
            observer.keep(part.carried[k], part.first, part.paths)
        self.done = part.first + part.paths


@lru_cache(maxsize=256)
def _notice_once(advance: Any) -> None:
    """Say why a model is slow, the first time that it is run."""
    reason = explain(advance)
    if reason is not None:
        warnings.warn(reason, PerformanceNotice, stacklevel=4)


def execute(
    runs: Sequence[Run],
    threads: int,
    *,
    progress: Callable[[float], Any] | None = None,
    taken: Callable[[Run], Any] | None = None,
) -> None:
    """Do all the tasks of some runs and merge their parts in order.

    Parameters
    ----------
    runs : sequence of Run
    threads : int
    progress : callable, optional
        Called from this thread with the finished fraction.
    taken : callable, optional
        Called from this thread with the run, after each merged part.
    """
    tasks = [(run, first, count) for run in runs for first, count in run.tasks()]
    total = sum(run.request.paths for run in runs)
    done = sum(run.done for run in runs)
    for run, part in _parts(tasks, threads):
        run.take(part)
        done += part.paths
        if taken is not None:
            taken(run)
        if progress is not None:
            progress(done / total)


def _parts(tasks: list[tuple[Run, int, int]], threads: int) -> Iterator[tuple[Run, Part]]:
    """Finished parts in the order of the tasks."""
    cancelled = threading.Event()
    if min(threads, len(tasks)) <= 1:
        for run, first, count in tasks:
            yield run, run.work(first, count, cancelled)
        return
    pool = ThreadPoolExecutor(min(threads, len(tasks)))
    waiting: deque[Any] = deque()
    try:
        for run, first, count in tasks:
            waiting.append((run, pool.submit(run.work, first, count, cancelled)))
            if len(waiting) > threads:
                run, future = waiting.popleft()
                yield run, future.result()
        while waiting:
            run, future = waiting.popleft()
            yield run, future.result()
    finally:  # also on Ctrl-C: running tasks notice within one call of the kernel
        cancelled.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _blocks(start: np.ndarray, first: int, count: int, blocks: int, width: int) -> np.ndarray:
    """The starting state in block layout; padding repeats the last path."""
    d = start.shape[1]
    rows = np.minimum(np.arange(blocks * width), count - 1) + first
    state = start[rows] if len(start) > 1 else np.broadcast_to(start, (blocks * width, d))
    made = memory.aligned((blocks, d, width))
    made[:] = state.reshape(blocks, width, d).transpose(0, 2, 1)
    return made.reshape(blocks, d * width)
