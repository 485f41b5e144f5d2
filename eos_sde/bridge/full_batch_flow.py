"""The central flow: forecasts the time-averaged path of full-batch gradient descent, at and below the edge.

Gradient descent whose sharpness has reached 2/eta oscillates along the critical Hessian eigenvectors U. Its average w
moves by (Cohen, Damian, Talwalkar, Kolter and Lee, arXiv:2410.24206), in units of one step k,

    dw/dk = -eta [grad L + (1/2) grad <Sigma, H>],   Sigma = U X U'

with the one covariance Sigma >= 0 that holds the curvature at the edge and vanishes below it: H <= 2/eta on the
critical modes and <Sigma, 2/eta - H> = 0. A step of the flow solves these conditions for the gap 2/eta - U'HU at its
end, to first order in the step; so an error of one step is taken back by the next. Below the edge this is gradient
flow; what the discreteness of descent does there, of first order in eta, is left out. The swings of the curvature
about 2/eta, which keep the largest eigenvalue of a run above it where several modes are critical, come from the reduced
map of these modes (`reduced_map`).

An oscillation cannot grow from nothing. Below the edge that of the checkpoint, x = U'(grad L)/h along the modes with
eta h > 1, fades by 1 - eta h a step, down to the rounding of the weights; beyond the edge it grows at that rate, and
until it has reached the covariance that holds the curvature, this goes on rising: the run overshoots the edge, often by
a tenth and more. So x is carried, as one alternation of covariance x x', until it is large enough. The burst by which
an overshoot ends takes a run below the edge, whence it may come back quiet and overshoot again, by less; the flow stays
at the edge from there.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from threadpoolctl import threadpool_limits

from eos_sde.bridge.averaged_path import (
    check_flow,
    checked_weights,
    count_critical,
    displacement,
    flow_dataset,
    loss_and_modes,
    outgrown,
    sharpness_beside,
    stable_stride,
)
from eos_sde.bridge.carried_modes import usual_modes
from eos_sde.bridge.critical_modes import complementary_covariance
from eos_sde.bridge.flow_loop import follow
from eos_sde.bridge.flow_rules import flow_rule, initial_memory
from eos_sde.bridge.flow_validity import cautions
from eos_sde.bridge.precision import double_precision
from eos_sde.bridge.reduced_map import iterates_sharpness, leading, sharp_modes, without_noise
from eos_sde.bridge.rule_central_flow import RuleCentralFlow
from eos_sde.bridge.sampled_task import in_precision
from eos_sde.bridge.spectrum import curvature_gradients, top_modes
from eos_sde.bridge.task_library import Task
from solvers.errors import ConvergenceFailure, InvalidInput

_BEYOND = 1.25  # times 2/eta: descent at the edge was seen up to 1.15; from further beyond it is catapulted
_QUIET = 1.5  # where it came there without oscillation: seen up to 1.21


@partial(jax.jit, static_argnames="held")
def _linearised(task: Task, theta, held: int, gradient, eigenvalues, modes, eta, ahead):
    """The move as an affine function of X, free + per_unit[X], and the gap at its end, gap + response[X]."""
    turning = curvature_gradients(task, theta, modes[:, :held])
    move = partial(displacement, eigenvalues=eigenvalues, modes=modes, eta=eta, steps=ahead)
    free = move(-gradient)
    per_unit = -0.5 * jax.vmap(jax.vmap(move))(turning)
    gap = jnp.diag(2.0 / eta - eigenvalues[:held]) - turning @ free
    return free, per_unit, gap, -jnp.einsum("ija,kla->ijkl", turning, per_unit)


class _DescentFlow:
    """Averaged path of plain gradient descent; see `flow_loop.Flow`.

    Attributes
    ----------
    swing : Array
        Amplitude of the alternation in the coordinates of `block`, shape (k,), as long as the edge is not held.
    """

    def __init__(self, task: Task, theta, *, eta: float, modes: int, direction) -> None:
        self.task, self.eta, self.direction = task, eta, direction
        eigenvalues, self.block, _ = top_modes(task, theta, modes, tol=1e-3)
        along = self.block.T @ jax.grad(task.loss)(theta)
        self.swing = jnp.where(eta * eigenvalues > 1.0, along / eigenvalues, 0.0)
        self.theta = theta - self.block @ self.swing
        self.rounding = float(jnp.finfo(theta.dtype).epsneg * jnp.linalg.norm(theta))  # of a step
        self.held = False  # whether the oscillation has grown to hold the edge
        self.first_loss: float | None = None

    def settle(self, most: int, *, save: bool) -> str:  # noqa: ARG002
        task, eta = self.task, self.eta
        loss, gradient, self.eigenvalues, self.vectors, self.following = loss_and_modes(
            task, self.theta, self.block
        )
        self.swing = self.vectors.T @ (self.block @ self.swing)
        self.ahead = stable_stride(self.eigenvalues, eta, most)
        quiet = self.first_loss is not None and not self.held
        if not eta * float(self.eigenvalues[0]) < 2.0 * (_QUIET if quiet else _BEYOND):
            return f"eta * sharpness = {eta * float(self.eigenvalues[0]):.3g} is far beyond 2: a catapult"
        try:
            self._find_step(gradient)
        except ConvergenceFailure as reason:
            return str(reason)
        inside = self.covariance.shape[0]
        self.loss = float(loss)
        self.mean_loss = self.loss + 0.5 * float(
            np.diag(self.covariance) @ np.asarray(self.eigenvalues[:inside])
        )
        self.first_loss = self.loss if self.first_loss is None else self.first_loss
        if self.critical == self.eigenvalues.size:
            return f"all modes={self.critical} that are followed are at the edge; raise modes"
        if outgrown(self.mean_loss, self.loss, self.first_loss):
            return f"the oscillation outgrows the quadratic model (mean loss {self.mean_loss:.3g})"
        return ""

    def _find_step(self, gradient) -> None:
        """The covariance along the modes over the next steps, and how far the weights move."""
        eta, eigenvalues, vectors, ahead = self.eta, self.eigenvalues, self.vectors, self.ahead
        x = np.asarray(self.swing)
        self.covariance = np.zeros((0, 0)) if self.held else np.outer(x, x)
        self.critical = count_critical(eigenvalues, eta)
        if self.critical == 0:
            self.move = displacement(-gradient, eigenvalues, vectors, eta, ahead)
            return
        # a power of two, for fewer compilations: modes below the edge change nothing
        inside = min(1 << (self.critical - 1).bit_length(), eigenvalues.size)
        free, per_unit, gap, response = _linearised(
            self.task, self.theta, inside, gradient, eigenvalues, vectors, eta, ahead
        )
        holding = complementary_covariance(np.asarray(gap), np.asarray(response))
        beyond = eta * float(eigenvalues[0]) > 2.0
        self.held |= beyond and x[:inside] @ x[:inside] >= np.trace(holding) > 0.0
        if self.held:
            self.covariance = holding
        self.move = free + jnp.einsum("ij,ija->a", self.covariance[:inside, :inside], per_unit)

    def row(self, reached: int) -> dict[str, float]:
        eigenvalues, vectors, covariance = self.eigenvalues, self.vectors, self.covariance
        held = covariance.shape[0]
        sharpness, stderr = self._beside(jax.random.key(reached))
        unknown = self.direction is None
        seen = np.nan if unknown else np.asarray(self.direction) @ np.asarray(vectors[:, :held])
        return {
            "sharpness": float(eigenvalues[0]),
            "iterate_sharpness": sharpness,
            "iterate_sharpness_stderr": stderr,
            "effective_sharpness": 0.5 * self.eta * float(eigenvalues[0]),
            "loss": self.loss,
            "mean_loss": self.mean_loss,
            "top_variance": float(covariance[0, 0]) if held else 0.0,
            "direction_variance": np.nan if unknown else float(seen @ covariance @ seen),
            "radius": float(jnp.max((1.0 - self.eta * eigenvalues) ** 2)),
            "critical_modes": self.critical,
            "learning_rate": self.eta,
        }

    def _beside(self, key) -> tuple[float, float]:
        """Sharpness of single iterates, and its error."""
        if not self.held and self.swing.any():
            kick = self.vectors @ self.swing
            found = sharpness_beside(self.task, self.theta, self.vectors, jnp.stack([kick, -kick]))
            return float(found.mean()), 0.0
        if not self.covariance.any():
            return float(self.eigenvalues[0]), 0.0
        m = sharp_modes(self.task.size, self.eigenvalues.size)
        return iterates_sharpness(
            self.task, self.theta, self.eigenvalues[:m], self.vectors[:, :m], eta=self.eta, key=key,
            covariance=leading(self.covariance, m), **without_noise(m, self.task.size),
        )  # fmt: skip

    def advance(self) -> int:
        z = self.eta * self.eigenvalues
        swing = self.swing * (1.0 - z) ** self.ahead
        least = jnp.where(z > 1.0, self.rounding, 0.0)
        swing = jnp.where(jnp.abs(swing) > least, swing, least)
        # in the coordinates of the modes, which the next block improves
        self.swing = self.following.T @ (self.vectors @ swing)
        self.theta, self.block = self.theta + self.move, self.following
        return self.ahead


@threadpool_limits.wrap(1, "blas")
@double_precision
def central_flow(
    task: Task,
    start: ArrayLike,
    *,
    rule: str = "gd",
    eta: float | None = None,
    steps: int,
    state: Any = None,
    modes: int | None = None,
    stride: int = 5,
    save_every: int = 50,
    direction: ArrayLike | None = None,
    precision: str = "double",
    progress: Callable[[int], None] | None = None,
    **options: Any,
) -> xr.Dataset:
    """Forecast the averaged path of full-batch descent, or of another rule, from a checkpoint, without running it.

    Parameters
    ----------
    task : Task
        The training problem.
    start : array
        Weights of the checkpoint, shape (d,).
    rule : {"gd", "sgd", "sgdm", "nesterov", "rmsprop", "adam", "caeo"}
        As for `make_rule`; see `rule_central_flow` for those with a memory. "caeo" with delta > 0 does not oscillate:
        its flow is gradient flow at the capped rate. With delta < 0 its cap, at which the oscillation grows, is out of
        reach of a path that stays below 2/eta: the flow is that of descent at the base rate.
    eta : float, optional
        Learning rate (base rate of "caeo"); the task's if left out.
    steps : int
        Steps of the rule to forecast.
    state : pytree, optional
        State of the optax transformation at the checkpoint: momentum, second moments, count. If left out, the rule
        begins there.
    modes : int, optional
        Hessian modes that are followed and relaxed exactly; more than ever reach the edge, and 5 modes must be fewer
        than the weights, if these are more than 100. If left out 16, or as many as the weights allow.
    stride : int
        Steps of the rule per step of the flow at most; fewer where modes outside the block would not relax.
    save_every : int
        Steps between saved points; a multiple of `stride`.
    direction : array, optional
        Unit vector (d,): the variance of the oscillation along it is saved.
    precision : {"double", "single"}
        Of the network and its derivatives. What stays double, and why, is in `sampled_task`.
    progress : callable, optional
        Called with the step reached.
    **options
        Of the rule, with the defaults of `make_rule`: ``momentum``, ``b1``, ``b2``, ``eps``, ``eps_in_sqrt``,
        ``bias_correction``, ``delta``.

    Returns
    -------
    Dataset
        Over ``step``: ``sharpness`` (at the averaged weights), ``iterate_sharpness`` (mean over the oscillation, with
        ``iterate_sharpness_stderr`` but for rules with second moments),
        ``loss``, ``mean_loss`` (L + tr(H Sigma)/2, which is L + tr(Sigma)/eta at the edge), ``top_variance`` (along
        the top eigenvector at the time), ``direction_variance`` (along `direction`, or NaN), ``radius`` (of the
        second-moment recursion, the largest (1 - eta h)^2: 1 at the edge), ``resting_growth`` (of a disturbance of the
        oscillation, with momentum: see `edge_rest`), ``effective_sharpness`` (top eigenvalue of
        the Hessian, preconditioned by the rates, over the rule's edge: 1 at the edge), ``critical_modes`` (such
        eigenvalues within 5 % of the edge, or beyond), ``learning_rate`` (of rules with one for all weights).
        ``final_params(weight)``, and ``final_momentum``, ``final_second_moments`` of rules that keep them;
        ``attrs["stopped"]`` is empty or says where and why the flow ceased to apply; ``step`` is empty where it never
        did. ``attrs["caution"]`` is empty or says what speaks against the forecast (`flow_validity`).

    Raises
    ------
    InvalidInput
        For an unknown rule or option, "caeo" with delta = 0, weights or a state that are not finite or do not fit, or
        a bad number.
    """
    eta = task.eta if eta is None else float(eta)
    check_flow(eta=eta, steps=steps, stride=stride, save_every=save_every)
    described = flow_rule(rule, eta=eta, **options)
    if described.delta == 0:
        raise InvalidInput(
            "delta=0 has no flow with full batches: at a rate of 2/sharpness an oscillation of any size neither "
            "grows nor decays; choose delta above or below 0, or a smaller batch"
        )
    theta, modes = checked_weights(task, start), usual_modes(task, modes)
    along = None if direction is None else jnp.asarray(direction, dtype=jnp.float64)
    details = {"eta": eta, "batch_size": task.n, "modes": modes, "stride": stride, "precision": precision}
    seen = in_precision(task, precision)
    plain = described.plain or (described.delta is not None and described.delta < 0)
    if plain:
        flow = _DescentFlow(seen, theta, eta=eta, modes=modes, direction=along)
    else:
        memory = initial_memory(described, task.size, state)
        flow = RuleCentralFlow(seen, theta, described, memory, modes=modes, direction=along)
    if not described.plain:
        details |= described.attributes
    rows, stopped = follow(flow, steps=steps, stride=stride, save_every=save_every, progress=progress)
    return flow_dataset(
        task,
        rows,
        flow.theta,
        method="central flow",
        stopped=stopped,
        caution=cautions(rows, rule=rule, full_batch=True, stopped=stopped),
        final=described.kept(flow.memory) if isinstance(flow, RuleCentralFlow) else {},
        one_rate=not described.adaptive,
        **details,
    )
