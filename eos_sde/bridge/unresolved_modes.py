"""Noise outside the carried Hessian modes: what it adds to the mean loss of SGD, and how it pushes the averaged path.

The carried modes are few, and the rest of the space holds as much gradient noise. There the fluctuation is found by
its spectrum only. With C the covariance of the per-example gradients at an iterate (so that the curvature noise of the
carried fluctuation is in it), P the projection off the carried modes and h a curvature,

    power(h) = density of tr(P C P) over the spectrum of P H P
    variance+(h) = (1 - eta h)^2 variance(h) + eta^2 p power(h)

The density comes by stochastic Lanczos quadrature (Ubaru, Chen and Saad 2017, doi 10.1137/16M1104974) from random sums
of per-example gradients, whose covariance is C: each is one gradient. They also drive one linear run of SGD outside the
carried modes, a draw of the fluctuation that goes along with the flow; the push E[grad L(w + delta)] - grad L(w) is its
running mean over both signs of that draw.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eos_sde.bridge.task_library import Task
from eos_sde.optimizers.curvature.krylov import krylov_space

_ORDER = 8  # of the quadrature
_MEMORY = 10  # measurements in a running mean, at most
# A draw forgets within 1/0.02 steps what its curvature does not take back: replicas of a run part for good along flat
# directions, further than the quadratic model reaches, and that is no fluctuation about one path.
_FORGETS = 0.02
# eta h; flatter directions diffuse, and negative curvatures are taken as flat: what grows there is no fluctuation
_GRID = np.concatenate([[0.0], np.geomspace(1e-4, 1.0, 41)])


class Unresolved(NamedTuple):
    """State of the fluctuation outside the carried modes.

    Attributes
    ----------
    variances : Array
        Trace of its covariance on a grid of eta h, in weight^2.
    power : Array
        Running mean of the trace of the gradient noise of one example on the grid.
    push : Array
        Running mean of E[grad L(w + delta)] - grad L(w), shape (d,).
    draw : Array
        A draw of the fluctuation, shape (d,).
    measured : Array
        Number of measurements.
    """

    variances: jax.Array
    power: jax.Array
    push: jax.Array
    draw: jax.Array
    measured: jax.Array


def quiet(size: int) -> Unresolved:
    """No fluctuation yet, as at a checkpoint of so many weights."""
    grid, weights = jnp.zeros(_GRID.size), jnp.zeros(size)
    return Unresolved(grid, grid, weights, weights, jnp.zeros((), int))


@partial(jax.jit, static_argnames="task")
def measured(
    state: Unresolved,
    task: Task,
    theta,
    modes,
    eigenvalues,
    covariance,
    key,
    eta: float,
    p: float,
    steps: int,
) -> Unresolved:
    """Measure the spectrum of the noise at an iterate, and take the draw along.

    Parameters
    ----------
    state : Unresolved
        So far.
    task : Task
        The training problem.
    theta : Array
        Averaged weights, shape (d,).
    modes, eigenvalues, covariance : Array
        What is carried: (d, k), (k,), largest first, and (k, k).
    key : Array
        Random key.
    eta, p : float
        Learning rate; variance of a batch mean relative to one example.
    steps : int
        Since the last measurement.

    Returns
    -------
    Unresolved
        With the power, push and draw of now in it.
    """
    kick_key, sum_key, side_key = jax.random.split(key, 3)
    variances, rotation = jnp.linalg.eigh(covariance)
    kick = rotation @ (jnp.sqrt(jnp.maximum(variances, 0.0)) * jax.random.normal(kick_key, variances.shape))
    iterate = theta + modes @ kick + jax.random.rademacher(side_key, (), theta.dtype) * state.draw
    signs = jax.random.rademacher(sum_key, (task.n,), theta.dtype)
    signs = (signs - signs.mean()) / task.n**0.5

    def off(vector: jax.Array) -> jax.Array:
        return vector - modes @ (modes.T @ vector)

    noise = off(jax.grad(lambda w: signs @ task.per_example_loss(w))(iterate))
    slope = jax.grad(task.loss)
    gradient, product = jax.linearize(slope, theta)
    order = min(_ORDER, task.size - modes.shape[1])
    highest = jnp.clip(eta * eigenvalues[-1], 0.0, 1.0)

    def seen(vector: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Nodes of a vector in eta h, within what is not carried; its parts there, and the nodes' vectors."""
        length = jnp.linalg.norm(vector)
        # all is multiplied by the length, so any direction does where it is 0
        start = jnp.where(length > 0, vector / jnp.where(length > 0, length, 1.0), off(jnp.ones_like(vector)))
        found = krylov_space(lambda v: off(product(off(v))), start, order)
        values, vectors = jnp.linalg.eigh(found.matrix)
        return jnp.clip(eta * values, 0.0, highest), length * vectors[0], vectors.T @ found.basis

    at, parts, basis = seen(noise)
    power = _spread(at, parts**2)
    kicks = jnp.sqrt(eta**2 * p * _series((1.0 - _FORGETS) ** 2 * (1.0 - at) ** 2, steps)) * parts @ basis
    at, parts, basis = seen(off(state.draw))
    draw = ((1.0 - _FORGETS) * (1.0 - at)) ** steps * parts @ basis + kicks
    around = (slope(theta + draw) + slope(theta - draw)) / 2
    share = 1.0 / jnp.minimum(state.measured + 1, _MEMORY)
    return state._replace(
        power=state.power + share * (power - state.power),
        push=state.push + share * (around - gradient - state.push),
        draw=draw,
        measured=state.measured + 1,
    )


def _series(ratio, steps):
    """1 + ratio + ... of so many terms, for 0 <= ratio <= 1."""
    flat = 1.0 - ratio
    return jnp.where(flat > 1e-12, (1.0 - ratio**steps) / jnp.where(flat > 1e-12, flat, 1.0), steps)


def _spread(at: jax.Array, weights: jax.Array) -> jax.Array:
    """Weights of points of eta h on the grid, by linear interpolation: sums and first moments are kept."""
    upper = jnp.clip(jnp.searchsorted(jnp.asarray(_GRID), at), 1, _GRID.size - 1)
    low, high = jnp.asarray(_GRID)[upper - 1], jnp.asarray(_GRID)[upper]
    part = (at - low) / (high - low)
    empty = jnp.zeros(_GRID.size, weights.dtype)
    return empty.at[upper - 1].add((1.0 - part) * weights).at[upper].add(part * weights)


@jax.jit
def after(state: Unresolved, eta: float, p: float, steps: int) -> Unresolved:
    """The state some steps later: every variance relaxes and is fed.

    Parameters
    ----------
    state : Unresolved
        Now.
    eta, p : float
        Learning rate; variance of a batch mean relative to one example.
    steps : int
        How many.

    Returns
    -------
    Unresolved
        Then.
    """
    decay = (1.0 - _GRID) ** 2
    fed = eta**2 * p * _series(decay, steps)
    return state._replace(variances=decay**steps * state.variances + fed * state.power)


def excess_loss(state: Unresolved, eta: float) -> jax.Array:
    """What the fluctuation adds to the mean loss: half the sum of curvature times variance."""
    return 0.5 * jnp.sum(_GRID * state.variances) / eta
