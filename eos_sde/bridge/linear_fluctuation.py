"""SGD's fluctuation as a linear random map in the top modes: exact second moments, replicas with real batches."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from numba import njit
from numpy.typing import NDArray

from eos_sde.bridge.batches import draw_batches, stream
from eos_sde.bridge.covariance import covariance_recursion, stationary_covariance
from eos_sde.bridge.local_noise import LocalNoise
from eos_sde.bridge.slow_fluctuation import averaged_kicks

_CHUNK = 1 << 22  # drawn indices at once
_BATCHES, _STREAM = 20_000, 7


class SecondMoments(NamedTuple):
    """Mean and covariance of the linear map over some steps.

    Attributes
    ----------
    covariance : ndarray
        Sigma at each step, shape (m, k, k); one step for the stationary one, infinite where there is none.
    means : ndarray
        Mean displacement in the modes at each step, shape (m, k).
    radius : float
        Spectral radius of the recursion; from 1 on second moments grow without bound.
    """

    covariance: NDArray[np.float64]
    means: NDArray[np.float64]
    radius: float


def second_moments(
    local: LocalNoise, *, eta: float, batch_size: int, window: tuple[int, int] | None
) -> SecondMoments:
    """Covariance of SGD about its mean on the quadratic model, by the recursion of `covariance_recursion`.

    From one point the mean moves too, ``m+ = m - eta (g + H m)``, and the batches' noise is that of g_i + H_i m:
    with it the recursion is exact for the linear map in the modes; `LocalNoise.resting` leaves the motion out, as does
    the stationary one. Draws of slow kicks add their mean covariance.

    Parameters
    ----------
    local : LocalNoise
        At the weights.
    eta : float
        Learning rate.
    batch_size : int
        B, without replacement.
    window : (int, int) or None
        First and last step after the weights, inclusive, or None for the stationary covariance.

    Returns
    -------
    SecondMoments
        Over the steps of the window.
    """
    p = local.batch_variance(batch_size)
    h, k = local.eigenvalues, len(local.eigenvalues)
    slow = eta**2 * p * averaged_kicks(local).ravel()
    recursion = covariance_recursion(
        jnp.asarray(h), jnp.asarray(local.gradients), jnp.asarray(local.curvatures), eta=eta, p=p
    )
    radius = float(recursion.radius)
    if window is None:
        if radius >= 1:
            return SecondMoments(np.full((1, k, k), np.inf), np.zeros((1, k)), radius)
        recursion = recursion._replace(source=recursion.source + recursion.basis.T @ slow)
        return SecondMoments(np.asarray(stationary_covariance(recursion))[None], np.zeros((1, k)), radius)
    rates, basis = np.asarray(recursion.rates), np.asarray(recursion.basis)
    gradient = local.gradients.mean(axis=0)
    mean, packed = np.zeros(k), np.zeros(len(rates))
    covariances, means = [], []
    for step in range(window[1] + 1):
        if step >= window[0]:
            covariances.append((basis @ packed).reshape(k, k))
            means.append(mean)
        kicks = local.gradients + local.curvatures @ mean
        centred = kicks - kicks.mean(axis=0)
        source = eta**2 * p * (centred.T @ centred) / local.examples
        packed = rates * packed + basis.T @ (source.ravel() + slow)
        mean = mean - eta * (gradient + h * mean)
    return SecondMoments(np.array(covariances), np.array(means), radius)


def noise_from_elsewhere(
    local: LocalNoise, covariance: NDArray[np.float64], batch_size: int
) -> NDArray[np.float64]:
    """Variance of the batch gradient along each mode that fluctuations along the others bring, by curvature noise.

    Parameters
    ----------
    local : LocalNoise
        At the weights, with or without slow kicks.
    covariance : ndarray
        Of the fluctuation in the modes, shape (k, k).
    batch_size : int
        B.

    Returns
    -------
    ndarray
        Shape (k,), in 1/weight^2.
    """
    noise = local.curvatures - local.curvatures.mean(axis=0)
    every = np.einsum("nij,jk,nik->i", noise, covariance, noise) / local.examples
    own = np.mean(np.diagonal(noise, axis1=1, axis2=2) ** 2, axis=0) * np.diagonal(covariance)
    return local.batch_variance(batch_size) * (
        np.maximum(every - own, 0.0) + np.diagonal(averaged_kicks(local))
    )


def sampled_path(
    local: LocalNoise,
    *,
    eta: float,
    batch_size: int,
    window: tuple[int, int] | None,
    replicas: int,
    seed: int,
) -> NDArray[np.float64]:
    """Replicas of x+ = x - eta (g_B + H_B x) in the modes with batches of the examples: no network is evaluated.

    Each replica keeps one draw of the slow kicks, if there are any.

    Parameters
    ----------
    local : LocalNoise
        At the weights.
    eta : float
        Learning rate.
    batch_size : int
        B, without replacement.
    window : (int, int) or None
        Steps to keep, from one point at the weights. None: stationary; the mean gradient is left out, and steps
        are kept after twenty relaxation times of the slowest mode that relaxes within a hundred steps.
    replicas, seed : int
        How many, and of the batches.

    Returns
    -------
    ndarray
        Displacement, shape (replicas, steps kept, k); not finite where a replica ran away.
    """
    if window is None:
        local = local.resting()
    first, last = burn_in(eta * local.eigenvalues) if window is None else window
    curvatures = np.ascontiguousarray(local.curvatures)
    slow = (
        np.concatenate([local.kicks, -local.kicks])
        if len(local.kicks)
        else np.zeros((1, *local.gradients.shape))
    )
    gradients = np.ascontiguousarray(local.gradients + slow)
    state = np.zeros((replicas, gradients.shape[2]))
    path = np.empty((replicas, last - first + 1, gradients.shape[2]))
    words, done = stream(seed, _STREAM), 0
    ahead = max(1, _CHUNK // (replicas * batch_size))
    while done <= last:
        steps = min(ahead, last + 1 - done)
        drawn = draw_batches(words, replicas * steps, examples=local.examples, batch_size=batch_size)
        _walk(gradients, curvatures, drawn.reshape(replicas, steps, -1), state, eta, path, done - first)
        done += steps
    return path


def burn_in(products: NDArray[np.float64]) -> tuple[int, int]:
    """First and last step to keep of a stationary run, from eta times the eigenvalues."""
    damping = 1 - np.abs(1 - products)
    relaxing = damping[damping > 0.01]
    slowest = float(relaxing.min()) if relaxing.size else 1.0
    first = int(np.clip(20 / slowest, 100, 2000))
    return first, first + 199


def batch_means(
    values: NDArray[np.float64], *, batch_size: int, seed: int, count: int = _BATCHES
) -> NDArray[np.float64]:
    """Means of per-example values over random batches without replacement.

    Parameters
    ----------
    values : ndarray
        Shape (n, m).
    batch_size, seed, count : int
        B, and how many batches.

    Returns
    -------
    ndarray
        Shape (count, m).
    """
    rows = draw_batches(stream(seed, _STREAM + 1), count, examples=len(values), batch_size=batch_size)
    return np.stack([column[rows].mean(axis=1) for column in np.ascontiguousarray(values.T)], axis=1)


def largest_multiplier(curvatures: NDArray[np.float64], *, eta: float, batch_size: int) -> float:
    """The largest |1 - eta h_B| over all batches, from the per-example curvatures h_i along a direction, shape (n,)."""
    ordered = np.sort(curvatures)
    return float(max(abs(1 - eta * ordered[:batch_size].mean()), abs(1 - eta * ordered[-batch_size:].mean())))


@njit(nogil=True)
def _walk(gradients, curvatures, batches, state, eta, path, offset):
    """Carry all replicas, each with one of the sets of gradients, through their batches.

    Positions before each step go to the path from step -offset on.
    """
    replicas, steps, size = batches.shape
    k = gradients.shape[2]
    slope = np.empty(k)
    for r in range(replicas):
        x = state[r]
        own = gradients[r % len(gradients)]
        for t in range(steps):
            at = offset + t
            if 0 <= at < path.shape[1]:
                for i in range(k):
                    path[r, at, i] = x[i]
            slope[:] = 0.0
            for b in range(size):
                row = batches[r, t, b]
                for i in range(k):
                    total = own[row, i]
                    for j in range(k):
                        total += curvatures[row, i, j] * x[j]
                    slope[i] += total
            for i in range(k):
                x[i] -= eta * slope[i] / size
