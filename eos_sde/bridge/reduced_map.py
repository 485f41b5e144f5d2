"""The reduced map of the sharpest modes: how a rule swings about its averaged path, and what sharpness iterates show.

A flow says where the average of the weights goes, not how the curvature swings about it. Near the edge these swings
decide what a run shows: with several modes there, the largest of their eigenvalues stays above the edge while each is
at it on average. About a point of the averaged path, in the coordinates w/r where the rule has a learning rate of 1,
let x be the deviation along the m sharpest modes U of r H r, q that beside them, and T_ij the gradient of
u_i' r H r u_j. To third order in the loss the rule acts on (x, q) by the gradients

    Lambda x + T[q] x + noise,     A q + (T[x x'] - T[Sigma]) / 2

with Lambda and A the curvatures along U and beside, and Sigma the covariance under which the averaged path moves: q = 0
is that path. One mode and one direction beside it make the self-stabilization map of Damian, Nichani and Lee
(arXiv:2209.15594); the spread of x x' about its mean moves the curvature Lambda + T[q], as the third-order terms
of a network do. The noise has the covariance of the batches' gradients and curvatures in U.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from eos_sde.bridge.averaged_path import fluctuation_draws, sharpness_beside
from eos_sde.bridge.spectrum import curvature_gradients, hessian_products
from eos_sde.bridge.state_covariance import state_recursion
from eos_sde.bridge.task_library import Task
from eos_sde.training.linear_rules import LinearRule, linear_rule

_SHARP = 6  # modes at most; those well below the edge change little
_DESCENT = linear_rule("gd")
_RUNS, _STEPS, _SETTLING = 16, 300, 100
PAIRS = 4  # of opposite points at which the network's own curvature is read
# The map's own fluctuation may differ a little from that of the path, which drives flat directions far; after so many
# steps all but the modes at the edge have settled to it, and those are held there by the curvature that they move.
_BALANCED = 20
_DRAWN = 64  # examples that make the noise of a batch, at most: their mean is as good as Gaussian


class ReducedMap(NamedTuple):
    """The rule about one point of its averaged path, to third order of the loss.

    Attributes
    ----------
    eigenvalues : Array
        Lambda, of r H r along the sharpest modes, shape (m,).
    turning : Array
        T_ij in the basis, shape (m, m, s).
    basis : Array
        Orthonormal directions beside the modes that T reaches, in the coordinates w/r, shape (d, s).
    hessian : Array
        A, of r H r in the basis, shape (s, s).
    """

    eigenvalues: jax.Array
    turning: jax.Array
    basis: jax.Array
    hessian: jax.Array


def sharp_modes(size: int, carried: int) -> int:
    """Modes of the map: as many as may swing at the edge, and room beside them in the weights.

    Parameters
    ----------
    size, carried : int
        Weights, and modes that are known.

    Returns
    -------
    int
        At least 1.
    """
    return max(1, min(_SHARP, carried, size // 2))


class Swings(NamedTuple):
    """What the map does once settled.

    Attributes
    ----------
    along, beside : Array
        x and q at the end of every run, shapes (runs, m) and (runs, s).
    tops : Array
        Largest eigenvalue of Lambda + T[q] there, shape (runs,).
    mean_tops : Array
        Its mean over time in every run, shape (runs,); NaN of a run that left the cubic model.
    """

    along: jax.Array
    beside: jax.Array
    tops: jax.Array
    mean_tops: jax.Array


@jax.jit
def reduced_map(task: Task, theta, eigenvalues, modes, scale) -> ReducedMap:
    """The map about a point.

    Parameters
    ----------
    task : Task
        The training problem.
    theta : Array
        Averaged weights, shape (d,).
    eigenvalues, modes : Array
        Sharpest of r H r, shapes (m,) and (d, m), orthonormal.
    scale : Array
        r, square roots of the rates, shape (d,).

    Returns
    -------
    ReducedMap
        Its basis spans the gradients of the curvatures and their products with the Hessian.
    """
    m = modes.shape[1]
    products = partial(hessian_products, task, theta, scale=scale)
    turning = scale * curvature_gradients(task, theta, scale[:, None] * modes)
    rows, columns = jnp.triu_indices(m)
    spread = turning[rows, columns].T
    spread -= modes @ (modes.T @ spread)
    basis = jnp.linalg.qr(jnp.concatenate([modes, spread, products(spread)], axis=1))[0][:, m:]
    hessian = basis.T @ products(basis)
    return ReducedMap(eigenvalues, turning @ basis, basis, (hessian + hessian.T) / 2)


@partial(jax.jit, static_argnames="rule")
def swings(around: ReducedMap, rule: LinearRule, noise, covariance, key, forgets: float = 0.0) -> Swings:
    """Run the map until it has settled.

    Parameters
    ----------
    around : ReducedMap
        The map.
    rule : LinearRule
        The step, at a learning rate of 1.
    noise : tuple
        Per-example gradients (n, m) and curvatures (n, m, m) along the modes, and p, the variance of a batch mean
        relative to one example: 0 of full batches.
    covariance : Array
        Of (x, v) along the averaged path, shape (m, 2, m, 2).
    key : Array
        Random key.
    forgets : float
        Part of q that a step takes back, in flat directions too. Runs under noise part there for good, which is no
        fluctuation about one path: as in `unresolved_modes`.

    Returns
    -------
    Swings
        Of 16 runs.
    """
    curvature, turning = around.eigenvalues, around.turning
    gradients, bends, p = noise
    gradients, bends = gradients - gradients.mean(axis=0), bends - bends.mean(axis=0)
    n, m = gradients.shape
    drawn = min(n, _DRAWN)
    linear = state_recursion(rule, curvature, gradients, bends, p)
    covariance = linear.after(covariance, _BALANCED)
    balance = jnp.einsum("ijs,ij->s", turning, covariance[:, 0, :, 0]) / 2
    b, limit = rule.momentum, jnp.abs(curvature[0])
    pull = forgets * (1.0 - b) / rule.gain  # a force acts b/(1 - b) times more

    def moved(place, velocity, gradient):
        velocity = b * velocity + rule.gain * gradient
        return place - (rule.gain * gradient + b * velocity if rule.nesterov else velocity), velocity

    def step(carry, key):
        x, vx, q, vq, lost = carry
        batch = jax.random.randint(key, (drawn,), 0, n)
        kick = (p * drawn) ** 0.5 * (gradients[batch].mean(axis=0) + bends[batch].mean(axis=0) @ x)
        turned = turning @ q
        lost |= ~(jnp.linalg.norm(turned) < limit)
        later = (
            *moved(x, vx, curvature * x + turned @ x + kick),
            *moved(
                q,
                vq,
                around.hessian @ q + pull * q + jnp.einsum("ijs,i,j->s", turning, x, x) / 2 - balance,
            ),
        )
        # a lost run rests where it was: its numbers would overflow
        x, vx, q, vq = (jnp.where(lost, old, new) for old, new in zip(carry, later, strict=False))
        return (x, vx, q, vq, lost), largest(q)

    def largest(q):
        return jnp.linalg.eigvalsh(jnp.diag(curvature) + turning @ q)[-1]

    def run(start, key):
        still = jnp.zeros(turning.shape[-1])
        begin = (*start.reshape(m, 2).T, still, still, jnp.array(False))
        (x, _, q, _, lost), tops = jax.lax.scan(step, begin, jax.random.split(key, _STEPS))
        return x, q, largest(q), jnp.where(lost, jnp.nan, tops[_SETTLING:].mean())

    start_key, run_key = jax.random.split(key)
    variances, rotation = jnp.linalg.eigh(covariance.reshape(2 * m, 2 * m))
    starts = jax.random.normal(start_key, (_RUNS, 2 * m)) * jnp.sqrt(jnp.maximum(variances, 0.0)) @ rotation.T
    return Swings(*jax.vmap(run)(starts, jax.random.split(run_key, _RUNS)))


def without_noise(m: int, size: int) -> dict[str, Any]:
    """Arguments of `sharpness_of_iterates` for full batches: no noise, and nothing that fluctuates beside the map.

    Parameters
    ----------
    m, size : int
        Modes of the map, and weights.

    Returns
    -------
    dict
        ``noise`` and ``others``.
    """
    return {
        "noise": (jnp.zeros((1, m)), jnp.zeros((1, m, m)), 0.0),
        "others": jnp.zeros((2 * PAIRS, size)),
    }


def leading(covariance: ArrayLike, m: int) -> jax.Array:
    """Covariance of the first modes, shape (m, m), from that of fewer or more; none of those that are missing."""
    known = jnp.asarray(covariance)[:m, :m]
    return jnp.zeros((m, m)).at[: len(known), : len(known)].set(known)


def iterates_sharpness(
    task: Task, theta, eigenvalues, modes, *, eta: float, noise, covariance, others, key, forgets: float = 0.0
) -> tuple[float, float]:
    """Top eigenvalue of the Hessian at single iterates of (stochastic) gradient descent, in the mean.

    As `sharpness_of_iterates`, all in the coordinates of the weights.

    Parameters
    ----------
    task : Task
        The training problem.
    theta : Array
        Averaged weights, shape (d,).
    eigenvalues, modes : Array
        The sharpest of the Hessian, shapes (m,) and (d, m).
    eta : float
        Learning rate.
    noise : tuple
        Per-example gradients (n, m) and curvatures (n, m, m) along the modes, and p, as for `swings`.
    covariance : Array
        Of the weights along the modes on the averaged path, shape (m, m).
    others : Array
        Opposite pairs of what fluctuates beside the map, in the weights, shape (2 pairs, d), first all of one sign.
    key : Array
        Random key.
    forgets : float
        As for `swings`.

    Returns
    -------
    value, stderr : float
        In units of curvature; the error of so few runs and points.
    """
    m, scale = modes.shape[1], eta**0.5
    gradients, curvatures, p = noise
    return sharpness_of_iterates(
        task, theta, eta * eigenvalues, modes, _DESCENT, scale=jnp.full(task.size, scale), top=eigenvalues[0],
        vectors=modes, noise=(scale * gradients, eta * curvatures, p), others=others, key=key, forgets=forgets,
        covariance=jnp.zeros((m, 2, m, 2)).at[:, 0, :, 0].set(covariance / eta),
    )  # fmt: skip


def sharpness_of_iterates(
    task: Task, theta, eigenvalues, modes, rule: LinearRule, *, scale, top, vectors, noise, covariance, others,
    key, forgets: float = 0.0,
) -> tuple[float, float]:  # fmt: skip
    """Top eigenvalue of the Hessian at single iterates of a rule, in the mean.

    The long mean over the map's runs, corrected by what the network's own Hessian has more at a few of its points: of
    the map only how it swings is taken, also where the rates of the weights differ and its eigenvalues are of r H r.

    Parameters
    ----------
    task : Task
        The training problem.
    theta : Array
        Averaged weights, shape (d,).
    eigenvalues, modes : Array
        Sharpest of r H r, shapes (m,) and (d, m), orthonormal.
    rule : LinearRule
        The step, at a learning rate of 1.
    scale : Array
        r, square roots of the rates, shape (d,).
    top, vectors : Array
        Top eigenvalue of H at the averaged weights, and a block (d, k) with its eigenvector.
    noise, covariance, forgets
        As for `swings`.
    others : Array
        Opposite pairs of what fluctuates beside the map, in the weights, shape (2 pairs, d), first all of one sign.
    key : Array
        Random key.

    Returns
    -------
    value, stderr : float
        In units of curvature; the error of so few runs and points. Where most runs left the cubic model it is that of
        Gaussian fluctuations with the covariance of the path.
    """
    pairs, axes = others.shape[0] // 2, scale[:, None] * modes
    around = reduced_map(task, theta, eigenvalues, modes, scale)
    found = swings(around, rule, noise, covariance, key, forgets)
    known = jnp.flatnonzero(jnp.isfinite(found.mean_tops))
    if known.size < _RUNS // 2:
        points = fluctuation_draws(axes, covariance[:, 0, :, 0], key, pairs) + others
        seen = sharpness_beside(task, theta, vectors, points).reshape(2, pairs).mean(axis=0)
        return float(seen.mean()), float(seen.std(ddof=1) / pairs**0.5)
    used = known[jnp.arange(pairs) % known.size]
    along = found.along[used] @ axes.T
    beside = scale * (found.beside[used] @ around.basis.T)
    points = jnp.concatenate([beside + along, beside - along]) + others
    seen = sharpness_beside(task, theta, vectors, points).reshape(2, pairs).mean(axis=0)
    unit = top / eigenvalues[0]
    more = seen - unit * found.tops[used]
    level = unit * found.mean_tops[known]
    error = (level.var(ddof=1) / known.size + more.var(ddof=1) / pairs) ** 0.5
    return float(level.mean() + more.mean()), float(error)
