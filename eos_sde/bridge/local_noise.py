"""SGD about given weights to second order: what each example adds to gradient and Hessian, seen in the top modes."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from eos_sde.bridge.losses import output_curvature, output_slopes
from eos_sde.bridge.spectrum import hessian_products, top_modes
from eos_sde.bridge.task_library import Task
from eos_sde.thresholds.curvature_factors import noise_fraction

_AT_ONCE = 32  # examples


class LocalNoise(NamedTuple):
    """The quadratic model of every example's loss at some weights, in the span U of the top k Hessian modes.

    Attributes
    ----------
    theta : ndarray
        The weights, shape (d,).
    eigenvalues : ndarray
        Of the full-batch Hessian H, shape (k,), largest first.
    modes : ndarray
        U, shape (d, k).
    gradients : ndarray
        U' g_i, shape (n, k).
    curvatures : ndarray
        U' H_i U with the whole Hessian H_i of the example's loss, shape (n, k, k).
    gradient : ndarray
        Full-batch gradient, shape (d,).
    noise_trace : float
        tr C, the mean squared deviation of g_i from their mean in all directions.
    spread : ndarray
        U' E[(H_i - H)^2] U, shape (k, k): <Sigma, spread> is what the curvature noise of a fluctuation Sigma in the
        modes adds to tr C.
    loss : float
        Full-batch loss.
    kicks : ndarray
        Draws of U' H_i x for fluctuations x outside the modes, shape (draws, n, k); see `with_slow_kicks`. None of them
        where draws = 0.
    """

    theta: NDArray[np.float64]
    eigenvalues: NDArray[np.float64]
    modes: NDArray[np.float64]
    gradients: NDArray[np.float64]
    curvatures: NDArray[np.float64]
    gradient: NDArray[np.float64]
    noise_trace: float
    spread: NDArray[np.float64]
    loss: float
    kicks: NDArray[np.float64]

    @property
    def examples(self) -> int:
        """N."""
        return len(self.gradients)

    def batch_variance(self, batch_size: int) -> float:
        """P = (n - B)/(B (n - 1)): variance of a batch mean relative to that of one example."""
        return noise_fraction(self.examples, batch_size)

    def within(self, count: int) -> "LocalNoise":
        """The same in fewer modes; `spread` keeps those that are left."""
        return self._replace(
            eigenvalues=self.eigenvalues[:count],
            modes=self.modes[:, :count],
            gradients=self.gradients[:, :count],
            curvatures=self.curvatures[:, :count, :count],
            spread=self.spread[:count, :count],
            kicks=self.kicks[:, :, :count],
        )

    def resting(self) -> "LocalNoise":
        """The same without the mean gradient in the modes, which the averaged path follows or has followed."""
        return self._replace(gradients=self.gradients - self.gradients.mean(axis=0))


def local_noise(task: Task, theta: jax.Array, modes: int) -> LocalNoise:
    """Measure the quadratic model of every example at given weights.

    Parameters
    ----------
    task : Task
        The training problem.
    theta : Array
        Weights, shape (d,).
    modes : int
        k; 5 k must be below d.

    Returns
    -------
    LocalNoise
        Exact but for the angle of the modes (see `top_modes`).
    """
    eigenvalues, block, _ = top_modes(task, theta, modes)
    gradients, curvatures, squares, grams = _examples(task, theta, block)
    loss, gradient = jax.value_and_grad(task.loss)(theta)
    mean = hessian_products(task, theta, block)
    return LocalNoise(
        theta=np.asarray(theta),
        eigenvalues=np.asarray(eigenvalues),
        modes=np.asarray(block),
        gradients=np.asarray(gradients),
        curvatures=np.asarray(curvatures),
        gradient=np.asarray(gradient),
        noise_trace=float(squares.mean() - gradient @ gradient),
        spread=np.asarray(grams.mean(axis=0) - mean.T @ mean),
        loss=float(loss),
        kicks=np.zeros((0, task.n, block.shape[1])),
    )


@partial(jax.jit, static_argnames="task")
def _examples(task: Task, theta: jax.Array, modes: jax.Array) -> tuple:
    """U' g_i, U' H_i U, |g_i|^2 and U' H_i^2 U of every example."""

    def one(example: tuple[jax.Array, jax.Array]) -> tuple:
        x, y = example
        slope = jax.grad(lambda w: task.per_example_loss(w, x[None], y[None])[0])
        gradient, product = jax.linearize(slope, theta)
        columns = jax.vmap(product, 1, 1)(modes)
        return modes.T @ gradient, modes.T @ columns, gradient @ gradient, columns.T @ columns

    return jax.lax.map(one, (task.x, task.y), batch_size=_AT_ONCE)


@partial(jax.jit, static_argnames="task")
def curvature_rows(task: Task, theta: jax.Array, modes: jax.Array) -> jax.Array:
    """Gauss-Newton factors A_i U with A_i' A_i the curvature of example i, shape (n, c, k); convex losses only.

    Parameters
    ----------
    task : Task
        The training problem.
    theta, modes : Array
        Weights (d,) and directions (d, k).

    Returns
    -------
    Array
        For `thresholds.sgd_tail_exponent`.
    """
    outputs, push = jax.linearize(task.apply, theta)
    tangents = jax.vmap(push, 1, -1)(modes).reshape(task.n, -1, modes.shape[1])
    values, vectors = jnp.linalg.eigh(output_curvature(task.loss_name, outputs, task.y))
    roots = jnp.sqrt(jnp.maximum(values, 0.0))[:, :, None] * vectors.transpose(0, 2, 1)
    return jnp.einsum("nab,nbk->nak", roots, tangents)


def gauss_newton_products(task: Task, theta: jax.Array, directions: jax.Array) -> jax.Array:
    """The positive part J' W J of the full-batch Hessian times the columns of a matrix; traceable, convex losses only.

    Parameters
    ----------
    task : Task
        The training problem.
    theta, directions : Array
        Weights (d,) and directions (d, m).

    Returns
    -------
    Array
        Shape (d, m).
    """
    outputs, push = jax.linearize(task.apply, theta)
    pull = jax.linear_transpose(push, theta)
    tangents = jax.vmap(push, 1, -1)(directions)
    _, bent = output_slopes(task.loss_name, outputs, task.y, tangents)
    return jax.vmap(lambda image: pull(image / task.n)[0], -1, 1)(bent)
