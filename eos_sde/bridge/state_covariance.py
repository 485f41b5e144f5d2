"""Averages and covariance of a rule with momentum on the quadratic model: its linear step on (w, v), mode by mode."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from eos_sde.bridge.covariance import curvature_noise
from eos_sde.training.linear_rules import LinearRule

_POWERS = 600  # of the covariance map; its radius is the mean growth in the second half, to about 1e-3


class StateRecursion(NamedTuple):
    """The linear map of the covariance of (w, v) in one step, ``S -> A S A' + k k' x (C + N[Sigma])``.

    Sigma is the covariance of w alone, x the Kronecker product, all in the modes of r H r and the coordinates w/r.

    Attributes
    ----------
    step : Array
        A, one matrix on (w, v) per mode, shape (k, 2, 2).
    kick : Array
        What one unit of extra batch gradient does to (w, v), shape (2,).
    noise : Array
        C, covariance of the batch gradient at the mean, shape (k, k).
    kernel : Array
        N, of the batch curvature, on flattened covariances, shape (k^2, k^2).
    """

    step: jax.Array
    kick: jax.Array
    noise: jax.Array
    kernel: jax.Array

    def once(self, covariance: jax.Array, noise: jax.Array) -> jax.Array:
        """S after one step with some covariance of the gradient; shape (k, 2, k, 2)."""
        k = noise.shape[0]
        batch = noise + (self.kernel @ covariance[:, 0, :, 0].reshape(-1)).reshape(k, k)
        moved = jnp.einsum("iac,icjd,jbd->iajb", self.step, covariance, self.step)
        return moved + jnp.einsum("ij,a,b->iajb", batch, self.kick, self.kick)

    @jax.jit
    def after(self, covariance: jax.Array, steps) -> jax.Array:
        """S a whole number of steps later, exactly."""
        return jax.lax.fori_loop(0, steps, lambda _, s: self.once(s, self.noise), covariance)

    @jax.jit
    def radius(self) -> jax.Array:
        """Spectral radius, by powers from the identity; from 1 on the rule is mean-square unstable.

        The map keeps positive semi-definite matrices so: its radius is an eigenvalue, and powers of an interior point
        grow with it.
        """
        k = self.noise.shape[0]
        start = jnp.eye(2 * k).reshape(k, 2, k, 2)

        def power(i, carry):
            later = self.once(carry[0], jnp.zeros_like(self.noise))
            size = jnp.linalg.norm(later)
            return later / size, carry[1] + jnp.where(i >= _POWERS // 2, jnp.log(size), 0.0)

        start = (start / jnp.linalg.norm(start), jnp.zeros(()))
        return jnp.exp(jax.lax.fori_loop(0, _POWERS, power, start)[1] / (_POWERS - _POWERS // 2))


def state_recursion(rule: LinearRule, eigenvalues, gradients, curvatures, p) -> StateRecursion:
    """How the covariance of a rule's fluctuation changes in one step on the quadratic model; traceable.

    Exact for batches without replacement, but for the part of the fluctuation outside the modes, and for the
    fluctuation of the rates.

    Parameters
    ----------
    rule : LinearRule
        The step, at a learning rate of 1.
    eigenvalues : Array
        Of r H r, shape (k,).
    gradients, curvatures : Array
        Per example, along the columns of r Q: shapes (..., n, k), at the averaged weights or some weights about them,
        and (n, k, k).
    p : float
        Variance of a batch mean relative to one example, (n - B)/(B (n - 1)).

    Returns
    -------
    StateRecursion
        On covariances of shape (k, 2, k, 2).
    """
    step, kick = rule.step(1.0, eigenvalues, jnp)
    centred = (gradients - gradients.mean(axis=-2, keepdims=True)).reshape(-1, gradients.shape[-1])
    noise = p * (centred.T @ centred) / centred.shape[0]
    return StateRecursion(step, kick, noise, p * curvature_noise(curvatures))


def settled_curvature(rule: LinearRule) -> float:
    """Eigenvalue of r H r from which on a mode's response is real and negative: its mean has settled.

    Parameters
    ----------
    rule : LinearRule
        The step, at a learning rate of 1.

    Returns
    -------
    float
        1 without momentum and for Nesterov's, (1 + sqrt b)^2 for the heavy ball's, over the gain.
    """
    return (1.0 if rule.nesterov else (1.0 + rule.momentum**0.5) ** 2) / rule.gain


def _powers(rule: LinearRule, curvature, drive, steps):
    """Affine maps of (w, v, 1) over some steps, for modes with a constant force along them; shape (..., 3, 3)."""
    step, kick = rule.step(1.0, curvature, jnp)
    forced = jnp.concatenate([step, (kick * drive[..., None])[..., None]], axis=-1)
    bottom = jnp.broadcast_to(jnp.array([0.0, 0.0, 1.0]), (*forced.shape[:-2], 1, 3))
    once = jnp.concatenate([forced, bottom], axis=-2)
    start = jnp.broadcast_to(jnp.eye(3), once.shape)
    return jax.lax.fori_loop(0, steps, lambda _, m: once @ m, start)


@partial(jax.jit, static_argnames="rule")
def averaged_steps(rule: LinearRule, gradient, velocity, scale, eigenvalues, modes, steps):
    """Where the averaged rule goes in some steps: its own linear map in the modes, a constant gradient elsewhere.

    A mode that alternates relaxes as the steepest that does not: its mean over the alternation has settled. Affine in
    the gradient, by a symmetric positive matrix in the coordinates w/r.

    Parameters
    ----------
    rule : LinearRule
        The step, at a learning rate of 1.
    gradient, velocity : Array
        Averaged gradient at the weights, and v, shape (d,).
    scale : Array
        r, shape (d,).
    eigenvalues, modes : Array
        Of r H r, shapes (k,) and (d, k).
    steps : int
        How many.

    Returns
    -------
    move, velocity : Array
        Change of the weights, and the new v, shape (d,).
    """
    push, drift = scale * gradient, scale * velocity
    along = jnp.stack([modes.T @ drift, modes.T @ push], axis=-1)  # (k, 2): v and g
    settled = settled_curvature(rule)
    gentle = jnp.minimum(eigenvalues, settled)
    share = jnp.where(eigenvalues > settled, gentle / jnp.where(eigenvalues == 0, 1.0, eigenvalues), 1.0)
    unit = jnp.ones_like(share)
    within, free = (_powers(rule, c, f, steps)[:, :2, 1:] for c, f in ((gentle, share), (0.0 * unit, unit)))
    extra = jnp.einsum("kab,kb->ka", within - free, along)
    outside = free[0]
    move = outside[0, 0] * drift + outside[0, 1] * push + modes @ extra[:, 0]
    later = outside[1, 0] * drift + outside[1, 1] * push + modes @ extra[:, 1]
    return scale * move, later / scale
