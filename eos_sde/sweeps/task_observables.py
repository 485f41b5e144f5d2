"""What the tasks of the bridge show at one point: the forecast of a plateau."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

if TYPE_CHECKING:
    from eos_sde.bridge.task_library import Task

_UNITS = {"sharpness": "1/time", "loss": "1"}


def plateau(
    *,
    task: str,
    batch_size: int,
    steps: int = 120,
    warmup: int = 100,
    rule: str = "sgd",
    eta: float | None = None,
    repeats: int = 2,
    seed: int = 0,
    task_settings: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Late sharpness and mean loss of training, forecast by `eos_sde.bridge.forecast_plateau` from a checkpoint.

    Returns
    -------
    Dataset
        ``sharpness`` (1/time), ``loss``, and their ``_stderr``.
    """
    from eos_sde.bridge import forecast_plateau

    frozen = tuple(
        sorted((k, tuple(v) if isinstance(v, list) else v) for k, v in (task_settings or {}).items())
    )
    loaded, start = _begun(task, frozen, warmup, seed)
    found = forecast_plateau(
        loaded, start, batch_size=batch_size, steps=steps, rule=rule, eta=eta, repeats=repeats, seed=seed
    )
    columns = {}
    for name, units in _UNITS.items():
        row = found.sel(quantity=name)
        columns[name] = ((), float(row.predicted), {"units": units, "long_name": f"late {name}, forecast"})
        columns[f"{name}_stderr"] = (
            (), float(row.predicted_stderr), {"units": units, "long_name": "its error"},
        )  # fmt: skip
    return xr.Dataset(columns)


@lru_cache(maxsize=8)
def _begun(name: str, settings: tuple, warmup: int, seed: int) -> tuple[Task, np.ndarray]:
    """The task, and the weights after some steps of its own rule; the same object again, compiled already."""
    from eos_sde.bridge.main_job import checkpoint

    task = _loaded(name, settings)
    return task, checkpoint(task, eta=task.eta, steps=warmup, seed=seed)


@lru_cache(maxsize=8)
def _loaded(name: str, settings: tuple) -> Task:
    from eos_sde.bridge import load_task

    return load_task(name, **dict(settings))
