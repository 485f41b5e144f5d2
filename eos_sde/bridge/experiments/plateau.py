"""Experiment 2: the sharpness at which SGD settles, forecast by the stochastic central flow."""

import math
from collections.abc import Callable

import numpy as np
import xarray as xr

from eos_sde import thresholds
from eos_sde.bridge.experiments.comparison import Outcome, Row, mean_and_stderr, variable
from eos_sde.bridge.plateau_forecast import error_of_mean
from eos_sde.bridge.recorder import record
from eos_sde.bridge.stochastic_flow import stochastic_central_flow
from eos_sde.bridge.task_library import Task
from solvers.errors import InvalidInput


def run(
    task: Task,
    start: np.ndarray,
    calibration: xr.Dataset,
    *,
    eta: float,
    batch_sizes: tuple[int, ...],
    steps: int,
    seed: int,
    replicas: int = 4,
    every: int = 25,
    progress: Callable[[float], None],
) -> Outcome:
    """Forecast the sharpness from a checkpoint by the flow, then run SGD from it, several times.

    Compared is the mean of eta * sharpness over the last third of the steps. The error of the measurement is
    that over independent runs; that of the forecast is the sampling error of its average over the fluctuation,
    and does not include what the flow leaves out.

    Parameters
    ----------
    task : Task
        The training problem.
    start : array
        Weights of the checkpoint, shape (d,).
    calibration : Dataset
        At the checkpoint, for the published law.
    eta : float
        Learning rate.
    batch_sizes : tuple of int
        Each its own forecast and runs.
    steps, every : int
        Length, and spacing of the measurements.
    seed, replicas : int
        Of the runs.
    progress : callable
        Called with the fraction done.

    Returns
    -------
    Outcome
        Two rows per batch size (flow and published law), and the paths.
    """
    rows, forecasts, runs = [], [], []
    total = 2 * len(batch_sizes)
    late = slice(2 * steps // 3, None)
    for i, batch_size in enumerate(batch_sizes):
        flow = stochastic_central_flow(
            task,
            start,
            batch_size=batch_size,
            eta=eta,
            steps=steps,
            save_every=every,
            seed=seed,
            progress=lambda k, i=i: progress((2 * i + k / steps) / total),
        )
        measured = record(
            task,
            "sgd",
            steps=steps,
            seed=seed,
            eta=eta,
            batch_size=batch_size,
            start=start,
            every=every,
            replicas=replicas,
            batches_measured=1,
            progress=lambda k, i=i: progress((2 * i + 1 + k / steps) / total),
        )
        value, error = mean_and_stderr(eta * measured["sharpness"].sel(step=late).mean("step").values)
        loss, loss_error = mean_and_stderr(measured["loss"].sel(step=late).mean("step").values)
        what = f"batch {batch_size}"
        stopped = flow.attrs["stopped"]
        tail = eta * flow["iterate_sharpness"].sel(step=late)
        forecast = math.nan if stopped else float(tail.mean())
        # neighbouring points share their slow part: their scatter about a straight line is the sampling error
        scatter = math.nan if stopped else error_of_mean(tail.values)
        name = stopped or "stochastic central flow"
        rows += [
            Row("plateau", f"eta * sharpness, {what}", name, forecast, scatter, value, error),
            _published(calibration, eta, batch_size, value, error),
            Row(
                "plateau",
                f"mean training loss, {what}",
                name,
                math.nan if stopped else float(flow["mean_loss"].sel(step=late).mean()),
                math.nan if stopped else error_of_mean(flow["mean_loss"].sel(step=late).values),
                loss,
                loss_error,
            ),
        ]
        forecasts.append(flow)
        runs.append(measured)
    axis = np.arange(0, steps + 1, every)
    size = {"plateau_batch": variable("plateau_batch", batch_sizes, "1", "batch size")}
    step = {"plateau_step": variable("plateau_step", axis, "1", "SGD steps since the checkpoint")}
    dims = ("plateau_batch", "plateau_step")

    def forecast_of(name: str) -> np.ndarray:
        return np.stack([f[name].reindex(step=axis).values for f in forecasts])

    paths = xr.Dataset(
        {
            "plateau_flow": variable(dims, forecast_of("iterate_sharpness"), "1/time", "sharpness, forecast"),
            "plateau_flow_loss": variable(dims, forecast_of("mean_loss"), "1", "mean loss, forecast"),
            "plateau_sharpness": variable(
                ("plateau_batch", "plateau_run", "plateau_step"),
                np.stack([r["sharpness"].reindex(step=axis).values for r in runs]),
                "1/time",
                "sharpness, SGD",
            ),
            "plateau_loss": variable(
                ("plateau_batch", "plateau_run", "plateau_step"),
                np.stack([r["loss"].reindex(step=axis).values for r in runs]),
                "1",
                "training loss, SGD",
            ),
        },
        coords=size | step,
        attrs={"plateau_eta": eta},
    )
    return Outcome(rows, paths)


def _published(calibration: xr.Dataset, eta: float, batch_size: int, value: float, error: float) -> Row:
    quantity = f"eta * sharpness, batch {batch_size}"
    try:
        law = thresholds.sharpness_plateau(calibration, eta=eta, batch_size=batch_size)
    except InvalidInput as reason:
        return Row("plateau", quantity, f"published law: {reason}", math.nan, math.nan, value, error)
    return Row(
        "plateau", quantity, "published small-noise law", eta * law.value, eta * law.stderr, value, error
    )
