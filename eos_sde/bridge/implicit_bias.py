"""Implicit bias: how flat the weights are where each rule ends, and how well they classify; forecast and run.

The flows speak of the averaged path, so a forecast is held against the mean of the weights over independent runs
and over the last steps; what single iterates show is measured beside it.
"""

import hashlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from eos_sde.bridge.averaged_path import checked_weights
from eos_sde.bridge.campaign_cells import forecast, stderr_of_mean, timed, words_on
from eos_sde.bridge.campaign_runs import RULES, Cell, Checkpoint, Plan, plain_checkpoint
from eos_sde.bridge.cells import (
    batch_of,
    check_axes,
    check_counts,
    gathered,
    kept_cell,
    numbered,
    plain,
    words_of,
)
from eos_sde.bridge.endpoint import PROBES_TOGETHER, QUANTITIES, at_their_mean, over_runs, quantities_at
from eos_sde.bridge.recorder import record
from eos_sde.bridge.task_library import Task, defining_settings, load_task
from solvers.errors import AccuracyWarning, InvalidInput
from solvers.provenance import provenance

MARGIN = 0.05
"""Relative difference up to which a forecast of an endpoint counts as good."""
_AXES = ("rule", "batch", "seed")


def _described() -> dict[str, tuple[str, str]]:
    described: dict[str, tuple[str, str]] = {}
    for name, (units, text) in QUANTITIES.items():
        described |= {
            f"predicted_{name}": (units, f"{text}, at the forecast averaged weights"),
            f"measured_{name}": (units, f"{text}, at the mean weights of the runs (jackknife)"),
            f"measured_{name}_stderr": (units, "its standard error over the runs"),
            f"iterate_{name}": (units, f"{text}, at single iterates, mean over the runs"),
            f"iterate_{name}_stderr": (units, "its standard error over the runs"),
        }
    return described | {
        "predicted_iterate_sharpness": ("1/time", "sharpness of single iterates, forecast"),
        "predicted_iterate_loss": ("1", "training loss of single iterates, forecast mean"),
        "trace_probe_stderr": ("1/time", "error of a trace by its probes, which are the same for all"),
        "moved": ("weight", "distance from the checkpoint to the mean of the runs"),
        "distance": ("weight", "distance of the forecast weights from that mean"),
        "mean_stderr": ("weight", "sampling error of that mean, which a perfect forecast would show"),
        "eta": ("time", "learning rate"),
        "examples": ("1", "examples in a batch"),
        "diverged": ("1", "runs that diverged"),
        "forecast_seconds": ("s", "CPU time of the forecast, with compilation"),
        "measured_seconds": ("s", "CPU time of the runs and their measurement, with compilation"),
    }


NUMBERS = _described()
WORDS = {
    "status": '"done", "does not apply" (the flow stopped, or all runs diverged), "failed" or "left out"',
    "reason": "why it is not done",
    "caution": "what the flow says against its own forecast",
}


@dataclass(frozen=True)
class _Lengths:
    """How long and how closely; see `implicit_bias_table`."""

    steps: int
    replicas: int
    warmup: int
    window: int
    probes: int

    @property
    def plan(self) -> Plan:
        return Plan(self.steps, self.replicas, self.warmup, save_every=self.window // 2)


def implicit_bias_table(
    task: Task | str,
    *,
    rules: Sequence[str] = ("gd", "sgd", "sgdm", "caeo"),
    batch_sizes: Sequence[int | str] = (4, 32, "all"),
    seeds: int | Sequence[int] = 1,
    steps: int = 500,
    replicas: int = 6,
    warmup: int = 100,
    window: int = 50,
    probes: int = 64,
    start: ArrayLike | None = None,
    store: Path | str | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> xr.Dataset:
    """Where each rule ends at each batch size, by forecast and by real runs from one checkpoint.

    All rules of a seed begin at the same weights, without a memory: those after `warmup` steps of SGD at batch 32 (see
    `checkpoint`). The forecast is the end of `stochastic_central_flow` (`central_flow` for all examples) and sees the
    checkpoint and nothing else. The runs are those of `record`, with batches of their own.

    Compared is ``predicted_*`` with ``measured_*``: the flow's weights at the end, and the weights of the runs averaged
    over `window` steps about the end and over the replicas, whose remaining fluctuation a jackknife takes out.
    ``iterate_*`` are means over the single last iterates, half a window later, which no flow's weights stand for;
    of these ``predicted_iterate_sharpness`` and ``predicted_iterate_loss`` are forecast (mean over the last two saved
    points of the flow).

    Parameters
    ----------
    task : Task or str
        A task or its name.
    rules : sequence of {"gd", "sgd", "sgdm", "nesterov", "rmsprop", "adam", "caeo"}
        "gd" takes all examples; its cells at other batch sizes are left out, and so is "sgd" with all examples beside
        it. Learning rates are those of `run_campaign`.
    batch_sizes : sequence of int or "all"
        Below the number of examples, without replacement.
    seeds : int or sequence of int
        How many, from 0; or which. Of the weights and the batches.
    steps : int
        From the checkpoint to the end; a multiple of half the window.
    replicas : int
        Runs of a cell, at least 3; one where the batch is all examples.
    warmup : int
        Steps to the checkpoint.
    window : int
        Steps over which weights are averaged: even, so that an alternation cancels, and centred on the end, so that a
        drift does; the runs go on for half of it.
    probes : int
        Random vectors of the traces, a multiple of 16; the same at any weights.
    start : array, optional
        Weights (d,) to begin at with every seed, instead of the checkpoint.
    store : path, optional
        Folder for the finished cells, a JSON file each, which are not computed again. Without it nothing is kept.
    progress : callable, optional
        Called with "implicit bias" and the fraction done.

    Returns
    -------
    Dataset (rule, batch, seed)
        For each of ``sharpness``, ``trace`` (of the Hessian of the training loss), ``loss``, ``test_loss`` and
        ``test_accuracy`` (NaN for a regression): ``predicted_*``, ``measured_*``, ``iterate_*``, the last two with
        ``*_stderr``, ``*_ratio`` (predicted over measured), and ``start_*`` (seed) at the checkpoint.
        ``predicted_iterate_sharpness``, ``predicted_iterate_loss``; ``trace_probe_stderr``, which cancels in ratios;
        ``moved``, ``distance``, ``mean_stderr``, ``eta``, ``examples``, ``diverged``, ``forecast_seconds``,
        ``measured_seconds``; ``status``, ``reason``, ``caution``.

    Raises
    ------
    InvalidInput
        For unknown names, sizes out of range, or cells made with other settings.
    """
    axes = {
        "rule": list(rules), "batch": [str(b) for b in batch_sizes], "seed": numbered(seeds),
    }  # fmt: skip
    lengths = _Lengths(steps, replicas, warmup, window, probes)
    check_axes(axes, {"rule": tuple(RULES)})
    _check(lengths)
    task = load_task(task) if isinstance(task, str) else task
    if not isinstance(task, Task):
        raise InvalidInput(f"task={task!r} is not a Task; make one with load_task(name)")
    sizes = {label: batch_of(label, task) for label in axes["batch"]}
    given = None if start is None else np.asarray(checked_weights(task, start))
    with TemporaryDirectory() as nowhere:
        grid = _Grid(task, lengths, given, Path(nowhere if store is None else store))
        begins = [grid.beginning(seed) for seed in axes["seed"]]
        found, total = {}, math.prod(map(len, axes.values()))
        for done, (seed, rule, label) in enumerate(
            product(axes["seed"], axes["rule"], axes["batch"]), start=1
        ):
            found[rule, label, seed] = grid.get(
                Cell(task, rule, sizes[label], seed), has_descent="gd" in axes["rule"]
            )
            if progress is not None:
                progress("implicit bias", done / total)
    return _dataset(axes, found, begins, task, lengths)


class _Grid:
    """All cells of a task, each solved once."""

    def __init__(self, task: Task, lengths: _Lengths, start: NDArray | None, folder: Path) -> None:
        self.task, self.lengths, self.start, self.folder = task, lengths, start, folder

    def get(self, cell: Cell, *, has_descent: bool) -> dict[str, Any]:
        """A finished cell, or a new one; SGD with all examples is gradient descent, and is not there twice."""
        if cell.rule == "gd" and not cell.full:
            return _filled({}, status="left out", reason="gradient descent takes all examples")
        if cell.rule == "sgd" and cell.full:
            if has_descent:
                return _filled({}, status="left out", reason="SGD with all examples is gradient descent")
            cell = replace(cell, rule="gd")
        label = "all" if cell.full else cell.batch_size
        name = f"{self.task.name}_{cell.rule}_batch-{label}_seed{cell.seed}.json"
        return kept_cell(self.folder / name, cell.settings | self._decided, lambda: self._solve(cell))

    def beginning(self, seed: int) -> dict[str, Any]:
        """The quantities at the checkpoint."""
        settings = {"task": defining_settings(self.task.name, self.task.settings)} | self._decided

        def solve() -> dict[str, Any]:
            at = quantities_at(self.task, self._weights(seed), probes=self.lengths.probes)
            return {name: plain(at[name]) for name in QUANTITIES} | {"status": "done"}

        return kept_cell(self.folder / f"{self.task.name}_start_seed{seed}.json", settings, solve)

    @property
    def _decided(self) -> dict[str, Any]:
        digest = None if self.start is None else hashlib.sha256(self.start.tobytes()).hexdigest()
        return {"lengths": asdict(self.lengths), "start": digest}

    def _weights(self, seed: int) -> NDArray:
        return plain_checkpoint(self.task, self.lengths.warmup, seed) if self.start is None else self.start

    def _solve(self, cell: Cell) -> dict[str, Any]:
        numbers = {"eta": cell.eta, "examples": cell.batch_size}
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # of runs that diverge
                known, words = self._compared(cell)
        except Exception as failure:  # one cell of many: its reason is kept, and the others go on
            return _filled(numbers, status="failed", reason=f"{type(failure).__name__}: {failure}")
        return _filled(numbers | known, **words)

    def _compared(self, cell: Cell) -> tuple[dict[str, Any], dict[str, str]]:
        begin, lengths = self._weights(cell.seed), self.lengths
        seen = Checkpoint(begin, state=None, direction=np.zeros_like(begin))  # no variance is asked for
        flow, forecast_seconds = timed(lambda: forecast(cell, seen, lengths.plan))
        (means, known, lost), measured_seconds = timed(lambda: self._measured(cell, begin))
        stopped = flow.attrs["stopped"]
        known |= {
            "diverged": lost,
            "measured_seconds": measured_seconds,
            "forecast_seconds": forecast_seconds,
        }
        if not stopped:
            end = flow["final_params"].values
            at, late = quantities_at(self.task, end, probes=lengths.probes), flow.isel(step=slice(-2, None))
            known |= {f"predicted_{name}": at[name] for name in QUANTITIES}
            known |= {
                f"predicted_iterate_{name}": float(late[of].mean())
                for name, of in (("sharpness", "iterate_sharpness"), ("loss", "mean_loss"))
            }
        if len(means):
            mean = means.mean(axis=0)
            known["moved"] = np.linalg.norm(mean - begin)
            known["mean_stderr"] = stderr_of_mean(means) if len(means) > 1 else 0.0
            known["distance"] = np.nan if stopped else np.linalg.norm(flow["final_params"].values - mean)
        return known, words_on(flow, lost, measured=len(means) > 0)

    def _measured(self, cell: Cell, begin: NDArray) -> tuple[NDArray, dict[str, Any], int]:
        """Averaged weights of the runs that did not diverge, the quantities there and at the last iterates."""
        lengths, steps = self.lengths, self.lengths.steps + self.lengths.window // 2
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AccuracyWarning)  # counted and told in the reason
            run = record(
                self.task, cell.rule, steps=steps, start=begin, every=steps, curvature=False,
                replicas=1 if cell.full else lengths.replicas, average=lengths.window, **cell.run_settings,
            )  # fmt: skip
        kept = ~run["diverged"].values
        means, last = run["mean_params"].values[kept], run["final_params"].values[kept]
        if not kept.any():
            return means, {}, len(kept)
        there = at_their_mean(self.task, means, probes=lengths.probes)
        known = {name if name == "trace_probe_stderr" else f"measured_{name}": v for name, v in there.items()}
        known |= {
            f"iterate_{name}": v for name, v in over_runs(self.task, last, probes=lengths.probes).items()
        }
        return means, known, int((~kept).sum())


def _filled(known: Mapping[str, Any], *, status: str, reason: str, caution: str = "") -> dict[str, Any]:
    numbers = {name: plain(value) for name, value in known.items()}
    return dict.fromkeys(NUMBERS) | numbers | {"status": status, "reason": reason, "caution": caution}


def _dataset(
    axes: Mapping[str, list], found: Mapping[tuple, dict], begins: list[dict], task: Task, lengths: _Lengths
) -> xr.Dataset:
    variables: dict[str, Any] = {
        name: (_AXES, gathered(axes, found, name), {"units": units, "long_name": text})
        for name, (units, text) in NUMBERS.items()
    }
    variables |= {
        name: (_AXES, words_of(axes, found, name), {"units": "1", "long_name": text})
        for name, text in WORDS.items()
    }
    for name, (units, text) in QUANTITIES.items():
        values = np.array([begin[name] for begin in begins], dtype=float)
        variables[f"start_{name}"] = (
            "seed",
            values,
            {"units": units, "long_name": f"{text}, at the checkpoint"},
        )
    table = xr.Dataset(variables, coords=axes)
    ratios = {}
    for name, (_, text) in QUANTITIES.items():
        ratio = table[f"predicted_{name}"] / table[f"measured_{name}"].where(table[f"measured_{name}"] > 0)
        ratios[f"{name}_ratio"] = ratio.assign_attrs(units="1", long_name=f"{text}, predicted over measured")
    attrs = provenance(
        kind="implicit bias", task=task.name, description=task.description, data_source=task.source,
        data_licence=task.licence, test_examples=task.x_test.shape[0], margin=MARGIN, **asdict(lengths),
    )  # fmt: skip
    return table.assign(ratios).assign_attrs(attrs)


def _check(lengths: _Lengths) -> None:
    check_counts(
        steps=(lengths.steps, 1), replicas=(lengths.replicas, 3), warmup=(lengths.warmup, 2),
        window=(lengths.window, 4), probes=(lengths.probes, PROBES_TOGETHER),
    )  # fmt: skip
    if lengths.window % 2 or lengths.steps % (lengths.window // 2):
        raise InvalidInput(
            f"window={lengths.window} must be even, and steps={lengths.steps} one of half of it"
        )
    if lengths.window > lengths.steps:
        raise InvalidInput(f"window={lengths.window} must be at most steps={lengths.steps}")
    if lengths.probes % PROBES_TOGETHER:
        raise InvalidInput(f"probes={lengths.probes} must be a multiple of {PROBES_TOGETHER}")
