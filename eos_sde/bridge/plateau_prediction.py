"""Which forecast of the plateau to trust, and why: the flow, the reduced map, or the law that freezes it."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import xarray as xr

from eos_sde import thresholds
from eos_sde.bridge.plateau_forecast import forecast_plateau
from eos_sde.bridge.precision import double_precision
from eos_sde.bridge.task_library import Task
from eos_sde.thresholds.curvature_factors import noise_fraction
from solvers.errors import InvalidInput

PLATEAU = "sharpness plateau"
_LARGE_NOISE = 0.5  # of the law's parameter, which has no solution from 1 on
_SWINGS = 0.25  # share of the gap that the law leaves out
_NEIGHBOUR = 0.8  # of the top eigenvalue
_CURVATURE_NOISE = 0.1  # of a mode's variance, added in a step
_NEAR = 0.05  # of the plateau


class Predicted(NamedTuple):
    """One row of a prediction."""

    quantity: str
    value: float
    stderr: float
    units: str
    model: str
    caution: str = ""


def law_rows(calibration: xr.Dataset, *, eta: float, batch_size: int) -> list[Predicted]:
    """The plateau by the refined law and by its reduced map, each with what speaks against it.

    Parameters
    ----------
    calibration : Dataset
        From `calibrate`.
    eta : float
        Learning rate.
    batch_size : int
        B.

    Returns
    -------
    list of Predicted
        Two rows; NaN with the reason in ``model`` where there is no answer.
    """
    rows = []
    for method in ("law", "map"):
        try:
            found = thresholds.sharpness_plateau(calibration, eta=eta, batch_size=batch_size, method=method)
        except InvalidInput as reason:
            name = "refined small-noise law" if method == "law" else "reduced map"
            rows.append(Predicted(f"{PLATEAU} ({name})", math.nan, math.nan, "1/time", str(reason)))
            continue
        against = _cautions(calibration, eta, batch_size, float(found), frozen=method == "law")
        name = f"{PLATEAU} ({found.method})"
        rows.append(Predicted(name, found.value, found.stderr, "1/time", found.method, "; ".join(against)))
    return rows


def _cautions(
    calibration: xr.Dataset, eta: float, batch_size: int, plateau: float, *, frozen: bool
) -> list[str]:
    known = {name: float(calibration[name]) for name in ("alpha", "beta", "per_example_variance")}
    p = noise_fraction(calibration.attrs["examples"], batch_size)
    q = eta**2 * known["beta"] * p * known["per_example_variance"] / (2 * known["alpha"])
    found, eigenvalues = [], np.asarray(calibration["eigenvalue"])
    if frozen and q > _LARGE_NOISE:
        found.append(f"its parameter is {q:.2g}, no small noise (it has no solution from 1 on)")
    gap = 2.0 - eta * plateau
    swings = 4 * eta**2 * known["alpha"]
    if frozen and swings > _SWINGS * gap:
        found.append(
            f"swings of the curvature may add {100 * swings / gap:.0f} % to the gap, which it leaves out"
        )
    if eigenvalues.size > 1 and eigenvalues[1] > _NEIGHBOUR * eigenvalues[0]:
        found.append(
            f"it knows one mode, and the second is at {100 * eigenvalues[1] / eigenvalues[0]:.0f} % of the first"
        )
    shaken = eta**2 * p * float(calibration["curvature_variance"])
    if shaken > _CURVATURE_NOISE:
        found.append(
            f"curvature noise, which it leaves out, adds {100 * shaken:.0f} % to the variance in a step"
        )
    reached = eigenvalues[0] / plateau
    if abs(reached - 1) > _NEAR:
        found.append(
            f"the sharpness here is {reached:.2f} of it, and whether training gets there it does not say"
        )
    return found


@double_precision
def flow_rows(
    calibration: xr.Dataset,
    task: Task,
    *,
    rule: str,
    eta: float,
    batch_size: int,
    steps: int,
    progress: Callable[[float], None] | None = None,
    **settings: Any,
) -> list[Predicted]:
    """Sharpness and mean loss over the last third of some steps from the calibrated weights, by the flow.

    Parameters
    ----------
    calibration : Dataset
        From `calibrate`, with its weights.
    task : Task
        The problem that was calibrated.
    rule, eta, batch_size, steps, progress
        As for `forecast_plateau`.
    **settings
        More of `forecast_plateau`.

    Returns
    -------
    list of Predicted
        Two rows.

    Raises
    ------
    InvalidInput
        If the calibration holds no weights, or the task is another.
    """
    if "params" not in calibration:
        raise InvalidInput("calibration holds no weights 'params'; make it with bridge.calibrate")
    theta = jnp.asarray(calibration["params"].values)
    there = calibration.attrs["loss"]
    if theta.shape != (task.size,) or abs(float(task.loss(theta)) - there) > 1e-9 * abs(there) + 1e-15:
        raise InvalidInput(f"task={task.name} is not the problem that was calibrated; give that one")
    found = forecast_plateau(
        task, theta, rule=rule, eta=eta, batch_size=batch_size, steps=steps, progress=progress, **settings
    )
    stopped, model = found.attrs["stopped"], found.attrs["method"]
    names = {"sharpness": f"{PLATEAU} ({model})", "loss": f"mean loss ({model})"}
    return [
        Predicted(
            label,
            float(found["predicted"].sel(quantity=name)),
            float(found["predicted_stderr"].sel(quantity=name)),
            "1/time" if name == "sharpness" else "1",
            stopped or f"{model}, last third of {steps} steps",
            found.attrs["caution"],
        )
        for name, label in names.items()
    ]


def trust(rows: Sequence[Predicted]) -> tuple[str, str]:
    """Which row of the plateau to trust, and why.

    Parameters
    ----------
    rows : sequence of Predicted
        All of a prediction, better models later.

    Returns
    -------
    quantity, reason : str
        Nothing is to be trusted where no model has an answer.
    """
    known = [row for row in rows if row.quantity.startswith(PLATEAU) and math.isfinite(row.value)]
    if not known:
        return "", "no model has an answer"
    clean = [row for row in known if not row.caution]
    if clean:
        best = clean[-1]
        others = "; ".join(f"{row.model}: {row.caution}" for row in known if row.caution)
        reason = "nothing speaks against it" + (f", but against {others}" if others else "")
        return best.quantity, reason
    best = known[-1]
    return best.quantity, f"it knows most of them, but {best.caution}"
