"""Products of the maps I - eta H_batch of SGD near an interpolating minimum: growth of copies, clones of populations.

Everything runs on the range of H, on the factors of `mean_square.Factors`: H_batch is the mean of A_i^T A_i over
the batch, so that a step costs 4 B c r multiplications.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numba import njit

from solvers import memory
from solvers.cloning import choose_parents, log_mean
from solvers.request import available_cores

CHUNK = 100
"""Steps between two notes of the growth."""
_COPIES, _START, _POPULATIONS = 0, 1, 2
"""Streams of the generator."""


class Sampling(NamedTuple):
    """How batches are drawn.

    Attributes
    ----------
    batch_size : int
    replacement : bool
    seed : int
    """

    batch_size: int
    replacement: bool
    seed: int

    def generator(self, stream: int, number: int) -> np.random.Generator:
        """One of many independent generators."""
        return np.random.Generator(
            np.random.Philox(np.random.SeedSequence(self.seed, spawn_key=(stream, number)))
        )


class CopyGrowth:
    """Logarithmic growth of independent copies, the same batches at every learning rate.

    Parameters
    ----------
    rows : array, shape (n, c, r)
        Factors of the per-example curvatures.
    sampling : Sampling
    copies : int
    """

    def __init__(self, rows: np.ndarray, sampling: Sampling, copies: int):
        self._rows, self._sampling = np.ascontiguousarray(rows), sampling
        memory.require(
            8 * copies * (CHUNK * sampling.batch_size + rows.shape[2]),
            f"batches of {sampling.batch_size} for {copies} copies",
            "lower copies",
        )
        start = sampling.generator(_START, 0).standard_normal((copies, rows.shape[2]))
        self._start = start / np.linalg.norm(start, axis=1, keepdims=True)

    def rates(self, eta: float, chunks: int, burn: int) -> np.ndarray:
        """Mean log growth per step of each copy, shape (copies,), over `chunks` of `CHUNK` steps after `burn`.

        -inf for a copy that has become exactly zero.
        """
        w = self._start.copy()
        total = np.zeros(len(w))
        with ThreadPoolExecutor(available_cores()) as pool:
            for chunk in range(chunks):
                batches = drawn_batches(
                    len(self._rows), self._sampling, self._sampling.generator(_COPIES, chunk), (len(w), CHUNK)
                )
                grown = pool.map(lambda b, v: _advance(self._rows, b, v, eta), batches, w)
                if chunk >= burn:
                    total += np.fromiter(grown, float, len(w))
                else:
                    list(grown)
        return total / ((chunks - burn) * CHUNK)


def drawn_batches(
    n: int, sampling: Sampling, generator: np.random.Generator, shape: tuple[int, int]
) -> np.ndarray:
    """Indices (copies, steps, B) of the examples in each batch."""
    size = sampling.batch_size
    if sampling.replacement or size == 1:
        return generator.integers(n, size=(*shape, size))
    chosen = np.empty((*shape, size), dtype=np.int64)
    _choose(chosen.reshape(-1, size), generator.random((math.prod(shape), size)), n)
    return chosen


@njit(nogil=True)
def _choose(chosen, uniforms, n):
    """Draw without replacement, Floyd's way, one batch per row."""
    steps, size = chosen.shape
    for k in range(steps):
        for i in range(size):
            last = n - size + i
            pick = min(int(uniforms[k, i] * (last + 1)), last)
            for j in range(i):
                if chosen[k, j] == pick:
                    pick = last
                    break
            chosen[k, i] = pick


@njit(nogil=True)
def _step(rows, batch, w, eta, projections):
    """W (r,) after one batch, normalised; the logarithm of its growth."""
    size, r = batch.size, w.size
    c = rows.shape[1]
    for b in range(size):
        for o in range(c):
            value = 0.0
            for i in range(r):
                value += rows[batch[b], o, i] * w[i]
            projections[b, o] = value * eta / size
    for b in range(size):
        for o in range(c):
            for i in range(r):
                w[i] -= projections[b, o] * rows[batch[b], o, i]
    norm = 0.0
    for i in range(r):
        norm += w[i] * w[i]
    norm = math.sqrt(norm)
    if norm == 0.0:
        return -np.inf
    for i in range(r):
        w[i] /= norm
    return math.log(norm)


@njit(nogil=True)
def _advance(rows, batches, w, eta):
    """Carry one copy through its batches; the logarithm of its growth."""
    projections = np.empty((batches.shape[1], rows.shape[1]))
    total = 0.0
    for k in range(batches.shape[0]):
        total += _step(rows, batches[k], w, eta, projections)
        if total == -np.inf:
            break
    return total


@njit(nogil=True)
def _breed(rows, batches, w, logs, eta, order, marks):
    """Carry a population (clones, r) through its batches (clones, steps, B); the logs of its mean growth.

    ``logs`` holds log|w| of each clone since the last resampling, which is systematic (Kitagawa 1996) and takes
    place when the effective number of clones falls under half.
    """
    clones, steps, size = batches.shape
    projections, kept, weights = np.empty((size, rows.shape[1])), np.empty_like(w), np.empty(clones)
    parents = np.empty(clones, np.int64)
    total = 0.0
    for k in range(steps):
        for i in range(clones):
            logs[i] += _step(rows, batches[i, k], w[i], eta, projections)
        grown = choose_parents(logs, order, marks[k], weights, parents)
        if math.isnan(grown):
            continue
        total += grown
        kept[:] = w
        for i in range(clones):
            w[i] = kept[parents[i]]
        logs[:] = 0.0
    return total


def population_rate(
    rows: np.ndarray, sampling: Sampling, number: int, eta: float, order: float, clones: int, chunks: int, burn: int
) -> float:  # fmt: skip
    """Growth of E|w|^order per step from one population of clones, over `chunks` of `CHUNK` steps after `burn`."""
    generator = sampling.generator(_POPULATIONS, number)
    w = generator.standard_normal((clones, rows.shape[2]))
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    logs, total, before = np.zeros(clones), 0.0, 0.0
    for chunk in range(chunks):
        if chunk == burn:
            before = total + log_mean(order * logs)
        batches = drawn_batches(len(rows), sampling, generator, (clones, CHUNK))
        total += _breed(rows, batches, w, logs, eta, order, generator.random(CHUNK))
    return (total + log_mean(order * logs) - before) / ((chunks - burn) * CHUNK)
