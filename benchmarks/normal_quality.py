"""The quality of the normals of `simulate` at sizes that tests cannot afford; test_normals.py runs it small.

    python benchmarks/normal_quality.py [--normals 1e10] [--resolution 32 53] [--threads 2] [--seed 1]

Moments to the sixth (of all the normals), chi-square over some 1500 cells (of a tenth), Kolmogorov-Smirnov at 12
neighbouring seeds, and correlations of z, of z^2 and of single bits of the words behind, between numbers that a
weak generator confuses: neighbouring steps, paths, components, seeds, and sums of such shifts that leave counter
plus key as they are. Everything is a standard score or a p-value; the last line counts scores beyond 5 (false
alarms: 6e-7 each) and p-values below 1e-4. Negative controls must fail: normals 1e-3 too wide, steps correlated
by 1e-3, words of the generator without mixed keys (in test_normals.py).

Found at seed 1 with 1e10 normals (cells and lags 1e9, 12 x 1e7 for Kolmogorov-Smirnov, shifts 1e8 each):

    32 bits: moments 1 to 6 off by 1.2, -1.7, 1.7, -1.6, 1.5, -1.1 standard errors; chi-square p = 0.55; the
             12 p-values 0.21 to 0.93; of 690 scores the largest 3.95 (a chance of 5 %)
    53 bits: moments 1.5, -0.6, 1.7, -0.7, 0.4, 0.1; p = 0.48; p-values 0.04 to 0.82; largest score 3.58
    controls: 1e-3 too wide 12 (at 1e8), steps correlated by 1e-3 34 (at 1e9); without mixed seed and stream
             bits agree too rarely at "key -1, component +1" by 11 standard errors at 1e6 normals

The raw words (random_words.c): PractRand 0.95 to 16 GB in the orders kernel and parts, to 4 GB in steps, paths,
seeds and for the 53-bit stream, nothing worse than "unusual" (p some 1e-3, as happens among 250 tests a stage);
SmallCrush of TestU01 1.2.3 passes in all orders and with the bits reversed, Crush (144 statistics)
in the order kernel. Controls: unmixed, "parts" gets p = 5e-9 at 8 GB of PractRand; with 8 rounds instead of 13
"kernel" fails 31 tests at 512 MB; a bare counter fails nearly everything.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from scipy import special, stats

from solvers import fast_normals, wiener

BLOCK, BLOCKS = 512, 32
"""Paths per block, blocks per task."""
MOMENTS = (0.0, 1.0, 0.0, 3.0, 0.0, 15.0)
_VARIANCES = (1.0, 2.0, 15.0, 96.0, 945.0, 10395.0 - 225.0)
_LOW, _CELLS = -6.0, 1536  # cells of width 1/128, the outer ones open
LAGS = (1, 2, 3, 4, 8, 64)


class Shift(NamedTuple):
    """How far apart two streams of normals are."""

    seed: int = 0
    key: int = 0  # paths, or pairs of paths where a key serves two
    pair: int = 0  # of steps
    component: int = 0

    def __str__(self):
        return ", ".join(f"{name} {value:+d}" for name, value in self._asdict().items() if value)


SHIFTS = (
    Shift(seed=1),
    Shift(key=1),
    Shift(pair=1),
    Shift(component=1),
    Shift(key=-1, component=1),
    Shift(key=-2, component=2),
    Shift(key=-32, component=32),
    Shift(seed=1, pair=-1),
    Shift(seed=2, pair=-2),
    Shift(seed=1, key=-1, pair=-1, component=1),
)


@cache
def filling(resolution: int) -> Any:
    """``fill(seed, first_path, pair, component, z, words)``: z (2, BLOCK) of one component and the words behind."""
    fill_32, fill_53 = fast_normals.filler(BLOCK), wiener.filler(BLOCK)
    fast = resolution == 32

    @njit(nogil=True)
    def fill(seed, first_path, pair, component, z, words):
        count = component + 1
        if fast:
            single = np.empty(2 * count * BLOCK, np.float32)
            fill_32(np.uint64(seed), first_path, pair, count, single, words)
            for parity in range(2):
                at = (parity * count + component) * BLOCK
                z[parity, :] = single[at : at + BLOCK]
        else:
            double = np.empty(2 * count * BLOCK)
            fill_53(np.uint64(seed), first_path, pair, count, 1.0, double, words)
            for parity in range(2):
                at = (parity * count + component) * BLOCK
                z[parity, :] = double[at : at + BLOCK]

    return fill


def word_count(resolution: int) -> int:
    """Words behind the normals of a block and two steps."""
    return BLOCK if resolution == 32 else 2 * BLOCK


@cache
def _summing(resolution: int) -> Any:
    fill = filling(resolution)
    words_of = word_count(resolution)

    @njit(nogil=True, fastmath={"contract", "reassoc"})
    def sums(seed, task, pairs, scale, correlated, bins):
        """Power sums, products over lags in steps and in paths; with bins also counts of cells."""
        powers, along = np.zeros(6), np.zeros((2, 6))
        across = np.zeros((2, 6))
        z, words = np.empty((2, BLOCK)), np.empty(words_of, np.uint64)
        held, carry = np.zeros((128, BLOCK)), np.zeros(BLOCK)
        for block in range(BLOCKS):
            first = (task * BLOCKS + block) * BLOCK
            for pair in range(pairs):
                fill(seed, first, pair, 0, z, words)
                for parity in range(2):
                    step = 2 * pair + parity
                    x = z[parity]
                    if correlated != 0.0:
                        for i in range(BLOCK):
                            fresh = x[i]
                            x[i] = fresh + correlated * carry[i]
                            carry[i] = fresh
                    m1 = m2 = m3 = m4 = m5 = m6 = 0.0
                    for i in range(BLOCK):
                        y = scale * x[i]
                        s = y * y
                        m1 += y
                        m2 += s
                        m3 += s * y
                        m4 += s * s
                        m5 += s * s * y
                        m6 += s * s * s
                    powers += np.array((m1, m2, m3, m4, m5, m6))
                    if bins.size > 0:
                        for i in range(BLOCK):
                            cell = math.floor((scale * x[i] - _LOW) * 128.0)
                            bins[min(max(cell, 0), _CELLS - 1)] += 1
                        row = held[step % 128]
                        row[:] = x
                        for k in range(6):
                            lag = LAGS[k]
                            earlier = held[(step - lag) % 128]
                            a = b = c = d = 0.0
                            if step >= lag:
                                for i in range(BLOCK):
                                    a += x[i] * earlier[i]
                                    b += (x[i] * x[i] - 1.0) * (earlier[i] * earlier[i] - 1.0)
                            for i in range(BLOCK - lag):
                                c += x[i] * x[i + lag]
                                d += (x[i] * x[i] - 1.0) * (x[i + lag] * x[i + lag] - 1.0)
                            along[0, k] += a
                            along[1, k] += b
                            across[0, k] += c
                            across[1, k] += d
        return powers, along, across

    return sums


@cache
def _comparing(resolution: int) -> Any:
    fill = filling(resolution)
    words_of = word_count(resolution)

    @njit(nogil=True, fastmath={"contract", "reassoc"})
    def compare(seed, task, pairs, d_seed, d_path, d_pair, d_component, agreements):
        """Sums of products z z', (z^2 - 1)(z'^2 - 1), and how often each bit agrees."""
        product = square = 0.0
        z, other = np.empty((2, BLOCK)), np.empty((2, BLOCK))
        words, others = np.empty(words_of, np.uint64), np.empty(words_of, np.uint64)
        for pair in range(pairs):
            first = 4096 + task * BLOCK
            fill(seed, first, pair + 4, 0, z, words)
            fill(seed + d_seed, first + d_path, pair + 4 + d_pair, d_component, other, others)
            for parity in range(2):
                for i in range(BLOCK):
                    x, y = z[parity, i], other[parity, i]
                    product += x * y
                    square += (x * x - 1.0) * (y * y - 1.0)
            for i in range(words_of):
                same = ~(words[i] ^ others[i])
                for bit in range(64):
                    agreements[bit] += (same >> np.uint64(bit)) & np.uint64(1)
        return product, square

    return compare


def _spread(call: Callable[[int], Any], tasks: int, threads: int) -> Iterator[Any]:
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(call, range(tasks))


def scores_of_moments(
    resolution: int, normals: float, seed: int, threads: int = 1, scale: float = 1.0
) -> np.ndarray:
    """Standard scores of the moments of order 1 to 6, of at least so many normals times `scale`."""
    pairs = 1024
    tasks = math.ceil(normals / (2 * pairs * BLOCK * BLOCKS))
    none = np.empty(0, np.int64)
    sums = _summing(resolution)
    parts = _spread(lambda task: sums(seed, task, pairs, scale, 0.0, none)[0], tasks, threads)
    count = tasks * 2 * pairs * BLOCK * BLOCKS
    total = np.array([math.fsum(column) for column in zip(*parts, strict=True)])
    return (total / count - MOMENTS) / np.sqrt(np.array(_VARIANCES) / count)


def distribution(
    resolution: int, normals: float, seed: int, threads: int = 1, scale: float = 1.0, correlated: float = 0.0
) -> tuple[float, np.ndarray]:
    """p-value of chi-square over cells, and scores (what, kind, lag) of correlations along steps and across paths.

    `correlated` times the step before is added to each normal, as a negative control.
    """
    pairs = 256
    tasks = math.ceil(normals / (2 * pairs * BLOCK * BLOCKS))
    sums = _summing(resolution)

    def one(task: int) -> tuple:
        bins = np.zeros(_CELLS, np.int64)
        return *sums(seed, task, pairs, scale, correlated, bins)[1:], bins

    along, across, bins = np.zeros((2, 6)), np.zeros((2, 6)), np.zeros(_CELLS, np.int64)
    for part in _spread(one, tasks, threads):
        along, across, bins = along + part[0], across + part[1], bins + part[2]
    blocks, lags = tasks * BLOCKS, np.array(LAGS)
    deviations = np.array([[1.0], [2.0]])  # of z z' and of (z^2 - 1)(z'^2 - 1)
    scores = np.stack(
        [
            along / deviations / np.sqrt(blocks * BLOCK * (2 * pairs - lags)),
            across / deviations / np.sqrt(blocks * 2 * pairs * (BLOCK - lags)),
        ]
    )
    return chi_square(bins), scores


def chi_square(bins: np.ndarray) -> float:
    """The p-value of counts of the cells, those with fewer than 50 expected joined from outside in."""
    edges = np.concatenate([[-np.inf], _LOW + np.arange(1, _CELLS) / 128.0, [np.inf]])
    count = bins.sum()
    lower = special.ndtr(edges)
    middle = _CELLS // 2  # by symmetry, so that no tail is a difference of numbers near one
    expected = count * np.concatenate([np.diff(lower[: middle + 1]), np.diff(lower[: middle + 1])[::-1]])
    outside = int(np.searchsorted(np.cumsum(expected), 50.0))
    inner = slice(outside + 1, _CELLS - outside - 1)

    def joined(values: np.ndarray) -> np.ndarray:
        return np.concatenate([[values[: inner.start].sum()], values[inner], [values[inner.stop :].sum()]])

    expected, found = joined(expected), joined(bins)
    return float(stats.chi2.sf(((found - expected) ** 2 / expected).sum(), expected.size - 1))


def scores_of_shift(
    resolution: int, shift: Shift, normals: float, seed: int, threads: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the correlations of z and of z^2, and of the agreement of the 64 bits, at a shift."""
    pairs = 64
    tasks = math.ceil(normals / (2 * pairs * BLOCK))
    compare = _comparing(resolution)
    d_seed, d_key, d_pair, d_component = shift
    d_path = 2 * d_key if resolution == 32 else d_key

    def one(task: int) -> tuple:
        agreements = np.zeros(64, np.int64)
        product, square = compare(seed, task, pairs, d_seed, d_path, d_pair, d_component, agreements)
        return product, square, agreements

    sums, agreements = np.zeros(2), np.zeros(64, np.int64)
    for product, square, agree in _spread(one, tasks, threads):
        sums, agreements = sums + np.array((product, square)), agreements + agree
    count, words = tasks * pairs * 2 * BLOCK, tasks * pairs * word_count(resolution)
    return sums / np.array([1.0, 2.0]) / math.sqrt(count), bit_scores(agreements, words)


def bit_scores(agreements: np.ndarray, words: int) -> np.ndarray:
    """Standard scores of how often bits agreed."""
    return (agreements - words / 2) / math.sqrt(words / 4)


def kolmogorov_smirnov(resolution: int, normals: float, seeds: range) -> np.ndarray:
    """The p-value at each seed."""
    steps = 1024
    paths = math.ceil(normals / steps)
    return np.array(
        [
            stats.kstest(wiener.increments(s, paths, steps, resolution=resolution).ravel(), "norm").pvalue
            for s in seeds
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--normals", type=float, default=1e10)
    parser.add_argument("--resolution", type=int, nargs="+", default=[32, 53], choices=[32, 53])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    size, seed, threads = arguments.normals, arguments.seed, arguments.threads
    for resolution in arguments.resolution:
        print(f"\nresolution {resolution}, seed {seed}")
        scores, values = [], []
        moments = scores_of_moments(resolution, size, seed, threads)
        print(f"  moments 1 to 6 at {size:.0e}: scores", np.round(moments, 2), flush=True)
        p, lags = distribution(resolution, size / 10, seed, threads)
        print(f"  chi-square at {size / 10:.0e}: p = {p:.3f}")
        for name, part in zip(("steps", "paths"), lags, strict=True):
            print(
                f"  lags {LAGS} in {name}: z {np.round(part[0], 2)}, z^2 {np.round(part[1], 2)}", flush=True
            )
        ks = kolmogorov_smirnov(resolution, min(size / 1000, 1e7), range(seed, seed + 12))
        print(f"  Kolmogorov-Smirnov at 12 seeds: p = {np.round(np.sort(ks), 3)}", flush=True)
        for shift in SHIFTS:
            pair, bits = scores_of_shift(resolution, shift, size / 100, seed, threads)
            worst_bit = bits[np.abs(bits).argmax()]
            print(
                f"  {shift!s:45} z {pair[0]:6.2f}, z^2 {pair[1]:6.2f}, bits up to {worst_bit:7.2f}",
                flush=True,
            )
            scores += [pair, bits]
        scores += [moments, lags.ravel()]
        values += [p, *ks]
        every = np.concatenate(scores)
        print(
            f"  {np.sum(np.abs(every) > 5)} of {every.size} scores are beyond 5, the worst {np.abs(every).max():.2f};"
        )
        print(f"  {np.sum(np.array(values) < 1e-4)} of {len(values)} p-values are below 1e-4")
    wide = scores_of_moments(32, size / 100, seed, threads, scale=1.001)[1]
    _, lags = distribution(32, size / 10, seed, threads, correlated=1e-3)
    print(f"\nnegative controls: 1e-3 too wide: {wide:.1f}; steps correlated by 1e-3: {lags[0, 0, 0]:.1f}")


if __name__ == "__main__":
    main()
