"""The histogram of an ensemble on a grid, as an observer."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from solvers.observers import Counting, about, observing

if TYPE_CHECKING:
    from solvers.request import Request


@njit(error_model="numpy")
def _look(when, x, _carried, _sums, counts, settings):
    """Count the paths of a block in the cells of a grid; the settings hold each axis, see `_axis_settings`."""
    _step, save, count = when
    cells = np.zeros(x.shape[1], np.int64)
    offset = 0
    for a in range(x.shape[0]):
        size, per_width = int(settings[offset]), settings[offset + 1]
        axis = settings[offset + 2 : offset + 2 + size]
        offset += 2 + size
        low, high, last = axis[0], axis[size - 1], size - 2
        for i in range(count):
            value = x[a, i]
            if not (low <= value <= high) or cells[i] < 0:  # also when not a number
                cells[i] = -1
                continue
            if per_width > 0.0:  # equal cells: at most the neighbour of the right one, after rounding
                k = min(int((value - low) * per_width), last)
                if value < axis[k]:
                    k -= 1
                elif k < last and axis[k + 1] <= value:
                    k += 1
            else:
                k, end = 0, size - 1  # axis[k] <= value <= axis[end] throughout
                while end - k > 1:
                    middle = (k + end) // 2
                    if axis[middle] <= value:
                        k = middle
                    else:
                        end = middle
            cells[i] = cells[i] * (size - 1) + k
    row = counts[save]
    for i in range(count):
        if cells[i] >= 0:
            row[cells[i]] += 1


def _axis_settings(edges: np.ndarray) -> np.ndarray:
    """Number of edges, cells per unit of length (0 unless all are equal to a hundredth of a cell), edges."""
    even = np.linspace(edges[0], edges[-1], edges.size)
    per_width = (edges.size - 1) / (edges[-1] - edges[0])
    equal = np.abs(edges - even).max() * per_width < 0.01
    return np.concatenate([[float(edges.size), per_width if equal else 0.0], edges])


@cache
def _tally() -> Any:
    return observing(_look)


class Histogram(Counting):
    """``density(time, *names)`` and ``outside(time)``; see `solvers.observers.Observer`."""

    remedy = "give fewer times in save_at or a coarser grid"

    def __init__(self, grid: Any, saves: int):
        self.grid = grid
        edges = [np.asarray(grid.edges[name], dtype=float) for name in grid.names]
        self.observe = _tally()
        self.settings = np.concatenate([_axis_settings(axis) for axis in edges])
        self.counts = (saves, math.prod(grid.shape))
        self.held = 8 * math.prod(self.counts)
        self.purpose = f"a histogram of {self.counts[1]} cells at {saves} times"

    def variables(self, request: Request, coords: dict[str, Any]) -> dict[str, Any]:
        """Density per cell volume, and the fraction of paths off the grid."""
        grid = self.grid
        for name in grid.names:
            coords[name] = (name, grid.centers[name], about(f"centre of the cells in {name}"))
        density = self._total.reshape(-1, *grid.shape) / (request.paths * grid.volumes)
        outside = 1.0 - self._total.sum(axis=1) / request.paths
        return {
            "density": (("time", *grid.names), density, about("probability density (histogram)")),
            "outside": ("time", outside, about("fraction of the paths off the grid")),
        }
