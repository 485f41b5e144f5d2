"""L4, the step by which the loss would come down to a part of what it can lose, as an optax transformation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from eos_sde.optimizers.curvature.interface import flat_view
from eos_sde.optimizers.directions import MOMENTUM, check_setting, chosen_direction
from solvers.errors import InvalidInput


class L4State(NamedTuple):
    """What L4 remembers; scalars unless said otherwise.

    Attributes
    ----------
    count : int32
        Updates made.
    learning_rate : float
        The rate of the last update, in front of its direction.
    least : float
        L_min, the least loss seen, forgotten slowly.
    gradient : pytree
        State of the running mean of the gradient.
    direction : pytree
        State of the direction.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    learning_rate: jax.Array
    least: jax.Array
    gradient: Any
    direction: Any


def l4(
    alpha: Any = 0.15,
    *,
    direction: str | optax.GradientTransformation = "momentum",
    gamma: float = 0.9,
    tau: float = 1000.0,
    initial: float = 0.75,
    eps: float = 1e-12,
    learning_rate: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""L4: the rate at which a linear loss would lose the part `alpha` of what it is thought able to lose.

    .. math:: \theta_{t+1} = \theta_t - \eta_t v_t, \qquad
        \eta_t = \alpha \frac{L_t - \gamma L_{min}}{g_t \cdot v_t + \epsilon}

    with g the debiased mean of the gradient over ten updates and v the direction. :math:`L_{min}` begins at
    `initial` times the first loss, is the lesser of itself and the loss at each update, and grows by the factor
    1 + 1/`tau` after it. This is the rule as its authors give it and their code computes it.

    Parameters
    ----------
    alpha : float
        The part of the distance that a step aims at; 0.1 to 0.3 is recommended.
    direction : {"momentum", "adam", "gradient"} or optax transformation
        v: L4Mom and L4Adam of the authors are the first two.
    gamma : float
        The part of the least loss seen that counts as achievable, in [0, 1).
    tau : float
        Updates over which the least loss is forgotten.
    initial : float
        The part of the first loss from which the least loss begins.
    eps : float
        Added to g . v.
    learning_rate : float, optional
        A bound that the rate is not to exceed; the authors have none.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        Its update takes ``value``, the loss that was differentiated; where it is left out, ``value_fn(params)`` is
        computed instead, at the cost of a forward pass.

    Raises
    ------
    InvalidInput
        At once for settings that cannot be used; in ``update`` if the loss is missing.

    Notes
    -----
    Where g . v is negative, which momentum can make it for a direction of Adam, the rate is negative, as in the
    original; a loss that can be negative is not what the rule is for.

    References
    ----------
    Rolinek and Martius, L4: Practical loss-based stepsize adaptation for deep learning, NeurIPS 2018 (1802.05074).

    Examples
    --------
    On L = x^2/2 with g = v = x the first step takes x to x (1 - alpha (1 - 0.75 gamma)/2).

    >>> import jax, jax.numpy as jnp, optax
    >>> loss = lambda x: 0.5 * x**2
    >>> optimizer, x = l4(), jnp.asarray(1.0)
    >>> update, state = optimizer.update(jax.grad(loss)(x), optimizer.init(x), x, value=loss(x))
    >>> print(f"{x + update:.6f}, {1 - 0.15 * (1 - 0.75 * 0.9) / 2:.6f}")
    0.975625, 0.975625
    """
    check_setting("alpha", alpha)
    check_setting("gamma", gamma, below=1.0, zero=True)
    check_setting("tau", tau)
    check_setting("initial", initial)
    check_setting("eps", eps, zero=True)
    if learning_rate is not None:
        check_setting("learning_rate", learning_rate)
    way, mean = chosen_direction(direction), optax.ema(MOMENTUM)

    def init_fn(params: optax.Params) -> L4State:
        dtype = flat_view(params).dtype
        return L4State(
            count=jnp.zeros((), jnp.int32),
            learning_rate=jnp.zeros((), dtype),
            least=jnp.full((), jnp.inf, dtype),
            gradient=mean.init(params),
            direction=way.init(params),
        )

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        value: Any = None,
        value_fn: Callable[..., Any] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, L4State]:
        if value is None:
            if value_fn is None or params is None:
                raise InvalidInput("l4 needs value in update(grads, state, params, value=loss): its loss.")
            value = value_fn(params)
        dtype = state.least.dtype
        loss = jnp.asarray(value, dtype)
        gradient, averaged = mean.update(updates, state.gradient, params)
        ascent, new = way.update(updates, state.direction, params, value=value, **extra_args)
        least = jnp.where(state.count == 0, initial * loss, jnp.minimum(state.least, loss))
        along = jnp.asarray(optax.tree.vdot(gradient, ascent), dtype)
        rate = alpha * (loss - gamma * least) / (along + eps)
        if learning_rate is not None:
            rate = jnp.minimum(rate, learning_rate)
        rate = rate.astype(dtype)
        updates = jax.tree.map(lambda v, u: (-rate * v).astype(jnp.result_type(u)), ascent, updates)
        return updates, L4State(
            count=jnp.asarray(optax.safe_increment(state.count)),
            learning_rate=rate,
            least=(least * (1.0 + 1.0 / tau)).astype(dtype),
            gradient=averaged,
            direction=new,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
