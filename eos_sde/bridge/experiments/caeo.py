"""Experiment 5: CAEO on the network against the reduced model: learning rate and sharpness, step by step."""

from collections.abc import Callable

import numpy as np
import xarray as xr

from eos_sde.bridge.experiments.comparison import Outcome, Row, variable
from eos_sde.bridge.predict import caeo_path
from eos_sde.bridge.record import record
from eos_sde.bridge.tasks import Task


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
    """Run CAEO with full-batch gradients from the checkpoint, and the reduced model from its calibration.

    The reduced model holds the progressive sharpening alpha at its value at the checkpoint. Compared are the
    sharpness and the learning rate a third of the way and at the end.

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
        Four rows per delta, and the paths.
    """
    rows: list[Row] = []
    curves: dict[str, list[np.ndarray]] = {name: [] for name in ("s", "r", "ps", "pr")}
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
        for step in (early, steps):
            here, there = model.sel(step=step), network.sel(step=step)
            # the rate after `step` updates answers the sharpness before the last of them
            before = model.sel(step=step - 1)
            rows += [
                Row(
                    "caeo",
                    f"sharpness after {step} steps, delta {delta:g}",
                    "reduced model",
                    float(here["sharpness"]),
                    float(here["sharpness_stderr"]),
                    float(there["sharpness"]),
                    float(there["sharpness_residual"]),
                    "1/time",
                ),
                Row(
                    "caeo",
                    f"learning rate after {step} steps, delta {delta:g}",
                    "reduced model",
                    float(before["learning_rate"]),
                    float(before["learning_rate_stderr"]),
                    float(there["learning_rate"]),
                    float(there["learning_rate"] * there["sharpness_residual"] / there["sharpness"]),
                    "time",
                ),
            ]
        curves["s"].append(network["sharpness"].values)
        curves["r"].append(network["learning_rate"].values)
        curves["ps"].append(model["sharpness"].sel(step=axis).values)
        curves["pr"].append(model["learning_rate"].sel(step=axis).values)
    dims = ("caeo_delta", "caeo_step")
    paths = xr.Dataset(
        {
            "caeo_sharpness": variable(dims, curves["s"], "1/time", "sharpness, network"),
            "caeo_learning_rate": variable(dims, curves["r"], "time", "learning rate, network"),
            "caeo_sharpness_predicted": variable(dims, curves["ps"], "1/time", "sharpness, reduced model"),
            "caeo_learning_rate_predicted": variable(
                dims, curves["pr"], "time", "learning rate, reduced model"
            ),
        },
        coords={
            "caeo_delta": variable("caeo_delta", deltas, "1", "margin delta"),
            "caeo_step": variable("caeo_step", axis, "1", "steps since the checkpoint"),
        },
        attrs={"caeo_eta": eta},
    )
    return Outcome(rows, paths)
