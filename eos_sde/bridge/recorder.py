"""Train a task under a rule and record what the theory speaks about."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any
from warnings import warn

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from eos_sde.bridge.batches import draw_batches, stream
from eos_sde.bridge.precision import double_precision
from eos_sde.bridge.replicas import DIVERGED
from eos_sde.bridge.rules import SELF_SET, make_rule
from eos_sde.bridge.task_library import Task
from eos_sde.optimizers import curvature
from solvers.errors import AccuracyWarning, InvalidInput
from solvers.provenance import provenance

_ESTIMATOR = curvature.lanczos(order=8, tol=0.01)  # the error is about its square over the relative gap
_MEASURED = {
    "loss": ("1", "full-batch training loss"),
    "sharpness": ("1/time", "largest eigenvalue of the full-batch Hessian"),
    "sharpness_residual": ("1/time", "residual norm |H v - sharpness v|, an error bound"),
    "batch_sharpness": ("1/time", "mean over batches of g' H_B g / |g|^2"),
    "gradient_norm": ("1", "norm of the full-batch gradient"),
}

_EACH_UPDATE = {
    "batch_loss": ("1", "loss of the batch before the update"),
    "rate": ("time", "learning rate of the update"),
    "runaway": ("1", "1 where the state of the rule tells of a runaway, else 0"),
}


@dataclass(frozen=True)
class _Plan:
    """What is run and what is kept."""

    task: Task
    rule: optax.GradientTransformationExtraArgs
    eta: float
    steps: int
    seed: int
    batch_size: int
    every: int
    replicas: int
    batches_measured: int
    curvature: bool
    average: int


@double_precision
def record(
    task: Task,
    rule: str | optax.GradientTransformation,
    *,
    steps: int,
    seed: int,
    eta: float | None = None,
    batch_size: int | None = None,
    delta: float = 0.1,
    start: ArrayLike | None = None,
    every: int = 10,
    replicas: int = 1,
    project: ArrayLike | None = None,
    batches_measured: int = 16,
    curvature: bool = True,
    average: int = 0,
    options: Mapping[str, Any] = MappingProxyType({}),
    progress: Callable[[int], None] | None = None,
) -> xr.Dataset:
    """Train and record.

    Batches are drawn without replacement within a batch and independently at each step, from a stream of
    its own for each (seed, replica): neither `every` nor the number of replicas changes the batches.

    Parameters
    ----------
    task : Task
        What to train.
    rule : str or optax transformation
        A name of `make_rule`, or a transformation, told ``value``, the batch's loss, and ``value_fn``, that of all.
    steps : int
        Updates.
    seed : int
        Of the initial weights (if `start` is left out) and of the batches.
    eta : float, optional
        Learning rate; if left out the task's, or no bound for the rules that make their own rate.
    batch_size : int, optional
        B. If left out, all examples for "gd" and 16 for the other rules.
    delta : float
        Margin of "caeo" and "caeo-ss".
    start : array, optional
        Initial weights (size,), or one row for each replica.
    every : int
        Steps between two measurements of the expensive quantities.
    replicas : int
        Independent runs from the same start.
    project : array, optional
        Directions (size, k): the displacement from the start is projected on them before each step.
    batches_measured : int
        Batches in the mean that is the batch sharpness.
    curvature : bool
        Whether to measure sharpness and batch sharpness, which cost most; NaN otherwise.
    average : int
        Last updates over whose weights a mean is taken; an even number cancels an alternation. 0 for none.
    options : mapping
        Further options of `make_rule`.
    progress : callable, optional
        Called with the number of steps done.

    Returns
    -------
    Dataset
        Over (replica, step), step = 0, every, 2 every, ..., steps: ``loss``, ``sharpness``,
        ``sharpness_residual``, ``batch_sharpness``, ``gradient_norm``, and ``learning_rate`` (of the
        update that led to the step; at step 0 the base rate). Over (replica, iteration), every update:
        ``batch_loss`` (before the update), ``rate`` (learning rate of the update), ``runaway`` (1 where the state of
        "caeo" or "caeo-ss" tells of one, else 0) and, with `project`, ``projection`` (direction last). Over
        replica: ``final_params`` (weight), with `average` ``mean_params`` (weight), ``diverged``,
        ``diverged_at`` (first measured step at which the run counts as diverged, or -1). Values of a run
        after it diverged are NaN.

    Raises
    ------
    InvalidInput
        For arguments that cannot be used.

    Warns
    -----
    AccuracyWarning
        If runs diverged.
    """
    if not isinstance(task, Task):
        raise InvalidInput(f"task={task!r} is not a Task; make one with load_task(name)")
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise InvalidInput(f"seed={seed!r} must be an integer of at least 0")
    eta = task.eta if eta is None and rule not in SELF_SET else eta
    transformation = (
        _named(rule, eta, delta, tuple(options.items()))
        if isinstance(rule, str)
        else optax.with_extra_args_support(rule)
    )
    name = rule if isinstance(rule, str) else "custom"
    batch_size = _batch_size(task, name, batch_size)
    for key, value in (
        ("steps", steps), ("every", every), ("replicas", replicas), ("batches_measured", batches_measured),
    ):  # fmt: skip
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise InvalidInput(f"{key}={value!r} must be a positive integer")
    if isinstance(average, bool) or not isinstance(average, int | np.integer) or not 0 <= average <= steps:
        raise InvalidInput(f"average={average!r} must be an integer from 0 to steps={steps}")
    theta = _start(task, start, seed, replicas)
    directions = np.zeros((task.size, 0)) if project is None else np.asarray(project, np.float64)
    if directions.ndim != 2 or directions.shape[0] != task.size:
        raise InvalidInput(f"project has shape {directions.shape}: it must be ({task.size}, k)")
    plan = _Plan(
        task, optax.with_extra_args_support(transformation), np.nan if eta is None else eta, steps, seed,
        batch_size, every, replicas, batches_measured, curvature, average,
    )  # fmt: skip
    measured, stepwise, final, mean = _run(plan, theta, directions, progress)
    diverged_at = _diverged_at(measured)
    if np.any(diverged_at >= 0):
        first = diverged_at[diverged_at >= 0].min()
        warn(
            f"{np.sum(diverged_at >= 0)} of {replicas} runs diverged, the first by step {first}: "
            f"{'give a bound eta' if eta is None else f'lower eta={eta:g}'}",
            AccuracyWarning,
            stacklevel=3,
        )
    attrs = provenance(
        task=task.name, description=task.description, rule=name, eta=eta, batch_size=batch_size, seed=seed,
        steps=steps, every=every, delta=delta if name in ("caeo", "caeo-ss") else None,
    )  # fmt: skip
    return _dataset(measured, stepwise, final, mean, diverged_at, attrs, projected=project is not None)


@lru_cache(maxsize=16)
def _named(name: str, eta: Any, delta: float, options: tuple) -> optax.GradientTransformationExtraArgs:
    """Build a rule once, so that a second run of it compiles nothing."""
    return make_rule(name, eta=eta, delta=delta, **dict(options))


def _run(
    plan: _Plan, theta: jax.Array, directions: NDArray, progress: Callable[[int], None] | None
) -> tuple[dict[str, NDArray], dict[str, NDArray], NDArray, NDArray | None]:
    """Alternate between measuring and `every` compiled steps."""
    task, size, single = plan.task, plan.batch_size, plan.replicas == 1
    advance = _advance(task, plan.rule, plan.eta, single=single, summing=plan.average > 0)
    measure = _measure(task, curvature=plan.curvature, single=single)
    batch_sharpness = _batch_sharpness(task, single=single)
    state = jax.vmap(plan.rule.init)(theta)
    memory = jax.vmap(lambda w: _ESTIMATOR.init(w, jax.random.key(plan.seed)))(theta)
    sources = [stream(plan.seed, 0, r) for r in range(plan.replicas)]
    probes = [stream(plan.seed, 1, r) for r in range(plan.replicas)]

    def batches(streams: list[np.random.Philox], count: int) -> NDArray[np.int32]:
        return np.stack([draw_batches(s, count, examples=task.n, batch_size=size) for s in streams])

    data, begin, done = (task.x, task.y), theta, 0
    samples = 1 if size == task.n else plan.batches_measured
    measurements, pieces = [], []
    limit, total = None, jnp.zeros_like(theta)
    while True:
        memory, values = measure(theta, memory, data)
        values["batch_sharpness"] = np.full(plan.replicas, np.nan)
        if plan.curvature:
            values["batch_sharpness"] = batch_sharpness(theta, batches(probes, samples), data)
        values = {key: np.asarray(value) for key, value in values.items()}
        values["step"] = np.asarray(done)
        measurements.append(values)
        limit = DIVERGED * np.maximum(1.0, values["loss"]) if limit is None else limit
        # comparisons with NaN are false, so this is also the end of a run that is not finite
        if done == plan.steps or not np.any(values["loss"] <= limit):
            break
        count = min(plan.every, plan.steps - done)
        counted = np.arange(done, done + count) >= plan.steps - plan.average
        theta, state, total, piece = advance(
            theta, state, total, batches(sources, count), counted, begin, directions, data
        )
        pieces.append({key: np.asarray(value) for key, value in piece.items()})
        done += count
        if progress is not None:
            progress(done)
    measured = {key: np.stack([m[key] for m in measurements], axis=-1) for key in measurements[0]}
    stepwise = {key: np.concatenate([p[key] for p in pieces], axis=1) for key in pieces[0]} if pieces else {}
    return measured, stepwise, np.asarray(theta), np.asarray(total) / plan.average if plan.average else None


@lru_cache(maxsize=16)
def _advance(
    task: Task, rule: optax.GradientTransformationExtraArgs, eta: float, *, single: bool, summing: bool
) -> Callable:
    """Compiled steps over replicas: (weights, rule state, sum, batches, counted, start, directions, data)."""

    def advance(
        theta: jax.Array, state: Any, total: jax.Array, batches: jax.Array, counted: jax.Array,
        begin: jax.Array, directions: jax.Array, data: tuple,
    ) -> tuple:  # fmt: skip
        x, y = data

        def step(carry: tuple, drawn: tuple) -> tuple:
            (theta, state, total), (batch, counts) = carry, drawn
            loss, gradient = jax.value_and_grad(task.loss)(theta, x[batch], y[batch])
            given = {"value": loss, "value_fn": lambda w: task.loss(w, x, y)}
            updates, new = rule.update(gradient, state, theta, **given)
            rate = optax.tree_utils.tree_get(new, "learning_rate", default=eta)
            kept = {
                "batch_loss": loss,
                "rate": jnp.asarray(rate, jnp.float64),
                "runaway": jnp.asarray(optax.tree_utils.tree_get(new, "runaway", default=False), jnp.float64),
                "projection": (theta - begin) @ directions,
            }
            theta = theta + updates
            return (theta, new, total + counts * theta if summing else total), kept

        (theta, state, total), kept = jax.lax.scan(step, (theta, state, total), (batches, counted))
        return theta, state, total, kept

    return _over_replicas(advance, (0, 0, 0, 0, None, 0, None, None), single=single)


@lru_cache(maxsize=16)
def _measure(task: Task, *, curvature: bool, single: bool) -> Callable:
    """Compiled full-batch measurement over replicas: (weights, estimator state, data)."""

    def measure(theta: jax.Array, memory: Any, data: tuple) -> tuple:
        loss, gradient = jax.value_and_grad(task.loss)(theta, *data)
        sharpness = residual = jnp.asarray(jnp.nan, theta.dtype)
        if curvature:
            _, product = jax.linearize(lambda w: jax.grad(task.loss)(w, *data), theta)
            sharpness, residual, memory = _ESTIMATOR.update(product, theta, memory)
        norm = jnp.linalg.norm(gradient)
        return memory, {
            "loss": loss,
            "sharpness": sharpness,
            "sharpness_residual": residual,
            "gradient_norm": norm,
        }

    return _over_replicas(measure, (0, 0, None), single=single)


@lru_cache(maxsize=16)
def _batch_sharpness(task: Task, *, single: bool) -> Callable:
    """Compiled mean of g' H_B g / |g|^2 over replicas: (weights, batches, data)."""

    def batch_sharpness(theta: jax.Array, batches: jax.Array, data: tuple) -> jax.Array:
        x, y = data

        def along_gradient(batch: jax.Array) -> jax.Array:
            slope = partial(jax.grad(task.loss), x=x[batch], y=y[batch])
            direction = slope(theta)
            curved = jax.jvp(slope, (theta,), (direction,))[1]
            return (direction @ curved) / jnp.maximum(direction @ direction, jnp.finfo(jnp.float64).tiny)

        return jnp.mean(jax.lax.map(along_gradient, batches, batch_size=max(1, 1024 // batches.shape[1])))

    return _over_replicas(batch_sharpness, (0, 0, None), single=single)


def _over_replicas(function: Callable, in_axes: tuple, *, single: bool) -> Callable:
    """Jitted map over replicas; one replica goes without vmap, whose batched products are slower."""
    if not single:
        return jax.jit(jax.vmap(function, in_axes=in_axes))

    def call(*args: Any) -> Any:
        one = [
            arg if axis is None else jax.tree.map(lambda a: a[0], arg)
            for arg, axis in zip(args, in_axes, strict=True)
        ]
        return jax.tree.map(lambda a: jnp.asarray(a)[None], function(*one))

    return jax.jit(call)


def _diverged_at(measured: dict[str, NDArray]) -> NDArray[np.int64]:
    """First measured step at which each run counts as diverged, or -1; later values become NaN."""
    loss = measured["loss"]
    limit = DIVERGED * np.maximum(1.0, loss[:, :1])
    bad = np.maximum.accumulate(~(loss <= limit), axis=1)
    for key in _MEASURED:
        measured[key] = np.where(bad, np.nan, measured[key])
    return np.where(bad.any(axis=1), measured["step"][bad.argmax(axis=1)], -1)


def _dataset(
    measured: dict[str, NDArray],
    stepwise: dict[str, NDArray],
    final: NDArray,
    mean: NDArray | None,
    diverged_at: NDArray,
    attrs: dict[str, Any],
    *,
    projected: bool,
) -> xr.Dataset:
    steps, eta = attrs["steps"], attrs.get("eta", np.nan)
    replicas, taken = len(final), stepwise["rate"].shape[1] if stepwise else 0
    after = (diverged_at[:, None] >= 0) & (np.arange(taken) >= diverged_at[:, None])

    def variable(dims: tuple[str, ...], values: NDArray, units: str, long_name: str) -> tuple:
        return dims, values, {"units": units, "long_name": long_name}

    led_to = np.concatenate([np.full((replicas, 1), eta), stepwise["rate"]], axis=1)[:, measured["step"]]
    led_to[np.isnan(measured["loss"])] = np.nan
    contents = {key: variable(("replica", "step"), measured[key], *text) for key, text in _MEASURED.items()}
    contents["learning_rate"] = variable(
        ("replica", "step"), led_to, "time", "learning rate of the last update"
    )
    for key, text in _EACH_UPDATE.items():
        contents[key] = variable(("replica", "iteration"), np.where(after, np.nan, stepwise[key]), *text)
    if projected:
        contents["projection"] = variable(
            ("replica", "iteration", "direction"),
            np.where(after[..., None], np.nan, stepwise["projection"]),
            "1",
            "displacement from the start along the direction, before the update",
        )
    contents["final_params"] = variable(("replica", "weight"), final, "1", "weights after the last update")
    if mean is not None:
        contents["mean_params"] = variable(("replica", "weight"), mean, "1", "mean of the last weights")
    contents["diverged"] = variable(("replica",), diverged_at >= 0, "1", "whether the run diverged")
    contents["diverged_at"] = variable(("replica",), diverged_at, "1", "step at which it was seen, or -1")
    coords = {
        "step": variable(("step",), measured["step"], "1", "updates made"),
        "iteration": variable(("iteration",), np.arange(taken), "1", "update"),
        "replica": variable(("replica",), np.arange(replicas), "1", "independent run"),
    }
    return xr.Dataset(contents, coords, {**attrs, "complete": int(measured["step"][-1] == steps)})


def _batch_size(task: Task, rule: str, batch_size: int | None) -> int:
    if batch_size is None:
        return task.n if rule == "gd" else min(16, task.n)
    if (
        isinstance(batch_size, bool)
        or not isinstance(batch_size, int | np.integer)
        or not 1 <= batch_size <= task.n
    ):
        raise InvalidInput(f"batch_size={batch_size!r} must be an integer from 1 to {task.n}, the examples")
    if rule == "gd" and batch_size != task.n:
        raise InvalidInput(f"batch_size={batch_size} is not full batch: choose rule='sgd' or leave it out")
    return int(batch_size)


def _start(task: Task, start: ArrayLike | None, seed: int, replicas: int) -> jax.Array:
    theta = np.asarray(task.init(seed) if start is None else start, np.float64)
    if theta.shape not in ((task.size,), (replicas, task.size)):
        raise InvalidInput(f"start has shape {theta.shape}, not ({task.size},) or ({replicas}, {task.size})")
    if not np.all(np.isfinite(theta)):
        raise InvalidInput("start holds values that are not finite: start from finite weights")
    return jnp.asarray(np.broadcast_to(theta, (replicas, task.size)))
