"""The campaign: forecasts of training against real runs over networks, rules, batch sizes and seeds, resumable."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

import xarray as xr

from eos_sde.bridge.campaign_cells import NUMBERS, SERIES, Store, left_out
from eos_sde.bridge.campaign_runs import RULES, Cell, Plan
from eos_sde.bridge.cells import batch_of, check_axes, check_counts, gathered, numbered, words_of
from eos_sde.bridge.task_library import Task, load_task
from eos_sde.bridge.task_library import tasks as loadable
from solvers.errors import InvalidInput
from solvers.provenance import provenance, with_commit
from solvers.whole_files import write_zarr

SHARPNESS_MARGIN = 0.05
LOSS_MARGIN = 0.10
"""Relative differences up to which a forecast counts as good."""
NETWORKS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "digits-mlp": {"examples": 400, "hidden": (24, 24), "pool": 1},
        "fashion-mlp": {"examples": 400, "hidden": (24, 24), "pool": 4},
        "fashion-cnn": {"examples": 100},
        "deep-linear": {},
        "chebyshev": {},
    }
)
"""Networks of the campaign and their settings over those of the tasks: all whose cells take a minute or two.

The landscapes are not among them: at the checkpoint they rest on their minima, where nothing is left to forecast."""
ON_REQUEST: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"shakespeare-transformer": {"examples": 128, "context": 8, "width": 8, "heads": 2, "blocks": 1}}
)
"""The same of networks that are left out unless named: the derivatives of a transformer compile for minutes."""
QUICK: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "digits-mlp": {"examples": 100, "hidden": (8,), "pool": 2},
        "fashion-mlp": {"examples": 100, "hidden": (8,), "pool": 4},
    }
)
"""The same, tiny."""
_KIND = "campaign"
_AXES = ("task", "rule", "batch", "seed")


def run_campaign(
    store: Path | str,
    *,
    tasks: Sequence[str] | Mapping[str, Mapping[str, Any]] = NETWORKS,
    batch_sizes: Sequence[int | str] = (4, 16, 64, "all"),
    rules: Sequence[str] = ("gd", "sgd", "sgdm", "caeo"),
    seeds: int | Sequence[int] = 3,
    steps: int = 200,
    replicas: int = 8,
    warmup: int = 100,
    save_every: int = 10,
    progress: Callable[[str, float], None] | None = None,
) -> xr.Dataset:
    """Forecast training from checkpoints, run it, and compare at the same steps.

    A cell is a task, a rule, a batch size and a seed. Its checkpoint is reached by `warmup` steps of SGD at batch 32
    (see `checkpoint`) and, for rules with a memory, as many more of their own. The forecast is that of
    `stochastic_central_flow` with its defaults, and sees the checkpoint and nothing else; the run is that of `record`
    from the same checkpoint, with batches of its own. A finished cell is a JSON file in a folder beside the store,
    written whole or not at all, and is not computed again; one that failed is. The table of all cells is the store,
    written at the end.

    Parameters
    ----------
    store : path
        Ending in .zarr; the cells are in the folder of the same name with .cells.
    tasks : sequence of str or mapping
        Names of tasks, with the settings of `NETWORKS` or `ON_REQUEST` where they are there; or name to settings of
        `load_task`.
    batch_sizes : sequence of int or "all"
        Without replacement. Cells of as many examples as a task has, or more, are left out; "all" is for them.
    rules : sequence of {"gd", "sgd", "sgdm", "nesterov", "rmsprop", "adam", "caeo"}
        "gd" takes all examples; its cells at other batch sizes are left out.
    seeds : int or sequence of int
        How many, from 0; or which. Of the weights and the batches.
    steps : int
        After the checkpoint; a multiple of `save_every`.
    replicas : int
        Runs of a cell, at least 3; one where the batch is all examples.
    warmup : int
        Steps to the checkpoint.
    save_every : int
        Steps between comparisons; even. Variances, and everything where the batch is all examples (a run oscillates
        there), are averages over so many steps about each.
    progress : callable, optional
        Called with "campaign" and the fraction done.

    Returns
    -------
    Dataset (task, rule, batch, seed, step)
        ``forecast_sharpness``, ``measured_sharpness``, ``measured_sharpness_stderr``; the same of ``loss`` (mean
        training loss) and ``variance`` (along the checkpoint's top eigenvector; of the alternation where the batch is
        all examples). Without step: ``moved``, ``distance`` (of the forecast weights from the mean of the runs),
        ``mean_stderr`` (sampling error of that mean), ``forecast_seconds``, ``measured_seconds``, ``eta``,
        ``examples``, ``diverged``; ``sharpness_ratio``, ``loss_ratio``, ``variance_ratio`` (forecast over measured,
        means over the last third of the steps), ``late_sharpness_stderr`` (of that measured mean; the same of ``loss``
        and ``variance``); ``status``: "done", "does not apply" (the flow stopped), "failed" or "left out", ``reason``,
        and ``caution`` (what the flow says against its own forecast; empty in cells that earlier versions finished).

    Raises
    ------
    InvalidInput
        For unknown names, sizes out of range, or cells made with other settings.

    Notes
    -----
    Learning rates are the tasks' own times 1 for "gd" and "sgd", 0.3 for momentum, 0.01 for "rmsprop" (b2 = 0.99), 0.02
    for "adam" and 2 for "caeo" (delta = 0.5).
    """
    store = Path(store)
    plan = Plan(steps=steps, replicas=replicas, warmup=warmup, save_every=save_every)
    chosen = (
        tasks
        if isinstance(tasks, Mapping)
        else {name: {**NETWORKS, **ON_REQUEST}.get(name, {}) for name in tasks}
    )
    axes = {
        "task": list(chosen),
        "rule": list(rules),
        "batch": [str(b) for b in batch_sizes],
        "seed": numbered(seeds),
    }
    check_axes(axes, {"task": loadable(), "rule": tuple(RULES)})
    _check_plan(plan)
    _check_store(store)
    loaded = {name: _loaded(name, _hashable(settings)) for name, settings in chosen.items()}
    for label in axes["batch"]:
        batch_of(label, max(loaded.values(), key=lambda task: task.n))  # one task at least has so many
    cells, found = Store(store.with_suffix(".cells"), plan), {}
    total = math.prod(map(len, axes.values()))
    for done, key in enumerate(product(*axes.values()), start=1):
        name, rule, batch, seed = key
        task = loaded[name]
        if batch != "all" and int(batch) >= task.n:
            found[key] = left_out(plan, f"{name} has {task.n} examples")
        else:
            found[key] = cells.get(Cell(task, rule, batch_of(batch, task), seed), batch)
        if progress is not None:
            progress("campaign", done / total)
    table = with_commit(_dataset(axes, found, plan))
    write_zarr(table, store)
    return table


def _hashable(settings: Mapping[str, Any]) -> tuple:
    return tuple((key, tuple(value) if isinstance(value, list) else value) for key, value in settings.items())


@lru_cache(maxsize=8)
def _loaded(name: str, settings: tuple) -> Task:
    """The same object again, for which everything is compiled already."""
    return load_task(name, **dict(settings))


def _dataset(axes: Mapping[str, list], found: Mapping[tuple, dict], plan: Plan) -> xr.Dataset:
    step = plan.axis
    variables: dict[str, Any] = {
        name: ((*_AXES, "step"), gathered(axes, found, name, step.size), {"units": units, "long_name": text})
        for name, (units, text) in SERIES.items()
    }
    variables |= {
        name: (_AXES, gathered(axes, found, name), {"units": units, "long_name": text})
        for name, (units, text) in NUMBERS.items()
    }
    variables |= {name: (_AXES, words_of(axes, found, name)) for name in ("status", "reason", "caution")}
    coords = {**axes, "step": ("step", step, {"units": "1", "long_name": "steps since the checkpoint"})}
    table = xr.Dataset(variables, coords=coords)
    late = table.isel(step=plan.late)
    ratios = {
        f"{name}_ratio": _ratio(
            *(late[f"{kind}_{name}"].mean("step", skipna=False) for kind in ("forecast", "measured"))
        )
        for name in ("sharpness", "loss", "variance")
    }
    margins = {"sharpness_margin": SHARPNESS_MARGIN, "loss_margin": LOSS_MARGIN}
    return table.assign(ratios).assign_attrs(provenance(kind=_KIND, **asdict(plan), **margins))


def _ratio(forecast: xr.DataArray, measured: xr.DataArray) -> xr.DataArray:
    """Forecast over measured in the mean of the last third; NaN where one is missing, or no fluctuation is forecast."""
    ratio = forecast.where(forecast > 0) / measured.where(measured > 0)
    return ratio.assign_attrs(units="1", long_name="forecast over measured, last third of the steps")


def _check_plan(plan: Plan) -> None:
    check_counts(
        steps=(plan.steps, 1),
        replicas=(plan.replicas, 3),
        warmup=(plan.warmup, 2),
        save_every=(plan.save_every, 2),
    )
    if plan.save_every % 2 or plan.steps % plan.save_every or plan.steps < 3 * plan.save_every:
        raise InvalidInput(
            f"save_every={plan.save_every} must be even, and steps={plan.steps} three or more times as many"
        )


def _check_store(store: Path) -> None:
    if store.suffix != ".zarr":
        raise InvalidInput(f"store={store} must end in .zarr")
    if not store.exists():
        return
    group = store / "zarr.json"
    if not group.is_file() or json.loads(group.read_text()).get("attributes", {}).get("kind") != _KIND:
        raise InvalidInput(f"store={store} exists and holds no campaign: choose another name")
