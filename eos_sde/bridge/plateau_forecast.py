"""Where training will come to rest: sharpness and mean loss late in a run, by the flows, each with its error.

The error has two parts. That of sampling is seen in the forecast itself: flows that differ in their random numbers, and
the scatter of one about a straight line. That of the model is what the flow leaves out, of second order in the share e
of the fluctuation in the mean loss (`flow_validity`), beside a floor: its size was set by runs on `digits-mlp` and no
other task, where forecasts of the sharpness at batch 4 were off by up to 4 %. With full batches the sharpness of a run
that overshot the edge by o swings about it, anywhere from -o to o, and with m critical modes by 1/sqrt(m) of it in the
mean. Where the flows evaluate a sample of the examples, each draws its own, so that the error from that is in the
scatter between them.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from eos_sde.bridge.cells import check_counts
from eos_sde.bridge.flow_validity import swing_after_overshoot
from eos_sde.bridge.stochastic_flow import stochastic_central_flow
from eos_sde.bridge.task_library import Task
from solvers.provenance import provenance

QUANTITIES = {"sharpness": "iterate_sharpness", "loss": "mean_loss"}
"""What is forecast, and the variable of a flow that it is the late mean of."""
_UNITS = {"sharpness": "1/time", "loss": "1"}
# Relative error of the model: a floor, and a multiple of e^2
_MODEL: dict[str, tuple[float, float]] = {"sharpness": (0.01, 0.25), "loss": (0.01, 0.15)}
_POINTS = 20  # saved over the run


def forecast_plateau(
    task: Task,
    start: ArrayLike,
    *,
    batch_size: int,
    steps: int,
    rule: str = "sgd",
    eta: float | None = None,
    state: Any = None,
    modes: int | None = None,
    repeats: int = 2,
    seed: int = 0,
    examples: int | None = None,
    precision: str = "double",
    progress: Callable[[float], None] | None = None,
    **options: Any,
) -> xr.Dataset:
    """Forecast sharpness and mean loss over the last third of a run, from its checkpoint.

    Parameters
    ----------
    task : Task
        The training problem.
    start : array
        Weights of the checkpoint, shape (d,).
    batch_size : int
        B <= n, without replacement.
    steps : int
        Of the rule; at least 20.
    rule, eta, state, modes, examples, precision
        As for `stochastic_central_flow`.
    repeats : int
        Flows that differ in their random numbers; one is enough at B = n, which has none.
    seed : int
        Of the first flow.
    progress : callable, optional
        Called with the fraction done.
    **options
        Of the rule.

    Returns
    -------
    Dataset
        Over ``quantity`` ("sharpness", of single iterates, in 1/time; "loss"): ``predicted``,
        ``predicted_stderr``, and its parts ``sampling_stderr`` and ``model_stderr``. Over ``repeat`` and ``step``:
        ``sharpness_path``, ``loss_path``. ``attrs["stopped"]`` and ``attrs["caution"]`` are those of the flows; where
        one ended early the prediction is NaN. ``attrs["gradients_per_step"]`` is that of all flows together.

    Raises
    ------
    InvalidInput
        As `stochastic_central_flow` does, and for too few steps or repeats.
    """
    check_counts(steps=(steps, 20), repeats=(repeats, 1))
    stride = max(k for k in range(1, 6) if k * _POINTS <= steps or k == 1)
    save_every = stride * max(1, steps // (_POINTS * stride))
    flows = []
    count = 1 if batch_size == task.n else repeats
    for i in range(count):
        flow = stochastic_central_flow(
            task, start, batch_size=batch_size, rule=rule, eta=eta, steps=steps, state=state, modes=modes,
            stride=stride, save_every=save_every, seed=seed + 1000 * i,
            examples=examples, precision=precision,
            progress=None if progress is None else lambda k, i=i: progress((i + k / steps) / count), **options,
        )  # fmt: skip
        flows.append(flow)
    stopped = next((flow.attrs["stopped"] for flow in flows if flow.attrs["stopped"]), "")
    late = slice(2 * steps // 3, None)
    tails = [flow.sel(step=late) for flow in flows]
    more = dict.fromkeys(QUANTITIES, 0.0)
    if batch_size == task.n and not stopped:
        swinging = max(1.0, float(flows[0]["critical_modes"][-1]))
        more["sharpness"] = swing_after_overshoot(flows[0]["effective_sharpness"]) / math.sqrt(3.0 * swinging)
    rows = {name: _row(name, tails, stopped, more[name]) for name in QUANTITIES}
    columns = {
        "predicted": "late mean, forecast",
        "predicted_stderr": "its error",
        "sampling_stderr": "part of it from the random numbers of the forecast",
        "model_stderr": "part of it from what the flow leaves out",
    }
    axis = np.arange(0, steps + 1, save_every)
    paths = {
        f"{name}_path": (
            ("repeat", "step"),
            np.stack([flow[variable].reindex(step=axis).values for flow in flows]),
            {"units": _UNITS[name], "long_name": f"{name}, forecast"},
        )
        for name, variable in QUANTITIES.items()
    }
    table = {
        column: (
            "quantity",
            np.array([rows[name][i] for name in QUANTITIES]),
            {"units": "see units", "long_name": text},
        )
        for i, (column, text) in enumerate(columns.items())
    }
    words = {"units": ("quantity", list(_UNITS.values()), {"units": "1", "long_name": "units of all"})}
    cautions = dict.fromkeys(flow.attrs["caution"] for flow in flows if flow.attrs["caution"])
    names = ("task", "method", "eta", "batch_size", "modes", "precision", "examples")
    kept = {name: flows[0].attrs[name] for name in names if name in flows[0].attrs}
    if "gradients_per_step" in flows[0].attrs:
        kept["gradients_per_step"] = sum(flow.attrs["gradients_per_step"] for flow in flows)
    return xr.Dataset(
        table | words | paths,
        coords={
            "quantity": ("quantity", list(QUANTITIES), {"units": "1", "long_name": "quantity"}),
            "step": ("step", axis, {"units": "1", "long_name": "steps of the rule since the checkpoint"}),
        },
        attrs=provenance(rule=rule, steps=steps, stopped=stopped, caution="; ".join(cautions), **kept),
    )


def _row(name: str, tails: list[xr.Dataset], stopped: str, more: float) -> tuple[float, float, float, float]:
    """Prediction, its error, and the parts of sampling and of the model, which has a relative error more."""
    if stopped:
        return math.nan, math.nan, math.nan, math.nan
    values = [tail[QUANTITIES[name]].values for tail in tails]
    means = np.array([value.mean() for value in values])
    prediction = float(means.mean())
    within = float(np.mean([np.nan_to_num(error_of_mean(value)) ** 2 for value in values]))
    between = float(means.var(ddof=1)) if len(means) > 1 else 0.0
    sampling = math.sqrt(max(within, between) / len(means))
    shares = [1.0 - float(tail["loss"].mean() / tail["mean_loss"].mean()) for tail in tails]
    floor, slope = _MODEL[name]
    model = abs(prediction) * math.hypot(floor, slope * float(np.mean(shares)) ** 2, more)
    return prediction, math.hypot(sampling, model), sampling, model


def error_of_mean(values: NDArray) -> float:
    """Error of the mean of points along a path, whose slow part is shared: from their scatter about a straight line.

    Parameters
    ----------
    values : ndarray
        One after the other, at equal distances.

    Returns
    -------
    float
        NaN of fewer than four.
    """
    if values.size < 4:
        return math.nan
    x = np.arange(values.size)
    residual = values - np.polyval(np.polyfit(x, values, 1), x)
    return float(np.sqrt(np.sum(residual**2) / (values.size - 2) / values.size))
