"""What a scheme is: its orders, the noise it accepts, what a step draws, and how the step is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from solvers.errors import InvalidInput
from solvers.schemes import structure

if TYPE_CHECKING:
    from solvers.schemes.algebra import Algebra
    from solvers.sde import SDE


class Draws(NamedTuple):
    """How many random numbers of each kind a step takes; dw holds them in this order.

    All have mean 0 and variance dt: Gaussian ones, three-point ones (0 with probability 2/3, else
    +-sqrt(3 dt)) and two-point ones (+-sqrt(dt)). The first m of the leading kind drive the m Wiener
    processes; what follows is auxiliary.
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
    kind : str
        What is known of the noise (see `structure`); "general" for schemes that do not ask.
    drift, diffusion : dispatcher
    derivatives : tuple
        What the scheme's `differentiate` made.
    """

    d: int
    m: int
    noise: str
    kind: str
    drift: Any
    diffusion: Any
    derivatives: tuple[Any, ...]


def _no_derivatives(sde: SDE) -> tuple[Any, ...]:  # noqa: ARG001 - the signature of `differentiate`
    return ()


def _untamed(speed: Any) -> Any:
    return 1.0 + 0.0 * speed


@dataclass(frozen=True)
class Scheme:
    """A scheme and what is claimed of it.

    Orders are those for coefficients smooth and Lipschitz enough; they are limits as dt vanishes.

    Attributes
    ----------
    name : str
        As passed to `simulate`.
    convention : str
        The reading of the noise the scheme converges to; other SDEs are converted exactly first.
    strong : float or None
        Strong order for every kind of noise that the scheme accepts; None for schemes that follow no
        Brownian path.
    strong_special : float or None
        Strong order for the kinds of noise named in `special`.
    special : frozenset of str
        Kinds of noise, see `structure`.
    weak : float
        Weak order.
    build : callable
        Makes the step from an `Algebra` and a `Model`.
    amplification : callable
        R(z): factor per step on dy = lambda y dt, z = lambda dt; |R| > 1 for a decaying mode is instability.
    source : str
        Where the orders come from.
    draws : callable
        (m, kind of noise) -> `Draws` of one step.
    differentiate : callable
        SDE -> tuple of compiled functions ``f(t, y, p)`` that the step needs besides drift and diffusion.
    accepts : frozenset of str
        Kinds of noise; all by default.
    remedy : str
        What to use for noise that is not accepted.
    asks : bool
        Whether the step is built after the kind of noise.
    taming : callable
        s -> factor by which the derivative of the step with respect to the drift is reduced where
        ``s = dt |drift|``; 1 except for tamed schemes, whose stability far out differs from that at rest.
    """

    name: str
    convention: str
    strong: float | None
    strong_special: float | None
    special: frozenset[str]
    weak: float
    build: Callable[[Algebra, Model], Any]
    amplification: Callable[[Any], Any]
    source: str
    draws: Callable[[int, str], Draws]
    differentiate: Callable[[SDE], tuple[Any, ...]] = _no_derivatives
    accepts: frozenset[str] = frozenset(structure.KINDS)
    remedy: str = ""
    asks: bool = False
    taming: Callable[[Any], Any] = _untamed

    def check(self, sde: SDE) -> str:
        """Refuse an SDE that the scheme cannot solve at its stated orders.

        Returns
        -------
        str
            The kind of noise, or "general" if nobody needs to know.

        Raises
        ------
        InvalidInput
            With the reason and what to use instead.
        """
        if not self.asks and self.accepts == frozenset(structure.KINDS):
            return "general"
        found = structure.verdict(sde)
        if found.kind not in self.accepts:
            wanted = " or ".join(structure.DESCRIPTIONS[k] for k in structure.KINDS if k in self.accepts)
            fault = found.conflict if "commuting" in self.accepts else found.dependence
            raise InvalidInput(
                f"scheme={self.name!r} reaches its order only for {wanted}, but {fault}; {self.remedy}"
            )
        return found.kind

    def strong_order(self, kind: str) -> float | None:
        """The strong order for that kind of noise; None if the scheme follows no Brownian path."""
        return self.strong_special if kind in self.special else self.strong
