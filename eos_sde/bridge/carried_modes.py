"""How many Hessian modes a flow carries: enough that most of the fluctuation's share of the loss is within them.

Within the modes the fluctuation is known by its whole covariance, outside by its spectrum and one draw of it. What is
outside is found from that spectrum, so the choice needs no trial run.
"""

import jax
import jax.numpy as jnp

from eos_sde.bridge.averaged_path import count_critical, stable_stride
from eos_sde.bridge.covariance import covariance_recursion, per_example_modes
from eos_sde.bridge.spectrum import most_modes, top_modes
from eos_sde.bridge.task_library import Task
from eos_sde.bridge.unresolved_modes import after, excess_loss, measured, quiet

USUAL = 16  # where nothing is known of the fluctuation
_CHOICES = (8, 16, 32)  # few: every number is compiled for
_OUTSIDE = 0.4  # of the excess loss, at most
_LOOKS = 4  # random sums of gradients in the mean


def usual_modes(task: Task, modes: int | None) -> int:
    """A number of modes as given, or as many as are usual and the weights allow.

    Parameters
    ----------
    task : Task
        The training problem.
    modes : int or None
        As given.

    Returns
    -------
    int
        At least 1.
    """
    return min(USUAL, most_modes(task.size)) if modes is None else modes


@jax.jit
def _within(task: Task, theta, values, modes, eta, p, horizon):
    """Covariance in modes after some steps, and what it adds to the loss."""
    gradients, curvatures = per_example_modes(task, theta, modes)
    recursion = covariance_recursion(values, gradients, curvatures, eta=eta, p=p)
    covariance = recursion.after(jnp.zeros((values.size, values.size)), horizon)
    return covariance, 0.5 * values @ jnp.diag(covariance)


def _excess(task: Task, theta, values, modes, key, eta, p, horizon):
    """What the fluctuation adds to the loss after some steps, within modes and outside."""
    covariance, within = _within(task, theta, values, modes, eta, p, horizon)
    outside = quiet(task.size, eta, draws=_LOOKS)
    # as the flow calls it, which then has it compiled
    outside = measured(outside, task, theta, modes, values, covariance, key, eta, p, 0, sums=task)
    return within, excess_loss(after(outside, eta, p, horizon))


def enough_modes(
    task: Task, theta: jax.Array, *, eta: float, p: float, horizon: int, stride: int, seed: int
) -> jax.Array:
    """The fewest of 8, 16 and 32 modes outside which at most 40 % of the excess loss is.

    And at least twice those at the edge, and so many that what is outside them does not shorten the steps of the flow.

    Parameters
    ----------
    task : Task
        The training problem.
    theta : Array
        Weights, shape (d,).
    eta, p : float
        Learning rate; variance of a batch mean relative to one example.
    horizon : int
        Steps in which the fluctuation grows.
    stride : int
        Steps of the rule per step of the flow.
    seed : int
        Of the random sums of gradients.

    Returns
    -------
    Array
        The modes, shape (d, k), fewer than 8 where the weights allow no more.
    """
    *choices, last = sorted({min(choice, most_modes(task.size)) for choice in _CHOICES})
    for count in choices:
        values, modes, _ = top_modes(task, theta, count, tol=1e-3)
        within, outside = _excess(task, theta, values, modes, jax.random.key(seed), eta, p, horizon)
        small = outside <= _OUTSIDE * (within + outside) and 2 * count_critical(values, eta) <= count
        if small and stable_stride(values, eta, stride) == stride:
            return modes
    return top_modes(task, theta, last, tol=1e-3)[1]
