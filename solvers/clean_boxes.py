"""A first box for a model without noise on an axis, found where the operator itself, not an upwind one, is clean."""

from __future__ import annotations

from typing import Any

import numpy as np

from solvers.charts import Chart
from solvers.errors import ConvergenceFailure, InvalidInput
from solvers.grid import Grid
from solvers.nonreversible import stationary_masses
from solvers.sde import SDE
from solvers.search_axes import Axis
from solvers.wide_masses import noisy, search_operator

# half widths looked at, each with so many cells per axis; finer cells where the coarse ones leave it open
_REACHES = 10.0 ** np.arange(4.0, -3.5, -0.5)
_CELLS, _MORE_CELLS, _CLOSER_LOOKS = 120, 320, 4
# Signed transport errs with negative masses. Less than this share of them counts as clean, and so little mass in
# the outer cells as a box that holds it; more than the last share there means that the mass escapes.
_NEGATIVE, _HELD, _ESCAPES = 1e-2, 1e-6, 0.05


Look = tuple[float, float, tuple[float, ...]]


def clean_box(sde: SDE, axes: list[Axis], walls: dict[str, tuple[Any, Any]]) -> list[Chart] | None:
    """The widest box in which second-order transport gives a density that is held, or None.

    Boxes shrink around the mean of the last one. A box counts only if one that is three times as wide does not
    lose the mass either: a well that is left over a barrier holds its mass in a small box, and has no stationary
    density.
    """
    center, wider = tuple(axis.chart.center for axis in axes), None
    open_: list[list[Chart]] = []
    for reach in _REACHES:
        charts = _charts(axes, center, reach)
        look = _look(sde, charts, axes, walls, _CELLS)
        if look is not None and wider is not None and wider[1] <= _ESCAPES:
            if _clean(look):
                return charts
            if look[1] <= _ESCAPES:
                open_.append(charts)
        wider = look
        center = center if look is None else look[2]
    for charts in open_[: -_CLOSER_LOOKS - 1 : -1]:
        if _clean(_look(sde, charts, axes, walls, _MORE_CELLS)):
            return charts
    return None


def _clean(look: Look | None) -> bool:
    return look is not None and look[0] <= _NEGATIVE and look[1] <= _HELD


def _charts(axes: list[Axis], center: tuple[float, ...], reach: float) -> list[Chart]:
    charts = []
    for axis, at in zip(axes, center, strict=True):
        low = axis.chart.low if axis.fixed[0] else max(axis.chart.low, at - reach)
        high = axis.chart.high if axis.fixed[1] else min(axis.chart.high, at + reach)
        charts.append(Chart("uniform", low, high))
    return charts


def _look(
    sde: SDE, charts: list[Chart], axes: list[Axis], walls: dict[str, tuple[Any, Any]], cells: int
) -> Look | None:
    """Shares of negative mass, and of mass in the outer twentieth on free sides, and the mean of the others.

    None where there is no answer.
    """
    grid = Grid(**{a.name: c.edges(cells) for a, c in zip(axes, charts, strict=True)})
    try:
        fp = search_operator(sde, grid, walls, second_order=True)
        masses = stationary_masses(fp.chain).reshape(grid.shape)
    except (
        InvalidInput,
        ConvergenceFailure,
    ):  # coefficients out of range, a space in parts, or not determined
        return None
    if noisy(fp):
        return None
    sizes, outer, mean = np.abs(masses), 0.0, []
    n = cells // 20
    for k, axis in enumerate(axes):
        marginal = sizes.sum(axis=tuple(j for j in range(grid.d) if j != k))
        outer += 0.0 if axis.fixed[0] else float(marginal[:n].sum())
        outer += 0.0 if axis.fixed[1] else float(marginal[-n:].sum())
        inner = slice(n, -n)
        mean.append(float(np.average(grid.centers[axis.name][inner], weights=marginal[inner] + 1e-300)))
    return -float(masses[masses < 0].sum()), outer, tuple(mean)
