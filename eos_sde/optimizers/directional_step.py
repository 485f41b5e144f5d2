"""CDAT, a rate on the edge of the curvature along the update itself, as an optax transformation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from eos_sde.optimizers.curvature import vectors
from eos_sde.optimizers.directions import check_setting, chosen_direction
from eos_sde.optimizers.loss_curvature import loss_product
from solvers.errors import InvalidInput


class CdatState(NamedTuple):
    """What CDAT remembers; scalars unless said otherwise.

    Attributes
    ----------
    count : int32
        Updates made.
    learning_rate : float
        The rate of the last update.
    slope : float
        Running mean of max(-g . u, 0), not debiased: the common factor leaves the quotient.
    bend : float
        Running mean of |u' H u|.
    direction : pytree
        State of the direction.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    learning_rate: jax.Array
    slope: jax.Array
    bend: jax.Array
    direction: Any


def cdat(
    sigma: Any = 2.0,
    *,
    direction: str | optax.GradientTransformation = "gradient",
    decay: float = 0.0,
    eps: float = 1e-12,
    learning_rate: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Curvature dynamics aware tuning: sigma times the rate that is best on the quadratic along the update.

    .. math:: \theta_{t+1} = \theta_t + \eta_t u_t, \qquad
        \eta_t = \sigma \frac{\max(-g_t \cdot u_t, 0)}{|u_t^T H_t u_t| + \epsilon}

    with u minus the direction; sigma = 1 is greedy, sigma = 2 on the edge. Both parts of the quotient may be running
    means, which tames the noise of small batches.

    Parameters
    ----------
    sigma : float
        Positive; 2 is the edge. With small batches the authors find less to be best.
    direction : {"gradient", "momentum", "adam"} or optax transformation
        Of ascent: u is minus it.
    decay : float
        Of the running means, in [0, 1); 0 for none.
    eps : float
        Added to the denominator.
    learning_rate : float, optional
        A bound that the rate is not to exceed; the authors have none.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        Its update takes ``value_fn``, the loss as a function of the parameters, beside params: one Hessian-vector
        product of it is taken at every update. g is the gradient that comes in.

    Raises
    ------
    InvalidInput
        At once for settings that cannot be used; in ``update`` if params or `value_fn` is missing.

    References
    ----------
    Roulet et al., Stepping on the edge: curvature aware learning rate tuners, NeurIPS 2024 (2407.06183).

    Examples
    --------
    On a quadratic sigma = 1 is the exact line search, (g . g)/(g' H g) = 1/10 here.

    >>> import jax, jax.numpy as jnp, optax
    >>> loss = lambda x: 5.0 * x @ x
    >>> optimizer, x = cdat(1.0), jnp.array([1.0, 2.0])
    >>> update, state = optimizer.update(jax.grad(loss)(x), optimizer.init(x), x, value_fn=loss)
    >>> print(f"{state.learning_rate:.3f}, {loss(x + update):.1f}")
    0.100, 0.0
    """
    check_setting("sigma", sigma)
    check_setting("decay", decay, below=1.0, zero=True)
    check_setting("eps", eps, zero=True)
    if learning_rate is not None:
        check_setting("learning_rate", learning_rate)
    way = chosen_direction(direction)

    def init_fn(params: optax.Params) -> CdatState:
        zero = jnp.zeros((), vectors.space_of(params).dtype)
        return CdatState(jnp.zeros((), jnp.int32), zero, zero, zero, way.init(params))

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        value_fn: Callable[..., Any] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, CdatState]:
        if params is None or not callable(value_fn):
            raise InvalidInput(
                "cdat needs params and value_fn in update(grads, state, params, value_fn=loss): the curvature of "
                "the loss is measured there."
            )
        ascent, new = way.update(updates, state.direction, params, **extra_args)
        dtype, space = state.slope.dtype, vectors.space_of(params)
        gradient, along = (
            vectors.combine(lambda leaf: jnp.asarray(leaf, space.dtype), tree) for tree in (updates, ascent)
        )
        image = space.operator(loss_product(value_fn, extra_args)(params))(along)
        slope = (decay * state.slope + (1.0 - decay) * jnp.maximum(vectors.dot(gradient, along), 0.0)).astype(
            dtype
        )
        bend = (decay * state.bend + (1.0 - decay) * jnp.abs(vectors.dot(along, image))).astype(dtype)
        rate = sigma * slope / (bend + eps)
        if learning_rate is not None:
            rate = jnp.minimum(rate, learning_rate)
        rate = rate.astype(dtype)
        updates = jax.tree.map(lambda v, u: (-rate * v).astype(jnp.result_type(u)), ascent, updates)
        count = jnp.asarray(optax.safe_increment(state.count))
        return updates, CdatState(count, rate, slope, bend, new)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
