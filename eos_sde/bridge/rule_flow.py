"""The stochastic central flow of rules with momentum, second moments or a capped rate.

The averaged weights w and velocity v move by the rule's own step under the mean gradient, the fluctuation of (w, v) is
carried by its exact recursion on the quadratic model, and the second moments nu by theirs:

    v+ = b v + gain E[grad L(w + delta)],   w+ = w - v+/P,   S+ = A S A' + k k' x (C + N[Sigma])
    nu+ = b2 nu + (1 - b2) E[g_B(w + delta)^2],   P = (sqrt(nu+) + eps)/eta,   delta ~ N(0, Sigma)

The velocity is carried and not slaved to the gradient: the averaged path trails its force by b/(1 - b) steps, a
checkpoint comes with a velocity of its own, and modes of curvature above (1 - b)^2/eta turn about their minimum on
the way to it. It costs one vector. Outside the carried modes the fluctuation is known by its spectrum and by draws
(`unresolved_modes`), which give its loss, its push on the path, and its curvature noise in the carried modes; with
momentum they are held where runs are, by the loss. The sharpness of single iterates is read from the `reduced_map` of
the sharpest modes. Left out are the fluctuations of nu (of relative order 1 - b2) and of a capped rate.
"""

from collections.abc import Collection
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eos_sde.bridge import flow_cost
from eos_sde.bridge.averaged_path import (
    averaged,
    count_critical,
    fluctuation_draws,
    outgrown,
    sharpness_beside,
    stable_stride,
)
from eos_sde.bridge.covariance import per_example_modes
from eos_sde.bridge.flow_rules import FlowRule, Memory
from eos_sde.bridge.gradient_moments import averaged_moments, example_squares, opposite_points, sign_rows
from eos_sde.bridge.reduced_map import PAIRS, sharp_modes, sharpness_of_iterates
from eos_sde.bridge.spectrum import follow_modes, random_block, top_modes
from eos_sde.bridge.state_covariance import StateRecursion, averaged_steps, state_recursion
from eos_sde.bridge.task_library import Task
from eos_sde.bridge.unresolved_modes import (
    AVERAGED,
    FORGETS,
    HELD_FORGETS,
    ORDER,
    after,
    excess_loss,
    measured,
    quiet,
)
from eos_sde.thresholds.curvature_factors import noise_fraction
from eos_sde.training.linear_rules import LinearRule

FEW = 4  # modes in which a single sharpness is looked for
DRAWS = 8  # of the fluctuation outside the modes: the push of a single one is now and then far off
LOOK = 10  # steps of the rule between measurements there
CHANGE = 0.04  # of an eigenvalue, over the largest, in one step of the flow: its local model is then as good as new
START = 40  # orthogonal iterations to the first block
ITERATIONS = 10  # more of them at each saved point, to the sharpness beside that of r H r


class _Local(NamedTuple):
    """The quadratic model at the averaged weights, in the coordinates w/r."""

    eigenvalues: jax.Array  # (k,), of r H r
    modes: jax.Array  # (d, k), orthonormal
    following: jax.Array  # (d, k), a better block for the next point
    covariance: jax.Array  # (k, 2, k, 2), carried along, in these modes
    recursion: StateRecursion


@jax.jit
def iterated(task: Task, theta, block, scale, iterations):
    """Eigenvalues and modes of r H r, by orthogonal iteration from a block; the leading ones converge first."""
    block = jax.lax.fori_loop(0, iterations, lambda _, b: follow_modes(task, theta, b, scale)[2], block)
    return follow_modes(task, theta, block, scale)[:2]


@partial(jax.jit, static_argnames="rule")
def _local(task: Task, rule: LinearRule, theta, block, scale, carried, p, draws) -> _Local:
    old_modes, old_scale, covariance = carried
    eigenvalues, modes, following = follow_modes(task, theta, block, scale)
    change = (old_scale / scale)[:, None]
    turn = jnp.stack([modes.T @ (change * old_modes), modes.T @ (old_modes / change)])
    covariance = jnp.einsum("aik,bjl,kalb->iajb", turn, turn, covariance)
    axes = scale[:, None] * modes
    curvatures = per_example_modes(task, theta, axes)[1]
    # at both signs of the draws, so that the curvature noise of what is not carried is in it
    kicks = jnp.concatenate([draws, -draws])
    gradients = jax.lax.map(lambda kick: per_example_modes(task, theta + kick, axes)[0], kicks)
    recursion = state_recursion(rule, eigenvalues, gradients, curvatures, p)
    return _Local(eigenvalues, modes, following, covariance, recursion)


class RuleFlow:
    """Averaged path of a rule under batches of fewer than all examples; see `flow_loop.Flow`.

    Attributes
    ----------
    theta : Array
        Averaged weights.
    memory : Memory
        Averaged velocity and second moments.
    """

    def __init__(
        self,
        task: Task,
        theta: jax.Array,
        rule: FlowRule,
        memory: Memory,
        *,
        batch_size: int,
        modes: int,
        seed: int,
        direction,
        without: Collection[str] = (),
    ) -> None:
        self.task, self.theta, self.rule, self.memory = task, theta, rule, memory
        self.p, self.spent = noise_fraction(task.n, batch_size), 0.0
        self.key, self.direction = jax.random.key(seed), direction
        self.strides = self.reached = self.next_look = 0
        self.ahead, self.last = 1, None
        self.first_loss: float | None = None
        self.squares = jnp.zeros(task.size)
        if rule.adaptive:
            gradient = jax.grad(task.loss)(theta)
            examples = example_squares(task, theta[None])
            self.squares = (1.0 - self.p) * gradient**2 + self.p * examples
        self.raw = random_block(task.size, min(FEW, task.size))
        self.outside_key = jax.random.key(seed + 1)
        self.scale = jnp.sqrt(self._rates(1))
        self.outside = quiet(task.size, float(self.rate), rule.linear, DRAWS)
        self.block = top_modes(task, theta, modes, tol=1e-3)[1]
        if rule.adaptive:
            self.block = iterated(task, theta, self.block, self.scale, START)[1]
        carried = self.block.shape[1]
        self.looks = "unresolved modes" not in without and carried < task.size
        self.holds = rule.linear.momentum > 0.0
        self.signs = sign_rows(carried)
        self.covariance = jnp.zeros((carried, 2, carried, 2))
        self.modes, self.axes = self.block, self.scale[:, None] * self.block

    def settle(self, most: int, *, save: bool) -> str:
        """Find the local model here; why the flow does not apply, or nothing."""
        rule, task = self.rule, self.task
        ahead = rule.longest(self.memory.updates, most)
        scale = jnp.sqrt(self._rates((ahead + 1) // 2))
        carried = (self.modes, self.scale, self.covariance)
        draws = self.outside.draw
        self.local = _local(task, rule.linear, self.theta, self.block, scale, carried, self.p, draws)
        if not jnp.isfinite(self.local.eigenvalues).all():
            return "the averaged path runs away"
        self.scale, self.modes, self.covariance = scale, self.local.modes, self.local.covariance
        self.block = self.local.following
        self.axes = scale[:, None] * self.modes
        k = self.axes.shape[1]
        self._spend(flow_cost.settled(k) + (1 + 2 * DRAWS) * flow_cost.noise(k))
        if self.looks and self.reached >= self.next_look:
            self._look_outside()
            self.next_look = self.reached + LOOK
        effective = rule.linear.gain / (1.0 - rule.linear.momentum)
        self.ahead = min(stable_stride(self.local.eigenvalues, effective, ahead), self._pace())
        if not save:
            return ""
        loss, mean_loss = (float(v) for v in averaged(task, self.theta, self.axes, self.sigma)[:2])
        self._spend(flow_cost.averaged(k))
        beyond = float(excess_loss(self.outside))
        mean_loss += beyond
        self.first_loss = loss if self.first_loss is None else self.first_loss
        self.losses = loss, mean_loss, beyond
        if outgrown(mean_loss, loss, self.first_loss):
            return f"the fluctuations outgrow the quadratic model (mean loss {mean_loss:.3g})"
        if outgrown(loss, 0.0, self.first_loss):
            return f"the averaged path runs away (loss {loss:.3g})"
        return ""

    def _pace(self) -> int:
        """Steps in which the eigenvalues change little, going by the last: at first a velocity may carry far."""
        now, last = np.asarray(self.local.eigenvalues), self.last
        self.last = now
        if last is None:
            return 1
        change = np.abs(now - last).max() / np.abs(now).max()
        return max(1, int(self.ahead * np.clip(CHANGE / max(change, 1e-9), 0.5, 2.0)))

    @property
    def gradients(self) -> float:
        """Evaluated so far, of one example; without the modes at the checkpoint."""
        return self.spent

    def _spend(self, each: float) -> None:
        self.spent += each * self.task.n

    @property
    def sigma(self) -> jax.Array:
        """Covariance of the weights in the modes, shape (k, k)."""
        return self.covariance[:, 0, :, 0]

    @property
    def rate(self) -> jax.Array:
        """One learning rate for all weights: the harmonic mean, for rates without bound belong to dead weights."""
        return 1.0 / jnp.mean(self.scale**-2)

    def _look_outside(self) -> None:
        rate, key = self.rate, jax.random.fold_in(self.outside_key, self.strides)
        self.outside = measured(
            self.outside, self.task, self.theta, self.modes, self.local.eigenvalues / rate, self.sigma * rate, key,
            rate, self.p, self.reached, self.rule.linear, self.scale / jnp.sqrt(rate),
            held=self.holds,
        )  # fmt: skip
        order = min(ORDER, self.task.size - self.modes.shape[1])
        self._spend(flow_cost.outside(DRAWS, order, AVERAGED, held=self.holds) + DRAWS)

    def _opposite(self, covariance: jax.Array) -> jax.Array:
        """Two points, a fluctuation of all modes on either side of the averaged weights: shape (2, d)."""
        points = opposite_points(self.theta, self.axes, covariance, self._signs())
        return points + jnp.outer(jnp.array([1.0, -1.0]), self.outside.draw[self.strides % DRAWS])

    def row(self, reached: int) -> dict[str, float]:
        """What is saved here."""
        z = self.local.eigenvalues
        if self.rule.adaptive:
            values, self.raw = iterated(self.task, self.theta, self.raw, None, ITERATIONS)
            self._spend((ITERATIONS + 1) * flow_cost.settled(self.raw.shape[1]))
            sharpness, vectors = float(values[0]), self.raw
        else:
            sharpness, vectors = float(z[0] / self.scale[0] ** 2), self.modes
        beside, stderr = self._beside(sharpness, vectors, jax.random.fold_in(self.key, reached))
        top = vectors[:, 0] @ self.axes
        seen = jnp.full_like(top, jnp.nan) if self.direction is None else self.direction @ self.axes
        outside = (
            0.0 if self.direction is None else float(jnp.mean((self.outside.draw @ self.direction) ** 2))
        )
        saved = {
            "sharpness": sharpness,
            "iterate_sharpness": beside,
            "iterate_sharpness_stderr": stderr,
            "effective_sharpness": float(z[0]) / self.rule.edge,
            "loss": self.losses[0],
            "mean_loss": self.losses[1],
            "unresolved_loss": self.losses[2],
            "top_variance": float(top @ self.sigma @ top),
            "direction_variance": float(seen @ self.sigma @ seen) + outside,
            "radius": float(self.local.recursion.radius()),
            "critical_modes": count_critical(2.0 * z / self.rule.edge, 1.0),
        }
        if not self.rule.adaptive:
            saved["learning_rate"] = float(self.scale[0] ** 2)
        return saved

    def _beside(self, sharpness: float, vectors: jax.Array, key) -> tuple[float, float]:
        """Sharpness of single iterates, and its error."""
        if not self.covariance.any():  # at the checkpoint, which is one point
            return sharpness, 0.0
        m = sharp_modes(self.task.size, self.modes.shape[1])
        map_key, rest_key = jax.random.split(key)
        rest = fluctuation_draws(self.axes[:, m:], self.sigma[m:, m:], rest_key, PAIRS)
        outside, linear = self.outside.draw[:PAIRS], self.rule.linear
        self._spend(flow_cost.noise(m) + flow_cost.reading(m, self.task.size, PAIRS, vectors.shape[1]))
        # what holds the draws holds the map: a force, of which momentum makes 1/(1 - b) times more
        force = self.outside.holding * self.rate * linear.gain / (1.0 - linear.momentum)
        held = float(force) + HELD_FORGETS
        return sharpness_of_iterates(
            self.task, self.theta, self.local.eigenvalues[:m], self.modes[:, :m], linear,
            scale=self.scale, top=sharpness, vectors=vectors, key=map_key,
            forgets=held if self.looks and self.holds else FORGETS,
            noise=(*per_example_modes(self.task, self.theta, self.axes[:, :m]), self.p),
            covariance=self.covariance[:m, :, :m], others=rest + jnp.concatenate([outside, -outside]),
        )  # fmt: skip

    def advance(self) -> int:
        """Move on; the steps made."""
        rule, ahead, recursion = self.rule, self.ahead, self.local.recursion
        velocity, moments, count = self.memory
        midway = recursion.after(self.covariance, (ahead + 1) // 2)[:, 0, :, 0]
        if rule.adaptive:
            gradient, squares = averaged_moments(self.task, self.theta, self.axes, midway)[2:]
            points = self._opposite(midway)
            self.squares = (1.0 - self.p) * squares + self.p * example_squares(self.task, points)
            self._spend(len(points))
            moments = rule.later(moments, self.squares, ahead)
        else:
            gradient = averaged(self.task, self.theta, self.axes, midway)[2]
        self._spend(flow_cost.averaged(self.axes.shape[1]))
        move, velocity = averaged_steps(
            rule.linear, gradient + self.outside.push, velocity, self.scale, self.local.eigenvalues, self.modes, ahead
        )  # fmt: skip
        self.theta = self.theta + move
        self.memory = Memory(velocity, moments, count + ahead)
        self.covariance = recursion.after(self.covariance, ahead)
        self.outside = after(self.outside, self.rate, self.p, ahead, rule.linear)
        self.reached += ahead
        self.strides += 1
        return ahead

    def _signs(self) -> np.ndarray:
        return self.signs[self.strides % len(self.signs)]

    def _rates(self, steps: int) -> jax.Array:
        """Rates of the weights so many updates from here."""
        rule, (_, moments, count) = self.rule, self.memory
        if rule.adaptive:
            return rule.rates(rule.later(moments, self.squares, steps), count + steps)
        if rule.delta is None or not hasattr(self, "modes"):
            return jnp.full(self.task.size, rule.eta)
        kicks = self._opposite(self.sigma) - self.theta
        seen = sharpness_beside(self.task, self.theta, self.modes[:, :FEW], kicks)
        self._spend(len(kicks) * flow_cost.beside_kick(min(FEW, self.modes.shape[1])))
        return jnp.full(self.task.size, rule.capped(seen).mean())
