"""Densities and expectations in time: both Fokker-Planck equations, with fixed or time-dependent coefficients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from solvers.blas_threads import one_blas_thread
from solvers.chain import Chain
from solvers.densities import cell_masses, observable_values
from solvers.errors import InvalidInput
from solvers.exponential_choice import chosen, exponential
from solvers.exponentials import Exponential, Side
from solvers.fokker_planck import FokkerPlanck
from solvers.grid import Grid
from solvers.provenance import provenance
from solvers.time_dependence import CommutatorFreeSteps, TimeDependentFokkerPlanck, chains

Operator = FokkerPlanck | TimeDependentFokkerPlanck


def evolve(
    fp: Operator,
    density: Any,
    times: Sequence[float] | np.ndarray,
    *,
    t0: float = 0.0,
    tol: float = 1e-7,
    method: str = "auto",
) -> xr.DataArray:
    """The density at given times.

    Parameters
    ----------
    fp : FokkerPlanck or TimeDependentFokkerPlanck
    density : DataArray over the axes, or array of the grid's shape
        At t0; nonnegative. It may sit in one cell. Its mass is kept as it is given. Coordinates, where
        there are any, must be the grid's cell centres.
    times : sequence of float
        Increasing, >= t0. Any number of them: output times inside a step or a Krylov space cost a linear
        combination each and shorten nothing (time-dependent: one more step each, from where the step began).
    t0 : float
        Time of `density`.
    tol : float
        Largest local error per step or Krylov space, in mass, relative to the initial mass.
    method : {"auto", "krylov", "implicit", "uniformization"}
        "krylov": the exponential in a rational Krylov space, one factorisation and a dozen solves for all
        times within a factor 16. "implicit": adaptive L-stable steps of order 4. On more than 20 000 cells in
        three dimensions both solve by multigrid cycles, a hundred times as accurately as `tol` asks for and
        without a factorisation (`solvers.resolvents` says how mass is kept). "uniformization": a Poisson
        average of jumps, without factorisation, positive by itself.
        "auto": "krylov" on a line, otherwise the cheaper of "krylov" and "uniformization" by their estimated
        costs. With time-dependent coefficients: how the exponentials of each step are computed.

    Returns
    -------
    DataArray (time, *names)
        Nonnegative; between reflecting or periodic walls the mass is constant to rounding. ``attrs`` tell the
        method, why it was chosen and what it took.

    Raises
    ------
    InvalidInput
        For an unusable operator, density, times or method.
    ConvergenceFailure
        If the steps become too small.

    Notes
    -----
    See `solvers.exponentials` and `solvers.implicit_steps` for the methods, and `solvers.time_dependence` for
    time-dependent coefficients (two exponentials per step, order 4, each compared with two of half the size).

    Examples
    --------
    >>> from solvers import SDE, FokkerPlanck, Grid
    >>> ou = SDE(lambda t, y, p, xp: (-y[0],), lambda t, y, p, xp: (1.0,), convention="ito")
    >>> fp = FokkerPlanck(ou, Grid.uniform(x=(-5, 5, 200)))
    >>> start = np.zeros(200); start[160] = 1 / fp.grid.volumes[160]
    >>> late = evolve(fp, start, [0.5, 8.0])
    >>> round(float((late[1] * fp.grid.volumes * late.x**2).sum()), 3)
    0.5
    """
    grid = _checked_operator(fp)
    masses = cell_masses(grid, density)
    at = _checked_times(times, t0)
    tol = _checked_tolerance(tol)
    side = Side(False, *_structure(fp, t0), 1.0 / np.sqrt(grid.volumes.ravel()))
    rows, told = _propagated(fp, side, masses, at - t0, t0, tol * float(masses.sum()), method)
    values = rows.reshape(-1, *grid.shape) / grid.volumes
    return _labelled(fp, at, values, told | {"tol": tol}, name="density", long_name="density")


def evolve_backward(
    fp: Operator,
    observable: Any,
    times: Sequence[float] | np.ndarray,
    *,
    t0: float = 0.0,
    tol: float = 1e-7,
    method: str = "auto",
) -> xr.DataArray:
    """Expectations E[f(X_t); not absorbed before t | X_t0 = y] of an observable, from every cell y.

    Solves the backward equation du/dt = L^T u, u(t0) = f (Kolmogorov): what a run that starts at y will show at
    t, on average. With the indicator of a set it is the probability to be there.

    Parameters
    ----------
    fp : FokkerPlanck or TimeDependentFokkerPlanck
        With time-dependent coefficients each time needs a sweep of its own, from t back to t0.
    observable : callable, DataArray over the axes, or array of the grid's shape
        ``observable(x, y, ...)`` on arrays of coordinates, or its values at the cell centres.
    times, t0, method
        As for `evolve`.
    tol : float
        Largest local error per step, relative to the range of the observable (with absorbing walls: and 0).

    Returns
    -------
    DataArray (time, *names)
        Between the smallest and the largest value of the observable (and 0, with absorbing walls): the maximum
        principle holds exactly. ``sum(u(t) * density * volumes)`` is the mean of the observable under
        ``evolve(fp, density, [t])``, to the tolerances of both.

    Raises
    ------
    InvalidInput
        For an unusable operator, observable, times or method.
    ConvergenceFailure
        If the steps become too small.

    Examples
    --------
    >>> from solvers import SDE, FokkerPlanck, Grid
    >>> ou = SDE(lambda t, y, p, xp: (-y[0],), lambda t, y, p, xp: (1.0,), convention="ito")
    >>> mean = evolve_backward(FokkerPlanck(ou, Grid.uniform(x=(-6, 6, 300))), lambda x: x, [1.0])
    >>> round(float(mean[0].interp(x=2.0)), 3)  # 2 / e
    0.736
    """
    grid = _checked_operator(fp)
    values = observable_values(grid, observable)
    at = _checked_times(times, t0)
    tol = _checked_tolerance(tol)
    conserving, positive = _structure(fp, t0)
    low, high = float(values.min()), float(values.max())
    if not conserving:
        low, high = min(low, 0.0), max(high, 0.0)
    side = Side(True, conserving, positive, np.sqrt(grid.volumes.ravel()), low, high)
    if low == high:  # a constant stays what it is
        rows, told = np.tile(values, (len(at), 1)), {"method": "constant"}
    else:
        allowed = tol * (high - low)
        if isinstance(fp, FokkerPlanck):
            rows, told = _propagated(fp, side, values, at - t0, t0, allowed, method)
        else:
            sweeps = [
                _propagated(fp, side, values, at[i : i + 1] - t0, t0, allowed, method) for i in range(len(at))
            ]
            rows, told = np.concatenate([rows for rows, _ in sweeps]), sweeps[-1][1]
    return _labelled(
        fp,
        at,
        rows.reshape(-1, *grid.shape),
        told | {"tol": tol},
        name="expectation",
        long_name="expectation of the observable, by the starting point",
    )


@one_blas_thread
def _propagated(
    fp: Operator, side: Side, start: np.ndarray, times: np.ndarray, t0: float, allowed: float, method: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """The solution at times after t0, and what to tell."""
    d, later = fp.grid.d, times[times > 0]
    longest = float(later[-1]) if later.size else 0.0
    solver: Exponential
    if isinstance(fp, FokkerPlanck):
        name, reason = chosen(fp.chain, d, longest, method)
        solver = exponential(fp.chain, side, allowed, name)
    else:
        chain_at = chains(fp, t0)
        # several steps at least
        name, reason = chosen(chain_at(0.0), d, longest / 8, method)
        solver = CommutatorFreeSteps(
            _reversed(chain_at, longest) if side.transposed else chain_at, side, allowed, name
        )
    rows = np.tile(start, (len(times), 1))
    if later.size:
        rows[times > 0] = solver(start, later)
    return rows, {"method": name, "method_reason": reason} | solver.told()


def _reversed(chain_at: Callable[[float], Chain], end: float) -> Callable[[float], Chain]:
    return lambda time: chain_at(end - time)


def _structure(fp: Operator, t0: float) -> tuple[bool, bool]:
    """Whether the walls keep all probability, and whether the generator is a rate matrix."""
    operator = fp if isinstance(fp, FokkerPlanck) else fp.at(t0)
    absorbing = any("absorbing" in pair for pair in operator.boundary.values())
    return not absorbing, operator.chain.extra is None


def _labelled(
    fp: Operator, at: np.ndarray, values: np.ndarray, told: dict[str, Any], *, name: str, long_name: str
) -> xr.DataArray:
    grid = fp.grid
    return xr.DataArray(
        values,
        dims=("time", *grid.names),
        coords={"time": ("time", at, {"units": "time", "long_name": "time"}), **grid.coordinates()},
        name=name,
        attrs={"units": "1", "long_name": long_name} | provenance(convention=fp.sde.convention, **told),
    )


# ---- checks ----------------------------------------------------------------------------------------------


def _checked_operator(fp: Any) -> Grid:
    if not isinstance(fp, (FokkerPlanck, TimeDependentFokkerPlanck)):
        raise InvalidInput(f"fp is a {type(fp).__name__}; pass a FokkerPlanck or a TimeDependentFokkerPlanck")
    return fp.grid


def _checked_tolerance(tol: Any) -> float:
    if not (isinstance(tol, (int, float, np.number)) and 0 < tol < 1):
        raise InvalidInput(f"tol={tol!r}; give a number between 0 and 1")
    return float(tol)


def _checked_times(times: Sequence[float] | np.ndarray, t0: Any) -> np.ndarray:
    if not (isinstance(t0, (int, float, np.number)) and np.isfinite(t0)):
        raise InvalidInput(f"t0={t0!r}; give a finite time")
    try:
        at = np.atleast_1d(np.asarray(times, dtype=float))
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"times={times!r}; give increasing finite times >= {t0:g}") from error
    if at.ndim != 1 or at.size == 0 or not np.isfinite(at).all() or at[0] < t0 or np.any(np.diff(at) <= 0):
        raise InvalidInput(f"times={times!r}; give increasing finite times >= {t0:g}")
    return at
