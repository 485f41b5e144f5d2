"""Grids chosen from a model: of an SDE by `Grid.fit`, of a noisy map from where its runs go."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from eos_sde.models.noisy_map import NoisyMap
from solvers import SDE, Grid, InvalidInput, TransferOperator, stationary_density

_PATHS, _STEPS, _EVERY, _SEED = 1000, 1000, 20, 0
_REACH, _WIDER, _ROUNDS = 1.4, 1.3, 12
_GROWING = 4.0  # range of the last quarter of the runs over that of the third: no law that has settled
_OUTER = 1e-8  # stationary mass allowed in the outermost twentieth of the cells on either side
_PER_KICK = 4.0  # cells per standard deviation of a step
_MOST = {1: 3000, 2: 160}
_FEWEST = 60
_PLANE = 160  # cells per axis of an SDE of two components


def automatic_grid(
    model: SDE | NoisyMap,
    *,
    start: Mapping[str, float] | None = None,
    boundary: Any = "reflecting",
    cells: Mapping[str, int] | None = None,
) -> Grid:
    """A grid that holds the stationary mass of a model, with cells that resolve its noise.

    Parameters
    ----------
    model : SDE or NoisyMap
        Of one or two components. An SDE gets `Grid.fit`'s grid, in two dimensions with 160 cells an axis.
    start : mapping of str to float, optional
        Of the runs of a map that show where it goes; 0 where left out.
    boundary : str or mapping
        As for `solvers.FokkerPlanck`.
    cells : mapping of str to int, optional
        Cells per axis where the choice is not left to this function.

    Returns
    -------
    Grid
        For a map of equal cells, about a quarter of the noise of a step wide as far as 3000 cells, or 160 an axis in
        two dimensions, allow. In one dimension the box is widened until the twentieth of it at either end holds less
        than 1e-8 of the stationary mass. The same model gives the same grid.

    Raises
    ------
    InvalidInput
        If the model has no stationary density, or a map has more than two components or no noise.
    """
    if isinstance(model, NoisyMap):
        return _of_map(model, {} if start is None else start, boundary, dict(cells or {}))
    chosen: Any = cells or (dict.fromkeys(model.names, _PLANE) if model.dimension == 2 else None)
    try:
        return Grid.fit(model, boundary=boundary, cells=chosen)
    except InvalidInput as error:
        raise InvalidInput(f"no grid can be chosen for this model ({error}); give the grid") from error


def common_grid(grids: Iterable[Grid]) -> Grid:
    """One uniform grid over the boxes of several with the narrowest of their cells, up to 3000, or 160 an axis.

    Parameters
    ----------
    grids : iterable of Grid
        Over the same axes.

    Returns
    -------
    Grid
    """
    given = list(grids)
    axes = {}
    for name in given[0].names:
        low = min(float(grid.edges[name][0]) for grid in given)
        high = max(float(grid.edges[name][-1]) for grid in given)
        width = min(float(np.median(grid.widths[name])) for grid in given)
        axes[name] = (low, high, _cells((high - low) / width, given[0].d))
    return Grid.uniform(**axes)


def _cells(wanted: float, d: int) -> int:
    return 2 * math.ceil(min(max(wanted, _FEWEST), _MOST[d]) / 2)


def _of_map(rule: NoisyMap, start: Mapping[str, float], boundary: Any, cells: dict[str, int]) -> Grid:
    d = len(rule.names)
    if d > 2:
        raise InvalidInput(f"a transfer operator takes one or two components, this map has {d}")
    run = rule.iterate(
        [start.get(name, 0.0) for name in rule.names],
        steps=_STEPS,
        paths=_PATHS,
        seed=_SEED,
        save_every=_EVERY,
    )
    quarters = np.array_split(run["state"].values, 4, axis=1)
    third, last = (np.ptp(quarter, axis=(0, 1)) for quarter in quarters[2:])
    if bool(run["diverged"].any()) or np.any(last > _GROWING * third):
        raise InvalidInput(
            f"runs of the {rule.name} diverge, or still spread after {_STEPS} steps: there is no stationary density; "
            "give the grid, with walls that belong to the model"
        )
    late = np.concatenate(quarters[2:], axis=1).reshape(-1, d)
    kick = _kicks(rule, late)
    if not np.any(kick > 0):
        raise InvalidInput(f"the {rule.name} has no noise here: there is no density; give it some")
    middle = 0.5 * (late.max(axis=0) + late.min(axis=0))
    reach = _REACH * 0.5 * np.ptp(late, axis=0) + 4 * kick
    for _ in range(_ROUNDS):
        grid = _boxed(rule.names, middle, reach, kick, cells)
        if d > 1:
            return grid
        masses = (
            stationary_density(
                TransferOperator(rule.as_sde(), grid, step=rule.dt, boundary=boundary, allow_wall_mass=True)
            ).values
            * grid.volumes
        )
        outer = max(1, len(masses) // 20)
        if masses[:outer].sum() + masses[-outer:].sum() < _OUTER:
            return grid
        reach = _WIDER * reach
    raise InvalidInput(
        f"however wide the box, the {rule.name} keeps mass at its walls: its tails are heavy; give the grid"
    )


def _kicks(rule: NoisyMap, states: np.ndarray) -> np.ndarray:
    """Median noise of a step for each component, where the map runs."""
    sigma = rule.as_sde().diffusion_at(0.0, tuple(states.T))
    return math.sqrt(rule.dt) * np.array([float(np.median(np.abs(s))) for s in sigma])


def _boxed(
    names: tuple[str, ...], middle: np.ndarray, reach: np.ndarray, kick: np.ndarray, cells: dict[str, int]
) -> Grid:
    axes = {}
    for name, centre, half, noise in zip(names, middle, reach, kick, strict=True):
        wanted = 2 * half * _PER_KICK / noise if noise > 0 else math.inf
        axes[name] = (centre - half, centre + half, cells.get(name) or _cells(wanted, len(names)))
    return Grid.uniform(**axes)
