"""What the stability monitor concludes: the rate at which divergence is predicted, and the flags of a step."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from eos_sde.training.readings import Reading

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
    confirmed : bool
        Whether the last one confirmed the one before.
    """

    alarms: jax.Array
    level: jax.Array
    confirmed: jax.Array


def divergence_rate(
    loss: jax.Array,
    first: jax.Array,
    sharpness: jax.Array,
    feedback: jax.Array,
    saturation: jax.Array,
    nearest: jax.Array,
    catapult: jax.Array,
    *,
    limit: float,
    adaptive: bool,
) -> jax.Array:
    """Learning rate beyond which there is an alarm: the one at which the predicted peak of the loss is the limit.

    Beyond a threshold the loss rises by the lesser of what self-stabilization allows, S y^2/beta with
    y = S (1 - nearest/rate), and of what steps of full size cost, saturation rate^2. Both grow with the rate, so that
    the alarm has one edge.

    Parameters
    ----------
    loss, first : float
        Present and first loss.
    sharpness, feedback, saturation : float
        S, beta and the cost of steps of full size, as in `readings.MEASURED`. Unknown feedback (NaN, where the edge was
        far at the measurement) counts as none: a jump of the rate is judged by the rest.
    nearest, catapult : float
        The lower of the deterministic and the mean-square threshold, and the catapult threshold, beyond which
        oscillation no longer lowers the sharpness.
    limit : float
        Growth of the loss that counts as divergence.
    adaptive : bool
        Whether the rule bounds its steps: then the catapult threshold alone is no alarm.

    Returns
    -------
    float
        -inf where the loss is no longer finite, inf or NaN where no rate is too large.
    """
    room = jnp.maximum(limit * jnp.maximum(first, loss) - loss, 0.0)
    share = jnp.sqrt(room * feedback / sharpness**3)  # of the sharpness: the excess that fills the room
    removed = jnp.where(jnp.isnan(feedback), nearest, nearest / jnp.maximum(1.0 - share, 0.0))
    excursion = jnp.maximum(jnp.fmin(removed, catapult), jnp.maximum(nearest, jnp.sqrt(room / saturation)))
    rate = excursion if adaptive else jnp.fmin(excursion, catapult)
    return jnp.where(jnp.isfinite(loss) | jnp.isnan(first), rate, -jnp.inf)


def suspect(before: Suspicion, rate: jax.Array, divergence: jax.Array, catapult: jax.Array) -> Suspicion:
    """Suspicion after a measurement.

    Parameters
    ----------
    before : Suspicion
        After the last one.
    rate, divergence, catapult : float
        Learning rate, and thresholds as measured now.

    Returns
    -------
    Suspicion
        Confirmed if the measurement before raised an alarm too and the level has not fallen by a tenth since.
    """
    level = rate / catapult
    again = (before.alarms > 0) & ~(level < _FALLEN * before.level)
    return Suspicion(jnp.where(rate > divergence, before.alarms + 1, 0), level, again)


def flags(
    before: Reading, rate: jax.Array, suspicion: Suspicion, due: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Edge and warning of a step.

    Parameters
    ----------
    before : Reading
        Of the step before, with the numbers of this one.
    rate : float
        Learning rate of this step.
    suspicion : Suspicion
        After this step.
    due : bool
        Whether it measured.

    Returns
    -------
    edge, warning : bool
        With hysteresis.
    """
    nearest = jnp.minimum(before.deterministic, before.mean_square)
    believed = jnp.where(due, suspicion.confirmed, suspicion.alarms == 0)  # not looked at, by the budget
    standing = (rate > before.divergence) & (believed | (rate > _FAR * before.catapult))
    held = rate > _RELEASE * nearest
    edge = (rate > nearest) | (before.edge & held)
    return edge, standing | ~jnp.isfinite(before.loss) | (before.warning & held)
