"""Heun's scheme: the trapezoidal predictor and corrector, which reads the noise as Stratonovich does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numba import njit

from solvers.schemes.algebra import FLAGS
from solvers.schemes.claims import Draws, Scheme
from solvers.schemes.structure import COMMUTING

if TYPE_CHECKING:
    from solvers.schemes.algebra import Algebra
    from solvers.schemes.claims import Model


def _heun(ops: Algebra, model: Model) -> Any:
    plus, kick, scaled = ops.plus, ops.kick, ops.scaled
    drift, diffusion = model.drift, model.diffusion

    @njit(fastmath=FLAGS, error_model="numpy", forceinline=True)
    def step(p, t, dt, y, dw):
        a0, b0 = drift(t, y, p), diffusion(t, y, p)
        predicted = kick(plus(y, dt, a0), b0, dw)
        a1, b1 = drift(t + dt, predicted, p), diffusion(t + dt, predicted, p)
        half = scaled(dw, 0.5)
        return kick(kick(plus(plus(y, 0.5 * dt, a0), 0.5 * dt, a1), b0, half), b1, half)

    return step


HEUN = Scheme(
    name="heun",
    convention="stratonovich",
    strong=0.5,
    strong_special=1.0,
    special=COMMUTING,
    weak=1.0,
    build=_heun,
    amplification=lambda z: 1 + z + z * z / 2,
    source="Rumelin 1982, SIAM J. Numer. Anal. 19, 604",
    draws=lambda m, kind: Draws(gaussian=m),  # noqa: ARG005
)
