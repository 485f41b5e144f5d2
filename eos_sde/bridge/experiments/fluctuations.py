"""Experiment 3: the fluctuation of SGD along the top eigenvector, and which model knows it."""

from collections.abc import Callable

import numpy as np
import xarray as xr

from eos_sde.bridge.experiments.comparison import Outcome, Row, variable
from eos_sde.bridge.prediction import stationary_variances
from eos_sde.bridge.recorder import record
from eos_sde.bridge.stochastic_flow import stochastic_central_flow
from eos_sde.bridge.task_library import Task

_BURN_IN = 12
_STEPS = 32


def run(
    task: Task,
    start: np.ndarray,
    calibration: xr.Dataset,
    *,
    batch_size: int,
    seed: int,
    edge_fraction: float = 0.75,
    replicas: int = 192,
    progress: Callable[[float], None],
) -> Outcome:
    """Variance across runs from one checkpoint, after the fast relaxation and before the slow drift.

    The learning rate puts eta * sharpness at `edge_fraction` of 2, where the map and the continuous models
    differ several times over.

    Parameters
    ----------
    task : Task
        The training problem.
    start : array
        Weights of the checkpoint, shape (d,).
    calibration : Dataset
        At the checkpoint.
    batch_size, seed, replicas : int
        Of the runs.
    edge_fraction : float
        eta * sharpness / 2, in (0, 1).
    progress : callable
        Called with the fraction done.

    Returns
    -------
    Outcome
        A row per model.
    """
    eta = 2 * edge_fraction / float(calibration["eigenvalue"][0])
    direction = calibration["eigenvector"].values[:1].T
    runs = record(
        task,
        "sgd",
        steps=_STEPS,
        seed=seed,
        eta=eta,
        batch_size=batch_size,
        start=start,
        every=_STEPS,
        replicas=replicas,
        project=direction,
        curvature=False,
        progress=lambda k: progress(k / _STEPS),
    )
    x = runs["projection"].values[:, :, 0]
    measured, error = _variance(x[:, _BURN_IN:])
    flow = stochastic_central_flow(
        task,
        start,
        batch_size=batch_size,
        eta=eta,
        steps=_STEPS,
        stride=4,
        save_every=4,
        direction=direction[:, 0],
    )
    forecast = flow["direction_variance"].sel(step=slice(_BURN_IN, None)).values
    predictions = stationary_variances(calibration, eta=eta, batch_size=batch_size) | {
        "stochastic central flow": (float(forecast.mean()), 0.0)
    }
    rows = [
        Row(
            "fluctuations",
            f"variance along the top eigenvector, batch {batch_size}",
            model,
            value,
            stderr,
            measured,
            error,
            "weight^2",
        )
        for model, (value, stderr) in predictions.items()
    ]
    paths = xr.Dataset(
        {
            "fluctuations_variance": variable(
                "fluctuations_step", x.var(axis=0, ddof=1), "weight^2", "variance across runs"
            )
        },
        coords={"fluctuations_step": variable("fluctuations_step", np.arange(x.shape[1]), "1", "SGD steps")},
        attrs={"fluctuations_eta": eta, "fluctuations_batch": batch_size},
    )
    return Outcome(rows, paths)


def _variance(x: np.ndarray) -> tuple[float, float]:
    """Variance across runs, averaged over steps, and its jackknife error over the runs."""
    n = len(x)
    deviations = (x - x.mean(axis=0)) ** 2
    each = deviations.mean(axis=1)  # per run, averaged over steps
    # leaving one run out changes the mean too: (n - 1)/(n - 2) and the n/(n - 1) of the left-out deviation
    left_out = (each.sum() - each * n / (n - 1)) / (n - 2)
    value = each.sum() / (n - 1)
    return float(value), float(np.sqrt((n - 1) / n * np.sum((left_out - left_out.mean()) ** 2)))
