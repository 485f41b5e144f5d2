"""The largest stable learning rate of a network under a rule, from Hessian products of its loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from warnings import warn

import jax
import jax.numpy as jnp
import numpy as np

from eos_sde import thresholds
from eos_sde.models.arguments import count, positive
from eos_sde.optimizers.curvature.interface import Flat, flat_view
from eos_sde.thresholds.curvature_factors import noise_fraction
from eos_sde.thresholds.result import Threshold
from eos_sde.training.example_curvature import leading_modes
from eos_sde.training.linear_rules import LinearRule, adam_moments, linear_rule, preconditioner
from eos_sde.training.local_loss import Frame, Local, Programs, programs
from eos_sde.training.minimum_curvature import Minimum, join, mean_square
from eos_sde.training.objective import Objective, examples, objective
from solvers.errors import AccuracyWarning, InvalidInput

CRITERIA = ("deterministic", "mean-square", "almost-sure", "batch-sharpness")
_BATCHES = 64
_DECIDES = 1e-3  # relative accuracy of eigenvalues that only decide
_STILL = "criterion='deterministic' (the full-batch edge along the sharpest direction) still applies"


def max_stable_lr(
    loss: Callable[..., Any],
    params: Any,
    data: Any,
    *,
    rule: str = "sgd",
    batch_size: int | None = None,
    criterion: str | None = None,
    replacement: bool = False,
    opt_state: Any = None,
    momentum: float | None = None,
    b1: float | None = None,
    b2: float | None = None,
    eps: float | None = None,
    weight_decay: float | None = None,
    modes: int | None = None,
    horizon: int = 100,
    tolerance: float = 0.1,
    seed: int = 0,
) -> Threshold:
    """Largest learning rate at which a rule is stable about these weights.

    Every rule is taken as a preconditioned step with momentum, linearised: Adam's second moments are frozen, so that
    its curvature is that of P^-1 H. By default the criterion is "deterministic" where a batch is the whole set and
    "mean-square" otherwise.

    Parameters
    ----------
    loss : callable
        ``loss(params, batch)`` or ``loss(params, x, y)``: the mean over the examples of a batch, without state
        across examples (no batch statistics).
    params : pytree of real arrays
        Where the loss is linearised: a minimum, for every criterion but "deterministic" and "batch-sharpness".
    data : pytree
        All training examples, one row of each array per example; a tuple (x, y) for ``loss(params, x, y)``.
    rule : {"gd", "sgd", "sgdm", "nesterov", "adam", "adamw"}
        As optax has them.
    batch_size : int, optional
        B; all examples if left out.
    criterion : {"deterministic", "mean-square", "almost-sure", "batch-sharpness"}, optional
        "almost-sure" and "batch-sharpness" (2 over the mean of g_B' H_B g_B/|g_B|^2) are those of plain SGD.
    replacement : bool
        Whether batches are drawn with replacement.
    opt_state : pytree, optional
        State of the optax Adam that trains. If left out, its second moments are those that it would settle to with
        the weights at rest, E g_B^2: at an interpolating minimum that is 0 and the threshold of no use.
    momentum, b1, b2, eps, weight_decay : float, optional
        Options of the rule; optax's defaults, and momentum 0.9, if left out.
    modes : int, optional
        Number of leading Hessian modes to which the mean-square criterion is restricted. If left out: all, where
        the examples' curvatures are those of a fit (see Notes).
    horizon : int
        Steps within which a direction of negative curvature must not grow by a factor e at the threshold.
    tolerance : float
        Largest relative change of the sharpness over one gradient step of length 1/sharpness for which the weights
        count as lying at a minimum.
    seed : int
        Of everything random: starts of Lanczos, sketches, sampled batches.

    Returns
    -------
    Threshold
        In the units of the learning rate, with the criterion. Its stderr bounds the numerical error of the sharpness
        and of the factors; for many outputs of many examples it is half the width of a bracket, with the bounds as
        ``lower`` and ``upper``. Where the criterion is restricted to leading modes, the value is an upper bound and the
        stderr is its change on halving the modes. For "batch-sharpness" it is the sampling error.

    Raises
    ------
    InvalidInput
        For arguments that cannot be used; if no curvature is positive; if the weights are no minimum where the
        criterion needs one: the message says which criterion still applies.

    Notes
    -----
    At an interpolating minimum the Hessian of an example is H_i = F_i^T F_i with as many rows as outputs; F_i is
    found from a few Hessian products of the example (Nystrom's method, checked on fresh products), and the exact
    mean-square threshold of `sgd_mean_square` follows; with momentum, a preconditioner or decay, the same
    second moments with the rule's own response. Beyond 1500 outputs of all examples it comes with a bracket, from
    the Gram matrix of the F_i alone where these take more than 1 GiB. Beyond 10 000 outputs that matrix is not held
    either: the F_i are resolved on 128 leading modes, the rest entering the bracket by the blocks F_i F_i^T; where
    that is too little for a lower bound (flat spectra) the upper one is given, with a stderr of its own size, and
    `sgd_mean_square` of `bridge.curvature_gram` does better. Where the H_i are not of that
    form (cross entropy, residuals that are not small) they are used as they are, restricted to the leading modes.

    References
    ----------
    Mulayoff and Michaeli 2024 (arXiv:2306.07850); Cohen et al. 2021 (2103.00065), 2022 (2207.14484); Andreyev and
    Beneventano 2024 (2412.20553).

    Examples
    --------
    Two weights, each seen by one of two examples: curvatures 4 and 1 of the examples, 2 and 1/2 of the mean.

    >>> import jax.numpy as jnp
    >>> from eos_sde import thresholds
    >>> def loss(w, x, y):
    ...     return 0.5 * jnp.mean((x @ w - y) ** 2)
    >>> x, y = jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.zeros(2)
    >>> print(round(float(thresholds.max_stable_lr(loss, jnp.zeros(2), (x, y), rule="gd")), 4))
    1.0
    >>> print(round(float(thresholds.max_stable_lr(loss, jnp.zeros(2), (x, y), rule="sgd", batch_size=1)), 4))
    0.5
    """
    step = linear_rule(rule, momentum=momentum, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    n = examples(data)
    size = n if batch_size is None else count("batch_size", batch_size, most=None if replacement else n)
    p = noise_fraction(n, size, replacement)
    criterion = _criterion(criterion, step, p)
    count("horizon", horizon), positive("tolerance", tolerance), count("seed", seed, least=0)
    if modes is not None:
        count("modes", modes)
    double = any(
        jnp.dtype(getattr(leaf, "dtype", jnp.float32)) == jnp.float64 for leaf in jax.tree.leaves(params)
    )
    with (
        jax.enable_x64(True) if double else nullcontext()
    ):  # as precise as the weights, whatever the user's settings
        return _largest(
            objective(loss, data), params, data, step, n, size, p, criterion,
            replacement=replacement, opt_state=opt_state, modes=modes, horizon=horizon, tolerance=tolerance, seed=seed,
        )  # fmt: skip


def _largest(
    value_of: Objective, params: Any, data: Any, step: LinearRule, n: int, size: int, p: float, criterion: str, *,
    replacement: bool, opt_state: Any, modes: int | None, horizon: int, tolerance: float, seed: int,
) -> Threshold:  # fmt: skip
    """The threshold by a criterion, from checked arguments."""
    flat = flat_view(params)
    origin = flat.ravel(params)
    _check_loss(value_of, params, data)
    compiled = programs(value_of, params)
    scale, where = _scale(step, compiled, origin, data, p, opt_state, flat)
    local = Local(compiled, Frame(origin, scale), jnp.zeros_like(origin), data, n)
    if criterion == "batch-sharpness":
        return _batch_sharpness(local, size, replacement, seed)
    top = leading_modes(local)
    sharpness, residual = float(top.values[0]), top.residual
    if not sharpness > residual:
        raise InvalidInput(
            f"the largest Hessian eigenvalue at params is {sharpness:.3g} +- {residual:.1g}, not positive: no learning "
            "rate is unstable there, and negative curvature grows at any; train on, and ask again"
        )
    if criterion == "deterministic" or p == 0:
        return _deterministic(step, sharpness, residual, where)
    _require_minimum(local, sharpness, horizon, tolerance, criterion)
    minimum = Minimum(local, seed, modes)
    if criterion == "almost-sure":
        factors, error = minimum.factors().rows, minimum.sketch.error
        found = thresholds.sgd_almost_sure(factors, batch_size=size, seed=seed, replacement=replacement)
        return dataclasses.replace(found, stderr=float(np.hypot(found.stderr, error * found.value)))
    return mean_square(step, minimum, p, where)


def _criterion(criterion: str | None, rule: LinearRule, p: float) -> str:
    """The criterion that is meant, refused where the rule does not have it."""
    if criterion is None:
        return "deterministic" if p == 0 or rule.name == "gd" else "mean-square"
    if criterion not in CRITERIA:
        raise InvalidInput(f"criterion={criterion!r} is not known: choose one of {', '.join(CRITERIA)}")
    if criterion in {"almost-sure", "batch-sharpness"} and rule.name not in {"gd", "sgd"}:
        raise InvalidInput(
            f"criterion={criterion!r} is that of plain SGD, rule={rule.name!r}: choose 'deterministic' or 'mean-square'"
        )
    return criterion


def _check_loss(value_of: Callable[[Any, Any], jax.Array], params: Any, data: Any) -> None:
    try:
        found = jax.eval_shape(value_of, params, data)
    except TypeError as error:  # of the call, or of shapes that do not fit
        reason = str(error).strip().splitlines()[0]
        raise InvalidInput(
            f"loss cannot be evaluated on params and data ({reason}); give loss(params, batch) or loss(params, x, y), "
            "and params and data that fit it"
        ) from error
    if getattr(found, "shape", None) != ():
        returned = f"the shape {found.shape}" if hasattr(found, "shape") else type(found).__name__
        raise InvalidInput(f"loss returns {returned}; give the mean over the examples, a scalar")
    if not bool(jnp.isfinite(value_of(params, data))):
        raise InvalidInput(
            "the loss at params is not finite; give weights at which training has not diverged"
        )


def _scale(
    rule: LinearRule, compiled: Programs, origin: jax.Array, data: Any, p: float, opt_state: Any, flat: Flat
) -> tuple[jax.Array, str]:
    """P^-1/2 as a flat vector (1 without a preconditioner), and a word on where P is from."""
    unit = jnp.ones((), origin.dtype)
    if not rule.adaptive:
        if opt_state is not None:
            raise InvalidInput(
                f"opt_state is read for Adam's second moments, rule={rule.name!r} has none: leave it out"
            )
        return unit, ""
    if opt_state is not None:
        nu, steps = adam_moments(opt_state)
        if int(steps) < 1:
            raise InvalidInput("opt_state has seen no update, so it has no second moments; pass a later one")
        root = flat.ravel(preconditioner(rule, nu, int(steps)))
        where = f"P of opt_state after {int(steps)} updates"
    else:
        mean, spread = compiled.squares(Frame(origin, unit), jnp.zeros_like(origin), data)
        size = jnp.sqrt(mean**2 + p * spread)
        root, where = size + rule.eps, "P of E g_B^2 at params"
        still = float(jnp.mean(size <= rule.eps))
        if still > 0.5:
            warn(
                f"{100 * still:.0f} % of the weights have gradients below eps={rule.eps:g} at params, so that Adam at "
                "rest there would divide by eps and the threshold is that of its restart, far below the one in "
                "training; pass opt_state, the state of the optimizer that trains",
                AccuracyWarning,
                stacklevel=4,
            )
    if not bool(jnp.all((root > 0) & jnp.isfinite(root))):
        raise InvalidInput(
            "Adam's preconditioner has zeros or is not finite: give eps > 0, or another opt_state"
        )
    return 1.0 / jnp.sqrt(root), where


def _deterministic(rule: LinearRule, sharpness: float, residual: float, where: str) -> Threshold:
    if rule.adaptive:
        exact = thresholds.adam(sharpness, b1=rule.momentum, weight_decay=rule.weight_decay)
    else:
        exact = thresholds.gradient_descent(sharpness, momentum=rule.momentum, nesterov=rule.nesterov)
    relative = residual / sharpness
    return dataclasses.replace(
        exact,
        stderr=exact.value * relative,
        method=f"{join(exact.method, where)}, S = {sharpness:.4g} by Lanczos, residual {relative:.1e}; error: bound",
    )


def _require_minimum(local: Local, sharpness: float, horizon: int, tolerance: float, criterion: str) -> None:
    """Refuse where the loss is not that of a minimum to second order."""
    lowest = sharpness - float(leading_modes(local, tol=_DECIDES, below=sharpness).values[0])
    # at eta = 2/S a direction of curvature -m grows by 1 + 2 m/S a step: e-fold within the horizon or not
    if -lowest * 2 * horizon > sharpness:
        raise InvalidInput(
            f"params lie on no minimum: the Hessian has the eigenvalue {lowest:.3g} beside {sharpness:.3g}, which "
            f"grows e-fold within horizon={horizon} steps, so that criterion={criterion!r} has no meaning; {_STILL}"
        )
    moved = local.point - local.gradient() / sharpness
    change = abs(float(leading_modes(local._replace(point=moved), tol=_DECIDES).values[0]) / sharpness - 1)
    if not change <= tolerance:
        raise InvalidInput(
            f"params are away from a minimum: the sharpness changes by {100 * change:.0f} % over one gradient step of "
            f"1/sharpness, more than tolerance={tolerance:g}, so that criterion={criterion!r} has no meaning; "
            f"{_STILL}, and for plain SGD criterion='batch-sharpness'"
        )


def _batch_sharpness(local: Local, size: int, replacement: bool, seed: int) -> Threshold:
    """2 over the mean of g_B' H_B g_B/|g_B|^2 over sampled batches."""
    rng = np.random.default_rng(seed)
    draws = 1 if size == local.n and not replacement else _BATCHES
    index = np.stack([rng.choice(local.n, size, replace=replacement) for _ in range(draws)])

    found = np.asarray(local.batch_sharpness(jnp.asarray(index)), float)
    mean = float(np.mean(found))
    if not mean > 0:
        raise InvalidInput(
            f"the batch sharpness at params is {mean:.3g}: gradients vanish or curve downwards; {_STILL}"
        )
    stderr = 0.0 if draws == 1 else float(np.std(found, ddof=1)) / draws**0.5
    return Threshold(
        2 / mean, 2 * stderr / mean**2, "batch-sharpness",
        f"2 over g_B' H_B g_B/|g_B|^2 = {mean:.4g} of {draws} batches; error: sampling",
        "Andreyev and Beneventano 2024, arXiv:2412.20553",
    )  # fmt: skip
