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

The oscillations of full-batch training are not noise: `central_flow` carries them, and takes over at B = n. The flow
ends, and says so, where the fluctuations outgrow the quadratic model (a catapult, divergence).
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

from eos_sde.bridge.averaged_path import (
    advance,
    averaged,
    check_flow,
    checked_weights,
    count_critical,
    flow_dataset,
    loss_and_modes,
    outgrown,
    sharpness_beside,
    stable_stride,
)
from eos_sde.bridge.covariance import Recursion, covariance_recursion, per_example_modes
from eos_sde.bridge.full_batch_flow import central_flow
from eos_sde.bridge.precision import double_precision
from eos_sde.bridge.spectrum import follow_modes, top_modes
from eos_sde.bridge.task_library import Task
from eos_sde.optimizers.rule import learning_rate
from solvers.errors import InvalidInput
from solvers.provenance import provenance


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


@jax.jit
def _draws(modes, covariance, key):
    """Two antithetic pairs of draws of the fluctuation, shape (4, d)."""
    variances, rotation = jnp.linalg.eigh(covariance)
    kicks = jax.random.normal(key, (2, variances.size)) * jnp.sqrt(jnp.maximum(variances, 0.0))
    return jnp.concatenate([kicks, -kicks]) @ (modes @ rotation).T


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
        B <= n, without replacement. At B = n the path is that of `central_flow`.
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
        recursion; from 1 on SGD is mean-square unstable there), ``critical_modes`` (Hessian eigenvalues within 5 % of
        2/eta, or beyond). ``final_params(weight)``;
        ``attrs["stopped"]`` is empty or says where and why the flow ceased to apply.

    Raises
    ------
    InvalidInput
        For a batch larger than the examples, weights that are not finite or a bad number.
    """
    eta = task.eta if eta is None else float(eta)
    if not 1 <= batch_size <= task.n:
        raise InvalidInput(f"batch_size={batch_size} must be from 1 to {task.n}, the number of examples")
    if batch_size == task.n:
        flow = partial(central_flow, modes=modes, stride=stride, save_every=save_every)
        return flow(task, start, eta=eta, steps=steps, direction=direction, progress=progress)
    check_flow(eta=eta, steps=steps, stride=stride, save_every=save_every)
    theta = checked_weights(task, start)
    p = (task.n - batch_size) / (batch_size * (task.n - 1))
    block = top_modes(task, theta, modes, tol=1e-3)[1]
    covariance = jnp.zeros((modes, modes))
    key = jax.random.key(seed)
    along = None if direction is None else jnp.asarray(direction, dtype=jnp.float64)
    rows: list[dict[str, float]] = []
    reached, next_save, stopped = 0, 0, ""
    while True:
        local = _local(task, theta, block, covariance, eta, p)
        covariance, block = local.covariance, local.modes
        if reached >= next_save:
            loss, mean_loss = (float(v) for v in averaged(task, theta, block, covariance)[:2])
            if outgrown(mean_loss, loss, rows[0]["loss"] if rows else loss):
                stopped = f"step {reached}: the fluctuations outgrow the quadratic model (mean loss {mean_loss:.3g})"
                break
            draws = _draws(block, covariance, jax.random.fold_in(key, reached))
            seen = jnp.full(block.shape[1], jnp.nan) if along is None else along @ block
            rows.append({
                "step": reached,
                "sharpness": float(local.eigenvalues[0]),
                "iterate_sharpness": float(sharpness_beside(task, theta, block, draws).mean()),
                "loss": loss,
                "mean_loss": mean_loss,
                "top_variance": float(covariance[0, 0]),
                "direction_variance": float(seen @ covariance @ seen),
                "radius": float(local.recursion.radius),
                "critical_modes": count_critical(local.eigenvalues, eta),
            })  # fmt: skip
            next_save += save_every
            if progress is not None:
                progress(reached)
        if reached >= steps:
            break
        ahead = stable_stride(local.eigenvalues, eta, min(stride, steps - reached, next_save - reached))
        midway = local.recursion.after(covariance, (ahead + 1) // 2)
        gradient = averaged(task, theta, block, midway)[2]
        theta = advance(theta, -gradient, local.eigenvalues, block, eta, ahead)
        # in the coordinates of the modes, which the next block improves
        covariance = local.recursion.after(covariance, ahead)
        turned = local.following.T @ block
        covariance, block = turned @ covariance @ turned.T, local.following
        reached += ahead
    details = {"eta": eta, "batch_size": batch_size, "modes": modes, "stride": stride}
    return flow_dataset(task, rows, theta, method="stochastic central flow", stopped=stopped, **details)


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
    theta = checked_weights(task, start)
    block = top_modes(task, theta, modes, tol=1e-3)[1]
    rows = []
    reached = 0
    while True:
        _, gradient, eigenvalues, vectors, block = loss_and_modes(task, theta, block)
        rate = float(learning_rate(eta, float(eigenvalues[0]), delta))
        rows.append((reached, float(eigenvalues[0]), rate))
        if reached == steps:
            break
        target = reached + stride
        while reached < target:
            ahead = stable_stride(eigenvalues, rate, target - reached)
            theta = advance(theta, -gradient, eigenvalues, vectors, rate, ahead)
            reached += ahead
            if reached < target:
                _, gradient, eigenvalues, vectors, block = loss_and_modes(task, theta, block)
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
