"""The central flow: forecasts the time-averaged path of full-batch gradient descent, at and below the edge.

Gradient descent whose sharpness has reached 2/eta oscillates along the critical Hessian eigenvectors U. Its average w
moves by (Cohen, Damian, Talwalkar, Kolter and Lee, arXiv:2410.24206), in units of one step k,

    dw/dk = -eta [grad L + (1/2) grad <Sigma, H>],   Sigma = U X U'

with the one covariance Sigma >= 0 that holds the curvature at the edge and vanishes below it: H <= 2/eta on the
critical modes and <Sigma, 2/eta - H> = 0. A step of the flow solves these conditions for the gap 2/eta - U'HU at its
end, to first order in the step; so an error of one step is taken back by the next. Below the edge this is gradient
flow; what the discreteness of descent does there, of first order in eta, is left out. So are the delay at the edge
(descent that starts without oscillation overshoots it, as the oscillation must first grow) and the swings of the
curvature about 2/eta, which keep the largest eigenvalue of a run above it where several modes are critical.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from eos_sde.bridge.averaged_path import (
    check_flow,
    checked_weights,
    count_critical,
    displacement,
    flow_dataset,
    loss_and_modes,
    outgrown,
    sharpness_beside,
    stable_stride,
)
from eos_sde.bridge.critical_modes import complementary_covariance
from eos_sde.bridge.precision import double_precision
from eos_sde.bridge.spectrum import curvature_gradients, top_modes
from eos_sde.bridge.task_library import Task
from solvers.errors import ConvergenceFailure

_BEYOND = 1.25  # times 2/eta: descent at the edge was seen up to 1.15; from further beyond it is catapulted


@partial(jax.jit, static_argnames=("task", "held"))
def _linearised(task: Task, theta, held: int, gradient, eigenvalues, modes, eta, ahead):
    """The move as an affine function of X, free + per_unit[X], and the gap at its end, gap + response[X]."""
    turning = curvature_gradients(task.loss, theta, modes[:, :held])
    move = partial(displacement, eigenvalues=eigenvalues, modes=modes, eta=eta, steps=ahead)
    free = move(-gradient)
    per_unit = -0.5 * jax.vmap(jax.vmap(move))(turning)
    gap = jnp.diag(2.0 / eta - eigenvalues[:held]) - turning @ free
    return free, per_unit, gap, -jnp.einsum("ija,kla->ijkl", turning, per_unit)


@threadpool_limits.wrap(1, "blas")
@double_precision
def central_flow(
    task: Task,
    start: ArrayLike,
    *,
    eta: float | None = None,
    steps: int,
    modes: int = 16,
    stride: int = 5,
    save_every: int = 50,
    direction: ArrayLike | None = None,
    progress: Callable[[int], None] | None = None,
) -> xr.Dataset:
    """Forecast the averaged path of full-batch gradient descent from a checkpoint, without running it.

    Parameters
    ----------
    task : Task
        The training problem.
    start : array
        Weights of the checkpoint, shape (d,).
    eta : float, optional
        Learning rate; the task's if left out.
    steps : int
        Steps of gradient descent to forecast.
    modes : int
        Hessian modes that are followed and relaxed exactly; more than ever reach the edge, and 5 modes must be fewer
        than the weights.
    stride : int
        Steps of descent per step of the flow at most; fewer where modes outside the block would not relax.
    save_every : int
        Steps between saved points; a multiple of `stride`.
    direction : array, optional
        Unit vector (d,): the variance of the oscillation along it is saved.
    progress : callable, optional
        Called with the step reached.

    Returns
    -------
    Dataset
        Over ``step``: ``sharpness`` (at the averaged weights), ``iterate_sharpness`` (mean over the oscillation),
        ``loss``, ``mean_loss`` (L + tr(H Sigma)/2, which is L + tr(Sigma)/eta at the edge), ``top_variance`` (along
        the top eigenvector at the time), ``direction_variance`` (along `direction`, or NaN), ``radius`` (of the
        second-moment recursion, the largest (1 - eta h)^2: 1 at the edge), ``critical_modes`` (eigenvalues within 5 %
        of 2/eta, or beyond). ``final_params(weight)``; ``attrs["stopped"]`` is empty or says where and why the flow
        ceased to apply; ``step`` is empty where it never did.

    Raises
    ------
    InvalidInput
        For weights that are not finite or a bad number.
    """
    eta = task.eta if eta is None else float(eta)
    check_flow(eta=eta, steps=steps, stride=stride, save_every=save_every)
    theta = checked_weights(task, start)
    block = top_modes(task, theta, modes, tol=1e-3)[1]
    rows: list[dict[str, float]] = []
    reached, next_save, stopped = 0, 0, ""
    while True:
        save = reached >= next_save
        next_save += save_every if save else 0
        loss, gradient, eigenvalues, vectors, following = loss_and_modes(task, theta, block)
        ahead = min(stride, next_save - reached, steps - reached if reached < steps else stride)
        ahead = stable_stride(eigenvalues, eta, ahead)
        if not eta * float(eigenvalues[0]) < 2.0 * _BEYOND:
            stopped = f"step {reached}: eta * sharpness = {eta * float(eigenvalues[0]):.3g} is far beyond 2: a catapult"
            break
        try:
            covariance, move = _step(task, theta, gradient, eigenvalues, vectors, eta, ahead)
        except ConvergenceFailure as reason:
            stopped = f"step {reached}: {reason}"
            break
        critical, held = count_critical(eigenvalues, eta), covariance.shape[0]
        mean_loss = float(loss) + 0.5 * float(np.diag(covariance) @ np.asarray(eigenvalues[:held]))
        if critical == modes:
            stopped = f"step {reached}: all modes={modes} that are followed are at the edge; raise modes"
        elif outgrown(mean_loss, float(loss), rows[0]["loss"] if rows else float(loss)):
            stopped = (
                f"step {reached}: the oscillation outgrows the quadratic model (mean loss {mean_loss:.3g})"
            )
        if stopped:
            break
        if save:
            kicks = _kicks(vectors[:, :held], covariance)
            beside = [float(sharpness_beside(task, theta, vectors, pair).mean()) for pair in kicks]
            seen = np.nan if direction is None else np.asarray(direction) @ np.asarray(vectors[:, :held])
            rows.append({
                "step": reached,
                "sharpness": float(eigenvalues[0]),
                "iterate_sharpness": float(np.mean(beside)) if beside else float(eigenvalues[0]),
                "loss": float(loss),
                "mean_loss": mean_loss,
                "top_variance": float(covariance[0, 0]) if critical else 0.0,
                "direction_variance": np.nan if direction is None else float(seen @ covariance @ seen),
                "radius": float(jnp.max((1.0 - eta * eigenvalues) ** 2)),
                "critical_modes": critical,
            })  # fmt: skip
            if progress is not None:
                progress(reached)
        if reached >= steps:
            break
        theta, block = theta + move, following
        reached += ahead
    details = {"eta": eta, "batch_size": task.n, "modes": modes, "stride": stride}
    return flow_dataset(task, rows, theta, method="central flow", stopped=stopped, **details)


def _step(task: Task, theta, gradient, eigenvalues, vectors, eta: float, ahead: int):
    """The covariance in the critical modes over the next steps, and how far the weights move."""
    critical = count_critical(eigenvalues, eta)
    if critical == 0:
        return np.zeros((0, 0)), displacement(-gradient, eigenvalues, vectors, eta, ahead)
    # a power of two, for fewer compilations: modes below the edge change nothing
    held = min(1 << (critical - 1).bit_length(), eigenvalues.size)
    free, per_unit, gap, response = _linearised(task, theta, held, gradient, eigenvalues, vectors, eta, ahead)
    covariance = complementary_covariance(np.asarray(gap), np.asarray(response))
    return covariance, free + jnp.einsum("ij,ija->a", covariance, per_unit)


def _kicks(critical: jax.Array, covariance: NDArray) -> list[jax.Array]:
    """Pairs of opposite kicks, equally likely, of the given covariance: exact for two points if it is of rank 1."""
    variances, rotation = np.linalg.eigh(covariance)
    active = variances > 1e-6 * max(variances, default=0.0)
    axes = np.asarray(critical) @ rotation[:, active] * np.sqrt(active.sum() * variances[active])
    return [jnp.stack([axis, -axis]) for axis in axes.T]
