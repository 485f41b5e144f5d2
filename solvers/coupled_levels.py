"""The compiled kernel of multilevel Monte Carlo: a fine and a coarse path on the same Brownian increments."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from solvers import schemes
from solvers.schemes import FLAGS
from solvers.wiener import draw

WIDTH = 64
"""Paths per block; samples come in whole blocks."""

LEVEL_SHIFT = 40
"""Level l draws the paths l * 2^40 + 0, 1, 2, ... of the seed: no two levels share a random number."""

OVER = ("end", "mean", "max", "min")

_ROOT_THIRD = 1.0 / math.sqrt(3.0)
_WORK = 1 << 22
"""Steps of single paths per task: a few hundredths of a second, so that Ctrl-C is prompt."""
_SUMS = 7  # of one block or of many, see `_summarise`


class Tally(NamedTuple):
    """Merged statistics of one level's samples Y = P_fine - P_coarse (P_fine alone without a coarse path).

    Attributes
    ----------
    samples : int
    mean, variance, fourth : float
        Of Y: mean, variance (n - 1) and central fourth moment.
    fine_mean, fine_variance : float
        Of P_fine.
    failed : int
        Samples that are not finite.
    """

    samples: int
    mean: float
    variance: float
    fourth: float
    fine_mean: float
    fine_variance: float
    failed: int

    @property
    def kurtosis(self) -> float:
        """Fourth central moment over squared variance; 3 for constants."""
        return self.fourth / self.variance**2 if self.variance > 0 else 3.0


@lru_cache(maxsize=128)
def sampling(stepper: schemes.Stepper, observe: Any, over: str, antithetic: bool = False) -> Any:
    """The kernel ``sample(p, start, times, shape, seed, first_path, sums)``; see its comment for the arguments.

    The path functional `over` is f at the end, or the time average (trapezoidal rule), maximum or minimum of
    f over the steps of each path's own grid. With `antithetic` (refinement 2) P_fine is the mean over two fine
    paths, the second of which takes the increments of each pair of steps in reverse order: Levy areas that
    the scheme leaves out then cancel to leading order (Giles and Szpruch 2014, Ann. Appl. Probab. 24, 1585).
    """
    step, ops = stepper.step, stepper.ops
    load, load_noise, store = ops.load, ops.load_noise, ops.store
    d, m, draws = stepper.model.d, stepper.model.m, sum(stepper.draws)
    with_areas = draws == 2 * m

    @njit(fastmath=FLAGS, error_model="numpy", forceinline=True)
    def gather(t, x, p, weight, acc):
        for i in range(WIDTH):
            value = observe(t, load(x, i), p)
            if over == "mean":
                acc[i] += weight * value
            elif over == "max":
                acc[i] = value if value > acc[i] or value != value else acc[i]
            elif over == "min":
                acc[i] = value if value < acc[i] or value != value else acc[i]
            else:
                acc[i] = value

    @njit(fastmath=FLAGS, error_model="numpy", forceinline=True)
    def begin(t, x, start, p, dt, acc):
        for j in range(d):
            for i in range(WIDTH):
                x[j * WIDTH + i] = start[j]
        for i in range(WIDTH):
            value = observe(t, load(x, i), p)
            acc[i] = 0.5 * dt * value if over == "mean" else value

    @njit(fastmath=FLAGS, error_model="numpy", forceinline=True)
    def advance(t, dt, x, dw, p):
        for i in range(WIDTH):
            store(x, i, step(p, t, dt, load(x, i), load_noise(dw, i)))

    @njit(nogil=True, fastmath=FLAGS, error_model="numpy")
    def sample(p, start, times, shape, seed, first_path, sums):
        # times = (t0, t1); shape = (fine steps, refinement, 1 if there is a coarse path); one row of sums a block
        t0, t1 = times
        steps, refinement, coupled = shape
        dt = (t1 - t0) / steps
        long = dt * refinement
        scale = math.sqrt(dt)
        fine, coarse = np.empty(d * WIDTH), np.empty(d * WIDTH)
        twin, g = np.empty(d * WIDTH if antithetic else 0), np.zeros(WIDTH)
        f, c, y = np.empty(WIDTH), np.zeros(WIDTH), np.empty(WIDTH)
        z, summed, area = np.empty(2 * draws * WIDTH), np.zeros(draws * WIDTH), np.zeros(m * WIDTH)
        for block in range(sums.shape[0]):
            path = first_path + block * WIDTH
            begin(t0, fine, start, p, dt, f)
            if coupled:
                begin(t0, coarse, start, p, long, c)
                if antithetic:
                    begin(t0, twin, start, p, dt, g)
            for k in range(steps):
                if k % 2 == 0:
                    for q in range(draws):
                        even = z[q * WIDTH : (q + 1) * WIDTH]
                        odd = z[(draws + q) * WIDTH : (draws + q + 1) * WIDTH]
                        draw(seed, path, k // 2, q, scale, even, odd)
                dw = z[(k % 2) * draws * WIDTH : (k % 2 + 1) * draws * WIDTH]
                advance(t0 + k * dt, dt, fine, dw, p)
                last = k + 1 == steps
                if over != "end" or last:
                    gather(t0 + (k + 1) * dt, fine, p, 0.5 * dt if last else dt, f)
                if coupled:
                    if antithetic:
                        other = (k + 1) % 2
                        swapped = z[other * draws * WIDTH : (other + 1) * draws * WIDTH]
                        advance(t0 + k * dt, dt, twin, swapped, p)
                        if over != "end" or last:
                            gather(t0 + (k + 1) * dt, twin, p, 0.5 * dt if last else dt, g)
                    if with_areas:
                        for i in range(m * WIDTH):
                            mean = 0.5 * (dw[i] + _ROOT_THIRD * dw[m * WIDTH + i])
                            area[i] += dt * (summed[i] + mean)
                    for i in range(m * WIDTH):
                        summed[i] += dw[i]
                    if (k + 1) % refinement == 0:
                        if with_areas:
                            for i in range(m * WIDTH):
                                summed[m * WIDTH + i] = (2.0 * area[i] / long - summed[i]) / _ROOT_THIRD
                            area[:] = 0.0
                        advance(t0 + (k + 1 - refinement) * dt, long, coarse, summed, p)
                        summed[:] = 0.0
                        if over != "end" or last:
                            gather(t0 + (k + 1) * dt, coarse, p, 0.5 * long if last else long, c)
            length = t1 - t0 if over == "mean" else 1.0
            for i in range(WIDTH):
                f[i] /= length
                y[i] = f[i]
                if coupled:
                    y[i] = (0.5 * (f[i] + g[i] / length) if antithetic else f[i]) - c[i] / length
            _summarise(y, f, sums[block])

    return sample


@njit(error_model="numpy")
def _summarise(y, f, row):
    """Count, mean, sums of the powers 2, 3, 4 of deviations, of y; mean and second of f; one block.

    Samples that are not finite are left out here and counted by the missing number: the caller refuses them.
    """
    count, mean, fine = 0, 0.0, 0.0
    for i in range(y.size):
        if np.isfinite(y[i]):
            count += 1
            mean += y[i]
            fine += f[i]
    row[:] = 0.0
    if count == 0:
        return
    mean /= count
    fine /= count
    for i in range(y.size):
        if np.isfinite(y[i]):
            u = y[i] - mean
            row[2] += u * u
            row[3] += u * u * u
            row[4] += u * u * u * u
            row[6] += (f[i] - fine) ** 2
    row[0], row[1], row[5] = count, mean, fine


@njit(error_model="numpy")
def _merge(total, rows):
    """Add blocks to a total, one after the other (Pebay 2008, Sandia report SAND2008-6212, eq. 3.1)."""
    for block in range(rows.shape[0]):
        row = rows[block]
        if row[0] == 0.0:
            continue
        na, nb = total[0], row[0]
        n = na + nb
        s = row[1] - total[1]
        s2 = s * s
        total[4] += (
            row[4]
            + s2 * s2 * na * nb * (na * na - na * nb + nb * nb) / (n * n * n)
            + 6.0 * s2 * (na * na * row[2] + nb * nb * total[2]) / (n * n)
            + 4.0 * s * (na * row[3] - nb * total[3]) / n
        )
        total[3] += (
            row[3] + s2 * s * na * nb * (na - nb) / (n * n) + 3.0 * s * (na * row[2] - nb * total[2]) / n
        )
        total[2] += row[2] + s2 * na * nb / n
        total[1] += s * nb / n
        shift = row[5] - total[5]
        total[6] += row[6] + shift * shift * na * nb / n
        total[5] += shift * nb / n
        total[0] = n


class Level:
    """One level: a grid of time steps, its coarser partner, and the statistics of the samples so far.

    Parameters
    ----------
    sample : kernel
        From `sampling`.
    number : int
        Enters the keys of the random numbers.
    steps, refinement : int
        Fine steps, and how many make a coarse one.
    coupled : bool
        Whether there is a coarse path.
    fine_paths : int
        Fine paths of a coupled sample: 2 if antithetic.
    """

    def __init__(
        self, sample: Any, number: int, steps: int, refinement: int, coupled: bool, fine_paths: int = 1
    ):
        self.number, self.steps, self.coupled = number, steps, coupled
        self._sample, self._refinement = sample, refinement
        self._total, self._drawn = np.zeros(_SUMS), 0
        self.unit_cost = fine_paths * steps + steps // refinement if coupled else steps

    @property
    def drawn(self) -> int:
        """Samples drawn, diverged ones included."""
        return self._drawn * WIDTH

    @property
    def cost(self) -> int:
        """Steps taken."""
        return self.drawn * self.unit_cost

    @property
    def tally(self) -> Tally:
        """Statistics of the samples so far."""
        n, mean, second, _, fourth, fine, fine_second = (float(v) for v in self._total)
        return Tally(
            int(n),
            mean,
            second / max(n - 1.0, 1.0),
            fourth / max(n, 1.0),
            fine,
            fine_second / max(n - 1.0, 1.0),
            self.drawn - int(n),
        )

    def tasks(self, samples: int) -> Iterator[tuple[int, int]]:
        """(first block, blocks) of what is missing to so many samples."""
        wanted = math.ceil(samples / WIDTH)
        size = max(1, _WORK // (WIDTH * self.unit_cost))
        for first in range(self._drawn, wanted, size):
            yield first, min(size, wanted - first)

    def run(self, model: tuple[Any, np.ndarray, tuple[float, float], int], first: int, blocks: int) -> Any:
        """The sums of some blocks; changes nothing, so that any thread may call it."""
        p, start, times, seed = model
        sums = np.empty((blocks, _SUMS))
        shape = (self.steps, self._refinement, int(self.coupled))
        path = (self.number << LEVEL_SHIFT) + first * WIDTH
        self._sample(p, start, times, shape, np.uint64(seed), path, sums)
        return sums

    def add(self, sums: np.ndarray) -> None:
        """Merge the sums of the next blocks."""
        _merge(self._total, sums)
        self._drawn += len(sums)


class Workers:
    """Threads that fill levels with samples, merged in the order of the paths; use in a `with` statement."""

    def __init__(self, model: tuple[Any, np.ndarray, tuple[float, float], int], threads: int):
        self._model, self._threads = model, threads
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._cancelled = threading.Event()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:  # also on Ctrl-C: at most one task per thread is still to end
            self._cancelled.set()
            self._pool.shutdown(wait=True, cancel_futures=True)

    def fill(self, level: Level, samples: int, done: Callable[[int], Any]) -> None:
        """Draw what is missing to `samples` on a level; `done` hears of the steps taken."""
        tasks = list(level.tasks(samples))
        for sums in self._results(level, tasks):
            level.add(sums)
            done(len(sums) * WIDTH * level.unit_cost)

    def _results(self, level: Level, tasks: list[tuple[int, int]]) -> Iterator[np.ndarray]:
        if self._pool is None or len(tasks) == 1:
            for task in tasks:
                yield level.run(self._model, *task)
            return
        waiting: deque[Any] = deque()
        for task in tasks:
            waiting.append(self._pool.submit(self._guarded, level, task))
            if len(waiting) > self._threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _guarded(self, level: Level, task: tuple[int, int]) -> np.ndarray:
        if self._cancelled.is_set():
            raise InterruptedError("the run was cancelled")
        return level.run(self._model, *task)
