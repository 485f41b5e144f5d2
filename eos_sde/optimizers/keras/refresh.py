"""When the Keras form measures, and how it follows the sharpness: `eos_sde.optimizers.refresh` on TensorFlow."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from eos_sde.optimizers.keras.hessian import Flat
from eos_sde.optimizers.refresh import Budget, BudgetState, Measurement, budget
from solvers.errors import InvalidInput

State = dict[str, Any]


class EverySteps:
    """`refresh.Every`: nothing is remembered.

    Parameters
    ----------
    interval : int
        Updates.
    """

    def __init__(self, interval: int) -> None:
        self.interval = interval

    def init(self) -> State:
        """Nothing to remember."""
        return {}

    def follow(self, state: State, params: tf.Tensor, sharpness: tf.Tensor) -> tf.Tensor:  # noqa: ARG002
        """Hold the last estimate."""
        return sharpness

    def due(self, state: State, count: tf.Tensor, age: tf.Tensor, sharpness: tf.Tensor) -> tf.Tensor:  # noqa: ARG002
        """By the number of the update alone."""
        return tf.equal(tf.math.floormod(count, self.interval), 0)

    def measured(self, state: State, measurement: Measurement) -> State:  # noqa: ARG002
        """Nothing to remember."""
        return {}

    def earn(self, state: State) -> State:  # noqa: ARG002
        """Nothing to remember."""
        return {}


class BudgetSteps:
    """`refresh.Budget` on flat vectors: its formulas, run on ``keras.ops``.

    Parameters
    ----------
    plan : Budget
        From `refresh.budget`.
    flat : Flat
        The variables.
    """

    def __init__(self, plan: Budget, flat: Flat) -> None:
        self.plan = plan
        self.flat = flat

    def init(self) -> State:
        """Nothing measured, the allowance unspent."""
        zero = tf.zeros((), self.flat.dtype)
        slope = tf.zeros(self.flat.dimension, self.flat.dtype)
        return BudgetState(
            zero, slope, zero, *(tf.constant(x, tf.float32) for x in self.plan.at_first)
        )._asdict()

    def follow(self, state: State, params: tf.Tensor, sharpness: tf.Tensor) -> tf.Tensor:
        """Follow a positive sharpness along its gradient; `params` is a vector of shape (dimension,)."""
        position = tf.tensordot(state["slope"], params, 1)
        return self.plan.followed(BudgetState(**state), position, sharpness, xp=keras.ops)

    def due(self, state: State, count: tf.Tensor, age: tf.Tensor, sharpness: tf.Tensor) -> tf.Tensor:
        """When wished for and paid for."""
        return self.plan.due(BudgetState(**state), count, age, sharpness, xp=keras.ops)

    def measured(self, state: State, measurement: Measurement) -> State:
        """Take the slope, which `measurement.quotient` returns here (None: there is none), and pay."""
        slope = state["slope"] if measurement.quotient is None else measurement.quotient(measurement.params)
        sound = tf.math.is_finite(measurement.sharpness) & tf.reduce_all(tf.math.is_finite(slope))
        slope = tf.where(sound, slope, 0.0)
        offset = tf.tensordot(slope, measurement.params, 1)
        old = BudgetState(**state)
        return self.plan.settled(old, measurement, slope, offset, xp=keras.ops)._asdict()

    def earn(self, state: State) -> State:
        """Receive the share of one update, and count it."""
        return self.plan.earn(BudgetState(**state), xp=keras.ops)._asdict()


def chosen(refresh: Any) -> int | Budget:
    """Return what an argument `refresh` of the Keras form means.

    Parameters
    ----------
    refresh : int, "auto" or Budget
        "auto" means the default `budget`.

    Returns
    -------
    int or Budget
        A number of updates, or the policy.

    Raises
    ------
    InvalidInput
        If it is none of these.
    """
    if isinstance(refresh, Budget):
        return refresh
    if isinstance(refresh, str) and refresh == "auto":
        return budget()
    if isinstance(refresh, float | int | np.integer | np.floating) and refresh >= 1 and refresh % 1 == 0:
        return int(refresh)
    raise InvalidInput(
        f"refresh must be a positive whole number of updates, 'auto' or refresh.budget(...), got {refresh!r}; "
        "other policies exist for JAX only."
    )


def steps(refresh: int | Budget, flat: Flat) -> EverySteps | BudgetSteps:
    """Return the TensorFlow form of a policy.

    Parameters
    ----------
    refresh : int or Budget
        From `chosen`.
    flat : Flat
        The variables.
    """
    return BudgetSteps(refresh, flat) if isinstance(refresh, Budget) else EverySteps(refresh)


def to_config(refresh: int | Budget) -> int | dict[str, Any]:
    """Return what JSON can hold: the number of updates, or the settings of the budget."""
    return dataclasses.asdict(refresh) if isinstance(refresh, Budget) else refresh


def from_config(config: Any) -> Any:
    """Return an argument `refresh` from `to_config`."""
    return budget(**config) if isinstance(config, dict) else config
