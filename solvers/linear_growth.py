"""Simulated growth of linear SDEs: Lyapunov exponents from paths, moment exponents from cloned populations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from solvers.cloning import choose_parents, log_mean
from solvers.linear_flow import WIDTH, begin, linear_flow, move, normalise
from solvers.wiener import crossing_uniforms, draw

_WORK = 2e7
"""Multiplications per call of a kernel: about a hundredth of a second, so that Ctrl-C is prompt."""
_SECOND = 1 << 40
"""First path of the populations of half the size."""


class Settings(NamedTuple):
    """Of a simulation.

    Attributes
    ----------
    seed : int
    dt : float
    pairs, burn : int
        Pairs of steps in all, and those left out at the start.
    paths, threads : int
    """

    seed: int
    dt: float
    pairs: int
    burn: int
    paths: int
    threads: int


class Growth(NamedTuple):
    """Rates of growth of each path after the burn-in.

    Attributes
    ----------
    rates : ndarray (paths, count)
        Largest first.
    halves : ndarray (paths, 2)
        Of the first exponent in the first and the second half of the time.
    coarse : ndarray (paths,)
        Of the first exponent with steps of twice the length on the same Brownian paths.
    """

    rates: np.ndarray
    halves: np.ndarray
    coarse: np.ndarray


@njit(nogil=True, error_model="numpy")
def _follow(flow, coarse, seed, path, window, states, logs, scratch):
    """Carry one block from pair window[0] to window[1], and its twin with steps of twice the length."""
    first, last, at_mark = window
    x, y = states
    x_logs, y_logs = logs
    term, moved, spare = scratch
    m = flow.orders.size
    even, odd, both = np.empty(m * WIDTH), np.empty(m * WIDTH), np.empty(m * WIDTH)
    scale = math.sqrt(flow.dt)
    for pair in range(first, last):
        for k in range(m):
            here = slice(k * WIDTH, (k + 1) * WIDTH)
            draw(seed, path, pair, k, scale, even[here], odd[here])
        move(flow, even, False, x, term, moved)
        move(flow, odd, True, x, term, moved)
        for i in range(both.size):
            both[i] = even[i] + odd[i]
        move(coarse, both, pair % 2 == 1, y, term, moved)
        if (pair + 1) % flow.pairs_per_norm == 0 or (at_mark and pair + 1 == last):
            normalise(x, flow.d, x_logs, spare)
            normalise(y, flow.d, y_logs, spare)


def growth(drift: np.ndarray, noises: np.ndarray, count: int, settings: Settings) -> Growth:
    """Follow `count` directions along independent paths.

    Parameters
    ----------
    drift, noises : ndarray
        A (d, d) and B (m, d, d) of the Ito equation.
    count : int
        Exponents, by Gram-Schmidt (Benettin et al. 1980, Meccanica 15, 9).
    settings : Settings
    """
    flow, coarse = linear_flow(drift, noises, settings.dt), linear_flow(drift, noises, 2 * settings.dt)
    d, m = len(drift), len(noises)
    middle = (settings.burn + settings.pairs) // 2
    marks = (settings.burn, middle, settings.pairs)
    work = WIDTH * count * (3 * d * d + 3 * sum(flow.orders) * d + 20) + WIDTH * m * 100
    leg = max(1, int(_WORK / work))

    def block(number: int, stopped: Callable[[], bool]) -> tuple[np.ndarray, np.ndarray]:
        states = np.empty(count * d * WIDTH), np.empty(d * WIDTH)
        logs = np.zeros(count * WIDTH), np.zeros(WIDTH)
        scratch = np.empty(d * WIDTH), np.empty(d * WIDTH), np.empty(WIDTH)
        seed, path = np.uint64(settings.seed), number * WIDTH
        begin(flow, seed, path, states[0], logs[0], scratch[2])
        begin(coarse, seed, path, states[1], logs[1], scratch[2])
        kept = []
        for window in _windows(marks, leg):
            if stopped():
                raise InterruptedError("the run was cancelled")
            _follow(flow, coarse, seed, path, window, states, logs, scratch)
            if window[2]:
                kept.append((logs[0].copy(), logs[1].copy()))
        fine = np.array([k[0].reshape(count, WIDTH).T for k in kept])
        return fine, np.array([k[1] for k in kept])

    blocks = _parallel(block, math.ceil(settings.paths / WIDTH), settings.threads)
    fine = np.concatenate([b[0] for b in blocks], axis=1)[:, : settings.paths]
    rough = np.concatenate([b[1] for b in blocks], axis=1)[:, : settings.paths]
    step = 2 * settings.dt
    halves = np.stack(
        [
            (fine[1] - fine[0])[:, 0] / ((middle - settings.burn) * step),
            (fine[2] - fine[1])[:, 0] / ((settings.pairs - middle) * step),
        ],
        axis=1,
    )
    time = (settings.pairs - settings.burn) * step
    return Growth((fine[2] - fine[0]) / time, halves, (rough[2] - rough[0]) / time)


def _parallel(task: Callable[[int, Callable[[], bool]], Any], count: int, threads: int) -> list[Any]:
    """Results of task(0), ..., task(count - 1), in order; on Ctrl-C, tasks end at their next leg."""
    if threads == 1 or count == 1:
        return [task(number, lambda: False) for number in range(count)]
    pool, cancelled = ThreadPoolExecutor(min(threads, count)), False
    try:
        return list(pool.map(lambda number: task(number, lambda: cancelled), range(count)))
    finally:
        cancelled = True
        pool.shutdown(wait=True, cancel_futures=True)


# ---- cloning -----------------------------------------------------------------------------------------------


@njit(nogil=True, error_model="numpy")
def _breed(flow, p, seed, path, window, x, logs, total):
    """Carry one population between pairs of steps; to ``total[0]`` adds the logs of its mean growth of |y|^p.

    ``logs`` holds log|y| of each clone since the last resampling. Resampling is systematic (Kitagawa 1996) and
    takes place when the effective number of clones falls under half.
    """
    first, last, at_mark = window
    m, blocks = flow.orders.size, x.shape[0]
    size = blocks * WIDTH
    even, odd = np.empty(m * WIDTH), np.empty(m * WIDTH)
    term, moved = np.empty(flow.d * WIDTH), np.empty(flow.d * WIDTH)
    scratch, weights, kept = np.empty(WIDTH), np.empty(size), np.empty_like(x)
    parents = np.empty(size, np.int64)
    scale = math.sqrt(flow.dt)
    for pair in range(first, last):
        check = (pair + 1) % flow.pairs_per_norm == 0 or (at_mark and pair + 1 == last)
        for b in range(blocks):
            for k in range(m):
                here = slice(k * WIDTH, (k + 1) * WIDTH)
                draw(seed, path + b * WIDTH, pair, k, scale, even[here], odd[here])
            move(flow, even, False, x[b], term, moved)
            move(flow, odd, True, x[b], term, moved)
            if check:
                normalise(x[b], flow.d, logs[b * WIDTH : (b + 1) * WIDTH], scratch)
        if not check:
            continue
        mark, _ = crossing_uniforms(seed, path, pair, 0)
        grown = choose_parents(logs, p, mark, weights, parents)
        if math.isnan(grown):
            continue
        total[0] += grown
        kept[:] = x
        for i in range(size):
            source = parents[i]
            for j in range(flow.d):
                x[i // WIDTH, j * WIDTH + i % WIDTH] = kept[source // WIDTH, j * WIDTH + source % WIDTH]
        for i in range(size):
            logs[i] = 0.0


def cloned_rates(
    drift: np.ndarray, noises: np.ndarray, p: float, populations: int, settings: Settings
) -> tuple[np.ndarray, np.ndarray, int]:
    """Growth rate of E|y|^p from each of independent populations of clones.

    Parameters
    ----------
    drift, noises : ndarray
        Of the Ito equation.
    p : float
    populations : int
    settings : Settings
        ``paths`` is the number of clones of all populations of full size; rounded up to blocks.

    Returns
    -------
    full, half : ndarray (populations,)
        From populations of the full size, and of half of it, on other Brownian paths.
    size : int
        Clones of a full population.
    """
    flow, d = linear_flow(drift, noises, settings.dt), len(drift)
    size = 2 * WIDTH * math.ceil(settings.paths / populations / (2 * WIDTH))
    work = WIDTH * (2 * d * d + 2 * sum(flow.orders) * d + 30) + WIDTH * len(noises) * 100

    def population(number: int, stopped: Callable[[], bool]) -> float:
        halved, which = divmod(number, populations)
        clones = size // 2 if halved else size
        path, seed = halved * _SECOND + which * size, np.uint64(settings.seed)
        x, logs, spare = np.empty((clones // WIDTH, d * WIDTH)), np.zeros(clones), np.empty(WIDTH)
        for b in range(len(x)):
            begin(flow, seed, path + b * WIDTH, x[b], logs[b * WIDTH : (b + 1) * WIDTH], spare)
        leg = max(
            flow.pairs_per_norm, int(_WORK / work / len(x)) // flow.pairs_per_norm * flow.pairs_per_norm
        )
        total, reached = np.zeros(1), []
        for window in _windows((settings.burn, settings.pairs), leg):
            if stopped():
                raise InterruptedError("the run was cancelled")
            _breed(flow, p, seed, path, window, x, logs, total)
            if window[2]:
                reached.append(total[0] + log_mean(p * logs))
        return (reached[-1] - reached[0]) / ((settings.pairs - settings.burn) * 2 * settings.dt)

    rates = np.array(_parallel(population, 2 * populations, settings.threads))
    return rates[:populations], rates[populations:], size


def _windows(marks: Sequence[int], leg: int) -> Iterator[tuple[int, int, bool]]:
    """(first, last, whether the last is a mark): legs from 0 to the last mark that end at every mark."""
    start = 0
    for mark in marks:
        for first in range(start, mark, leg):
            yield first, min(first + leg, mark), first + leg >= mark
        if start == mark:  # a mark at the start
            yield mark, mark, True
        start = mark


def mean_and_stderr(samples: np.ndarray) -> tuple[float, float]:
    """Of independent samples."""
    return float(samples.mean()), float(samples.std(ddof=1) / math.sqrt(len(samples)))
