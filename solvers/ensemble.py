"""simulate(): ensembles of SDE paths with streaming statistics, on any number of threads, bit for bit."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from solvers import schemes
from solvers import statistics as results
from solvers.exit_times import met_at_start
from solvers.kernels import advancing, advancing_until, run_blocks
from solvers.request import Request, checked
from solvers.wiener import BLOCK

if TYPE_CHECKING:
    from solvers.sde import SDE

_WORK = 1 << 23
"""Component-steps per call of the kernel: under a tenth of a second, so that Ctrl-C is prompt."""
_PARTIAL = 1 << 25
"""Bytes of unmerged statistics per task."""


def simulate(
    sde: SDE,
    y0: Any,
    *,
    t1: float,
    dt: float,
    paths: int,
    seed: int,
    t0: float = 0.0,
    scheme: str = "euler-maruyama",
    save_at: Any = None,
    save_paths: bool = False,
    statistics: Sequence[str] | str = ("mean", "variance"),
    histogram: Any = None,
    stop: Callable[..., Any] | None = None,
    threads: int | None = None,
    chunk: int | None = None,
    progress: Callable[[float], Any] | None = None,
    allow_unstable_step: bool = False,
) -> xr.Dataset:
    """Simulate many paths of an SDE and keep statistics of them.

    Parameters
    ----------
    sde : SDE
        In any convention; converted exactly to the one the scheme converges to.
    y0 : float or array
        Start: a number (d = 1), shape (d,), or shape (paths, d).
    t1, t0, dt : float
        End, start and step; dt must divide t1 - t0.
    paths : int
        How many.
    seed : int
        0 <= seed < 2^64. Path k at a seed has the same bits for any number of paths, threads and chunks.
    scheme : str
        "euler-maruyama" (Ito; strong order 0.5, 1.0 for additive noise; weak 1.0) or "heun" (Stratonovich;
        strong 0.5, 1.0 for commutative noise; weak 1.0).
    save_at : array of float, optional
        Times on the step grid at which results are kept; every step, t0 included, if not given.
    save_paths : bool
        Keep ``state(path, time, component)``.
    statistics : sequence of {"mean", "variance", "covariance"}
        Computed while running, over all paths, diverged ones included; (co)variances are divided by the
        number of paths.
    histogram : Grid, optional
        Axes named as the components: keep ``density(time, *names)`` and ``outside(time)``, the fraction of
        paths off the grid.
    stop : callable, optional
        ``stop(t, y, p, xp)`` -> bool: a path for which it holds is frozen where it is, and counted so in all
        later statistics. If the condition sets levels for single components (``y[0] > 1``,
        ``xp.abs(y[0]) > p.a``, joined by ``|``), exits inside a step are found by a Brownian bridge and the
        path is frozen on the level; else it is frozen at the end of the step.
    threads : int, optional
        All cores of the process if not given.
    chunk : int, optional
        Paths per task, rounded up to blocks of 256; chosen by size if not given. Changes no bit.
    progress : callable, optional
        Called now and then, from the calling thread, with the finished fraction in [0, 1].
    allow_unstable_step : bool
        Run even if dt amplifies a mode that the drift damps: Euler-Maruyama with dt equal to the learning
        rate is gradient descent beyond its edge.

    Returns
    -------
    Dataset
        Coordinates time, component, path. ``mean``, ``variance`` (time, component), ``covariance`` (time,
        component, component2), as asked; ``final`` (path, component); ``diverged`` (path); and as asked
        ``state``, ``density``, ``outside``, ``exit_time`` (nan if not met) and ``exited`` (path).

    Raises
    ------
    InvalidInput
        If an argument cannot be used, dt is too large for the drift, or the result would not fit in memory.

    Warns
    -----
    AccuracyWarning
        If paths diverged.

    Examples
    --------
    >>> ou = SDE(lambda t, y, p, xp: (-y[0],), lambda t, y, p, xp: (1.0,), convention="ito")
    >>> float(simulate(ou, 0.0, t1=5.0, dt=0.01, paths=100_000, seed=1)["variance"][-1, 0])
    0.50...
    """
    request = checked(
        sde,
        y0,
        t0=t0,
        t1=t1,
        dt=dt,
        paths=paths,
        seed=seed,
        scheme=scheme,
        save_at=save_at,
        save_paths=save_paths,
        statistics=statistics,
        histogram=histogram,
        stop=stop,
        threads=threads,
        chunk=chunk,
        allow_unstable_step=allow_unstable_step,
    )
    return _Run(request, progress).result(sde.convention)


class _Part(NamedTuple):
    """Consecutive paths: what one task returns."""

    first: int
    paths: int
    mean: np.ndarray
    second: np.ndarray


class _Run:
    """One ensemble: the arrays of its results and the tasks that fill them."""

    def __init__(self, request: Request, progress: Callable[[float], Any] | None):
        self.request, self.progress = request, progress
        sde, d, times = request.sde, request.sde.dimension, request.saves.size
        p = sde.params
        model = (schemes.stepper(request.scheme, sde, BLOCK), type(p), len(p))
        self.parameters = np.array(p, dtype=float)
        if request.stop is None:
            self.advance = advancing(*model)
        else:
            self.advance = advancing_until(*model, request.stop.condition)
        self.final = np.empty((request.paths, d))
        self.diverged = np.full(request.paths, -1, dtype=np.int64)
        self.exits = np.full(request.paths, np.nan)
        self.states = np.empty((request.paths if request.save_paths else 0, times, d))
        self.moments = results.Moments(times, d, request.pairs)
        self.cancelled = threading.Event()
        self.histograms = _Histograms(request)

    def result(self, convention: str) -> xr.Dataset:
        """Run everything and assemble the dataset."""
        request = self.request
        chunk = self._chunk()
        firsts = range(0, request.paths, chunk)
        for part in self._parts(firsts, chunk):
            for b in range(len(part.mean)):
                count = min(BLOCK, part.paths - b * BLOCK)
                self.moments.merge(part.mean[b], part.second[b], count)
            if self.progress is not None:
                self.progress((part.first + part.paths) / request.paths)
        return results.dataset(
            request,
            convention=convention,
            moments=self.moments,
            final=self.final,
            diverged=self.diverged,
            states=self.states,
            counts=None if request.grid is None else self.histograms.total(),
            exits=None if request.stop is None else self.exits,
        )

    def _chunk(self) -> int:
        """Paths per task, a multiple of the block width."""
        request, d = self.request, self.request.sde.dimension
        if request.chunk is not None:
            return math.ceil(request.chunk / BLOCK) * BLOCK
        blocks = math.ceil(request.paths / BLOCK)
        by_work = _WORK // (BLOCK * d * request.steps)
        by_memory = _PARTIAL // (8 * request.saves.size * (d + request.sums))
        by_threads = math.ceil(blocks / request.threads)
        return max(1, min(by_work, by_memory, by_threads)) * BLOCK

    def _parts(self, firsts: range, chunk: int) -> Iterator[_Part]:
        """Finished parts in the order of their paths."""
        threads = min(self.request.threads, len(firsts))
        if threads == 1:
            for first in firsts:
                yield self._part(first, chunk)
            return
        pool = ThreadPoolExecutor(threads)
        waiting: deque[Any] = deque()
        try:
            for first in firsts:
                waiting.append(pool.submit(self._part, first, chunk))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # also on Ctrl-C: running tasks notice within one call of the kernel
            self.cancelled.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def _part(self, first: int, chunk: int) -> _Part:
        request, d, times = self.request, self.request.sde.dimension, self.request.saves.size
        count = min(chunk, request.paths - first)
        blocks = math.ceil(count / BLOCK)
        x = _blocks(request.start, first, count, blocks)
        kept = blocks if request.statistics else 0
        mean, second = np.empty((kept, times, d)), np.empty((kept, times, request.sums))
        diverged = np.full(blocks * BLOCK, -1, dtype=np.int64)
        exits = np.full(blocks * BLOCK, np.nan)
        states = self.states[first : first + count]
        gaps, gap_components = np.empty((0, 2)), np.empty(0, dtype=np.int64)
        if request.stop is not None:
            gaps, gap_components = request.stop.gaps, request.stop.components
            here = request.start if len(request.start) == 1 else request.start[first : first + count]
            met = met_at_start(request.stop, request.t0, here, request.sde.params)
            exits[:count] = np.where(met, request.t0, np.nan)
        with self.histograms.borrowed() as counts:
            leg = 2 * max(1, _WORK // (2 * blocks * BLOCK * d))  # even: normals come in pairs of steps
            for step in range(0, request.steps, leg):
                if self.cancelled.is_set():
                    raise InterruptedError("the run was cancelled")
                # A step where a leg ends is saved by that leg; only the start has none before it.
                first_save = int(np.searchsorted(request.saves, step, side="right" if step else "left"))
                run_blocks(
                    self.advance,
                    self.parameters,
                    np.uint64(request.seed),
                    (request.t0, request.dt),
                    (first, request.paths, step, min(step + leg, request.steps), first_save),
                    request.sde.noise_dimension,
                    request.saves,
                    x,
                    (request.pairs, mean, second),
                    states,
                    (self.histograms.edges, self.histograms.offsets, counts),
                    (diverged, exits, gaps, gap_components),
                )
        here = slice(first, first + count)
        self.final[here] = x.reshape(blocks, d, BLOCK).transpose(0, 2, 1).reshape(-1, d)[:count]
        self.diverged[here], self.exits[here] = diverged[:count], exits[:count]
        return _Part(first, count, mean, second)


class _Histograms:
    """Counts, one array per task that runs at the same time; integers, so that the sum has no order."""

    def __init__(self, request: Request):
        grid = request.grid
        self._shape = (0, 1) if grid is None else (request.saves.size, math.prod(grid.shape))
        axes = [] if grid is None else [np.asarray(grid.edges[name], dtype=float) for name in grid.names]
        self.edges = np.concatenate([*axes, np.empty(0)])
        self.offsets = np.cumsum([0, *(axis.size for axis in axes)])
        self._idle: deque[np.ndarray] = deque()

    def borrowed(self) -> _Borrowed:
        """An array of counts for one task, in a `with` statement."""
        return _Borrowed(self._idle, self._shape)

    def total(self) -> np.ndarray:
        """All counts."""
        return sum(self._idle, np.zeros(self._shape, dtype=np.int64))


class _Borrowed:
    def __init__(self, idle: deque[np.ndarray], shape: tuple[int, int]):
        self._idle = idle
        self._counts = idle.pop() if idle else np.zeros(shape, dtype=np.int64)

    def __enter__(self) -> np.ndarray:
        return self._counts

    def __exit__(self, *exception: object) -> None:
        self._idle.append(self._counts)


def _blocks(start: np.ndarray, first: int, count: int, blocks: int) -> np.ndarray:
    """The starting state in block layout; padding repeats the last path."""
    d = start.shape[1]
    rows = np.minimum(np.arange(blocks * BLOCK), count - 1) + first
    state = start[rows] if len(start) > 1 else np.broadcast_to(start, (blocks * BLOCK, d))
    return np.ascontiguousarray(state.reshape(blocks, BLOCK, d).transpose(0, 2, 1)).reshape(blocks, d * BLOCK)
