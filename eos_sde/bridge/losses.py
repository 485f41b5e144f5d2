"""Losses of one example as a function of its outputs: the mean over examples is what is trained."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray


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


def softmax_curvature(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Hessian of the cross entropy in the outputs, diag(p) - p p^T, whatever the targets.

    Parameters
    ----------
    probabilities : ndarray
        Softmax p of the outputs, shape (n, c).

    Returns
    -------
    ndarray
        Shape (n, c, c); positive semi-definite, zero along (1, ..., 1): the softmax does not see a common shift.
    """
    p = probabilities
    return p[:, :, None] * np.eye(p.shape[1]) - p[:, :, None] * p[:, None, :]


def softmax_curvature_root(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Factors R with R^T R = diag(p) - p p^T that leave out the common shift.

    Parameters
    ----------
    probabilities : ndarray
        Softmax p of the outputs, shape (n, c), all positive.

    Returns
    -------
    ndarray
        Shape (n, c - 1, c).
    """
    values, vectors = np.linalg.eigh(softmax_curvature(probabilities))
    return np.sqrt(values[:, 1:, None]) * np.swapaxes(vectors[:, :, 1:], 1, 2)


LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "half-squared-error": half_squared_error,
    "cross-entropy": cross_entropy,
}
