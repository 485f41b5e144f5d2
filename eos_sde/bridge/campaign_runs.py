"""The checkpoints of the campaign, and the real runs from them with their means over replicas or over time."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from eos_sde.bridge.batches import draw_batches, stream
from eos_sde.bridge.flow_rules import flow_rule
from eos_sde.bridge.main_job import checkpoint
from eos_sde.bridge.precision import double_precision
from eos_sde.bridge.recorder import record
from eos_sde.bridge.rules import make_rule
from eos_sde.bridge.spectrum import top_modes
from eos_sde.bridge.task_library import Task, defining_settings
from solvers.errors import AccuracyWarning, InvalidInput

RULES: Mapping[str, tuple[float, Mapping[str, Any]]] = MappingProxyType(
    {
        "gd": (1.0, {}),
        "sgd": (1.0, {}),
        "sgdm": (0.3, {}),
        "nesterov": (0.3, {}),
        "rmsprop": (0.01, {"b2": 0.99}),
        "adam": (0.02, {}),
        "caeo": (2.0, {"delta": 0.5}),
    }
)
"""Learning rate over the task's own, and options."""
_RUN = 10_000  # added to the seed of a cell: its runs share no batches with its checkpoint
_CHECKPOINT_STREAM = 2  # after those of `record`


@dataclass(frozen=True)
class Plan:
    """Lengths of a cell; what they mean is said by `run_campaign`."""

    steps: int
    replicas: int
    warmup: int
    save_every: int

    @property
    def axis(self) -> NDArray[np.int64]:
        """The saved steps."""
        return np.arange(0, self.steps + 1, self.save_every)

    @property
    def late(self) -> NDArray[np.bool_]:
        """Which of them are in the last third."""
        return self.axis > 2 * self.steps / 3


@dataclass(frozen=True)
class Checkpoint:
    """All that a forecast sees.

    Attributes
    ----------
    theta : ndarray
        Weights, shape (d,).
    state : pytree or None
        State of the optax transformation, of rules with a memory.
    direction : ndarray
        Top Hessian eigenvector there, shape (d,).
    """

    theta: NDArray[np.float64]
    state: Any
    direction: NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """A rule at a batch size on a task, from a seed."""

    task: Task
    rule: str
    batch_size: int
    seed: int

    @property
    def eta(self) -> float:
        """Learning rate."""
        return RULES[self.rule][0] * self.task.eta

    @property
    def options(self) -> dict[str, Any]:
        """Of the rule."""
        return dict(RULES[self.rule][1])

    @property
    def settings(self) -> dict[str, Any]:
        """What decides its numbers, but for the lengths and the seed."""
        return {
            "task": defining_settings(self.task.name, self.task.settings),
            "eta": self.eta,
            "options": self.options,
            "batch_size": self.batch_size,
        }

    @property
    def run_settings(self) -> dict[str, Any]:
        """Arguments of `record` for its real runs."""
        options = self.options
        return {
            "seed": self.seed + _RUN, "eta": self.eta, "batch_size": self.batch_size,
            "delta": options.pop("delta", 0.1), "options": options,
        }  # fmt: skip

    @property
    def remembers(self) -> bool:
        """Whether the rule has a memory that the forecast needs."""
        described = flow_rule(self.rule, eta=self.eta, **self.options)
        return bool(described.linear.momentum) or described.adaptive

    @property
    def full(self) -> bool:
        """Whether the batch is all examples."""
        return self.batch_size == self.task.n

    def transformation(self) -> optax.GradientTransformationExtraArgs:
        """The rule in optax."""
        return make_rule(self.rule, eta=self.eta, **self.options)


@lru_cache(maxsize=4)
def plain_checkpoint(task: Task, warmup: int, seed: int) -> NDArray[np.float64]:
    """The weights from which all rules of a seed begin, of the task's own learning rate."""
    return checkpoint(task, eta=task.eta, steps=warmup, seed=seed)


@double_precision
def reach_checkpoint(cell: Cell, plan: Plan) -> Checkpoint:
    """Weights after the warm-up; a rule with a memory then makes as many steps of its own, in batches of the cell.

    Parameters
    ----------
    cell : Cell
        What is trained.
    plan : Plan
        With the length of the warm-up.

    Returns
    -------
    Checkpoint
        Weights, state and top eigenvector.

    Raises
    ------
    InvalidInput
        If training diverged on the way.
    """
    task, state = cell.task, None
    theta = jnp.asarray(plain_checkpoint(task, plan.warmup, cell.seed))
    if cell.remembers:
        rule = cell.transformation()
        words = stream(cell.seed, _CHECKPOINT_STREAM, 0)
        batches = draw_batches(words, plan.warmup, examples=task.n, batch_size=cell.batch_size)

        @jax.jit
        def train(carry, batches, x, y):
            def step(carry, batch):
                theta, state = carry
                gradient = jax.grad(task.loss)(theta, x[batch], y[batch])
                update, state = rule.update(
                    gradient, state, theta, value_fn=lambda w: task.loss(w, x[batch], y[batch])
                )
                return (theta + update, state), None

            return jax.lax.scan(step, carry, batches)[0]

        theta, state = train((theta, rule.init(theta)), batches, task.x, task.y)
        if not bool(jnp.all(jnp.isfinite(theta))):
            raise InvalidInput(
                f"rule={cell.rule!r} at eta={cell.eta:g} makes {task.name} diverge in the warm-up"
            )
    direction = top_modes(task, theta, 4, tol=1e-3)[1][:, 0]
    return Checkpoint(np.asarray(theta), state, np.asarray(direction))


@dataclass(frozen=True)
class Run:
    """What the runs did: measured series, last weights (runs, d), and how many diverged."""

    series: dict[str, Any]
    weights: NDArray
    diverged: int


def measure(cell: Cell, begin: Checkpoint, plan: Plan) -> Run:
    """Replicas at the saved steps; of full batches one run and its averages over `save_every` steps about them."""
    full, half = cell.full, plan.save_every // 2
    given: dict[str, Any] = cell.run_settings | {"start": begin.theta, "batches_measured": 1}
    transformation: Any = cell.rule
    if cell.remembers:
        made = cell.transformation()
        transformation = optax.GradientTransformationExtraArgs(lambda params: begin.state, made.update)  # noqa: ARG005
        given["options"] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AccuracyWarning)  # counted and told in the reason
        if full:
            steps = plan.steps + half
            run = record(
                cell.task, transformation, steps=steps, every=1, project=begin.direction[:, None], **given
            )
            later = [
                record(cell.task, transformation, steps=k, every=k, curvature=False, **given)["final_params"].values
                for k in (plan.steps, plan.steps + 1)
            ]  # fmt: skip
            weights, series = np.mean(later, axis=0), _averaged(run, plan)
        else:
            run = record(
                cell.task, transformation, steps=plan.steps, every=plan.save_every, replicas=plan.replicas,
                project=begin.direction[:, None], **given,
            )  # fmt: skip
            weights, series = run["final_params"].values, _over_replicas(run, plan)
    return Run(series, weights, int(run["diverged"].sum()))


def _averaged(run: xr.Dataset, plan: Plan) -> dict[str, Any]:
    """Averages of one run, which cancel its alternation."""
    axis, half = plan.axis, plan.save_every // 2

    def about(values: ArrayLike) -> NDArray:
        values = np.asarray(values)
        kernel = np.ones(2 * half + 1) / (2 * half)
        kernel[[0, -1]] /= 2
        inner = np.convolve(values, kernel, mode="valid")
        return np.array([values[0], *inner[axis[1:] - half]])

    length = plan.steps + half + 1
    loss, sharpness = (
        run[name].values[0] if run.sizes["step"] == length else np.full(length, np.nan)
        for name in ("loss", "sharpness")
    )
    x = np.resize(run["projection"].values[0, :, 0], length)  # the last entry is out of every window
    alternation = np.zeros(length)
    alternation[1:-1] = ((x[:-2] - 2 * x[1:-1] + x[2:]) / 4) ** 2
    alternation[-2:] = alternation[-4:-2]
    known = {"loss": about(loss), "sharpness": about(sharpness), "variance": about(alternation)}
    return {f"measured_{name}": value for name, value in known.items()} | {
        key: size
        for name in known
        for key, size in ((f"measured_{name}_stderr", np.zeros(axis.size)), (f"late_{name}_stderr", 0.0))
    }


def _over_replicas(run: xr.Dataset, plan: Plan) -> dict[str, Any]:
    axis, half = plan.axis, plan.save_every // 2
    series: dict[str, Any] = {}
    for name in ("loss", "sharpness"):
        values = run[name].reindex(step=axis).values
        series[f"measured_{name}"] = values.mean(axis=0)
        series[f"measured_{name}_stderr"] = values.std(axis=0, ddof=1) / np.sqrt(len(values))
        late = values[:, plan.late].mean(axis=1)
        series[f"late_{name}_stderr"] = late.std(ddof=1) / np.sqrt(len(late))
    x = run["projection"].values[:, :, 0]
    windows = [slice(max(1, step - half), step + half + 1) for step in axis[1:]]
    last = slice(axis[plan.late][0] - half, plan.steps)
    value, error = jackknifed_variance(x, windows)
    series["late_variance_stderr"] = jackknifed_variance(x, [last])[1][0]
    series["measured_variance"] = np.concatenate([[0.0], value])
    series["measured_variance_stderr"] = np.concatenate([[0.0], error])
    return series


def jackknifed_variance(x: NDArray, windows: list[slice]) -> tuple[NDArray, NDArray]:
    """Variance between runs, averaged over windows of time, with its error over the runs.

    Parameters
    ----------
    x : ndarray
        Shape (runs, iterations), of at least three runs.
    windows : list of slice
        Of iterations.

    Returns
    -------
    value, error : ndarray
        One for each window; NaN for windows beyond the end.
    """

    def averaged(rows: NDArray) -> NDArray:
        variances = rows.var(axis=0, ddof=1)
        return np.array([variances[w].mean() if variances[w].size else np.nan for w in windows])

    runs = len(x)
    without = np.stack([averaged(np.delete(x, r, axis=0)) for r in range(runs)])
    return averaged(x), np.sqrt((runs - 1) / runs * ((without - without.mean(axis=0)) ** 2).sum(axis=0))
