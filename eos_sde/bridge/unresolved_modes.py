"""Noise outside the carried Hessian modes: what it adds to the mean loss of a rule, and how it pushes the averaged path.

The carried modes are few, and the rest of the space holds as much gradient noise. There the fluctuation is found by
its spectrum only. With C the covariance of the per-example gradients at an iterate (so that the curvature noise of the
carried fluctuation is in it), P the projection off the carried modes, h a curvature, A(h) the linear step of the rule on
(w, v) and k what a unit of gradient does to them,

    power(h) = density of tr(P C P) over the spectrum of P H P
    S+(h) = A(h) S(h) A(h)' + p power(h) k k'

for the covariance S of (w, v) at each curvature; for SGD its first entry is ``(1 - eta h)^2 S + eta^2 p power``. A rule
with a rate for each weight does so in the coordinates w/shape, where all share one rate.

The density comes by stochastic Lanczos quadrature (Ubaru, Chen and Saad 2017, doi 10.1137/16M1104974) from random sums
of per-example gradients, whose covariance is C: each is one gradient. They also drive one linear run of the rule outside
the carried modes, a draw of the fluctuation that goes along with the flow; the push E[grad L(w + delta)] - grad L(w) is
its running mean over both signs of that draw.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eos_sde.bridge.task_library import Task
from eos_sde.optimizers.curvature.krylov import krylov_space
from eos_sde.training.linear_rules import LinearRule

LOOK = 2  # steps of a flow between measurements
_ORDER = 8  # of the quadrature
_MEMORY = 10  # measurements in a running mean, at most
# A draw forgets within 1/0.02 steps what its curvature does not take back: replicas of a run part for good along flat
# directions, further than the quadratic model reaches, and that is no fluctuation about one path.
_FORGETS = 0.02
_RATIO = 1e4 ** (1 / 40)  # of neighbours on the grid of curvatures
_FLATTEST = 1e-4  # on it, over what the gradient along it does to the weights in the long run
_PLAIN = LinearRule("sgd")


class Unresolved(NamedTuple):
    """State of the fluctuation outside the carried modes.

    Attributes
    ----------
    curvatures : Array
        A grid, in the coordinates w/shape, shape (m,). Flatter directions diffuse, and negative curvatures are taken as
        flat: what grows there is no fluctuation.
    variances : Array
        Covariance of (w, v) in these coordinates, summed over the directions of each curvature, shape (m, 2, 2).
    power : Array
        Running mean of the trace of the gradient noise of one example on the grid.
    push : Array
        Running mean of E[grad L(w + delta)] - grad L(w), shape (d,).
    draw, velocity : Array
        Independent draws of the fluctuation of w and of v, shape (draws, d); without momentum v stays 0, for it is no
        memory.
    measured : Array
        Number of measurements.
    """

    curvatures: jax.Array
    variances: jax.Array
    power: jax.Array
    push: jax.Array
    draw: jax.Array
    velocity: jax.Array
    measured: jax.Array


def quiet(size: int, rate: float, rule: LinearRule = _PLAIN, draws: int = 1) -> Unresolved:
    """No fluctuation yet, as at a checkpoint.

    Parameters
    ----------
    size : int
        Number of weights.
    rate : float
        Learning rate for which the grid is made: from flat to half the edge of the rule.
    rule : LinearRule
        Its step.
    draws : int
        How many are taken along.

    Returns
    -------
    Unresolved
        All zero.
    """
    steepest = float(rule.edge(1.0)) / 2
    flattest = _FLATTEST * (1.0 - rule.momentum) / rule.gain
    points = 1 + round(float(np.log(steepest / flattest) / np.log(_RATIO)))
    grid = jnp.concatenate([jnp.zeros(1), jnp.geomspace(flattest, steepest, points)]) / rate
    empty, drawn = jnp.zeros((grid.size, 2, 2)), jnp.zeros((draws, size))
    return Unresolved(grid, empty, empty[:, 0, 0], jnp.zeros(size), drawn, drawn, jnp.zeros((), int))


@partial(jax.jit, static_argnames=("task", "rule", "own_noise"))
def measured(
    state: Unresolved,
    task: Task,
    theta,
    modes,
    eigenvalues,
    covariance,
    key,
    rate: float,
    p: float,
    steps: int,
    rule: LinearRule = _PLAIN,
    shape=1.0,
    *,
    own_noise: bool = False,
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
        What is carried, in the coordinates w/shape: (d, k), orthonormal, (k,), largest first, and (k, k), of w.
    key : Array
        Random key.
    rate, p : float
        Learning rate; variance of a batch mean relative to one example.
    steps : int
        Since the last measurement.
    rule : LinearRule
        Its step.
    shape : float or Array
        Root of each weight's learning rate over `rate`, shape (d,).
    own_noise : bool
        Whether the noise is that at iterates off by the draws too, with the curvature noise of the draws.

    Returns
    -------
    Unresolved
        With the power, push and draw of now in it.
    """
    slope = jax.grad(task.loss)
    gradient, product = jax.linearize(slope, theta)
    order = min(_ORDER, task.size - modes.shape[1])
    highest = jnp.clip(eigenvalues[-1], 0.0, state.curvatures[-1])
    variances, rotation = jnp.linalg.eigh(covariance)
    spread = rotation * jnp.sqrt(jnp.maximum(variances, 0.0))

    def off(vector: jax.Array) -> jax.Array:
        return vector - modes @ (modes.T @ vector)

    @jax.vmap
    def seen(vector: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Curvatures at the nodes of a vector, within what is not carried; its parts there, and the nodes' vectors."""
        length = jnp.linalg.norm(vector)
        # all is multiplied by the length, so any direction does where it is 0
        start = jnp.where(length > 0, vector / jnp.where(length > 0, length, 1.0), off(jnp.ones_like(vector)))
        found = krylov_space(lambda v: off(shape * product(shape * off(v))), start, order)
        values, vectors = jnp.linalg.eigh(found.matrix)
        return jnp.clip(values, 0.0, highest), length * vectors[0], vectors.T @ found.basis

    @jax.vmap
    def taken_along(key: jax.Array, draw: jax.Array, velocity: jax.Array):
        """A draw after the steps, and the power that its noise shows."""
        kick_key, sum_key = jax.random.split(key)
        kick = spread @ jax.random.normal(kick_key, variances.shape)
        iterate = theta + shape * (modes @ kick) + (draw if own_noise else 0.0)

        def noise(key: jax.Array) -> jax.Array:
            signs = jax.random.rademacher(key, (task.n,), theta.dtype)
            signs = (signs - signs.mean()) / task.n**0.5
            return off(shape * jax.grad(lambda w: signs @ task.per_example_loss(w))(iterate))

        def turned(matrices: jax.Array, parts: jax.Array, basis: jax.Array) -> jax.Array:
            """Each part of the state after a matrix at the nodes of each."""
            own = matrices[..., : len(parts), : len(parts)]
            return jnp.einsum("lial,li,lid->ad", own, parts, basis)

        keys = [sum_key, jax.random.fold_in(sum_key, 1)] if rule.momentum else [sum_key]
        at, parts, basis = seen(jnp.stack([noise(key) for key in keys]))
        power = jax.vmap(_spread, (None, 0, 0))(state.curvatures, at, parts**2).mean(axis=0)
        kicks = turned(_root(p * _over(rule, rate, at, steps, _FORGETS)[1]), parts, basis)
        drawn = [draw / shape, velocity * shape][: len(keys)]
        at, parts, basis = seen(jnp.stack([off(part) for part in drawn]))
        drawn = turned(_over(rule, rate, at, steps, _FORGETS)[0], parts, basis) + kicks
        return shape * drawn[0], drawn[1] / shape if rule.momentum else velocity, power

    numbers = range(1, len(state.draw))
    keys = jnp.stack([key, *(jax.random.fold_in(key, number) for number in numbers)])
    draw, velocity, power = taken_along(keys, state.draw, state.velocity)
    around = jax.vmap(lambda one: (slope(theta + one) + slope(theta - one)) / 2)(draw).mean(axis=0)
    share = 1.0 / jnp.minimum(state.measured + 1, _MEMORY)
    return state._replace(
        power=state.power + share * (power.mean(axis=0) - state.power),
        push=state.push + share * (around - gradient - state.push),
        draw=draw,
        velocity=velocity,
        measured=state.measured + 1,
    )


def _over(rule: LinearRule, rate, curvatures: jax.Array, steps, forgets: float = 0.0):
    """Matrix of some steps on (w, v), and the covariance that noise of unit variance leaves; shapes (..., 2, 2)."""
    step, kick = rule.step(rate, curvatures, jnp)
    step = jnp.array([[1.0 - forgets], [1.0]]) * step

    def once(_, found):
        power, fed = found
        return step @ power, step @ fed @ step.mT + jnp.outer(kick, kick)

    start = jnp.broadcast_to(jnp.eye(2), step.shape)
    return jax.lax.fori_loop(0, steps, once, (start, jnp.zeros_like(step)))


def _root(covariance: jax.Array) -> jax.Array:
    """Triangular root of matrices (..., 2, 2), singular ones too: after one step all noise is along the kick."""
    first = jnp.sqrt(covariance[..., 0, 0])
    mixed = jnp.where(first > 0, covariance[..., 1, 0] / jnp.where(first > 0, first, 1.0), 0.0)
    second = jnp.sqrt(jnp.maximum(covariance[..., 1, 1] - mixed**2, 0.0))
    rows = [jnp.stack([first, jnp.zeros_like(first)], axis=-1), jnp.stack([mixed, second], axis=-1)]
    return jnp.stack(rows, axis=-2)


def _spread(grid: jax.Array, at: jax.Array, weights: jax.Array) -> jax.Array:
    """Weights of points on the grid, by linear interpolation: sums and first moments are kept."""
    upper = jnp.clip(jnp.searchsorted(grid, at), 1, grid.size - 1)
    low, high = grid[upper - 1], grid[upper]
    part = (at - low) / (high - low)
    empty = jnp.zeros(grid.size, weights.dtype)
    return empty.at[upper - 1].add((1.0 - part) * weights).at[upper].add(part * weights)


@partial(jax.jit, static_argnames="rule")
def after(state: Unresolved, rate: float, p: float, steps: int, rule: LinearRule = _PLAIN) -> Unresolved:
    """The state some steps later: every covariance relaxes and is fed.

    Parameters
    ----------
    state : Unresolved
        Now.
    rate, p : float
        Learning rate; variance of a batch mean relative to one example.
    steps : int
        How many.
    rule : LinearRule
        Its step.

    Returns
    -------
    Unresolved
        Then.
    """
    moved, fed = _over(rule, rate, state.curvatures, steps)
    relaxed = moved @ state.variances @ moved.mT
    return state._replace(variances=relaxed + (p * state.power)[:, None, None] * fed)


def excess_loss(state: Unresolved) -> float:
    """What the fluctuation adds to the mean loss: half the sum of curvature times variance."""
    return float(0.5 * jnp.sum(state.curvatures * state.variances[:, 0, 0]))
