"""The stochastic central flow: forecasts the averaged path of SGD without simulating its noise.

SGD is its average path w plus a fluctuation of covariance Sigma, which the averaged loss feels:

    dw/dk = -eta E[grad L(w + delta)],   delta ~ N(0, Sigma)
    Sigma = (I - eta H) Sigma (I - eta H) + eta^2 p (C + E_i[H_i Sigma H_i] - H Sigma H)

in units of one step k, with H the Hessian at w, C the covariance of the per-example gradients, H_i the
per-example Gauss-Newton matrices and p = (n - B)/(B (n - 1)) for batches of B out of n without replacement.
The second line is the exact stationary covariance of SGD on the quadratic model (Mulayoff and Michaeli,
arXiv:2306.07850), restricted to the modes whose fluctuations settle within the flow's resolution. The average
over delta is taken by three-point Gauss-Hermite quadrature along each principal axis of Sigma, which is
(1/2) grad <Sigma, H> to leading order: the term of the central flow of Cohen et al. (arXiv:2410.24206).

The flow does not apply where SGD is mean-square unstable (Sigma does not exist), during a catapult, or for
full-batch training, whose oscillations are not noise; it stops there and says so.
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

from eos_sde.bridge.losses import LOSSES
from eos_sde.bridge.precision import double_precision
from eos_sde.bridge.spectrum import follow_modes, top_modes
from eos_sde.bridge.tasks import Task
from eos_sde.optimizers.rule import learning_rate
from solvers.errors import InvalidInput
from solvers.provenance import provenance

_EXPLICIT = 1.6  # |1 - z| = 0.6: well inside the stability limit 2 of the explicit step


class _Point(NamedTuple):
    """What one evaluation of the flow's right-hand side gives."""

    velocity: jax.Array  # (d,), minus the averaged gradient
    eigenvalues: jax.Array  # (k,)
    modes: jax.Array  # (d, k)
    following: jax.Array  # (d, k), a better block for the next point
    covariance: jax.Array  # (k, k), in the modes
    radius: jax.Array  # spectral radius of the covariance recursion; >= 1: Sigma does not exist
    loss: jax.Array  # at w
    mean_loss: jax.Array  # averaged over the fluctuation


def per_example_modes(task: Task, theta: jax.Array, modes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Per-example gradients and Gauss-Newton matrices in the span of some directions; traceable.

    Parameters
    ----------
    task : Task
        The training problem.
    theta : Array
        Weights, shape (d,).
    modes : Array
        Shape (d, k).

    Returns
    -------
    gradients, curvatures : Array
        Shapes (n, k) and (n, k, k).
    """
    outputs, push = jax.linearize(task.apply, theta)
    tangents = jax.vmap(push, 1, 2)(modes)  # (n, c, k)
    slope = jax.vmap(jax.grad(LOSSES[task.loss_name]))(outputs, task.y)  # (n, c)
    bend = jax.vmap(jax.hessian(LOSSES[task.loss_name]))(outputs, task.y)  # (n, c, c)
    gradients = jnp.einsum("nc,nck->nk", slope, tangents)
    return gradients, jnp.einsum("nci,ncd,ndj->nij", tangents, bend, tangents)


def stationary_covariance(
    eigenvalues: jax.Array, gradients: jax.Array, curvatures: jax.Array, *, eta, p, cutoff: float
) -> tuple[jax.Array, jax.Array]:
    """Stationary covariance of SGD's fluctuation in the top modes; traceable.

    Parameters
    ----------
    eigenvalues : Array
        Of the Hessian, shape (k,).
    gradients, curvatures : Array
        Per example, in the modes: shapes (n, k) and (n, k, k).
    eta, p : float
        Learning rate; variance of a batch mean relative to one example.
    cutoff : float
        Modes with eta * eigenvalue below it are left out: their fluctuations do not settle.

    Returns
    -------
    covariance : Array
        Shape (k, k).
    radius : Array
        Spectral radius of the recursion; from 1 on the covariance does not exist.
    """
    n, k = gradients.shape
    kept = (eta * eigenvalues > cutoff).astype(gradients.dtype)
    pack = _packing(k)  # (k^2, k (k + 1)/2)
    mask = pack.T @ jnp.outer(kept, kept).reshape(-1) > 0
    contraction = 1.0 - eta * eigenvalues
    flat = curvatures.reshape(n, k * k)
    second = (flat.T @ flat / n).reshape(k, k, k, k).transpose(0, 2, 1, 3).reshape(k * k, k * k)
    mean = curvatures.mean(axis=0)
    full = jnp.diag(jnp.outer(contraction, contraction).reshape(-1))
    full += eta**2 * p * (second - jnp.kron(mean, mean))
    recursion = jnp.where(mask[:, None] & mask[None, :], pack.T @ full @ pack, 0.0)
    centred = gradients - gradients.mean(axis=0)
    source = jnp.where(mask, pack.T @ (eta**2 * p * (centred.T @ centred / n)).reshape(-1), 0.0)
    covariance = (pack @ jnp.linalg.solve(jnp.eye(len(source)) - recursion, source)).reshape(k, k)
    return covariance, jnp.max(jnp.abs(jnp.linalg.eigvalsh(recursion)))


def _packing(k: int) -> np.ndarray:
    """Orthonormal basis of the symmetric k x k matrices, as columns of flattened matrices."""
    rows, columns = np.triu_indices(k)
    basis = np.zeros((k, k, rows.size))
    scale = np.where(rows == columns, 1.0, np.sqrt(0.5))
    basis[rows, columns, np.arange(rows.size)] = scale
    basis[columns, rows, np.arange(rows.size)] = scale
    return basis.reshape(k * k, -1)


def _averaged_gradient(task: Task, theta: jax.Array, axes: jax.Array, variances: jax.Array):
    """E[L] and E[grad L] over N(0, sum_j variances_j axes_j axes_j') by quadrature along each axis."""
    value_and_grad = jax.value_and_grad(task.loss)
    loss, gradient = value_and_grad(theta)
    steps = (axes * jnp.sqrt(3.0 * variances)).T
    losses, gradients = jax.vmap(value_and_grad)(theta + jnp.concatenate([steps, -steps]))
    pairs = 2 * axes.shape[1]
    mean_loss = loss + (losses.sum() - pairs * loss) / 6
    return loss, mean_loss, gradient + (gradients.sum(axis=0) - pairs * gradient) / 6


@partial(jax.jit, static_argnames="task")
def _evaluate(task: Task, theta, block, eta, p, cutoff) -> _Point:
    eigenvalues, modes, following = follow_modes(task, theta, block)
    gradients, curvatures = per_example_modes(task, theta, modes)
    covariance, radius = stationary_covariance(
        eigenvalues, gradients, curvatures, eta=eta, p=p, cutoff=cutoff
    )
    variances, rotation = jnp.linalg.eigh(covariance)
    loss, mean_loss, gradient = _averaged_gradient(task, theta, modes @ rotation, jnp.maximum(variances, 0.0))
    return _Point(-gradient, eigenvalues, modes, following, covariance, radius, loss, mean_loss)


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
    cutoff: float = 0.1,
    save_every: int = 50,
    seed: int = 0,
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
        Hessian modes that carry the fluctuation.
    stride : int
        Steps of SGD per step of the flow at most; fewer where modes outside the block would not relax.
    cutoff : float
        Modes with eta * eigenvalue below it do not carry fluctuations.
    save_every : int
        Steps between saved points; a multiple of `stride`.
    seed : int
        For the draws at which the sharpness of single iterates is forecast.
    progress : callable, optional
        Called with the step reached.

    Returns
    -------
    Dataset
        Over ``step``: ``sharpness`` (at the averaged weights), ``iterate_sharpness`` (mean over the
        fluctuation, which is what a run shows), ``loss``, ``mean_loss``, ``top_variance`` (along the top
        eigenvector), ``radius`` (of the mean-square recursion). ``final_params(weight)``;
        ``attrs["stopped"]`` is empty or says where and why the flow ceased to apply.

    Raises
    ------
    InvalidInput
        For a batch of all examples or a bad number.
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
    theta = jnp.asarray(start, dtype=jnp.float64)
    p = (task.n - batch_size) / (batch_size * (task.n - 1))
    block = top_modes(task, theta, modes, tol=1e-3)[1]
    key = jax.random.key(seed)
    rows: list[tuple[float, ...]] = []
    reached, stopped, next_save = 0, "", 0
    while True:
        point = _evaluate(task, theta, block, eta, p, cutoff)
        block, radius = point.following, float(point.radius)
        if not radius < 1.0:
            stopped = (
                f"step {reached}: SGD is mean-square unstable here (spectral radius {radius:.3f}), so its "
                "fluctuations have no stationary covariance"
            )
        if stopped or reached >= next_save:
            draw = jax.random.fold_in(key, reached)
            spread = jnp.full(1, jnp.nan)
            if not stopped:
                spread = _iterate_sharpness(task, theta, point.modes, point.covariance, draw)
            rows.append((
                reached, float(point.eigenvalues[0]), float(spread.mean()), float(point.loss),
                float(point.mean_loss), float(point.covariance[0, 0]), radius,
            ))  # fmt: skip
            next_save += save_every
            if progress is not None:
                progress(reached)
        if stopped or reached >= steps:
            break
        stride_now = _stable_stride(point.eigenvalues, eta, min(stride, steps - reached, next_save - reached))
        theta = _advance(theta, point.velocity, point.eigenvalues, point.modes, eta, stride_now)
        reached += stride_now
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
        If delta is not positive (the iterate then oscillates), or steps is no multiple of stride.
    """
    if not 0 < delta < 2:
        raise InvalidInput(f"delta={delta} must lie between 0 and 2: without a margin the iterate oscillates")
    if steps < 1 or steps % stride:
        raise InvalidInput(f"steps={steps} must be a positive multiple of stride={stride}")
    theta = jnp.asarray(start, dtype=jnp.float64)
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
        "top_variance": ("weight^2", "stationary variance along the top eigenvector"),
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
