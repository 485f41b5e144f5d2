"""One axis in the search for the mass of an SDE: as wide as the model's functions allow, then shrunk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solvers.charts import Chart
from solvers.errors import InvalidInput
from solvers.sde import SDE

# by dimension: cells per axis of a search grid, and its half width
SEARCH_CELLS = {1: 4000, 2: 80, 3: 20}
REACH = {1: 1e12, 2: 1e8, 3: 1e5}
# how many times further tails are followed: beyond R a tail of mass R^-a keeps the share `further`^-a unseen
_FURTHER = {1: 300.0, 2: 3.0, 3: 1.0}
_LARGEST = 1e100  # drift or diffusion beyond this is out of reach


@dataclass
class Axis:
    """State of the search along one axis."""

    name: str
    chart: Chart
    fixed: tuple[bool, bool]
    singular: tuple[float, float] | None = None  # an end where the noise vanishes, next to no mass within
    below: float = 0.0
    above: float = 0.0
    origin: float = 0.0
    reach: float = np.inf  # farther than this from the origin the model is not finite

    def within(self, reach: float) -> Chart:
        """The chart cut to a distance from its center on its free sides."""
        chart = self.chart
        low = chart.low if self.fixed[0] else max(chart.low, chart.center - reach)
        high = chart.high if self.fixed[1] else min(chart.high, chart.center + reach)
        return Chart(chart.kind, low, high, chart.center, chart.scale)

    def wider(self, d: int) -> Chart:
        """A box that reaches further on the free sides, by decades where cells grow with the distance."""
        chart = self.chart
        low, high, more = chart.low, chart.high, 0.35 * (chart.high - chart.low)
        below, above = low - more, high + more
        if chart.kind == "sinh":
            further = _FURTHER[d]
            below = min(below, chart.center - further * (chart.center - low))
            above = max(above, chart.center + further * (high - chart.center))
        below, above = max(below, self.origin - self.reach), min(above, self.origin + self.reach)
        return Chart(
            chart.kind,
            low if self.fixed[0] else min(below, low),
            high if self.fixed[1] else max(above, high),
            chart.center,
            chart.scale,
        )


def initial_axes(sde: SDE, box: dict[str, tuple[float | None, float | None]]) -> list[Axis]:
    """Axes as wide as the model's functions allow, on the sides that the box leaves free."""
    reach = REACH[sde.dimension]
    while True:
        axes = [_initial_axis(name, *box[name], reach) for name in sde.names]
        mesh = np.meshgrid(*(_middles(axis.chart, SEARCH_CELLS[len(axes)]) for axis in axes), indexing="ij")
        with np.errstate(all="ignore"):
            rows = sde.diffusion_at(0.0, tuple(mesh))
            values = [*sde.drift_at(0.0, tuple(mesh)), *np.reshape(rows, (-1, *mesh[0].shape))]
        usable = np.all(np.abs(values) < _LARGEST, axis=0)
        if usable.all():
            break
        if reach < 20:
            worst = int(np.argmin(usable))
            place = ", ".join(f"{n}={c.flat[worst]:.4g}" for n, c in zip(sde.names, mesh, strict=True))
            raise InvalidInput(
                f"drift or diffusion is not a number of moderate size at {place}; say where the model ends, for "
                f"example box={{{sde.names[0]!r}: (0, None)}}"
            )
        reach /= 10.0
    for k, axis in enumerate(axes):
        axis.origin = axis.chart.center
        axis.reach = reach if reach < REACH[len(axes)] else np.inf
        _mark_singular(sde, axes, k, axis)
    return axes


def _middles(chart: Chart, cells: int = 20) -> np.ndarray:
    edges = chart.edges(cells)
    return 0.5 * (edges[1:] + edges[:-1])


def _initial_axis(name: str, low: float | None, high: float | None, reach: float) -> Axis:
    fixed = (low is not None, high is not None)
    if low is not None and high is not None:
        return Axis(name, Chart("uniform", low, high), fixed)
    center = low if low is not None else high if high is not None else 0.0
    first = center if low is not None else center - reach
    last = center if high is not None else center + reach
    return Axis(name, Chart("sinh", first, last, center, 1.0), fixed)


def _mark_singular(sde: SDE, axes: list[Axis], k: int, axis: Axis) -> None:
    """Note a given end at which an axis's noise vanishes, and look at it on a logarithmic scale."""
    if all(axis.fixed) or not any(axis.fixed):
        return
    low_end = axis.fixed[0]
    end = axis.chart.low if low_end else axis.chart.high
    others = [_middles(a.chart) for a in axes]
    others[k] = np.array([end])
    with np.errstate(all="ignore"):
        row = sde.diffusion_at(0.0, tuple(np.meshgrid(*others, indexing="ij")))[k]
    if np.any(np.asarray(row) != 0):
        return
    axis.singular = end, 1.0 / (axis.chart.high - axis.chart.low)
    axis.chart = Chart("log", axis.chart.low, axis.chart.high, *axis.singular)
