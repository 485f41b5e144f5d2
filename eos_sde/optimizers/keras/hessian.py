"""Gradient, Hessian-vector products and their slope, of a loss over Keras variables seen as one flat vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import tensorflow as tf

from solvers.errors import InvalidInput

Derivative = Callable[[list[tf.Tensor]], list[tf.Tensor]]


class Flat:
    """Keras variables seen as one vector of the working dtype (float32, or float64 if a variable is).

    Parameters
    ----------
    variables : sequence of keras.Variable
        Only shapes and dtypes are read.

    Raises
    ------
    InvalidInput
        If there are none, or one is not real floating point.
    """

    def __init__(self, variables: Sequence[Any]) -> None:
        self.shapes = [tuple(variable.shape) for variable in variables]
        self.dtypes = [tf.as_dtype(variable.dtype) for variable in variables]
        for variable, dtype in zip(variables, self.dtypes, strict=True):
            if not dtype.is_floating:
                raise InvalidInput(
                    f"variables holds {variable.path} of dtype {dtype.name}: curvature is defined for real "
                    "floating-point variables, so keep others out of the trainable ones."
                )
        self.sizes = [int(np.prod(shape)) for shape in self.shapes]
        self.dimension = sum(self.sizes)
        if self.dimension == 0:
            raise InvalidInput(
                "variables holds no numbers, so the loss has no curvature; pass the trainable variables."
            )
        self.dtype = tf.float64 if tf.float64 in self.dtypes else tf.float32
        self.unit_roundoff = max(float(ml_dtypes.finfo(dtype.as_numpy_dtype).eps) for dtype in self.dtypes)

    def ravel(self, tensors: Sequence[Any]) -> tf.Tensor:
        """Return tensors like the variables as one vector, shape (dimension,)."""
        return tf.concat([tf.reshape(tf.cast(tensor, self.dtype), [-1]) for tensor in tensors], axis=0)

    def unravel(self, vector: tf.Tensor) -> list[tf.Tensor]:
        """Return a vector as tensors of the shapes and dtypes of the variables."""
        pieces = zip(tf.split(vector, self.sizes), self.shapes, self.dtypes, strict=True)
        return [tf.cast(tf.reshape(piece, shape), dtype) for piece, shape, dtype in pieces]


class Linearization(NamedTuple):
    """What one evaluation of the loss tells.

    Attributes
    ----------
    value : tensor
        The loss.
    gradients : list of tensor
        Dense, like the variables; zero where the loss does not depend on one.
    product : callable
        Tensors like the variables -> the Hessian times them.
    slope : callable
        Tensors v like the variables -> the gradient of ``v'H v``, like the variables.
    """

    value: tf.Tensor
    gradients: list[tf.Tensor]
    product: Derivative
    slope: Derivative


def linearize(loss: Callable[[], Any], variables: Sequence[Any]) -> Linearization:
    """Return loss, gradients, ``v -> H v`` and ``v -> grad v'H v`` from one evaluation of the loss.

    Reverse over reverse: the gradient is recorded once, and each product is one more backward pass through it
    (Pearlmutter 1994), so that dropout masks and batch statistics are the same in all.

    Parameters
    ----------
    loss : callable
        Without arguments; returns the scalar loss, computed from the variables.
    variables : sequence of keras.Variable
        What is differentiated by.

    Returns
    -------
    Linearization
        The four.

    Raises
    ------
    InvalidInput
        If `loss` does not return a scalar.
    """
    weights = [getattr(variable, "value", variable) for variable in variables]
    zero = tf.UnconnectedGradients.ZERO
    wide = tf.float64 if any(weight.dtype == tf.float64 for weight in weights) else tf.float32
    with tf.GradientTape(persistent=True) as third, tf.GradientTape(persistent=True) as outer:
        with tf.GradientTape() as inner:
            value = tf.convert_to_tensor(loss())
        if value.shape.rank not in {0, None}:
            raise InvalidInput(
                f"loss must return a scalar, got the shape {tuple(value.shape)}; take the mean over the batch."
            )
        gradients = inner.gradient(value, weights, unconnected_gradients=zero)
        gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]  # an embedding's are sparse

    def product(vectors: list[tf.Tensor]) -> list[tf.Tensor]:
        images = outer.gradient(gradients, weights, output_gradients=vectors, unconnected_gradients=zero)
        return [tf.convert_to_tensor(image) for image in images]

    def slope(vectors: list[tf.Tensor]) -> list[tf.Tensor]:
        with third:  # goes on recording: the backward pass of a product
            pairs = zip(vectors, product(vectors), strict=True)
            quotient = tf.add_n(
                [tf.reduce_sum(tf.cast(v, wide) * tf.cast(image, wide)) for v, image in pairs]
            )
        slopes = third.gradient(quotient, weights, unconnected_gradients=zero)
        return [tf.convert_to_tensor(leaf) for leaf in slopes]

    return Linearization(value, gradients, product, slope)
