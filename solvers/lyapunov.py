"""Lyapunov and moment Lyapunov exponents of the linearisation at a fixed point."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from solvers.angular_spectrum import GrowthRates, second_moment_exponent
from solvers.errors import AccuracyWarning, InvalidInput
from solvers.linear_exponents import (
    checked_count,
    index_coordinate,
    linear_lyapunov_exponent,
    linear_moment_lyapunov_exponent,
    moments_array,
    rate_attributes,
)
from solvers.linear_request import checked_moments
from solvers.linearisation import linearised
from solvers.principal_pair import Estimate
from solvers.provenance import provenance

__all__ = [
    "linear_lyapunov_exponent",
    "linear_moment_lyapunov_exponent",
    "lyapunov_exponent",
    "moment_lyapunov_exponent",
    "second_moment_exponent",
]

_METHODS = ("spectral", "simulation")


def lyapunov_exponent(
    sde: Any,
    *,
    at: Sequence[float] | float,
    method: str = "spectral",
    seed: int | None = None,
    dt: float = 0.01,
    duration: float = 2000.0,
    paths: int = 64,
    count: int | None = None,
    burn_in: float | None = None,
    threads: int | None = None,
) -> xr.Dataset:
    """Top Lyapunov exponent of the SDE linearised at a fixed point: growth rate of log|y|, almost surely.

    Parameters
    ----------
    sde : SDE
        In any convention; converted to Ito exactly.
    at : sequence of d floats
        The fixed point: drift and diffusion both vanish there.
    method : {"spectral", "simulation"}
        "spectral": by blocks without invariant subspace; closed form in one dimension and without noise, in two
        and three the Furstenberg-Khasminskii average over the invariant density of the direction (harmonics of
        circle and sphere). "simulation": any d, with a standard error.
    seed, dt, duration, paths, burn_in, threads
        Of the simulation, see `linear_lyapunov_exponent`.
    count : int, optional
        How many exponents, largest first, 1 to d. Spectral ones beyond the first come from the growth of volumes
        (Liouville) and from the inverse transposed flow.

    Returns
    -------
    Dataset
        ``value`` and ``stderr`` in 1/time. From "spectral": stderr 0; ``error``, estimated from the two finest
        truncations; ``variance``: of log|y| per time, the second derivative of Lambda(p) at 0; with `count` also
        ``exponent`` and ``exponent_error`` (index). From "simulation" what `linear_lyapunov_exponent` gives.

    Raises
    ------
    InvalidInput
        If `at` is not a fixed point, or an argument cannot be used.
    ConvergenceFailure
        If the series of the angular density does not converge, as when it is singular: noise that does not
        spread the direction in all others (Hoermander's condition fails) does that.

    Warns
    -----
    AccuracyWarning
        If the error exceeds 1e-6 of the range of rates.

    References
    ----------
    Khasminskii, Stochastic Stability of Differential Equations (2012) ch. 6; Arnold, Random Dynamical
    Systems (1998) sec. 6.2.
    """
    drift, noises = linearised(sde, at)
    if _checked_method(method) == "simulation":
        found = linear_lyapunov_exponent(
            drift,
            noises,
            seed=seed,
            dt=dt,
            duration=duration,
            paths=paths,
            count=count,
            burn_in=burn_in,
            threads=threads,
        )
        return found.assign_attrs(convention=sde.convention)
    number = None if count is None else checked_count(count, len(drift))
    rates = GrowthRates(drift, noises)
    top = rates.exponent()
    _warn_of_error("the top Lyapunov exponent", top, drift, noises)
    data: dict[str, Any] = {
        "value": ((), top.value, rate_attributes("top Lyapunov exponent")),
        "stderr": ((), 0.0, rate_attributes("standard error")),
        "error": ((), top.error, rate_attributes("estimated error of truncation")),
        "variance": ((), top.slope, rate_attributes("variance of log|y| per time")),
    }
    coords = {}
    if number is not None:
        found = rates.exponents()[:number] if number > 1 else [top]
        data["exponent"] = ("index", [rate.value for rate in found], rate_attributes("Lyapunov exponent"))
        data["exponent_error"] = ("index", [rate.error for rate in found], rate_attributes("estimated error"))
        coords["index"] = index_coordinate(number)
    return xr.Dataset(data, coords=coords, attrs=provenance(convention=sde.convention, method=method))


def moment_lyapunov_exponent(
    sde: Any,
    p: Sequence[float] | float,
    *,
    at: Sequence[float] | float,
    method: str = "spectral",
    seed: int | None = None,
    dt: float = 0.01,
    duration: float = 200.0,
    paths: int = 4096,
    populations: int = 16,
    burn_in: float | None = None,
    threads: int | None = None,
) -> xr.DataArray:
    """Growth rate Lambda(p) of E|y|^p for the SDE linearised at a fixed point.

    Parameters
    ----------
    sde : SDE
    p : float or sequence of float
        Moments, any sign.
    at : sequence of d floats
    method : {"spectral", "simulation"}
        "spectral": by blocks without invariant subspace (their maximum, p > 0); closed form in one dimension
        and without noise, in two and three the principal eigenvalue of the tilted generator of the direction, by
        Galerkin's method on harmonics; for even p the closed moment equations, in any dimension up to 1500 of them.
        "simulation": populations resampled in proportion to |y|^p (cloning), best for moderate |p|.
    seed, dt, duration, paths, populations, burn_in, threads
        Of the simulation, see `linear_moment_lyapunov_exponent`.

    Returns
    -------
    DataArray (p)
        In 1/time, with a coordinate ``stderr(p)``; from "spectral" also ``error(p)``, estimated from the two
        finest truncations (0 for closed forms); from "simulation" ``bias(p)``, ``bias_stderr(p)``.

    Raises
    ------
    InvalidInput
        As for `lyapunov_exponent`; also for "spectral" with p < 0 where a subspace is invariant, and with p
        other than 0 or even where more than three dimensions are coupled.
    ConvergenceFailure
        If the series does not converge.

    Warns
    -----
    AccuracyWarning
        If an error exceeds 1e-6 of the range of rates.

    References
    ----------
    Arnold 1984, SIAM J. Appl. Math. 44, 793; Arnold, Kliemann and Oeljeklaus 1986, Lecture Notes in Math. 1186, 85.
    """
    drift, noises = linearised(sde, at)
    if _checked_method(method) == "simulation":
        found = linear_moment_lyapunov_exponent(
            drift,
            noises,
            p,
            seed=seed,
            dt=dt,
            duration=duration,
            paths=paths,
            populations=populations,
            burn_in=burn_in,
            threads=threads,
        )
        return found.assign_attrs(convention=sde.convention)
    moments = checked_moments(p)
    rates = GrowthRates(drift, noises)
    found = [rates.moment(float(q)) for q in moments]
    for q, rate in zip(moments, found, strict=True):
        _warn_of_error(f"Lambda({q:g})", rate, drift, noises)
    return moments_array(
        moments,
        np.array([rate.value for rate in found]),
        {"stderr": 0.0 * moments, "error": np.array([rate.error for rate in found])},
        provenance(convention=sde.convention, method=method),
    )


def _warn_of_error(what: str, rate: Estimate, drift: np.ndarray, noises: np.ndarray) -> None:
    scale = float(np.linalg.norm(drift) + np.sum(noises**2))
    if rate.error > 1e-6 * scale:
        warnings.warn(
            f"{what} is known to about {rate.error:.1g} only: the density of the direction is nearly singular; "
            "check with method='simulation'",
            AccuracyWarning,
            stacklevel=3,
        )


def _checked_method(method: str) -> str:
    if method not in _METHODS:
        raise InvalidInput(f"method={method!r} is unknown; choose 'spectral' or 'simulation'")
    return method
