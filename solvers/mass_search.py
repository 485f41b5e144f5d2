"""The box around the stationary mass of an SDE: a very wide one, shrunk in rounds, or a refusal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from scipy.sparse import csgraph, csr_array

from solvers.charts import Chart, best_chart
from solvers.clean_boxes import clean_box
from solvers.errors import ConvergenceFailure, InvalidInput
from solvers.fokker_planck import FokkerPlanck
from solvers.grid import Grid
from solvers.sde import SDE
from solvers.search_axes import REACH, SEARCH_CELLS, Axis
from solvers.wide_masses import Masses, mass_profile, noisy, search_masses, search_operator

# by dimension: cells per axis of a search grid where an axis has no noise
_MORE_CELLS = {1: 4000, 2: 200, 3: 26}
# cells and half width of further looks at a model that seems to escape
_CLOSER_LOOKS = {1: [], 2: [(160, 1e4), (260, 1e2)], 3: [(26, 1e2)]}
# the box has settled when its ends move by less than these shares of it; a search cell is 0.09 of it in 3-D
_SETTLED = {1: 0.1, 2: 0.1, 3: 0.2}
_ROUNDS, _ROBUST_ROUNDS = 25, 4
_INFLATED_MASS = 1e-4  # left outside on a side while the noise is inflated


def search(
    sde: SDE, axes: list[Axis], walls: dict[str, tuple[Any, Any]], mass: float
) -> tuple[np.ndarray, FokkerPlanck]:
    """Shrink a wide box onto the mass, first with robust inflated noise, then with the operator itself.

    Where an axis has no noise, the inflated noise can hide the mass in any box. Then boxes are looked at with the
    operator itself before a refusal is believed.
    """
    d = len(axes)
    starts, side = [replace(axis) for axis in axes], mass / (2 * d)
    try:
        masses, fp = _first_look(sde, axes, walls, side)
        return _settle(sde, axes, walls, side, masses, noise=noisy(fp), robust=d > 1)
    except (InvalidInput, ConvergenceFailure):
        charts = clean_box(sde, starts, walls) if d == 2 else None
        if charts is None:
            raise
    for axis, start, chart in zip(axes, starts, charts, strict=True):
        axis.chart, axis.singular, axis.below, axis.above = chart, start.singular, 0.0, 0.0
    return _settle(sde, axes, walls, side, None, noise=False, robust=False)


def _settle(
    sde: SDE,
    axes: list[Axis],
    walls: dict[str, tuple[Any, Any]],
    side: float,
    masses: Masses | None,
    *,
    noise: bool,
    robust: bool,
) -> tuple[np.ndarray, FokkerPlanck]:
    """Fit the box to the mass in rounds, until it moves no more."""
    d = len(axes)
    largest = max(axis.chart.high - axis.chart.low for axis in axes)
    # without noise on an axis upwind diffusion is all there is, and more cells are needed to see past it
    patience, cells = (_ROBUST_ROUNDS, SEARCH_CELLS[d]) if noise else (_ROUNDS - 5, _MORE_CELLS[d])
    for number in range(_ROUNDS):
        grid = Grid(**{a.name: a.wider(d).edges(cells) for a in axes})
        fp = search_operator(sde, grid, walls, second_order=not robust)
        masses = search_masses(fp, robust, masses)
        settled = [_shrink(axis, fp, masses.sizes, k, side, robust) for k, axis in enumerate(axes)]
        for axis in axes:
            if axis.chart.high - axis.chart.low > max(REACH[d], 10 * largest):
                _refuse_tail(axis, max(axis.below, axis.above), side, noise)
        if all(settled) and not robust:
            return masses.sizes, fp
        robust = robust and not all(settled) and number < patience
    raise ConvergenceFailure(
        f"the box did not settle in {_ROUNDS} rounds; give it as box={{axis: (low, high)}}"
    )


def _first_look(
    sde: SDE, axes: list[Axis], walls: dict[str, tuple[Any, Any]], side: float
) -> tuple[Masses, FokkerPlanck]:
    """Shrink the widest box once, or refuse a model whose mass lies at its far ends.

    On cells proportional to the distance upwind diffusion can throw out what turns fast and is damped slowly,
    so an escape is believed only when finer cells in a smaller box see it too.
    """
    d = len(axes)
    looks = [(SEARCH_CELLS[d], REACH[d]), *_CLOSER_LOOKS[d]]
    escape: InvalidInput | None = None
    for cells, reach in looks:
        for axis in axes:
            axis.chart = axis.within(reach)
        fp = search_operator(
            sde, Grid(**{a.name: a.chart.edges(cells) for a in axes}), walls, second_order=False
        )
        _refuse_parts(fp, axes)
        masses = search_masses(fp, d > 1, None)
        escape = _escape(fp.grid, masses.sizes, axes, side)
        if escape is None:
            for k, axis in enumerate(axes):
                _shrink(axis, fp, masses.sizes, k, side if d == 1 else 10 * _INFLATED_MASS, d > 1)
            return masses, fp
    assert escape is not None
    raise escape


def _shrink(axis: Axis, fp: FokkerPlanck, masses: np.ndarray, k: int, side: float, robust: bool) -> bool:
    """Fit the box of one axis to the mass; whether it had already been so.

    Masses of the inflated noise have tails of the scheme's own, so there more may lie outside. A side on
    which more lies outside than allowed, out to the end of the grid, is moved out.
    """
    grid = fp.grid
    edges, old = grid.edges[axis.name], axis.chart
    marginal = masses.reshape(grid.shape).sum(axis=tuple(j for j in range(grid.d) if j != k))
    allowed = max(side, _INFLATED_MASS) if robust else side
    ends, outside, full = [old.low, old.high], [0.0, 0.0], True
    for word, values, places, sign in ((0, marginal, edges, -1), (1, marginal[::-1], edges[::-1], 1)):
        if axis.fixed[word]:
            continue
        beyond = np.append(0.0, np.cumsum(values))
        at = int(np.searchsorted(beyond, allowed, side="right")) - 1
        ends[word], outside[word] = _outward(places, at, sign), float(beyond[at])
        if at == 0:  # all of the margin holds mass
            ends[word] += sign * 2.0 * (edges[-1] - edges[0])
            outside[word], full = float(values[0]), False
    axis.below, axis.above = outside
    near, steady = _SETTLED[grid.d] * (ends[1] - ends[0]), True
    if axis.singular is not None:
        before, axis.singular = axis.singular, _singular_end(axis, marginal, edges, side)
        steady = 0.5 < axis.singular[1] / before[1] < 2
        axis.chart = Chart("log", ends[0], ends[1], *axis.singular)
    elif noisy(fp):
        profile = mass_profile(fp, masses, k)
        axis.chart, _ = best_chart(ends[0], ends[1], None, profile, 1e-3, SEARCH_CELLS[grid.d])
    else:
        # on cells that grow outwards, errors of transport without noise feed a tail of their own
        axis.chart = Chart("uniform", *ends)
    return full and steady and abs(old.low - ends[0]) <= near and abs(old.high - ends[1]) <= near


def _outward(edges: np.ndarray, at: int, direction: int) -> float:
    """An edge moved outwards to a number of few digits."""
    step = 10.0 ** np.floor(np.log10(max(abs(edges[at + (1 if direction < 0 else -1)] - edges[at]), 1e-300)))
    value = edges[at] / step
    return float((np.floor(value) if direction < 0 else np.ceil(value)) * step)


def _singular_end(axis: Axis, marginal: np.ndarray, edges: np.ndarray, side: float) -> tuple[float, float]:
    """The end at which the noise vanishes, and the distance within which there is next to no mass."""
    assert axis.singular is not None
    end = axis.singular[0]
    inside, distance = np.cumsum(marginal), edges[1:] - end
    if end != edges[0]:
        inside, distance = np.cumsum(marginal[::-1]), (end - edges[:-1])[::-1]
    if inside[0] > 0.5:
        raise InvalidInput(
            f"there is no stationary density along {axis.name}: the mass collapses onto {axis.name}={end:g}, "
            "where the noise vanishes"
        )
    return end, float(distance[max(int(np.searchsorted(inside, side, side="right")) - 1, 0)])


def _escape(grid: Grid, masses: np.ndarray, axes: list[Axis], side: float) -> InvalidInput | None:
    """Whether mass lies at the far ends of a wide box, as the refusal to be raised."""
    for k, axis in enumerate(axes):
        marginal = masses.reshape(grid.shape).sum(axis=tuple(j for j in range(grid.d) if j != k))
        n = max(len(marginal) // 20, 1)
        edges = grid.edges[axis.name]
        for end, fixed, amount, word in (
            (edges[n], axis.fixed[0], float(marginal[:n].sum()), "below"),
            (edges[-n - 1], axis.fixed[1], float(marginal[-n:].sum()), "above"),
        ):
            if fixed or amount <= (0.01 if grid.d == 1 else 0.2):
                if not fixed and grid.d == 1 and amount > side:
                    _refuse_tail(axis, amount, side, noise=True)
                continue
            return InvalidInput(
                f"there is no stationary density: however wide the box, {100 * amount:.0f} % of the mass lies "
                f"{word} {axis.name}={end:.2g}; give the walls that hold it as box={{{axis.name!r}: (low, high)}}"
            )
    return None


def _refuse_tail(axis: Axis, amount: float, side: float, noise: bool) -> None:
    size = max(abs(axis.chart.low), abs(axis.chart.high))
    if not noise:
        raise InvalidInput(
            f"no box was found: on grids as wide as {axis.name}={size:.2g} transport along the axis without noise "
            f"still spreads {amount:.2g} of the mass to the wall, as where it turns often before it is damped; give "
            f"box={{{axis.name!r}: (low, high)}}"
        )
    raise InvalidInput(
        f"the tail along {axis.name} is too heavy for any box: at {axis.name} of size {size:.2g} it still holds "
        f"{amount:.2g} of the stationary mass, more than {side:.2g} a side; give a larger mass, or "
        f"box={{{axis.name!r}: (low, high)}}"
    )


def _refuse_parts(fp: FokkerPlanck, axes: list[Axis]) -> None:
    """Refuse a state space that falls apart where the noise and the drift vanish together."""
    grid = fp.grid
    for face, axis in zip(fp.faces, axes, strict=True):
        others = tuple(j for j in range(grid.d) if j != face.axis)
        closed = ((face.diffusion + face.split) == 0) & (face.lift == 0)
        shut = np.flatnonzero(closed.all(axis=others))
        if shut.size and shut.size < closed.shape[face.axis]:
            at = grid.edges[axis.name][1 + shut[0]]
            raise InvalidInput(
                f"nothing crosses {axis.name}={at:g}, where noise and drift vanish: choose a side, "
                f"box={{{axis.name!r}: ({at:g}, None)}}"
            )
    pairs = [(f.first.ravel(), f.second.ravel(), f.diffusion + f.split + np.abs(f.lift)) for f in fp.faces]
    first, second, open_ = (np.concatenate([np.ravel(p[j]) for p in pairs]) for j in range(3))
    joined = open_ > 0
    graph = csr_array((np.ones(joined.sum()), (first[joined], second[joined])), shape=(grid.size, grid.size))
    count = csgraph.connected_components(graph, directed=False, return_labels=False)
    if count > 1:
        raise InvalidInput(
            f"there is no unique stationary density: the space falls into {count} parts that exchange nothing"
        )
