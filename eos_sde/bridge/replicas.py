"""One SGD step of many replicas of a network at once, and when a run counts as diverged."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from eos_sde.bridge.losses import LOSSES
from eos_sde.bridge.networks import Network
from eos_sde.bridge.task_library import Task

DIVERGED = 1e3
"""Loss, over the larger of 1 and the first loss, from which a run is lost: no catapult of a bounded-output network
gets there."""


def batch_gradient(network: Network, loss_name: str) -> Callable[[Any, jax.Array, jax.Array, jax.Array], Any]:
    """Gradient of each replica's mean loss over its own batch; traceable.

    The replicas' weights stay in the network's own arrays: a flat vector costs eight times as much here.

    Parameters
    ----------
    network : Network
    loss_name : str
        One of `LOSSES`.

    Returns
    -------
    callable
        ``gradient(weights, batches, x, y)``: arrays of the network with a leading axis of replicas, indices
        (replicas, B) and all examples; returns arrays like the weights.
    """
    loss = LOSSES[loss_name]

    @partial(jax.vmap, in_axes=(0, 0, None, None))
    def gradient(weights: Any, batch: jax.Array, x: jax.Array, y: jax.Array) -> Any:
        return jax.grad(lambda w: jnp.mean(loss(network.apply_arrays(w, x[batch]), y[batch])))(weights)

    return gradient


def sgd_step(task: Task) -> Callable[[Any, jax.Array, Any, jax.Array, jax.Array], Any]:
    """A step w - eta g_B(w) of each replica with its own batch; traceable.

    Parameters
    ----------
    task : Task
        The training problem.

    Returns
    -------
    callable
        ``step(weights, batches, eta, x, y)``: arrays of the network with a leading axis of replicas, indices
        (replicas, B), the learning rate and all examples; returns the new weights.
    """
    gradient = batch_gradient(task.network, task.loss_name)

    def step(weights: Any, batches: jax.Array, eta: Any, x: jax.Array, y: jax.Array) -> Any:
        slopes = gradient(weights, batches, x, y)
        return jax.tree.map(lambda w, g: w - eta * g, weights, slopes)

    return step
