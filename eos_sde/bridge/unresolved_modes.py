"""Noise outside the carried Hessian modes: what it adds to a rule's mean loss, and how it pushes the averaged path.

The carried modes are few, and the rest of the space holds as much gradient noise. There the fluctuation is found by
its spectrum only. With C the covariance of the per-example gradients at an iterate (so that the curvature noise of the
fluctuation is in it), P the projection off the carried modes, h a curvature, A(h) the linear step of the rule
on (w, v) and k what a unit of gradient does to them,

    power(h) = density of tr(P C P) over the spectrum of P H P
    S+(h) = A(h) S(h) A(h)' + p power(h) k k'

for the covariance S of (w, v) at each curvature; for SGD its first entry is ``(1 - eta h)^2 S + eta^2 p power``. A rule
with a rate for each weight does so in the coordinates w/shape, where all share one rate.

The density comes by stochastic Lanczos quadrature (Ubaru, Chen and Saad 2017, doi 10.1137/16M1104974) from random sums
of per-example gradients, whose covariance is C: each is one gradient. They also drive linear runs of the rule outside
the carried modes, whose ends are draws of the fluctuation: there the sums come again and again with random signs, a
series for each draw, so that its covariance is ``p sum_t phi_t(H) C phi_t(H)`` with the responses phi_t of the weights
to a kick t steps ago, between unlike curvatures too. The push E[grad L(w + delta)] - grad L(w) is its running mean over
both signs of the draws. They are made anew at every measurement, so that this mean has little scatter; that of a draw
which goes along with the flow would, under momentum, take the path off.

Runs part along flat directions, further than the quadratic model reaches, until the loss itself holds them: it bends
up there, and most where the sharpness rises. So the draws are driven by the Hessian in the mean over the fluctuation
itself, from the last draws and what is carried (statistical linearisation: for a Gaussian fluctuation d, E[d grad L(w +
d)'] is its covariance times E[H(w + d)]). Under momentum, whose steps are long, the far directions are most of the
spread, and d is far from Gaussian. There what holds the draws beyond that Hessian is measured on them as one curvature
that is added to it: for the draws d of now, and the mean Hessian M from those before,

    pull = (E[d . (grad L(w + d) - grad L(w - d))/2] - E[d . M d]) / E|d|^2
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eos_sde.bridge.task_library import Task
from eos_sde.optimizers.curvature.krylov import krylov_space
from eos_sde.training.linear_rules import LinearRule

ORDER = 8  # of the quadrature
_MEMORY = 10  # measurements in a running mean, at most
# A draw forgets within 1/0.02 steps what its curvature does not take back: replicas of a run part for good along flat
# directions, further than the quadratic model reaches, and that is no fluctuation about one path.
FORGETS = 0.02
# Of a draw that is held, which the loss itself takes back. Chosen on digits at batch 4 over 200 and 600 steps: with
# 0.02 the sharpness of iterates is 14 and 18 % low, with 0.007 2 and 7 %; without any its readings scatter by 10 %.
HELD_FORGETS = 0.007
_HISTORY = 200  # steps that a draw remembers at most: 98 % is forgotten by then, of a held one 75 %
AVERAGED = 2  # draws about which, on either side, the Hessian is taken that drives the next
_RATIO = 1e4 ** (1 / 40)  # of neighbours on the grid of curvatures
_FLATTEST = 1e-4  # on it, over what the gradient along it does to the weights in the long run
_PLAIN = LinearRule("sgd")


class Unresolved(NamedTuple):
    """State of the fluctuation outside the carried modes.

    Attributes
    ----------
    curvatures : Array
        A grid, in the coordinates w/shape, shape (m,). Flatter directions diffuse, and negative curvatures are taken as
        flat: what grows there is no fluctuation. (New draws relax there as at curvatures as large, for in the end what
        is beyond the quadratic model holds them.)
    variances : Array
        Covariance of (w, v) in these coordinates, summed over the directions of each curvature, shape (m, 2, 2).
    power : Array
        Running mean of the trace of the gradient noise of one example on the grid.
    push : Array
        Running mean of E[grad L(w + delta)] - grad L(w), shape (d,).
    draw : Array
        Independent draws of the fluctuation, shape (draws, d).
    pull : Array
        Running mean of the curvature that holds the draws beyond the one that drives them, in the coordinates w/shape.
    measured : Array
        Number of measurements.
    """

    curvatures: jax.Array
    variances: jax.Array
    power: jax.Array
    push: jax.Array
    draw: jax.Array
    pull: jax.Array
    measured: jax.Array

    @property
    def holding(self) -> jax.Array:
        """The curvature that is added to what drives the draws: the pull, where it is one."""
        return jnp.maximum(self.pull, 0.0)


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
        How many are made at a time.

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
    return Unresolved(grid, empty, empty[:, 0, 0], drawn[0], drawn, jnp.zeros(()), jnp.zeros((), int))


@partial(jax.jit, static_argnames=("rule", "held"))
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
    sums: Task | None = None,
    held: bool = False,
) -> Unresolved:
    """Measure the spectrum of the noise at an iterate, and make new draws.

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
        Since the checkpoint.
    rule : LinearRule
        Its step.
    shape : float or Array
        Root of each weight's learning rate over `rate`, shape (d,).
    sums : Task, optional
        Another sample of the examples, for the sums of their gradients: what a sample knows of its own is more than
        it knows of the others. `task` if left out.
    held : bool
        Whether the draws are held by `pull` too, and forget less.

    Returns
    -------
    Unresolved
        With the power, push and draw of now in it.
    """
    sums = task if sums is None else sums
    slope = jax.grad(task.loss)
    gradient, product = jax.linearize(slope, theta)
    order = min(ORDER, task.size - modes.shape[1])
    highest = jnp.clip(eigenvalues[-1], 0.0, state.curvatures[-1])
    variances, rotation = jnp.linalg.eigh(covariance)
    spread = rotation * jnp.sqrt(jnp.maximum(variances, 0.0))

    count = len(state.draw)

    kicks = jax.random.normal(jax.random.fold_in(key, count + 1), (AVERAGED, variances.size)) @ spread.T
    turn = (state.measured * AVERAGED + jnp.arange(AVERAGED)) % count
    away = state.draw[turn] + shape * (kicks @ modes.T)
    points = theta + jnp.concatenate([away, -away])
    drive = jax.linearize(lambda w: jax.vmap(slope)(points + w).mean(axis=0), jnp.zeros_like(theta))[1]

    def off(vector: jax.Array) -> jax.Array:
        return vector - modes @ (modes.T @ vector)

    def seen(vector: jax.Array, product: Callable) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Curvatures at the nodes of a vector, up to what is carried; its parts there, and the nodes' vectors."""
        length = jnp.linalg.norm(vector)
        # all is multiplied by the length, so any direction does where it is 0
        start = jnp.where(length > 0, vector / jnp.where(length > 0, length, 1.0), off(jnp.ones_like(vector)))
        found = krylov_space(lambda v: off(shape * product(shape * off(v))), start, order)
        values, vectors = jnp.linalg.eigh(found.matrix)
        return jnp.clip(values, -highest, highest), length * vectors[0], vectors.T @ found.basis

    @jax.vmap
    def noise(key: jax.Array, last: jax.Array) -> tuple:
        """What is seen of a random sum of the gradients at an iterate, by the Hessian at w and by the driving one."""
        kick_key, sum_key, side_key = jax.random.split(key, 3)
        kick = spread @ jax.random.normal(kick_key, variances.shape)
        iterate = theta + shape * (modes @ kick) + jax.random.rademacher(side_key, (), theta.dtype) * last
        signs = jax.random.rademacher(sum_key, (sums.n,), theta.dtype)
        signs = (signs - signs.mean()) / sums.n**0.5
        total = off(shape * jax.grad(lambda w: signs @ sums.per_example_loss(w))(iterate))
        return seen(total, product)[:2], seen(total, drive)

    keys = jnp.stack([key, *(jax.random.fold_in(key, number) for number in range(1, count))])
    (at, parts), driven = noise(keys, state.draw)
    found = jax.vmap(_spread, (None, 0, 0))(state.curvatures, jnp.maximum(at, 0.0), parts**2).mean(axis=0)
    at, parts, basis = driven
    share = 1.0 / jnp.minimum(state.measured + 1, _MEMORY)
    power = state.power + share * (found - state.power)
    # each draw from all sums, brought to their mean size: a single large one would take the path off for good
    sizes = jnp.sum(parts**2, axis=-1, keepdims=True)
    parts *= jnp.sqrt(power.sum() / jnp.where(sizes > 0, sizes, 1.0))
    shuffled = jax.random.fold_in(key, count)
    series = jax.random.rademacher(shuffled, (_HISTORY, count, count, 1), theta.dtype)
    forgets = HELD_FORGETS if held else FORGETS
    left = _driven(rule, rate, jnp.abs(at) + state.holding, series, steps, forgets) * jnp.sqrt(p / count)
    draw = shape * jnp.einsum("mjo,jo,jod->md", left, parts, basis)

    def opposite(one):
        up, down = slope(theta + one), slope(theta - one)
        return (up + down) / 2, one @ ((up - down) / 2 - drive(one)) if held else 0.0

    around, more = (jnp.mean(part, axis=0) for part in jax.vmap(opposite)(draw))
    size = jnp.mean(jnp.sum((draw / shape) ** 2, axis=1))
    pull = more / jnp.where(size > 0, size, 1.0)
    return state._replace(
        power=power,
        push=state.push + share * (around - gradient - state.push),
        pull=state.pull + share * (pull - state.pull),
        draw=draw,
        measured=state.measured + 1,
    )


def _over(rule: LinearRule, rate, curvatures: jax.Array, steps):
    """Matrix of some steps on (w, v), and the covariance that noise of unit variance leaves; shapes (..., 2, 2)."""
    step, kick = rule.step(rate, curvatures, jnp)

    def once(_, found):
        power, fed = found
        return step @ power, step @ fed @ step.mT + jnp.outer(kick, kick)

    start = jnp.broadcast_to(jnp.eye(2), step.shape)
    return jax.lax.fori_loop(0, steps, once, (start, jnp.zeros_like(step)))


def _driven(rule: LinearRule, rate, curvatures: jax.Array, series: jax.Array, steps, forgets) -> jax.Array:
    """What is left in w of the last kicks of a series along the first axis, of which there were so many."""
    step, kick = rule.step(rate, curvatures, jnp)
    step = jnp.array([[1.0 - forgets], [1.0]]) * step
    number = len(series)
    came = jnp.arange(number).reshape(-1, *(1,) * (series.ndim - 1)) >= number - steps

    def once(now, unit):
        return (step @ now[..., None])[..., 0] + kick * unit[..., None], None

    start = jnp.zeros((*jnp.broadcast_shapes(curvatures.shape, series.shape[1:]), 2))
    return jax.lax.scan(once, start, jnp.where(came, series, 0.0))[0][..., 0]


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


def excess_loss(state: Unresolved) -> jax.Array:
    """What the fluctuation adds to the mean loss: half the sum of curvature times variance."""
    return 0.5 * jnp.sum(state.curvatures * state.variances[:, 0, 0])
