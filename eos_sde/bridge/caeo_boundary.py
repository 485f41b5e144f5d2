"""Where CAEO runs away on a network: runs at several margins, judged against SGD's own plateau."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import jax
import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from eos_sde.bridge.averaged_path import checked_weights
from eos_sde.bridge.batches import draw_batches, stream
from eos_sde.bridge.cells import check_counts
from eos_sde.bridge.precision import double_precision
from eos_sde.bridge.task_library import Task
from eos_sde.optimizers import caeo, curvature
from eos_sde.thresholds.result import Threshold
from solvers.errors import InvalidInput
from solvers.provenance import provenance

DEVIATIONS = 5.0
"""How far above SGD's plateau, in standard deviations of its sharpness, a run counts as run away."""
BINDING = 0.9
"""Share of the last third of the updates whose rate is capped, from which on the cap binds nearly always."""
NEVER = -1e9
"""A margin at which the cap never binds: SGD."""
_CHI2 = 1.92  # half the 95 % quantile of chi^2 with one degree of freedom
_WIDTHS = np.geomspace(0.02, 0.6, 25)  # of the transition, in log(delta)


@double_precision
def measure_caeo_boundary(
    task: Task,
    start: ArrayLike,
    *,
    eta: float,
    batch_size: int,
    deltas: Sequence[float],
    steps: int,
    replicas: int = 4,
    seed: int = 0,
    order: int = 4,
    deviations: float = DEVIATIONS,
    progress: Callable[[float], None] | None = None,
) -> xr.Dataset:
    """Train under CAEO at several margins, and under SGD at the base rate, and count the runs that ran away.

    A run has run away if the cap bound in more than 90 % of the last third of its updates and the mean of its
    sharpness over the last tenth lies more than `deviations` standard deviations above the mean of SGD's over the
    last third. The cap is that of the sharpness of the full loss, as `record` hands it to the rule.

    Parameters
    ----------
    task : Task
        The training problem.
    start : array
        Weights, shape (d,).
    eta : float
        Base learning rate.
    batch_size : int
        B.
    deltas : sequence of float
        Margins of the rule, each in (0, 2).
    steps : int
        Of each run, at least 30.
    replicas : int
        Runs at each margin, at least 2. They share their batches with those at other margins.
    seed : int
        Of the batches.
    order : int
        Hessian products in each estimate of the sharpness, whose vector is kept from step to step.
    deviations : float
        See above.
    progress : callable, optional
        Called with the fraction done.

    Returns
    -------
    Dataset
        Over ``delta``: ``runs_away`` (count), ``share``, ``share_low`` and ``share_high`` (Wilson, 95 %). Over
        (delta, replica): ``late_sharpness`` (1/time), ``capped`` (share of the last third). ``plateau`` and
        ``plateau_deviation``: mean and deviation of SGD's sharpness.

    Raises
    ------
    InvalidInput
        If a number is out of range.
    """
    check_counts(steps=(steps, 30), replicas=(replicas, 2), order=(order, 2), batch_size=(batch_size, 1))
    margins = np.asarray(deltas, float)
    if margins.ndim != 1 or margins.size == 0 or not np.all((margins > 0) & (margins < 2)):
        raise InvalidInput(f"deltas={deltas!r} must be margins between 0 and 2")
    if batch_size > task.n:
        raise InvalidInput(f"batch_size={batch_size} must be at most the {task.n} examples of {task.name}")
    theta = checked_weights(task, start)
    batches = np.stack([
        draw_batches(stream(seed, 0, r), steps, examples=task.n, batch_size=batch_size)
        for r in range(replicas)
    ])  # fmt: skip
    sharpness, rate = np.empty((2, margins.size + 1, replicas, steps))
    for i, delta in enumerate([NEVER, *margins]):
        sharpness[i], rate[i] = capped_runs(task, order)(theta, eta, float(delta), batches)[:2]
        if progress is not None:
            progress((i + 1) / (margins.size + 1))
    if not np.all(np.isfinite(sharpness)):
        raise InvalidInput(f"runs at eta={eta} diverged; lower it")
    last, end = slice(2 * steps // 3, None), slice(steps - steps // 10, None)
    plateau, deviation = float(sharpness[0, :, last].mean()), float(sharpness[0, :, last].std(ddof=1))
    late = sharpness[1:, :, end].mean(axis=-1)
    capped = np.mean(rate[1:, :, last] < eta * (1 - 1e-9), axis=-1)
    away = (capped > BINDING) & (late > plateau + deviations * deviation)
    counts = away.sum(axis=1)
    low, high = wilson(counts, replicas)
    dims = ("delta", "replica")
    contents = {
        "runs_away": ("delta", counts, "1", "runs that ran away"),
        "share": ("delta", counts / replicas, "1", "share of the runs that ran away"),
        "share_low": ("delta", low, "1", "lower end of its 95 % interval (Wilson)"),
        "share_high": ("delta", high, "1", "upper end of its 95 % interval (Wilson)"),
        "late_sharpness": (dims, late, "1/time", "mean sharpness over the last tenth"),
        "capped": (dims, capped, "1", "share of capped updates in the last third"),
        "plateau": ((), plateau, "1/time", "mean sharpness of SGD over the last third"),
        "plateau_deviation": ((), deviation, "1/time", "standard deviation of SGD's sharpness"),
    }
    return xr.Dataset(
        {name: (dim, v, {"units": u, "long_name": text}) for name, (dim, v, u, text) in contents.items()},
        coords={"delta": ("delta", margins, {"units": "1", "long_name": "margin delta"})},
        attrs=provenance(
            task=task.name, eta=eta, batch_size=batch_size, steps=steps, replicas=replicas, seed=seed,
            deviations=deviations,
        ),
    )  # fmt: skip


@lru_cache(maxsize=8)
def capped_runs(task: Task, order: int) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
    """Compiled runs: (weights, base rate, margin, batches) -> sharpness, rate and batch loss of each update."""
    estimator = curvature.lanczos(order=order)

    def run(
        theta: jax.Array, eta: jax.Array, delta: jax.Array, batches: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        optimizer = caeo(eta, delta=delta, curvature=estimator, refresh=1)  # pyright: ignore[reportArgumentType]

        def step(carry: tuple, batch: jax.Array) -> tuple:
            theta, state = carry
            loss, gradient = jax.value_and_grad(task.loss)(theta, task.x[batch], task.y[batch])
            updates, state = optimizer.update(gradient, state, theta, value_fn=task.loss)
            return (theta + updates, state), (state.sharpness, state.learning_rate, loss)

        return jax.lax.scan(step, (theta, optimizer.init(theta)), batches)[1]

    return jax.jit(jax.vmap(run, in_axes=(None, None, None, 0)))


def wilson(counts: ArrayLike, total: int) -> tuple[NDArray, NDArray]:
    """95 % intervals of binomial shares (Wilson 1927).

    Parameters
    ----------
    counts : array_like of int
        Successes.
    total : int
        Trials.

    Returns
    -------
    low, high : ndarray
    """
    share, z = np.asarray(counts) / total, float(norm.ppf(0.975))
    middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)


def boundary_from_counts(deltas: ArrayLike, counts: ArrayLike, total: int) -> tuple[Threshold, float, float]:
    """Margin at which half of the runs run away, from counts at several margins.

    The share is taken as Phi((log delta - log delta_c)/w) with an unknown width w from 0.02 to 0.6; the interval is
    that of the profile likelihood, which stays finite where no margin has runs of both kinds.

    Parameters
    ----------
    deltas : array_like
        Margins, increasing.
    counts : array_like of int
        Runs that ran away at each.
    total : int
        Runs at each.

    Returns
    -------
    onset : Threshold
        Its stderr is a quarter of the interval's width.
    low, high : float
        95 % interval; its ends are at most a factor of 2 beyond the margins that were run, where it is open.

    Raises
    ------
    InvalidInput
        If all runs or none ran away: the boundary is beyond the margins.
    """
    x, k = np.log(np.asarray(deltas, float)), np.asarray(counts)
    if k.sum() == 0 or k.sum() == total * k.size:
        which = "none" if k.sum() == 0 else "all"
        raise InvalidInput(f"{which} of the runs ran away: the boundary is outside deltas; widen them")

    grid = np.linspace(x[0] - math.log(2), x[-1] + math.log(2), 1001)
    score = (x - grid[:, None, None]) / _WIDTHS[:, None]
    terms = k * norm.logcdf(score) + (total - k) * norm.logcdf(-score)
    deviance = -terms.sum(axis=2).max(axis=1)  # at the best width
    inside = grid[deviance <= deviance.min() + _CHI2]
    # where no margin has runs of both kinds the likelihood has a plateau: its middle
    best = float(grid[deviance <= deviance.min() + 1e-6].mean())
    low, high = math.exp(inside[0]), math.exp(inside[-1])
    return (
        Threshold(
            math.exp(best), (high - low) / 4, "runaway within the horizon", "maximum likelihood, runs", ""
        ),
        low,
        high,
    )
