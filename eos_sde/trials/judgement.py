"""What the judged runs of a comparison say: each rule's numbers, their intervals, and the tests against a reference."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from eos_sde.trials.costs import Flops, task_flops, work_of
from eos_sde.trials.milestones import Target, end_loss, first_reached, mean_loss_variance
from eos_sde.trials.significance import holm, mean_interval, paired_difference, paired_ratio
from eos_sde.trials.trial import split_task


class Metric(NamedTuple):
    """A number of every judged run.

    Attributes
    ----------
    units, long_name : str
        For people.
    versus : {"ratio", "difference", ""}
        How it is compared with the reference; "" for not at all.
    better : int
        1 where more is better, -1 where less is, 0 where neither is.
    """

    units: str
    long_name: str
    versus: str
    better: int


METRICS: Mapping[str, Metric] = {
    "steps_to_target": Metric("1", "updates to the target", "ratio", -1),
    "epochs_to_target": Metric("1", "epochs to the target", "", -1),
    "gradients_to_target": Metric("1", "gradient-equivalents to the target", "ratio", -1),
    "seconds_to_target": Metric("s", "time in updates to the target", "ratio", -1),
    "best_validation_loss": Metric("1", "least validation loss", "ratio", -1),
    "end_validation_loss": Metric("1", "validation loss at the end", "ratio", -1),
    "final_train_loss": Metric("1", "training loss at the end", "ratio", -1),
    "test_loss": Metric("1", "test loss at the end", "difference", -1),
    "test_accuracy": Metric("1", "test accuracy at the end", "difference", 1),
    "test_nll": Metric("1", "negative log-likelihood of the test labels", "", -1),
    "test_brier": Metric("1", "Brier score on the test examples", "difference", -1),
    "test_ece": Metric("1", "expected calibration error", "difference", -1),
    "final_sharpness": Metric("1/time", "sharpness at the end", "ratio", 0),
    "gradient_equivalents": Metric("1", "gradient-equivalents of the whole run", "", -1),
    "flops_per_sample": Metric("1", "floating-point operations for an example of a batch", "", -1),
    "seconds": Metric("s", "time in updates of the whole run", "", -1),
    "energy_joules": Metric("J", "energy in that time", "", -1),
}
"""Of every judged run; the last measured on a clock are not the same when a run is repeated."""
_PATHS = ("validation_loss", "train_loss", "gradient_equivalents")


def judged_dataset(contest: Any, runs: Mapping[tuple[str, int], xr.Dataset], goal: Target) -> xr.Dataset:
    """Numbers, intervals and tests of the judged runs.

    Parameters
    ----------
    contest : Contest
        What was run.
    runs : mapping
        (rule, seed) to the run.
    goal : Target
        What had to be reached.

    Returns
    -------
    Dataset
        Over (rule, seed): `METRICS` and ``diverged``; over rule for each: ``NAME_mean``, ``NAME_low`` and
        ``NAME_high`` (95 % of Student's law over the seeds), and where it is compared ``NAME_versus`` with ``_low``
        and ``_high`` (geometric mean ratio to the reference, or mean difference, paired by the seed), ``NAME_p`` and
        ``NAME_p_holm`` (corrected for the number of rules). Ratios and intervals are NaN where a seed did not reach
        the target or diverged: what is left would be chosen by success. Over rule: ``diverged_runs``,
        ``reached_runs``, ``loss_variance`` (the proposal's stability). Over (rule, seed, step): paths; over
        (rule, seed, bin): the reliability diagrams, where the loss has probabilities.
    """
    rules, seeds = contest.rules, contest.seeds
    shape = len(rules), len(seeds)
    flops = task_flops(split_task(contest.trial(rules[0], None, seeds[0])).training, contest.batch_size)
    numbers = {name: np.full(shape, np.nan) for name in METRICS}
    diverged = np.zeros(shape, bool)
    steps = np.arange(0, contest.steps + 1, contest.every)
    paths = {name: np.full((*shape, steps.size), np.nan) for name in _PATHS}
    for row, rule in enumerate(rules):
        for column, seed in enumerate(seeds):
            run = runs[rule, seed]
            diverged[row, column] = bool(run["diverged"])
            for name, values in _of_run(contest, rule, run, goal, flops).items():
                numbers[name][row, column] = values
            for name in _PATHS:
                values = run[name].values
                paths[name][row, column, : values.size] = values
    reference = rules.index(contest.reference)
    contents: dict[str, Any] = {}
    for name, metric in METRICS.items():
        contents |= _summary(name, metric, numbers[name], reference)
    for name in _PATHS:
        text = runs[rules[0], seeds[0]][name].attrs
        contents[f"{name}_path"] = (("rule", "seed", "step"), paths[name], text)

    def variable(dims: tuple[str, ...], values: Any, long_name: str, units: str = "1") -> tuple:
        return dims, values, {"units": units, "long_name": long_name}

    reached = np.isfinite(numbers["steps_to_target"]).sum(axis=1)
    contents["diverged"] = variable(("rule", "seed"), diverged, "whether the run diverged")
    contents["diverged_runs"] = variable(("rule",), diverged.sum(axis=1), "judged runs that diverged")
    contents["reached_runs"] = variable(("rule",), reached, "judged runs that reached the target")
    contents["loss_variance"] = variable(
        ("rule",),
        [mean_loss_variance(one) for one in paths["train_loss"]],
        "mean over the steps of the variance of the training loss between the seeds",
    )
    if "reliability_count" in next(iter(runs.values())):
        for part in ("confidence", "accuracy", "count"):
            contents[f"reliability_{part}"] = _bins(runs, rules, seeds, f"reliability_{part}")
    coords = {"rule": list(rules), "seed": list(seeds), "step": steps}
    return xr.Dataset(contents, coords)


def _of_run(contest: Any, rule: str, run: xr.Dataset, goal: Target, flops: Flops) -> dict[str, float]:
    trial = contest.trial(rule, None, int(run.attrs["seed"]))
    updates = int(run["step"][-1])
    reached = goal.reached(run["validation_loss"], run["validation_accuracy"])
    found = {
        f"{short}_to_target": first_reached(run[long], reached)
        for short, long in (
            ("steps", "step"), ("epochs", "epoch"), ("gradients", "gradient_equivalents"), ("seconds", "seconds"),
        )
    }  # fmt: skip
    if bool(run["diverged"]):
        found = dict.fromkeys(found, np.nan)
    else:
        work = work_of([run[name][-1] for name in ("linearizations", "products", "slopes")])
        examples = trial.probe or trial.batch_size
        total = flops.of(work, gradients=updates, examples=examples, batch_size=trial.batch_size)
        found |= {
            "best_validation_loss": float(run["validation_loss"].min()),
            "end_validation_loss": end_loss(run["validation_loss"]),
            "final_train_loss": float(run["train_loss"][-1]),
            "flops_per_sample": total / (updates * trial.batch_size),
        }
        found |= {name: float(run[name][-1]) for name in ("gradient_equivalents", "seconds")}
        if "energy_joules" in run:  # runs that were kept before energy had this name tell none
            found["energy_joules"] = float(run["energy_joules"][-1])
    names = ("test_loss", "test_accuracy", "test_nll", "test_brier", "test_ece", "final_sharpness")
    return found | {name: float(run[name]) for name in names}


def _summary(name: str, metric: Metric, values: np.ndarray, reference: int) -> dict[str, Any]:
    text = {"units": metric.units, "long_name": metric.long_name}
    found: dict[str, Any] = {name: (("rule", "seed"), values, text)}
    intervals = np.array([mean_interval(row) for row in values])
    for part, column in zip(("mean", "low", "high"), intervals.T, strict=True):
        found[f"{name}_{part}"] = (("rule",), column, text)
    if not metric.versus:
        return found
    compared = paired_ratio if metric.versus == "ratio" else paired_difference
    against = np.array([compared(row, values[reference]) for row in values])
    against[reference, 3] = np.nan  # itself is no test
    corrected = holm(against[:, 3])
    words = f"{metric.long_name}: {metric.versus} to the reference"
    units = {"units": "1" if metric.versus == "ratio" else metric.units, "long_name": words}
    columns = [*against.T, corrected]
    for part, column in zip(("versus", "versus_low", "versus_high", "p", "p_holm"), columns, strict=True):
        found[f"{name}_{part}"] = (("rule",), column, units | ({"units": "1"} if part[0] == "p" else {}))
    return found


def _bins(runs: Mapping, rules: tuple, seeds: tuple, name: str) -> tuple:
    size = max(run.sizes.get("bin", 0) for run in runs.values())
    values = np.full((len(rules), len(seeds), size), np.nan)
    text: dict[str, Any] = {}
    for row, rule in enumerate(rules):
        for column, seed in enumerate(seeds):
            run = runs[rule, seed]
            if name in run:
                values[row, column], text = run[name].values, run[name].attrs
    return ("rule", "seed", "bin"), values, text
