"""A box and a spacing proposed from an SDE: where its stationary mass lies and how steep its density is."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from solvers import boundary as boundaries
from solvers.charts import Chart, best_chart
from solvers.errors import AccuracyWarning, InvalidInput
from solvers.grid import Grid
from solvers.mass_search import search
from solvers.request import refuse_other
from solvers.sde import SDE
from solvers.search_axes import initial_axes
from solvers.wide_masses import mass_profile

Box = Mapping[str, tuple[float | None, float | None]]

_MOST_CELLS = {1: 100_000, 2: 1_000_000, 3: 128**3}  # of the grid
_FEWEST_CELLS = 40
_TELLING = 3.0  # a warning where the excess diffusion is so many times what was asked for


@dataclass(frozen=True)
class AxisFit:
    """What was chosen for one axis, and the numbers behind it.

    Attributes
    ----------
    name : str
    chart : Chart
        Spacing; its `kind` is "uniform", "sinh" (stretched from a center) or "log".
    cells : int
    mass_below, mass_above : float
        Stationary mass outside, measured on a wider box; 0 on a side that was given.
    excess : float
        Relative excess diffusion of the scheme, averaged over the stationary mass; on an axis without noise
        half a cell over the standard deviation, which is the share of upwind diffusion (`resolution`).
    noisy : bool
        Whether the axis has noise.
    """

    name: str
    chart: Chart
    cells: int
    mass_below: float
    mass_above: float
    excess: float
    noisy: bool

    def __str__(self) -> str:
        spacing = {"uniform": "equal cells", "log": "cells in equal ratios"}.get(
            self.chart.kind, f"cells stretched around {self.chart.center:g} at scale {self.chart.scale:.3g}"
        )
        # as many digits as tell the ends apart
        digits = max(
            6,
            3
            + int(
                np.log10(max(abs(self.chart.low), abs(self.chart.high)) / (self.chart.high - self.chart.low))
            ),
        )
        low, high = (f"{end:.{digits}g}" for end in (self.chart.low, self.chart.high))
        excess = "excess diffusion" if self.noisy else "no noise: half a cell is, of the deviation,"
        return (
            f"{self.name} from {low} to {high} in {self.cells} {spacing} (mass below "
            f"{self.mass_below:.1g}, above {self.mass_above:.1g}; {excess} {100 * self.excess:.2g} %)"
        )


def propose(
    sde: SDE, *, mass: float, excess: float, box: Box | None, boundary: boundaries.Boundary, cells: Any
) -> tuple[Grid, tuple[AxisFit, ...]]:
    """The grid of `Grid.fit`, and how it was chosen."""
    refuse_other(sde, SDE, "sde")
    d = sde.dimension
    if d > 3:
        raise InvalidInput(
            f"Grid.fit serves up to three components, this SDE has {d}; give the axes yourself"
        )
    for what, value in (("mass", mass), ("excess", excess)):
        if not (isinstance(value, (int, float)) and 0 < value < 0.1):
            raise InvalidInput(f"{what}={value!r}; give a number between 0 and 0.1")
    walls = boundaries.walls(boundary, sde.names)
    axes = initial_axes(sde, _checked_box(box, sde.names, walls))
    given = _checked_cells(cells, sde.names)
    masses, fp = search(sde, axes, walls, mass)
    profiles = [mass_profile(fp, masses, k) for k in range(d)]

    def fitted(k: int, most: int) -> tuple[Chart, int]:
        """Chart and number of cells of one axis."""
        chart, needed = best_chart(
            axes[k].chart.low, axes[k].chart.high, axes[k].singular, profiles[k], excess, most
        )
        return chart, given.get(axes[k].name) or max(needed, _FEWEST_CELLS)

    most = _MOST_CELLS[d]
    wanted = [given.get(axis.name) or fitted(k, most)[1] for k, axis in enumerate(axes)]
    free = [k for k, axis in enumerate(axes) if axis.name not in given]
    shared = _shares(wanted, free, most)
    chosen = []
    for k, (axis, profile) in enumerate(zip(axes, profiles, strict=True)):
        chart, number = fitted(k, shared[k])
        reached = profile.excess(chart, number)
        if not profile.noisy:
            reached = 0.5 * float(np.average(chart.width(profile.x), weights=profile.weight)) / number
            reached /= profile.deviation
        elif reached > _TELLING * excess and axis.name not in given:
            warnings.warn(
                AccuracyWarning(
                    f"{number} cells along {axis.name}, as many as Grid.fit gives, leave an excess diffusion of "
                    f"{100 * reached:.2g} % where the mass lies, more than excess={excess:g}; give cells="
                ),
                stacklevel=3,
            )
        chosen.append(AxisFit(axis.name, chart, number, axis.below, axis.above, reached, profile.noisy))
    return Grid(**{fit.name: fit.chart.edges(fit.cells) for fit in chosen}), tuple(chosen)


def _shares(wanted: list[int], free: list[int], most: int) -> list[int]:
    """Cells per axis: as wanted, but the longest of the free axes are shortened until all hold `most` cells."""
    shares = list(wanted)
    while math.prod(shares) > most and max((shares[k] for k in free), default=0) > _FEWEST_CELLS:
        longest = max(shares[k] for k in free)
        cut = [k for k in free if shares[k] == longest]
        next_longest = max((shares[k] for k in free if shares[k] < longest), default=_FEWEST_CELLS)
        fits = (most / math.prod(n for k, n in enumerate(shares) if k not in cut)) ** (1 / len(cut))
        limit = max(int(fits), min(next_longest, longest - 1), _FEWEST_CELLS)
        for k in cut:
            shares[k] = limit // 2 * 2
    return shares


def _checked_box(
    box: Any, names: tuple[str, ...], walls: dict[str, tuple[Any, Any]]
) -> dict[str, tuple[float | None, float | None]]:
    box = {} if box is None else box
    if not isinstance(box, Mapping):
        raise InvalidInput(f"box={box!r}; give a mapping {{axis: (low, high)}}, None where the side is free")
    unknown = [axis for axis in box if axis not in names]
    if unknown:
        raise InvalidInput(f"box names axis {unknown[0]!r}; the SDE's components are {', '.join(names)}")
    result = {}
    for name in names:
        pair = box.get(name, (None, None))
        try:
            low, high = (None if v is None else float(v) for v in pair)
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"box[{name!r}]={pair!r}; give (low, high), None where it is free") from error
        ends = [v for v in (low, high) if v is not None]
        if not np.isfinite(ends).all() or (len(ends) == 2 and not ends[0] < ends[1]):
            raise InvalidInput(f"box[{name!r}]={pair!r}; give finite low < high, None where it is free")
        for end, kind, word in ((low, walls[name][0], "low"), (high, walls[name][1], "high")):
            if kind != "reflecting" and end is None:
                raise InvalidInput(
                    f"the {word} wall of {name} is {kind}, which is part of the model; say where it is, "
                    f"box={{{name!r}: (low, high)}}"
                )
        result[name] = (low, high)
    return result


def _checked_cells(cells: Any, names: tuple[str, ...]) -> dict[str, int]:
    if cells is None:
        return {}
    given: dict[str, Any] = dict(cells) if isinstance(cells, Mapping) else dict.fromkeys(names, cells)
    for name, number in given.items():
        if name not in names:
            raise InvalidInput(f"cells names axis {name!r}; the SDE's components are {', '.join(names)}")
        if not isinstance(number, (int, np.integer)) or isinstance(number, bool) or number < 2:
            raise InvalidInput(f"cells={number!r} for {name}; give an integer >= 2")
    return given
