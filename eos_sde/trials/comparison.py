"""Rules against each other on a task: all tuned by the same budget, judged on seeds that no tuning saw."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from eos_sde.bridge.cells import check_counts
from eos_sde.trials.contenders import CONTENDERS, check_contenders, contender
from eos_sde.trials.judgement import judged_dataset
from eos_sde.trials.milestones import Target, end_loss, first_reached
from eos_sde.trials.programs import knob_of
from eos_sde.trials.training import train
from eos_sde.trials.trial import CURVATURE_RULES, Trial, split_task, updates_of
from solvers.errors import InvalidInput
from solvers.provenance import provenance

TUNE_FOR = ("loss", "steps")
SLACK = 1.1
"""The target, where none is given, over the validation loss at which the tuning run of the reference ended."""


@dataclass(frozen=True)
class Contest:
    """What `compare` runs; see there."""

    task: str
    rules: tuple[str, ...]
    reference: str
    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...]
    steps: int
    every: int
    batch_size: int
    points: int
    ratio: float
    tune_for: str
    target: Target | None
    probe: int
    validation: float
    store: Path
    task_settings: Mapping[str, Any] = field(default_factory=dict)

    def trial(self, name: str, knob: float | None, seed: int) -> Trial:
        """A run of a contender, at a value of its knob (None: whatever it is)."""
        known = contender(name)
        options = dict(known.options)
        eta = None
        if knob is not None and known.knob == "eta":
            eta = float(knob)
        elif knob is not None:
            options[known.knob] = float(knob)
        return Trial(
            self.task, known.rule, steps=self.steps, batch_size=self.batch_size, seed=seed, eta=eta, options=options,
            delta=known.delta, start=known.start_of(seed),
            schedule=known.schedule, task_settings=self.task_settings, validation=self.validation, every=self.every,
            probe=self.probe if known.steady and known.rule in CURVATURE_RULES else 0,
        )  # fmt: skip

    def folder(self, name: str, knob: float, seed: int) -> str:
        """Name of the folder of a run: what decides its numbers."""
        text = json.dumps(self.trial(name, knob, seed).settings, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        plain = re.sub(r"[^\w.-]+", "-", name)  # settings hold signs that not every file system takes
        return f"{plain}-{digest}"

    def run(self, name: str, knob: float, seed: int) -> xr.Dataset:
        """A run, kept."""
        folder = self.store / "runs" / self.folder(name, knob, seed)
        return train(self.trial(name, knob, seed), folder=folder)


def compare(
    task: str = "digits-mlp",
    *,
    store: Path,
    rules: Sequence[str] = tuple(CONTENDERS),
    reference: str = "sgdm",
    seeds: int = 5,
    seed: int = 0,
    tuning_seeds: int = 3,
    steps: int | None = None,
    epochs: float = 40,
    batch_size: int = 32,
    rows: int = 50,
    points: int = 7,
    ratio: float = 2.0,
    tune_for: str = "loss",
    target: Target | None = None,
    probe: int = 0,
    validation: float = 0.2,
    task_settings: Mapping[str, Any] | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> xr.Dataset:
    """Tune every rule alike, train it on seeds of their own, and say what differs by more than chance.

    Each rule has one knob: its learning rate, or what stands for it in a rule that makes its own. Each is tried at
    `points` values, neighbours a factor of `ratio` apart, about a centre set beforehand, in a run of each of the tuning
    seeds: a single one would choose by luck what stands on the brink. The best on their mean is trained on the next
    `seeds` seeds, whose weights and order of the data no tuning saw. The validation
    examples, which tune and tell when a target is reached, are the same throughout; the test examples are looked at
    once, after the last update.

    Parameters
    ----------
    task : str
        One of `bridge.tasks()`.
    store : path
        Folder of the runs. Each is kept once finished; the same call goes on where an interrupted one stopped, and
        another call shares the runs that they have in common.
    rules : sequence of str
        Of `contenders.CONTENDERS`; with settings after a colon to compare forms of a rule, such as
        "caeo:estimator=hutchinson", "caeo:delta=-0.05,refresh=50", or "sgdm:from=earlier/caeo" for the weights of the
        runs of another comparison: see `contenders.contender`.
    reference : str
        The rule that the others are compared with.
    seeds : int
        How many judge; 3 or more.
    seed : int
        The first of the tuning runs.
    tuning_seeds : int
        How many tune; those that judge follow them.
    steps : int, optional
        Updates of every run; if left out, those of `epochs`, rounded up to a multiple of `rows`.
    epochs : float
        Passes over the training examples.
    batch_size : int
        B.
    rows : int
        Measurements of a run after the first: the grain of all steps to a target.
    points, ratio : int, float
        Of the grid of each rule's knob; an odd number.
    tune_for : {"loss", "steps"}
        The least validation loss at the end (the mean over the last fifth of the rows), or the fewest steps to the
        target, then the least loss; means over the tuning seeds. A value that loses one of their runs is out.
    target : Target, optional
        If left out, 1.1 times that loss of the reference, at its best in the tuning runs.
    probe : int
        Examples of the fixed batch whose curvature "caeo", "caeo-ss" and "inverse-sharpness" measure; 0 for that of
        each update's own batch. "cdat" measures the batch of the update, of which its gradient is.
    validation : float
        Part of the training examples held out.
    task_settings : mapping, optional
        Of `bridge.load_task`.
    progress : callable, optional
        Called with "tuning" or "judging" and the part done.

    Returns
    -------
    Dataset
        See `judgement.judged_dataset`; with the tuning runs over (rule, point): ``tuning_knob``, ``tuning_loss``,
        ``tuning_steps`` (means), ``tuning_diverged`` (how many), and over rule ``knob`` (the value chosen) and
        ``at_edge``, whether that is an end of the grid.

    Raises
    ------
    InvalidInput
        For arguments that cannot be used, before any run.
    """
    check_contenders(rules, reference)
    check_counts(
        seeds=(seeds, 3),
        seed=(seed, 0),
        tuning_seeds=(tuning_seeds, 1),
        rows=(rows, 1),
        points=(points, 3),
        batch_size=(batch_size, 1),
    )
    if points % 2 == 0 or not 1 < ratio < math.inf:
        raise InvalidInput(
            f"points={points} must be odd and ratio={ratio:g} above 1: the centre is one of them"
        )
    if tune_for not in TUNE_FOR:
        raise InvalidInput(f"tune_for={tune_for!r} is not known: choose one of {', '.join(TUNE_FOR)}")
    given = dict(task_settings or {})
    model = Trial(
        task, "sgd", steps=rows, batch_size=batch_size, task_settings=given, validation=validation, every=1
    )
    model.check()
    if steps is None:
        steps = rows * math.ceil(updates_of(epochs, model) / rows)
    check_counts(steps=(steps, 1))
    if steps % rows:
        raise InvalidInput(f"rows={rows} must divide steps={steps}")
    contest = Contest(
        task, tuple(rules), reference, tuple(range(seed + tuning_seeds, seed + tuning_seeds + seeds)),
        tuple(range(seed, seed + tuning_seeds)), steps, steps // rows, batch_size, points, ratio,
        tune_for, target, probe, validation, store, given,
    )  # fmt: skip
    for name in rules:
        try:
            for one in (*contest.tuning_seeds, *contest.seeds)[: None if contender(name).start else 1]:
                contest.trial(name, None, one).check()
        except InvalidInput as error:
            raise InvalidInput(f"rule={name!r}: {error}") from error
    _check_target(target, split_task(model).training)
    tuned, goal = _tune(contest, _told(progress, "tuning"))
    told, runs = _told(progress, "judging"), {}
    for number, name in enumerate(rules):
        for place, one in enumerate(contest.seeds):
            runs[name, one] = contest.run(name, float(tuned["knob"].sel(rule=name)), one)
            told((number * seeds + place + 1) / (len(rules) * seeds))
    found = judged_dataset(contest, runs, goal).merge(tuned, combine_attrs="drop")
    found.attrs = provenance(
        task=task, description=split_task(model).training.description, reference=reference, steps=steps,
        batch_size=batch_size, seed=seed, seeds=seeds, tune_for=tune_for, target_kind=goal.kind, target=goal.value,
        probe=probe, ratio=ratio, points=points, tuning_seeds=tuning_seeds,
        validation=validation, epochs=steps / updates_of(1, model),
        budget=f"each rule: {points} values of one knob, each on {tuning_seeds} seeds for {steps} updates",
        task_settings=json.dumps(model.settings["task_settings"]), starts=json.dumps(_starts(contest)),
        runs=json.dumps(_folders(contest, tuned)),
    )  # fmt: skip
    return found


def _folders(contest: Contest, tuned: xr.Dataset) -> dict[str, dict[int, str]]:
    """Where the runs at the chosen values of the knobs are, by rule and seed: those that tuned and that judged."""
    knobs = {name: float(tuned["knob"].sel(rule=name)) for name in contest.rules}
    seeds = (*contest.tuning_seeds, *contest.seeds)
    return {name: {seed: contest.folder(name, knobs[name], seed) for seed in seeds} for name in contest.rules}


def _starts(contest: Contest) -> dict[str, str]:
    """What is to be said of the weights of rules that do not start at random, of the first judged seed."""
    trials = {name: contest.trial(name, None, contest.seeds[0]) for name in contest.rules}
    return {name: trial.weights()[1] for name, trial in trials.items() if trial.start is not None}


def _check_target(target: Target | None, task: Any) -> None:
    if target is None:
        return
    if target.kind == "accuracy" and task.regression:
        raise InvalidInput(f"target accuracy={target.value} is for classes, and {task.name} is a regression")
    if target.kind == "perplexity" and task.loss_name != "cross-entropy":
        raise InvalidInput(f"target perplexity={target.value} is for loss='cross-entropy': use a loss")


def _told(progress: Callable[[str, float], None] | None, name: str) -> Callable[[float], None]:
    return (lambda fraction: None) if progress is None else lambda fraction: progress(name, fraction)  # noqa: ARG005


def _tune(contest: Contest, told: Callable[[float], None]) -> tuple[xr.Dataset, Target]:
    """Try every rule on its grid; choose by the plan, once the target is known."""
    shape = len(contest.rules), contest.points
    knobs, losses, steps = (np.full(shape, np.nan) for _ in range(3))
    diverged, tried = np.zeros(shape, int), {}
    for row, name in enumerate(contest.rules):
        known = contender(name)
        eta = split_task(contest.trial(name, None, 0)).training.eta
        knobs[row] = known.grid(eta, contest.points, contest.ratio)
        for point, knob in enumerate(knobs[row]):
            runs = [contest.run(name, float(knob), seed) for seed in contest.tuning_seeds]
            tried[row, point] = runs
            diverged[row, point] = sum(bool(run["diverged"]) for run in runs)
            if not diverged[row, point]:
                losses[row, point] = np.mean([end_loss(run["validation_loss"]) for run in runs])
            told((row * contest.points + point + 1) / math.prod(shape))
    goal = contest.target
    if goal is None:
        best = losses[contest.rules.index(contest.reference)]
        if not np.isfinite(best).any():
            raise InvalidInput(f"reference={contest.reference!r} diverged on all of its grid: give a target")
        goal = Target("loss", SLACK * float(np.nanmin(best)))
    for at, runs in tried.items():
        if not diverged[at]:
            reached = [goal.reached(run["validation_loss"], run["validation_accuracy"]) for run in runs]
            steps[at] = np.mean(
                [first_reached(run["step"], where) for run, where in zip(runs, reached, strict=True)]
            )
    chosen = [
        _best(losses[row], steps[row], for_steps=contest.tune_for == "steps") for row in range(shape[0])
    ]
    rows = np.arange(shape[0])

    def variable(dims: tuple[str, ...], values: Any, long_name: str) -> tuple:
        return dims, values, {"units": "1", "long_name": long_name}

    over = ("rule", "point")
    contents = {
        "tuning_knob": variable(over, knobs, "values of the knob that were tried"),
        "tuning_loss": variable(over, losses, "mean validation loss at the end; NaN where a run diverged"),
        "tuning_steps": variable(over, steps, "mean updates to the target; NaN where a run missed it"),
        "tuning_diverged": variable(over, diverged, "runs that diverged"),
        "knob": variable(("rule",), knobs[rows, chosen], "value of the knob that was chosen"),
        "knob_name": variable(("rule",), [_knob_name(contest, name) for name in contest.rules], "the knob"),
        "at_edge": variable(
            ("rule",), np.isin(chosen, (0, contest.points - 1)), "whether it is an end of the grid"
        ),
    }
    return xr.Dataset(contents, {"rule": list(contest.rules), "point": np.arange(contest.points)}), goal


def _knob_name(contest: Contest, name: str) -> str:
    return knob_of(contest.trial(name, None, 0))[0]


def _best(losses: np.ndarray, steps: np.ndarray, *, for_steps: bool) -> int:
    """Fewest steps, then least loss; the least value of the knob where all diverged."""
    first = np.where(np.isfinite(steps), steps, np.inf) if for_steps else np.zeros(len(losses))
    second = np.where(np.isfinite(losses), losses, np.inf)
    return int(np.lexsort((np.arange(len(losses)), second, first))[0])
