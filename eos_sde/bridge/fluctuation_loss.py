"""The loss of SGD's fluctuation: a quadratic form in the resolved modes, and quadrature of what lies outside them."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from eos_sde.bridge.fluctuation_statistics import RUNAWAY, jackknife
from eos_sde.bridge.local_noise import LocalNoise, gauss_newton_products
from eos_sde.bridge.task_library import Task
from eos_sde.optimizers.curvature.krylov import krylov_space

_PROBES, _KRYLOV = 8, 24


class FluctuationLoss(NamedTuple):
    """How much the fluctuation adds to the loss of the averaged weights, and how the loss of one iterate varies.

    Attributes
    ----------
    resolved : float
        tr(H Sigma)/2 in the modes, infinite where Sigma is.
    unresolved, unresolved_stderr : float
        The same outside, by quadrature, with the error of its random probes.
    low, high : float
        Bounds of the unresolved part that need no quadrature, valid for a positive H outside the modes.
    standard_deviation : float
        Of the loss over the fluctuation: ``Var = tr((H Sigma)^2)/2 + g' Sigma g`` in a Gaussian.
    slow_variance : float
        The part of the variance from outside the modes, where the loss is taken to be linear.
    """

    resolved: float
    unresolved: float
    unresolved_stderr: float
    low: float
    high: float
    standard_deviation: float
    slow_variance: float

    def sampled_deviation(
        self, x: NDArray[np.float64], gradient: NDArray[np.float64], eigenvalues: NDArray[np.float64]
    ) -> tuple[float, float]:
        """Standard deviation of the loss with the law of a sample in the modes, tails and all, and its error.

        Parameters
        ----------
        x : ndarray
            Independent displacements, shape (replicas, k).
        gradient, eigenvalues : ndarray
            Of the loss where they are measured from, shape (k,).

        Returns
        -------
        value, stderr : float
            NaN where there is no stationary state.
        """
        if not (np.isfinite(self.slow_variance) and np.all(np.abs(x) < RUNAWAY)):
            return float("nan"), float("nan")
        found = jackknife(
            lambda loss: {"deviation": float(np.sqrt(loss.var(ddof=1) + self.slow_variance))},
            x @ gradient + 0.5 * x**2 @ eigenvalues,
        )
        return found["deviation"]


def fluctuation_loss(
    task: Task,
    local: LocalNoise,
    covariance: NDArray[np.float64],
    means: NDArray[np.float64],
    *,
    eta: float,
    batch_size: int,
    window: tuple[int, int] | None,
    moving: bool,
    seed: int,
) -> FluctuationLoss:
    """Mean and spread of the loss over the fluctuation about the averaged path.

    A mode of curvature h whose gradient noise has the variance c per example carries, after t steps from one point,

        h Sigma_hh/2 = (eta p c/2) (1 - (1 - eta h)^(2 t))/(2 - eta h):

    eta p c/4 in a flat mode that has relaxed, whatever its curvature; nothing in one that has not. Outside the
    modes that is ``(eta p/2) tr(C phi(H))``, for which the bounds take phi between its value at 0 and at the last
    resolved eigenvalue, and Lanczos quadrature from random combinations of the examples' gradients the function itself.
    There H is replaced by its Gauss-Newton part, which is positive: fluctuations along frozen directions of negative
    curvature would grow without bound, which those of a network do not. The kicks that the resolved fluctuation gives
    the rest by curvature noise are added to C.

    Parameters
    ----------
    task : Task
        The training problem.
    local : LocalNoise
        At the weights.
    covariance, means : ndarray
        As in `SecondMoments`.
    eta : float
        Learning rate.
    batch_size : int
        B, without replacement.
    window : (int, int) or None
        As for `second_moments`.
    moving : bool
        Whether the averaged path leaves the weights within the window, so that their gradient shrinks.
    seed : int
        Of the probes.

    Returns
    -------
    FluctuationLoss
        Means over the window; the standard deviation at its last step.
    """
    p, h = local.batch_variance(batch_size), local.eigenvalues
    if not np.all(np.isfinite(covariance)):
        inf = float("inf")
        return FluctuationLoss(inf, inf, 0.0, 0.0, inf, inf, inf)
    average = covariance.mean(axis=0)
    outside, bent = noise_outside(local, average)
    shares = _probed_shares(task, local, eta=eta, window=window, seed=seed)
    scale = 0.5 * eta * p * (outside + bent)
    lower, upper = _relaxed(np.array([0.0, max(h[-1], 0.0)]), eta, window)
    last = covariance[-1]
    bent_loss = np.diag(h) @ last
    left = local.gradients.mean(axis=0) + h * means[-1]
    variance, slow = 0.5 * float(np.trace(bent_loss @ bent_loss)) + float(left @ last @ left), 0.0
    if window is not None:
        ahead = window[1] if moving else 0
        arrays = jnp.asarray(local.theta), jnp.asarray(local.modes)
        slow = p * float(slow_linear_variance(task, *arrays, eta, window[1], ahead))
    return FluctuationLoss(
        resolved=0.5 * float(h @ np.diag(average)),
        unresolved=scale * float(shares.mean()),
        unresolved_stderr=scale * float(shares.std(ddof=1) / np.sqrt(len(shares))),
        low=scale * float(lower),
        high=scale * float(upper),
        standard_deviation=float(np.sqrt(variance + slow)),
        slow_variance=slow,
    )


def noise_outside(local: LocalNoise, covariance: NDArray[np.float64]) -> tuple[float, float]:
    """Trace of the noise covariance of one example outside the modes: of its gradient, and of H_i x in the modes.

    Parameters
    ----------
    local : LocalNoise
        At the weights.
    covariance : ndarray
        Of x in the modes, shape (k, k).

    Returns
    -------
    gradient, curvature : float
        In 1/weight^2.
    """
    outside = local.noise_trace - float(np.var(local.gradients, axis=0).sum())
    within = np.einsum("nij,jk,nki->", local.curvatures, covariance, local.curvatures) / local.examples
    mean = local.curvatures.mean(axis=0)
    within -= np.trace(mean @ covariance @ mean)
    return max(outside, 0.0), max(float(np.sum(covariance * local.spread) - within), 0.0)


def _relaxed(h: NDArray[np.float64], eta: float, window: tuple[int, int] | None) -> NDArray[np.float64]:
    """Phi(h) = (1 - (1 - eta h)^(2 t))/(2 - eta h), its mean over the steps of the window."""
    contraction = 1 - eta * h
    if window is None:
        return 1 / (1 + contraction)
    steps = np.arange(window[0], window[1] + 1)
    return (1 - np.mean(contraction[..., None] ** (2 * steps), axis=-1)) / (1 + contraction)


def _probed_shares(
    task: Task, local: LocalNoise, *, eta: float, window: tuple[int, int] | None, seed: int
) -> NDArray[np.float64]:
    """Z' phi(H) z of random z with covariance C outside the modes, over the mean of z' z; shape (probes,)."""
    theta, modes = jnp.asarray(local.theta), jnp.asarray(local.modes)
    signs = np.random.default_rng([seed, 1]).choice([-1.0, 1.0], (_PROBES, local.examples))
    signs -= signs.mean(axis=1, keepdims=True)
    block = _probes(task, theta, modes, jnp.asarray(signs / np.sqrt(local.examples)))
    nodes, weights = (np.asarray(part) for part in _quadrature(task, theta, modes, block))
    squares = np.sum(np.asarray(block) ** 2, axis=0)
    values = np.sum(weights * _relaxed(nodes, eta, window), axis=1)
    return values * squares / squares.mean()


@partial(jax.jit, static_argnames="task")
def _probes(task: Task, theta: jax.Array, modes: jax.Array, signs: jax.Array) -> jax.Array:
    """Combinations of the examples' gradients outside the modes, shape (d, probes)."""
    _, pull = jax.vjp(task.per_example_loss, theta)
    block = jax.vmap(lambda s: pull(s)[0])(signs).T
    return block - modes @ (modes.T @ block)


@partial(jax.jit, static_argnames="task")
def _quadrature(
    task: Task, theta: jax.Array, modes: jax.Array, block: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Gauss nodes and weights of the Gauss-Newton part outside the modes for each column, shapes (probes, steps)."""

    def products(vector: jax.Array) -> jax.Array:
        image = gauss_newton_products(task, theta, vector[:, None])[:, 0]
        return image - modes @ (modes.T @ image)

    def one(column: jax.Array) -> tuple[jax.Array, jax.Array]:
        start = column / jnp.maximum(jnp.linalg.norm(column), jnp.finfo(column.dtype).tiny)
        found = krylov_space(products, start, min(_KRYLOV, task.size - modes.shape[1]))
        nodes, vectors = jnp.linalg.eigh(found.matrix)
        return nodes, vectors[0] ** 2

    return jax.lax.map(one, block.T)


@partial(jax.jit, static_argnames="task")
def slow_linear_variance(
    task: Task, theta: jax.Array, modes: jax.Array, eta: float, steps: int, ahead: int
) -> jax.Array:
    """Variance over the batches of g' x after some steps from one point, outside the modes; gradient noise only.

    With v_t = (I - eta H)^t g outside the modes, H the Gauss-Newton part, and g = v_ahead the gradient once the path
    has moved, ``g' Sigma g = eta^2 p sum_t v' C v`` with v = v_(ahead + t): products with H and with the examples'
    slopes, no covariance is formed.

    Parameters
    ----------
    task : Task
        The training problem.
    theta, modes : Array
        Weights (d,) and the directions (d, k) that are left out.
    eta : float
        Learning rate.
    steps, ahead : int
        Since the point; by which the gradient shrinks on the way.

    Returns
    -------
    Array
        g' Sigma g over p, in loss^2.
    """
    gradient = jax.grad(task.loss)(theta)

    def outside(v: jax.Array) -> jax.Array:
        return v - modes @ (modes.T @ v)

    def shrink(v: jax.Array) -> jax.Array:
        return outside(v - eta * gauss_newton_products(task, theta, v[:, None])[:, 0])

    def add(_: int, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        v, total = carry
        slopes = jax.jvp(task.per_example_loss, (theta,), (v,))[1]
        return shrink(v), total + jnp.var(slopes)

    left = jax.lax.fori_loop(0, ahead, lambda _, v: shrink(v), outside(gradient))
    return eta**2 * jax.lax.fori_loop(0, steps, add, (left, jnp.zeros(())))[1]
