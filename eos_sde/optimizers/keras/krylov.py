"""The Lanczos and power estimators in TensorFlow: settings, start vectors and steps of `curvature.krylov`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from eos_sde.optimizers.curvature.interface import ROUNDING
from eos_sde.optimizers.curvature.krylov import Lanczos, Power
from eos_sde.optimizers.keras import threefry
from eos_sde.optimizers.keras.hessian import Flat
from solvers.errors import InvalidInput

Operator = Callable[[tf.Tensor], tf.Tensor]


class _Ritz(NamedTuple):
    value: tf.Tensor
    residual: tf.Tensor
    vector: tf.Tensor  # (dimension,), of length one
    scale: tf.Tensor  # of the largest Ritz value in modulus, for rounding


class LanczosSteps:
    """`curvature.lanczos` on flat vectors; its state is the last Ritz vector and the random key.

    Parameters
    ----------
    settings : Lanczos
        From `curvature.lanczos`.
    flat : Flat
        The variables.
    """

    def __init__(self, settings: Lanczos, flat: Flat) -> None:
        self.settings = settings
        self.flat = flat

    def init(self, key: Any) -> dict[str, tf.Tensor]:
        """Start from a random direction."""
        key, draw = threefry.split(key)
        return {"vector": _random_unit(draw, self.flat), "key": key}

    def update(
        self, operator: Operator, state: dict[str, tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor, Any, dict[str, tf.Tensor]]:
        """Return estimate, error bound, products taken and new state; `operator` acts on shape (dimension,)."""
        settings, flat = self.settings, self.flat
        order = min(settings.order, flat.dimension)
        key, draw = threefry.split(state["key"])

        def unfinished(_: tf.Tensor, value: tf.Tensor, bound: tf.Tensor, runs: tf.Tensor) -> tf.Tensor:
            return (runs < 1 + settings.restarts) & (bound > settings.tol * tf.abs(value))

        def again(start: tf.Tensor, _: tf.Tensor, __: tf.Tensor, runs: tf.Tensor) -> tuple:
            ritz = _top_ritz(operator, start, order)
            floor = ROUNDING * flat.unit_roundoff * ritz.scale
            return ritz.vector, ritz.value, tf.maximum(ritz.residual, floor), runs + 1

        start = _unit(state["vector"] + settings.mix * _random_unit(draw, flat))
        first = (start, tf.zeros((), flat.dtype), tf.constant(float("inf"), flat.dtype), tf.constant(0))
        vector, value, bound, runs = tf.while_loop(unfinished, again, first)
        return value, bound, order * runs, {"vector": vector, "key": key}


class PowerSteps:
    """`curvature.power` on flat vectors; its state is the iterate and the vector of the low end.

    Parameters
    ----------
    settings : Power
        From `curvature.power`.
    flat : Flat
        The variables.
    """

    def __init__(self, settings: Power, flat: Flat) -> None:
        self.settings = settings
        self.flat = flat

    def init(self, key: Any) -> dict[str, tf.Tensor]:
        """Start both vectors from random directions."""
        top, low = threefry.split(key)
        return {"vector": _random_unit(top, self.flat), "lowest": _random_unit(low, self.flat)}

    def update(
        self, operator: Operator, state: dict[str, tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor, Any, dict[str, tf.Tensor]]:
        """Return estimate, error bound, products taken and new state; `operator` acts on shape (dimension,)."""
        flat = self.flat
        order = min(self.settings.shift_order, flat.dimension)
        low_end = _top_ritz(lambda vector: -operator(vector), _unit(state["lowest"]), order)  # of -H
        shift = tf.maximum(tf.zeros((), flat.dtype), low_end.value + low_end.residual)

        def iterate(step: tf.Tensor, vector: tf.Tensor, _: tf.Tensor, __: tf.Tensor) -> tuple:
            image = operator(vector)
            value = tf.tensordot(vector, image, 1)
            residual = tf.norm(image - value * vector)
            moved = image + shift * vector
            # a direction of zero image under the shifted operator is an eigenvector: stay there
            moved = tf.where(tf.norm(moved) > 0, moved, vector)
            return step + 1, _unit(moved), value, residual

        zero = tf.zeros((), flat.dtype)
        _, vector, value, residual = tf.while_loop(
            lambda step, *_: step < self.settings.iterations,
            iterate,
            (tf.constant(0), _unit(state["vector"]), zero, zero),
        )
        scale = tf.maximum(tf.abs(value), shift)
        bound = tf.maximum(residual, ROUNDING * flat.unit_roundoff * scale)
        products = tf.constant(self.settings.iterations + order)
        return value, bound, products, {"vector": vector, "lowest": low_end.vector}


_STEPS = {Lanczos: LanczosSteps, Power: PowerSteps}


def steps(settings: Any, flat: Flat) -> LanczosSteps | PowerSteps:
    """Return the TensorFlow form of an estimator of `eos_sde.optimizers.curvature`.

    Parameters
    ----------
    settings : Lanczos or Power
        From `curvature.lanczos` or `curvature.power`.
    flat : Flat
        The variables.
    """
    return _STEPS[type(settings)](settings, flat)


def check_estimator(settings: Any) -> None:
    """Refuse an estimator that has no TensorFlow form.

    Raises
    ------
    InvalidInput
        If it is not from `curvature.lanczos` or `curvature.power`.
    """
    if type(settings) not in _STEPS:
        raise InvalidInput(
            f"curvature must be curvature.lanczos(...) or curvature.power(...), got {settings!r}; "
            "other estimators exist for JAX only."
        )


def _top_ritz(operator: Operator, start: tf.Tensor, order: int) -> _Ritz:
    """Return the largest Ritz pair of one Lanczos run with full reorthogonalisation, from a unit vector."""
    dtype = start.dtype
    basis = tf.zeros((order, start.shape[0]), dtype)
    lengths = tf.zeros(order, dtype)

    def extend(row: tf.Tensor, vector: tf.Tensor, basis: tf.Tensor, diagonal: Any, lengths: Any) -> tuple:
        here = tf.reshape(row, (1, 1))
        basis = tf.tensor_scatter_nd_update(basis, here, vector[None])
        image = operator(vector)
        overlaps = tf.linalg.matvec(basis, image)
        image -= tf.linalg.matvec(basis, overlaps, transpose_a=True)
        image -= tf.linalg.matvec(basis, tf.linalg.matvec(basis, image), transpose_a=True)
        length = tf.norm(image)
        diagonal = tf.tensor_scatter_nd_update(diagonal, here, tf.gather(overlaps, row)[None])
        lengths = tf.tensor_scatter_nd_update(lengths, here, length[None])
        return row + 1, image / length, basis, diagonal, lengths

    _, _, basis, diagonal, lengths = tf.while_loop(
        lambda row, *_: row < order, extend, (tf.constant(0), start, basis, lengths, lengths)
    )
    # Cut where the space is invariant, with decoupled low values beyond, as `curvature.krylov.krylov_space` does.
    last, lengths = lengths[-1], lengths[:-1]
    scale = tf.reduce_max(tf.where(tf.math.is_finite(diagonal), tf.abs(diagonal), 0.0))
    scale = tf.maximum(
        scale, tf.reduce_max(tf.where(tf.math.is_finite(lengths), lengths, 0.0))
    )  # -inf of none
    negligible = ROUNDING * float(np.finfo(np.dtype(dtype.name)).eps) * scale
    going_on = (lengths > negligible) & tf.math.is_finite(diagonal[1:])
    sound = tf.concat([[True], tf.math.cumprod(tf.cast(going_on, dtype)) > 0], axis=0)
    below = diagonal[0] - tf.where(scale > 0, scale, 1.0)
    diagonal = tf.where(sound, diagonal, below)
    offdiagonal = tf.where(sound[1:], lengths, 0.0)
    basis = tf.where(sound[:, None], basis, 0.0)
    last = tf.where(sound[-1], last, 0.0)
    matrix = tf.linalg.diag(diagonal) + tf.linalg.diag(offdiagonal, k=1) + tf.linalg.diag(offdiagonal, k=-1)
    finite = tf.reduce_all(
        tf.math.is_finite(matrix)
    )  # eigh raises at NaN, which is to reach the rate instead
    values, vectors = tf.linalg.eigh(tf.where(finite, matrix, 0.0))
    value = tf.where(finite, values[-1], float("nan"))
    top = tf.where(
        vectors[0, -1] < 0, -vectors[:, -1], vectors[:, -1]
    )  # the sign that `curvature.krylov` takes
    vector = tf.linalg.matvec(basis, top, transpose_a=True)
    return _Ritz(value, last * tf.abs(vectors[-1, -1]), _unit(vector), scale)


def _random_unit(key: Any, flat: Flat) -> tf.Tensor:
    return _unit(threefry.normal(key, flat.dimension, flat.dtype))


def _unit(vector: tf.Tensor) -> tf.Tensor:
    """Return `vector` at length one, and unchanged when it is zero."""
    length = tf.norm(vector)
    return vector / tf.where(length > 0, length, tf.ones_like(length))
