"""What the monitor measures along the top mode of the Hessian; traceable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from eos_sde.training.linear_rules import LinearRule
from eos_sde.training.objective import Objective, single

_BISECTIONS = 30


def where_positive(threshold: Callable[[jax.Array], jax.Array], curvature: jax.Array) -> jax.Array:
    """The threshold at a curvature; infinite where it is not positive."""
    return jnp.where(curvature > 0, threshold(jnp.where(curvature > 0, curvature, 1.0)), jnp.inf)


def saturation(product: Callable[[jax.Array], jax.Array], mode: jax.Array, scale: jax.Array) -> jax.Array:
    """Loss per squared rate of a step of one rate in each weight, with the signs of a mode."""
    step = jnp.sign(mode) / scale
    return jnp.maximum(step @ product(step), 0.0) / 2


def curvature_along(value: Objective, point: jax.Array, direction: jax.Array, data: Any) -> jax.Array:
    """Second derivative of the loss along a direction."""

    def slope(z: jax.Array) -> jax.Array:
        return jax.jvp(lambda y: value(y, data), (z,), (direction,))[1]

    return jax.jvp(slope, (point,), (direction,))[1]


def curvature_variance(value: Objective, point: jax.Array, direction: jax.Array, data: Any) -> jax.Array:
    """Variance over the examples of the curvature along a direction."""
    return jnp.var(jax.vmap(lambda example: curvature_along(value, point, direction, single(example)))(data))


def self_stabilization(value: Objective, point: jax.Array, direction: jax.Array, data: Any) -> jax.Array:
    """|grad S|^2 across the direction, S the curvature along it."""
    gradient = jax.grad(lambda z: curvature_along(value, z, direction, data))(point)
    return jnp.maximum(gradient @ gradient - (gradient @ direction) ** 2, 0.0)


def one_mode_threshold(rule: LinearRule, curvature: jax.Array, variance: jax.Array) -> jax.Array:
    """Mean-square threshold of one mode with noisy curvature: the root of variance * response = 1, by bisection."""
    edge = rule.edge(jnp.where(curvature > 0, curvature, 1.0))

    def halve(_: int, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket
        middle = (low + high) / 2
        stable = variance * rule.response(middle, curvature, curvature, jnp) < 1.0
        return jnp.where(stable, middle, low), jnp.where(stable, high, middle)

    low, _ = jax.lax.fori_loop(0, _BISECTIONS, halve, (jnp.zeros_like(edge), edge))
    return jnp.where(curvature > 0, jnp.where(variance > 0, low, edge), jnp.inf)
