"""AdamW at a rate kept from its edge of stability: CAEO with the preconditioned sharpness."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import optax

from eos_sde.optimizers.curvature.interface import Estimator
from eos_sde.optimizers.transformation import scale_by_caeo
from solvers.errors import InvalidInput


class CaeoAdamState(NamedTuple):
    """Moments, and what CAEO remembers.

    Attributes
    ----------
    adam : optax.ScaleByAdamState
        First and second moments of the gradient.
    caeo : CaeoState
        Its sharpness is the largest eigenvalue of P^-1 H.
    """

    adam: Any
    caeo: Any


def caeo_adamw(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    delta: float = 0.1,
    curvature: Estimator | None = None,
    refresh: Any = "auto",
    use_error_bound: bool = False,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""AdamW with its learning rate capped at its own edge of stability.

    .. math:: \eta_t = \min\left(\eta_{base}, \frac{1 + b_1}{1 - b_1} \frac{2 - \delta}{\lambda_t}\right)

    with :math:`\lambda_t` the largest algebraic eigenvalue of :math:`P^{-1} H`, :math:`P = \sqrt{\hat\nu} + \epsilon`
    from the second moments of this update. With P frozen that is where a quadratic loses its stability at delta = 0
    (38/eta at b1 = 0.9). The estimate is of the symmetric :math:`P^{-1/2} H P^{-1/2}`, of the same eigenvalues.
    Weight decay is decoupled, as in AdamW, and is not part of H: it stays far from its edge.

    Where the second moment of a weight vanishes and its curvature does not, P is eps and :math:`P^{-1} H` is as large
    as curvature/eps: the cap then all but stops training (on Rosenbrock's function from the origin, where one
    derivative is 0 at first). A larger eps is the remedy.

    Parameters
    ----------
    learning_rate : float or schedule
        The base rate, never exceeded.
    b1, b2 : float
        Decay of the moments, in [0, 1).
    eps : float
        Added to the root of the second moment.
    weight_decay : float
        The weights times it are added to the update.
    delta, curvature, refresh, use_error_bound, seed
        As for `caeo`; delta as a share of the edge, 2 being all of it.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        Its update takes ``value_fn``, as that of `caeo`; its state is a `CaeoAdamState`.

    Raises
    ------
    InvalidInput
        At once for settings that cannot be used; in ``update`` if params or `value_fn` is missing.

    References
    ----------
    Cohen et al., Adaptive gradient methods at the edge of stability, arXiv 2207.14484.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optax
    >>> loss = lambda w: 0.5 * jnp.sum(jnp.array([1.0, 30.0]) * w**2)
    >>> optimizer, params = caeo_adamw(1e-3), jnp.ones(2)
    >>> updates, state = optimizer.update(jax.grad(loss)(params), optimizer.init(params), params, value_fn=loss)
    >>> round(float(state.caeo.sharpness), 3)  # P = |g| at the first step
    1.0
    """
    for name, value in (("b1", b1), ("b2", b2)):
        if not isinstance(value, jax.core.Tracer) and not 0 <= value < 1:
            raise InvalidInput(f"{name} must lie in [0, 1), got {value!r}.")
    adam = optax.scale_by_adam(b1, b2, eps)
    scaled = scale_by_caeo(
        learning_rate,
        delta=delta,
        curvature=curvature,
        refresh=refresh,
        use_error_bound=use_error_bound,
        seed=seed,
        edge_factor=(1.0 + b1) / (1.0 - b1),
    )

    def init_fn(params: optax.Params) -> CaeoAdamState:
        return CaeoAdamState(adam.init(params), scaled.init(params))

    def update_fn(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, CaeoAdamState]:
        updates, moments = adam.update(updates, state.adam, params)
        second = optax.tree.bias_correction(moments.nu, b2, moments.count)
        preconditioner = jax.tree.map(lambda nu: jnp.sqrt(nu) + eps, second)
        if params is not None and (isinstance(weight_decay, jax.core.Tracer) or weight_decay):
            updates = jax.tree.map(lambda u, p: u + weight_decay * p, updates, params)
        updates, caeo = scaled.update(
            updates, state.caeo, params, preconditioner=preconditioner, **extra_args
        )
        return updates, CaeoAdamState(moments, caeo)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
