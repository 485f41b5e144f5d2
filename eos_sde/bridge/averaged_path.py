"""What the central flows share: the averaged gradient, an exponential step, its stable length, the dataset."""

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from eos_sde.bridge.evaluation_groups import in_groups
from eos_sde.bridge.spectrum import follow_modes
from eos_sde.bridge.task_library import Task
from solvers.errors import InvalidInput
from solvers.provenance import provenance

_EXPLICIT = 1.6  # |1 - z| = 0.6: well inside the stability limit 2 of the explicit step
_OUTGROWN = 10.0  # times the larger of the starting loss and the loss at the averaged weights

NEAR_EDGE = 0.05  # of 2/eta: a mode so close below may reach the edge within a step of a flow

_DESCRIBED = {
    "sharpness": ("1/time", "top Hessian eigenvalue at the averaged weights"),
    "iterate_sharpness": ("1/time", "top Hessian eigenvalue, mean over the fluctuation of the weights"),
    "iterate_sharpness_stderr": ("1/time", "its error, of so few draws"),
    "loss": ("1", "loss at the averaged weights"),
    "mean_loss": ("1", "loss, mean over the fluctuation of the weights"),
    "unresolved_loss": ("1", "part of the mean loss from fluctuation outside the carried modes"),
    "top_variance": ("weight^2", "variance of the fluctuation along the top eigenvector"),
    "direction_variance": ("weight^2", "variance of the fluctuation along the given direction"),
    "radius": ("1", "spectral radius of the mean-square recursion"),
    "critical_modes": ("1", "number of Hessian eigenvalues within 5 % of the rule's edge, or beyond"),
    "resting_growth": (
        "1/step",
        "growth of a disturbance of the oscillation at the edge of a rule with momentum",
    ),
    "effective_sharpness": ("1", "top (preconditioned) Hessian eigenvalue over the rule's edge"),
}
_LEARNING_RATE = {"learning_rate": ("time", "mean learning rate of the next steps")}


@jax.jit
def averaged(task: Task, theta, modes, covariance):
    """L, E[L] and E[grad L] over the fluctuation, by quadrature along each of its principal axes."""
    variances, rotation = jnp.linalg.eigh(covariance)
    axes, variances = modes @ rotation, jnp.maximum(variances, 0.0)
    value_and_grad = jax.value_and_grad(task.loss)
    loss, gradient = value_and_grad(theta)
    steps = (axes * jnp.sqrt(3.0 * variances)).T
    losses, gradients = in_groups(value_and_grad, theta + jnp.concatenate([steps, -steps]), task)
    pairs = 2 * axes.shape[1]
    mean_loss = loss + (losses.sum() - pairs * loss) / 6
    return loss, mean_loss, gradient + (gradients.sum(axis=0) - pairs * gradient) / 6


@jax.jit
def displacement(velocity, eigenvalues, modes, eta, steps):
    """Exponential Euler: exact relaxation in the modes, where eta * eigenvalue * steps is not small.

    Linear in the velocity, by a symmetric positive matrix.
    """
    along = modes.T @ velocity
    z = steps * eta * eigenvalues
    damped = jnp.where(jnp.abs(z) > 1e-8, -jnp.expm1(-z) / jnp.where(z == 0, 1.0, z), 1.0)
    return steps * eta * (velocity + modes @ ((damped - 1.0) * along))


def advance(theta, velocity, eigenvalues, modes, eta, steps):
    """The weights after some steps of the flow at a velocity, relaxed exactly in the modes."""
    return theta + displacement(velocity, eigenvalues, modes, eta, steps)


def stable_stride(eigenvalues: jax.Array, eta: float, most: int) -> int:
    """Steps to advance so that the modes outside the block, which are stepped explicitly, are damped.

    None is steeper than the last of the block; a step of z = stride * eta * eigenvalue multiplies it by 1 - z.
    """
    outside = eta * float(eigenvalues[-1])
    return most if outside * most <= _EXPLICIT else max(1, int(_EXPLICIT / outside))


@jax.jit
def loss_and_modes(task: Task, theta, block):
    """Full-batch loss and gradient, and what `follow_modes` returns."""
    return *jax.value_and_grad(task.loss)(theta), *follow_modes(task, theta, block)


@partial(jax.jit, static_argnames="pairs")
def fluctuation_draws(modes, covariance, key, pairs: int = 2):
    """Antithetic pairs of draws of the fluctuation, shape (2 pairs, d), first all of one sign."""
    variances, rotation = jnp.linalg.eigh(covariance)
    kicks = jax.random.normal(key, (pairs, variances.size)) * jnp.sqrt(jnp.maximum(variances, 0.0))
    return jnp.concatenate([kicks, -kicks]) @ (modes @ rotation).T


def balanced_kicks(critical: jax.Array, covariance: NDArray) -> list[jax.Array]:
    """Pairs of opposite kicks, equally likely, of the given covariance: exact for two points if it is of rank 1."""
    variances, rotation = np.linalg.eigh(covariance)
    active = variances > 1e-6 * max(variances, default=0.0)
    axes = np.asarray(critical) @ rotation[:, active] * np.sqrt(active.sum() * variances[active])
    return [jnp.stack([axis, -axis]) for axis in axes.T]


@jax.jit
def sharpness_beside(task: Task, theta, modes, kicks):
    """Sharpness at w + kick for each row of kicks, started from w's modes."""

    def sharpness(kick: jax.Array) -> jax.Array:
        block = modes
        for _ in range(2):
            block = follow_modes(task, theta + kick, block)[2]
        return follow_modes(task, theta + kick, block)[0][0]

    return jax.lax.map(sharpness, kicks)


def count_critical(eigenvalues: jax.Array, eta: float) -> int:
    """Number of Hessian eigenvalues at or near the edge 2/eta."""
    return int(np.sum(eta * np.asarray(eigenvalues) > 2.0 * (1.0 - NEAR_EDGE)))


def outgrown(mean_loss: float, loss: float, first_loss: float) -> bool:
    """Whether the fluctuations have left the quadratic model, or the numbers the finite ones."""
    return not mean_loss < _OUTGROWN * max(loss, first_loss)


def check_flow(*, eta: float, steps: int, stride: int, save_every: int) -> None:
    """Refuse what no flow can run with.

    Raises
    ------
    InvalidInput
        If a number is not positive, or `save_every` no multiple of `stride`.
    """
    if eta <= 0 or not np.isfinite(eta):
        raise InvalidInput(f"eta={eta} must be a positive learning rate")
    if steps < 1 or stride < 1 or save_every < 1 or save_every % stride:
        raise InvalidInput(
            f"steps={steps} and stride={stride} must be positive and save_every={save_every} a multiple of stride"
        )


def checked_weights(task: Task, start: ArrayLike) -> jax.Array:
    """A checkpoint as double-precision weights.

    Raises
    ------
    InvalidInput
        If they are not finite or not as many as the task has.
    """
    theta = jnp.asarray(start, dtype=jnp.float64)
    if theta.shape != (task.size,) or not bool(jnp.all(jnp.isfinite(theta))):
        raise InvalidInput(
            f"start must be {task.size} finite weights of {task.name}, got shape {theta.shape}"
        )
    return theta


def flow_dataset(
    task: Task,
    rows: Sequence[Mapping[str, float]],
    theta,
    *,
    method: str,
    stopped: str,
    final: Mapping[str, ArrayLike] = MappingProxyType({}),
    one_rate: bool = False,
    **details,
) -> xr.Dataset:
    """The saved points of a flow, each a mapping with ``step`` and the described quantities; none is an empty axis.

    ``final`` holds further vectors over the weights at the end; with ``one_rate`` the learning rate is saved.
    """
    described = _DESCRIBED | (_LEARNING_RATE if one_rate else {})
    variables = {
        name: (
            "step",
            np.array([row.get(name, np.nan) for row in rows], dtype=float),
            {"units": units, "long_name": text},
        )
        for name, (units, text) in described.items()
    }
    variables["final_params"] = ("weight", np.asarray(theta), {"units": "1", "long_name": "averaged weights"})
    for name, vector in final.items():
        long_name = f"averaged {name.removeprefix('final_').replace('_', ' ')}"
        variables[name] = ("weight", np.asarray(vector), {"units": "1", "long_name": long_name})
    step = np.array([row["step"] for row in rows], dtype=int)
    return xr.Dataset(
        variables,
        coords={
            "step": ("step", step, {"units": "1", "long_name": "steps of the rule since the checkpoint"})
        },
        attrs=provenance(task=task.name, method=method, stopped=stopped, **details),
    )
