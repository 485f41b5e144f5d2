"""Lyapunov and moment Lyapunov exponents of linear SDEs by simulation, and how exponents are told."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from solvers.errors import AccuracyWarning, InvalidInput
from solvers.linear_growth import Settings, cloned_rates, growth, mean_and_stderr
from solvers.linear_request import checked_matrices, checked_moments, checked_simulation
from solvers.provenance import provenance
from solvers.wiener import checked_integer

_NAMES = {
    "stderr": "standard error",
    "error": "estimated error of truncation",
    "bias": "estimated bias from the number of clones",
    "bias_stderr": "standard error of the estimated bias",
}


def linear_lyapunov_exponent(
    drift: Any,
    noises: Any,
    *,
    seed: int | None,
    dt: float = 0.01,
    duration: float = 2000.0,
    paths: int = 64,
    count: int | None = None,
    burn_in: float | None = None,
    threads: int | None = None,
) -> xr.Dataset:
    """Lyapunov exponents of dy = A y dt + sum_k B_k y dW_k (Ito) by simulation, d up to 100 and more.

    Parameters
    ----------
    drift : array (d, d)
        A.
    noises : array (m, d, d)
        B_k.
    seed : int
        Of the Brownian paths; the result has the same bits for any number of threads.
    dt : float
        Step. The bias is of order dt^2 (none if all matrices commute) and no step is unstable.
    duration : float
        Time of each path; rounded to whole pairs of steps.
    paths : int
        Independent paths, at least 20: the standard error is that of their mean.
    count : int, optional
        How many exponents, largest first, 1 to d.
    burn_in : float, optional
        Time left out at the start; a tenth of the duration if not given.
    threads : int, optional
        All cores of the process if not given; paths are shared out in blocks of 32.

    Returns
    -------
    Dataset
        ``value``, ``stderr`` of the top exponent; ``bias`` with ``bias_stderr``: what the steps contribute to
        the value, a third of the difference between steps 2 dt and dt on the same Brownian paths (not
        subtracted). With `count` also ``exponent`` and ``exponent_stderr`` (index). In 1/time.

    Raises
    ------
    InvalidInput
        If an argument cannot be used, or dt is too large for the noise.

    Warns
    -----
    AccuracyWarning
        If the first half of the time disagrees with the second, or the bias exceeds the standard error.

    Notes
    -----
    Steps are products of exact flows of drift and noises, see `solvers.linear_flow`.
    """
    matrix, matrices = checked_matrices(drift, noises)
    settings = checked_simulation(seed, dt, duration, paths, burn_in, threads)
    number = 1 if count is None else checked_count(count, len(matrix))
    found = growth(matrix, matrices, number, settings)
    value, stderr = mean_and_stderr(found.rates[:, 0])
    bias, bias_stderr = mean_and_stderr((found.coarse - found.rates[:, 0]) / 3)
    _warn_of_burn_in(found.halves, settings)
    if abs(bias) > 3 * bias_stderr + stderr + 1e-12 * abs(value):
        warnings.warn(
            f"the steps dt={settings.dt:g} change the exponent by about {bias:.2g}, more than its standard error "
            f"{stderr:.2g}; use smaller ones",
            AccuracyWarning,
            stacklevel=2,
        )
    data: dict[str, Any] = {
        "value": ((), value, rate_attributes("top Lyapunov exponent")),
        "stderr": ((), stderr, rate_attributes("standard error")),
        "bias": ((), bias, rate_attributes("estimated bias from the length of the steps")),
        "bias_stderr": ((), bias_stderr, rate_attributes("standard error of the estimated bias")),
    }
    coords = {}
    if count is not None:
        pairs = [mean_and_stderr(column) for column in found.rates.T]
        data["exponent"] = ("index", [v for v, _ in pairs], rate_attributes("Lyapunov exponent"))
        data["exponent_stderr"] = ("index", [e for _, e in pairs], rate_attributes("standard error"))
        coords["index"] = index_coordinate(number)
    return xr.Dataset(data, coords=coords, attrs=_details(settings))


def linear_moment_lyapunov_exponent(
    drift: Any,
    noises: Any,
    p: Sequence[float] | float,
    *,
    seed: int | None,
    dt: float = 0.01,
    duration: float = 200.0,
    paths: int = 4096,
    populations: int = 16,
    burn_in: float | None = None,
    threads: int | None = None,
) -> xr.DataArray:
    """Growth rate of E|y|^p of dy = A y dt + sum_k B_k y dW_k (Ito) by cloning, in any dimension.

    Parameters
    ----------
    drift, noises : array (d, d), (m, d, d)
    p : float or sequence of float
    seed, dt, duration, burn_in, threads
        As for `linear_lyapunov_exponent`.
    paths : int
        Clones of all populations together.
    populations : int
        Independent ones, at least 4, of ``paths / populations`` clones, rounded up to a multiple of 64; the
        standard error is that of their mean.

    Returns
    -------
    DataArray (p)
        In 1/time, with coordinates ``stderr(p)`` and ``bias(p)``, ``bias_stderr(p)``: the part of the value
        that is due to the finite number of clones, of order 1/clones, estimated by as many populations of half
        the size (value there minus value here). It is not subtracted: that would double the standard error.

    Raises
    ------
    InvalidInput
        If an argument cannot be used, or dt is too large for the noise.

    Warns
    -----
    AccuracyWarning
        If that bias is significant and exceeds twice the standard error.

    References
    ----------
    Tailleur and Kurchan 2007, Nature Physics 3, 203 (cloning); Nemoto, Guevara Hidalgo, Lecomte 2017, Phys.
    Rev. E 95, 012102 (its bias).
    """
    matrix, matrices = checked_matrices(drift, noises)
    moments = checked_moments(p)
    settings = checked_simulation(seed, dt, duration, paths, burn_in, threads)
    if checked_integer("populations", populations) < 4:
        raise InvalidInput(f"populations={populations} must be at least 4")
    found, clones = [], 0
    for q in moments:
        full, half, clones = cloned_rates(matrix, matrices, float(q), populations, settings)
        (value, stderr), (smaller, smaller_stderr) = mean_and_stderr(full), mean_and_stderr(half)
        bias, bias_stderr = smaller - value, math.hypot(stderr, smaller_stderr)
        found.append((value, stderr, bias, bias_stderr))
        if abs(bias) > max(2 * stderr, 4 * bias_stderr):
            warnings.warn(
                f"the number of clones, {clones} in a population, changes Lambda({q:g}) by about {bias:.2g}, with a "
                f"standard error of {stderr:.2g}; use more paths, or fewer populations",
                AccuracyWarning,
                stacklevel=2,
            )
    value, stderr, bias, bias_stderr = np.array(found).reshape(-1, 4).T
    errors = {"stderr": stderr, "bias": bias, "bias_stderr": bias_stderr}
    return moments_array(
        moments, value, errors, _details(settings) | {"populations": int(populations), "clones": clones}
    )


def moments_array(
    moments: np.ndarray, values: np.ndarray, errors: dict[str, np.ndarray], details: dict[str, Any]
) -> xr.DataArray:
    """Lambda(p) with its errors, arrays over p, as coordinates."""
    coords = {"p": ("p", moments, {"units": "1", "long_name": "moment"})}
    coords |= {name: ("p", error, rate_attributes(_NAMES[name])) for name, error in errors.items()}
    return xr.DataArray(
        values,
        dims="p",
        coords=coords,
        name="moment_lyapunov_exponent",
        attrs=rate_attributes("moment Lyapunov exponent") | details,
    )


def rate_attributes(text: str) -> dict[str, str]:
    """Attributes of a rate with this long name."""
    return {"units": "1/time", "long_name": text}


def index_coordinate(number: int) -> Any:
    """The coordinate of exponents, largest first."""
    return ("index", np.arange(number), {"units": "1", "long_name": "number, largest first"})


def checked_count(count: int, dimension: int) -> int:
    """How many exponents were asked for, 1 to the dimension."""
    number = checked_integer("count", count)
    if not 1 <= number <= dimension:
        raise InvalidInput(f"count={count} must lie between 1 and the dimension, {dimension}")
    return number


def _details(settings: Settings) -> dict[str, Any]:
    step = 2 * settings.dt
    return provenance(
        convention="ito",
        method="simulation",
        dt=settings.dt,
        duration=settings.pairs * step,
        burn_in=settings.burn * step,
        paths=settings.paths,
        seed=settings.seed,
    )


def _warn_of_burn_in(halves: np.ndarray, settings: Settings) -> None:
    change, stderr = mean_and_stderr(halves[:, 1] - halves[:, 0])
    if abs(change) > 5 * stderr + 1e-9 * abs(halves.mean()):  # 5: false alarm 5e-6 with 64 paths
        warnings.warn(
            f"the growth rate changes by {change:.2g} +- {stderr:.2g} between the halves of the time: the start is "
            f"not forgotten within burn_in={settings.burn * 2 * settings.dt:g}; give longer burn_in and duration",
            AccuracyWarning,
            stacklevel=3,
        )
