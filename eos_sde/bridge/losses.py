"""Losses of one example as a function of its outputs: the mean over examples is what is trained."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def half_squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Half the squared residual, summed over outputs.

    Parameters
    ----------
    outputs, targets : Array
        Shape (n, c).

    Returns
    -------
    Array
        Shape (n,). Its output curvature is the identity, so that the Gauss-Newton factors of an example
        are its output Jacobian.
    """
    return 0.5 * jnp.sum((outputs - targets) ** 2, axis=-1)


def cross_entropy(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross entropy of the softmax of the outputs, in nats.

    Parameters
    ----------
    outputs, targets : Array
        Logits and target probabilities (one-hot), shape (n, c).

    Returns
    -------
    Array
        Shape (n,).
    """
    return -jnp.sum(targets * jax.nn.log_softmax(outputs), axis=-1)


LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "half-squared-error": half_squared_error,
    "cross-entropy": cross_entropy,
}
