"""Covariance of SGD's fluctuation about its averaged path, in the top Hessian modes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eos_sde.bridge.losses import output_slopes
from eos_sde.bridge.task_library import Task


class Recursion(NamedTuple):
    """The linear map of the covariance in one step, Sigma -> R Sigma + source, diagonalised.

    Attributes
    ----------
    rates : Array
        Eigenvalues of R on the symmetric k x k matrices, shape (k (k + 1)/2,).
    basis : Array
        Flattened orthonormal eigenmatrices as columns, shape (k^2, k (k + 1)/2).
    source : Array
        Noise added per step, in the basis.
    """

    rates: jax.Array
    basis: jax.Array
    source: jax.Array

    @property
    def radius(self) -> jax.Array:
        """Spectral radius; from 1 on SGD is mean-square unstable and Sigma grows without bound."""
        return jnp.max(jnp.abs(self.rates))

    def after(self, covariance: jax.Array, steps: int) -> jax.Array:
        """Sigma a whole number of steps later, exactly, shape (k, k)."""
        power = self.rates**steps
        flat = 1.0 - self.rates
        series = jnp.where(jnp.abs(flat) > 1e-9, (1.0 - power) / jnp.where(flat == 0, 1.0, flat), steps)
        later = power * (self.basis.T @ covariance.reshape(-1)) + series * self.source
        return (self.basis @ later).reshape(covariance.shape)


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
    tangents = jax.vmap(push, 1, -1)(modes)  # (n, ..., k): after the example, positions and outputs
    slopes, bent = output_slopes(task.loss_name, outputs, task.y, tangents)
    rows = (len(outputs), -1, modes.shape[1])
    flat = tangents.reshape(rows)
    gradients = jnp.einsum("nc,nck->nk", slopes.reshape(rows[:2]), flat)
    return gradients, jnp.einsum("nci,ncj->nij", flat, bent.reshape(rows))


def covariance_recursion(
    eigenvalues: jax.Array, gradients: jax.Array, curvatures: jax.Array, *, eta, p
) -> Recursion:
    """How the covariance of SGD's fluctuation changes in one step on the quadratic model; traceable.

    ``Sigma+ = (I - eta H) Sigma (I - eta H) + eta^2 p (C + E_i[H_i Sigma H_i] - E[H_i] Sigma E[H_i])``: exact for
    batches without replacement (Mulayoff and Michaeli, arXiv:2306.07850), but for the part of the fluctuation
    outside the given modes.

    Parameters
    ----------
    eigenvalues : Array
        Of the Hessian H, shape (k,).
    gradients, curvatures : Array
        Per example, in the modes: shapes (n, k) and (n, k, k).
    eta, p : float
        Learning rate; variance of a batch mean relative to one example, (n - B)/(B (n - 1)).

    Returns
    -------
    Recursion
        In its eigenbasis.
    """
    n, k = gradients.shape
    pack = _packing(k)
    contraction = 1.0 - eta * eigenvalues
    full = jnp.diag(jnp.outer(contraction, contraction).reshape(-1))
    full += eta**2 * p * curvature_noise(curvatures)
    rates, rotation = jnp.linalg.eigh(pack.T @ full @ pack)
    basis = pack @ rotation
    centred = gradients - gradients.mean(axis=0)
    return Recursion(rates, basis, basis.T @ (eta**2 * p * (centred.T @ centred / n)).reshape(-1))


def curvature_noise(curvatures: jax.Array) -> jax.Array:
    """Matrix of Sigma -> E_i[H_i Sigma H_i] - E[H_i] Sigma E[H_i] on flattened Sigma; traceable.

    Parameters
    ----------
    curvatures : Array
        Per example, in some directions, shape (n, k, k).

    Returns
    -------
    Array
        Shape (k^2, k^2).
    """
    n, k, _ = curvatures.shape
    flat = curvatures.reshape(n, k * k)
    second = (flat.T @ flat / n).reshape(k, k, k, k).transpose(0, 2, 1, 3).reshape(k * k, k * k)
    mean = curvatures.mean(axis=0)
    return second - jnp.kron(mean, mean)


def stationary_covariance(recursion: Recursion) -> jax.Array:
    """The fixed point of the recursion, shape (k, k); meaningless where its radius is 1 or more."""
    flat = recursion.basis @ (recursion.source / (1.0 - recursion.rates))
    k = round(flat.size**0.5)
    return flat.reshape(k, k)


def _packing(k: int) -> np.ndarray:
    """Orthonormal basis of the symmetric k x k matrices, as columns of flattened matrices."""
    rows, columns = np.triu_indices(k)
    basis = np.zeros((k, k, rows.size))
    scale = np.where(rows == columns, 1.0, np.sqrt(0.5))
    basis[rows, columns, np.arange(rows.size)] = scale
    basis[columns, rows, np.arange(rows.size)] = scale
    return basis.reshape(k * k, -1)
