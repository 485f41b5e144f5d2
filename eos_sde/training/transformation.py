"""The stability monitor as an optax transformation, for loops that see only an optimizer."""

from __future__ import annotations

from typing import Any, NamedTuple

import optax

from eos_sde.training.monitor import MonitorState, StabilityMonitor
from solvers.errors import InvalidInput


class MonitoredState(NamedTuple):
    """State of the optimizer and of the monitor; the last reading is ``state.monitor.reading``."""

    inner: Any
    monitor: MonitorState


def monitored(
    optimizer: optax.GradientTransformation, monitor: StabilityMonitor, learning_rate: optax.ScalarOrSchedule
) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimizer so that each update is read by a monitor; the updates are the same.

    Parameters
    ----------
    optimizer : optax transformation
        Any whose rule is the monitor's.
    monitor : StabilityMonitor
        What reads.
    learning_rate : float or schedule
        That of the optimizer.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        Its update takes ``batch``, and may take ``data`` (probe data), beside params; further keyword arguments go to
        the optimizer.

    Raises
    ------
    InvalidInput
        In ``update``, if params or the batch is missing.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optax
    >>> def loss(w, batch):
    ...     return 0.5 * jnp.mean((batch @ w) ** 2)
    >>> optimizer = monitored(optax.sgd(0.1), StabilityMonitor(loss, rule="sgd"), 0.1)
    >>> w, batch = jnp.ones(2), jnp.array([[2.0, 0.0], [0.0, 1.0]])
    >>> updates, state = optimizer.update(jax.grad(loss)(w, batch), optimizer.init(w), w, batch=batch)
    >>> print(round(float(state.monitor.reading.sharpness), 4))
    2.0
    """
    inner = optax.with_extra_args_support(optimizer)

    def init_fn(params: optax.Params) -> MonitoredState:
        return MonitoredState(inner.init(params), monitor.init(params))

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        batch: Any = None,
        data: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, MonitoredState]:
        if params is None or batch is None:
            raise InvalidInput(
                "the monitor needs params and a batch: update(grads, state, params, batch=batch)"
            )
        rate = learning_rate(state.monitor.count) if callable(learning_rate) else learning_rate
        watched, reading = monitor.update(
            state.monitor, params, batch, rate, data=data, opt_state=state.inner
        )
        updates, new = inner.update(reading.then(updates), state.inner, params, **extra_args)
        return updates, MonitoredState(new, watched)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
