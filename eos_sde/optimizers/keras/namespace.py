"""The formulas that NumPy and JAX share, run on ``keras.ops``: the names they call, with its own for those it lacks."""

from __future__ import annotations

from types import SimpleNamespace

import keras
import tensorflow as tf

_NAMES = ("isfinite", "where", "minimum", "maximum", "log", "sqrt")


def _hypot(one: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    """Return sqrt(one^2 + other^2) without overflow; ``keras.ops`` has it from Keras 3.12 on only."""
    one, other = tf.abs(one), tf.abs(other)
    large = tf.maximum(one, other)
    return large * tf.sqrt(1.0 + tf.square(tf.math.divide_no_nan(tf.minimum(one, other), large)))


OPS = SimpleNamespace(
    asarray=keras.ops.array, hypot=_hypot, **{name: getattr(keras.ops, name) for name in _NAMES}
)
"""For the argument `xp` of `rule`, `runaway`, `descent` and `self_stabilizing_rule`."""
