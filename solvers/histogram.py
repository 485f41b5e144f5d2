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


@njit
def _look(when, x, _carried, _sums, counts, settings):
    """Count the paths of a block in the cells of a grid; the settings hold each axis's size and edges."""
    _step, save, count = when
    for i in range(count):
        cell, offset = 0, 0
        for a in range(x.shape[0]):
            size = int(settings[offset])
            axis = settings[offset + 1 : offset + size + 1]
            offset += size + 1
            value = x[a, i]
            if not (axis[0] <= value <= axis[size - 1]):  # also when not a number
                cell = -1
                break
            k, end = 0, size - 1  # axis[k] <= value <= axis[end] throughout
            while end - k > 1:
                middle = (k + end) // 2
                if axis[middle] <= value:
                    k = middle
                else:
                    end = middle
            cell = cell * (size - 1) + k
        if cell >= 0:
            counts[save, cell] += 1


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
        self.settings = np.concatenate([part for axis in edges for part in ([float(axis.size)], axis)])
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
