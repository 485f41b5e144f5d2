"""What a monitor costs beside a training step, by the clock of the machine that trains."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from eos_sde.training.objective import examples, objective
from eos_sde.training.schedule import Price

if TYPE_CHECKING:
    from eos_sde.training.monitor import StabilityMonitor

_STEPS = (
    1024  # of a timed run with the monitor: measurements at 0, 1, 2, 4, ..., 512; calls cost little beside it
)
_BARE_STEPS = 256
_REPEATS = 5
_ENOUGH = 1.0  # seconds after which a run is not repeated
_NEVER = 2**30


class Pace(NamedTuple):
    """Seconds: of the process on a CPU (all threads), of the wall on an accelerator.

    Attributes
    ----------
    step : float
        One step of the training loop without the monitor.
    idle : float
        What the monitor adds to a step that does not measure.
    measurement : float
        One measurement, near the edge, started from the last.
    products : float
        Hessian-vector products in it, for the sharpness.
    compilation : float
        Once: compiling an update.
    sizes : (int, int)
        Examples in the batch and in the probe data; not seconds.
    """

    step: float
    idle: float
    measurement: float
    products: float
    compilation: float
    sizes: tuple[int, int]

    def price(self, overhead: float) -> Price:
        """Steps that pay for a measurement: a share of their time less what idling costs."""
        counted = Price.counted(*self.sizes, 1.0)
        gradients = counted.fixed + counted.product * self.products
        return counted.scaled(self.measurement / gradients / (overhead * self.step - self.idle))


def timed(
    monitor: StabilityMonitor, params: Any, batch: Any, data: Any, opt_state: Any, step: float | None
) -> Pace:
    """Time a monitor at given weights; `monitor` keeps no fixed interval.

    Parameters
    ----------
    monitor : StabilityMonitor
        With its settings.
    params, batch, data, opt_state : pytree
        As for its `update`.
    step : float, optional
        Seconds of a training step; that of plain SGD on the batch is timed if left out.

    Returns
    -------
    Pace
        Least of some runs each.
    """
    state = monitor.init(params)
    sleeping = state.schedule._replace(due=jnp.int32(_NEVER))
    # far beyond every edge all is measured; within them nothing begins, long after the start
    beyond, within = (jnp.asarray(rate, state.first_loss.dtype) for rate in (1e9, 0.0))

    @jax.jit
    def watched(state: Any, rate: jax.Array, arguments: tuple) -> tuple:
        def one(carry: tuple, _: None) -> tuple:
            state, (params, batch, data, opt_state) = carry
            state, reading = monitor.update(state, params, batch, rate, data=data, opt_state=opt_state)
            # another value to the compiler, so that nothing is taken out of the loop
            arguments = jax.lax.optimization_barrier((params, batch, data, opt_state))
            return (state, arguments), (reading.measured, state.curvature.products)

        (state, _), found = jax.lax.scan(one, (state, arguments), length=_STEPS)
        return state, *found

    loss = objective(monitor.loss, batch)

    @jax.jit
    def bare(params: Any, batch: Any) -> Any:
        def one(carry: tuple, _: None) -> tuple:
            params, batch = carry
            slopes = jax.grad(loss)(params, batch)
            params = jax.tree.map(lambda p, g: p - 1e-12 * g, params, slopes)
            return jax.lax.optimization_barrier((params, batch)), None

        return jax.lax.scan(one, (params, batch), length=_BARE_STEPS)[0]

    arguments = (params, batch, data, opt_state)
    begun = _clock()
    compiled = watched.lower(state, within, arguments).compile()
    compilation = _clock() - begun
    warm, *_ = compiled(state, beyond, arguments)  # the cold first measurement
    warm = warm._replace(schedule=sleeping)
    start, late = warm._replace(count=state.count), warm._replace(count=jnp.int32(_NEVER // 2))
    _, measured, products = compiled(start, beyond, arguments)
    idle = _least(lambda: compiled(late, within, arguments)) / _STEPS
    total = _least(lambda: compiled(start, beyond, arguments))
    plain = _least(lambda: bare(params, batch)) / _BARE_STEPS
    count = int(measured.sum())
    return Pace(
        step=plain if step is None else step,
        idle=idle,
        # a difference of noisy times, but never less than the gradients it holds
        measurement=max((total - _STEPS * idle) / count, plain),
        products=float(jnp.sum(jnp.where(measured, products, 0))) / count,
        compilation=compilation,
        sizes=(examples(batch), examples(batch if data is None else data)),
    )


def _clock() -> float:
    return time.process_time() if jax.default_backend() == "cpu" else time.perf_counter()


def _least(run: Callable[[], Any]) -> float:
    """Seconds of the fastest of some runs after a first."""
    jax.block_until_ready(run())
    taken = []
    while len(taken) < _REPEATS and sum(taken) < _ENOUGH:
        begun = _clock()
        jax.block_until_ready(run())
        taken.append(_clock() - begun)
    return min(taken)
