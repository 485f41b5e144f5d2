"""Stochastic Runge-Kutta schemes of strong order 1.5: SRA1 for additive, SRIW1 for diagonal or scalar noise.

Both need the integral of the Wiener process over the step, I_10 = int_0^dt W ds, jointly with dW. A step draws
m increments dW and m independent Gaussian numbers U of the same variance; I_10 = dt (dW + U / sqrt(3)) / 2.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from numba import njit

from solvers.schemes.algebra import FLAGS, tuples
from solvers.schemes.claims import Draws, Scheme

if TYPE_CHECKING:
    from solvers.schemes.algebra import Algebra
    from solvers.schemes.claims import Model

_MEAN = "0.5 * (dw[{0}] + dw[{1}] * 0.57735026918962576)"
"""I_10 / dt of process {0}, its auxiliary number being {1}."""


def _sra1(ops: Algebra, model: Model) -> Any:
    """Two stages of the drift; the noise is read at both ends of the step, so that it may vary in time."""
    m = model.m
    plus, kick, drift, diffusion = ops.plus, ops.kick, model.drift, model.diffusion
    means = tuples("dw", [_MEAN.format(k, m + k) for k in range(m)])
    remainders = tuples("dw, z", [f"dw[{k}] - z[{k}]" for k in range(m)])
    scaled = ops.scaled

    @njit(fastmath=FLAGS, error_model="numpy", forceinline=True)
    def step(p, t, dt, y, dw):
        z = means(dw)
        a0, b0, b1 = drift(t, y, p), diffusion(t, y, p), diffusion(t + dt, y, p)
        stage = kick(plus(y, 0.75 * dt, a0), b1, scaled(z, 1.5))
        a1 = drift(t + 0.75 * dt, stage, p)
        moved = plus(plus(y, dt * (1.0 / 3.0), a0), dt * (2.0 / 3.0), a1)
        return kick(kick(moved, b0, z), b1, remainders(dw, z))

    return step


_BETA = (
    (-1.0, -1.0, 2.0, -2.0),
    (4 / 3, 4 / 3, -4 / 3, 5 / 3),
    (2 / 3, -1 / 3, -2 / 3, -2 / 3),
    (0, 0, 0, 1.0),
)
"""Of each stage: the factors of I_1, I_11 / sqrt(dt), I_10 / dt and I_111 / dt."""


def _weights(m: int, stage: int) -> Any:
    """(dw, dt, h) -> what multiplies each column of the noise of a stage."""
    entries = []
    for k in range(m):
        integrals = (
            f"dw[{k}]",
            f"0.5 * (dw[{k}] * dw[{k}] - dt) / h",
            _MEAN.format(k, m + k),
            f"(dw[{k}] * dw[{k}] / dt - 3.0) * dw[{k}] * {1 / 6!r}",
        )
        pairs = zip(_BETA[stage], integrals, strict=True)
        entries.append(" + ".join(f"{beta!r} * ({text})" for beta, text in pairs if beta))
    return tuples("dw, dt, h", entries)


def _sriw1(ops: Algebra, model: Model) -> Any:
    m = model.m
    plus, kick, drift, diffusion = ops.plus, ops.kick, model.drift, model.diffusion
    means = tuples("dw", [f"1.5 * {_MEAN.format(k, m + k)}" for k in range(m)])
    every = tuples("h", ["h"] * m)
    w1, w2, w3, w4 = (_weights(m, stage) for stage in range(4))

    @njit(fastmath=FLAGS, error_model="numpy", forceinline=True)
    def step(p, t, dt, y, dw):
        h = math.sqrt(dt)
        a1, b1 = drift(t, y, p), diffusion(t, y, p)
        a2 = drift(t + 0.75 * dt, kick(plus(y, 0.75 * dt, a1), b1, means(dw)), p)
        near = plus(y, 0.25 * dt, a1)
        b2 = diffusion(t + 0.25 * dt, kick(near, b1, every(0.5 * h)), p)
        b3 = diffusion(t + dt, kick(plus(y, dt, a1), b1, every(-h)), p)
        far = kick(kick(kick(near, b1, every(-5.0 * h)), b2, every(3.0 * h)), b3, every(0.5 * h))
        b4 = diffusion(t + 0.25 * dt, far, p)
        moved = plus(plus(y, dt * (1.0 / 3.0), a1), dt * (2.0 / 3.0), a2)
        moved = kick(kick(moved, b1, w1(dw, dt, h)), b2, w2(dw, dt, h))
        return kick(kick(moved, b3, w3(dw, dt, h)), b4, w4(dw, dt, h))

    return step


SRA1 = Scheme(
    name="sra1",
    convention="ito",
    strong=1.5,
    strong_special=1.5,
    special=frozenset({"additive"}),
    weak=2.0,
    build=_sra1,
    amplification=lambda z: 1 + z + z * z / 2,
    source=(
        "Rossler 2010, SIAM J. Numer. Anal. 48, 922, scheme SRA1 (strong order); the first three moments of a "
        "step agree with the exact ones to O(dt^3), hence weak order 2 (Kloeden and Platen 1992, Theorem 14.5.2)"
    ),
    draws=lambda m, kind: Draws(gaussian=2 * m),  # noqa: ARG005
    accepts=frozenset({"additive"}),
    remedy="use 'sriw1' for diagonal or scalar noise, 'milstein' for commutative noise, else 'euler-maruyama'",
)

SRIW1 = Scheme(
    name="sriw1",
    convention="ito",
    strong=1.5,
    strong_special=1.5,
    special=frozenset({"additive", "uncoupled", "scalar"}),
    weak=1.5,
    build=_sriw1,
    amplification=lambda z: 1 + z + z * z / 2,
    source=(
        "Rossler 2010, SIAM J. Numer. Anal. 48, 922, scheme SRIW1; weak order 2 is often stated and found for linear "
        "noise, but its probes at sqrt(dt) on one side leave a mean error dt^2.5 a step: 1.5 is what is found else"
    ),
    draws=lambda m, kind: Draws(gaussian=2 * m),  # noqa: ARG005
    accepts=frozenset({"additive", "uncoupled", "scalar"}),
    remedy="use 'milstein' or 'platen' for commutative noise, else 'euler-maruyama' or 'weak-platen'",
)
