"""At which learning rate training from given weights leaves, by every law that has an answer; from a calibration."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from eos_sde import thresholds
from eos_sde.bridge.calibration import line_statistics
from eos_sde.bridge.escape import basin_level
from eos_sde.bridge.line_map import LineMap, line_bottom
from eos_sde.bridge.losses import output_curvature
from eos_sde.bridge.precision import double_precision
from eos_sde.bridge.spectrum import curvature_along, hessian_products, top_modes
from eos_sde.bridge.task_library import Task
from eos_sde.models.arguments import count, positive
from eos_sde.thresholds import Threshold
from eos_sde.thresholds.curvature_factors import noise_fraction
from solvers.errors import ConvergenceFailure, InvalidInput

_MOST_FACTORS = 3000  # rows of the output Jacobian for which the mean-square threshold is computed in full


class EscapePrediction(NamedTuple):
    """What each law says.

    Attributes
    ----------
    thresholds : dict of str to Threshold
        By law, in the units of the learning rate; an infinite one says that this law knows no way out.
    silent : dict of str to str
        Laws that have no answer here, with the reason.
    line : dict of str to float
        ``curvature``, ``third``, ``fourth`` derivatives of the loss along the top eigenvector at the minimum of that
        line, ``gradient_variance`` and ``curvature_variance`` of the batch along it, ``feedback`` of the other
        directions over the horizon, and ``level``.
    """

    thresholds: dict[str, Threshold]
    silent: dict[str, str]
    line: dict[str, float]


@double_precision
def predict_escape(
    task: Task, params: ArrayLike, *, batch_size: int, horizon: int, level: float | None = None
) -> EscapePrediction:
    """Thresholds of leaving, from derivatives and per-example statistics at given weights; nothing is trained.

    - "loss of stability": 2/S, deterministic.
    - "mean-square": exact for the quadratic model with every example's Gauss-Newton matrix (T2), the law of
      minima that fit every example.
    - "flip on the line": one escape expected within the horizon, by the flip normal form along the top eigenvector,
      with the batch's gradient and curvature noise; infinite if the flip is supercritical.
    - "flip with feedback": the same with the other directions giving way, as far as they move within the horizon.
    - "map on the line": one escape over the level within the horizon, by the map with the line's own slopes and
      noise, oscillations beyond the edge included.
    - "catapult": 4/S, the divergence of the two-layer linear network under half squared error.

    Parameters
    ----------
    task : Task
        The training problem.
    params : array
        Weights, shape (d,); best a minimum (`applicable_criterion` judges).
    batch_size : int
        B, without replacement; B = n is gradient descent, without noise.
    horizon : int
        Steps.
    level : float, optional
        Loss that bounds the basin on the line; as in `measure_escape` if left out.

    Returns
    -------
    EscapePrediction
        The thresholds, the laws without an answer, and the numbers they were computed from.

    Raises
    ------
    InvalidInput
        If the weights or a number cannot be used, or the loss has no minimum along the top eigenvector.
    """
    theta = jnp.asarray(params, jnp.float64)
    if theta.shape != (task.size,) or not bool(jnp.all(jnp.isfinite(theta))):
        raise InvalidInput(f"params must be {task.size} finite weights of {task.name}, got {theta.shape}")
    batch_size = count("batch_size", batch_size, most=task.n)
    horizon = count("horizon", horizon, least=20)
    level = basin_level(task, float(task.loss(theta))) if level is None else positive("level", level)
    values, modes, _ = top_modes(task, theta, 1)
    sharpness, direction = float(values[0]), np.asarray(modes[:, 0])
    positive("sharpness", sharpness, "without positive curvature there is no edge to leave by; train further")
    bottom = line_bottom(task, theta, direction, sharpness)
    line = _line(task, bottom, direction, batch_size, horizon) | {"level": level}
    flip = partial(
        thresholds.flip_escape,
        horizon=horizon,
        curvature=line["curvature"],
        third=line["third"],
        fourth=line["fourth"],
        gradient_variance=line["gradient_variance"],
        curvature_variance=line["curvature_variance"],
    )
    laws: dict[str, Callable[[], Threshold]] = {
        "loss of stability": lambda: thresholds.gradient_descent(sharpness),
        "mean-square": lambda: _mean_square(task, theta, batch_size),
        "flip on the line": flip,
        "flip with feedback": lambda: flip(feedback=line["feedback"]),
        "map on the line": lambda: LineMap.of(task, bottom, direction, batch_size, level).threshold(horizon),
        "catapult": lambda: _catapult(task, sharpness),
    }
    found: dict[str, Threshold] = {}
    silent: dict[str, str] = {}
    for name, law in laws.items():
        try:
            found[name] = law()
        except (InvalidInput, ConvergenceFailure) as reason:
            silent[name] = str(reason)
    return EscapePrediction(found, silent, line)


def _line(
    task: Task, bottom: np.ndarray, direction: np.ndarray, batch_size: int, horizon: int
) -> dict[str, float]:
    statistics = line_statistics(task, jnp.asarray(bottom), jnp.asarray(direction))
    line = {name: float(statistics[name][0]) for name in ("curvature", "third", "fourth")}
    p = noise_fraction(task.n, batch_size)
    line["gradient_variance"] = p * float(statistics["per_example_variance"][0])
    line["curvature_variance"] = p * float(statistics["curvature_variance"][0])
    edge = 2 / positive("curvature", line["curvature"], "the line has no minimum here; train further")
    line["feedback"] = float(_feedback(task, jnp.asarray(bottom), jnp.asarray(direction), edge, horizon))
    return line


@partial(jax.jit, static_argnames=("task", "horizon"))
def _feedback(task: Task, theta: jax.Array, direction: jax.Array, eta: jax.Array, horizon: int) -> jax.Array:
    """The number g' (1 - (1 - eta H)^T) H^-1 g across the direction, g the gradient of the curvature along it.

    By T steps of gradient descent under the force -g: the whole of g' H^-1 g for the
    directions that relax within the horizon, and as much of the rest as they can move.
    """
    gradient = jax.grad(curvature_along(task.loss, direction))(theta)

    def across(vector: jax.Array) -> jax.Array:
        return vector - direction * (direction @ vector)

    force = across(gradient)

    def push(moved: jax.Array, _: None) -> tuple[jax.Array, None]:
        pull = hessian_products(task, theta, moved[:, None])[:, 0]
        return across(moved + eta * (force - pull)), None

    moved, _ = jax.lax.scan(push, jnp.zeros_like(theta), None, length=horizon)
    return force @ moved


def _mean_square(task: Task, theta: jax.Array, batch_size: int) -> Threshold:
    if task.n * task.outputs > _MOST_FACTORS:
        raise InvalidInput(
            f"{task.n * task.outputs} output derivatives are too many to hold here; use thresholds.sgd_mean_square"
        )
    jacobian = jax.jit(jax.jacrev(task.apply))(theta).reshape(task.n, task.outputs, task.size)
    bend = output_curvature(task.loss_name, task.apply(theta), task.y)
    return thresholds.sgd_mean_square(np.asarray(jacobian), batch_size=batch_size, weights=np.asarray(bend))


def _catapult(task: Task, sharpness: float) -> Threshold:
    if task.loss_name != "half-squared-error":
        raise InvalidInput(f"the catapult edge is that of the half squared error, not of {task.loss_name}")
    return thresholds.catapult(sharpness)
