"""The time-stepping schemes: one small function each, over tuples of components, with their stated orders.

To add a scheme: write its builder below and one entry in `SCHEMES`. A builder receives the `Algebra` for the
SDE's dimensions and the compiled `Model`, and returns ``step(p, t, dt, y, dw) -> y``, compiled by Numba; dw is
a tuple of as many numbers as the scheme's `draws` say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from numba import njit

from solvers.errors import InvalidInput

if TYPE_CHECKING:
    from solvers.sde import SDE

FLAGS = {"contract", "reassoc"}


class Draws(NamedTuple):
    """How many random numbers of each kind a step takes; dw holds them in this order.

    All have mean 0 and variance dt: Gaussian ones, three-point ones (0 with probability 2/3, else
    +-sqrt(3 dt)) and two-point ones (+-sqrt(dt)).
    """

    gaussian: int = 0
    three_point: int = 0
    two_point: int = 0


class Model(NamedTuple):
    """The compiled functions that a step calls, each ``f(t, y, p)`` with tuples; compares by identity.

    Attributes
    ----------
    d, m : int
        Components and Wiener processes.
    noise : str
        "diagonal" or "general".
    drift, diffusion : dispatcher
    derivatives : tuple of dispatchers
        What the scheme's `differentiate` made.
    """

    d: int
    m: int
    noise: str
    drift: Any
    diffusion: Any
    derivatives: tuple[Any, ...]


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
        Makes the step from an `Algebra` and a `Model`.
    amplification : callable
        R(z): factor per step on dy = lambda y dt, z = lambda dt; |R| > 1 for a decaying mode is instability.
    source : str
        Where the orders come from.
    draws : callable
        m -> `Draws` of one step.
    differentiate : callable
        SDE -> tuple of compiled functions ``f(t, y, p)`` that the step needs besides drift and diffusion.
    """

    name: str
    convention: str
    strong: float
    strong_special: float
    special: str
    weak: float
    build: Callable[[Algebra, Model], Any]
    amplification: Callable[[Any], Any]
    source: str
    draws: Callable[[int], Draws] = Draws
    differentiate: Callable[[SDE], tuple[Any, ...]] = lambda sde: ()  # noqa: ARG005


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
def algebra(d: int, m: int, noise: str, block: int, draws: int) -> Algebra:
    """The operations for d components, m Wiener processes, blocks of the given width, `draws` numbers a step."""
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
        load_noise=_compiled("x, i", [f"x[{k * block} + i]" for k in range(draws)]),
        store=_compile(f"def store(x, i, y):\n    {targets} = y\n", "store"),
    )


def _compiled(arguments: str, entries: list[str]) -> Any:
    return _compile(f"def tuples({arguments}):\n    return ({', '.join(entries)},)\n", "tuples")


def _compile(source: str, name: str) -> Any:
    scope: dict[str, Any] = {}
    exec(compile(source, "<componentwise>", "exec"), scope)
    return njit(fastmath=FLAGS, error_model="numpy", forceinline=True)(scope[name])


def _euler_maruyama(ops: Algebra, model: Model) -> Any:
    plus, kick, drift, diffusion = ops.plus, ops.kick, model.drift, model.diffusion

    @njit(fastmath=FLAGS, error_model="numpy", forceinline=True)
    def step(p, t, dt, y, dw):
        return kick(plus(y, dt, drift(t, y, p)), diffusion(t, y, p), dw)

    return step


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


class Stepper(NamedTuple):
    """A scheme made ready for one model: the compiled step and how it meets a block of paths.

    Attributes
    ----------
    step : dispatcher
        ``step(p, t, dt, y, dw) -> y``; p is the model's parameters (``sde.params``), y and dw tuples of floats.
    ops : Algebra
        Loads and stores for blocks of the width asked for.
    draws : Draws
        What dw holds.
    model : Model
    """

    step: Any
    ops: Algebra
    draws: Draws
    model: Model


def stepper(scheme: Scheme, sde: SDE, block: int = 1) -> Stepper:
    """The step of a scheme for an SDE; the same scheme and model functions give the same compiled step.

    Parameters
    ----------
    scheme : Scheme
    sde : SDE
        Converted exactly to the convention of the scheme.
    block : int
        Paths per block: component j of path i lies at ``x[j * block + i]``.
    """
    ready = sde.to(scheme.convention)
    drift, diffusion, _ = ready.compiled()
    model = Model(
        ready.dimension, ready.noise_dimension, ready.noise, drift, diffusion, scheme.differentiate(ready)
    )
    return _stepper(scheme, model, block)


@lru_cache(maxsize=512)
def _stepper(scheme: Scheme, model: Model, block: int) -> Stepper:
    draws = scheme.draws(model.m)
    ops = algebra(model.d, model.m, model.noise, block, sum(draws))
    return Stepper(scheme.build(ops, model), ops, draws, model)
