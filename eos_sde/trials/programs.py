"""The compiled parts of a trial: updates, measurements of its weights, and scores on the test examples."""

import dataclasses
import json
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from eos_sde.bridge.batches import stream
from eos_sde.bridge.losses import of_classes
from eos_sde.bridge.task_library import Task
from eos_sde.optimizers import curvature
from eos_sde.trials.costs import curvature_work
from eos_sde.trials.placement import OneDevice, Placement
from eos_sde.trials.schedules import scheduled_rate
from eos_sde.trials.scores import Scores, classifier_scores
from eos_sde.trials.trial import Trial, split_task

KNOBS = {"l4": ("alpha", 0.15), "cdat": ("sigma", 2.0), "inverse-sharpness": ("multiple", 1.0)}
"""What sets the size of the steps of rules that make their own rate, and its value if left out."""
_ESTIMATOR = curvature.lanczos(order=8, tol=0.005)
_PROBE = 5  # a stream of its own
_MOST = 12  # programs that are kept


def knob_of(trial: Trial) -> tuple[str, float]:
    """Name and value of the number that sets the size of the steps.

    Parameters
    ----------
    trial : Trial
        The run.

    Returns
    -------
    (str, float)
        "eta", or the option of a rule that makes its own rate.
    """
    if trial.rule in KNOBS:
        name, default = KNOBS[trial.rule]
        return name, float(trial.options.get(name, default))
    rate = trial.rate
    assert rate is not None  # only rules of KNOBS have none
    return "eta", float(rate)


@dataclasses.dataclass(frozen=True)
class Programs:
    """Compiled once for all values of the knob and all seeds, so that neither changes how bits are made.

    Attributes
    ----------
    advance : callable
        (knob, weights, state, batches, updates before) to a function without arguments that returns weights, state and
        what the updates tell; compiled by then.
    evaluate : callable
        Weights to training loss, validation loss and validation accuracy.
    sharpness : callable
        Weights to the sharpness of all training examples and the residual of its estimate.
    """

    advance: Callable[..., Any]
    evaluate: Callable[..., Any]
    sharpness: Callable[..., Any]


_COMPILED: dict[str, Programs] = {}


def programs_of(trial: Trial, placement: Placement | None = None) -> Programs:
    """Programs of a trial, made once for all that differ in the knob or the seed.

    Parameters
    ----------
    trial : Trial
        The run, checked.
    placement : Placement, optional
        Where weights and data are; one device if left out.

    Returns
    -------
    Programs
        See there.
    """
    name = knob_of(trial)[0]
    placement = OneDevice() if placement is None else placement
    settings = trial.settings
    settings["options"] |= {"eta": settings["eta"], name: None}
    key = json.dumps(
        settings | {"seed": None, "eta": None, "start": None, "mesh": placement.name}, sort_keys=True
    )
    if key not in _COMPILED:
        while len(_COMPILED) >= _MOST:
            _COMPILED.pop(next(iter(_COMPILED)))
        _COMPILED[key] = _make(trial, name, placement)
    return _COMPILED[key]


def _make(trial: Trial, name: str, placement: Placement) -> Programs:
    split = split_task(trial)
    task = placement.of(split.training)
    probe: Any = None
    if trial.probe:
        order = np.argsort(stream(trial.split_seed, _PROBE).random_raw(task.n), kind="stable")[: trial.probe]
        probe = placement.examples((task.x[order], task.y[order]))

    source = task.stream

    def examples_of(batch: Any, data: tuple) -> tuple:
        """Inputs and targets of a batch: rows of what is in memory, or images as they were read."""
        return source.prepared(*batch) if source is not None else (data[0][batch], data[1][batch])

    def advance(
        knob: jax.Array, theta: jax.Array, state: Any, batches: Any, before: jax.Array, data: tuple, fixed: Any,
    ) -> tuple:  # fmt: skip
        counts = before + jnp.arange(jax.tree.leaves(batches)[0].shape[0])

        def step(carry: tuple, drawn: tuple) -> tuple:
            (theta, state), (batch, count) = carry, drawn
            seen = placement.batch(examples_of(batch, data))
            loss, gradient = jax.value_and_grad(task.loss)(theta, *seen)
            curved = seen if fixed is None else fixed
            rule = trial.transformation(task, curved, **{name: knob})
            given = {"value": loss, "value_fn": lambda w: task.loss(w, *curved)}
            updates, state = rule.update(gradient, state, theta, **given)
            rate = optax.tree_utils.tree_get(state, "learning_rate", default=None)
            if rate is None:
                rate = _rate_at(trial, name, knob, count)
            return (optax.apply_updates(theta, updates), state), (
                loss,
                rate,
                curvature_work(trial.rule, state),
            )

        (theta, state), (losses, rates, work) = jax.lax.scan(step, (theta, state), (batches, counts))
        told = jnp.mean(losses), jnp.var(losses), rates[-1], *(jnp.sum(part) for part in work)
        return theta, state, told

    evaluate, sharpness = _measures(split.training, split.validating, placement)
    data = () if source is not None else placement.whole((task.x, task.y))
    compiled = placement.jit_updates(advance, split.training, trial.transformation())
    return Programs(_ahead(compiled, data=data, fixed=probe), evaluate, sharpness)


@lru_cache(maxsize=4)
def _measures(
    training: Task, validating: Task, placement: Placement
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What is measured of weights whatever the rule."""
    task, held = placement.of(training), placement.of(validating)

    @jax.jit
    def evaluate(theta: jax.Array, data: list, out: list) -> tuple:
        accuracy = _mean_over(out, lambda x, y: _accuracy(held, theta, x, y))
        return _loss(theta, data), _loss(theta, out), accuracy

    @jax.jit
    def sharpness(theta: jax.Array, data: list) -> tuple:
        start = _ESTIMATOR.init(
            theta, jax.random.key(0)
        )  # anew: no memory that a resumed run would have lost
        _, product = jax.linearize(lambda w: jax.grad(_loss)(w, data), theta)
        return _ESTIMATOR.update(product, theta, start)[:2]

    def _loss(theta: jax.Array, parts: list) -> jax.Array:
        return _mean_over(parts, lambda x, y: task.loss(theta, x, y))

    data, out = (placement.examples(placement.parts(part.x, part.y)) for part in (training, validating))
    return (
        lambda theta: [float(part) for part in evaluate(theta, data, out)],
        lambda theta: [float(part) for part in sharpness(theta, data)],
    )


def _mean_over(parts: list, mean: Callable[..., jax.Array]) -> jax.Array:
    """A mean over examples from those of its pieces."""
    if len(parts) == 1:
        return mean(*parts[0])
    examples = sum(len(x) for x, _ in parts)
    return sum((len(x) / examples * mean(x, y) for x, y in parts), jnp.zeros(()))


def _accuracy(task: Task, theta: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """On examples that are arguments of a compiled program; NaN for a regression."""
    if task.regression:
        return jnp.asarray(jnp.nan)
    return dataclasses.replace(task, x_test=x, y_test=y).accuracy(theta)


def _rate_at(trial: Trial, name: str, knob: jax.Array, count: jax.Array) -> jax.Array:
    assert name == "eta"  # the other rules tell their rate
    rate = scheduled_rate(trial.schedule, knob, steps=trial.steps)
    return jnp.asarray(rate(count) if callable(rate) else rate)


def _ahead(program: Any, **fixed: Any) -> Callable[..., Any]:
    """Compile at the first call, before the clock runs; arguments keep their shapes."""
    compiled: list[Any] = []

    def prepare(*arguments: Any) -> Callable[[], Any]:
        if not compiled:
            compiled.append(program.lower(*arguments, **fixed).compile())
        return lambda: jax.block_until_ready(compiled[0](*arguments, **fixed))

    return prepare


@partial(jax.jit, static_argnames="task")
def _tested(task: Task, theta: jax.Array, x: jax.Array, y: jax.Array) -> tuple:
    outputs = task.apply(theta, x)
    labels = y if of_classes(y) else jnp.argmax(y, axis=-1)
    return jax.nn.log_softmax(outputs), labels, task.loss(theta, x, y), _accuracy(task, theta, x, y)


def scores_at(task: Task, theta: NDArray) -> tuple[float, float, Scores | None]:
    """Loss and accuracy on the test examples, and the scores where the outputs are a softmax's.

    Parameters
    ----------
    task : Task
        With its test examples.
    theta : array
        Weights.

    Returns
    -------
    (float, float, Scores or None)
        NaN accuracy for a regression; None for a loss without probabilities. Positions of a sequence count as examples.
    """
    logs, labels, loss, accuracy = _tested(task, jnp.asarray(theta), task.x_test, task.y_test)
    if task.loss_name != "cross-entropy":
        return float(loss), float(accuracy), None
    logs = np.asarray(logs)
    scores = classifier_scores(logs.reshape(-1, logs.shape[-1]), np.asarray(labels).ravel())
    return float(loss), float(accuracy), scores
