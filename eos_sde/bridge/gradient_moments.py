"""Mean and mean square of the batch gradient of each weight, over the batches and the fluctuation of the weights."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import hadamard

from eos_sde.bridge.evaluation_groups import in_groups
from eos_sde.bridge.task_library import Task

_CHUNK = 128  # examples whose whole gradients are held at a time


@jax.jit
def averaged_moments(task: Task, theta, axes, covariance):
    """L, E[L], E[grad L] and E[(grad L)^2] over the fluctuation, by quadrature along each of its principal axes.

    Parameters
    ----------
    task : Task
        The training problem.
    theta : Array
        Averaged weights, shape (d,).
    axes : Array
        Columns that carry the fluctuation, orthonormal or not, shape (d, k).
    covariance : Array
        In their coordinates, shape (k, k).

    Returns
    -------
    loss, mean_loss, gradient, squares : Array
        Two scalars and two vectors (d,).
    """
    variances, rotation = jnp.linalg.eigh(covariance)
    kicks = (axes @ rotation * jnp.sqrt(3.0 * jnp.maximum(variances, 0.0))).T
    value_and_grad = jax.value_and_grad(task.loss)
    loss, gradient = value_and_grad(theta)
    losses, gradients = in_groups(value_and_grad, theta + jnp.concatenate([kicks, -kicks]), task)
    pairs = 2 * kicks.shape[0]

    def mean(each, centre):
        return centre + (each.sum(axis=0) - pairs * centre) / 6

    squares = jnp.maximum(mean(gradients**2, gradient**2), 0.0)
    return loss, mean(losses, loss), mean(gradients, gradient), squares


@jax.jit
def example_squares(task: Task, points):
    """Mean over some weights and all examples of the squared gradient of one example.

    Parameters
    ----------
    task : Task
        The training problem.
    points : Array
        Weights, shape (m, d).

    Returns
    -------
    Array
        Shape (d,).
    """

    def one(theta, x, y):
        return jax.grad(task.loss)(theta, x[None], y[None]) ** 2

    def at(theta):
        whole = task.n // _CHUNK * _CHUNK
        x, y = (a[:whole].reshape(-1, _CHUNK, *a.shape[1:]) for a in (task.x, task.y))
        many = jax.vmap(one, (None, 0, 0))
        chunks = jax.lax.map(lambda pair: many(theta, *pair).sum(axis=0), (x, y)).sum(axis=0)
        return chunks + many(theta, task.x[whole:], task.y[whole:]).sum(axis=0)

    return jax.lax.map(at, points).mean(axis=0) / task.n


def sign_rows(modes: int) -> np.ndarray:
    """Rows of signs whose columns are orthogonal and of mean zero: kicks of independent parts, without chance.

    Parameters
    ----------
    modes : int
        Columns.

    Returns
    -------
    ndarray
        Shape (R, modes), R the next power of two above `modes`.
    """
    return hadamard(1 << modes.bit_length())[:, 1 : modes + 1].astype(float)


@jax.jit
def opposite_points(theta, axes, covariance, signs):
    """Two points, one fluctuation on either side of the weights: shape (2, d)."""
    variances, rotation = jnp.linalg.eigh(covariance)
    kick = axes @ (rotation @ (signs * jnp.sqrt(jnp.maximum(variances, 0.0))))
    return jnp.stack([theta + kick, theta - kick])
