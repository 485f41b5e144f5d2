"""A trial: all that decides the numbers of one training run, and its data in three parts."""

import dataclasses
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import optax

from eos_sde.bridge.batches import stream
from eos_sde.bridge.precision import double_precision
from eos_sde.bridge.rules import RULES, SELF_SET, make_rule
from eos_sde.bridge.task_library import Task, defining_settings, load_task
from eos_sde.trials.estimators import estimator_of
from eos_sde.trials.schedules import scheduled_rate
from eos_sde.trials.warm_start import earlier_run, warm_weights
from solvers.errors import InvalidInput

CURVATURE_RULES = ("caeo", "caeo-ss", "cdat", "inverse-sharpness")
"""Rules that measure the curvature of a loss that they are given."""
SHARPNESS_RULES = tuple(rule for rule in CURVATURE_RULES if rule != "cdat")
"""Those that measure its largest eigenvalue, by an estimator, when a refresh policy says."""
_SPLIT = 4  # a stream of its own


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run: a function of a task, a rule, a schedule and a seed.

    Attributes
    ----------
    task : str
        One of `bridge.tasks()`.
    rule : str
        One of the names of `bridge.make_rule`.
    steps : int
        Updates.
    batch_size : int
        B, at most the training examples that are left after the split.
    seed : int
        Of the initial weights, the order of the data, and the random vectors of curvature estimators.
    eta : float or None
        Learning rate, as for `bridge.make_rule`; if left out the task's, or none for rules that make their own.
    delta : float
        Margin of "caeo" and "caeo-ss".
    options : mapping
        Further options of the rule. Of the rules that measure the sharpness ``refresh`` is "auto" here, as users have
        it, instead of the 1 of `bridge.make_rule`, and ``estimator`` is the name of one of `estimators.NAMES`.
    schedule : str
        "constant" or "warmup-cosine".
    task_settings : mapping
        Of `bridge.load_task`.
    validation : float
        Part of the training examples that is held out, in (0, 1).
    split_seed : int
        Which they are; the same for all seeds.
    every : int
        Updates between two rows of the log.
    curvature_every : int
        Rows between two measurements of the sharpness of all training examples; 0 for the last row alone.
    probe : int
        Training examples of the fixed batch whose loss the rule's curvature is that of; 0 for each update's own batch.
    start : str or None
        An earlier run whose weights it starts from, where the layers fit: see `warm_start`. None for random weights.
    """

    task: str
    rule: str
    steps: int
    batch_size: int = 32
    seed: int = 0
    eta: float | None = None
    delta: float = 0.1
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    schedule: str = "constant"
    task_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    validation: float = 0.2
    split_seed: int = 0
    every: int = 10
    curvature_every: int = 0
    probe: int = 0
    start: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """All fields, as they come back from JSON, the settings of the task complete; of earlier weights a digest."""
        whole = defining_settings(self.task, self.task_settings)
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if fields.pop("start") is not None:
            fields["start"] = earlier_run(str(self.start)).digest  # whatever its folder is called
        return _plain(fields | {"task_settings": whole, "eta": self.rate, "options": self.rule_options})

    @property
    def rate(self) -> float | None:
        """The learning rate, or None for a rule that makes its own without a bound."""
        if self.eta is None and self.rule not in SELF_SET:
            return split_task(self).training.eta
        return self.eta

    @property
    def rule_options(self) -> dict[str, Any]:
        """Options of the rule, complete."""
        return {**({"refresh": "auto"} if self.rule in SHARPNESS_RULES else {}), **self.options}

    def check(self) -> None:
        """Refuse what cannot be run, before any work.

        Raises
        ------
        InvalidInput
            Naming the argument, the value and the remedy.
        """
        if self.rule not in RULES:
            raise InvalidInput(f"rule={self.rule!r} is not known: choose one of {', '.join(RULES)}")
        for name, least in (
            ("steps", 1), ("batch_size", 1), ("every", 1), ("seed", 0), ("split_seed", 0), ("curvature_every", 0),
            ("probe", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                raise InvalidInput(f"{name}={value!r} must be an integer of at least {least}")
        if self.steps % self.every:
            raise InvalidInput(f"every={self.every} must divide steps={self.steps}")
        if self.schedule != "constant" and self.rule in SELF_SET:
            raise InvalidInput(
                f"schedule={self.schedule!r} needs a learning rate, and {self.rule} makes its own: use 'constant'"
            )
        if "estimator" in self.options and self.rule not in SHARPNESS_RULES:
            raise InvalidInput(
                f"estimator={self.options['estimator']!r} is for the rules that measure the sharpness, "
                f"{', '.join(SHARPNESS_RULES)}, not for {self.rule}: leave it out"
            )
        if self.probe and self.rule not in CURVATURE_RULES:
            raise InvalidInput(f"probe={self.probe} is for rules that measure curvature: leave it at 0")
        training = split_task(self).training
        for name in ("batch_size", "probe"):
            most = drawn_from(training) if name == "batch_size" else training.n
            if getattr(self, name) > most:
                raise InvalidInput(
                    f"{name}={getattr(self, name)} must be at most the {most} examples left for training"
                )
        self.transformation()
        if self.start is not None:
            self.weights()

    def weights(self) -> tuple[Any, str]:
        """Weights before the first update, and what is to be said of them.

        Returns
        -------
        (Array, str)
            Shape (size,); empty words for random weights.

        Raises
        ------
        InvalidInput
            If an earlier run does not fit.
        """
        network = split_task(self).training.network
        fresh = network.init(self.seed)
        if self.start is None:
            return fresh, ""
        earlier = earlier_run(self.start)
        weights, taken, drawn = warm_weights(earlier, network, fresh)
        anew = f"drawn anew: {', '.join(drawn)}" if drawn else "all of them"
        return weights, f"starts from {earlier.words}: {len(taken)} arrays taken, {anew}"

    def transformation(
        self, task: Task | None = None, batch: tuple | None = None, **traced: Any
    ) -> optax.GradientTransformationExtraArgs:
        """The rule in optax.

        Parameters
        ----------
        task : Task, optional
            As a function of the weights as they are held; the training task if left out.
        batch : (Array, Array), optional
            The examples whose curvature an update measures, for the estimators that look at them; if left out some,
            which do for its state.
        **traced
            Values in place of ``eta`` or of options, which may be traced.

        Returns
        -------
        optax.GradientTransformationExtraArgs
            See `bridge.make_rule`.
        """
        eta = traced.pop("eta", self.rate)
        if eta is not None:
            eta = scheduled_rate(self.schedule, eta, steps=self.steps)
        options = {**self.rule_options, **traced}
        if "estimator" in options:
            task = split_task(self).training if task is None else task
            seen = (task.x[:1], task.y[:1]) if batch is None else batch
            options["curvature"] = estimator_of(options.pop("estimator"), task, *seen)
        return make_rule(self.rule, eta=eta, delta=self.delta, **options)


@dataclasses.dataclass(frozen=True)
class Split:
    """A task in three parts.

    Attributes
    ----------
    training : Task
        Without the examples held out; it also has the test examples.
    validating : Task
        The same network on the examples held out.
    """

    training: Task
    validating: Task


def split_task(trial: Trial) -> Split:
    """The data of a trial.

    Of classifications and regressions the examples held out are drawn at random; of a text they are its last windows,
    so that no window of the one part overlaps more than the border of the other. A task with a stream is split by the
    examples that it holds, and the stream draws none of those held out.

    Parameters
    ----------
    trial : Trial
        The run.

    Returns
    -------
    Split
        Training and validation; the test examples are the task's own.

    Raises
    ------
    InvalidInput
        If a part would be empty, or as `bridge.load_task`.
    """
    if isinstance(trial.validation, bool) or not 0 < trial.validation < 1:
        raise InvalidInput(f"validation={trial.validation!r} must lie between 0 and 1")
    settings = {
        key: tuple(value) if isinstance(value, list) else value for key, value in trial.task_settings.items()
    }
    return _split(trial.task, tuple(sorted(settings.items())), float(trial.validation), trial.split_seed)


@lru_cache(maxsize=4)
@double_precision
def _split(name: str, settings: tuple, validation: float, seed: int) -> Split:
    task = load_task(name, **dict(settings))
    held = round(validation * task.n)
    if not 1 <= held < task.n:
        raise InvalidInput(
            f"validation={validation:g} of the {task.n} examples of {name} leaves a part empty: choose another"
        )
    if np.issubdtype(task.y.dtype, np.integer):
        order = np.arange(task.n)
    else:
        order = np.argsort(stream(seed, _SPLIT).random_raw(task.n), kind="stable")
    kept, out = np.sort(order[: task.n - held]), np.sort(order[task.n - held :])
    source = None if task.stream is None else task.stream.without(out)
    parts = (
        dataclasses.replace(task, x=task.x[index], y=task.y[index], stream=source) for index in (kept, out)
    )
    return Split(*parts)


def updates_of(epochs: float, trial: Trial) -> int:
    """Updates that make so many epochs of the training part.

    Parameters
    ----------
    epochs : float
        Positive.
    trial : Trial
        Its ``steps`` are not read.

    Returns
    -------
    int
        At least 1.

    Raises
    ------
    InvalidInput
        If it is not a positive number.
    """
    if not 0 < epochs < math.inf:
        raise InvalidInput(f"epochs={epochs!r} must be a positive number")
    return max(1, round(epochs * epoch_length(trial)))


def epoch_length(trial: Trial) -> int:
    """Updates in an epoch: whole batches of the training part."""
    return max(1, drawn_from(split_task(trial).training) // trial.batch_size)


def drawn_from(task: Task) -> int:
    """How many examples its batches are drawn from."""
    return task.n if task.stream is None else len(task.stream)


def _plain(value: Any) -> Any:
    """What JSON holds of a setting; of policies and estimators, which are data, their text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        return value.item()
    if callable(value):
        raise InvalidInput(
            f"{value!r} has no name to be kept under: a trial's options are numbers, words and policies"
        )
    return value if value is None or isinstance(value, str | int | float | bool) else repr(value)
