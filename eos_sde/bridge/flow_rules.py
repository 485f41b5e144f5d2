"""The rules whose averaged paths are forecast: each a linear step on (w, v) at rates of its own for each weight.

With r the square roots of the rates, every rule is ``v+ = b v + gain g``, ``x+ = x - r v+`` (Nesterov:
``- r (gain g + b v+)``) in the coordinates x = w/r, where the Hessian is r H r and the learning rate 1. The rates are
the learning rate itself, the capped one of CAEO, or eta/(sqrt(nu) + eps) of the second moments nu of the gradient:
RMSProp and Adam, with what optax does about eps and the first steps.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from eos_sde.optimizers import rule as caeo_rule
from eos_sde.training.linear_rules import LinearRule, linear_rule
from solvers.errors import InvalidInput

_OPTIONS: dict[str, dict[str, Any]] = {
    "gd": {},
    "sgd": {},
    "sgdm": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9},
    "rmsprop": {"b2": 0.9, "eps": 1e-8, "eps_in_sqrt": True, "bias_correction": False},
    "adam": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    "caeo": {"delta": 0.1},
}
RULES = tuple(_OPTIONS)


class Memory(NamedTuple):
    """What a rule remembers, averaged over the fluctuation.

    Attributes
    ----------
    velocity : Array
        v, the decaying sum (or moving average) of gradients, shape (d,).
    second_moments : Array
        nu, the moving average of squared gradients, shape (d,); zero for rules without.
    updates : int
        How many were made.
    """

    velocity: jax.Array
    second_moments: jax.Array
    updates: int


@dataclass(frozen=True)
class FlowRule:
    """One rule as the flows need it.

    Attributes
    ----------
    name : str
        One of `RULES`.
    eta : float
        Learning rate; the base rate of CAEO.
    linear : LinearRule
        Its step, which is taken at a learning rate of 1 in the coordinates w/r.
    eps_in_sqrt, bias_correction : bool
        Of the second moments, as in optax.
    delta : float or None
        Margin of CAEO.
    """

    name: str
    eta: float
    linear: LinearRule
    eps_in_sqrt: bool = False
    bias_correction: bool = False
    delta: float | None = None

    @property
    def edge(self) -> float:
        """Eigenvalue of r H r at which a mode alternates without decay: 2 without momentum."""
        return float(self.linear.edge(1.0))

    @property
    def plain(self) -> bool:
        """Whether the rule is (stochastic) gradient descent without a memory."""
        return self.name in ("gd", "sgd")

    @property
    def attributes(self) -> dict[str, Any]:
        """Name and options, for the attributes of a dataset."""
        first = "b1" if self.name == "adam" else "momentum"
        named = {first: self.linear.momentum, "b2": self.linear.b2, "eps": self.linear.eps}
        own = {key: value for key, value in named.items() if value}
        return {"rule": self.name} | own | ({} if self.delta is None else {"delta": self.delta})

    def kept(self, memory: Memory) -> dict[str, Any]:
        """The parts of a memory that this rule has."""
        momentum = {"final_momentum": memory.velocity} if self.linear.momentum else {}
        return momentum | ({"final_second_moments": memory.second_moments} if self.adaptive else {})

    @property
    def adaptive(self) -> bool:
        """Whether the rates come from second moments."""
        return self.linear.adaptive

    @property
    def lag(self) -> int:
        """Steps by which the averaged path trails its force, twice b/(1 - b)."""
        return round(2.0 * self.linear.momentum / (1.0 - self.linear.momentum))

    def later(self, second_moments: Any, squares: Any, steps: Any) -> Any:
        """Nu some steps later, while the mean square of the gradient is constant."""
        kept = self.linear.b2**steps
        return kept * second_moments + (1.0 - kept) * squares

    def rates(self, second_moments: Any, count: Any) -> Any:
        """Rate of each weight in the update that leaves these second moments, the count-th; traceable.

        Parameters
        ----------
        second_moments : Array
            Shape (d,).
        count : int or Array
            From 1.

        Returns
        -------
        Array
            Shape (d,), in weight/gradient.
        """
        first = 1.0
        if self.bias_correction:
            first = 1.0 - self.linear.momentum**count
            second_moments = second_moments / (1.0 - self.linear.b2**count)
        if self.eps_in_sqrt:
            return self.eta / (first * jnp.sqrt(second_moments + self.linear.eps))
        return self.eta / (first * (jnp.sqrt(second_moments) + self.linear.eps))

    def capped(self, sharpness: Any) -> Any:
        """Rate of CAEO at a sharpness; the learning rate of the other rules."""
        if self.delta is None:
            return self.eta
        return caeo_rule.learning_rate(self.eta, sharpness, self.delta, xp=jnp)

    def longest(self, count: int, stride: int) -> int:
        """Steps over which the correction of the first averages changes little."""
        return max(1, min(stride, count // 4)) if self.bias_correction else stride


def flow_rule(name: str, *, eta: float, **options: Any) -> FlowRule:
    """Rule by name, with the options of `make_rule`.

    Parameters
    ----------
    name : {"gd", "sgd", "sgdm", "nesterov", "rmsprop", "adam", "caeo"}
        As for `make_rule`.
    eta : float
        Learning rate.
    **options
        ``momentum`` ("sgdm", "nesterov"; 0.9), ``b1`` ("adam"; 0.9), ``b2`` ("adam" 0.999, "rmsprop" 0.9), ``eps``
        (1e-8), ``eps_in_sqrt`` and ``bias_correction`` ("rmsprop"; True and False), ``delta`` ("caeo"; 0.1). None is
        as if left out.

    Returns
    -------
    FlowRule
        The rule.

    Raises
    ------
    InvalidInput
        For an unknown rule, an option it does not have, or a value out of range.
    """
    if name not in _OPTIONS:
        raise InvalidInput(f"rule={name!r} has no flow: choose one of {', '.join(RULES)}")
    if not (eta > 0 and np.isfinite(eta)):
        raise InvalidInput(f"eta={eta} must be a positive learning rate")
    given = {key: value for key, value in options.items() if value is not None}
    for key, value in given.items():
        if key not in _OPTIONS[name]:
            raise InvalidInput(f"{key}={value!r} is not an option of rule={name!r}: leave it out")
    values = {**_OPTIONS[name], **given}
    if name == "caeo":
        caeo_rule.validate(delta=values["delta"])
        return FlowRule(name, eta, linear_rule("sgd"), delta=float(values["delta"]))
    if name == "rmsprop":
        scaled = linear_rule("adam", b1=0.0, b2=values["b2"], eps=values["eps"])
        return FlowRule(name, eta, scaled, bool(values["eps_in_sqrt"]), bool(values["bias_correction"]))
    return FlowRule(name, eta, linear_rule(name, **values), bias_correction=name == "adam")


def initial_memory(rule: FlowRule, size: int, state: Any) -> Memory:
    """What the rule remembers at the checkpoint.

    Parameters
    ----------
    rule : FlowRule
        The rule.
    size : int
        Number of weights.
    state : pytree or None
        State of the optax transformation that trained so far, or None for one that has just begun.

    Returns
    -------
    Memory
        Its velocity, second moments and count.

    Raises
    ------
    InvalidInput
        If the state is not that of the rule, or does not fit the weights.
    """
    zero = jnp.zeros(size)
    if state is None:
        return Memory(zero, zero, 0)
    needed = {"adam": ("mu", "nu", "count"), "rmsprop": ("nu", "count") if rule.bias_correction else ("nu",)}
    fields = needed.get(rule.name, ("trace",) if rule.linear.momentum else ())
    if not fields:
        return Memory(zero, zero, 0)

    def keeps(node: Any) -> bool:
        return set(fields) <= set(getattr(node, "_fields", ()))

    found = [node for node in jax.tree.leaves(state, is_leaf=keeps) if keeps(node)]
    if len(found) != 1:
        raise InvalidInput(
            f"state holds {len(found)} nodes with {', '.join(fields)}, which rule={rule.name!r} keeps: pass the state "
            "of its optax form"
        )

    def flat(field: str) -> jax.Array:
        values = ravel_pytree(getattr(found[0], field))[0].astype(jnp.float64)
        if values.shape != (size,) or not bool(jnp.all(jnp.isfinite(values))):
            raise InvalidInput(f"state must hold {size} finite numbers in {field}, got shape {values.shape}")
        return values

    velocity = flat("mu" if rule.name == "adam" else "trace") if rule.linear.momentum else zero
    moments = flat("nu") if rule.adaptive else zero
    return Memory(velocity, moments, int(found[0].count) if "count" in fields else 0)
