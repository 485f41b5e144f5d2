"""What a grid does to a model: excess diffusion, diffusion added without noise, mass at the walls."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from solvers.errors import InvalidInput
from solvers.fokker_planck import FokkerPlanck
from solvers.nonreversible import stationary_masses
from solvers.provenance import provenance


def resolution(fp: FokkerPlanck, density: Any = None) -> xr.Dataset:
    """How well a grid resolves a model where its mass lies, per axis.

    Parameters
    ----------
    fp : FokkerPlanck
    density : DataArray or array of the grid's shape, optional
        Where the mass lies, for example a quasi-stationary density; the stationary density by default.

    Returns
    -------
    Dataset (axis)
        Means are over the mass. ``peclet``: root mean square of the cell Peclet number (drift times spacing
        over D), zero on an axis without noise. ``excess_diffusion``: diffusion of the scheme above the model's,
        over the model's, averaged over the faces with noise; slow eigenvalues are off by about as much.
        ``numerical_diffusion``: what upwind fluxes add where there is no noise, |a| h / 2, in length^2 / time;
        zero with ``advection="second-order"``. ``upwind_share``: that, over the spread times the speed of the
        model, (variance * mean a^2)^1/2: the diffusion that the motion along the axis itself amounts to.
        ``wall_mass(axis, side)``: mass in the outermost cell, over what it would be were the density
        uniform; large at a wall that cuts the density off.

    Raises
    ------
    InvalidInput
        If the density is unusable, or there is no stationary one.

    Notes
    -----
    The variance along an axis without noise grows by about `upwind_share` times the number of radians that the
    motion turns before it is damped; twice the cells halve it.

    Examples
    --------
    >>> from solvers import SDE, Grid
    >>> ou = SDE(lambda t, y, p, xp: (-y[0],), lambda t, y, p, xp: (1.0,), convention="ito")
    >>> report = resolution(FokkerPlanck(ou, Grid.uniform(x=(-4, 4, 80))))
    >>> bool(0 < report.excess_diffusion.sel(axis="x") < 0.002)
    True
    """
    if not isinstance(fp, FokkerPlanck):
        raise InvalidInput(f"fp is a {type(fp).__name__}; pass a FokkerPlanck")
    masses = stationary_masses(fp.chain) if density is None else _masses(fp, density)
    grid = fp.grid
    rows = [_of_axis(fp, masses, k) for k in range(grid.d)]
    about = {
        "peclet": ("root mean square of the cell Peclet number", "1"),
        "excess_diffusion": ("excess diffusion of the scheme over the model's", "1"),
        "numerical_diffusion": ("diffusion added by upwind fluxes where there is no noise", "1/time"),
        "upwind_share": ("diffusion added over spread times speed of the model", "1"),
    }
    data: dict[str, Any] = {
        name: ("axis", [row[k] for row in rows], {"long_name": long_name, "units": units})
        for k, (name, (long_name, units)) in enumerate(about.items())
    }
    data["wall_mass"] = (
        ("axis", "side"),
        [_at_walls(fp, masses, k) for k in range(grid.d)],
        {"long_name": "mass in the outermost cells, relative to a uniform density", "units": "1"},
    )
    return xr.Dataset(
        data,
        coords={
            "axis": ("axis", list(grid.names), {"long_name": "axis of the grid", "units": "1"}),
            "side": ("side", ["low", "high"], {"long_name": "side of the grid", "units": "1"}),
        },
        attrs=provenance(convention=fp.sde.convention, flux=fp.flux, advection=fp.advection),
    )


def _of_axis(fp: FokkerPlanck, masses: np.ndarray, k: int) -> tuple[float, float, float, float]:
    peclet, excess, _ = fp.mean_excess(masses, k)
    added, share = fp.upwind_diffusion(masses, k)
    return peclet, excess, added, share


def _at_walls(fp: FokkerPlanck, masses: np.ndarray, k: int) -> list[float]:
    grid = fp.grid
    name = grid.names[k]
    marginal = masses.reshape(grid.shape).sum(axis=tuple(j for j in range(grid.d) if j != k))
    extent = grid.edges[name][-1] - grid.edges[name][0]
    return [float(marginal[side] * extent / grid.widths[name][side]) for side in (0, -1)]


def _masses(fp: FokkerPlanck, density: Any) -> np.ndarray:
    try:
        values = np.asarray(density, dtype=float)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"density is a {type(density).__name__} and no array of numbers") from error
    if values.shape != fp.grid.shape:
        raise InvalidInput(f"density has shape {values.shape}, but the grid has {fp.grid.shape}")
    masses = (values * fp.grid.volumes).ravel()
    if not (np.isfinite(masses).all() and masses.sum() > 0):
        raise InvalidInput("density must be finite and have positive mass")
    return masses / masses.sum()
