"""Fluctuations outside the resolved modes, sampled: they are slow, raise the residuals, and with them the noise."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from eos_sde.bridge.covariance import per_example_modes
from eos_sde.bridge.local_noise import LocalNoise, gauss_newton_products
from eos_sde.bridge.task_library import Task

_DRAWS = 8
_LONGEST = 200


def with_slow_kicks(
    task: Task,
    local: LocalNoise,
    *,
    eta: float,
    batch_size: int,
    steps: int | None,
    seed: int,
    gain: float = 1.0,
) -> LocalNoise:
    """Add the kicks that fluctuations outside the modes give the modes through the examples' own curvatures.

    A displacement x outside the modes changes the gradient of example i by H_i x: nothing in the mean, but noise as
    long as the examples differ, ``p Cov_i(U' H_i x)`` per step. Many weak directions together can raise the noise
    noticeably at small batches, however few modes carry the fluctuation itself. x is drawn by the linear recursion
    ``x+ = (I - eta H) x - eta (g_B - g)`` from one point, outside the modes, with the Gauss-Newton part of H and
    Gaussian combinations of the examples' gradients.

    Parameters
    ----------
    task : Task
        The training problem.
    local : LocalNoise
        At the weights.
    eta : float
        Learning rate.
    batch_size : int
        B, without replacement.
    steps : int or None
        Since the point, at most 200 are drawn; None for as many.
    seed : int
        Of the draws.
    gain : float
        Factor on the noise variance outside the modes: what the resolved fluctuation adds to it.

    Returns
    -------
    LocalNoise
        With `kicks`, shape (draws, n, k).
    """
    steps = _LONGEST if steps is None else min(steps, _LONGEST)
    theta, modes = jnp.asarray(local.theta), jnp.asarray(local.modes)
    strength = eta * np.sqrt(gain * local.batch_variance(batch_size) / local.examples)
    drawn = _outside(task, theta, modes, jax.random.key(seed), eta, strength, steps)
    kicks = np.asarray(_changes(task, theta, modes, drawn))
    return local._replace(kicks=kicks - kicks.mean(axis=1, keepdims=True))


@partial(jax.jit, static_argnames="task")
def _outside(task: Task, theta, modes, key, eta, strength, steps) -> jax.Array:
    """Draws of the fluctuation outside the modes, shape (d, draws)."""
    _, pull = jax.vjp(task.per_example_loss, theta)

    def outside(block: jax.Array) -> jax.Array:
        return block - modes @ (modes.T @ block)

    def step(k: jax.Array, block: jax.Array) -> jax.Array:
        signs = jax.random.normal(jax.random.fold_in(key, k), (_DRAWS, task.n))
        signs -= signs.mean(axis=1, keepdims=True)
        kick = jax.vmap(lambda s: pull(s)[0])(signs).T
        moved = block - eta * gauss_newton_products(task, theta, block) - strength * kick
        return outside(moved)

    return jax.lax.fori_loop(0, steps, step, jnp.zeros((theta.size, _DRAWS)))


@partial(jax.jit, static_argnames="task")
def _changes(task: Task, theta, modes, drawn) -> jax.Array:
    """U' H_i x of every draw, shape (draws, n, k)."""

    def slopes(w: jax.Array) -> jax.Array:
        return per_example_modes(task, w, modes)[0]

    return jax.lax.map(lambda x: jax.jvp(slopes, (theta,), (x,))[1], drawn.T)


def averaged_kicks(local: LocalNoise) -> NDArray[np.float64]:
    """Covariance over the examples of the kicks, mean over the draws, shape (k, k)."""
    draws = max(len(local.kicks), 1)
    return np.einsum("sni,snj->ij", local.kicks, local.kicks) / (draws * local.examples)
