"""The stochastic central flow: forecasts the averaged path of SGD without simulating its noise.

SGD is its average path w plus a fluctuation of covariance Sigma, which the averaged loss feels:

    dw/dk = -eta E[grad L(w + delta)],   delta ~ N(0, Sigma)
    Sigma+ = (I - eta H) Sigma (I - eta H) + eta^2 p (C + E_i[H_i Sigma H_i] - H Sigma H)

in units of one step k, with H the Hessian at w, C the covariance of the per-example gradients, H_i the
per-example Gauss-Newton matrices and p = (n - B)/(B (n - 1)) for batches of B out of n without replacement.
The second line is exact for SGD on the quadratic model (Mulayoff and Michaeli, arXiv:2306.07850); Sigma is carried
in the top modes and starts from zero, since a checkpoint is one point. The average over delta is taken by
three-point Gauss-Hermite quadrature along each principal axis of Sigma, which is (1/2) grad <Sigma, H> to leading
order: the term of the central flow of Cohen et al. (arXiv:2410.24206). Outside the top modes the fluctuation is known
by its spectrum and a few draws (`unresolved_modes`), which give its loss, its push on the path, and its curvature noise
in the modes. The sharpness of single iterates is read from the `reduced_map` of the sharpest modes.

The stepper is our own and not diffrax's. The covariance obeys a recursion in whole steps, which is taken exactly; the
modes relax by up to twice their distance a step, exactly too (`displacement`), so that no stability limit is left
but that of the modes outside; the block of modes is improved from step to step, which is no function of the state; and
what is measured outside the modes is random, so that an embedded error estimate would see noise.

The oscillations of full-batch training are not noise: `central_flow` carries them, and takes over at B = n. The flow
ends, and says so, where the fluctuations outgrow the quadratic model (a catapult, divergence).
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import xarray as xr
from numpy.typing import ArrayLike
from threadpoolctl import threadpool_limits

from eos_sde.bridge import flow_cost
from eos_sde.bridge.averaged_path import (
    advance,
    averaged,
    check_flow,
    checked_weights,
    count_critical,
    flow_dataset,
    fluctuation_draws,
    outgrown,
    stable_stride,
)
from eos_sde.bridge.carried_modes import enough_modes, usual_modes
from eos_sde.bridge.covariance import Recursion, covariance_recursion, per_example_modes
from eos_sde.bridge.flow_loop import follow
from eos_sde.bridge.flow_rules import FlowRule, flow_rule, initial_memory
from eos_sde.bridge.flow_validity import cautions
from eos_sde.bridge.full_batch_flow import central_flow
from eos_sde.bridge.precision import double_precision
from eos_sde.bridge.reduced_map import PAIRS, iterates_sharpness, sharp_modes
from eos_sde.bridge.rule_flow import RuleFlow
from eos_sde.bridge.sampled_task import Sampler, in_precision
from eos_sde.bridge.spectrum import follow_modes, top_modes
from eos_sde.bridge.task_library import Task
from eos_sde.bridge.unresolved_modes import AVERAGED, FORGETS, ORDER, after, excess_loss, measured, quiet
from eos_sde.thresholds.curvature_factors import noise_fraction
from solvers.errors import InvalidInput

INGREDIENTS = ("unresolved modes", "curvature noise", "feedback")
_LOOK = 2  # steps of the flow between measurements outside the carried modes


class _Local(NamedTuple):
    """The quadratic model at the averaged weights."""

    eigenvalues: jax.Array  # (k,)
    modes: jax.Array  # (d, k)
    following: jax.Array  # (d, k), a better block for the next point
    covariance: jax.Array  # (k, k), carried along, in these modes
    recursion: Recursion


@partial(jax.jit, static_argnames="curvature_noise")
def _local(
    task: Task, sample: Task, theta, block, covariance, beside, eta, p, *, curvature_noise: bool
) -> _Local:
    eigenvalues, modes, following = follow_modes(task, theta, block)
    turned = modes.T @ block  # the covariance comes in the coordinates of the block
    gradients, curvatures = per_example_modes(sample, theta + beside, modes)
    if not curvature_noise:
        curvatures = jnp.broadcast_to(curvatures.mean(axis=0), curvatures.shape)
    recursion = covariance_recursion(eigenvalues, gradients, curvatures, eta=eta, p=p)
    return _Local(eigenvalues, modes, following, turned @ covariance @ turned.T, recursion)


class _SgdFlow:
    """Averaged path of plain SGD; see `flow_loop.Flow`."""

    def __init__(
        self, task: Task, theta, *, eta: float, batch_size: int, modes: int | None, seed: int, direction,
        steps: int = 1, stride: int = 1, without: Collection[str] = (), examples: int | None, precision: str,
    ) -> None:  # fmt: skip
        self.task, self.theta, self.eta, self.direction = task, theta, eta, direction
        self.sampler = Sampler(task, examples=examples, precision=precision, seed=seed)
        self.spent = 0.0  # gradients of one example
        self.p = self.sampler.factor * noise_fraction(task.n, batch_size)
        if modes is None:
            given = {"horizon": steps, "stride": stride, "seed": seed}
            self.block = enough_modes(self.sampler.mean, theta, eta=eta, p=self.p, **given)
        else:
            self.block = top_modes(self.sampler.mean, theta, modes, tol=1e-3)[1]
        self.block = self.sampler.improved(theta, self.block)
        carried = self.block.shape[1]
        self.covariance = jnp.zeros((carried, carried))
        self.looks = "unresolved modes" not in without and carried < task.size
        self.key, self.outside_key = jax.random.key(seed), jax.random.key(seed + 1)
        self.first_loss: float | None = None
        self.without = without
        self.outside = quiet(task.size, eta, draws=PAIRS)
        self.looked = self.reached = 0

    def settle(self, most: int, *, save: bool) -> str:
        self.sampler.renew(self.theta, self.block)
        self.local = _local(
            self.sampler.mean,
            self.sampler.noise,
            self.theta,
            self.block,
            self.covariance,
            self._kick(),
            self.eta,
            self.p,
            curvature_noise="curvature noise" not in self.without,
        )
        if not jnp.isfinite(self.local.eigenvalues).all():
            return "the averaged path runs away"
        self.covariance, self.block = self.local.covariance, self.local.modes
        k = self.block.shape[1]
        self._spend(flow_cost.settled(k) + flow_cost.noise(k))
        if self.looks and self.looked % _LOOK == 0:
            carried = self.block, self.local.eigenvalues, self.covariance
            key = jax.random.fold_in(self.outside_key, self.looked)
            self.outside = measured(
                self.outside, self.sampler.mean, self.theta, *carried, key, self.eta, self.p, self.reached,
                sums=self.sampler.noise,
            )  # fmt: skip
            self._spend(flow_cost.outside(PAIRS, min(ORDER, self.task.size - k), AVERAGED) + PAIRS)
        self.looked += 1
        self.ahead = stable_stride(self.local.eigenvalues, self.eta, most)
        if not save:
            return ""
        seen = averaged(self.sampler.mean, self.theta, self.block, self.covariance)
        self._spend(flow_cost.averaged(k))
        loss, mean_loss = float(seen[0]), float(seen[1])
        beyond = float(excess_loss(self.outside))
        mean_loss += beyond
        self.losses = loss, mean_loss, beyond
        self.first_loss = loss if self.first_loss is None else self.first_loss
        if outgrown(mean_loss, loss, self.first_loss):
            return f"the fluctuations outgrow the quadratic model (mean loss {mean_loss:.3g})"
        return ""

    @property
    def gradients(self) -> float:
        """Evaluated so far, of one example; without the modes at the checkpoint."""
        return self.spent + self.sampler.gradients

    def _spend(self, each: float) -> None:
        self.spent += each * self.sampler.size

    def _kick(self) -> jax.Array:
        """Where the noise of the examples is found: at either sign of the draws in turn."""
        if "curvature noise" in self.without:
            return jnp.zeros_like(self.theta)
        draw, sign = divmod(self.looked, 2)
        return (1 - 2 * sign) * self.outside.draw[draw % PAIRS]

    def row(self, reached: int) -> dict[str, float]:
        eigenvalues, block = self.local.eigenvalues, self.block
        sharpness, stderr = self._beside(jax.random.fold_in(self.key, reached))
        seen = jnp.full(block.shape[1], jnp.nan) if self.direction is None else self.direction @ block
        return {
            "sharpness": float(eigenvalues[0]),
            "iterate_sharpness": sharpness,
            "iterate_sharpness_stderr": stderr,
            "effective_sharpness": 0.5 * self.eta * float(eigenvalues[0]),
            "loss": self.losses[0],
            "mean_loss": self.losses[1],
            "unresolved_loss": self.losses[2],
            "top_variance": float(self.covariance[0, 0]),
            "direction_variance": float(seen @ self.covariance @ seen),
            "radius": float(self.local.recursion.radius),
            "critical_modes": count_critical(eigenvalues, self.eta),
            "learning_rate": self.eta,
        }

    def _beside(self, key) -> tuple[float, float]:
        """Sharpness of single iterates, and its error."""
        task, theta = self.sampler.mean, self.theta
        if not self.covariance.any():  # at the checkpoint, which is one point
            return float(self.local.eigenvalues[0]), 0.0
        m = sharp_modes(task.size, self.block.shape[1])
        sharp = self.block[:, :m]
        map_key, rest_key = jax.random.split(key)
        self._spend(flow_cost.noise(m) + flow_cost.reading(m, task.size, PAIRS))
        rest = fluctuation_draws(self.block[:, m:], self.covariance[m:, m:], rest_key, PAIRS)
        return iterates_sharpness(
            task, theta, self.local.eigenvalues[:m], sharp, eta=self.eta, key=map_key, forgets=FORGETS,
            noise=(*per_example_modes(self.sampler.noise, theta, sharp), self.p), covariance=self.covariance[:m, :m],
            others=rest + jnp.concatenate([self.outside.draw, -self.outside.draw]),
        )  # fmt: skip

    def advance(self) -> int:
        local, ahead, block = self.local, self.ahead, self.block
        midway = local.recursion.after(self.covariance, (ahead + 1) // 2)
        felt = jnp.zeros_like(midway) if "feedback" in self.without else midway
        gradient = averaged(self.sampler.mean, self.theta, block, felt)[2]
        self._spend(flow_cost.averaged(block.shape[1]))
        if "feedback" not in self.without:
            gradient += self.outside.push
        self.outside = after(self.outside, self.eta, self.p, ahead)
        self.reached += ahead
        self.theta = advance(self.theta, -gradient, local.eigenvalues, block, self.eta, ahead)
        # in the coordinates of the modes, which the next block improves
        covariance = local.recursion.after(self.covariance, ahead)
        turned = local.following.T @ block
        self.covariance, self.block = turned @ covariance @ turned.T, local.following
        return ahead


@threadpool_limits.wrap(1, "blas")  # tiny LAPACK calls between large products: BLAS threads only wait
@double_precision
def stochastic_central_flow(
    task: Task,
    start: ArrayLike,
    *,
    batch_size: int,
    rule: str = "sgd",
    eta: float | None = None,
    steps: int,
    state: Any = None,
    modes: int | None = None,
    stride: int = 5,
    save_every: int = 50,
    seed: int = 0,
    direction: ArrayLike | None = None,
    without: Collection[str] = (),
    examples: int | None = None,
    precision: str = "double",
    progress: Callable[[int], None] | None = None,
    **options: Any,
) -> xr.Dataset:
    """Forecast the averaged path of SGD, or of another rule, from a checkpoint, without running it.

    Parameters
    ----------
    task : Task
        The training problem.
    start : Array
        Weights of the checkpoint, shape (d,).
    batch_size : int
        B <= n, without replacement. At B = n the path is that of `central_flow`.
    rule : {"gd", "sgd", "sgdm", "nesterov", "rmsprop", "adam", "caeo"}
        As for `make_rule`; see `rule_flow` for those with a memory. The rate of "caeo" is capped by the sharpness of
        single iterates, as in a run, in the mean over two opposite fluctuations that change from step to step.
    eta : float, optional
        Learning rate (base rate of "caeo"); the task's if left out.
    steps : int
        Steps of the rule to forecast.
    state : pytree, optional
        State of the optax transformation at the checkpoint: momentum, second moments, count. If left out, the rule
        begins there.
    modes : int, optional
        Hessian modes that carry the fluctuation; 5 modes must be fewer than the weights, if these are more than 100.
        If left out, as many as `enough_modes` finds for plain SGD, and 16 for other rules and at B = n.
    stride : int
        Steps of the rule per step of the flow at most; fewer where modes outside the block would not relax.
    save_every : int
        Steps between saved points; a multiple of `stride`.
    seed : int
        For the random sums of gradients that say what is outside the carried modes, and the draws at which the
        sharpness of single iterates is forecast.
    direction : array, optional
        Unit vector (d,): the variance of the fluctuation along it is saved.
    without : collection of str
        What to leave out, to see what it is worth: "unresolved modes" (the noise outside the carried modes),
        "curvature noise", "feedback" (of the fluctuation on the path). The last two for plain SGD.
    examples : int, optional
        For plain SGD with B < n: how many of the n are evaluated for the push of the fluctuation, the covariances of
        the per-example gradients and curvatures, and the readings of the sharpness; the samples change along the path
        and are corrected to the loss, the gradient and, every tenth step of the flow, the curvature of all
        (`sampled_task`). If left out, all up to 1000, and 500 of more.
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
        Over ``step``: ``sharpness`` (at the averaged weights), ``iterate_sharpness`` (mean over the
        fluctuation, which is what a run shows; with ``iterate_sharpness_stderr``),
        ``loss``, ``mean_loss``, ``unresolved_loss`` (the part of it
        from outside the carried modes), ``top_variance`` (along the top eigenvector at the time),
        ``direction_variance`` (along `direction`, or NaN), ``radius`` (of the mean-square recursion; from 1
        on the rule is mean-square unstable there),
        ``effective_sharpness`` (top eigenvalue of the Hessian, preconditioned by the rates, over the rule's
        edge: 1 at the edge), ``critical_modes`` (such eigenvalues within 5 % of the edge, or beyond),
        ``learning_rate`` (of rules with one for all weights). ``final_params(weight)``, and ``final_momentum``,
        ``final_second_moments`` of rules that keep them;
        ``attrs["stopped"]`` is empty or says where and why the flow ceased to apply.
        ``attrs["caution"]`` is empty or says what speaks against the forecast (`flow_validity`). With batches of
        fewer than all examples ``attrs["gradients_per_step"]`` is how many gradients of one example the flow evaluated
        per step of the rule, which itself takes B (`flow_cost`); what is found once at the checkpoint is not in it.

    Raises
    ------
    InvalidInput
        For a batch larger than the examples, an unknown rule or option, weights or a state that are not finite or do
        not fit, a sample of other rules than SGD, an unknown precision, or a bad number.
    """
    eta = task.eta if eta is None else float(eta)
    if not 1 <= batch_size <= task.n:
        raise InvalidInput(f"batch_size={batch_size} must be from 1 to {task.n}, the number of examples")
    described = flow_rule(rule, eta=eta, **options)
    _check_left_out(without, described, batches=batch_size < task.n)
    if examples is not None and not (described.plain and batch_size < task.n):
        raise InvalidInput(
            f"examples={examples!r} is for plain SGD with batches of fewer than all examples: leave it out"
        )
    if batch_size == task.n:
        flow = partial(central_flow, modes=modes, stride=stride, save_every=save_every, direction=direction)
        given = {"state": state, "precision": precision, "progress": progress}
        return flow(task, start, rule=rule, eta=eta, steps=steps, **given, **options)
    check_flow(eta=eta, steps=steps, stride=stride, save_every=save_every)
    theta = checked_weights(task, start)
    along = None if direction is None else jnp.asarray(direction, dtype=jnp.float64)
    given = {"batch_size": batch_size, "seed": seed, "direction": along, "without": without}
    details: dict[str, Any] = {
        "eta": eta, "batch_size": batch_size, "stride": stride, "precision": precision,
    }  # fmt: skip
    if described.plain:
        evaluated = {"examples": examples, "precision": precision}
        flow = _SgdFlow(task, theta, eta=eta, modes=modes, steps=steps, stride=stride, **given, **evaluated)
        details["examples"] = flow.sampler.size
    else:
        memory = initial_memory(described, task.size, state)
        flow = RuleFlow(
            in_precision(task, precision), theta, described, memory, modes=usual_modes(task, modes), **given
        )
        details |= described.attributes
    rows, stopped = follow(flow, steps=steps, stride=stride, save_every=save_every, progress=progress)
    details["gradients_per_step"] = flow.gradients / max(flow.reached, 1)
    return flow_dataset(
        task,
        rows,
        flow.theta,
        method="stochastic central flow",
        stopped=stopped,
        caution=cautions(rows, rule=rule, full_batch=False, stopped=stopped),
        final=described.kept(flow.memory) if isinstance(flow, RuleFlow) else {},
        one_rate=not described.adaptive,
        modes=flow.block.shape[1],
        **details,
    )


def _check_left_out(without: Collection[str], rule: FlowRule, *, batches: bool) -> None:
    """Refuse ingredients that are not there.

    Raises
    ------
    InvalidInput
        Naming one.
    """
    unknown = [without] if isinstance(without, str) else [name for name in without if name not in INGREDIENTS]
    if unknown:
        raise InvalidInput(
            f"without names {unknown[0]!r}: give a collection of {', '.join(map(repr, INGREDIENTS))}"
        )
    if without and not batches:
        raise InvalidInput(
            f"without={tuple(without)!r} is for batches of fewer than all examples: leave it out"
        )
    if not rule.plain and set(without) - {INGREDIENTS[0]}:
        raise InvalidInput(
            f"without={tuple(without)!r} is for plain SGD: for rule={rule.name!r} give only {INGREDIENTS[0]!r}"
        )
