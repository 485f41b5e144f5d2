"""The stochastic central flow: forecasts the averaged path of SGD without simulating its noise.

SGD is its average path w plus a fluctuation of covariance Sigma, which the averaged loss feels:

    dw/dk = -eta E[grad L(w + delta)],   delta ~ N(0, Sigma)
    Sigma+ = (I - eta H) Sigma (I - eta H) + eta^2 p (C + E_i[H_i Sigma H_i] - H Sigma H)

in units of one step k, with H the Hessian at w, C the covariance of the per-example gradients, H_i the
per-example Gauss-Newton matrices and p = (n - B)/(B (n - 1)) for batches of B out of n without replacement.
The second line is exact for SGD on the quadratic model (Mulayoff and Michaeli, arXiv:2306.07850); Sigma is carried
in the top modes and starts from zero, since a checkpoint is one point. The average over delta is taken by
three-point Gauss-Hermite quadrature along each principal axis of Sigma, which is (1/2) grad <Sigma, H> to leading
order: the term of the central flow of Cohen et al. (arXiv:2410.24206).

The flow does not carry the oscillations of full-batch training, which are not noise; and it ends, and says so,
where the fluctuations outgrow the quadratic model (a catapult, divergence).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from threadpoolctl import threadpool_limits

from eos_sde.bridge.covariance import Recursion, covariance_recursion, per_example_modes
from eos_sde.bridge.precision import double_precision
from eos_sde.bridge.spectrum import follow_modes, top_modes
from eos_sde.bridge.task_library import Task
from eos_sde.optimizers.rule import learning_rate
from solvers.errors import InvalidInput
from solvers.provenance import provenance

_EXPLICIT = 1.6  # |1 - z| = 0.6: well inside the stability limit 2 of the explicit step
_OUTGROWN = 10.0  # times the larger of the starting loss and the loss at the averaged weights


class _Local(NamedTuple):
    """The quadratic model at the averaged weights."""

    eigenvalues: jax.Array  # (k,)
    modes: jax.Array  # (d, k)
    following: jax.Array  # (d, k), a better block for the next point
    covariance: jax.Array  # (k, k), carried along, in these modes
    recursion: Recursion


@partial(jax.jit, static_argnames="task")
def _local(task: Task, theta, block, covariance, eta, p) -> _Local:
    eigenvalues, modes, following = follow_modes(task, theta, block)
    turned = modes.T @ block  # the covariance comes in the coordinates of the block
    gradients, curvatures = per_example_modes(task, theta, modes)
    recursion = covariance_recursion(eigenvalues, gradients, curvatures, eta=eta, p=p)
    return _Local(eigenvalues, modes, following, turned @ covariance @ turned.T, recursion)


@partial(jax.jit, static_argnames="task")
def _averaged(task: Task, theta, modes, covariance):
    """L, E[L] and E[grad L] over the fluctuation, by quadrature along each of its principal axes."""
    variances, rotation = jnp.linalg.eigh(covariance)
    axes, variances = modes @ rotation, jnp.maximum(variances, 0.0)
    value_and_grad = jax.value_and_grad(task.loss)
    loss, gradient = value_and_grad(theta)
    steps = (axes * jnp.sqrt(3.0 * variances)).T
    losses, gradients = jax.vmap(value_and_grad)(theta + jnp.concatenate([steps, -steps]))
    pairs = 2 * axes.shape[1]
    mean_loss = loss + (losses.sum() - pairs * loss) / 6
    return loss, mean_loss, gradient + (gradients.sum(axis=0) - pairs * gradient) / 6


@jax.jit
def _advance(theta, velocity, eigenvalues, modes, eta, steps):
    """Exponential Euler: exact relaxation in the modes, where eta * eigenvalue * steps is not small."""
    along = modes.T @ velocity
    z = steps * eta * eigenvalues
    damped = jnp.where(jnp.abs(z) > 1e-8, -jnp.expm1(-z) / jnp.where(z == 0, 1.0, z), 1.0)
    return theta + steps * eta * (velocity + modes @ ((damped - 1.0) * along))


@partial(jax.jit, static_argnames="task")
def _iterate_sharpness(task: Task, theta, modes, covariance, key):
    """Sharpness at w + delta for antithetic draws of the fluctuation, started from w's modes."""
    variances, rotation = jnp.linalg.eigh(covariance)
    kicks = jax.random.normal(key, (2, variances.size)) * jnp.sqrt(jnp.maximum(variances, 0.0))
    kicks = jnp.concatenate([kicks, -kicks]) @ (modes @ rotation).T

    def sharpness(kick: jax.Array) -> jax.Array:
        block = modes
        for _ in range(2):
            block = follow_modes(task, theta + kick, block)[2]
        return follow_modes(task, theta + kick, block)[0][0]

    return jax.lax.map(sharpness, kicks)


@threadpool_limits.wrap(1, "blas")  # tiny LAPACK calls between large products: BLAS threads only wait
@double_precision
def stochastic_central_flow(
    task: Task,
    start: ArrayLike,
    *,
    batch_size: int,
    eta: float | None = None,
    steps: int,
    modes: int = 16,
    stride: int = 5,
    save_every: int = 50,
    seed: int = 0,
    direction: ArrayLike | None = None,
    progress: Callable[[int], None] | None = None,
) -> xr.Dataset:
    """Forecast the averaged path of SGD from a checkpoint, without running SGD.

    Parameters
    ----------
    task : Task
        The training problem.
    start : Array
        Weights of the checkpoint, shape (d,).
    batch_size : int
        B < n, without replacement.
    eta : float, optional
        Learning rate; the task's if left out.
    steps : int
        SGD steps to forecast.
    modes : int
        Hessian modes that carry the fluctuation; 5 modes must be fewer than the weights.
    stride : int
        Steps of SGD per step of the flow at most; fewer where modes outside the block would not relax.
    save_every : int
        Steps between saved points; a multiple of `stride`.
    seed : int
        For the draws at which the sharpness of single iterates is forecast.
    direction : array, optional
        Unit vector (d,): the variance of the fluctuation along it is saved.
    progress : callable, optional
        Called with the step reached.

    Returns
    -------
    Dataset
        Over ``step``: ``sharpness`` (at the averaged weights), ``iterate_sharpness`` (mean over the
        fluctuation, which is what a run shows), ``loss``, ``mean_loss``, ``top_variance`` (along the top
        eigenvector at the time), ``direction_variance`` (along `direction`, or NaN), ``radius`` (of the mean-square
        recursion; from 1 on SGD is mean-square unstable there). ``final_params(weight)``;
        ``attrs["stopped"]`` is empty or says where and why the flow ceased to apply.

    Raises
    ------
    InvalidInput
        For a batch of all examples, weights that are not finite or a bad number.
    """
    eta = task.eta if eta is None else float(eta)
    if not 1 <= batch_size < task.n:
        raise InvalidInput(
            f"batch_size={batch_size} must be from 1 to {task.n - 1}: the fluctuations of full-batch training "
            "are not noise and this flow does not carry them"
        )
    if eta <= 0 or not np.isfinite(eta):
        raise InvalidInput(f"eta={eta} must be a positive learning rate")
    if steps < 1 or stride < 1 or save_every % stride:
        raise InvalidInput(
            f"steps={steps} and stride={stride} must be positive and save_every={save_every} a multiple of stride"
        )
    theta = _weights(task, start)
    p = (task.n - batch_size) / (batch_size * (task.n - 1))
    block = top_modes(task, theta, modes, tol=1e-3)[1]
    covariance = jnp.zeros((modes, modes))
    key = jax.random.key(seed)
    along = None if direction is None else jnp.asarray(direction, dtype=jnp.float64)
    rows: list[tuple[float, ...]] = []
    reached, next_save, limit, stopped = 0, 0, np.inf, ""
    while True:
        local = _local(task, theta, block, covariance, eta, p)
        covariance, block = local.covariance, local.modes
        if reached >= next_save:
            loss, mean_loss, _ = (np.asarray(v) for v in _averaged(task, theta, block, covariance))
            limit = _OUTGROWN * max(float(loss), rows[0][3] if rows else float(loss))
            if not mean_loss < limit:
                stopped = f"step {reached}: the fluctuations outgrow the quadratic model (mean loss {mean_loss:.3g})"
                break
            draw = jax.random.fold_in(key, reached)
            spread = _iterate_sharpness(task, theta, block, covariance, draw)
            seen = jnp.full(block.shape[1], jnp.nan) if along is None else along @ block
            rows.append((
                reached, float(local.eigenvalues[0]), float(spread.mean()), float(loss), float(mean_loss),
                float(covariance[0, 0]), float(seen @ covariance @ seen), float(local.recursion.radius),
            ))  # fmt: skip
            next_save += save_every
            if progress is not None:
                progress(reached)
        if reached >= steps:
            break
        ahead = _stable_stride(local.eigenvalues, eta, min(stride, steps - reached, next_save - reached))
        midway = local.recursion.after(covariance, (ahead + 1) // 2)
        gradient = _averaged(task, theta, block, midway)[2]
        theta = _advance(theta, -gradient, local.eigenvalues, block, eta, ahead)
        # in the coordinates of the modes, which the next block improves
        covariance = local.recursion.after(covariance, ahead)
        turned = local.following.T @ block
        covariance, block = turned @ covariance @ turned.T, local.following
        reached += ahead
    return _flow_dataset(
        task, rows, theta, stopped, eta=eta, batch_size=batch_size, modes=modes, stride=stride
    )


@threadpool_limits.wrap(1, "blas")
@double_precision
def caeo_flow(
    task: Task, start: ArrayLike, *, eta: float, delta: float, steps: int, modes: int = 16, stride: int = 5
) -> xr.Dataset:
    """Forecast full-batch CAEO from a checkpoint: gradient flow at the capped rate.

    With delta > 0 the iterate does not oscillate, so no fluctuation acts on the averaged path:
    ``dw/dk = -eta_k grad L``, ``eta_k = min(eta, (2 - delta)/sharpness)``.

    Parameters
    ----------
    task : Task
        The training problem.
    start : Array
        Weights of the checkpoint, shape (d,).
    eta, delta : float
        Base learning rate, and margin above 0.
    steps : int
        Steps to forecast, a multiple of `stride`.
    modes, stride : int
        Hessian modes that are relaxed exactly, and steps of the rule between saved points (and at most per step
        of the flow).

    Returns
    -------
    Dataset
        ``sharpness`` and ``learning_rate`` over ``step``.

    Raises
    ------
    InvalidInput
        If delta is not positive (the iterate then oscillates), steps is no multiple of stride, or eta or the
        weights are no usable numbers.
    """
    if not (eta > 0 and np.isfinite(eta)):
        raise InvalidInput(f"eta={eta} must be a positive learning rate")
    if not 0 < delta < 2:
        raise InvalidInput(f"delta={delta} must lie between 0 and 2: without a margin the iterate oscillates")
    if steps < 1 or steps % stride:
        raise InvalidInput(f"steps={steps} must be a positive multiple of stride={stride}")
    theta = _weights(task, start)
    block = top_modes(task, theta, modes, tol=1e-3)[1]
    rows = []
    reached = 0
    while True:
        gradient, eigenvalues, vectors, block = _gradient_and_modes(task, theta, block)
        rate = float(learning_rate(eta, float(eigenvalues[0]), delta))
        rows.append((reached, float(eigenvalues[0]), rate))
        if reached == steps:
            break
        target = reached + stride
        while reached < target:
            ahead = _stable_stride(eigenvalues, rate, target - reached)
            theta = _advance(theta, -gradient, eigenvalues, vectors, rate, ahead)
            reached += ahead
            if reached < target:
                gradient, eigenvalues, vectors, block = _gradient_and_modes(task, theta, block)
                rate = float(learning_rate(eta, float(eigenvalues[0]), delta))
    step, sharpness, rates = np.array(rows).T
    return xr.Dataset(
        {
            "sharpness": ("step", sharpness, {"units": "1/time", "long_name": "sharpness"}),
            "learning_rate": (
                "step",
                rates,
                {"units": "time", "long_name": "learning rate of the next step"},
            ),
        },
        coords={
            "step": ("step", step.astype(int), {"units": "1", "long_name": "steps since the checkpoint"})
        },
        attrs=provenance(task=task.name, method="gradient flow at the capped rate", eta=eta, delta=delta),
    )


def _weights(task: Task, start: ArrayLike) -> jax.Array:
    theta = jnp.asarray(start, dtype=jnp.float64)
    if theta.shape != (task.size,) or not bool(jnp.all(jnp.isfinite(theta))):
        raise InvalidInput(
            f"start must be {task.size} finite weights of {task.name}, got shape {theta.shape}"
        )
    return theta


def _stable_stride(eigenvalues: jax.Array, eta: float, most: int) -> int:
    """Steps to advance so that the modes outside the block, which are stepped explicitly, are damped.

    None is steeper than the last of the block; a step of z = stride * eta * eigenvalue multiplies it by 1 - z.
    """
    outside = eta * float(eigenvalues[-1])
    return most if outside * most <= _EXPLICIT else max(1, int(_EXPLICIT / outside))


@partial(jax.jit, static_argnames="task")
def _gradient_and_modes(task: Task, theta, block):
    return jax.grad(task.loss)(theta), *follow_modes(task, theta, block)


def _flow_dataset(task: Task, rows, theta, stopped: str, **details) -> xr.Dataset:
    columns = np.array(rows, dtype=float).T
    described = {
        "sharpness": ("1/time", "top Hessian eigenvalue at the averaged weights"),
        "iterate_sharpness": ("1/time", "top Hessian eigenvalue, mean over the fluctuation of the weights"),
        "loss": ("1", "loss at the averaged weights"),
        "mean_loss": ("1", "loss, mean over the fluctuation of the weights"),
        "top_variance": ("weight^2", "variance of the fluctuation along the top eigenvector"),
        "direction_variance": ("weight^2", "variance of the fluctuation along the given direction"),
        "radius": ("1", "spectral radius of the mean-square recursion"),
    }
    variables = {
        name: ("step", column, {"units": units, "long_name": text})
        for (name, (units, text)), column in zip(described.items(), columns[1:], strict=True)
    }
    variables["final_params"] = ("weight", np.asarray(theta), {"units": "1", "long_name": "averaged weights"})
    step = ("step", columns[0].astype(int), {"units": "1", "long_name": "SGD steps since the checkpoint"})
    return xr.Dataset(
        variables,
        coords={"step": step},
        attrs=provenance(task=task.name, method="stochastic central flow", stopped=stopped, **details),
    )
