"""What the stability monitor measures at one step: everything that costs gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from eos_sde.optimizers.curvature.interface import Estimator, flat_view, hessian_product
from eos_sde.training.judgement import divergence_rate
from eos_sde.training.linear_rules import LinearRule, adam_moments, preconditioner
from eos_sde.training.objective import objective
from eos_sde.training.readings import MEASURED
from eos_sde.training.top_mode import (
    curvature_variance,
    one_mode_threshold,
    saturation,
    self_stabilization,
    where_positive,
)  # fmt: skip

_NEAR = 0.5  # of a threshold: from here on the third derivative is worth its cost
_CATAPULT = (
    3.0  # growth per step of an oscillation from which on it raises the sharpness: eta = 4/S without momentum
)


class Memory(NamedTuple):
    """What one measurement hands to the next.

    Attributes
    ----------
    curvature : pytree
        State of the curvature estimator.
    means : Array, shape (4,)
        Running sums: batch sharpness, g_B' H g_B, |grad L|^2, and their weight.
    first_loss : float
        Of the first measurement; NaN before it.
    numbers : Array, shape (14,)
        As in `Reading`.
    """

    curvature: Any
    means: jax.Array
    first_loss: jax.Array
    numbers: jax.Array


@dataclass(frozen=True)
class Measurement:
    """Settings of a measurement.

    Attributes
    ----------
    loss : callable
        Of params and a batch, or of params and its items.
    rule : LinearRule
        Of the optimizer.
    estimator : Estimator
        Of the sharpness.
    forget : float
        Factor of the running sums at each measurement.
    noise : float
        Variance of a batch mean over that of one example.
    limit : float
        Growth of the loss that counts as divergence.
    """

    loss: Callable[..., Any]
    rule: LinearRule
    estimator: Estimator
    forget: float
    noise: float
    limit: float

    def __call__(
        self, memory: Memory, params: Any, batch: Any, data: Any, opt_state: Any, rate: jax.Array
    ) -> Memory:
        """Renew the memory at `params`; `rate` is the learning rate of the coming update."""
        loss, flat = objective(self.loss, batch), flat_view(params)
        origin, scale = flat.ravel(params), jnp.ones((), flat.dtype)
        if self.rule.adaptive:
            nu, steps = adam_moments(opt_state)
            b2 = self.rule.b2
            fresh = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, nu, jax.grad(loss)(params, batch))
            scale = 1.0 / jnp.sqrt(flat.ravel(preconditioner(self.rule, fresh, steps + 1)))

        def value(z: jax.Array, batch: Any) -> jax.Array:
            return loss(flat.cast(flat.unravel(origin + scale * z)), batch).astype(flat.dtype)

        point = jnp.zeros_like(origin)
        present, gradient = jax.value_and_grad(value)(point, data)
        product = hessian_product(lambda z: value(z, data), point)
        sharpness, error, curvature = self.estimator.update(product, point, memory.curvature)
        slope = jax.grad(lambda z: value(z, batch))
        batch_gradient, image = jax.jvp(slope, (point,), (slope(point),))
        square = batch_gradient @ batch_gradient
        fresh = jnp.stack(
            [
                batch_gradient @ image / jnp.where(square > 0, square, 1.0),
                batch_gradient @ product(batch_gradient),
                gradient @ gradient,
                jnp.ones_like(square),
            ]
        )
        sound = jnp.isfinite(sharpness) & jnp.all(
            jnp.isfinite(fresh)
        )  # what diverged must not spoil the memory
        curvature = jax.tree.map(partial(jnp.where, sound), curvature, memory.curvature)
        means = jnp.where(sound, self.forget * memory.means + (1 - self.forget) * fresh, memory.means)
        batch_sharpness = means[0] / means[3]
        mode = curvature.vector
        variance = curvature_variance(value, point, mode, data) if self.noise > 0 else jnp.zeros_like(present)
        mean_square = one_mode_threshold(self.rule, sharpness, self.noise * variance)
        deterministic = where_positive(self.rule.edge, sharpness)
        steepest = jnp.maximum(sharpness, fresh[0])  # of this batch: a running mean remembers what is over
        unknown = jnp.isnan(memory.first_loss)
        first = jnp.where(unknown, present, memory.first_loss)
        nearest = jnp.minimum(deterministic, mean_square)
        catapult = where_positive(partial(self.rule.edge, growth=_CATAPULT), steepest)
        feedback = jax.lax.cond(
            unknown | (rate > _NEAR * nearest),
            lambda: self_stabilization(value, point, mode, data),
            lambda: jnp.full_like(present, jnp.nan),
        )
        unbounded = jnp.full_like(present, jnp.inf)
        saturated = saturation(product, mode, scale) if self.rule.adaptive else unbounded
        found = {
            "loss": present,
            "gradient_norm": jnp.linalg.norm(gradient),
            "sharpness": sharpness,
            "sharpness_error": error,
            "batch_sharpness": batch_sharpness,
            "gradient_noise_interaction": means[1] / means[2],
            "curvature_spread": jnp.sqrt(variance),
            "self_stabilization": feedback,
            "deterministic": deterministic,
            "mean_square": mean_square,
            "saturation": saturated,
            "batch": where_positive(self.rule.edge, batch_sharpness),
            "catapult": catapult,
            "divergence": divergence_rate(
                present,
                first,
                sharpness,
                feedback,
                saturated,
                nearest,
                catapult,
                limit=self.limit,
                adaptive=self.rule.adaptive,
            ),
        }
        numbers = jnp.stack([found[name].astype(flat.dtype) for name in MEASURED])
        return Memory(curvature, means, first, numbers)
