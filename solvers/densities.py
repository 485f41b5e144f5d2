"""Densities and observables that users hand in, read on a grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from solvers.errors import InvalidInput
from solvers.exit_times import refuse_arity
from solvers.grid import Grid


def cell_masses(grid: Grid, density: Any) -> np.ndarray:
    """The masses of a density's cells.

    Parameters
    ----------
    grid : Grid
    density : DataArray over the axes, or array of the grid's shape
        Nonnegative. Coordinates, where there are any, must be the grid's cell centres.

    Returns
    -------
    ndarray of shape (size,)

    Raises
    ------
    InvalidInput
        If it is no density on this grid.
    """
    values = _values(grid, density, "density")
    if not np.isfinite(values).all() or values.min() < 0:
        bad = values[~(np.isfinite(values) & (values >= 0))].ravel()[0]
        raise InvalidInput(f"density contains {bad}; give finite values >= 0")
    masses = (values * grid.volumes).ravel()
    if masses.sum() <= 0:
        raise InvalidInput("density is zero everywhere; give one with positive mass")
    return masses


def observable_values(grid: Grid, observable: Any) -> np.ndarray:
    """An observable at the cell centres.

    Parameters
    ----------
    grid : Grid
    observable : callable, DataArray over the axes, or array of the grid's shape
        A function takes the coordinates as arrays, in the order of the axes.

    Returns
    -------
    ndarray of shape (size,)

    Raises
    ------
    InvalidInput
        If it gives no finite number in every cell.
    """
    if callable(observable) and not isinstance(observable, xr.DataArray):
        refuse_arity(observable, grid.d, "observable", f"({', '.join(grid.names)})")
        with np.errstate(all="ignore"):
            result = observable(*grid.coords())
        value = np.asarray(result)
        if value.dtype.kind not in "fiub" or value.shape not in {(), grid.shape}:
            raise InvalidInput(
                f"observable returns {type(result).__name__} ({value.dtype}) and not numbers on the grid; give a "
                "function of coordinate arrays"
            )
        observable = np.broadcast_to(value, grid.shape)
    values = _values(grid, observable, "observable")
    if not np.isfinite(values).all():
        raise InvalidInput(f"observable contains {values[~np.isfinite(values)][0]}; give finite values")
    return values.ravel()


def _values(grid: Grid, given: Any, what: str) -> np.ndarray:
    if isinstance(given, xr.DataArray):
        if set(given.dims) != set(grid.names):
            raise InvalidInput(f"{what} has dimensions {given.dims}, but the grid has {grid.names}")
        _refuse_other_cells(grid, given, what)
        given = given.transpose(*grid.names).values
    try:
        values = np.asarray(given, dtype=float)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{what} is a {type(given).__name__} and no array of numbers") from error
    if values.shape != grid.shape:
        raise InvalidInput(f"{what} has shape {values.shape}, but the grid has {grid.shape}")
    return values


def _refuse_other_cells(grid: Grid, given: xr.DataArray, what: str) -> None:
    """Refuse coordinates that are not the grid's cell centres."""
    for name, centers in grid.centers.items():
        if name not in given.coords:
            continue
        coordinate = np.asarray(given.coords[name].values)
        if coordinate.shape != centers.shape:
            raise InvalidInput(
                f"{what} has {coordinate.size} cells along {name}, but the grid has {centers.size}: it is given on "
                "other cells; interpolate it to the grid's centres first"
            )
        off = np.abs(coordinate - centers)
        if not (off <= 1e-6 * grid.widths[name]).all():
            worst = int(np.argmax(np.where(np.isfinite(off), off, np.inf)))
            raise InvalidInput(
                f"{what} is given at {name}={coordinate[worst]:g} where the grid has a cell centre at "
                f"{name}={centers[worst]:g}: it is on other cells, from another grid; interpolate it to the centres "
                "first"
            )
