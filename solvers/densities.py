"""Densities and observables that users hand in, read on a grid."""

from __future__ import annotations

from collections.abc import Callable
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
    if values.min() < 0:
        raise InvalidInput(f"density contains {values.min():.6g}; give finite values >= 0")
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
        coords = grid.coords()
        observable = _evaluated(observable, coords)
    return _values(grid, observable, "observable").ravel()


def _evaluated(observable: Callable[..., Any], coords: tuple[np.ndarray, ...]) -> np.ndarray:
    with np.errstate(all="ignore"):
        value = np.asarray(observable(*coords))
    if value.dtype.kind not in "fiub":
        raise InvalidInput(f"observable returns {value.dtype}; give a function that returns real numbers")
    return np.broadcast_to(value, coords[0].shape) if value.ndim == 0 else value


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
    if not np.isfinite(values).all():
        raise InvalidInput(f"{what} contains {values[~np.isfinite(values)].ravel()[0]}; give finite values")
    return values


def _refuse_other_cells(grid: Grid, given: xr.DataArray, what: str) -> None:
    """Refuse coordinates that are not the grid's cell centres."""
    for name, centers in grid.centers.items():
        if name not in given.coords:
            continue
        at = np.asarray(given.coords[name].values)
        if at.shape != centers.shape or not (np.abs(at - centers) <= 1e-6 * grid.widths[name]).all():
            raise InvalidInput(
                f"{what} is given on other cells along {name} than the grid's {centers.size} centres; "
                "interpolate it to them first"
            )
