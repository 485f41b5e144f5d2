"""Predicted against measured onset over networks, losses, batch sizes and seeds: resumable, one file per cell."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import xarray as xr

from eos_sde import thresholds
from eos_sde.bridge.interpolation_tasks import interpolation_task
from eos_sde.bridge.minimum import Minimum, find_minimum
from eos_sde.bridge.onset import CRITERIA, measure_onset
from eos_sde.bridge.task_library import Task
from solvers.errors import ConvergenceFailure, InvalidInput
from solvers.provenance import provenance
from solvers.whole_files import write_whole

LOSSES = ("half-squared-error", "cross-entropy")
MARGIN = 0.03
"""Relative difference up to which a prediction counts as good."""
_NORMAL_95 = 1.96
_TYPICAL_REPLICAS = 4
_NUMBERS = {
    "predicted": ("time", "predicted threshold, learning rate"),
    "predicted_stderr": ("time", "error of the prediction"),
    "measured": ("time", "measured onset, learning rate"),
    "measured_stderr": ("time", "standard error of the measured onset"),
    "sharpness": ("1/time", "largest Hessian eigenvalue at the minimum"),
}


@dataclass(frozen=True)
class OnsetNetwork:
    """A network of the table.

    Attributes
    ----------
    task : str
        One of `tasks()`.
    settings : mapping
        Over those of `interpolation_task`.
    """

    task: str
    settings: Mapping[str, Any]

    def load(self, loss: str, examples: int) -> Task:
        """Its task with so many examples and one of the two losses."""
        return interpolation_task(self.task, **{**self.settings, "loss": loss, "examples": examples})


def _network(task: str, **settings: Any) -> OnsetNetwork:
    return OnsetNetwork(task, MappingProxyType(settings))


NETWORKS: Mapping[str, OnsetNetwork] = MappingProxyType(
    {
        "digits-tanh": _network("digits-mlp"),
        "digits-gelu": _network("digits-mlp", hidden=(16, 16), activation="gelu", outputs="one-hot"),
        "digits-convolution": _network("digits-mlp", hidden=(), channels=12, centre=True),
        "fashion-softplus": _network("fashion-mlp", hidden=(16, 16), activation="softplus"),
    }
)
"""Shallow tanh on parity; deeper gelu on ten classes; convolution on parity of centred images; deeper softplus on
parity of Fashion labels."""


@dataclass(frozen=True)
class Effort:
    """Size of the minima and of the measurements.

    Attributes
    ----------
    examples : int
        n, at least the largest batch.
    populations, horizon : int
    tolerance : float
        As for `measure_onset`.
    typical_horizon : int
        Horizon of the almost-sure criterion, which slow modes delay.
    rtol : float
        Of the predicted almost-sure threshold.
    """

    examples: int
    populations: int
    horizon: int
    tolerance: float
    typical_horizon: int
    rtol: float

    def settings(self, criterion: str) -> dict[str, Any]:
        """What decides a cell of a criterion."""
        own = {"examples": self.examples, "populations": self.populations, "tolerance": self.tolerance}
        if criterion == "mean-square":
            return own | {"horizon": self.horizon}
        return own | {"horizon": self.typical_horizon, "replicas": _TYPICAL_REPLICAS, "rtol": self.rtol}

    def measurement(self, criterion: str) -> dict[str, Any]:
        """Arguments of `measure_onset`."""
        return {
            key: value for key, value in self.settings(criterion).items() if key not in ("examples", "rtol")
        }


FULL = Effort(examples=64, populations=4, horizon=400, tolerance=0.02, typical_horizon=4000, rtol=0.005)
QUICK = Effort(examples=16, populations=4, horizon=200, tolerance=0.03, typical_horizon=1600, rtol=0.01)


def onset_table(
    folder: Path | str,
    *,
    networks: Sequence[str] = tuple(NETWORKS),
    losses: Sequence[str] = LOSSES,
    batch_sizes: Sequence[int] = (1, 4, 16, 64),
    seeds: Sequence[int] = (0, 1, 2),
    criteria: Sequence[str] = ("mean-square",),
    effort: Effort = FULL,
    progress: Callable[[str, float], None] | None = None,
) -> xr.Dataset:
    """Predict the onset of instability at interpolating minima, measure it on the networks' own SGD, and compare.

    Every cell of the table is a network, a loss, a batch size, a seed (of the initial weights and the batches) and a
    criterion. The prediction sees the minimum's per-example Jacobian alone; the measurement is
    `measure_onset` from its default bracket, to which no prediction is told. A finished cell is a JSON file in
    the folder, written whole or not at all, and is not computed again.

    Parameters
    ----------
    folder : path
        Where the cells are; made if it does not exist. Several processes may fill one folder.
    networks : sequence of str
        Of `NETWORKS`.
    losses : sequence of {"half-squared-error", "cross-entropy"}
    batch_sizes : sequence of int
        From 1 to the number of examples, where SGD is gradient descent.
    seeds : sequence of int
    criteria : sequence of {"mean-square", "almost-sure"}
        Predicted by `sgd_mean_square` and `sgd_almost_sure`.
    effort : Effort
        `FULL` or `QUICK`, or your own.
    progress : callable, optional
        Called with "onsets" and the fraction done.

    Returns
    -------
    Dataset (network, loss, criterion, batch_size, seed)
        ``predicted``, ``predicted_stderr``, ``measured``, ``measured_stderr``, ``sharpness``; ``ratio`` (measured
        over predicted), ``ratio_stderr`` and its 95 % interval ``ratio_low``, ``ratio_high``; ``verdict``: "within
        3 %", "within its error" (the interval meets 3 %), "off", or "not measured", and then ``reason`` says why.

    Raises
    ------
    InvalidInput
        For unknown names, sizes out of range, or a folder whose cells were made with other settings.
    """
    axes = {
        "network": list(networks), "loss": list(losses), "criterion": list(criteria),
        "batch_size": [int(size) for size in batch_sizes], "seed": [int(seed) for seed in seeds],
    }  # fmt: skip
    _check(axes, effort)
    cells = _Cells(Path(folder), effort)
    total, done = math.prod(map(len, axes.values())), 0
    found = {}
    for network, loss, seed in product(axes["network"], axes["loss"], axes["seed"]):
        problem = _Problem(network, loss, seed, effort)
        for criterion, batch_size in product(axes["criterion"], axes["batch_size"]):
            key = (network, loss, criterion, batch_size, seed)
            found[key] = cells.get(key, problem)
            done += 1
            if progress is not None:
                progress("onsets", done / total)
    return _dataset(axes, found, effort)


class _Problem:
    """A network with its minimum, which is looked for when the first cell needs it."""

    def __init__(self, network: str, loss: str, seed: int, effort: Effort):
        self._names, self._seed, self._effort = (network, loss), seed, effort
        self._found: tuple[Task, Minimum] | None = None

    def solve(self, criterion: str, batch_size: int) -> dict[str, Any]:
        """Prediction and measurement of a cell; where an iteration fails, the reason."""
        effort = self._effort
        try:
            if self._found is None:
                task = _task(*self._names, effort.examples)
                self._found = task, find_minimum(task, seed=self._seed)
            task, minimum = self._found
            predicted = _predict(minimum, criterion, batch_size, self._seed, effort)
            onset = measure_onset(
                task, minimum, batch_size=batch_size, seed=self._seed, criterion=criterion,
                **effort.measurement(criterion),
            )  # fmt: skip
        except ConvergenceFailure as failure:
            return dict.fromkeys(_NUMBERS, None) | {"reason": str(failure)}
        return {
            "predicted": predicted.value,
            "predicted_stderr": predicted.stderr,
            "measured": float(onset["eta"]),
            "measured_stderr": float(onset["eta_stderr"]),
            "sharpness": minimum.sharpness,
            "reason": "",
        }


@lru_cache(maxsize=1)
def _task(network: str, loss: str, examples: int) -> Task:
    """The same object for all seeds, so that its SGD steps are compiled once."""
    return NETWORKS[network].load(loss, examples)


def _predict(
    minimum: Minimum, criterion: str, batch_size: int, seed: int, effort: Effort
) -> thresholds.Threshold:
    if criterion == "mean-square":
        return thresholds.sgd_mean_square(minimum.jacobian, weights=minimum.weights, batch_size=batch_size)
    return thresholds.sgd_almost_sure(
        minimum.jacobian, weights=minimum.weights, batch_size=batch_size, seed=seed, rtol=effort.rtol
    )


class _Cells:
    """The folder of finished cells."""

    def __init__(self, folder: Path, effort: Effort):
        self._folder, self._effort = folder, effort

    def get(self, key: tuple, problem: _Problem) -> dict[str, Any]:
        """A finished cell, or a new one that is kept at once."""
        network, loss, criterion, batch_size, seed = key
        path = self._folder / f"{network}_{loss}_{criterion}_batch{batch_size}_seed{seed}.json"
        settings = {
            "effort": self._effort.settings(criterion),
            "task": NETWORKS[network].task,
            "settings": {
                k: list(v) if isinstance(v, tuple) else v for k, v in NETWORKS[network].settings.items()
            },
        }
        if path.exists():
            cell = json.loads(path.read_text())
            if {name: cell.get(name) for name in settings} != settings:
                raise InvalidInput(f"{path} was made with other settings; choose another folder")
            return cell
        cell = problem.solve(criterion, batch_size) | settings | provenance()
        write_whole(path, f"{json.dumps(cell, indent=1)}\n".encode())
        return cell


def _dataset(axes: Mapping[str, list], found: Mapping[tuple, dict], effort: Effort) -> xr.Dataset:
    dims = tuple(axes)
    shape = tuple(len(values) for values in axes.values())
    order = list(product(*axes.values()))

    def array(name: str, kind: Any) -> np.ndarray:
        missing = math.nan if kind is float else ""
        values = [found[key][name] for key in order]
        return np.array([missing if value is None else value for value in values], dtype=kind).reshape(shape)

    columns = {
        name: (dims, array(name, float), {"units": units, "long_name": text})
        for name, (units, text) in _NUMBERS.items()
    }
    table = xr.Dataset(columns, coords=axes).assign(reason=(dims, array("reason", object).astype(str)))
    return _compared(table).assign_attrs(provenance(margin=MARGIN, **asdict(effort)))


def _compared(table: xr.Dataset) -> xr.Dataset:
    ratio = table["measured"] / table["predicted"]
    stderr = ratio * np.hypot(
        table["measured_stderr"] / table["measured"], table["predicted_stderr"] / table["predicted"]
    )
    low, high = ratio - _NORMAL_95 * stderr, ratio + _NORMAL_95 * stderr
    beyond = (low > 1 + MARGIN) | (high < 1 - MARGIN)
    verdict = xr.where(
        abs(ratio - 1) <= MARGIN, f"within {100 * MARGIN:g} %", xr.where(beyond, "off", "within its error")
    ).where(np.isfinite(ratio), "not measured")
    texts = {
        "ratio": (ratio, "measured onset over predicted threshold"),
        "ratio_stderr": (stderr, "its standard error"),
        "ratio_low": (low, "lower end of its 95 % interval"),
        "ratio_high": (high, "upper end of its 95 % interval"),
        "verdict": (verdict, "judged by the margin of 3 % and the interval"),
    }
    return table.assign(
        {name: value.assign_attrs(units="1", long_name=text) for name, (value, text) in texts.items()}
    )


def summarise_onsets(table: xr.Dataset) -> xr.Dataset:
    """Mean over the seeds.

    Parameters
    ----------
    table : Dataset
        From `onset_table`.

    Returns
    -------
    Dataset (network, loss, criterion, batch_size)
        ``ratio``; ``ratio_stderr``, the larger of the error that the cells' errors give and of the scatter between
        seeds over the root of their number; ``relative_to_edge``: predicted threshold times sharpness / 2;
        ``within``: how many seeds are within 3 %.
    """
    count = table["ratio"].count("seed")
    propagated = np.sqrt((table["ratio_stderr"] ** 2).sum("seed")) / count
    scatter = (
        table["ratio"].std("seed", ddof=1) / np.sqrt(count) if table.sizes["seed"] > 1 else 0 * propagated
    )
    texts = {
        "ratio": (table["ratio"].mean("seed"), "measured onset over predicted threshold"),
        "ratio_stderr": (np.fmax(propagated, scatter), "its standard error"),
        "relative_to_edge": (
            (table["predicted"] * table["sharpness"] / 2).mean("seed"), "predicted threshold over 2/sharpness",
        ),
        "within": ((abs(table["ratio"] - 1) <= MARGIN).sum("seed"), "seeds within 3 %"),
    }  # fmt: skip
    return xr.Dataset(
        {name: value.assign_attrs(units="1", long_name=text) for name, (value, text) in texts.items()},
        attrs=table.attrs,
    )


def _check(axes: Mapping[str, list], effort: Effort) -> None:
    for name, allowed in (("network", NETWORKS), ("loss", LOSSES), ("criterion", CRITERIA)):
        for value in axes[name]:
            if value not in allowed:
                raise InvalidInput(f"{name}={value!r} is not known: choose one of {', '.join(allowed)}")
    for name, values in axes.items():
        if not values or len(set(values)) < len(values):
            raise InvalidInput(f"{name}={values} must be one or more different values")
    for size in axes["batch_size"]:
        if not 1 <= size <= effort.examples:
            raise InvalidInput(f"batch_size={size} must lie between 1 and {effort.examples}, the examples")
    if min(axes["seed"]) < 0:
        raise InvalidInput(f"seed={min(axes['seed'])} must be at least 0")
