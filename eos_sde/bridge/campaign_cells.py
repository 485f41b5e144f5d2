"""One cell of the campaign: a forecast from a checkpoint alone, the run from it, both in lockstep, kept in a file."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from eos_sde.bridge.campaign_runs import Cell, Checkpoint, Plan, measure, reach_checkpoint
from eos_sde.bridge.cells import kept_cell, plain
from eos_sde.bridge.stochastic_flow import stochastic_central_flow

SERIES = {
    "forecast_sharpness": ("1/time", "sharpness of iterates, forecast"),
    "measured_sharpness": ("1/time", "sharpness of the runs, mean"),
    "measured_sharpness_stderr": ("1/time", "its standard error over the runs"),
    "forecast_loss": ("1", "mean loss, forecast"),
    "measured_loss": ("1", "loss of the runs, mean"),
    "measured_loss_stderr": ("1", "its standard error over the runs"),
    "forecast_variance": ("weight^2", "variance along the checkpoint's top eigenvector, forecast"),
    "measured_variance": ("weight^2", "variance of the runs along it"),
    "measured_variance_stderr": ("weight^2", "its jackknife error over the runs"),
}
"""Saved at every `save_every` steps."""
NUMBERS = {
    "eta": ("time", "learning rate"),
    "examples": ("1", "examples in a batch"),
    "moved": ("weight", "distance from the checkpoint to the mean of the runs at the end"),
    "distance": ("weight", "distance of the forecast weights from that mean"),
    "mean_stderr": ("weight", "sampling error of that mean, which a perfect forecast would show"),
    "late_sharpness_stderr": (
        "1/time",
        "standard error of the measured mean over the last third of the steps",
    ),
    "late_loss_stderr": ("1", "the same of the loss"),
    "late_variance_stderr": ("weight^2", "the same of the variance"),
    "forecast_seconds": ("s", "CPU time of the forecast, with compilation"),
    "measured_seconds": ("s", "CPU time of the runs and their measurement, with compilation"),
    "diverged": ("1", "runs that diverged"),
}
STATUSES = ("done", "does not apply", "failed", "left out")


def solve(cell: Cell, plan: Plan) -> dict[str, Any]:
    """Forecast and measure a cell.

    Parameters
    ----------
    cell : Cell
        What is forecast.
    plan : Plan
        How long.

    Returns
    -------
    dict
        ``status`` (one of `STATUSES`), ``reason``, ``caution`` (what the flow says against its own forecast), the
        `SERIES` (lists over the saved steps) and the `NUMBERS`; None where they do not exist.
    """
    axis = plan.axis
    numbers = {"eta": cell.eta, "examples": cell.batch_size}
    if cell.rule == "gd" and not cell.full:
        return left_out(plan, "gradient descent takes all examples", numbers)
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # of runs that diverge
            known, words = _compared(cell, plan)
    except Exception as failure:  # one cell of many: its reason is kept, and the others go on
        return _filled(axis, numbers, status="failed", reason=f"{type(failure).__name__}: {failure}")
    return _filled(axis, numbers | known, **words)


def left_out(plan: Plan, reason: str, known: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """A cell that does not exist.

    Parameters
    ----------
    plan : Plan
        With its length.
    reason : str
        Why.
    known : mapping
        Numbers that are known in any case.

    Returns
    -------
    dict
        As from `solve`.
    """
    return _filled(plan.axis, known, status="left out", reason=reason)


def _compared(cell: Cell, plan: Plan) -> tuple[dict[str, Any], dict[str, str]]:
    """What is known of a cell, and the words on it."""
    begin = reach_checkpoint(cell, plan)
    flow, forecast_seconds = timed(lambda: forecast(cell, begin, plan))
    run, measured_seconds = timed(lambda: measure(cell, begin, plan))
    stopped = flow.attrs["stopped"]
    path, mean = flow.reindex(step=plan.axis), run.weights.mean(axis=0)
    known = {
        "forecast_sharpness": path["iterate_sharpness"].values,
        "forecast_loss": path["mean_loss"].values,
        "forecast_variance": path["direction_variance"].values,
        "moved": np.linalg.norm(mean - begin.theta),
        "distance": np.nan if stopped else np.linalg.norm(flow["final_params"].values - mean),
        "mean_stderr": 0.0 if cell.full else stderr_of_mean(run.weights),
        "forecast_seconds": forecast_seconds,
        "measured_seconds": measured_seconds,
        "diverged": run.diverged,
    }
    return known | run.series, words_on(flow, run.diverged)


def words_on(flow: xr.Dataset, diverged: int, *, measured: bool = True) -> dict[str, str]:
    """The status of a forecast that was compared with runs, why, and what the flow says against itself.

    Parameters
    ----------
    flow : Dataset
        The forecast.
    diverged : int
        Runs that did.
    measured : bool
        Whether any is left to compare with.

    Returns
    -------
    dict
        ``status``, ``reason`` and ``caution``.
    """
    stopped = flow.attrs["stopped"]
    return {
        "status": "does not apply" if stopped or not measured else "done",
        "reason": stopped or (f"{diverged} runs diverged" if diverged else ""),
        "caution": flow.attrs["caution"],
    }


def _filled(
    axis: NDArray, known: Mapping[str, Any], *, status: str, reason: str, caution: str = ""
) -> dict[str, Any]:
    empty = {name: [None] * axis.size for name in SERIES} | dict.fromkeys(NUMBERS)
    numbers = {name: plain(value) for name, value in known.items()}
    return empty | numbers | {"status": status, "reason": reason, "caution": caution}


def timed(job: Callable[[], Any]) -> tuple[Any, float]:
    """What a job returns, and its CPU time in seconds."""
    began = time.process_time()
    return job(), time.process_time() - began


def forecast(cell: Cell, begin: Checkpoint, plan: Plan) -> xr.Dataset:
    """The averaged path of a cell by `stochastic_central_flow`, which sees the checkpoint and nothing else."""
    return stochastic_central_flow(
        cell.task, begin.theta, batch_size=cell.batch_size, rule=cell.rule, eta=cell.eta, steps=plan.steps,
        state=begin.state, save_every=plan.save_every,
        stride=next(k for k in (5, 4, 3, 2, 1) if plan.save_every % k == 0), seed=cell.seed,
        direction=begin.direction, **cell.options,
    )  # fmt: skip


def stderr_of_mean(weights: NDArray) -> float:
    """Sampling error of the mean of weights (runs, d), as a length."""
    return float(np.sqrt(weights.var(axis=0, ddof=1).sum() / len(weights)))


class Store:
    """The folder of finished cells, a JSON file each."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._folder, self._plan = folder, plan

    def get(self, cell: Cell, label: str) -> dict[str, Any]:
        """A finished cell, or a new one that is kept at once; one that failed is tried again."""
        path = self._folder / f"{cell.task.name}_{cell.rule}_batch-{label}_seed{cell.seed}.json"
        return kept_cell(path, cell.settings | {"plan": asdict(self._plan)}, lambda: solve(cell, self._plan))
