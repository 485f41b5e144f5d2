"""Moments of an ensemble to order 4, merged block by block, whatever the spread beside the mean."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from solvers.lanes import central_powers, shifted_sums
from solvers.observers import Observer, about, observing

if TYPE_CHECKING:
    from solvers.request import Request
    from solvers.running import Run

SHAPES = ("skewness", "kurtosis")


class Moments:
    """Means and summed products of deviations, merged block by block (Chan, Golub, LeVeque 1983).

    Blocks are always merged one at a time and in the order of their paths: the result has the same bits
    however they were spread over chunks and threads.
    """

    def __init__(self, times: int, d: int, pairs: bool):
        self.count = 0
        self.mean = np.zeros((times, d))
        rows, columns = np.triu_indices(d) if pairs else (np.arange(d), np.arange(d))
        self._rows, self._columns = rows, columns
        self.second = np.zeros((times, rows.size))

    def merge(self, mean: np.ndarray, second: np.ndarray, counts: np.ndarray) -> None:
        """Add consecutive blocks: their means (blocks, times, d), sums (blocks, times, q) and path counts."""
        self.count = _merge(
            self.count, self.mean, self.second, mean, second, counts, self._rows, self._columns
        )

    def state(self) -> dict[str, np.ndarray]:
        """Everything merged so far, for a checkpoint."""
        return {"count": np.array(self.count), "mean": self.mean, "second": self.second}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Continue from a checkpoint."""
        self.count, self.mean, self.second = int(state["count"]), state["mean"].copy(), state["second"].copy()

    def variance(self) -> np.ndarray:
        """(times, d), divided by the number of paths."""
        return self.second[:, self._rows == self._columns] / self.count

    def stderr(self) -> np.ndarray:
        """Standard error of the mean (times, d), from the variance divided by the number of paths less one."""
        with np.errstate(divide="ignore", invalid="ignore"):  # one path tells nothing of its spread
            return np.sqrt(self.variance() / np.float64(self.count - 1))

    def covariance(self) -> np.ndarray:
        """(times, d, d), divided by the number of paths."""
        times, d = self.mean.shape
        full = np.empty((times, d, d))
        full[:, self._rows, self._columns] = full[:, self._columns, self._rows] = self.second / self.count
        return full


@njit(nogil=True, error_model="numpy")
def _merge(merged, mean, second, means, seconds, counts, rows, columns):
    """Chan, Golub and LeVeque's update for each block in turn; the number of paths after it."""
    shift = np.empty(mean.shape[1])
    for b in range(counts.size):
        total = merged + counts[b]
        weight, share = merged * (counts[b] / total), counts[b] / total
        for t in range(mean.shape[0]):
            for a in range(shift.size):
                shift[a] = means[b, t, a] - mean[t, a]
            for q in range(rows.size):
                second[t, q] += seconds[b, t, q] + weight * shift[rows[q]] * shift[columns[q]]
            for a in range(shift.size):
                mean[t, a] += share * shift[a]
        merged = total
    return merged


@njit(error_model="numpy")
def padded(column, count, fill):
    """The column if all its paths count, else a copy whose other entries are `fill`."""
    if count == column.size:
        return column
    copy = np.full(column.size, fill)
    copy[:count] = column[:count]
    return copy


@njit(error_model="numpy")
def mean_and_second(column, count):
    """Mean and summed squares of the deviations from it, over the first `count` entries."""
    shift = column[0]
    total, squares = shifted_sums(padded(column, count, shift), shift)
    return shift + total / count, squares - total * (total / count)


@njit(error_model="numpy")
def _look(when, x, _carried, sums, _counts, _settings):
    """Mean and summed second, third and fourth powers of the deviations from it, for each component.

    Powers are taken about the rounded mean and then moved to the mean itself, so that its rounding error,
    which may exceed the spread times the precision, costs nothing.
    """
    _step, save, count = when
    for a in range(x.shape[0]):
        shift = x[a, 0]
        total, _ = shifted_sums(padded(x[a], count, shift), shift)
        centre = shift + total / count
        column = padded(x[a], count, centre)
        first, second = shifted_sums(column, centre)
        third, fourth = central_powers(column, centre)
        rest = first / count
        sums[save, 4 * a] = centre + rest
        sums[save, 4 * a + 1] = second - rest * first
        sums[save, 4 * a + 2] = third - rest * (3.0 * second - 2.0 * rest * first)
        sums[save, 4 * a + 3] = fourth - rest * (4.0 * third - rest * (6.0 * second - 3.0 * rest * first))


@njit(nogil=True, error_model="numpy")
def _merge_shapes(merged, totals, blocks, counts):
    """Pairwise update of central sums to order 4 for each block in turn; the number of paths after it."""
    for b in range(counts.size):
        m, n = float(merged), float(counts[b])
        total = m + n
        share = n / total
        for t in range(totals.shape[0]):
            for a in range(0, totals.shape[1], 4):
                shift = blocks[b, t, a] - totals[t, a]
                step = shift / total
                two, three, four = totals[t, a + 1], totals[t, a + 2], totals[t, a + 3]
                two_b, three_b, four_b = blocks[b, t, a + 1], blocks[b, t, a + 2], blocks[b, t, a + 3]
                between = shift * step * m * n
                totals[t, a] += share * shift
                totals[t, a + 1] = two + two_b + between
                totals[t, a + 2] = (
                    three + three_b + between * step * (m - n) + 3.0 * step * (m * two_b - n * two)
                )
                totals[t, a + 3] = (
                    four
                    + four_b
                    + between * step * step * (m * m - m * n + n * n)
                    + 6.0 * step * step * (m * m * two_b + n * n * two)
                    + 4.0 * step * (m * three_b - n * three)
                )
        merged += counts[b]
    return merged


@cache
def _pass() -> Any:
    return observing(_look)


class Shape(Observer):
    """``skewness`` and ``kurtosis`` (time, component).

    Notes
    -----
    Blocks are merged by the pairwise update of central sums (Pebay 2008, Sandia report SAND2008-6212), in the
    order of their paths.
    """

    remedy = "give fewer times in save_at"

    def __init__(self, names: tuple[str, ...], saves: int, d: int):
        self.names = names
        self.observe = _pass()
        self.sums = (saves, 4 * d)
        self.held = 8 * saves * 4 * d
        self.purpose = f"{' and '.join(names)} at {saves} times"

    def prepare(self, run: Run) -> None:  # noqa: ARG002 - the same for any run
        """Allocate the sums."""
        self._count, self._total = 0, np.zeros(self.sums)

    def merge(self, sums: np.ndarray, paths: np.ndarray) -> None:
        """Take in consecutive blocks."""
        self._count = _merge_shapes(self._count, self._total, sums, paths)

    def state(self) -> dict[str, np.ndarray]:
        """The merged sums."""
        return {"count": np.array(self._count), "total": self._total}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Continue from a checkpoint."""
        self._count, self._total = int(state["count"]), state["total"].copy()

    def variables(self, request: Request, coords: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """Skewness and excess kurtosis of the paths; not a number where all paths agree."""
        _, second, third, fourth = (
            np.moveaxis(self._total.reshape(len(self._total), -1, 4), -1, 0) / self._count
        )
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            values = {"skewness": third / second**1.5, "kurtosis": fourth / second**2 - 3.0}
        texts = {
            "skewness": "skewness over the paths: third central moment over variance^(3/2)",
            "kurtosis": "excess kurtosis over the paths: fourth central moment over variance^2, less 3",
        }
        return {name: (("time", "component"), values[name], about(texts[name])) for name in self.names}
