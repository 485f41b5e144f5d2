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


def programs_of(trial: Trial) -> Programs:
    """Programs of a trial, made once for all that differ in the knob or the seed.

    Parameters
    ----------
    trial : Trial
        The run, checked.

    Returns
    -------
    Programs
        See there.
    """
    name = knob_of(trial)[0]
    settings = trial.settings
    settings["options"] |= {"eta": settings["eta"], name: None}
    key = json.dumps(settings | {"seed": None, "eta": None}, sort_keys=True)
    if key not in _COMPILED:
        while len(_COMPILED) >= _MOST:
            _COMPILED.pop(next(iter(_COMPILED)))
        _COMPILED[key] = _make(trial, name)
    return _COMPILED[key]


def _make(trial: Trial, name: str) -> Programs:
    split = split_task(trial)
    task, held = split.training, split.validating
    probe: Any = None
    if trial.probe:
        order = np.argsort(stream(trial.split_seed, _PROBE).random_raw(task.n), kind="stable")[: trial.probe]
        probe = (task.x[order], task.y[order])

    def advance(
        knob: jax.Array, theta: jax.Array, state: Any, batches: jax.Array, before: jax.Array, data: tuple,
        fixed: Any,
    ) -> tuple:  # fmt: skip
        (x, y), rule = data, trial.transformation(**{name: knob})

        def step(carry: tuple, drawn: tuple) -> tuple:
            (theta, state), (batch, count) = carry, drawn
            seen = x[batch], y[batch]
            loss, gradient = jax.value_and_grad(task.loss)(theta, *seen)
            curved = seen if fixed is None else fixed
            given = {"value": loss, "value_fn": lambda w: task.loss(w, *curved)}
            updates, state = rule.update(gradient, state, theta, **given)
            rate = optax.tree_utils.tree_get(state, "learning_rate", default=None)
            if rate is None:
                rate = _rate_at(trial, name, knob, count)
            return (theta + updates, state), (loss, rate, curvature_work(trial.rule, state))

        counts = before + jnp.arange(len(batches))
        (theta, state), (losses, rates, work) = jax.lax.scan(step, (theta, state), (batches, counts))
        told = jnp.mean(losses), jnp.var(losses), rates[-1], *(jnp.sum(part) for part in work)
        return theta, state, told

    evaluate, sharpness = _measures(task, held)
    data = (task.x, task.y)
    return Programs(_ahead(jax.jit(advance), data=data, fixed=probe), evaluate, sharpness)


@lru_cache(maxsize=4)
def _measures(task: Task, held: Task) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What is measured of weights whatever the rule."""

    @jax.jit
    def evaluate(theta: jax.Array, data: tuple, out: tuple) -> tuple:
        return task.loss(theta, *data), task.loss(theta, *out), _accuracy(held, theta, *out)

    @jax.jit
    def sharpness(theta: jax.Array, data: tuple) -> tuple:
        start = _ESTIMATOR.init(
            theta, jax.random.key(0)
        )  # anew: no memory that a resumed run would have lost
        _, product = jax.linearize(lambda w: jax.grad(task.loss)(w, *data), theta)
        return _ESTIMATOR.update(product, theta, start)[:2]

    data, out = (task.x, task.y), (held.x, held.y)
    return (
        lambda theta: [float(part) for part in evaluate(theta, data, out)],
        lambda theta: [float(part) for part in sharpness(theta, data)],
    )


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
