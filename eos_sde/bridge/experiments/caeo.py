"""Experiment 5: CAEO on the network against the reduced model: learning rate and sharpness, step by step."""

from collections.abc import Callable

import numpy as np
import xarray as xr

from eos_sde.bridge.capped_flow import caeo_flow
from eos_sde.bridge.experiments.comparison import Outcome, Row, variable
from eos_sde.bridge.prediction import caeo_path
from eos_sde.bridge.recorder import record
from eos_sde.bridge.task_library import Task


def run(
    task: Task,
    start: np.ndarray,
    calibration: xr.Dataset,
    *,
    eta: float,
    deltas: tuple[float, ...],
    steps: int,
    seed: int,
    every: int = 5,
    progress: Callable[[float], None],
) -> Outcome:
    """Run CAEO with full-batch gradients from the checkpoint, against two continuous models.

    The reduced model holds the progressive sharpening alpha at its value at the checkpoint; the gradient flow at
    the capped rate follows the whole network. Compared are the sharpness and the learning rate a third of the way
    and at the end.

    Parameters
    ----------
    task : Task
        The training problem.
    start : array
        Weights of the checkpoint, shape (d,).
    calibration : Dataset
        At the checkpoint.
    eta : float
        Base learning rate, large enough that the cap binds.
    deltas : tuple of float
        Margins of the rule.
    steps, every, seed : int
        Length, spacing of measurements, seed of the curvature estimator.
    progress : callable
        Called with the fraction done.

    Returns
    -------
    Outcome
        Eight rows per delta, and the paths.
    """
    rows: list[Row] = []
    curves: dict[str, list[np.ndarray]] = {name: [] for name in ("s", "r", "ps", "pr", "fs", "fr")}
    axis = np.arange(0, steps + 1, every)
    early = int(axis[len(axis) // 3])
    for i, delta in enumerate(deltas):
        model = caeo_path(calibration, eta=eta, delta=delta, steps=steps)
        network = record(
            task,
            "caeo",
            steps=steps,
            seed=seed,
            eta=eta,
            delta=delta,
            batch_size=task.n,
            start=start,
            every=every,
            batches_measured=1,
            progress=lambda k, i=i: progress((i + k / steps) / len(deltas)),
        ).isel(replica=0)
        flow = _flow(task, start, eta=eta, delta=delta, axis=axis)
        for step in (early, steps):
            there = network.sel(step=step)
            # the rate after `step` updates answers the sharpness before the last of them
            before = model.sel(step=step - 1)
            residual = float(there["sharpness_residual"])
            rate = float(there["learning_rate"])
            sharpness = (float(there["sharpness"]), residual, "1/time")
            learning_rate = (rate, rate * residual / float(there["sharpness"]), "time")
            named = f"after {step} steps, delta {delta:g}"
            reduced, flowing = "reduced model, alpha frozen", flow.attrs["method"]
            at = model.sel(step=step)
            rows += [
                Row("caeo", f"sharpness {named}", name, *predicted, *sharpness)
                for name, predicted in (
                    (reduced, (float(at["sharpness"]), float(at["sharpness_stderr"]))),
                    (flowing, (float(flow["sharpness"].sel(step=step)), 0.0)),
                )
            ]
            rows += [
                Row("caeo", f"learning rate {named}", name, *predicted, *learning_rate)
                for name, predicted in (
                    (reduced, (float(before["learning_rate"]), float(before["learning_rate_stderr"]))),
                    (flowing, (float(flow["learning_rate"].interp(step=step - 1)), 0.0)),
                )
            ]
        curves["s"].append(network["sharpness"].values)
        curves["r"].append(network["learning_rate"].values)
        curves["ps"].append(model["sharpness"].sel(step=axis).values)
        curves["pr"].append(model["learning_rate"].sel(step=axis).values)
        curves["fs"].append(flow["sharpness"].sel(step=axis).values)
        curves["fr"].append(flow["learning_rate"].sel(step=axis).values)
    dims = ("caeo_delta", "caeo_step")
    paths = xr.Dataset(
        {
            "caeo_sharpness": variable(dims, curves["s"], "1/time", "sharpness, network"),
            "caeo_learning_rate": variable(dims, curves["r"], "time", "learning rate, network"),
            "caeo_sharpness_predicted": variable(dims, curves["ps"], "1/time", "sharpness, reduced model"),
            "caeo_learning_rate_predicted": variable(
                dims, curves["pr"], "time", "learning rate, reduced model"
            ),
            "caeo_sharpness_flow": variable(dims, curves["fs"], "1/time", "sharpness, gradient flow"),
            "caeo_learning_rate_flow": variable(dims, curves["fr"], "time", "learning rate, gradient flow"),
        },
        coords={
            "caeo_delta": variable("caeo_delta", deltas, "1", "margin delta"),
            "caeo_step": variable("caeo_step", axis, "1", "steps since the checkpoint"),
        },
        attrs={"caeo_eta": eta},
    )
    return Outcome(rows, paths)


def _flow(task: Task, start: np.ndarray, *, eta: float, delta: float, axis: np.ndarray) -> xr.Dataset:
    """The gradient flow; from delta = 0 down, where the iterate oscillates, nothing and the reason."""
    if delta > 0:
        return caeo_flow(task, start, eta=eta, delta=delta, steps=int(axis[-1]), stride=int(axis[1]))
    nothing = ("step", np.full(axis.size, np.nan))
    return xr.Dataset(
        {"sharpness": nothing, "learning_rate": nothing},
        coords={"step": axis},
        attrs={"method": "gradient flow: none where delta <= 0 and the iterate oscillates"},
    )
