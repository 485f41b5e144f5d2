"""Densities in time: L-stable implicit steps with an error estimate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sps
import xarray as xr

from solvers.errors import ConvergenceFailure, InvalidInput
from solvers.factorisation import factor
from solvers.fokker_planck import FokkerPlanck
from solvers.provenance import provenance

# (1 - G z)^-1 and its powers; L-stable for 5 stages at order 4 and for 4 stages at order 3 when
# 0.248 <= G <= 0.573 (Hairer and Wanner 1996, table IV.6.4)
_GAMMA = 0.25
_MAX_HALVINGS = 60


def _weights(stages: int) -> np.ndarray:
    """Coefficients c with sum_k c_k (1 - G z)^-k = e^z + O(z^stages), k = 1 ... stages."""
    # (1 - x)^-k = sum_j binom(k + j - 1, j) x^j with x = G z
    powers = np.empty((stages, stages))
    powers[0] = 1.0
    for j in range(1, stages):
        powers[j] = powers[j - 1] * (np.arange(1, stages + 1) + j - 1) / j * _GAMMA
    target = 1.0 / np.cumprod(np.concatenate([[1.0], np.arange(1.0, stages)]))
    return np.linalg.solve(powers, target)


_FOURTH, _THIRD = _weights(5), _weights(4)


def evolve(fp: FokkerPlanck, density: Any, times: Sequence[float], *, tol: float = 1e-7) -> xr.DataArray:
    """The density at given times.

    Parameters
    ----------
    fp : FokkerPlanck
    density : DataArray over the axes, or array of the grid's shape
        At time 0; nonnegative. It may sit in one cell. Its mass is kept as it is given. Coordinates, where
        there are any, must be the grid's cell centres.
    times : sequence of float
        Increasing, >= 0.
    tol : float
        Largest local error per step, in mass, relative to the initial mass.

    Returns
    -------
    DataArray (time, *names)
        Nonnegative; between reflecting or periodic walls the mass is constant to rounding.

    Raises
    ------
    InvalidInput
        For an unusable density or times.
    ConvergenceFailure
        If the step size falls below 2^-60 of an interval.

    Notes
    -----
    A step combines u_k = (1 - G tau L)^-k m, k = 1 ... 5, G = 1/4: five backward Euler steps, each positive
    and mass-conserving since L is a rate matrix. The combination is the L-stable approximation of order 4 of
    the exponential with that one real pole (Norsett; Hairer and Wanner 1996, sec. IV.6), u_1 ... u_4 give one
    of order 3, and their difference in 1-norm is the error estimate that sets the step (by factors of two).
    No method of order above 1 is positive for all steps (Bolley and Crouzeix 1978): what falls below zero,
    less than the error estimate since the exact density is nonnegative, is set to zero and the rest rescaled
    to the same mass, which cannot increase the order of the error.
    """
    if not isinstance(fp, FokkerPlanck):
        raise InvalidInput(f"fp is a {type(fp).__name__}; pass a FokkerPlanck")
    grid = fp.grid
    masses = _checked_masses(fp, density)
    at = _checked_times(times)
    if not 0 < tol < 1:
        raise InvalidInput(f"tol={tol!r}; give a number between 0 and 1")
    stepper = _Stepper(fp.generator, tol * float(masses.sum()))
    result, now = [], 0.0
    for time in at:
        if time > now:
            masses = stepper.advance(masses, float(time - now))
            now = float(time)
        result.append(masses.reshape(grid.shape) / grid.volumes)
    return xr.DataArray(
        np.array(result),
        dims=("time", *grid.names),
        coords={"time": ("time", at, {"units": "time", "long_name": "time"}), **grid.coordinates()},
        name="density",
        attrs={"units": "1", "long_name": "density"} | provenance(convention=fp.sde.convention, tol=tol),
    )


class _Stepper:
    """Adaptive steps; factorisations are kept while the step size recurs."""

    def __init__(self, generator: sps.csr_array, allowed: float):
        self._generator, self._allowed = sps.csc_array(generator), allowed
        size = generator.shape[0]  # pyright: ignore[reportOptionalSubscript]
        self._identity = sps.eye_array(size)
        self._factors: dict[float, Any] = {}
        self._last = np.inf
        # then the mass is set, instead of accumulating rounding
        sums = np.abs(np.ones(size) @ generator)
        self._conserving = bool(np.all(sums <= 1e-12 * np.abs(generator.diagonal())))

    def advance(self, masses: np.ndarray, interval: float) -> np.ndarray:
        # Steps are interval / 2^level; position counts them in the finest units so far, exactly.
        level = 0
        while level < _MAX_HALVINGS and interval / 2**level > self._last * (1 + 1e-12):
            level += 1
        position = 0  # in units of interval / 2^level
        while position < 2**level:
            step = interval / 2**level
            trial, error = self._step(masses, step)
            if error > self._allowed:
                if level == _MAX_HALVINGS:
                    raise ConvergenceFailure(
                        f"the step fell to {step:.2g} with error {error:.2g} in mass; use a larger tol"
                    )
                level, position = level + 1, 2 * position
                continue
            masses, position, self._last = trial, position + 1, step
            # order 3 is estimated: one doubling multiplies the error of a smooth solution by 2^4
            if error < self._allowed / 32 and level > 0 and position % 2 == 0:
                level, position = level - 1, position // 2
                self._last = interval / 2**level
        return masses

    def _step(self, masses: np.ndarray, step: float) -> tuple[np.ndarray, float]:
        if step not in self._factors:
            while len(self._factors) >= 4:
                self._factors.pop(next(iter(self._factors)))
            system = sps.csc_array(self._identity - (_GAMMA * step) * self._generator)
            self._factors[step] = factor(system, symmetric=False)
        solve = self._factors[step].solve
        fourth, third = np.zeros_like(masses), np.zeros_like(masses)
        stage = masses
        for k in range(5):
            stage = solve(stage)
            fourth += _FOURTH[k] * stage
            if k < 4:
                third += _THIRD[k] * stage
        error = float(np.abs(fourth - third).sum())
        total, kept = fourth.sum(), np.maximum(fourth, 0.0)
        if self._conserving:
            total = masses.sum()
        return kept * (total / kept.sum()) if kept.sum() > 0 else kept, error


def _checked_masses(fp: FokkerPlanck, density: Any) -> np.ndarray:
    grid = fp.grid
    if isinstance(density, xr.DataArray):
        if set(density.dims) != set(grid.names):
            raise InvalidInput(f"density has dimensions {density.dims}, but the grid has {grid.names}")
        _refuse_other_cells(fp, density)
        density = density.transpose(*grid.names).values
    try:
        values = np.asarray(density, dtype=float)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"density is a {type(density).__name__} and no array of numbers") from error
    if values.shape != grid.shape:
        raise InvalidInput(f"density has shape {values.shape}, but the grid has {grid.shape}")
    if not np.isfinite(values).all() or values.min() < 0:
        raise InvalidInput(f"density contains {values[~(values >= 0)].ravel()[0]}; give finite values >= 0")
    masses = (values * grid.volumes).ravel()
    if masses.sum() <= 0:
        raise InvalidInput("density is zero everywhere; give one with positive mass")
    return masses


def _refuse_other_cells(fp: FokkerPlanck, density: xr.DataArray) -> None:
    """Refuse coordinates that are not the grid's cell centres."""
    for name, centers in fp.grid.centers.items():
        if name not in density.coords:
            continue
        given = np.asarray(density.coords[name].values)
        if given.shape != centers.shape:
            raise InvalidInput(
                f"density has {given.size} cells along {name}, but the grid has {centers.size}"
            )
        off = np.abs(given - centers)
        if not (off <= 1e-6 * fp.grid.widths[name]).all():
            worst = int(np.argmax(np.where(np.isfinite(off), off, np.inf)))
            raise InvalidInput(
                f"density is given at {name}={given[worst]:g} where the grid has a cell centre at "
                f"{name}={centers[worst]:g}: it is from another grid; interpolate it to the centres first"
            )


def _checked_times(times: Sequence[float]) -> np.ndarray:
    try:
        at = np.atleast_1d(np.asarray(times, dtype=float))
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"times={times!r}; give increasing finite times >= 0") from error
    if at.ndim != 1 or at.size == 0 or not np.isfinite(at).all() or at[0] < 0 or np.any(np.diff(at) <= 0):
        raise InvalidInput(f"times={times!r}; give increasing finite times >= 0")
    return at
