"""A network's loss along a line: per-example slopes, tabulated, and SGD restricted to the line."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numba import njit
from scipy.optimize import root_scalar

from eos_sde.bridge.precision import double_precision
from eos_sde.bridge.task_library import Task
from solvers.errors import InvalidInput


class Line(NamedTuple):
    """Slopes of each example's loss along a line through a network.

    Attributes
    ----------
    points : ndarray
        Equally spaced positions, shape (m,), in units of the weights, 0 at the line's minimum.
    slopes : ndarray
        Shape (n, m).
    """

    points: np.ndarray
    slopes: np.ndarray


@partial(jax.jit, static_argnames="task")
def _slopes(task: Task, theta, direction, points):
    def at(s):
        return jax.jvp(lambda r: task.per_example_loss(theta + r * direction), (s,), (jnp.ones_like(s),))[1]

    return jax.lax.map(at, points, batch_size=8)


@double_precision
def line_minimum(task: Task, theta, direction, reach: float) -> float:
    """Position of the minimum of the loss along a line, nearest to 0.

    Parameters
    ----------
    task : Task
        The training problem.
    theta, direction : array
        Weights and unit vector, shape (d,).
    reach : float
        The minimum is sought at distances up to this.

    Returns
    -------
    float
        The position.

    Raises
    ------
    InvalidInput
        If the slope has no upward zero within reach.
    """
    points = np.linspace(-reach, reach, 65)
    slope = np.asarray(_slopes(task, jnp.asarray(theta), jnp.asarray(direction), jnp.asarray(points))).mean(
        axis=1
    )
    upward = np.flatnonzero((slope[:-1] < 0) & (slope[1:] >= 0))
    if upward.size == 0:
        raise InvalidInput(
            f"the loss along the line has no minimum within {reach:.3g}; train the network further"
        )
    i = upward[np.argmin(np.abs(points[upward]))]

    def exact(s: float) -> float:
        one = _slopes(task, jnp.asarray(theta), jnp.asarray(direction), jnp.full(65, s))
        return float(np.asarray(one)[0].mean())

    return float(root_scalar(exact, bracket=(points[i], points[i + 1]), xtol=1e-12).root)


@double_precision
def tabulate_line(task: Task, theta, direction, reach: float, points: int = 801) -> Line:
    """Per-example slopes at equally spaced points of a line through theta.

    Parameters
    ----------
    task : Task
        The training problem.
    theta, direction : array
        The minimum along the line and its unit vector, shape (d,).
    reach : float
        Positions from -reach to reach.
    points : int
        Linear interpolation between them errs by (spacing)^2/8 times the third derivative.

    Returns
    -------
    Line
        The table.
    """
    positions = np.linspace(-reach, reach, points)
    slopes = _slopes(task, jnp.asarray(theta), jnp.asarray(direction), jnp.asarray(positions))
    return Line(positions, np.ascontiguousarray(np.asarray(slopes).T))


@njit(nogil=True)
def _walk(slopes, low, spacing, start, eta, batch_size, steps, save, rng):
    """SGD along the line, one replica after another; amplitudes (-1)^k x_k at the saved steps.

    A batch is the head of a permutation that is reshuffled in place, so it has no repeated example. A replica
    that leaves the table is marked NaN from then on.
    """
    n, m = slopes.shape
    out = np.full((start.size, save.size), np.nan)
    order = np.arange(n)
    for r in range(start.size):
        x = start[r]
        at = 0
        for k in range(steps + 1):
            if at < save.size and save[at] == k:
                out[r, at] = x if k % 2 == 0 else -x
                at += 1
            place = (x - low) / spacing
            if not 0.0 <= place < m - 1:
                break
            cell = int(place)
            weight = place - cell
            total = 0.0
            for b in range(batch_size):
                other = b + int(rng.random() * (n - b))
                order[b], order[other] = order[other], order[b]
                row = order[b]
                total += (1.0 - weight) * slopes[row, cell] + weight * slopes[row, cell + 1]
            x -= eta * total / batch_size
    return out


def sgd_on_line(
    line: Line, start: np.ndarray, *, eta: float, batch_size: int, save: np.ndarray, seed: int
) -> np.ndarray:
    """The network's own SGD, restricted to the line: real per-example slopes, real batches.

    Parameters
    ----------
    line : Line
        The table.
    start : array
        Positions, shape (replicas,).
    eta, batch_size
        Of the rule; batches without replacement.
    save : array of int
        Increasing steps at which to keep the amplitude.
    seed : int
        Of the batches (Philox).

    Returns
    -------
    ndarray
        (-1)^k x_k, shape (replicas, len(save)); NaN once a replica left the table.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    save = np.asarray(save, dtype=np.int64)
    low, spacing = float(line.points[0]), float(line.points[1] - line.points[0])
    start = np.ascontiguousarray(start, dtype=np.float64)
    return _walk(line.slopes, low, spacing, start, eta, batch_size, int(save[-1]), save, rng)
