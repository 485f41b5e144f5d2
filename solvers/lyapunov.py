"""Lyapunov and moment Lyapunov exponents of the linearisation at a fixed point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.linalg as sl
import xarray as xr

from solvers.chain import Chain
from solvers.errors import ConvergenceFailure, InvalidInput
from solvers.fluxes import scharfetter_gummel
from solvers.linear_growth import cloned_exponent, refuse_unstable_step, simulated_exponent
from solvers.nonreversible import stationary_masses
from solvers.provenance import provenance
from solvers.request import refuse_other
from solvers.sde import SDE

_METHODS = ("spectral", "simulation")
_HARMONICS = (16, 32, 64, 128, 256, 512)


def lyapunov_exponent(
    sde: Any,
    *,
    at: Sequence[float] | float,
    method: str = "spectral",
    seed: int | None = None,
    dt: float = 0.01,
    duration: float = 2000.0,
    paths: int = 64,
) -> xr.Dataset:
    """Top Lyapunov exponent of the SDE linearised at a fixed point: growth rate of log|y|, almost surely.

    Parameters
    ----------
    sde : SDE
        In any convention; converted to Ito exactly.
    at : sequence of d floats
        The fixed point: drift and diffusion both vanish there.
    method : {"spectral", "simulation"}
        "spectral": closed form for d = 1; for d = 2 the Furstenberg-Khasminskii average over the invariant
        density of the angle. "simulation": any d, with a standard error.
    seed : int
        Required by "simulation".
    dt, duration, paths
        Of the simulation: step (the bias is of order dt), time of each path, number of paths.

    Returns
    -------
    Dataset
        ``value`` and ``stderr`` in 1/time; stderr is 0 for "spectral" (error about 1e-9).

    Raises
    ------
    InvalidInput
        If `at` is not a fixed point, an argument cannot be used, or dt is too large for the drift.
    ConvergenceFailure
        If the Fourier series of the angular density does not converge.

    References
    ----------
    Khasminskii, Stochastic Stability of Differential Equations (2012) ch. 6; Arnold, Random Dynamical
    Systems (1998) sec. 6.2.
    """
    drift, noises = linearisation(sde, at)
    stderr = 0.0
    if _checked_method(method) == "simulation":
        checked = _checked_simulation(seed, dt, duration, paths)
        refuse_unstable_step(drift, noises, dt)
        value, stderr = simulated_exponent(drift, noises, checked)
    else:
        value = _spectral_exponent(drift, noises)
    settings = (
        {"dt": dt, "duration": duration, "paths": paths, "seed": seed} if method == "simulation" else {}
    )
    return xr.Dataset(
        {
            "value": ((), value, {"units": "1/time", "long_name": "top Lyapunov exponent"}),
            "stderr": ((), stderr, {"units": "1/time", "long_name": "standard error"}),
        },
        attrs=provenance(convention=sde.convention, method=method, **settings),
    )


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
) -> xr.DataArray:
    """Growth rate Lambda(p) of E|y|^p for the SDE linearised at a fixed point.

    Parameters
    ----------
    sde : SDE
    p : float or sequence of float
        Moments, any sign.
    at : sequence of d floats
    method : {"spectral", "simulation"}
        "spectral": closed form for d = 1; for d = 2 the principal eigenvalue of the tilted generator of the
        angle, by Fourier-Galerkin; for p = 2 and any d the second-moment matrix. "simulation": a population
        resampled in proportion to |y|^p (cloning), best for moderate |p|.
    seed, dt, duration, paths
        Of the simulation; ten independent populations of paths / 10 give the standard error.

    Returns
    -------
    DataArray (p)
        In 1/time, with a coordinate ``stderr(p)``.

    Raises
    ------
    InvalidInput
        As for `lyapunov_exponent`; also for "spectral" with d > 2 and p other than 0 or 2.
    ConvergenceFailure
        If the Fourier series does not converge.
    """
    drift, noises = linearisation(sde, at)
    try:
        moments = np.atleast_1d(np.asarray(p, dtype=float))
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"p={p!r}; give finite numbers") from error
    if moments.ndim != 1 or not np.isfinite(moments).all():
        raise InvalidInput(f"p={p!r}; give finite numbers")
    stderr = np.zeros(moments.size)
    if _checked_method(method) == "simulation":
        settings = _checked_simulation(seed, dt, duration, paths)
        refuse_unstable_step(drift, noises, dt)
        pairs = [cloned_exponent(drift, noises, q, settings) for q in moments]
        values, stderr = np.array([v for v, _ in pairs]), np.array([e for _, e in pairs])
    else:
        values = np.array([_spectral_moment(drift, noises, float(q)) for q in moments])
    details = {"dt": dt, "duration": duration, "paths": paths, "seed": seed} if method == "simulation" else {}
    return xr.DataArray(
        values,
        dims="p",
        coords={
            "p": ("p", moments, {"units": "1", "long_name": "moment"}),
            "stderr": ("p", stderr, {"units": "1/time", "long_name": "standard error"}),
        },
        name="moment_lyapunov_exponent",
        attrs={"units": "1/time", "long_name": "moment Lyapunov exponent"}
        | provenance(convention=sde.convention, method=method, **details),
    )


def linearisation(sde: Any, at: Sequence[float] | float) -> tuple[np.ndarray, np.ndarray]:
    """Ito linearisation dy = A y dt + sum_k B_k y dW_k at a fixed point.

    Parameters
    ----------
    sde : SDE
    at : sequence of d floats

    Returns
    -------
    A : ndarray (d, d)
    B : ndarray (m, d, d)

    Raises
    ------
    InvalidInput
        If drift or diffusion does not vanish at the point, or the model is not autonomous or smooth there.
    """
    import sympy as sp

    refuse_other(sde, SDE, "sde")
    try:
        point = np.atleast_1d(np.asarray(at, dtype=float))
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"at={at!r}; give {sde.dimension} finite numbers, one per component") from error
    if point.shape != (sde.dimension,) or not np.isfinite(point).all():
        raise InvalidInput(f"at={at!r}; give {sde.dimension} finite numbers, one per component")
    model = sde.to("ito").symbolic()
    values = dict(zip(model.p, sde.params, strict=True)) | dict(zip(model.y, point, strict=True))
    sigma = sp.Matrix(model.sigma)
    if model.t in sp.Matrix(model.drift).free_symbols | sigma.free_symbols:
        raise InvalidInput("the model depends on time; its exponents need an autonomous SDE")
    drift = _numbers(sp.Matrix(model.drift), values)
    noise = _numbers(sigma, values)
    matrix = _numbers(sp.Matrix(model.drift).jacobian(model.y), values)
    noises = np.array([_numbers(sigma[:, k].jacobian(model.y), values) for k in range(sigma.shape[1])])
    place = ", ".join(f"{n}={v:g}" for n, v in zip(sde.names, point, strict=True))
    reach = 1e-8 * max(1.0, float(np.abs(point).max()))
    if np.abs(drift).max() > reach * max(1.0, float(np.abs(matrix).max())):
        raise InvalidInput(
            f"{place} is no fixed point: the (Ito) drift there is {drift.ravel().tolist()}; give a zero of it"
        )
    if np.abs(noise).max() > reach * max(1.0, float(np.abs(noises).max())):
        raise InvalidInput(
            f"the diffusion at {place} is {float(np.abs(noise).max()):g}, not 0: with additive noise the "
            "linearisation is not homogeneous and has no exponent of its own; leave that noise out"
        )
    return matrix, noises


def _numbers(matrix: Any, values: dict[Any, float]) -> np.ndarray:
    try:
        result = np.array(matrix.subs(values).evalf().tolist(), dtype=float)
    except TypeError as error:
        raise InvalidInput(f"the model has no derivative at the point `at` ({error})") from error
    if not np.isfinite(result).all():
        raise InvalidInput("the model or its derivative is not finite at the point `at`; choose another")
    return result


def _checked_method(method: str) -> str:
    if method not in _METHODS:
        raise InvalidInput(f"method={method!r} is unknown; choose 'spectral' or 'simulation'")
    return method


def _checked_simulation(
    seed: int | None, dt: float, duration: float, paths: int
) -> tuple[int, float, int, int]:
    if not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InvalidInput(f"seed={seed!r}; method='simulation' needs an integer seed >= 0")
    if not 0 < dt < duration < np.inf:
        raise InvalidInput(f"dt={dt!r} and duration={duration!r}; give 0 < dt < duration")
    if not isinstance(paths, (int, np.integer)) or paths < 20:
        raise InvalidInput(f"paths={paths!r}; give an integer >= 20")
    return int(seed), float(dt), round(duration / dt), int(paths)


# ---- spectral --------------------------------------------------------------------------------------------


def _spectral_exponent(drift: np.ndarray, noises: np.ndarray) -> float:
    d = len(drift)
    if d == 1:
        return float(drift[0, 0] - 0.5 * np.sum(noises**2))
    if not np.any(noises):
        return float(np.linalg.eigvals(drift).real.max())
    diagonal = _diagonal(drift, noises)
    if diagonal is not None:
        rates, powers = diagonal
        return float(np.max(rates - 0.5 * powers))
    _refuse_dimension(d, "an exponent")
    value = _converged(lambda n: _angular_average(drift, noises, n), "Lyapunov exponent")
    coarse, spread = _finite_volume_average(drift, noises)
    # a truncated series can settle on nonsense where the density is a spike; finite volumes are never wrong
    # by more than a few cells of the 1024 on the half circle
    if abs(value - coarse) > 0.02 * spread:
        raise ConvergenceFailure(
            f"the Fourier series of the angle settles at {value:.6g} but finite volumes give {coarse:.4g}: the "
            "noise hardly turns the direction; use method='simulation'"
        )
    return value


def _spectral_moment(drift: np.ndarray, noises: np.ndarray, p: float) -> float:
    d = len(drift)
    if p == 0:
        return 0.0
    if d == 1:
        return float(p * drift[0, 0] + 0.5 * p * (p - 1) * np.sum(noises**2))
    if not np.any(noises):
        real = np.linalg.eigvals(drift).real
        return float(p * real.max())
    diagonal = _diagonal(drift, noises)
    if diagonal is not None:
        if p < 0:
            raise InvalidInput(f"p={p:g}: the components do not mix, so negative moments depend on the start")
        rates, powers = diagonal
        return float(np.max(p * rates + 0.5 * p * (p - 1) * powers))
    if p == 2:
        return second_moment_exponent(drift, noises)
    _refuse_dimension(d, f"Lambda({p:g})")
    return _converged(lambda n: _principal(_angular_generator(drift, noises, p, n)), f"Lambda({p:g})")


def second_moment_exponent(drift: np.ndarray, noises: np.ndarray) -> float:
    """Lambda(2): largest real eigenvalue of S -> A S + S A^T + sum_k B_k S B_k^T."""
    identity = np.eye(len(drift))
    operator = np.kron(drift, identity) + np.kron(identity, drift) + sum(np.kron(b, b) for b in noises)
    return float(np.linalg.eigvals(operator).real.max())


def _diagonal(drift: np.ndarray, noises: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Rates and noise powers if no component feeds another."""
    off = ~np.eye(len(drift), dtype=bool)
    if np.any(drift[off]) or any(np.any(b[off]) for b in noises):
        return None
    return np.diag(drift), sum(np.diag(b) ** 2 for b in noises)  # type: ignore[return-value]


def _refuse_dimension(d: int, what: str) -> None:
    if d > 2:
        raise InvalidInput(f"{what} in {d} dimensions has no spectral method here; use method='simulation'")


def _converged(compute: Any, what: str) -> float:
    """Increase the number of harmonics until two successive values agree to 1e-10 (relative above 1)."""
    before = np.nan
    for harmonics in _HARMONICS:
        value = compute(harmonics)
        if abs(value - before) <= 1e-10 * max(1.0, abs(value)):
            return value
        before = value
    raise ConvergenceFailure(
        f"{what} has not settled with {_HARMONICS[-1]} harmonics of the angle (last value {before:.6g}): the "
        "noise hardly turns the direction, or a direction is invariant; use method='simulation'"
    )


def _angular_symbols(drift: np.ndarray, noises: np.ndarray) -> dict[str, np.ndarray]:
    """Fourier coefficients, in e^(2 i n phi) for n = -2 ... 2, of the functions of the angle.

    With u = (cos, sin) and v = (-sin, cos): dphi = turn dt + sum h_k dW_k and
    d log r = (radial) dt + sum alpha_k dW_k, where alpha_k = u.B_k u, h_k = v.B_k u,
    turn = v.A u - sum alpha_k h_k and radial = u.A u + (1/2) sum (h_k^2 - alpha_k^2).
    """
    phi = np.pi * np.arange(8) / 8
    u, v = np.array([np.cos(phi), np.sin(phi)]), np.array([-np.sin(phi), np.cos(phi)])
    alpha = np.array([np.einsum("ij,ik,kj->j", u, b, u) for b in noises])
    h = np.array([np.einsum("ij,ik,kj->j", v, b, u) for b in noises])
    functions = {
        "spread": 0.5 * np.sum(h**2, axis=0),
        "turn": np.einsum("ij,ik,kj->j", v, drift, u) - np.sum(alpha * h, axis=0),
        "radial": np.einsum("ij,ik,kj->j", u, drift, u) + 0.5 * np.sum(h**2 - alpha**2, axis=0),
        "coupling": np.sum(alpha * h, axis=0),
        "power": np.sum(alpha**2, axis=0),
    }
    # trigonometric polynomials of degree 4 in phi: exact from 8 points on the half circle
    return {name: np.fft.fft(f)[[-2, -1, 0, 1, 2]] / 8 for name, f in functions.items()}


def _angular_generator(drift: np.ndarray, noises: np.ndarray, p: float, harmonics: int) -> np.ndarray:
    """L_p f = spread f'' + (turn + p coupling) f' + (p radial + p^2 power / 2) f on e^(2 i n phi)."""
    c = _angular_symbols(drift, noises)
    n = np.arange(-harmonics, harmonics + 1)
    size = len(n)
    matrix = np.zeros((size, size), dtype=complex)
    second, first = -4.0 * n**2, 2j * n
    rows = np.arange(size)
    for k, shift in enumerate(range(-2, 3)):
        band = (
            c["spread"][k] * second
            + (c["turn"][k] + p * c["coupling"][k]) * first
            + p * c["radial"][k]
            + 0.5 * p**2 * c["power"][k]
        )
        inside = (rows + shift >= 0) & (rows + shift < size)
        matrix[rows[inside] + shift, rows[inside]] = band[inside]
    return matrix


def _principal(matrix: np.ndarray) -> float:
    return float(np.linalg.eigvals(matrix).real.max())


def _angular_average(drift: np.ndarray, noises: np.ndarray, harmonics: int) -> float:
    """Mean of `radial` over the invariant density of the angle: the null vector of L_0 transposed."""
    generator = _angular_generator(drift, noises, 0.0, harmonics)
    middle = harmonics
    # L_0 annihilates constants (column `middle` is zero); moments mu_n = <density, e^(2 i n phi)>, mu_0 = 1
    others = np.arange(2 * harmonics + 1) != middle
    transposed = generator.T
    system = transposed[others][:, others]
    moments = np.zeros(2 * harmonics + 1, dtype=complex)
    moments[middle] = 1.0
    solution: Any = sl.lstsq(system, -transposed[others, middle])
    moments[others] = solution[0]
    radial = _angular_symbols(drift, noises)["radial"]
    return float(np.real(radial @ moments[middle - 2 : middle + 3]))


def _finite_volume_average(drift: np.ndarray, noises: np.ndarray, cells: int = 1024) -> tuple[float, float]:
    """The same average from a positive scheme of low order, and the range of `radial`."""
    symbols = _angular_symbols(drift, noises)
    width = np.pi / cells
    centers = width * (np.arange(cells) + 0.5)

    def at(name: str, phi: np.ndarray) -> np.ndarray:
        return np.real(np.exp(2j * np.outer(phi, np.arange(-2, 3))) @ symbols[name])

    faces = centers + 0.5 * width
    spread = np.maximum(at("spread", faces), 0.0)
    slope = at("spread", centers + width) - at("spread", centers)
    lift = at("turn", faces) * width - slope  # Ito: J = (turn - spread') p - spread p'
    forward, backward = scharfetter_gummel(spread, np.full(cells, width), lift)
    first = np.arange(cells)
    chain = Chain(
        size=cells,
        first=first,
        second=(first + 1) % cells,
        forward=forward / width,
        backward=backward / width,
        loss=np.zeros(cells),
        log_weights=None,
        rate_scale=float(spread.mean() + np.abs(lift).mean()) / np.pi**2,
    )
    radial = at("radial", centers)
    if len(chain.closed_classes) != 1:
        raise ConvergenceFailure(
            "the angle has more than one invariant set, so the exponent depends on the start; use "
            "method='simulation'"
        )
    return float(radial @ stationary_masses(chain)), float(np.ptp(radial))
