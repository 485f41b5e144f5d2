"""CAEO's stability map of a network, from the stochastic central flow of plain SGD and the reduced model.

The well of the reduced model takes two numbers. Its depth is set by the distance g from the edge at which noise holds
the sharpness of single iterates: under a cap at 2 - delta the rate falls below eta_base, and with it the gap that the
noise can hold, so that the sharpness rises for good once delta > g. g is that of the flow, which knows of all modes,
and of the fluctuation of the sharpness that the rule sees. Only where the flow does not resolve it is it that of the
one-direction law, at the flow's plateau, which is exact for small noise. The speed is eta_base^2 alpha, with alpha
calibrated along the flow: at a checkpoint early in training it is many times larger.

The sharpness is that of the full loss, which is what `record` hands to the rule. A rule that sees the Hessian of its
batch alone caps by a number that is larger by a share x (`batch_excess`): margin delta then acts as 2 - (2 - delta)/
(1 + x) would, and the onset falls to (1 + x) delta_c - 2 x, which is below 0, so that no margin is safe, once x is
larger than delta_c/(2 - delta_c).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from eos_sde.bridge.averaged_path import checked_weights
from eos_sde.bridge.batches import draw_batches, stream
from eos_sde.bridge.calibration import calibrate
from eos_sde.bridge.cells import check_counts
from eos_sde.bridge.plateau_forecast import error_of_mean
from eos_sde.bridge.precision import double_precision
from eos_sde.bridge.spectrum import top_modes
from eos_sde.bridge.stochastic_flow import stochastic_central_flow
from eos_sde.bridge.task_library import Task
from eos_sde.optimizers import curvature
from eos_sde.thresholds.caeo_regimes import Source, map_of_wells
from eos_sde.thresholds.curvature_factors import noise_fraction
from solvers.errors import InvalidInput

_PARTS = 3  # of the flow: the plateau is read in the last, alpha at the ends of the last two
_MODEL = (
    0.01,
    0.25,
)  # relative error of the flow's sharpness: a floor, and a multiple of e^2 (`forecast_plateau`)
_ORDER = 24  # Lanczos steps from a random vector
_RESOLVED = 2.0  # errors of the gap by which it must differ from 0


class Plateau(NamedTuple):
    """What one flow says.

    Attributes
    ----------
    gap, gap_stderr : float
        2 - eta times the sharpness of iterates late in the run.
    alpha, alpha_stderr : float
        Progressive sharpening there.
    law_gap, law_gap_stderr : float
        1 - sqrt(1 - q) with q calibrated at the end of the flow; 1 for q > 1.
    """

    gap: float
    gap_stderr: float
    alpha: float
    alpha_stderr: float
    law_gap: float
    law_gap_stderr: float

    @property
    def resolved(self) -> bool:
        """Whether the gap of the flow stands out of its error."""
        return self.gap > _RESOLVED * self.gap_stderr

    @property
    def used(self) -> tuple[float, float]:
        """The gap that is used, and its error."""
        return (self.gap, self.gap_stderr) if self.resolved else (self.law_gap, self.law_gap_stderr)


@double_precision
def forecast_caeo_stability(
    task: Task,
    start: ArrayLike,
    *,
    batch_size: Sequence[int],
    delta: ArrayLike,
    steps: int,
    eta: float | None = None,
    eta_base: ArrayLike | None = None,
    flows_at: Sequence[int] | None = None,
    horizon: int | None = None,
    catapult: float = 4.0,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> xr.Dataset:
    """Regimes of CAEO on a network over margin, batch size and base rate, from a checkpoint, without running it.

    Parameters
    ----------
    task : Task
        The training problem.
    start : array
        Weights of the checkpoint, shape (d,).
    batch_size : sequence of int
        Axis of the map.
    delta : array_like
        Axis of the map.
    steps : int
        Of the flows, a multiple of 15, and at least 60.
    eta : float, optional
        Learning rate of the flows; the task's if left out.
    eta_base : array_like, optional
        Axis of the map; eta if left out. At other rates than eta the noise and the speed are scaled by its square,
        which holds alpha, beta and the noise fixed: trust it near eta.
    flows_at : sequence of int, optional
        Batch sizes at which flows are run; all of them if left out. Between them log(q B) is interpolated in log B.
    horizon : int, optional
        Steps of training; those of the flows if left out.
    catapult : float
        As for `thresholds.caeo_stability`.
    seed : int
        Of the flows.
    progress : callable, optional
        Called with the fraction done.

    Returns
    -------
    Dataset
        As of `thresholds.caeo_stability_map`, and over ``flow_batch``: ``gap``, ``alpha``, ``law_gap`` with their
        ``*_stderr``, and ``resolved``, whether ``gap`` or ``law_gap`` is the one used.

    Raises
    ------
    InvalidInput
        As `stochastic_central_flow` does, if a flow ends early, or alpha is not positive at its end: nothing then
        drives the sharpness to the cap.
    """
    check_counts(steps=(steps, 60))
    if steps % (5 * _PARTS):
        raise InvalidInput(
            f"steps={steps} must be a multiple of {5 * _PARTS}, the strides of the parts of a flow"
        )
    rate = task.eta if eta is None else eta
    sizes = sorted({int(size) for size in batch_size})
    chosen = sizes if flows_at is None else sorted({int(size) for size in flows_at})
    plateaus = []
    for i, size in enumerate(chosen):
        plateaus.append(_plateau(task, start, rate, size, steps, seed))
        if progress is not None:
            progress((i + 1) / len(chosen))
    rates = np.atleast_1d(np.asarray(rate if eta_base is None else eta_base, float))
    noise, speed, sources = _wells(plateaus, chosen, sizes, task.n, rate)
    scale = (rates / rate) ** 2
    sharpness = float(top_modes(task, checked_weights(task, start), 1)[0][0])
    result = map_of_wells(
        noise[:, None] * scale, float(speed) * scale, [[source] * rates.size for source in sources], delta=delta,
        batch_size=sizes, eta_base=rates, sharpness=sharpness, horizon=steps if horizon is None else horizon,
        catapult=catapult,
    )  # fmt: skip
    texts = {
        "gap": ("1", "2 - eta times the sharpness of iterates on the flow's plateau"),
        "alpha": ("1/time^2", "progressive sharpening on the flow's plateau"),
        "law_gap": ("1", "the same gap by the one-direction law, calibrated there"),
    }
    columns = {}
    for name, (units, text) in texts.items():
        values = [getattr(plateau, name) for plateau in plateaus]
        errors = [getattr(plateau, f"{name}_stderr") for plateau in plateaus]
        columns[name] = ("flow_batch", values, {"units": units, "long_name": text})
        columns[f"{name}_stderr"] = ("flow_batch", errors, {"units": units, "long_name": f"error of: {text}"})
    used = {"units": "1", "long_name": "whether the flow's own gap is used"}
    columns["resolved"] = ("flow_batch", [plateau.resolved for plateau in plateaus], used)
    axis = ("flow_batch", chosen, {"units": "1", "long_name": "batch size of a flow"})
    return (
        result.assign(columns)
        .assign_coords(flow_batch=axis)
        .assign_attrs(task=task.name, eta=rate, steps=steps)
    )


def _plateau(task: Task, start: ArrayLike, eta: float, batch_size: int, steps: int, seed: int) -> Plateau:
    """Run the flow in parts and calibrate at the ends of the last two."""
    part, theta, calibrations = steps // _PARTS, np.asarray(start, float), []
    for i in range(_PARTS):
        flow = stochastic_central_flow(
            task,
            theta,
            batch_size=batch_size,
            eta=eta,
            steps=part,
            stride=5,
            save_every=5,
            seed=seed + 1000 * i,
        )
        if flow.attrs["stopped"]:
            raise InvalidInput(f"the flow at batch_size={batch_size} ended early: {flow.attrs['stopped']}")
        theta = flow["final_params"].values
        if i > 0:
            calibrations.append(calibrate(task, jnp.asarray(theta), batch_size=batch_size, k=1))
    late = flow["iterate_sharpness"].values  # pyright: ignore[reportPossiblyUnboundVariable]
    share = 1.0 - float(flow["loss"].mean() / flow["mean_loss"].mean())  # pyright: ignore[reportPossiblyUnboundVariable]
    mean = float(late.mean())
    error = math.hypot(
        float(np.nan_to_num(error_of_mean(late))), mean * math.hypot(_MODEL[0], _MODEL[1] * share**2)
    )
    alphas = np.array([float(c["alpha"]) for c in calibrations])
    spread = max(*(float(c["alpha_stderr"]) for c in calibrations), 0.5 * float(np.ptp(alphas)))
    if not alphas.mean() > 0:
        raise InvalidInput(
            f"alpha={alphas.mean():.3g} on the plateau at batch_size={batch_size} is not positive: nothing drives "
            "the sharpness to the cap there; calibrate earlier"
        )
    end = calibrations[-1]
    q = eta**2 * float(end["beta"] * end["noise_covariance"][0, 0]) / (2 * alphas.mean())
    relative = math.sqrt(
        (spread / alphas.mean()) ** 2
        + float(end["beta_stderr"] / end["beta"]) ** 2
        + float(end["noise_covariance_stderr"][0, 0] / end["noise_covariance"][0, 0]) ** 2
    )
    root = math.sqrt(max(1.0 - q, 1e-6))
    return Plateau(
        2.0 - eta * mean, eta * error, float(alphas.mean()), spread,
        1.0 - root if q < 1 else 1.0, min(q * relative / (2.0 * root), 1.0),
    )  # fmt: skip


def _wells(
    plateaus: Sequence[Plateau], chosen: Sequence[int], sizes: Sequence[int], n: int, eta: float
) -> tuple[NDArray, float, list[list[Source]]]:
    """Noise of the wells at each batch size, their speed, and the sources of error of both."""
    gaps = np.array([plateau.used for plateau in plateaus])
    gap = np.clip(gaps[:, 0], 1e-9, 1.0)
    noise = gap * (2.0 - gap)
    relative = np.maximum(2.0 * (1.0 - gap) * gaps[:, 1], gaps[:, 1] ** 2) / noise
    # q is proportional to (n - B)/(B (n - 1)) where alpha, beta and the gradients stay the same
    fraction = np.array([noise_fraction(n, size) for size in chosen])
    spread = np.interp(np.log(sizes), np.log(chosen), np.log(noise / fraction))
    filled = np.minimum(np.exp(spread) * [noise_fraction(n, size) for size in sizes], 1.0)
    errors = np.interp(np.log(sizes), np.log(chosen), relative)
    weights = np.array([1.0 / plateau.alpha_stderr**2 for plateau in plateaus])
    alpha = float(np.average([plateau.alpha for plateau in plateaus], weights=weights))
    scatter = max(float(np.std([plateau.alpha for plateau in plateaus])), float(weights.sum() ** -0.5))
    return filled, eta**2 * alpha, [[Source(float(e), 0.0), Source(0.0, scatter / alpha)] for e in errors]


@partial(jax.jit, static_argnames="task")
def _batch_top(task: Task, theta: jax.Array, rows: jax.Array) -> jax.Array:
    """Top eigenvalue of the Hessian of some examples."""
    product = jax.linearize(jax.grad(lambda w: task.loss(w, task.x[rows], task.y[rows])), theta)[1]
    estimator = curvature.lanczos(order=min(_ORDER, task.size), tol=1e-9)
    return estimator.update(product, theta, estimator.init(theta, jax.random.PRNGKey(0)))[0]


@double_precision
def batch_excess(
    task: Task, params: ArrayLike, *, batch_size: int, batches: int = 32, seed: int = 0
) -> xr.Dataset:
    """Top eigenvalue of the Hessians of batches against that of the full loss.

    Parameters
    ----------
    task : Task
        The training problem.
    params : array
        Weights, shape (d,).
    batch_size : int
        B.
    batches : int
        How many are drawn.
    seed : int
        Of the batches.

    Returns
    -------
    Dataset
        ``sharpness`` of the full loss, ``mean`` and ``deviation`` of that of a batch, in 1/time, and ``excess``,
        mean/sharpness - 1: a rule that sees its batch alone, with margin delta, caps on average where one that sees
        the full loss caps with the margin 2 - (2 - delta)/(1 + excess), to first order in the deviation.

    Raises
    ------
    InvalidInput
        If a number is out of range.
    """
    check_counts(batch_size=(batch_size, 1), batches=(batches, 2))
    theta = checked_weights(task, params)
    drawn = draw_batches(stream(seed, 1, 0), batches, examples=task.n, batch_size=min(batch_size, task.n))
    full = float(top_modes(task, theta, 1)[0][0])
    seen = np.array([float(_batch_top(task, theta, rows)) for rows in drawn])
    values = {
        "sharpness": (full, "1/time", "of the full loss"),
        "mean": (float(seen.mean()), "1/time", "mean of that of a batch"),
        "deviation": (float(seen.std(ddof=1)), "1/time", "standard deviation of that of a batch"),
        "excess": (float(seen.mean() / full - 1.0), "1", "relative excess of the mean"),
    }
    return xr.Dataset({k: ((), v, {"units": u, "long_name": text}) for k, (v, u, text) in values.items()})
