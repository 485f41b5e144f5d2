"""A stability monitor for any optax loop: pure, compiled with the step, most of the time asleep."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import xarray as xr

from eos_sde.models.arguments import count, fraction, positive
from eos_sde.optimizers import curvature
from eos_sde.optimizers.curvature.interface import Estimator, flat_view, hessian_product
from eos_sde.training import readings as log
from eos_sde.training.linear_rules import adam_moments, linear_rule, preconditioner
from eos_sde.training.objective import examples, objective
from eos_sde.training.readings import JUDGED, MEASURED, Reading
from eos_sde.training.top_mode import (
    curvature_variance,
    one_mode_threshold,
    saturation,
    self_stabilization,
    where_positive,
)  # fmt: skip
from solvers.errors import InvalidInput

_NEAR = 0.5  # of a threshold: from here on the third derivative is worth its cost
_RELEASE = 0.9  # of a threshold: below, a flag that was set is taken back
_CATAPULT = (
    3.0  # growth per step of an oscillation from which on it raises the sharpness: eta = 4/S without momentum
)
_ORDER = 3
_GRADIENTS = (
    22.0  # of the probe data, per measurement at the edge: 1.5 passes of Lanczos, 9 for the rest, ...
)
_BATCH_GRADIENTS = 4.0  # ... and of the batch


class MonitorState(NamedTuple):
    """What the monitor remembers.

    Attributes
    ----------
    count : int32
        Steps seen.
    curvature : pytree
        State of the curvature estimator.
    means : Array, shape (4,)
        Running sums: batch sharpness, g_B' H g_B, |grad L|^2, and their weight.
    first_loss : float
        Of the first measurement.
    reading : Reading
        The last one.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    curvature: Any
    means: jax.Array
    first_loss: jax.Array
    reading: Reading


class StabilityMonitor:
    r"""Sharpness, batch sharpness, gradient noise and the distance to each threshold, while an optax loop runs.

    ``state = monitor.init(params)`` once; before each update ``state, reading = monitor.update(state, params, batch,
    learning_rate)``. Pure: compile it with the training step, under ``jax.jit`` and ``jax.lax.scan`` (not ``vmap``,
    under which every step would pay for a measurement). The curvature is measured at every k-th step; in between
    the last values stand, and the distances follow the learning rate of each step.

    Parameters
    ----------
    loss : callable
        ``loss(params, batch)`` or ``loss(params, x, y)``: the mean over the examples of a batch.
    rule : {"gd", "sgd", "sgdm", "nesterov", "adam", "adamw"}
        As optax has them.
    batch_size : int, optional
        B; that of the batches given to `update` if left out.
    examples : int, optional
        n, the size of the training set, for batches drawn without replacement; if left out they count as fresh.
    every : int, optional
        Steps between measurements. If left out: as many as keep the cost within `overhead`, by counting gradients.
    overhead : float
        Share of the training time that the monitor may add, in (0, 1).
    momentum, b1, b2, eps, weight_decay : float, optional
        Options of the rule; optax's defaults, and momentum 0.9, if left out.
    average : int
        Measurements over which the running means extend.
    limit : float
        Divergence is predicted where the loss would rise beyond `limit` times the larger of the first and the present
        loss.
    estimator : Estimator, optional
        From `eos_sde.curvature`; Lanczos of order 3 if left out.
    notify : callable, optional
        Called on the host with the reading when a warning begins.
    seed : int
        Of the first vector of Lanczos.

    Raises
    ------
    InvalidInput
        For arguments that cannot be used.

    Notes
    -----
    *Thresholds.* ``deterministic``: the rule's edge at the sharpness. ``mean_square``: that of the top mode alone, with
    the variance over examples of the curvature along it (an upper bound of the exact threshold, for which see
    `max_stable_lr`). ``batch``: the edge at the batch sharpness; SGD without momentum rests about there.
    The gradient-noise interaction equals 2/eta wherever the loss is stationary, stable or not.

    *The warning.* A rate beyond a threshold is no divergence: networks answer with an excursion that lowers the
    sharpness (Damian, Nichani and Lee 2023). In their reduced model an excess sharpness y is removed at the amplitude
    x^2 = 2 y^2/beta, that is at a loss S y^2/beta above the present one, with beta = \|grad S\|^2 across the top
    mode; y = S (1 - threshold/eta). The monitor warns when that peak lies beyond `limit`, and when eta is beyond the
    ``catapult`` threshold, where oscillation raises the sharpness instead (4/S without momentum: Lewkowycz et al.
    2020; see `thresholds.closed_forms.momentum_edge`). Adam's preconditioner grows with the gradients and bounds its
    steps by about eta a weight: there the catapult does not apply, and the peak is at most the loss of such
    steps along the top mode. ``edge`` and ``warning`` are taken back below 0.9 of the thresholds.

    References
    ----------
    arXiv:2209.15594 (self-stabilization), 2003.02218 (catapult), 2412.20553 (batch sharpness, gradient-noise
    interaction), 2207.14484 (Adam).

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optax
    >>> def loss(w, x, y):
    ...     return 0.5 * jnp.mean((x @ w - y) ** 2)
    >>> monitor = StabilityMonitor(loss, rule="gd", every=5)
    >>> optimizer = optax.sgd(0.2)
    >>> batch = (jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.zeros(2))
    >>> def step(carry, _):
    ...     w, opt_state, state = carry
    ...     state, reading = monitor.update(state, w, batch, 0.2)
    ...     updates, opt_state = optimizer.update(jax.grad(loss)(w, *batch), opt_state)
    ...     return (optax.apply_updates(w, updates), opt_state, state), reading
    >>> w = jnp.ones(2)
    >>> carry = (w, optimizer.init(w), monitor.init(w))
    >>> _, readings = jax.lax.scan(step, carry, length=20)
    >>> log = monitor.dataset(readings)
    >>> print(log.step.values, log.deterministic.values.round(3))
    [ 0  5 10 15] [1. 1. 1. 1.]
    """

    def __init__(
        self,
        loss: Callable[..., Any],
        *,
        rule: str = "sgd",
        batch_size: int | None = None,
        examples: int | None = None,
        every: int | None = None,
        overhead: float = 0.05,
        momentum: float | None = None,
        b1: float | None = None,
        b2: float | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        average: int = 10,
        limit: float = 10.0,
        estimator: Estimator | None = None,
        notify: Callable[[Reading], None] | None = None,
        seed: int = 0,
    ) -> None:
        if not callable(loss):
            raise InvalidInput(
                f"loss={loss!r} is not callable; give loss(params, batch), a mean over the examples"
            )
        self.loss = loss
        self.rule = linear_rule(rule, momentum=momentum, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
        self.examples = None if examples is None else count("examples", examples, least=2)
        self.batch_size = None if batch_size is None else count("batch_size", batch_size, most=self.examples)
        self.every = None if every is None else count("every", every)
        self.overhead = fraction("overhead", positive("overhead", overhead))
        self.forget = 1.0 - 1.0 / count("average", average)
        self.limit = positive("limit", limit)
        self.estimator = (
            curvature.lanczos(order=_ORDER, tol=0.1, restarts=4) if estimator is None else estimator
        )
        self.notify = notify
        self.seed = count("seed", seed, least=0)

    def init(self, params: Any) -> MonitorState:
        """State before the first step.

        Parameters
        ----------
        params : pytree of real arrays
            Only shapes and dtypes are read.

        Returns
        -------
        MonitorState
            For `update`.
        """
        flat = flat_view(params)
        unknown = jnp.full((), jnp.nan, flat.dtype)
        no, zero = jnp.zeros((), bool), jnp.zeros((), jnp.int32)
        reading = Reading(zero, zero, no, no, jnp.full((len(MEASURED) + len(JUDGED),), jnp.nan, flat.dtype))
        memory = self.estimator.init(jnp.zeros((flat.dimension,), flat.dtype), jax.random.key(self.seed))
        return MonitorState(zero, memory, jnp.zeros((4,), flat.dtype), unknown, reading)

    def update(
        self,
        state: MonitorState,
        params: Any,
        batch: Any,
        learning_rate: Any,
        *,
        data: Any = None,
        opt_state: Any = None,
    ) -> tuple[MonitorState, Reading]:
        """Read the state of training before an update.

        Parameters
        ----------
        state : MonitorState
            From `init` or the last `update`.
        params : pytree
            The weights before the update.
        batch : pytree
            The batch of the update, a tuple for ``loss(params, x, y)``.
        learning_rate : float
            Of the update.
        data : pytree, optional
            Probe data for sharpness and full gradient: a fixed sample of the training set, a few batches large. The
            batch itself if left out, as is right for full-batch training.
        opt_state : pytree, optional
            For "adam" and "adamw": the state of the optax optimizer before the update.

        Returns
        -------
        MonitorState, Reading
            Pure; shapes do not change.

        Raises
        ------
        InvalidInput
            If `params` are not like those given to `init`, `opt_state` is missing for an adaptive rule, or the arrays
            of a batch have no common length.
        """
        wanted, given = (jax.tree.map(_shape, s) for s in (jax.eval_shape(self.init, params), state))
        if wanted != given:
            raise InvalidInput(
                "params are not of the shapes and dtypes that init saw; pass the parameters that train"
            )
        if self.rule.adaptive and opt_state is None:
            raise InvalidInput(
                f"rule={self.rule.name!r} needs opt_state, the optax state that holds its second moments"
            )
        whole = batch if data is None else data
        sizes = examples(batch), examples(whole)
        every = self.steps_between(*sizes)
        noise = self._noise(sizes[0], alone=data is None)

        def measure(carry: tuple) -> tuple:
            return (jnp.zeros((), bool), *self._measure(carry[1:], params, batch, whole, opt_state, noise))

        # a loop of one turn or none: unlike a conditional it leaves what it carries where it is, without a copy
        due = state.count % every == 0
        carry = (due, state.count, state.curvature, state.means, state.first_loss, state.reading.numbers)
        _, _, memory, means, first, numbers = jax.lax.while_loop(lambda carry: carry[0], measure, carry)
        measured_at = jnp.where(due, state.count, state.reading.measured_at)
        reading = self._judge(numbers, jnp.asarray(learning_rate, first.dtype), first, state.reading)
        reading = reading._replace(step=state.count, measured_at=measured_at)
        if self.notify is not None:
            notify = self.notify
            begins = reading.warning & ~state.reading.warning
            jax.lax.cond(begins, lambda r: jax.debug.callback(notify, r), lambda _: None, reading)
        return MonitorState(state.count + 1, memory, means, first, reading), reading

    def steps_between(self, batch_size: int, probe_size: int) -> int:
        """Steps between measurements: `every`, or what keeps the cost within the overhead.

        Parameters
        ----------
        batch_size, probe_size : int
            Examples in a batch, and in the probe data.

        Returns
        -------
        int
            At least 1.
        """
        if self.every is not None:
            return self.every
        return math.ceil((_GRADIENTS * probe_size / batch_size + _BATCH_GRADIENTS) / self.overhead)

    def dataset(self, readings: Reading | Iterable[Reading], *, every_step: bool = False) -> xr.Dataset:
        """Log of readings: every variable with units and a long name, settings in the attributes.

        Parameters
        ----------
        readings : Reading or iterable of Reading
            From `update`: stacked by a scan, in a list, or a list of stacks.
        every_step : bool
            Whether steps without a measurement are kept.

        Returns
        -------
        Dataset
            Over ``step``.

        Raises
        ------
        InvalidInput
            If there are none.
        """
        return log.log(
            readings, every_step=every_step, rule=self.rule.name, momentum=self.rule.momentum, limit=self.limit,
            batch_size=self.batch_size, examples=self.examples, seed=self.seed,
        )  # fmt: skip

    def message(self, reading: Reading) -> str:
        """One sentence for people on a reading (scalars); empty where there is nothing to warn of.

        Parameters
        ----------
        reading : Reading
            Of one step.

        Returns
        -------
        str
            The warning, with the largest learning rate that is stable by every threshold.
        """
        if not bool(reading.warning):
            return ""
        safe = min(float(t) for t in (reading.deterministic, reading.mean_square) if float(t) == float(t))
        return (
            f"step {int(reading.step)}: divergence is predicted at learning rate {float(reading.learning_rate):.3g}; "
            f"the sharpness {float(reading.sharpness):.3g} allows {safe:.3g}"
        )

    def _noise(self, batch_size: int, *, alone: bool) -> float:
        """Variance of a batch mean over that of one example."""
        size = self.batch_size or batch_size
        if self.examples is None:
            return 0.0 if alone else 1.0 / size
        return 0.0 if size == self.examples else (self.examples - size) / (size * (self.examples - 1))

    def _measure(
        self, known: tuple, params: Any, batch: Any, data: Any, opt_state: Any, noise: float
    ) -> tuple[jax.Array, Any, jax.Array, jax.Array, jax.Array]:
        """Everything that costs gradients: (count, estimator state, means, first loss, numbers), renewed."""
        count, before, sums, first, numbers = known
        rate = numbers[list(MEASURED | JUDGED).index("learning_rate")]
        loss, flat = objective(self.loss, batch), flat_view(params)
        origin, scale = flat.ravel(params), jnp.ones((), flat.dtype)
        if self.rule.adaptive:
            nu, steps = adam_moments(opt_state)
            b2 = self.rule.b2
            fresh = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, nu, jax.grad(loss)(params, batch))
            scale = 1.0 / jnp.sqrt(flat.ravel(preconditioner(self.rule, fresh, steps + 1)))

        def value(z: jax.Array, batch: Any) -> jax.Array:
            return loss(flat.cast(flat.unravel(origin + scale * z)), batch).astype(flat.dtype)

        point = jnp.zeros_like(origin)
        present, gradient = jax.value_and_grad(value)(point, data)
        product = hessian_product(lambda z: value(z, data), point)
        sharpness, error, memory = self.estimator.update(product, point, before)
        slope = jax.grad(lambda z: value(z, batch))
        batch_gradient, image = jax.jvp(slope, (point,), (slope(point),))
        square = batch_gradient @ batch_gradient
        fresh = jnp.stack(
            [
                batch_gradient @ image / jnp.where(square > 0, square, 1.0),
                batch_gradient @ product(batch_gradient),
                gradient @ gradient,
                jnp.ones_like(square),
            ]
        )
        sound = jnp.isfinite(sharpness) & jnp.all(
            jnp.isfinite(fresh)
        )  # what diverged must not spoil the memory
        memory = jax.tree.map(partial(jnp.where, sound), memory, before)
        means = jnp.where(sound, self.forget * sums + (1 - self.forget) * fresh, sums)
        batch_sharpness = means[0] / means[3]
        variance = (
            curvature_variance(value, point, memory.vector, data) if noise > 0 else jnp.zeros_like(present)
        )
        mean_square = one_mode_threshold(self.rule, sharpness, noise * variance)
        deterministic = where_positive(self.rule.edge, sharpness)
        steepest = jnp.maximum(sharpness, batch_sharpness)
        near = rate > _NEAR * jnp.minimum(deterministic, mean_square)
        feedback = jax.lax.cond(
            near | (count == 0),
            lambda: self_stabilization(value, point, memory.vector, data),
            lambda: jnp.full_like(present, jnp.nan),
        )
        first = jnp.where(count == 0, present, first)
        found = {
            "loss": present,
            "gradient_norm": jnp.linalg.norm(gradient),
            "sharpness": sharpness,
            "sharpness_error": error,
            "batch_sharpness": batch_sharpness,
            "gradient_noise_interaction": means[1] / means[2],
            "curvature_spread": jnp.sqrt(variance),
            "self_stabilization": feedback,
            "deterministic": deterministic,
            "mean_square": mean_square,
            "saturation": saturation(product, memory.vector, scale)
            if self.rule.adaptive
            else jnp.inf * present,
            "batch": where_positive(self.rule.edge, batch_sharpness),
            "catapult": where_positive(partial(self.rule.edge, growth=_CATAPULT), steepest),
        }
        fresh = jnp.stack([found[name].astype(flat.dtype) for name in MEASURED])
        return count, memory, means, first, numbers.at[: len(MEASURED)].set(fresh)

    def _judge(self, numbers: jax.Array, rate: jax.Array, first: jax.Array, before: Reading) -> Reading:
        """Distances, the predicted excursion and the flags: from scalars, at every step."""
        numbers = numbers[: len(MEASURED)]
        loss, _, sharpness, *_, feedback, saturation, deterministic, mean_square, _, catapult = numbers
        ratio = rate / jnp.minimum(deterministic, mean_square)
        excess = sharpness * jnp.maximum(0.0, 1.0 - 1.0 / ratio)
        # feedback is NaN where the edge was far at the last measurement: a jump of the rate is judged by the rest
        peak = loss + jnp.where(
            excess > 0, jnp.fmin(sharpness * excess**2 / feedback, saturation * rate**2), 0.0
        )
        runaway = jnp.zeros((), bool) if self.rule.adaptive else rate > catapult
        excursion = (ratio > 1.0) & (peak > self.limit * jnp.maximum(first, loss))
        held = ratio > _RELEASE
        distances = jnp.log(numbers[-4:] / rate)
        return before._replace(
            edge=(ratio > 1.0) | (before.edge & held),
            warning=runaway | excursion | ~jnp.isfinite(loss) | (before.warning & held),
            numbers=jnp.concatenate([numbers, rate[None], distances, peak[None]]),
        )


def _shape(array: Any) -> tuple:
    return jnp.shape(array), jnp.result_type(array)
