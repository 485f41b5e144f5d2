"""Experiment 1: the learning rate at which a trained minimum loses its stability, under GD and SGD."""

from collections.abc import Callable

import numpy as np
import xarray as xr

from eos_sde import thresholds
from eos_sde.bridge.experiments.comparison import Outcome, Row, variable
from eos_sde.bridge.interpolation_tasks import interpolation_task
from eos_sde.bridge.minimum import find_minimum
from eos_sde.bridge.onset import measure_onset


def run(
    task_name: str, *, seed: int, batch_sizes: tuple[int, ...] = (1, 4, 16), progress: Callable[[float], None]
) -> Outcome:
    """Predict the onset from the per-example Jacobian, then bisect for it on the network's own steps.

    Parameters
    ----------
    task_name : str
        Its interpolation problem is trained: 100 examples, one output, half squared error.
    seed : int
        Of the network and its batches.
    batch_sizes : tuple of int
        For SGD; full-batch gradient descent is added.
    progress : callable
        Called with the fraction done.

    Returns
    -------
    Outcome
        A row per batch size.
    """
    task = interpolation_task(task_name)
    minimum = find_minimum(task, seed=seed)
    rows, ratios = [], []
    sizes = (*batch_sizes, task.n)
    for i, batch_size in enumerate(sizes):
        full = batch_size == task.n
        predicted = (
            thresholds.gradient_descent(minimum.sharpness)
            if full
            else thresholds.sgd_mean_square(minimum.jacobian, batch_size=batch_size)
        )
        measured = measure_onset(task, minimum, batch_size=batch_size, seed=seed)
        name = "gradient descent" if full else f"SGD, batch {batch_size}"
        rows.append(
            Row(
                "minimum",
                f"largest stable learning rate, {name}",
                "2/sharpness" if full else "mean-square threshold",
                predicted.value,
                predicted.stderr,
                float(measured["eta"]),
                float(measured["eta_stderr"]),
                "time",
            )
        )
        ratios.append(
            [
                value * minimum.sharpness / 2
                for value in (
                    predicted.value,
                    float(measured["eta"]),
                    float(measured["eta_stderr"]),
                )
            ]
        )
        progress((i + 1) / len(sizes))
    columns = np.array(ratios).T
    text = ("predicted threshold", "measured onset", "standard error of the measured onset")
    names = ("minimum_predicted", "minimum_measured", "minimum_measured_stderr")
    paths = xr.Dataset(
        {
            n: variable("onset_batch", c, "1", f"{t}, relative to 2/sharpness")
            for n, c, t in zip(names, columns, text, strict=True)
        },
        coords={"onset_batch": variable("onset_batch", sizes, "1", "batch size")},
        attrs={"minimum_sharpness": minimum.sharpness, "minimum_examples": task.n},
    )
    return Outcome(rows, paths)
