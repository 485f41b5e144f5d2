"""When the stability monitor measures: early and densely where something begins, in the long run within a budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

_PASS = 4.5  # products of Lanczos in a typical measurement: one pass and a half of order 3
_PRODUCT = 3.0  # gradients of the probe data for one of them ...
_REST = 9.0  # ... for all else that a measurement takes from them, ...
_BATCH = 4.0  # ... and gradients of the batch
_MOST = 2**24  # steps that one measurement may owe: far above any, and sums of some stay within 32 bits


@dataclass(frozen=True)
class Price:
    """What a measurement costs, in steps of the budget: the steps whose share it uses up.

    Attributes
    ----------
    fixed : float
        Without the products of the sharpness estimate.
    product : float
        For one of these.
    """

    fixed: float
    product: float

    @staticmethod
    def counted(batch_size: int, probe_size: int, overhead: float) -> Price:
        """Count gradients, one of the batch for a step."""
        probe = probe_size / batch_size
        return Price((_REST * probe + _BATCH) / overhead, _PRODUCT * probe / overhead)

    def of_steps(self, products: jax.Array) -> jax.Array:
        """Whole steps that pay for a measurement with so many products."""
        steps = jnp.ceil(self.fixed + self.product * products)
        return jnp.clip(steps, 1, _MOST).astype(jnp.int32)

    @property
    def typical(self) -> int:
        """Steps that pay for a typical measurement."""
        return int(min(max(-(-(self.fixed + _PASS * self.product) // 1), 1), _MOST))

    def scaled(self, factor: float) -> Price:
        """The price where all is dearer by a factor."""
        return Price(self.fixed * factor, self.product * factor)


class Schedule(NamedTuple):
    """A regular measurement whenever the last one is paid for, and bursts.

    A burst measures at steps 0, 1, 2, 4, 8, ... of the training, or of an alarm while it stands.
    What a burst costs beyond the regular measurements is a debt. While there is one, each regular measurement is
    followed by twice its wait, half of which pays the debt; where it is that of a whole burst, no other begins. So
    the price of all measurements up to a step is at most that many steps, one measurement, and three bursts.

    Attributes
    ----------
    last : int32
        Step of the last measurement.
    due : int32
        Step of the next regular one.
    burst : int32
        Step at which the last alarm began.
    debt : int32
        Steps owed for bursts.
    """

    last: jax.Array
    due: jax.Array
    burst: jax.Array
    debt: jax.Array


def begin() -> Schedule:
    """Before the first step."""
    zero = jnp.zeros((), jnp.int32)
    return Schedule(zero - 1, zero, zero - _MOST, zero)


def room(schedule: Schedule, interval: int) -> jax.Array:
    """Whether the debt leaves room for a burst, of at most 2 + log2(interval) measurements."""
    return schedule.debt <= interval * (1 + interval.bit_length())


def is_due(
    schedule: Schedule, step: jax.Array, event: jax.Array, interval: int, every: int | None
) -> jax.Array:
    """Whether a step measures.

    Parameters
    ----------
    schedule : Schedule
        So far.
    step : int32
        This one.
    event : bool
        Whether an alarm begins with it.
    interval : int
        Steps after which a burst ends.
    every : int, optional
        Steps between regular measurements, where they are fixed: then there is no burst at the start, and those of
        alarms are not counted.

    Returns
    -------
    bool
        Traced.
    """
    standing = _doubled(step - schedule.burst, interval)
    if every is not None:
        return (step % every == 0) | standing | event
    return (step >= schedule.due) | _doubled(step, interval) | standing | (event & room(schedule, interval))


def _doubled(since: jax.Array, interval: int) -> jax.Array:
    """Whether a number of steps is 1, 2, 4, ..., below the interval."""
    return (since > 0) & ((since & (since - 1)) == 0) & (since < interval)


def advance(
    schedule: Schedule, step: jax.Array, alarms: jax.Array, price: jax.Array, interval: int
) -> Schedule:
    """Schedule after a measurement.

    Parameters
    ----------
    schedule : Schedule
        Before it.
    step : int32
        That measured.
    alarms : int32
        Measurements in a row that raised an alarm: 1 begins a burst if there is room, 0 ends it.
    price : int32
        Steps that pay for the measurement.
    interval : int
        Steps after which a burst ends.

    Returns
    -------
    Schedule
        For the steps that follow.
    """
    regular = step >= schedule.due
    paid = jnp.where(regular, jnp.minimum(schedule.debt, price), 0)
    owed = jnp.where(regular, 0, price)
    begins = (alarms == 1) & room(schedule, interval)
    return Schedule(
        step,
        jnp.where(regular, step + price + paid, schedule.due),
        jnp.where(begins, step, jnp.where(alarms == 0, step - interval, schedule.burst)),
        schedule.debt + owed - paid,
    )
