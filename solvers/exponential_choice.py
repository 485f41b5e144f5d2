"""Which method computes an exponential of a generator, and why."""

from __future__ import annotations

import math
from collections.abc import Callable

from solvers.chain import Chain
from solvers.errors import InvalidInput
from solvers.exponentials import Exponential, Krylov, Side, Uniformization
from solvers.implicit_steps import ImplicitSteps

METHODS = ("auto", "krylov", "implicit", "uniformization")
# Seconds, measured on one core, only ever compared with each other: sparse LU in d dimensions per cell^power,
# one solve per cell and nonzero, one product per cell and nonzero.
_FACTOR = {1: (1e-7, 1.0), 2: (1.3e-8, 1.5), 3: (1e-9, 2.0)}
_SOLVE, _PRODUCT = 2e-8, 1e-9

_BY_NAME: dict[str, Callable[[Chain, Side, float], Exponential]] = {
    "krylov": Krylov,
    "implicit": ImplicitSteps,
    "uniformization": Uniformization,
}


def exponential(chain: Chain, side: Side, allowed: float, method: str) -> Exponential:
    """The exponential of a chain's generator by a method that `chosen` names."""
    return _BY_NAME[method](chain, side, allowed)


def chosen(chain: Chain, dimension: int, longest: float, method: str) -> tuple[str, str]:
    """A method, "auto" resolved, and why.

    Raises
    ------
    InvalidInput
        If the method is unknown, or is uniformization of signed transport.
    """
    if method not in METHODS:
        raise InvalidInput(f"method={method!r} is unknown; choose one of {', '.join(map(repr, METHODS))}")
    if method == "uniformization" and chain.extra is not None:
        raise InvalidInput(
            "method='uniformization' needs nonnegative rates, which the cross terms of this correlated noise or "
            "advection='second-order' do not give; use method='krylov'"
        )
    if method != "auto":
        return method, "as asked"
    if chain.linear:
        return "krylov", "on a line factorisation and solves cost as little as products"
    if chain.extra is not None:
        return "krylov", "signed cross terms leave no chain of jumps to average"
    n, entries = chain.size, 2 * len(chain.first) + chain.size
    cost, power = _FACTOR[min(dimension, 3)]
    implicit = cost * n**power + 20 * _SOLVE * entries * math.log2(n) / 5
    jumps = float(chain.outflow.max(initial=0.0)) * longest
    explicit = (jumps + 10 * math.sqrt(jumps) + 20) * _PRODUCT * entries
    told = f"about {jumps:.2g} products ({explicit:.2g} s), one factorisation and 20 solves {implicit:.2g} s"
    return ("krylov" if implicit < explicit else "uniformization"), told
