"""Paths driven by given increments: for order studies and comparisons on one Brownian path, coarse and fine."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from solvers import wiener
from solvers.errors import InvalidInput
from solvers.model_forms import form_of
from solvers.provenance import provenance
from solvers.request import checked_start

if TYPE_CHECKING:
    from solvers.sde import SDE
    from solvers.vector_form import VectorSDE


def drive(
    sde: SDE | VectorSDE,
    y0: Any,
    increments: Any,
    *,
    dt: float,
    t0: float = 0.0,
    scheme: str = "euler-maruyama",
    every_step: bool = True,
) -> xr.DataArray:
    """Solve an SDE on given Brownian increments, with the schemes of `simulate`.

    Parameters
    ----------
    sde : SDE or VectorSDE
        In any convention; converted exactly to the one the scheme converges to.
    y0 : float or array
        A number (d = 1), shape (d,), or shape (paths, d).
    increments : array (paths, steps, number)
        What the scheme takes in each step dt (see `schemes.Draws`), for example from `weak_increments.drawn`:
        for most schemes the increments of the m Wiener processes, for "sra1" and "sriw1" followed by m
        independent Gaussian numbers of variance dt.
    dt, t0 : float
        Step and start.
    scheme : str
        As in `simulate`; "auto" too.
    every_step : bool
        Keep every step, or only the end.

    Returns
    -------
    DataArray
        ``state(path, time, component)``; the start is the first time if every step is kept.

    Raises
    ------
    InvalidInput
        If the increments do not have that shape, or contain nan or infinity.
    """
    form = form_of(sde)
    found, _ = form.scheme(scheme, sde)
    m = sum(form.draws(found, sde))
    dw = np.ascontiguousarray(increments, dtype=float)
    if dw.ndim != 3 or dw.shape[2] != m or 0 in dw.shape:
        raise InvalidInput(
            f"increments has shape {dw.shape}; {found.name!r} takes (paths, steps, {m}), none of them zero"
        )
    if not np.isfinite(dw).all():
        raise InvalidInput("increments contains nan or infinity; give finite numbers")
    if not dt > 0:
        raise InvalidInput(f"dt={dt} must be positive")
    paths, steps, _ = dw.shape
    start = np.ascontiguousarray(np.broadcast_to(checked_start(sde, y0, paths), (paths, sde.dimension)))
    kept = steps + 1 if every_step else 1
    states = np.empty((paths, kept, sde.dimension))
    form.follow(found, sde)(float(t0), float(dt), start, dw, states)
    times = t0 + dt * (np.arange(steps + 1) if every_step else np.array([steps]))
    return xr.DataArray(
        states,
        dims=("path", "time", "component"),
        coords={
            "path": ("path", np.arange(paths), {"units": "1", "long_name": "path number"}),
            "time": ("time", times, {"units": "time", "long_name": "time"}),
            "component": ("component", list(sde.names), {"long_name": "component of the state"}),
        },
        name="state",
        attrs={
            "units": "1",
            "long_name": "state",
            **provenance(convention=sde.convention, scheme=found.name, dt=float(dt)),
        },
    )


def coarsen_integrals(fine: np.ndarray, factor: int) -> np.ndarray:
    """Increments and integrals of the same Brownian paths over steps ``factor`` times as long.

    Parameters
    ----------
    fine : ndarray, shape (paths, steps, 2 m)
        Increments dW of the m Wiener processes, then the m numbers U with which the integral over a step is
        ``int W ds = dt (dW + U / sqrt(3)) / 2``: what "sra1" and "sriw1" take.
    factor : int
        How many fine steps make a coarse one.

    Returns
    -------
    ndarray, shape (paths, steps // factor, 2 m)

    Raises
    ------
    InvalidInput
        If factor does not divide the number of steps, or the last axis is odd.
    """
    paths, steps, width = fine.shape
    if width % 2:
        raise InvalidInput(
            f"fine has {width} numbers a step; give 2 m: increments, then as many for integrals"
        )
    coarse = wiener.coarsen(fine, factor)
    m = width // 2
    parts = fine.reshape(paths, steps // factor, factor, width)
    # The mean of W over a coarse step: of each fine step its own mean and the increments before it.
    own = 0.5 * (parts[..., :m] + parts[..., m:] / math.sqrt(3.0)).mean(axis=2)
    later = np.arange(factor - 1, -1, -1) / factor
    mean = own + np.einsum("pnfk,f->pnk", parts[..., :m], later)
    coarse[..., m:] = math.sqrt(3.0) * (2.0 * mean - coarse[..., :m])
    return coarse
