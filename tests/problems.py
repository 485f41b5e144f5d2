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
    """Geometric Brownian motion dX = mu X dt + s X dW in any convention.

    The Ito drift is mu X, mu X + s^2 X / 2 (Stratonovich) or, with D = s^2 X^2 / 2, mu X + D' = mu X + s^2 X.
    """
    sde = SDE(
        lambda t, y, p, xp: (p.mu * y[0],),
        lambda t, y, p, xp: (p.s * y[0],),
        params={"mu": mu, "s": s},
        convention=convention,
    )
    gain = {"ito": 0.0, "stratonovich": 0.5, "klimontovich": 1.0}[convention]
    rate = mu + gain * s**2  # of the Ito drift

    def exact(t, y0, w, p):
        return (y0[0] * np.exp((p.mu + (gain - 0.5) * p.s**2) * t + p.s * w[0]),)

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


def correlated_geometric() -> Problem:
    """Two geometric Brownian motions dX_i = mu_i X_i dt + X_i sum_k S_ik dW_k (Ito): commuting general noise."""
    mu, s = np.array([0.3, -0.4]), np.array([[0.5, 0.2], [-0.3, 0.4]])
    (s11, s12), (s21, s22) = s.tolist()
    sde = SDE(
        lambda t, y, p, xp: (p[0] * y[0], p[1] * y[1]),
        lambda t, y, p, xp: ((p[2] * y[0], p[3] * y[0]), (p[4] * y[1], p[5] * y[1])),
        params=(*mu.tolist(), s11, s12, s21, s22),
        names=("x", "z"),
        convention="ito",
        noise="general",
    )

    def exact(t, y0, w, p):
        return tuple(
            y0[i] * np.exp((mu[i] - (s[i] ** 2).sum() / 2) * t + s[i, 0] * w[0] + s[i, 1] * w[1])
            for i in range(2)
        )

    return Problem(sde, (1.0, 1.5), exact)


def rotating_noise() -> Problem:
    """Linear dX = A X dt + B_1 X dW_1 + B_2 X dW_2 (Ito) with B_1 B_2 != B_2 B_1: noise that does not commute.

    `variance(t)` is E X X^T, from dM/dt = A M + M A^T + B_1 M B_1^T + B_2 M B_2^T.
    """
    a = np.array([[-0.5, 0.6], [-0.4, -0.2]])
    b1, b2 = np.array([[0.0, 0.7], [0.1, 0.0]]), np.array([[0.5, 0.0], [0.3, -0.4]])
    sde = SDE(
        lambda t, y, p, xp: (-0.5 * y[0] + 0.6 * y[1], -0.4 * y[0] - 0.2 * y[1]),
        lambda t, y, p, xp: ((0.7 * y[1], 0.5 * y[0]), (0.1 * y[0], 0.3 * y[0] - 0.4 * y[1])),
        names=("x", "z"),
        convention="ito",
        noise="general",
    )
    one = np.eye(2)
    generator = np.kron(a, one) + np.kron(one, a) + np.kron(b1, b1) + np.kron(b2, b2)
    y0 = np.array([1.0, 0.5])
    return Problem(
        sde,
        (1.0, 0.5),
        mean=lambda t: expm(a * t) @ y0,
        variance=lambda t: (expm(generator * t) @ np.outer(y0, y0).ravel()).reshape(2, 2),
    )


def additive_well(s: float = 0.8) -> Problem:
    """Double well dX = (X - X^3) dt + s dW: additive noise, nonlinear drift."""
    sde = SDE(
        lambda t, y, p, xp: (y[0] - y[0] ** 3,),
        lambda t, y, p, xp: (p.s,),
        params={"s": s},
        convention="ito",
    )
    return Problem(sde, (0.5,))


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
