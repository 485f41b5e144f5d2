"""Exponents of linear SDEs by spectra: the generator of the angle in two dimensions, and closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg as sl

from solvers.chain import Chain
from solvers.errors import ConvergenceFailure, InvalidInput
from solvers.fluxes import scharfetter_gummel
from solvers.nonreversible import stationary_masses

_HARMONICS = (16, 32, 64, 128, 256, 512)


def spectral_exponent(drift: np.ndarray, noises: np.ndarray) -> float:
    """Top Lyapunov exponent of dy = A y dt + sum_k B_k y dW_k (Ito): d = 1, d = 2, decoupled or noise-free.

    Raises
    ------
    InvalidInput
        In more dimensions.
    ConvergenceFailure
        If the Fourier series of the angular density does not converge.
    """
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


def spectral_moment(drift: np.ndarray, noises: np.ndarray, p: float) -> float:
    """Growth rate of E|y|^p, as for `spectral_exponent`; for p = 2 in any dimension.

    Raises
    ------
    InvalidInput
        In more dimensions for other p.
    ConvergenceFailure
        If the Fourier series does not converge.
    """
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
    return _converged(lambda n: principal(angular_generator(drift, noises, p, n)), f"Lambda({p:g})")


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


def angular_generator(drift: np.ndarray, noises: np.ndarray, p: float, harmonics: int) -> np.ndarray:
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


def principal(matrix: np.ndarray) -> float:
    """The largest real part of an eigenvalue."""
    return float(np.linalg.eigvals(matrix).real.max())


def _angular_average(drift: np.ndarray, noises: np.ndarray, harmonics: int) -> float:
    """Mean of `radial` over the invariant density of the angle: the null vector of L_0 transposed."""
    generator = angular_generator(drift, noises, 0.0, harmonics)
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
