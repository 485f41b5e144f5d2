"""CAEO as an optax transformation: gradient descent at a rate kept from the edge of stability."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import optax

from eos_sde.optimizers import descent, rule, runaway
from eos_sde.optimizers.curvature import vectors
from eos_sde.optimizers.curvature.interface import Estimator, preconditioned_product
from eos_sde.optimizers.loss_curvature import loss_product
from eos_sde.optimizers.refresh import Every, Measurement, default_estimator, policy, quotient
from solvers.errors import InvalidInput


class CaeoState(NamedTuple):
    """What CAEO remembers; scalars unless said otherwise.

    Attributes
    ----------
    count : int32
        Updates made.
    learning_rate : float
        The rate of the last update, eta_t.
    sharpness : float
        The largest Hessian eigenvalue, where the last update was made: the last estimate, or what the refresh
        policy makes of it there.
    residual : float
        Error bound of the last estimate (infinite before the first estimate).
    staleness : int32
        Updates since that estimate was made; 0 when it was made at the last update.
    capped : bool
        Whether the last rate was below the base rate.
    curvature : pytree
        State of the curvature estimator: warm-start vector, random key.
    schedule : pytree
        State of the refresh policy.
    travelled : float
        Length of the path since the last estimate; kept where `lipschitz` is given, else 0.
    monitor : RunawayMonitor
        What tells whether the rate runs away: see `eos_sde.optimizers.runaway.watch`.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    learning_rate: jax.Array
    sharpness: jax.Array
    residual: jax.Array
    staleness: jax.Array
    capped: jax.Array
    curvature: Any
    schedule: Any
    travelled: jax.Array
    monitor: runaway.RunawayMonitor

    @property
    def runaway(self) -> jax.Array:
        """Whether the cap keeps binding while the sharpness keeps rising, so that the rate decays; bool."""
        return self.monitor.runaway


def scale_by_caeo(
    learning_rate: optax.ScalarOrSchedule,
    *,
    delta: float = 0.1,
    curvature: Estimator | None = None,
    refresh: Any = "auto",
    use_error_bound: bool = False,
    seed: int = 0,
    flip_sign: bool = True,
    edge_factor: float = 1.0,
    lipschitz: float | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Scale updates by minus the CAEO rate: in a chain it takes the place of ``scale_by_learning_rate``.

    Parameters
    ----------
    learning_rate : float or schedule
        The base rate, never exceeded.
    delta : float
        Distance kept from the edge, in units of eta * sharpness; below 2.
    curvature : Estimator, optional
        From `eos_sde.optimizers.curvature`; by default ``lanczos()``, in passes of three products where `refresh` is
        by budget.
    refresh : int, "auto" or policy
        The curvature is estimated at every `refresh`-th update, the first included; or as `refresh.budget` says, whose
        defaults "auto" means.
    use_error_bound : bool
        Whether the error bound is added to the sharpness: a more careful rate.
    seed : int
        Seed of the estimator's random vectors: the same seed gives the same run.
    flip_sign : bool
        Whether the rate is negated, for descent.
    edge_factor : float
        How many times further than gradient descent's the edge of stability lies for the updates that come in,
        (1 + b) with heavy-ball momentum b: the cap is ``edge_factor (2 - delta) / sharpness``.
    lipschitz : float, optional
        rho, the fastest rise of the sharpness per length of the path, in units of sharpness/weight. The rate then pays
        for the error and the age of the estimate and for the step itself: it is `descent.certified_learning_rate`, at
        which gradient descent on a whole loss is certain to lower it, for every delta above 0. The estimate has to be
        held (`refresh` a number) and the updates that come in to be the gradient.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        Its update takes ``value_fn``, the loss as a function of the parameters, beside params, and may take
        ``preconditioner``, a positive pytree P like params: the sharpness is then that of P^-1 H. Further
        keyword arguments are handed to `value_fn` where it names them, and ignored where not.

    Raises
    ------
    InvalidInput
        At once for settings that cannot be used; in ``update`` if params or `value_fn` is missing.
    """
    for name, value in (("learning_rate", learning_rate), ("delta", delta)):
        if value is None:
            raise InvalidInput(f"{name} must be a number, got None.")
    if not _traced(learning_rate):
        rule.validate(learning_rate=learning_rate)
    if not _traced(delta):
        rule.validate(delta=delta)
    if not _traced(seed) and not hasattr(seed, "__index__"):  # an integer of Python, NumPy or JAX
        raise InvalidInput(f"seed must be an integer, got {seed!r}.")
    plan = policy(refresh)
    if lipschitz is not None:
        descent.validate_lipschitz(
            lipschitz,
            held=isinstance(plan, Every),
            edge_factor=1.0 if _traced(edge_factor) else edge_factor,
            known=not _traced(lipschitz),
        )
    estimator = default_estimator(plan) if curvature is None else curvature
    if not (hasattr(estimator, "init") and hasattr(estimator, "update")):
        raise InvalidInput(
            f"curvature must be an estimator such as curvature.lanczos(order=8), got {curvature!r}."
        )
    sign = -1 if flip_sign else 1

    def base_rate(count: jax.Array) -> Any:
        return learning_rate(count) if callable(learning_rate) else learning_rate

    def init_fn(params: optax.Params) -> CaeoState:
        dtype = vectors.space_of(params).dtype
        return CaeoState(
            count=jnp.zeros((), jnp.int32),
            learning_rate=jnp.asarray(base_rate(jnp.zeros((), jnp.int32)), dtype),
            sharpness=jnp.zeros((), dtype),
            residual=jnp.full((), jnp.inf, dtype),
            staleness=jnp.zeros((), jnp.int32),
            capped=jnp.zeros((), bool),
            curvature=estimator.init(params, jax.random.PRNGKey(seed)),
            schedule=plan.init(params),
            travelled=jnp.zeros((), dtype),
            monitor=runaway.start(dtype=dtype, xp=jnp),
        )

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        value_fn: Callable[..., Any] | None = None,
        preconditioner: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, CaeoState]:
        if params is None:
            raise InvalidInput(
                "caeo needs params in update(grads, state, params, value_fn=loss): "
                "the curvature of the loss is measured there."
            )
        if not callable(value_fn):
            raise InvalidInput(
                "caeo needs value_fn in update(grads, state, params, value_fn=loss): the loss as a "
                "function of the parameters, whose Hessian it measures."
            )
        product = loss_product(value_fn, extra_args)
        if preconditioner is not None:
            product = functools.partial(preconditioned_product, product, preconditioner)
        dtype = state.sharpness.dtype

        age = jnp.asarray(optax.safe_increment(state.staleness))
        followed = plan.follow(state.schedule, params, state.sharpness)

        def measure(held: Any) -> Any:
            _, _, _, _, before, schedule = held
            sharpness, residual, new = estimator.update(product(params), params, before)
            sharpness = jnp.asarray(sharpness, dtype)
            rayleigh = quotient(product, params, new)
            schedule = plan.measured(
                schedule, Measurement(params, sharpness, followed, age, new.products, rayleigh)
            )
            # A failed measurement (NaN) reaches the updates, but must not spoil the warm start for good.
            sound = jnp.isfinite(sharpness)
            new = jax.tree.map(lambda fresh, old: jnp.where(sound, fresh, old), new, before)
            return False, sharpness, jnp.asarray(residual, dtype), jnp.zeros((), jnp.int32), new, schedule

        # A loop of one round or none, and no conditional: that would copy the vectors it keeps at every update.
        due = plan.due(state.schedule, state.count, age, followed)
        held = (due, followed, state.residual, age, state.curvature, plan.earn(state.schedule))
        _, sharpness, residual, staleness, new, schedule = jax.lax.while_loop(lambda h: h[0], measure, held)
        base = jnp.asarray(base_rate(state.count), dtype)
        margin = residual / edge_factor if use_error_bound else 0.0
        seen = sharpness / edge_factor
        travelled = jnp.where(staleness == 0, 0.0, state.travelled).astype(dtype)
        if lipschitz is None:
            rate = rule.learning_rate(base, seen, delta, error_bound=margin, xp=jnp).astype(dtype)
        else:
            norm = jnp.asarray(optax.tree.norm(updates), dtype)
            given = {"gradient_norm": norm, "lipschitz": lipschitz, "travelled": travelled}
            rate = descent.certified_learning_rate(base, seen, delta, error_bound=residual, **given, xp=jnp)
            rate = rate.astype(dtype)
            travelled += rate * norm
        updates = jax.tree.map(lambda u: (sign * rate * u).astype(jnp.result_type(u)), updates)
        return updates, CaeoState(
            count=jnp.asarray(optax.safe_increment(state.count)),
            learning_rate=rate,
            sharpness=sharpness,
            residual=residual,
            staleness=staleness,
            capped=rate < base,
            curvature=new,
            schedule=schedule,
            travelled=travelled,
            monitor=runaway.watch(
                state.monitor, sharpness, rate < base, edge=2.0 * edge_factor / base, xp=jnp
            ),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def caeo(
    learning_rate: optax.ScalarOrSchedule,
    *,
    delta: float = 0.1,
    curvature: Estimator | None = None,
    refresh: Any = "auto",
    momentum: float | None = None,
    nesterov: bool = False,
    momentum_edge: bool = False,
    use_error_bound: bool = False,
    seed: int = 0,
    lipschitz: float | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Curvature-adaptive edge-of-stability optimizer: gradient descent with a capped learning rate.

    .. math:: \theta_{t+1} = \theta_t - \eta_t g_t, \qquad
        \eta_t = \min\left(\eta_{base}, \frac{2 - \delta}{\lambda_t}\right) \ (\lambda_t > 0), \qquad
        \eta_t = \eta_{base} \ (\lambda_t \le 0)

    with :math:`\lambda_t` the largest *algebraic* eigenvalue of the Hessian of `value_fn` at the current
    parameters: negative curvature never lowers the rate.

    Parameters
    ----------
    learning_rate : float or schedule
        The base rate, never exceeded.
    delta : float
        Distance kept from the edge, in units of eta * sharpness; below 2. Zero rests on the edge, negative
        values stay beyond it.
    curvature : Estimator, optional
        From `eos_sde.optimizers.curvature`; by default ``lanczos()``, in passes of three products where `refresh` is
        by budget.
    refresh : int, "auto" or policy
        With a number, the curvature is estimated at every `refresh`-th update, the first included; in between the
        last estimate stands, and the state tells its age. With "auto" it is estimated when its change asks for it, at
        most 5 % of the gradients of descent in the long run, and in between followed along its gradient:
        `eos_sde.optimizers.refresh.budget`, whose settings may be given instead.
    momentum : float, optional
        Heavy-ball momentum b, as in ``optax.sgd``. The edge moves to lambda = (2 + 2 b)/eta.
    nesterov : bool
        Whether the momentum is Nesterov's: (2 + 2 b)/((1 + 2 b) eta), which is nearer.
    momentum_edge : bool
        Whether the cap moves with the edge, to ``(1 + b)(2 - delta)/lambda``, Nesterov's divided by (1 + 2 b). Left
        out by default: under gradient noise the edge of heavy ball moves the other way (T7 of the thresholds).
    use_error_bound : bool
        Whether the error bound is added to the sharpness: a more careful rate.
    seed : int
        Seed of the estimator's random vectors: the same seed gives the same run.
    lipschitz : float, optional
        Fastest rise of the sharpness per length of the path: the rate is then so low that a whole loss is certain to
        fall at every step, as for `scale_by_caeo`. Without momentum, and with `refresh` a number.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        Its update takes ``value_fn``, the loss as a function of the parameters, beside params. Further
        keyword arguments (a batch) are handed to `value_fn` where it names them, and ignored where not. The
        state is a `CaeoState`, or with momentum a pair that ends in one.

    Raises
    ------
    InvalidInput
        At once for settings that cannot be used; in ``update`` if params or `value_fn` is missing.

    Notes
    -----
    The Hessian is that of `value_fn`. Where this is the loss of each step's batch, so is the sharpness: a batch's
    largest eigenvalue lies above that of all examples on average and differs from one batch to the next, by more the
    smaller the batch. A fixed batch for the curvature, ``value_fn=lambda params: loss(params, probe)``, gives a
    sharpness that moves with the weights alone, which is what can be followed between measurements.
    ``curvature.gauss_newton`` makes a `value_fn` that is measured by its Gauss-Newton matrix; for one group of
    ``optax.multi_transform`` see `eos_sde.optimizers.groups.of_group`; for AdamW `caeo_adamw`. Under ``vmap`` both
    branches of every step are computed, so that measuring seldom saves nothing there.

    Where the Hessian is not finite, neither are the updates: chain ``optax.zero_nans()`` behind to skip such
    steps (``optax.apply_if_finite`` looks at gradients only).

    Warnings
    --------
    With ``delta > 0`` the iterate never oscillates, and oscillation is what limits sharpness. Where
    gradient descent at the base rate would rest at its edge, sharpness under this rule keeps rising, in the
    reduced model as :math:`\lambda^2 = \lambda_0^2 + 2 (2 - \delta) \alpha t`, and the rate decays like
    :math:`t^{-1/2}` (undershoot runaway). Plain gradient descent at the base rate can then end at far lower
    loss and sharpness. Watch ``state.runaway``; `eos_sde.optimizers.self_stabilizing_caeo` is the cure.

    See Also
    --------
    scale_by_caeo : The same without momentum, for ``optax.chain``.
    eos_sde.optimizers.rule.learning_rate : The rule.

    References
    ----------
    Progressive sharpening and self-stabilization: Cohen et al., ICLR 2021 (arXiv 2103.00065); Damian,
    Nichani and Lee, ICLR 2023 (2209.15594). The runaway of curvature-aware tuners: Roulet et al. 2024
    (2407.06183).

    Examples
    --------
    Gradient descent at rate 0.5 diverges along the curvature 10; the cap (2 - 0.5)/10 holds it. Compile the
    step: left uncompiled, each update compiles its loops afresh.

    >>> import jax, jax.numpy as jnp, optax
    >>> def loss(params, stretch):
    ...     return 0.5 * jnp.sum(stretch * params**2)
    >>> optimizer = caeo(0.5, delta=0.5)
    >>> @jax.jit
    ... def step(params, state, stretch):  # a loss that takes a batch receives it through the update
    ...     grads = jax.grad(loss)(params, stretch)
    ...     updates, state = optimizer.update(grads, state, params, value_fn=loss, stretch=stretch)
    ...     return optax.apply_updates(params, updates), state
    >>> params, stretch = jnp.array([1.0, 1.0]), jnp.array([1.0, 10.0])
    >>> state = optimizer.init(params)
    >>> for _ in range(40):
    ...     params, state = step(params, state, stretch)
    >>> print(f"rate {state.learning_rate:.3f}, sharpness {state.sharpness:.2f}")
    rate 0.150, sharpness 10.00
    >>> print(f"loss {loss(params, stretch):.0e}")
    loss 1e-06
    """
    if momentum is not None and not _traced(momentum) and not 0 <= momentum < 1:
        raise InvalidInput(f"momentum must lie in [0, 1), or be None for none, got {momentum!r}.")
    if lipschitz is not None:
        descent.validate_lipschitz(lipschitz, held=True, momentum=momentum, known=not _traced(lipschitz))
    scaled = scale_by_caeo(
        learning_rate,
        delta=delta,
        curvature=curvature,
        refresh=refresh,
        use_error_bound=use_error_bound,
        seed=seed,
        edge_factor=rule.edge_factor(momentum, nesterov=nesterov) if momentum_edge else 1.0,
        lipschitz=lipschitz,
    )
    if momentum is None:
        return scaled
    return optax.with_extra_args_support(optax.chain(optax.trace(momentum, nesterov), scaled))


def _traced(setting: Any) -> bool:
    """Whether a setting has no value yet, as under ``jit(inject_hyperparams(caeo)(...).update)``."""
    return isinstance(setting, jax.core.Tracer)
