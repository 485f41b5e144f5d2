"""The central flow of full-batch rules with momentum, second moments or a capped rate.

In the coordinates w/r, r^2 = 1/P the rates of the weights, a rule oscillates where an eigenvalue z of r H r reaches its
edge z* (2, with momentum more). The averaged path moves under the force grad L + (1/2) grad <Sigma, H>, with the one
Sigma = U X U' >= 0, U the critical generalised eigenvectors (U'PU = I), for which

    z* P - H >= 0 on U   and   <Sigma, z* P - H> = 0

(Cohen, Damian, Talwalkar, Kolter and Lee, arXiv:2410.24206, for RMSProp). An oscillation opens this gap in two ways: it
pushes the weights to flatter ones, and it adds diag(H Sigma H) to the second moments, which lowers the rates. With
momentum the weights trail their force; so X is chosen for the gap that it would leave a few b/(1 - b) steps ahead, and
again at the next step of the flow: it then neither chatters nor lags. Runs with momentum 0.9 seldom rest at the edge as
this flow does: they overshoot, burst and fall below it; how fast they leave is told (`edge_rest`).
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from eos_sde.bridge.averaged_path import (
    balanced_kicks,
    count_critical,
    outgrown,
    sharpness_beside,
    stable_stride,
)
from eos_sde.bridge.critical_modes import complementary_covariance
from eos_sde.bridge.edge_rest import resting_growth
from eos_sde.bridge.flow_rules import FlowRule, Memory
from eos_sde.bridge.reduced_map import leading, sharp_modes, sharpness_of_iterates, without_noise
from eos_sde.bridge.rule_flow import FEW, ITERATIONS, START, iterated
from eos_sde.bridge.spectrum import (
    curvature_gradients,
    follow_modes,
    hessian_products,
    random_block,
    top_modes,
)
from eos_sde.bridge.state_covariance import averaged_steps
from eos_sde.bridge.task_library import Task
from solvers.errors import ConvergenceFailure

_BEYOND = 1.25  # times the edge: from further beyond the weights are catapulted
_BEYOND_ADAPTIVE = 2.0  # where the rates give way: runs of RMSProp at the edge were met at 1.45


@jax.jit
def _local(task: Task, theta, block, scale):
    return *jax.value_and_grad(task.loss)(theta), *follow_modes(task, theta, block, scale)


@jax.jit
def _product(task: Task, theta, direction, scale):
    return hessian_products(task, theta, direction[:, None], scale=scale)[:, 0]


@partial(jax.jit, static_argnames=("rule", "held"))
def _linearised(
    task: Task, rule: FlowRule, held: int, theta, gradient, memory, scale, eigenvalues, modes, eta, ahead
):
    """Gradients of U'HU, the gap some steps ahead without oscillation, and what a unit of X adds to it.

    The rule comes with a learning rate of 1, for fewer compilations, and eta beside it.
    """
    critical = modes[:, :held]
    turning = curvature_gradients(task, theta, scale[:, None] * critical)
    move = partial(
        averaged_steps, rule.linear, scale=scale, eigenvalues=eigenvalues, modes=modes, steps=ahead
    )
    free = move(gradient, memory.velocity)[0]
    still = jnp.zeros_like(theta)
    per_unit = 0.5 * jax.vmap(jax.vmap(lambda force: move(force, still)[0]))(turning)
    gap = -jnp.diag(eigenvalues[:held]) - turning @ free
    response = -jnp.einsum("ija,kla->ijkl", turning, per_unit)
    if not rule.adaptive:
        return turning, gap + rule.edge * jnp.eye(held), response
    later = rule.later(memory.second_moments, gradient**2, ahead)
    stiffness = _stiffness(rule, eta, memory.updates + ahead)
    gap += rule.edge * critical.T @ ((scale**2 * stiffness(later))[:, None] * critical)
    # a unit of X adds HU X U'H to the squared gradient, and HU is z* PU at the edge
    slope = jax.vmap(jax.grad(stiffness))(later)
    weight = rule.edge**3 * (1.0 - rule.linear.b2**ahead) * jnp.where(later > 0, slope, 0.0)
    pairs = (critical[:, :, None] * critical[:, None, :]).reshape(theta.size, -1)
    response += (pairs.T @ (weight[:, None] * pairs)).reshape(held, held, held, held)
    return turning, gap, response


def _stiffness(rule: FlowRule, eta, count):
    """P of one weight as a function of its second moment, for a rule of learning rate 1."""
    return lambda nu: 1.0 / (eta * rule.rates(nu, count))


class RuleCentralFlow:
    """Averaged path of a rule under full batches; see `flow_loop.Flow`.

    Attributes
    ----------
    theta : Array
        Averaged weights.
    memory : Memory
        Averaged velocity and second moments.
    """

    def __init__(
        self, task: Task, theta: jax.Array, rule: FlowRule, memory: Memory, *, modes: int, direction
    ) -> None:
        self.task, self.theta, self.rule, self.memory = task, theta, rule, memory
        self.direction, self.first_loss = direction, None
        self.squares = jax.grad(task.loss)(theta) ** 2
        self.raw = random_block(task.size, FEW)
        self.sharpness = 0.0
        self.block = top_modes(task, theta, modes, tol=1e-3)[1]
        if rule.adaptive:
            self.block = iterated(task, theta, self.block, jnp.sqrt(self._rates(1)), START)[1]

    def settle(self, most: int, *, save: bool) -> str:  # noqa: ARG002
        """Find the local model here; why the flow does not apply, or nothing."""
        rule = self.rule
        ahead = rule.longest(self.memory.updates, most)
        self.scale = jnp.sqrt(self._rates((ahead + 1) // 2))
        loss, self.gradient, self.eigenvalues, self.modes, self.block = self._look(self.scale)
        if not rule.adaptive:
            self.sharpness = float(self.eigenvalues[0] / self.scale[0] ** 2)
            rates = self._rates(0)  # capped by the sharpness here
            self.eigenvalues *= rates[0] / self.scale[0] ** 2
            self.scale = jnp.sqrt(rates)
        top = float(self.eigenvalues[0])
        self.loss = float(loss)
        self.first_loss = self.loss if self.first_loss is None else self.first_loss
        self.ahead = stable_stride(self.eigenvalues, rule.linear.gain / (1.0 - rule.linear.momentum), ahead)
        if not top < rule.edge * (_BEYOND_ADAPTIVE if rule.adaptive else _BEYOND):
            return f"the sharpness is {top / rule.edge:.3g} of the edge, far beyond: a catapult"
        self.critical = count_critical(2.0 * self.eigenvalues / rule.edge, 1.0)
        if self.critical == self.eigenvalues.size:
            return f"all modes={self.critical} that are followed are at the edge; raise modes"
        try:
            self._balance()
        except ConvergenceFailure as reason:
            return str(reason)
        held = len(self.covariance)
        self.mean_loss = self.loss + 0.5 * float(
            np.diag(self.covariance) @ np.asarray(self.eigenvalues[:held])
        )
        if outgrown(self.mean_loss, self.loss, self.first_loss):
            return f"the oscillation outgrows the quadratic model (mean loss {self.mean_loss:.3g})"
        return ""

    def _look(self, scale):
        return _local(self.task, self.theta, self.block, scale)

    def _balance(self) -> None:
        """Find the oscillation, and the mean force and squared gradient under it."""
        self.covariance, self.force, self.turning = np.zeros((0, 0)), self.gradient, None
        rule, held = self.rule, 0
        # a capped rate keeps the weights from oscillating
        if self.critical and rule.delta is None:
            held = min(1 << (self.critical - 1).bit_length(), self.eigenvalues.size)
            turning, gap, response = _linearised(
                self.task, replace(rule, eta=1.0), held, self.theta, self.gradient, self.memory, self.scale,
                self.eigenvalues, self.modes, rule.eta, self.ahead + rule.lag,
            )  # fmt: skip
            self.turning = turning
            self.covariance = complementary_covariance(np.asarray(gap), np.asarray(response))
            self.force = self.gradient + 0.5 * jnp.einsum("ij,ija->a", self.covariance, turning)
        self.critical_axes = self.scale[:, None] * self.modes[:, :held]
        if rule.adaptive:
            rows = self.modes[:, :held] * self.eigenvalues[:held] / self.scale[:, None]  # HU = PU z
            self.squares = self.force**2 + jnp.einsum("ai,ij,aj->a", rows, self.covariance, rows)

    def row(self, reached: int) -> dict[str, float]:
        """What is saved here."""
        rule, axes, z = self.rule, self.critical_axes, self.eigenvalues
        vectors = self.modes
        if rule.adaptive:
            values, self.raw = iterated(self.task, self.theta, self.raw, None, ITERATIONS)
            self.sharpness, vectors = float(values[0]), self.raw
        beside, stderr = self._beside(vectors, jax.random.key(reached))
        top = np.asarray(vectors[:, 0] @ axes)
        seen = np.nan if self.direction is None else np.asarray(self.direction @ axes)
        step = np.asarray(rule.linear.step(1.0, np.asarray(z))[0])
        saved = {
            "sharpness": self.sharpness,
            "iterate_sharpness": beside,
            "iterate_sharpness_stderr": stderr,
            "effective_sharpness": float(z[0]) / rule.edge,
            "loss": self.loss,
            "mean_loss": self.mean_loss,
            "top_variance": float(top @ self.covariance @ top),
            "direction_variance": np.nan if self.direction is None else float(seen @ self.covariance @ seen),
            "radius": float(np.abs(np.linalg.eigvals(step)).max() ** 2),
            "critical_modes": self.critical,
        }
        if not rule.adaptive:
            saved["learning_rate"] = float(self.scale[0] ** 2)
            saved["resting_growth"] = self._growth()
        return saved

    def _beside(self, vectors, key) -> tuple[float, float]:
        """Sharpness of single iterates, and its error.

        With second moments an oscillation also changes the rates, which the reduced map holds: there the iterates are
        those of a balanced oscillation.
        """
        if not self.covariance.any():
            return self.sharpness, 0.0
        if self.rule.adaptive:
            kicks = balanced_kicks(self.critical_axes, self.covariance)
            seen = [float(sharpness_beside(self.task, self.theta, vectors, pair).mean()) for pair in kicks]
            return float(np.mean(seen)), np.nan
        linear, m = self.rule.linear, sharp_modes(self.task.size, self.eigenvalues.size)
        # of an alternation: v+ = b v + gain z x has the other sign than v
        alternate = jnp.array([1.0, -linear.gain * self.rule.edge / (1.0 + linear.momentum)])
        return sharpness_of_iterates(
            self.task, self.theta, self.eigenvalues[:m], self.modes[:, :m], linear, scale=self.scale,
            top=self.sharpness, vectors=vectors, key=key,
            covariance=jnp.einsum("ij,a,b->iajb", leading(self.covariance, m), alternate, alternate),
            **without_noise(m, self.task.size),
        )  # fmt: skip

    def _growth(self) -> float:
        """Growth of a disturbance of the largest oscillation; nan where there is none."""
        if self.turning is None or not self.covariance.any():
            return np.nan
        variances, rotation = np.linalg.eigh(self.covariance)
        modes = self.modes[:, : len(variances)]
        turning = self.scale * jnp.einsum("ija,i,j->a", self.turning, rotation[:, -1], rotation[:, -1])
        turning -= modes @ (modes.T @ turning)
        square = turning @ turning
        bent = _product(self.task, self.theta, turning, self.scale)
        return resting_growth(self.rule.linear, float(square * variances[-1]), float(turning @ bent / square))

    def advance(self) -> int:
        """Move on; the steps made."""
        velocity, moments, count = self.memory
        move, velocity = averaged_steps(
            self.rule.linear, self.force, velocity, self.scale, self.eigenvalues, self.modes, self.ahead
        )
        if self.rule.adaptive:
            moments = self.rule.later(moments, self.squares, self.ahead)
        self.theta = self.theta + move
        self.memory = Memory(velocity, moments, count + self.ahead)
        return self.ahead

    def _rates(self, steps: int) -> jax.Array:
        """Rates of the weights so many updates from here."""
        rule, (_, moments, count) = self.rule, self.memory
        if rule.adaptive:
            return rule.rates(rule.later(moments, self.squares, steps), count + steps)
        return jnp.full(self.task.size, float(rule.capped(self.sharpness)))
