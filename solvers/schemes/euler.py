"""Euler schemes: Euler-Maruyama, its tamed form for superlinear drift, and its weak form of two-point steps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from numba import njit

from solvers.schemes.algebra import FLAGS, compiled
from solvers.schemes.claims import Draws, Scheme

if TYPE_CHECKING:
    from solvers.schemes.algebra import Algebra
    from solvers.schemes.claims import Model


def _euler_maruyama(ops: Algebra, model: Model) -> Any:
    plus, kick, drift, diffusion = ops.plus, ops.kick, model.drift, model.diffusion

    @njit(fastmath=FLAGS, error_model="numpy", forceinline=True)
    def step(p, t, dt, y, dw):
        return kick(plus(y, dt, drift(t, y, p)), diffusion(t, y, p), dw)

    return step


def _tamed_euler(ops: Algebra, model: Model) -> Any:
    """Y + dt a / (1 + dt |a|) + b dW: no step of the drift is longer than 1."""
    d = model.d
    length = "abs(a[0])" if d == 1 else f"sqrt({' + '.join(f'a[{i}] * a[{i}]' for i in range(d))})"
    return compiled(
        "def step(p, t, dt, y, dw):\n"
        "    a = drift(t, y, p)\n"
        f"    return kick(plus(y, dt / (1.0 + dt * {length}), a), diffusion(t, y, p), dw)\n",
        plus=ops.plus,
        kick=ops.kick,
        drift=model.drift,
        diffusion=model.diffusion,
        sqrt=math.sqrt,
    )


EULER_MARUYAMA = Scheme(
    name="euler-maruyama",
    convention="ito",
    strong=0.5,
    strong_special=1.0,
    special=frozenset({"additive"}),
    weak=1.0,
    build=_euler_maruyama,
    amplification=lambda z: 1 + z,
    source="Kloeden and Platen 1992, Theorems 10.2.2, 10.3.4 and 14.1.5",
    draws=lambda m, kind: Draws(gaussian=m),  # noqa: ARG005
)

TAMED_EULER = Scheme(
    name="tamed-euler",
    convention="ito",
    strong=0.5,
    strong_special=1.0,
    special=frozenset({"additive"}),
    weak=1.0,
    build=_tamed_euler,
    amplification=lambda z: 1 + z,
    source=(
        "Hutzenthaler, Jentzen and Kloeden 2012, Ann. Appl. Probab. 22, 1611, eq. (4) and Theorem 1.1: one-sided "
        "Lipschitz drift of polynomial growth, Lipschitz noise; the taming moves a step by O(dt^2), so that the "
        "orders 1 of Euler-Maruyama (additive noise; weak) remain"
    ),
    draws=lambda m, kind: Draws(gaussian=m),  # noqa: ARG005
    taming=lambda s: (1 + s) ** 2,
)

WEAK_EULER = Scheme(
    name="weak-euler",
    convention="ito",
    strong=None,
    strong_special=None,
    special=frozenset(),
    weak=1.0,
    build=_euler_maruyama,
    amplification=lambda z: 1 + z,
    source="Kloeden and Platen 1992, eqs. (14.1.1) and (14.1.2), Theorem 14.1.5",
    draws=lambda m, kind: Draws(two_point=m),  # noqa: ARG005
)
