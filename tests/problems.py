"""Exact SDE problems: models with pathwise solutions or moments in closed form, for any test to use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import expm, solve_continuous_lyapunov

from solvers.sde import SDE


@dataclass(frozen=True)
class Problem:
    """An SDE and what is known of it.

    `exact(t, y0, w, p)` is the pathwise solution for Wiener values w at t (tuples of arrays), `mean(t)` and
    `variance(t)` the moments from `y0`; None where there is no closed form.
    """

    sde: SDE
    y0: tuple[float, ...]
    exact: Callable[..., tuple[Any, ...]] | None = None
    mean: Callable[[float], np.ndarray] | None = None
    variance: Callable[[float], np.ndarray] | None = None


def ornstein_uhlenbeck(k: float = 1.5, s: float = 0.9, x0: float = 2.0) -> Problem:
    """Ornstein-Uhlenbeck process dX = -k X dt + s dW."""
    sde = SDE(
        lambda t, y, p, xp: (-p.k * y[0],),
        lambda t, y, p, xp: (p.s,),
        params={"k": k, "s": s},
        convention="ito",
    )
    return Problem(
        sde,
        (x0,),
        mean=lambda t: np.array([x0 * np.exp(-k * t)]),
        variance=lambda t: np.array([s**2 / (2 * k) * (1 - np.exp(-2 * k * t))]),
    )


def geometric_brownian(mu: float = 0.5, s: float = 0.6, x0: float = 1.0, convention: str = "ito") -> Problem:
    """Geometric Brownian motion dX = mu X dt + s X dW, Ito or Stratonovich."""
    sde = SDE(
        lambda t, y, p, xp: (p.mu * y[0],),
        lambda t, y, p, xp: (p.s * y[0],),
        params={"mu": mu, "s": s},
        convention=convention,
    )
    rate = mu if convention == "ito" else mu + s**2 / 2  # of the Ito drift

    def exact(t, y0, w, p):
        drift = p.mu - (p.s**2 / 2 if convention == "ito" else 0.0)
        return (y0[0] * np.exp(drift * t + p.s * w[0]),)

    return Problem(
        sde,
        (x0,),
        exact,
        mean=lambda t: np.array([x0 * np.exp(rate * t)]),
        variance=lambda t: np.array([x0**2 * np.exp(2 * rate * t) * np.expm1(s**2 * t)]),
    )


def additive(alpha: float = 0.7, beta: float = 0.8, x0: float = 1.0) -> Problem:
    """Additive noise varying in time (Kloeden and Platen 1992, eq. 4.4.4 onwards).

    dX = (beta/sqrt(1+t) - X/(2(1+t))) dt + alpha beta/sqrt(1+t) dW.
    """

    def drift(t, y, p, xp):
        return (p.beta / xp.sqrt(1.0 + t) - y[0] / (2.0 * (1.0 + t)),)

    def diffusion(t, y, p, xp):
        return (p.alpha * p.beta / xp.sqrt(1.0 + t) + 0.0 * y[0],)

    def exact(t, y0, w, p):
        return ((y0[0] + p.beta * (t + p.alpha * w[0])) / np.sqrt(1.0 + t),)

    sde = SDE(drift, diffusion, params={"alpha": alpha, "beta": beta}, convention="ito")
    return Problem(
        sde,
        (x0,),
        exact,
        mean=lambda t: np.array([(x0 + beta * t) / np.sqrt(1 + t)]),
        variance=lambda t: np.array([(alpha * beta) ** 2 * t / (1 + t)]),
    )


def arctangent(a: float = 0.8, x0: float = 0.3) -> Problem:
    """Ito problem dX = -a^2 sin X cos^3 X dt + a cos^2 X dW, solved by X = arctan(a W + tan X0)."""

    def drift(t, y, p, xp):
        return (-(p.a**2) * xp.sin(y[0]) * xp.cos(y[0]) ** 3,)

    def diffusion(t, y, p, xp):
        return (p.a * xp.cos(y[0]) ** 2,)

    def exact(t, y0, w, p):
        return (np.arctan(p.a * w[0] + np.tan(y0[0])),)

    return Problem(SDE(drift, diffusion, params={"a": a}, convention="ito"), (x0,), exact)


def circle() -> Problem:
    """Brownian motion on the unit circle: dX = -X/2 dt + (-z, x) dW (Ito), general noise with m = 1."""

    def drift(t, y, p, xp):
        return (-0.5 * y[0], -0.5 * y[1])

    def diffusion(t, y, p, xp):
        return ((-y[1],), (y[0],))

    def exact(t, y0, w, p):
        c, s = np.cos(w[0]), np.sin(w[0])
        return (c * y0[0] - s * y0[1], s * y0[0] + c * y0[1])

    sde = SDE(drift, diffusion, names=("x", "z"), convention="ito", noise="general")
    return Problem(sde, (1.0, 0.0), exact)


LINEAR_A = np.array([[1.0, 2.0], [-2.0, 1.0]])
LINEAR_D = np.array([[0.5, 0.3], [0.3, 0.4]])


def correlated_linear() -> Problem:
    """Linear dX = -A X dt + S dW, S S^T = 2 D: the non-reversible process `ou2d_nonrev_cov`, from the origin.

    `variance(t)` is the covariance matrix: C - e^{-At} C e^{-A^T t}, with A C + C A^T = 2 D.
    """
    s = np.linalg.cholesky(2 * LINEAR_D)
    s11, s21, s22 = float(s[0, 0]), float(s[1, 0]), float(s[1, 1])
    sde = SDE(
        lambda t, y, p, xp: (-y[0] - 2.0 * y[1], 2.0 * y[0] - y[1]),
        lambda t, y, p, xp: ((p[0], 0.0), (p[1], p[2])),
        params=(s11, s21, s22),
        names=("x", "z"),
        convention="ito",
        noise="general",
    )
    stationary = solve_continuous_lyapunov(LINEAR_A, 2 * LINEAR_D)

    def covariance(t):
        decay = expm(-LINEAR_A * t)
        return stationary - decay @ stationary @ decay.T

    return Problem(sde, (0.0, 0.0), mean=lambda t: np.zeros(2), variance=covariance)


def multiplicative_well(convention: str) -> Problem:
    """Double well dX = (X - X^3) dt + sqrt(0.2 (1 + X^2)) dW: `mult_stat_*` of the reference values."""
    sde = SDE(
        lambda t, y, p, xp: (y[0] - y[0] ** 3,),
        lambda t, y, p, xp: (xp.sqrt(0.2 * (1.0 + y[0] ** 2)),),
        convention=convention,
    )
    return Problem(sde, (1.0,))
