"""Operators of models on grids, and what coarser grids tell about the discretisation error of a threshold."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from eos_sde.models.maps import NoisyMap
from solvers import SDE, AccuracyWarning, FokkerPlanck, Grid, InvalidInput, TransferOperator

Operator = FokkerPlanck | TransferOperator
T = TypeVar("T")
# Ratio of two successive differences: 4 for second order, 2 for first; below this the grids have not settled.
_SETTLING = 1.5
_FEWEST = 4
_ASSEMBLY = ("boundary", "flux", "advection", "allow_wall_mass")


class Models:
    """Operators of ``build(value)`` on ``grid`` or ``grid(value)``.

    Parameters
    ----------
    build : callable
    settings : mapping
        Those of `locate`.
    boundary : str or mapping
        If the settings have none.
    """

    def __init__(self, build: Callable[[float], Any], settings: Mapping[str, Any], boundary: Any):
        grid = settings["grid"]
        if not (isinstance(grid, Grid) or callable(grid)):
            raise InvalidInput(
                f"grid is a {type(grid).__name__}; give a Grid, or a function of the parameter"
            )
        self._build, self._grid = build, grid
        self._assembly = {"boundary": boundary}
        self._assembly |= {name: settings[name] for name in _ASSEMBLY if name in settings}

    def grid(self, value: float) -> Grid:
        """The grid at a value."""
        grid: Any = self._grid(value) if callable(self._grid) else self._grid
        if not isinstance(grid, Grid):
            raise InvalidInput(f"grid({value:g}) returned a {type(grid).__name__}; return a Grid")
        return grid

    def around(self, value: float) -> Callable[[float], Operator]:
        """The function that builds operators near a value, on the grid of that value."""
        grid = self.grid(value)
        return lambda near: self.operator(near, grid)

    def operator(self, value: float, grid: Grid | None = None) -> Operator:
        """The operator at a value."""
        model = self._build(value)
        grid = self.grid(value) if grid is None else grid
        if isinstance(model, NoisyMap):
            unfit = sorted({"flux", "advection"} & set(self._assembly))
            if unfit:
                raise InvalidInput(f"{unfit[0]} is for SDEs, and build returns a map; leave it out")
            return TransferOperator(model.as_sde(), grid, step=model.dt, **self._assembly)
        if not isinstance(model, SDE):
            raise InvalidInput(
                f"build returned a {type(model).__name__}; it must return an SDE or a NoisyMap"
            )
        return FokkerPlanck(model, grid, **self._assembly)

    def coarser(self, value: float, target: Any) -> list[Grid]:
        """Grids of twice and four times the spacing, as far as they have cells, and see the target."""
        grids, grid = [], self.grid(value)
        for _ in range(2):
            grid = _halved(grid)
            if min(grid.shape) < _FEWEST or not _sees(grid, target):
                break
            grids.append(grid)
        return grids


def discretisation_error(excess: list[float]) -> float:
    """Of a quantity that is 0 on the finest grid, from its values on grids of twice and four times the spacing.

    Second order if the second difference is four times the first, and never taken for more; with one coarser grid
    first order is assumed; infinite without.
    """
    if not excess:
        return float("inf")
    first = abs(excess[0])
    if len(excess) == 1 or first == 0:
        return first
    second = abs(excess[1] - excess[0])
    ratio = second / first
    if ratio < _SETTLING:
        return max(first, second)
    return first / (min(ratio, 4.0) - 1.0)


def on_coarse_grids(measure: Callable[[Grid], T], grids: list[Grid]) -> list[T]:
    """A quantity on each grid, without what there is to say about grids that are coarse on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AccuracyWarning)
        return [measure(grid) for grid in grids]


def _halved(grid: Grid) -> Grid:
    """A grid with half the cells along each axis, following its spacing; an odd number stays odd.

    So the middle of the axis, where noise may vanish, stays in a cell or on a face.
    """
    edges = {}
    for name, fine in grid.edges.items():
        cells = len(fine) - 1
        half = max(1, cells // 2 + (cells // 2 % 2 != cells % 2))
        edges[name] = np.interp(np.linspace(0, cells, half + 1), np.arange(cells + 1), fine)
    return Grid(**edges)


def _sees(grid: Grid, target: Any) -> bool:
    if target is None:
        return True
    inside = np.broadcast_to(np.asarray(target(*grid.coords()), dtype=bool), grid.shape)
    return bool(inside.any() and not inside.all())
