"""Optimizers near a minimum: each is a preconditioned step with momentum, linear in the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax

from eos_sde.models.arguments import fraction, non_negative, positive
from eos_sde.thresholds.closed_forms import momentum_edge
from solvers.errors import InvalidInput

_DEFAULTS: dict[str, dict[str, float]] = {
    "gd": {},
    "sgd": {},
    "sgdm": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9},
    "adam": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    "adamw": {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 1e-4},
}
RULES = tuple(_DEFAULTS)


@dataclass(frozen=True)
class LinearRule:
    """``v+ = b v + gain h w``, ``w+ = (1 - eta decay) w - eta v+`` (Nesterov: ``- eta (gain h w + b v+)``).

    h is the batch curvature, for Adam that of the loss in the coordinates P^1/2 w with P frozen.

    Attributes
    ----------
    name : str
        One of `RULES`.
    momentum : float
        b: the momentum, or Adam's b1.
    nesterov : bool
        Which form of the step.
    gain : float
        1, or 1 - b1 where v is a moving average.
    weight_decay : float
        Decoupled.
    b2, eps : float
        Adam's; b2 = 0 marks a rule without preconditioner.
    """

    name: str
    momentum: float = 0.0
    nesterov: bool = False
    gain: float = 1.0
    weight_decay: float = 0.0
    b2: float = 0.0
    eps: float = 0.0

    @property
    def adaptive(self) -> bool:
        """Whether the rule has a preconditioner."""
        return self.b2 > 0

    def edge(self, curvature: Any, growth: float = 1.0) -> Any:
        """Learning rate at which a mode of positive curvature alternates and grows by a factor; traced or not."""
        return momentum_edge(
            curvature,
            self.momentum,
            nesterov=self.nesterov,
            gain=self.gain,
            weight_decay=self.weight_decay,
            growth=growth,
        )

    def step(self, eta: Any, curvature: Any, xp: Any = np) -> tuple[Any, Any]:
        """Matrix of one step on (w, v), and how a unit of extra batch gradient enters.

        Parameters
        ----------
        eta : float
            Learning rate.
        curvature : float or array, shape (...)
            h.
        xp : module
            ``numpy`` or ``jax.numpy``.

        Returns
        -------
        matrix, kick : array
            Shapes (..., 2, 2) and (2,).
        """
        b, look = self.momentum, self.momentum if self.nesterov else 0.0
        h = xp.asarray(curvature)
        one = xp.ones_like(h)
        push = -eta * self.gain * (1 + look)
        top = xp.stack(
            [one - eta * self.weight_decay + push * h, -eta * (b if not look else b * look) * one], -1
        )
        bottom = xp.stack([self.gain * h, b * one], -1)
        return xp.stack([top, bottom], -2), xp.stack([xp.asarray(push), xp.asarray(self.gain)])

    def response(self, eta: Any, first: Any, second: Any, xp: Any = np) -> Any:
        """Sum over time of the products of two modes' responses to one kick: what noise leaves in E[w_i w_j].

        Parameters
        ----------
        eta : float
            Learning rate, below the edge of both curvatures.
        first, second : array
            Curvatures, of one shape.
        xp : module
            ``numpy`` or ``jax.numpy``.

        Returns
        -------
        array
            Of that shape; at curvature h and b = 0, ``eta / (h (2 - eta h))``.
        """
        a, kick = self.step(eta, first, xp)
        b, _ = self.step(eta, second, xp)
        pair = xp.einsum("...ij,...kl->...ikjl", a, b).reshape(*a.shape[:-2], 4, 4)
        source = xp.broadcast_to(xp.outer(kick, kick).reshape(4, 1), (*a.shape[:-2], 4, 1))
        return xp.linalg.solve(xp.eye(4) - pair, source)[..., 0, 0]


def linear_rule(name: str, **options: float | None) -> LinearRule:
    """Rule by name, with options of its optax form.

    Parameters
    ----------
    name : {"gd", "sgd", "sgdm", "nesterov", "adam", "adamw"}
        As for `bridge.make_rule`.
    **options
        ``momentum`` ("sgdm", "nesterov"; 0.9), ``b1``, ``b2``, ``eps`` ("adam", "adamw"), ``weight_decay``
        ("adamw"; 1e-4). None is as if left out.

    Returns
    -------
    LinearRule
        The rule.

    Raises
    ------
    InvalidInput
        For an unknown rule, an option it does not have, or a value out of range.
    """
    if name not in _DEFAULTS:
        raise InvalidInput(f"rule={name!r} is not known: choose one of {', '.join(RULES)}")
    given = {key: value for key, value in options.items() if value is not None}
    foreign = sorted(set(given) - set(_DEFAULTS[name]))
    if foreign:
        raise InvalidInput(
            f"{foreign[0]}={given[foreign[0]]!r} is not an option of rule={name!r}: leave it out"
        )
    values = {**_DEFAULTS[name], **given}
    if "momentum" in values:
        return LinearRule(name, fraction("momentum", values["momentum"]), name == "nesterov")
    if "b1" not in values:
        return LinearRule(name)
    b1, b2 = fraction("b1", values["b1"]), fraction("b2", values["b2"])
    decay = non_negative("weight_decay", values.get("weight_decay", 0.0))
    return LinearRule(
        name,
        b1,
        gain=1 - b1,
        weight_decay=decay,
        b2=positive("b2", b2),
        eps=non_negative("eps", values["eps"]),
    )


def preconditioner(rule: LinearRule, nu: Any, count: Any) -> Any:
    """Adam's P = (1 - b1^t)(sqrt(nu / (1 - b2^t)) + eps), both bias corrections included.

    Parameters
    ----------
    rule : LinearRule
        An adaptive one.
    nu : pytree
        Second moments after t updates.
    count : int or array
        t >= 1.

    Returns
    -------
    pytree
        Like `nu`.
    """
    first, second = 1 - rule.momentum**count, 1 - rule.b2**count
    return jax.tree.map(lambda v: first * ((v / second) ** 0.5 + rule.eps), nu)


def adam_moments(opt_state: Any) -> tuple[Any, Any]:
    """Second moments and count of the Adam transformation inside an optax state.

    Parameters
    ----------
    opt_state : pytree
        State of an optax chain.

    Returns
    -------
    nu, count
        Pytree like params, and a scalar.

    Raises
    ------
    InvalidInput
        Unless there is exactly one ``scale_by_adam`` in it.
    """

    def is_adam(node: Any) -> bool:
        return isinstance(node, optax.ScaleByAdamState)

    found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_adam) if is_adam(node)]
    if len(found) != 1:
        raise InvalidInput(
            f"opt_state holds {len(found)} states of optax.scale_by_adam; pass the state of the one that trains"
        )
    return found[0].nu, found[0].count
