"""The time-stepping schemes: one small function each, over tuples of components, with their stated orders.

===============  ============  ======================  ====  =================================================
scheme           converges to  strong                  weak  when to take it
===============  ============  ======================  ====  =================================================
euler-maruyama   Ito           0.5 (1 additive)        1     any noise; cheapest
weak-euler       Ito           none                    1     expectations only; no Gaussian numbers at all
tamed-euler      Ito           0.5 (1 additive)        1     drift that grows faster than linearly
implicit-euler   Ito           0.5 (1 additive)        1     stiff drift: damped modes never limit the step
milstein         Ito           1 (commutative only)    1     commutative noise; exact derivatives
platen           Ito           1 (commutative only)    1     the same without derivatives
heun             Stratonovich  0.5 (1 commutative)     1     models stated in that convention
sra1             Ito           1.5 (additive only)     2     additive noise; two Gaussian numbers per process
sriw1            Ito           1.5 (diagonal, scalar)  1.5   accurate paths of multiplicative noise
weak-platen      Ito           none                    2     accurate expectations, any noise
===============  ============  ======================  ====  =================================================

An SDE in another convention is converted exactly first. To add a scheme: write its builder in a file of this
folder and one entry in `SCHEMES`. A builder receives the `Algebra` for the SDE's dimensions and the compiled
`Model`, and returns ``step(p, t, dt, y, dw) -> y``, compiled by Numba; dw is a tuple of as many numbers as the
scheme's `draws` say.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from solvers.compiling import Keyed
from solvers.errors import InvalidInput
from solvers.schemes import structure
from solvers.schemes.algebra import FLAGS, Algebra, algebra
from solvers.schemes.claims import Draws, Model, Scheme
from solvers.schemes.euler import EULER_MARUYAMA, TAMED_EULER, WEAK_EULER
from solvers.schemes.heun import HEUN
from solvers.schemes.implicit import IMPLICIT_EULER
from solvers.schemes.milstein import MILSTEIN, PLATEN
from solvers.schemes.rossler import SRA1, SRIW1
from solvers.schemes.weak import WEAK_PLATEN

if TYPE_CHECKING:
    from solvers.sde import SDE

__all__ = ["FLAGS", "SCHEMES", "Algebra", "Draws", "Model", "Scheme", "Stepper", "choose", "find", "stepper"]

SCHEMES = {
    scheme.name: scheme
    for scheme in (
        EULER_MARUYAMA, WEAK_EULER, TAMED_EULER, IMPLICIT_EULER, MILSTEIN, PLATEN, HEUN, SRA1, SRIW1, WEAK_PLATEN,
    )
}  # fmt: skip


def find(name: str, sde: SDE | None = None) -> Scheme:
    """The scheme of that name; with an SDE, "auto" gives the one that `choose` takes.

    Raises
    ------
    InvalidInput
        Naming the schemes there are.
    """
    if name == "auto" and sde is not None:
        return choose(sde)[0]
    if name not in SCHEMES:
        raise InvalidInput(f"scheme={name!r} is unknown; available: {', '.join(sorted(SCHEMES))}")
    return SCHEMES[name]


def choose(sde: SDE) -> tuple[Scheme, str]:
    """What scheme="auto" means for an SDE: a cheap and robust scheme, and one sentence why.

    The choice goes by noise and convention. Stiff drift is not looked for: choose "implicit-euler" yourself.
    """
    found = structure.verdict(sde)
    noise = structure.DESCRIPTIONS[found.kind]
    if found.kind == "additive":
        chosen, reason = (
            SRA1,
            "the noise does not depend on the state, which gives strong order 1.5 and weak 2",
        )
    elif sde.convention == "stratonovich":
        order = HEUN.strong_order(found.kind)
        chosen, reason = HEUN, f"it reads {noise} as Stratonovich does, at strong order {order:g} and weak 1"
    elif found.kind == "general":
        chosen = EULER_MARUYAMA
        reason = f"{found.conflict}, so that no scheme on increments alone exceeds strong order 0.5 (weak 1)"
    else:
        try:
            sde.symbolic()
            chosen, how = MILSTEIN, "exact derivatives"
        except InvalidInput:
            chosen, how = PLATEN, "differences, since the model cannot be traced symbolically"
        reason = f"{noise} allows strong order 1 (weak 1) by {how}"
    return chosen, f"scheme='auto' chose {chosen.name!r}: {reason}"


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

    Raises
    ------
    InvalidInput
        If the scheme cannot treat this noise, with the reason and what to use instead.
    """
    kind = scheme.check(sde)
    key = (sde._keys(), sde.convention, sde.names, sde.noise)
    # A step that does not ask for the kind of noise must not be compiled once for each.
    kind = kind if scheme.asks else "general"
    return _stepper(scheme, _model(scheme, kind, Keyed(key, cast("Any", sde))), block)


@lru_cache(maxsize=512)
def _model(scheme: Scheme, kind: str, keyed: Keyed) -> Model:
    sde = cast("SDE", keyed.function).to(scheme.convention)
    drift, diffusion, _ = sde.compiled()
    derivatives = scheme.differentiate(sde)
    return Model(sde.dimension, sde.noise_dimension, sde.noise, kind, drift, diffusion, derivatives)


@lru_cache(maxsize=512)
def _stepper(scheme: Scheme, model: Model, block: int) -> Stepper:
    draws = scheme.draws(model.m, model.kind)
    ops = algebra(model.d, model.m, model.noise, block, sum(draws))
    return Stepper(scheme.build(ops, model), ops, draws, model)
