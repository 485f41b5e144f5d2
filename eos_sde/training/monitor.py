"""A stability monitor for any optax loop: pure, compiled with the step, most of the time asleep."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import copy
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import xarray as xr

from eos_sde.models.arguments import count, fraction, positive
from eos_sde.optimizers import curvature
from eos_sde.optimizers.curvature.interface import Estimator, flat_view
from eos_sde.training import readings as log
from eos_sde.training import schedule
from eos_sde.training.judgement import Suspicion, flags, suspect
from eos_sde.training.linear_rules import linear_rule
from eos_sde.training.measurement import Measurement, Memory
from eos_sde.training.objective import examples
from eos_sde.training.pace import Pace, timed
from eos_sde.training.readings import MEASURED, Reading
from eos_sde.training.schedule import Price, Schedule
from solvers.errors import InvalidInput

_ORDER = 3


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
    schedule : Schedule
        Of the measurements.
    suspicion : Suspicion
        Alarms that wait for another measurement.
    reading : Reading
        The last one.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    curvature: Any
    means: jax.Array
    first_loss: jax.Array
    schedule: Schedule
    suspicion: Suspicion
    reading: Reading


class StabilityMonitor:
    r"""Sharpness, batch sharpness, gradient noise and the distance to each threshold, while an optax loop runs.

    ``state = monitor.init(params)`` once; before each update ``state, reading = monitor.update(state, params, batch,
    learning_rate)``, and ``gradient = reading.then(gradient)`` where every microsecond counts (see `Reading.then`).
    Pure: compile it with the training step, under ``jax.jit`` and ``jax.lax.scan`` (not ``vmap``, under which every
    step would pay for a measurement). The curvature is measured now and then: at steps 0, 1, 2, 4, 8,
    ..., wherever an alarm begins, and regularly; in between the last values stand, and the distances follow the
    learning rate of each step.

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
        A fixed number of steps between measurements, left for alarms only. Better left out.
    overhead : float
        Share of the training time that the measurements may add, in (0, 1), the first ones apart (see
        `schedule.Schedule`): by counting gradients, or by the clock of `paced`.
    momentum, b1, b2, eps, weight_decay : float, optional
        Options of the rule; optax's defaults, and momentum 0.9, if left out.
    average : int
        Measurements over which the running means extend.
    limit : float
        Divergence is a loss beyond `limit` times the larger of the first and the present one.
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
    x^2 = 2 y^2/beta, that is at a loss S y^2/beta above the present one, with beta = \|grad S\|^2 across the top mode;
    y = S (1 - threshold/eta). There is an alarm when that peak lies beyond `limit`, and when eta is beyond the
    ``catapult`` threshold (the lesser is ``divergence``), where oscillation raises the sharpness instead (4/S without
    momentum: Lewkowycz et al. 2020; see `thresholds.closed_forms.momentum_edge`). Adam's preconditioner grows with the
    gradients and bounds its steps by about eta a weight: there the peak is at most the loss of such steps along the top
    mode, and just that beyond the catapult threshold. An alarm is measured at once and again at the next step, and is a
    warning if it still stands then and eta over the catapult threshold has not fallen by a tenth: some networks come
    back. Beyond 3 times that threshold (12/S), or where the budget leaves it unmeasured, an alarm is a warning at once.
    ``edge`` and ``warning`` are taken back below 0.9 of the thresholds.

    References
    ----------
    arXiv:2209.15594 (self-stabilization), 2003.02218 (catapult), 2412.20553 (batch sharpness), 2207.14484 (Adam).

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
        overhead: float = 0.03,
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
        self.pace: Pace | None = None
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
        zero = jnp.zeros((), jnp.int32)
        reading = Reading(unknown, jnp.full((len(MEASURED),), unknown), jnp.array([0, -1, 0], jnp.int32))
        memory = self.estimator.init(jnp.zeros((flat.dimension,), flat.dtype), jax.random.key(self.seed))
        return MonitorState(
            zero, memory, jnp.zeros((4,), flat.dtype), unknown, schedule.begin(),
            Suspicion(zero, unknown, jnp.zeros((), bool)), reading,
        )  # fmt: skip

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
            raise InvalidInput("params are not like those that init saw; pass the parameters that train")
        if self.rule.adaptive and opt_state is None:
            raise InvalidInput(
                f"rule={self.rule.name!r} needs opt_state, the optax state that holds its second moments"
            )
        whole = batch if data is None else data
        sizes = examples(batch), examples(whole)
        before, price = state.reading, self._price(*sizes)
        noise = self._noise(sizes[0], alone=data is None)
        rate = jnp.asarray(learning_rate, state.first_loss.dtype)
        measure = Measurement(self.loss, self.rule, self.estimator, self.forget, noise, self.limit)
        new = (rate > before.divergence) & (state.suspicion.alarms == 0)
        due = schedule.is_due(state.schedule, state.count, new, price.typical, self.every)

        def turn(carry: tuple) -> tuple:
            _, known, suspicion, plan = carry
            known = measure(known, params, batch, whole, opt_state, rate)
            seen = before._replace(numbers=known.numbers)
            suspicion = suspect(suspicion, rate, seen.divergence, seen.catapult)
            paid = price.of_steps(known.curvature.products) if self.every is None else jnp.int32(0)
            plan = schedule.advance(plan, state.count, suspicion.alarms, paid, price.typical)
            return jnp.zeros((), bool), known, suspicion, plan

        # a loop of one turn or none: unlike a conditional it leaves what it carries where it is, without a copy, and
        # nothing that a measurement alone changes costs time in between
        known = Memory(state.curvature, state.means, state.first_loss, before.numbers)
        _, known, suspicion, plan = jax.lax.while_loop(
            lambda carry: carry[0], turn, (due, known, state.suspicion, state.schedule)
        )
        edge, warning = flags(before._replace(numbers=known.numbers), rate, suspicion, due)
        reading = Reading(rate, known.numbers, jnp.stack([state.count, plan.last, edge + 2 * warning]))
        if (notify := self.notify) is not None:
            begins = reading.warning & ~before.warning
            jax.lax.cond(begins, lambda r: jax.debug.callback(notify, r), lambda _: None, reading)
        return MonitorState(state.count + 1, *known[:3], plan, suspicion, reading), reading

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
        return self._price(batch_size, probe_size).typical

    def paced(
        self, params: Any, batch: Any, *, data: Any = None, opt_state: Any = None, step: float | None = None
    ) -> StabilityMonitor:
        """Time a step and a measurement on this machine, and keep to `overhead` by that clock instead of by counts.

        Parameters
        ----------
        params, batch, data, opt_state : pytree
            As for `update`, of the sizes that will train.
        step : float, optional
            Seconds that a step of your loop takes without the monitor (on CPUs process time, of all threads). If left
            out, plain SGD is timed: other loops take longer. Time on an idle machine: another one scatters.

        Returns
        -------
        StabilityMonitor
            A copy whose `pace` holds the seconds: step, idle step, measurement, compilation. `every` is dropped.

        Raises
        ------
        InvalidInput
            If the steps that do not measure cost more than `overhead` already, or `step` is not positive.
        """
        step = None if step is None else positive("step", step)
        bare = copy(self)
        bare.every, bare.notify, bare.pace = None, None, None
        pace = timed(bare, params, batch, data, opt_state, step)
        if pace.idle >= self.overhead * pace.step:
            raise InvalidInput(
                f"overhead={self.overhead:g} cannot be kept: a step takes {1e6 * pace.step:.3g} us, and the monitor "
                f"{1e6 * pace.idle:.2g} us of it without measuring; allow more than {pace.idle / pace.step:.2g}"
            )
        bare.notify, bare.pace = self.notify, pace
        return bare

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

    def _price(self, batch_size: int, probe_size: int) -> Price:
        """What a measurement costs: as the clock had it, or counted."""
        if self.pace is not None:
            return self.pace.price(self.overhead)
        return Price.counted(batch_size, probe_size, self.overhead)

    def _noise(self, batch_size: int, *, alone: bool) -> float:
        """Variance of a batch mean over that of one example."""
        size = self.batch_size or batch_size
        if self.examples is None:
            return 0.0 if alone else 1.0 / size
        return 0.0 if size == self.examples else (self.examples - size) / (size * (self.examples - 1))


def _shape(array: Any) -> tuple:
    return jnp.shape(array), jnp.result_type(array)
