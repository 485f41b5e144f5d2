"""The rate 1/|lambda|, the simplest that follows the sharpness, as an optax transformation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from eos_sde.optimizers import runaway
from eos_sde.optimizers.curvature.interface import Estimator
from eos_sde.optimizers.directions import check_setting
from eos_sde.optimizers.transformation import CaeoState, scale_by_caeo


def inverse_sharpness(
    multiple: Any = 1.0,
    *,
    curvature: Estimator | None = None,
    refresh: Any = "auto",
    eps: float = 1e-12,
    seed: int = 0,
    learning_rate: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient descent at the rate :math:`\eta_t = m / (|\lambda_t| + \epsilon)`.

    :math:`\lambda_t` is the largest algebraic eigenvalue of the Hessian, as of `caeo`, of which this is the form
    without a base rate (m = 2 - delta), where the eigenvalue is positive. Where it is negative its size counts, as in
    the baseline that is meant; `caeo` would step at its base rate.

    Parameters
    ----------
    multiple : float
        m: 1 is the greedy rate along the top eigenvector, 2 the edge of stability.
    curvature, refresh, seed
        As for `caeo`.
    eps : float
        Added to the size of the eigenvalue.
    learning_rate : float, optional
        A bound that the rate is not to exceed.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        Used like `caeo`: its update takes params and ``value_fn``, its state is a `CaeoState`, whose monitor takes the
        rate for bound at every update.

    Raises
    ------
    InvalidInput
        At once for settings that cannot be used; in ``update`` if params or `value_fn` is missing.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optax
    >>> loss = lambda x: 0.5 * jnp.sum(jnp.array([1.0, 8.0]) * x**2)
    >>> optimizer, x = inverse_sharpness(), jnp.ones(2)
    >>> update, state = optimizer.update(jax.grad(loss)(x), optimizer.init(x), x, value_fn=loss)
    >>> print(f"{state.learning_rate:.4f}")
    0.1250
    """
    check_setting("multiple", multiple)
    check_setting("eps", eps, zero=True)
    if learning_rate is not None:
        check_setting("learning_rate", learning_rate)
    measuring = scale_by_caeo(1.0, delta=0.0, curvature=curvature, refresh=refresh, seed=seed)

    def init_fn(params: optax.Params) -> CaeoState:
        state: Any = measuring.init(params)
        return state._replace(learning_rate=jnp.zeros_like(state.learning_rate))

    def update_fn(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, CaeoState]:
        new: Any
        _, new = measuring.update(updates, state, params, **extra_args)
        dtype = new.sharpness.dtype
        rate = multiple / (jnp.abs(new.sharpness) + eps)
        capped = jnp.ones((), bool)
        if learning_rate is not None:
            capped, rate = rate < learning_rate, jnp.minimum(rate, learning_rate)
        rate = rate.astype(dtype)
        step = jax.tree.map(lambda u: (-rate * u).astype(jnp.result_type(u)), updates)
        monitor = runaway.watch(state.monitor, new.sharpness, capped, xp=jnp)
        return step, new._replace(learning_rate=rate, capped=capped, monitor=monitor)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
