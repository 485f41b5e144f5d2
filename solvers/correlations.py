"""Stationary autocorrelation and power spectrum of an observable, by modes or by solving with the generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.linalg as sl
import scipy.sparse as sps
import xarray as xr

from solvers.blas_threads import one_blas_thread
from solvers.densities import observable_values
from solvers.errors import ConvergenceFailure, InvalidInput
from solvers.factorisation import factor
from solvers.fokker_planck import FokkerPlanck
from solvers.nonreversible import stationary_masses
from solvers.provenance import provenance
from solvers.regions import checked_grid
from solvers.reversible import symmetrised
from solvers.spectrum import eigenmodes

_LARGEST_SPACE = 200


def stationary_autocorrelation(
    fp: FokkerPlanck,
    observable: Any,
    times: Sequence[float],
    *,
    method: str = "solve",
    k: int = 10,
    tol: float = 1e-9,
) -> xr.Dataset:
    """Autocovariance C(t) = <f(X_0) f(X_t)> - <f>^2 of an observable in the stationary state.

    Parameters
    ----------
    fp : FokkerPlanck
        With one stationary density.
    observable : callable, DataArray over the axes, or array of the grid's shape
        f, a function of the coordinates such as ``lambda x, y: x``, or its values at cell centres.
    times : sequence of float
        Lags >= 0.
    method : {"solve", "modes"}
        "solve": the exponential of the whole generator in a rational Krylov space, to `tol`. "modes": the sum
        over the k slowest modes, whose amplitudes say which relaxation shows in f.
    k : int
        Number of modes for "modes", the stationary one included.
    tol : float
        Largest error for "solve", relative to the variance.

    Returns
    -------
    Dataset
        ``autocovariance(time)`` in units of f squared, ``autocorrelation(time)`` = C(t) / C(0), ``variance`` and
        ``mean`` of f. With "modes" also ``amplitude(mode)``, the share of the variance that relaxes with
        ``eigenvalue(mode)``, and ``truncated``, the share 1 - sum(amplitude) that faster modes hold: for a
        reversible operator it bounds the error of the autocorrelation, which falls at least like
        exp(eigenvalue of the last mode * t).

    Raises
    ------
    InvalidInput
        For an unusable argument, an observable that does not vary, or without one stationary density.
    ConvergenceFailure
        As for `eigenmodes` and `stationary_density`, or if the Krylov space grows too large.

    Notes
    -----
    C(t) = sum_i f_i (e^(tL) m f)_i over cells. The Krylov space is that of (s - L)^-1 with one shift s, the rate
    at which f decorrelates at first, so one factorisation serves all times (van den Eshof and Hochbruck, SIAM
    J. Sci. Comput. 27 (2006) 1438). For streaming estimates from simulated paths see
    ``simulate(statistics=...)``.

    Examples
    --------
    >>> from solvers import SDE, FokkerPlanck, Grid
    >>> ou = SDE(lambda t, y, p, xp: (-y[0],), lambda t, y, p, xp: (1.0,), convention="ito")
    >>> fp = FokkerPlanck(ou, Grid.uniform(x=(-5, 5, 400)))
    >>> result = stationary_autocorrelation(fp, lambda x: x, [0.0, 1.0, 2.0])
    >>> result.autocorrelation.round(3).values.tolist()
    [1.0, 0.368, 0.135]
    """
    grid = checked_grid(fp)
    at = _checked_numbers("times", times)
    if at.min() < 0:
        raise InvalidInput(f"times contain {at.min():g}; give lags >= 0")
    _refuse_method(method)
    if not 0 < tol < 1:
        raise InvalidInput(f"tol={tol!r}; give a number between 0 and 1")
    signal = _Signal(fp, observable)
    extra: dict[str, Any] = {}
    if method == "modes":
        values, amplitude = _mode_sum(fp, signal, k)
        covariance = np.real(np.exp(np.multiply.outer(at, values)) @ amplitude)
        extra = _mode_variables(values, amplitude, signal.variance)
    else:
        covariance = _krylov_covariance(fp, signal, at, tol)
    units = {"units": "1"}
    return xr.Dataset(
        {
            "autocovariance": ("time", covariance, units | {"long_name": "autocovariance of the observable"}),
            "autocorrelation": (
                "time",
                covariance / signal.variance,
                units | {"long_name": "autocorrelation of the observable"},
            ),
            **_moments(signal),
            **extra,
        },
        coords={"time": ("time", at, {"units": "time", "long_name": "lag"}), **_mode_coordinate(extra)},
        attrs=provenance(convention=fp.sde.convention, method=method, cells=grid.size),
    )


def power_spectrum(
    fp: FokkerPlanck, observable: Any, frequencies: Sequence[float], *, method: str = "solve", k: int = 10
) -> xr.Dataset:
    """Power spectral density S(w) = int C(t) e^(-i w t) dt over all t, of an observable in the stationary state.

    Parameters
    ----------
    fp : FokkerPlanck
        With one stationary density.
    observable : callable, DataArray over the axes, or array of the grid's shape
        As for `stationary_autocorrelation`.
    frequencies : sequence of float
        Angular frequencies w, in radians per time.
    method : {"solve", "modes"}
        "solve": S = 2 Re f . (i w - L)^-1 (m f), one sparse solve a frequency. "modes": the sum of the
        k slowest modes' Lorentzians.
    k : int
        Number of modes for "modes", the stationary one included.

    Returns
    -------
    Dataset
        ``power(frequency)``, in units of f squared times time, two-sided: its integral over all w is 2 pi times
        ``variance``. ``mean`` of f; with "modes" also ``amplitude(mode)``, ``eigenvalue(mode)`` and
        ``truncated`` as for `stationary_autocorrelation`.

    Raises
    ------
    InvalidInput
        For an unusable argument, an observable that does not vary, or without one stationary density.
    ConvergenceFailure
        As for `eigenmodes` and `stationary_density`.

    Notes
    -----
    Risken, The Fokker-Planck Equation (1989), sec. 7.2. An Ornstein-Uhlenbeck process has the Lorentzian
    2 k var / (k^2 + w^2) of its position.
    """
    checked_grid(fp)
    at = _checked_numbers("frequencies", frequencies)
    _refuse_method(method)
    signal = _Signal(fp, observable)
    extra: dict[str, Any] = {}
    if method == "modes":
        values, amplitude = _mode_sum(fp, signal, k)
        decaying = amplitude != 0
        power = 2 * np.real((amplitude[decaying] / (1j * at[:, None] - values[decaying])).sum(axis=1))
        extra = _mode_variables(values, amplitude, signal.variance)
    else:
        power = _solved_power(fp, signal, at)
    return xr.Dataset(
        {
            "power": (
                "frequency",
                power,
                {"units": "time", "long_name": "power spectral density, two-sided"},
            ),
            **_moments(signal),
            **extra,
        },
        coords={
            "frequency": ("frequency", at, {"units": "1/time", "long_name": "angular frequency"}),
            **_mode_coordinate(extra),
        },
        attrs=provenance(convention=fp.sde.convention, method=method),
    )


class _Signal:
    """An observable about its mean, and its masses: C(t) = function . e^(tL) masses."""

    def __init__(self, fp: FokkerPlanck, observable: Any):
        values = observable_values(fp.grid, observable)
        self.stationary = stationary_masses(fp.chain)
        self.mean = float(values @ self.stationary)
        self.function = values - self.mean
        self.masses = self.stationary * self.function
        self.variance = float(self.function @ self.masses)
        if not self.variance > (1e-14 * np.abs(values).max()) ** 2:
            raise InvalidInput(
                f"the observable does not vary in the stationary state (its value is {self.mean:.6g}); give another"
            )


def _mode_sum(fp: FokkerPlanck, signal: _Signal, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, and amplitudes with C(t) = sum amplitude e^(eigenvalue t)."""
    if not isinstance(k, (int, np.integer)) or not 2 <= k <= fp.grid.size:
        raise InvalidInput(f"k={k!r} modes of {fp.grid.size} cells; give an integer from 2 to {fp.grid.size}")
    modes = eigenmodes(fp, int(k))
    count = modes.sizes["mode"]
    right = (modes.right.values * fp.grid.volumes).reshape(count, -1)
    amplitude = (right @ signal.function) * (modes.left.values.reshape(count, -1) @ signal.masses)
    amplitude[0] = 0.0  # the mean is subtracted
    return modes.eigenvalue.values, amplitude


@one_blas_thread
def _krylov_covariance(fp: FokkerPlanck, signal: _Signal, times: np.ndarray, tol: float) -> np.ndarray:
    generator, n = fp.chain.generator, fp.grid.size
    # scaled so that a reversible generator is symmetric and any other one near normal
    root = np.sqrt(np.maximum(signal.stationary, 0.0))
    start = end = signal.function * root
    if fp.reversible:
        scaled = symmetrised(fp.chain)
    else:
        root = np.maximum(root, 1e-140)
        scaled = sps.csc_array(sps.diags_array(1 / root) @ generator @ sps.diags_array(root))
    size = float(np.linalg.norm(start))
    initial = -float(signal.function @ (generator @ signal.masses)) / signal.variance
    shift = initial if initial > 0 else fp.chain.rate_scale
    solve = factor(sps.csc_array(shift * sps.eye_array(n) - scaled), symmetric=fp.reversible).solve
    largest = min(_LARGEST_SPACE, n)
    basis, hessenberg = np.zeros((largest + 1, n)), np.zeros((largest + 1, largest))
    basis[0] = start / size
    before = None
    for m in range(1, largest + 1):
        grown = solve(basis[m - 1])
        for _ in range(2):  # twice is enough
            overlap = basis[:m] @ grown
            grown -= basis[:m].T @ overlap
            hessenberg[:m, m - 1] += overlap
        hessenberg[m, m - 1] = np.linalg.norm(grown)
        exhausted = hessenberg[m, m - 1] < 1e-13 * hessenberg[0, 0]
        if not exhausted:
            basis[m] = grown / hessenberg[m, m - 1]
        if m % 5 and not exhausted and m < largest:
            continue
        projected = shift * np.eye(m) - np.linalg.inv(hessenberg[:m, :m])
        weights = size * (basis[:m] @ end)
        now = np.array([weights @ sl.expm(t * projected)[:, 0] for t in times])
        if exhausted or (before is not None and np.abs(now - before).max() <= tol * signal.variance):
            return now
        before = now
    raise ConvergenceFailure(
        f"the Krylov space of {largest} vectors does not give the autocorrelation to tol={tol:g}; use a larger "
        "tol, or leave out the shortest times"
    )


@one_blas_thread
def _solved_power(fp: FokkerPlanck, signal: _Signal, frequencies: np.ndarray) -> np.ndarray:
    generator = sps.csc_array(fp.chain.generator)
    identity, power = sps.eye_array(fp.grid.size), np.empty(len(frequencies))
    for place, frequency in enumerate(frequencies):
        if frequency == 0:
            power[place] = 2 * float(signal.function @ _integrated(generator, signal))
            continue
        system = sps.csc_array(1j * frequency * identity - generator)
        response = factor(system, symmetric=False).solve(signal.masses.astype(complex))
        power[place] = 2 * float(np.real(signal.function @ response))
    return power


def _integrated(generator: sps.csc_array, signal: _Signal) -> np.ndarray:
    """The integral of e^(tL) masses over t >= 0: L is singular, so the heaviest cell is left out."""
    pin = int(np.argmax(signal.stationary))
    rest = np.delete(np.arange(len(signal.stationary)), pin)
    result = np.zeros(len(signal.stationary))
    result[rest] = factor(sps.csc_array(-generator[rest][:, rest]), symmetric=False).solve(
        signal.masses[rest]
    )
    return result - signal.stationary * result.sum()


def _moments(signal: _Signal) -> dict[str, Any]:
    return {
        "mean": ((), signal.mean, {"units": "1", "long_name": "stationary mean of the observable"}),
        "variance": (
            (),
            signal.variance,
            {"units": "1", "long_name": "stationary variance of the observable"},
        ),
    }


def _mode_variables(values: np.ndarray, amplitude: np.ndarray, variance: float) -> dict[str, Any]:
    share = amplitude / variance
    truncated = float(1.0 - np.real(share.sum()))
    return {
        "amplitude": ("mode", share, {"units": "1", "long_name": "share of the variance in the mode"}),
        "eigenvalue": ("mode", values, {"units": "1/time", "long_name": "eigenvalue of the generator"}),
        "truncated": ((), truncated, {"units": "1", "long_name": "share of the variance in faster modes"}),
    }


def _mode_coordinate(extra: dict[str, Any]) -> dict[str, Any]:
    if not extra:
        return {}
    count = len(extra["eigenvalue"][1])
    return {"mode": ("mode", np.arange(count), {"units": "1", "long_name": "mode, slowest first"})}


def _refuse_method(method: str) -> None:
    if method not in {"solve", "modes"}:
        raise InvalidInput(f"method={method!r} is unknown; choose 'solve' or 'modes'")


def _checked_numbers(name: str, numbers: Sequence[float]) -> np.ndarray:
    try:
        at = np.atleast_1d(np.asarray(numbers, dtype=float))
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{name}={numbers!r}; give finite numbers") from error
    if at.ndim != 1 or at.size == 0 or not np.isfinite(at).all():
        raise InvalidInput(f"{name}={numbers!r}; give finite numbers")
    return at
