"""Losses of one example as a function of its outputs: the mean over examples is what is trained."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray


def half_squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Half the squared residual, summed over outputs and averaged over the positions of a sequence.

    Parameters
    ----------
    outputs : Array
        Shape (n, c), or (n, T, c) for sequences of T positions.
    targets : Array
        Of the same shape; or of integer type without the last axis, the classes whose one-hot vectors are meant.

    Returns
    -------
    Array
        Shape (n,). Its output curvature is the identity (over T), so that the Gauss-Newton factors of an example
        are its output Jacobian.
    """
    values = (
        jax.nn.one_hot(targets, outputs.shape[-1], dtype=outputs.dtype) if of_classes(targets) else targets
    )
    return _over_positions(0.5 * jnp.sum((outputs - values) ** 2, axis=-1))


def cross_entropy(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross entropy of the softmax of the outputs, in nats, averaged over the positions of a sequence.

    Parameters
    ----------
    outputs : Array
        Logits, shape (n, c), or (n, T, c) for sequences of T positions: a softmax at each.
    targets : Array
        Target probabilities (one-hot) of the same shape, or classes of integer type without the last axis.

    Returns
    -------
    Array
        Shape (n,).
    """
    logs = jax.nn.log_softmax(outputs)
    if of_classes(targets):
        picked = jnp.take_along_axis(logs, targets[..., None], axis=-1)[..., 0]
    else:
        picked = jnp.sum(targets * logs, axis=-1)
    return _over_positions(-picked)


def of_classes(targets: jax.Array) -> bool:
    """Whether targets are class numbers, such as tokens, instead of a value for every output.

    Parameters
    ----------
    targets : Array
        Of any shape.

    Returns
    -------
    bool
        True for an integer type.
    """
    return jnp.issubdtype(targets.dtype, jnp.integer)


def _over_positions(losses: jax.Array) -> jax.Array:
    """Mean over what comes after the axis of the examples; one example without that axis has no more than outputs."""
    return jnp.mean(losses, axis=tuple(range(1, losses.ndim))) if losses.ndim > 1 else losses


def best_constant(loss_name: str, targets: jax.Array, outputs: int) -> jax.Array:
    """The constant output of least mean loss.

    Parameters
    ----------
    loss_name : str
        One of `LOSSES`.
    targets : Array
        Of all examples, (n, c), (n, T, c), or classes.
    outputs : int
        c.

    Returns
    -------
    Array
        The mean target, shape (c,), or its logarithm for cross entropy.
    """
    values = jax.nn.one_hot(targets, outputs, dtype=jnp.float64) if of_classes(targets) else targets
    mean = values.mean(axis=tuple(range(values.ndim - 1)))
    return mean if loss_name == "half-squared-error" else jnp.log(mean)


def output_slopes(
    loss_name: str, outputs: jax.Array, targets: jax.Array, tangents: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Gradient of each example's loss in its outputs, and the output curvature times tangents; traceable.

    The products are derivatives of the gradient: exact for any loss, and no matrix of all outputs by all outputs is
    formed, which for a sequence would be T^2 times what its blocks hold.

    Parameters
    ----------
    loss_name : str
        One of `LOSSES`.
    outputs, targets : Array
        Of n examples; outputs of shape (n, ..., c).
    tangents : Array
        Directions in output space, shape (n, ..., c, k).

    Returns
    -------
    slopes, products : Array
        Shaped like the outputs and like the tangents.
    """

    def slope(values: jax.Array) -> jax.Array:
        return jax.grad(lambda v: jnp.sum(LOSSES[loss_name](v, targets)))(values)

    slopes, push = jax.linearize(slope, outputs)
    return slopes, jax.vmap(push, -1, -1)(tangents)


def output_curvature(loss_name: str, outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Hessian of each example's loss in its outputs as a dense matrix, for few outputs.

    Parameters
    ----------
    loss_name : str
        One of `LOSSES`.
    outputs, targets : Array
        Of n examples; outputs of shape (n, ..., c), flattened to m for each example.

    Returns
    -------
    Array
        Shape (n, m, m).
    """
    n, m = len(outputs), outputs[0].size
    basis = jnp.broadcast_to(jnp.eye(m).reshape(*outputs.shape[1:], m), (*outputs.shape, m))
    return output_slopes(loss_name, outputs, targets, basis)[1].reshape(n, m, m)


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
