"""Gradient and Hessian-vector products of a loss over Keras variables, seen as one flat vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import tensorflow as tf

from solvers.errors import InvalidInput


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


def linearize(
    loss: Callable[[], Any], variables: Sequence[Any]
) -> tuple[tf.Tensor, list[tf.Tensor], Callable[[list[tf.Tensor]], list[tf.Tensor]]]:
    """Return loss, gradients and ``v -> H v`` from one evaluation of the loss.

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
    value : tensor
        The loss.
    gradients : list of tensor
        Dense, like the variables; zero where the loss does not depend on one.
    product : callable
        Tensors like the variables -> the Hessian times them.

    Raises
    ------
    InvalidInput
        If `loss` does not return a scalar.
    """
    weights = [getattr(variable, "value", variable) for variable in variables]
    zero = tf.UnconnectedGradients.ZERO
    with tf.GradientTape(persistent=True) as outer:
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

    return value, gradients, product
