"""The time-stepping schemes: one small function each, over tuples of components, with their stated orders.

To add a scheme: write its builder below and one entry in `SCHEMES`. A builder receives the `Algebra` for the
SDE's dimensions and returns ``step(drift, diffusion, p, t, dt, y, dw) -> y``, compiled by Numba.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from numba import njit

from solvers.errors import InvalidInput

FLAGS = {"contract", "reassoc"}


@dataclass(frozen=True)
class Scheme:
    """A scheme and what is claimed of it.

    Attributes
    ----------
    name : str
        As passed to `simulate`.
    convention : str
        The reading of the noise the scheme converges to; other SDEs are converted exactly first.
    strong, weak : float
        Orders for general noise.
    strong_special : float
        Strong order for the kind of noise named in `special`.
    special : str
        Additive or commutative noise.
    build : callable
        Makes the step from an `Algebra`.
    amplification : callable
        R(z): factor per step on dy = lambda y dt, z = lambda dt; |R| > 1 for a decaying mode is instability.
    source : str
        Where the orders come from.
    """

    name: str
    convention: str
    strong: float
    strong_special: float
    special: str
    weak: float
    build: Callable[[Algebra], Any]
    amplification: Callable[[Any], Any]
    source: str


@dataclass(frozen=True)
class Algebra:
    """Componentwise operations on tuples, written out for one pair of dimensions and compiled.

    Attributes
    ----------
    plus : callable
        ``plus(y, h, a)`` = y + h a.
    kick : callable
        ``kick(y, b, dw)`` = y + b dw, b diagonal or a matrix.
    scaled : callable
        ``scaled(dw, h)`` = h dw.
    variances : callable
        ``variances(b)``: the diagonal of b b^T.
    load, load_noise, store : callable
        Between path i of a block and a tuple; component j of the block lies at ``x[j * BLOCK + i]``.
    """

    plus: Any
    kick: Any
    scaled: Any
    variances: Any
    load: Any
    load_noise: Any
    store: Any


@cache
def algebra(d: int, m: int, noise: str, block: int) -> Algebra:
    """The operations for d components, m noise components and blocks of the given width."""
    if noise == "diagonal":
        moves = [f"b[{j}] * dw[{j}]" for j in range(d)]
        variances = [f"b[{j}] * b[{j}]" for j in range(d)]
    else:
        moves = [" + ".join(f"b[{j}][{k}] * dw[{k}]" for k in range(m)) for j in range(d)]
        variances = [" + ".join(f"b[{j}][{k}] * b[{j}][{k}]" for k in range(m)) for j in range(d)]
    targets = "".join(f"x[{j * block} + i], " for j in range(d))
    return Algebra(
        plus=_compiled("y, h, a", [f"y[{j}] + h * a[{j}]" for j in range(d)]),
        kick=_compiled("y, b, dw", [f"y[{j}] + {moves[j]}" for j in range(d)]),
        scaled=_compiled("dw, h", [f"h * dw[{k}]" for k in range(m)]),
        variances=_compiled("b", variances),
        load=_compiled("x, i", [f"x[{j * block} + i]" for j in range(d)]),
        load_noise=_compiled("x, i", [f"x[{k * block} + i]" for k in range(m)]),
        store=_compile(f"def store(x, i, y):\n    {targets} = y\n", "store"),
    )


def _compiled(arguments: str, entries: list[str]) -> Any:
    return _compile(f"def tuples({arguments}):\n    return ({', '.join(entries)},)\n", "tuples")


def _compile(source: str, name: str) -> Any:
    scope: dict[str, Any] = {}
    exec(compile(source, "<componentwise>", "exec"), scope)
    return njit(fastmath=FLAGS, error_model="numpy", forceinline=True)(scope[name])


def _euler_maruyama(ops: Algebra) -> Any:
    plus, kick = ops.plus, ops.kick

    @njit(fastmath=FLAGS, error_model="numpy", forceinline=True)
    def step(drift, diffusion, p, t, dt, y, dw):
        return kick(plus(y, dt, drift(t, y, p)), diffusion(t, y, p), dw)

    return step


def _heun(ops: Algebra) -> Any:
    plus, kick, scaled = ops.plus, ops.kick, ops.scaled

    @njit(fastmath=FLAGS, error_model="numpy", forceinline=True)
    def step(drift, diffusion, p, t, dt, y, dw):
        a0, b0 = drift(t, y, p), diffusion(t, y, p)
        predicted = kick(plus(y, dt, a0), b0, dw)
        a1, b1 = drift(t + dt, predicted, p), diffusion(t + dt, predicted, p)
        half = scaled(dw, 0.5)
        return kick(kick(plus(plus(y, 0.5 * dt, a0), 0.5 * dt, a1), b0, half), b1, half)

    return step


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme(
            name="euler-maruyama",
            convention="ito",
            strong=0.5,
            strong_special=1.0,
            special="additive",
            weak=1.0,
            build=_euler_maruyama,
            amplification=lambda z: 1 + z,
            source="Kloeden and Platen 1992, Theorems 10.2.2, 10.3.4 and 14.1.5",
        ),
        Scheme(
            name="heun",
            convention="stratonovich",
            strong=0.5,
            strong_special=1.0,
            special="commutative",
            weak=1.0,
            build=_heun,
            amplification=lambda z: 1 + z + z * z / 2,
            source="Rumelin 1982, SIAM J. Numer. Anal. 19, 604",
        ),
    )
}


def find(name: str) -> Scheme:
    """The scheme of that name.

    Raises
    ------
    InvalidInput
        Naming the schemes there are.
    """
    if name not in SCHEMES:
        raise InvalidInput(f"scheme={name!r} is unknown; available: {', '.join(sorted(SCHEMES))}")
    return SCHEMES[name]
