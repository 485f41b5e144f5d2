"""The spectrum of a model of the catalogue: of its Fokker-Planck operator, or as a map of its transfer operator."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from eos_sde.models.registry import Model
from eos_sde.thresholds.automatic_grids import automatic_grid
from solvers import FokkerPlanck, Grid, InvalidInput, TransferOperator, eigenmodes, stationary_density
from solvers.errors import AccuracyWarning
from solvers.provenance import provenance

_TELLING = 0.05


def model_spectrum(
    model: Model,
    parameters: Mapping[str, float],
    *,
    grid: Grid | None = None,
    boundary: Mapping[str, tuple[str, str]] | None = None,
    modes: int = 6,
    method: str = "auto",
    progress: Callable[[str, float], Any] | None = None,
) -> xr.Dataset:
    """Eigenmodes of a model, with its stationary density.

    Parameters
    ----------
    model : Model
    parameters : mapping of str to float
    grid : Grid, optional
        Left out, `automatic_grid`'s, in two dimensions of 160 cells an axis whatever accuracy that gives: then
        ``gap_difference`` tells how far, as a part of it, the gap is from that on half as many. Or with absorbing
        walls, refused: where they stand is part of the model.
    boundary : mapping, optional
        ``{axis: (low, high)}``, as for `solvers.FokkerPlanck`; reflecting where left out.
    modes : int
        How many, at least 2.
    method : str
        Of `solvers.eigenmodes`.
    progress : callable, optional
        Called with what is being worked on and the finished fraction of it.

    Returns
    -------
    Dataset
        That of `solvers.eigenmodes`, and ``density``: stationary, or with absorbing walls quasi-stationary.

    Raises
    ------
    InvalidInput
        If a parameter is unusable, the model has no noise, or there is no grid to be found.
    ConvergenceFailure
        If a mode does not converge.

    Warns
    -----
    AccuracyWarning
        If ``gap_difference`` is above 5 %.
    """
    whole = model.complete(**parameters)
    if not model.kicks or not any(whole[name] for name in model.kicks):
        remedy = f"give {' or '.join(model.kicks)} above 0" if model.kicks else "choose a model with noise"
        raise InvalidInput(f"{model.name} has no noise here, and so no spectrum of a density; {remedy}")
    if modes < 2:
        raise InvalidInput(f"modes={modes}: the first is the density itself; give at least 2")
    walls = dict.fromkeys(model.components, ("reflecting", "reflecting")) | dict(boundary or {})
    kinds = {kind for pair in walls.values() for kind in pair}
    if grid is None and kinds != {"reflecting"}:
        raise InvalidInput("a wall that absorbs or wraps needs a grid: where it stands is part of the model")
    say = progress if progress is not None else _silent
    made: Any = model.build_map(**whole) if model.discrete else model.build(**whole)
    say("grid", 0.0)
    chosen = grid is None
    grid = automatic_grid(made, start=model.start) if grid is None else grid
    say("operator", 0.0)
    operator = _operator(model, made, grid, walls)
    say("eigenmodes", 0.0)
    table = eigenmodes(operator, modes, method=method)
    doubt = {}
    if chosen and grid.d > 1:  # of so many cells as time allows, not as the accuracy asks
        say("half the cells", 0.0)
        doubt["gap_difference"] = _doubt(model, made, grid, walls, method, table)
    if "absorbing" in kinds:
        density = table["right"].isel(mode=0, drop=True)
        density = abs(density.real).assign_attrs(long_name="quasi-stationary density", units="1")
    else:
        say("density", 0.0)
        density = stationary_density(operator)
    edges = {name: np.asarray(grid.edges[name])[[0, -1]].tolist() for name in grid.names}
    text = {"long_name": density.attrs["long_name"], "units": "1"}
    return table.assign(density=density.drop_attrs().assign_attrs(text)).assign_attrs(
        provenance(
            kind="spectrum", model=model.name, description=model.description, parameters=json.dumps(whole),
            operator="transfer operator" if model.discrete else "Fokker-Planck operator",
            step=made.dt if model.discrete else None, box=json.dumps(edges),
            boundary=json.dumps(walls), cells=json.dumps(list(grid.shape)), **doubt,
        )
    )  # fmt: skip


def _operator(model: Model, made: Any, grid: Grid, walls: Mapping[str, tuple[str, str]]) -> Any:
    if model.discrete:
        return TransferOperator(made.as_sde(), grid, step=made.dt, boundary=walls)
    advection = "second-order" if grid.d > 1 else "upwind"
    return FokkerPlanck(made, grid, boundary=walls, advection=advection)


def _doubt(
    model: Model, made: Any, grid: Grid, walls: Mapping[str, tuple[str, str]], method: str, table: xr.Dataset
) -> float:
    """How far the gap is from that on every second edge of the grid, as a part of it."""
    half = Grid(**{name: np.asarray(edges)[::2] for name, edges in grid.edges.items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AccuracyWarning)  # told of the finer grid
        coarse = eigenmodes(_operator(model, made, half, walls), table.sizes["mode"], method=method)
    gap, other = float(table["gap"]), float(coarse["gap"])
    difference = abs(gap - other) / abs(gap) if gap else math.inf
    if difference > _TELLING:
        warnings.warn(
            AccuracyWarning(
                f"on half as many cells an axis the gap is {other:.4g} instead of {gap:.4g}: it is not known better "
                f"than to {100 * difference:.0f} %; give grid more cells"
            ),
            stacklevel=3,
        )
    return difference


def _silent(what: str, fraction: float) -> None:
    """Says nothing."""
