"""The random numbers of JAX in TensorFlow: the same key gives the same vectors in both."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

# Threefry-2x32 with 20 rounds (Salmon et al. 2011), counters as in JAX's partitionable form, which is its default.
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_WORD = 0xFFFFFFFF  # words of 32 bits are held in int64, which every device and XLA can add and shift


def key(seed: int) -> np.ndarray:
    """Return the key of ``jax.random.PRNGKey(seed)`` (of its 64-bit mode where that matters), int64 of shape (2,).

    Parameters
    ----------
    seed : int
        Any integer; taken modulo 2^64.
    """
    return np.array([(seed >> 32) & _WORD, seed & _WORD], np.int64)


def split(key: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Return two keys, as ``jax.random.split(key)`` does.

    Parameters
    ----------
    key : tensor
        int64, shape (2,).
    """
    words = tf.stack(_hash(key, 2), axis=-1)
    return words[0], words[1]


def normal(key: Any, size: int, dtype: tf.DType) -> tf.Tensor:
    """Return independent standard normal numbers, as ``jax.random.normal(key, (size,), dtype)`` does.

    Equal up to rounding of the inverse error function.

    Parameters
    ----------
    key : tensor
        int64, shape (2,).
    size : int
        How many; below 2^32.
    dtype : tf.DType
        float32 or float64.
    """
    first, second = _hash(key, size)
    if dtype == tf.float64:
        mantissa = _or(_left(first, 20), _right(second, 12))
        digits = 52
    else:
        mantissa = _right(_xor(first, second), 9)
        digits = 23
    fraction = tf.cast(mantissa, dtype) * tf.constant(2.0**-digits, dtype)
    lowest = np.nextafter(np.asarray(-1, dtype.as_numpy_dtype), np.asarray(0, dtype.as_numpy_dtype))
    uniform = tf.maximum(fraction * tf.constant(1 - lowest, dtype) + lowest, lowest)
    return tf.constant(np.sqrt(2), dtype) * tf.math.erfinv(uniform)


def _hash(key: Any, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the two words of each of the counters 0 .. size - 1, int64 of shape (size,)."""
    keys = (key[0], key[1], _xor(_xor(key[0], key[1]), tf.constant(_PARITY, tf.int64)))
    low = tf.range(size, dtype=tf.int64)
    first, second = _word(tf.zeros_like(low) + keys[0]), _word(low + keys[1])
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            first = _word(first + second)
            second = _xor(first, _word(_or(_left(second, rotation), _right(second, 32 - rotation))))
        first = _word(first + keys[(group + 1) % 3])
        second = _word(second + keys[(group + 2) % 3] + (group + 1))
    return first, second


def _word(value: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.bitwise_and(value, tf.constant(_WORD, tf.int64))


def _xor(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.bitwise_xor(first, second)


def _or(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.bitwise_or(first, second)


def _left(value: tf.Tensor, bits: int) -> tf.Tensor:
    return tf.bitwise.left_shift(value, tf.constant(bits, tf.int64))


def _right(value: tf.Tensor, bits: int) -> tf.Tensor:
    return tf.bitwise.right_shift(value, tf.constant(bits, tf.int64))
