"""What CAEO does on a network in every region of its stability map: diverged, as SGD, run away, or held."""

from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from eos_sde.bridge.averaged_path import checked_weights
from eos_sde.bridge.batches import draw_batches, stream
from eos_sde.bridge.caeo_boundary import BINDING, DEVIATIONS, NEVER, capped_runs, wilson
from eos_sde.bridge.cells import check_counts
from eos_sde.bridge.precision import double_precision
from eos_sde.bridge.task_library import Task
from solvers.errors import InvalidInput
from solvers.provenance import provenance

OUTCOMES = ("held", "runaway", "diverged", "uncapped")
"""Meanings of the numbers 0, 1, ... in ``outcome``.

diverged: a number is not finite, or the mean loss of the last tenth is ten times that at the start; uncapped: the cap
never bound, and every update is SGD's; runaway: as for `measure_caeo_boundary`, above SGD's own plateau, or where SGD
diverges at that rate, above the edge at the base rate and above where the run began; held: none of these."""
_OUTGROWN = 10.0


@double_precision
def measure_caeo_regimes(
    task: Task,
    start: ArrayLike,
    *,
    eta_base: Sequence[float],
    batch_size: int,
    deltas: Sequence[float],
    steps: int,
    replicas: int = 4,
    seed: int = 0,
    order: int = 4,
    progress: Callable[[float], None] | None = None,
) -> xr.Dataset:
    """Train under CAEO at several base rates and margins, of any sign, and say what became of each run.

    Parameters
    ----------
    task : Task
        The training problem.
    start : array
        Weights, shape (d,).
    eta_base : sequence of float
        Base learning rates; SGD is run at each.
    batch_size : int
        B.
    deltas : sequence of float
        Margins of the rule, each below 2.
    steps : int
        Of each run, at least 30.
    replicas : int
        Runs of each kind, at least 2, that share their batches with those at other margins.
    seed : int
        Of the batches.
    order : int
        Hessian products in each estimate of the sharpness.
    progress : callable, optional
        Called with the fraction done.

    Returns
    -------
    Dataset
        Over (eta_base, delta, replica): ``outcome``, a number of `OUTCOMES`, ``capped`` (share of all updates) and
        ``late_sharpness`` (1/time). Over (outcome, eta_base, delta): ``share`` with ``share_low`` and ``share_high``
        (Wilson, 95 %). Over (eta_base, replica): ``sgd_diverged``.

    Raises
    ------
    InvalidInput
        If a number is out of range.
    """
    check_counts(steps=(steps, 30), replicas=(replicas, 2), order=(order, 2), batch_size=(batch_size, 1))
    margins, rates = np.asarray(deltas, float), np.asarray(eta_base, float)
    for name, values, sound in (
        ("deltas", margins, margins < 2),
        ("eta_base", rates, (rates > 0) & np.isfinite(rates)),
    ):
        if values.ndim != 1 or values.size == 0 or not np.all(sound):
            wanted = "margins below 2" if name == "deltas" else "positive learning rates"
            raise InvalidInput(f"{name}={values.tolist()} must be {wanted}, at least one")
    if batch_size > task.n:
        raise InvalidInput(f"batch_size={batch_size} must be at most the {task.n} examples of {task.name}")
    theta = checked_weights(task, start)
    first = float(task.loss(theta))
    batches = np.stack([
        draw_batches(stream(seed, 0, r), steps, examples=task.n, batch_size=batch_size)
        for r in range(replicas)
    ])  # fmt: skip
    shape = (rates.size, margins.size, replicas)
    outcome, capped, late = np.empty(shape, int), np.empty(shape), np.empty(shape)
    lost = np.empty((rates.size, replicas), bool)
    for i, eta in enumerate(rates):
        plain = tuple(np.asarray(v) for v in capped_runs(task, order)(theta, eta, NEVER, batches))
        lost[i] = diverged(plain[0], plain[2], first)
        level = _level(plain[0], eta, lost[i])
        for j, delta in enumerate(margins):
            run = (np.asarray(v) for v in capped_runs(task, order)(theta, eta, float(delta), batches))
            outcome[i, j], capped[i, j], late[i, j] = _outcomes(*run, eta=eta, level=level, first=first)
            if progress is not None:
                progress((i * margins.size + j + 1) / (rates.size * margins.size))
    counts = np.stack([(outcome == k).sum(axis=-1) for k in range(len(OUTCOMES))])
    low, high = wilson(counts, replicas)
    every, table = ("eta_base", "delta", "replica"), ("outcome_name", "eta_base", "delta")
    contents = {
        "outcome": (every, outcome, "1", "what became of the run"),
        "capped": (every, capped, "1", "share of capped updates"),
        "late_sharpness": (every, late, "1/time", "mean sharpness over the last tenth"),
        "share": (table, counts / replicas, "1", "share of the runs"),
        "share_low": (table, low, "1", "lower end of its 95 % interval (Wilson)"),
        "share_high": (table, high, "1", "upper end of its 95 % interval (Wilson)"),
        "sgd_diverged": (("eta_base", "replica"), lost, "1", "whether SGD diverged at the base rate"),
    }
    result = xr.Dataset(
        {name: (dims, v, {"units": u, "long_name": text}) for name, (dims, v, u, text) in contents.items()},
        coords={
            "outcome_name": ("outcome_name", list(OUTCOMES), {"units": "1", "long_name": "outcome"}),
            "eta_base": ("eta_base", rates, {"units": "time", "long_name": "base learning rate"}),
            "delta": ("delta", margins, {"units": "1", "long_name": "margin delta"}),
        },
        attrs=provenance(task=task.name, batch_size=batch_size, steps=steps, replicas=replicas, seed=seed),
    )
    result["outcome"].attrs |= {"flag_values": np.arange(len(OUTCOMES)), "flag_meanings": " ".join(OUTCOMES)}
    return result


def diverged(sharpness: NDArray, loss: NDArray, first: float) -> NDArray:
    """Which runs diverged.

    Parameters
    ----------
    sharpness, loss : ndarray (runs, steps)
        The loss is that of each batch.
    first : float
        Loss at the start.

    Returns
    -------
    ndarray of bool (runs,)
    """
    steps = loss.shape[-1]
    sound = np.isfinite(sharpness).all(axis=-1) & np.isfinite(loss).all(axis=-1)
    late = np.where(np.isfinite(loss), loss, 0.0)[..., steps - steps // 10 :].mean(axis=-1)
    return ~(sound & (late <= _OUTGROWN * first))


def _level(sharpness: NDArray, eta: float, lost: NDArray) -> float:
    """Sharpness from which on a run counts as run away."""
    if lost.any():
        return max(2.0 / eta, float(sharpness[0, 0]))
    last = sharpness[:, 2 * sharpness.shape[1] // 3 :]
    return float(last.mean() + DEVIATIONS * last.std(ddof=1))


def _outcomes(
    sharpness: NDArray, rate: NDArray, loss: NDArray, *, eta: float, level: float, first: float
) -> tuple[NDArray, NDArray, NDArray]:
    """Outcome, share of capped updates and late sharpness of each run."""
    steps = rate.shape[-1]
    binds = rate < eta * (1 - 1e-9)
    late = sharpness[:, steps - steps // 10 :].mean(axis=-1)
    away = (binds[:, 2 * steps // 3 :].mean(axis=-1) > BINDING) & (late > level)
    result = np.where(away, OUTCOMES.index("runaway"), OUTCOMES.index("held"))
    result = np.where(binds.any(axis=-1), result, OUTCOMES.index("uncapped"))
    gone = diverged(sharpness, loss, first)
    return np.where(gone, OUTCOMES.index("diverged"), result), binds.mean(axis=-1), late
