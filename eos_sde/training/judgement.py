"""What the stability monitor concludes at a step: distances, the predicted excursion, and the flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from eos_sde.training.linear_rules import LinearRule
from eos_sde.training.readings import MEASURED, Reading

_RELEASE = 0.9  # of a threshold: below, a flag that was set is taken back
_FALLEN = 0.9  # of the level at the measurement before: below, the network is bringing its sharpness down
_FAR = 3.0  # times the catapult threshold, 12/S without momentum, where also relu networks diverge: no time to wait


class Suspicion(NamedTuple):
    """What has to be confirmed.

    Attributes
    ----------
    alarms : int32
        Measurements in a row that raised an alarm.
    level : float
        Learning rate over the catapult threshold at the last of them.
    """

    alarms: jax.Array
    level: jax.Array


@dataclass(frozen=True)
class Judge:
    """The rule of the flags.

    Attributes
    ----------
    rule : LinearRule
        Of the optimizer.
    limit : float
        Growth of the loss that counts as divergence.
    """

    rule: LinearRule
    limit: float

    def alarm(
        self, numbers: jax.Array, rate: jax.Array, first: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Whether divergence is predicted, the peak of the loss, and the rate over the nearest threshold."""
        loss, _, sharpness, *_, feedback, saturation, deterministic, mean_square, _, catapult = numbers[
            : len(MEASURED)
        ]
        ratio = rate / jnp.minimum(deterministic, mean_square)
        excess = sharpness * jnp.maximum(0.0, 1.0 - 1.0 / ratio)
        # feedback is NaN where the edge was far at the last measurement: a jump of the rate is judged by the rest, as
        # are rates beyond the catapult threshold, where oscillation no longer lowers the sharpness
        removed = jnp.where(rate > catapult, jnp.nan, sharpness * excess**2 / feedback)
        peak = loss + jnp.where(excess > 0, jnp.fmin(removed, saturation * rate**2), 0.0)
        runaway = jnp.zeros((), bool) if self.rule.adaptive else rate > catapult
        excursion = (ratio > 1.0) & (peak > self.limit * jnp.maximum(first, loss))
        return runaway | excursion | ~(jnp.isfinite(loss) | jnp.isnan(first)), peak, ratio

    def __call__(
        self,
        numbers: jax.Array,
        rate: jax.Array,
        first: jax.Array,
        before: Reading,
        suspicion: Suspicion,
        due: jax.Array,
    ) -> tuple[Reading, Suspicion]:
        """Judge numbers at a learning rate, measured at this step if it was due."""
        numbers = numbers[: len(MEASURED)]
        alarm, peak, ratio = self.alarm(numbers, rate, first)
        level = rate / numbers[-1]
        again = due & (suspicion.alarms > 0) & ~(level < _FALLEN * suspicion.level)
        unmeasured = ~due & (suspicion.alarms == 0)  # by the budget
        standing = alarm & (again | unmeasured | (level > _FAR))
        held = ratio > _RELEASE
        reading = before._replace(
            edge=(ratio > 1.0) | (before.edge & held),
            warning=standing | ~jnp.isfinite(numbers[0]) | (before.warning & held),
            numbers=jnp.concatenate([numbers, rate[None], jnp.log(numbers[-4:] / rate), peak[None]]),
        )
        count = jnp.where(due, jnp.where(alarm, suspicion.alarms + 1, 0), suspicion.alarms)
        return reading, Suspicion(count, jnp.where(due, level, suspicion.level))
