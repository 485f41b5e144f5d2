"""Parts of an optimizer's state: dictionaries of Keras variables, which are saved with the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


def add(optimizer: keras.optimizers.Optimizer, values: dict[str, Any]) -> dict[str, Any]:
    """Return new variables of an optimizer.

    Parameters
    ----------
    optimizer : keras.optimizers.Optimizer
        That holds and saves them.
    values : dict of tensor or array
        What they start from, by name.
    """
    return {
        entry: optimizer.add_variable(value.shape, _given(value), value.dtype.name, name=entry)
        for entry, value in values.items()
    }


def read(variables: dict[str, Any]) -> dict[str, tf.Tensor]:
    """Return the values of variables."""
    return {entry: tf.convert_to_tensor(variable) for entry, variable in variables.items()}


def write(variables: dict[str, Any], values: dict[str, tf.Tensor]) -> None:
    """Assign the values, of the same names."""
    for entry, variable in variables.items():
        variable.assign(values[entry])


def _given(value: Any) -> Callable[..., tf.Tensor]:
    """Return a Keras initializer of this value."""

    def initializer(shape: Any, dtype: Any = None) -> tf.Tensor:
        return tf.cast(tf.reshape(value, shape), dtype)

    return initializer
