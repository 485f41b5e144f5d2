"""A numerical certificate of CAEO's descent: follows a run, checks the inequality at every step, names what fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

from eos_sde.optimizers.curvature.interface import Estimator, flat_view, hessian_product
from eos_sde.optimizers.curvature.krylov import lanczos
from eos_sde.optimizers.descent import WITHIN_STEP, certain_delta, guaranteed_decrease, sharpness_rise
from eos_sde.optimizers.rule import EDGE, validate
from eos_sde.optimizers.transformation import CaeoState
from solvers.errors import InvalidInput
from solvers.provenance import provenance

ROUNDING = 8.0
"""Units of rounding of the loss that a difference of two losses may be off by."""
ALONG_GRADIENT = 1e-3
"""Relative distance from -learning_rate * gradient up to which a step counts as such."""
FAILURES = (
    "",
    "not finite",
    "not along the gradient",
    "estimate too low",
    "sharpness rose too fast",
    "unexplained",
)
"""What can fail at a step; "unexplained" contradicts the theorem, as where the reference missed the top eigenvalue."""


class _Row(NamedTuple):
    """Measured at one step, scalars; or at all, arrays of shape (steps,)."""

    loss: Any
    next_loss: Any
    gradient_norm: Any
    learning_rate: Any
    estimate: Any
    staleness: Any
    sharpness: Any
    sharpness_error: Any
    at_estimate: Any
    travelled: Any
    deviation: Any


class _Carry(NamedTuple):
    params: Any
    state: Any
    reference: Any
    at_estimate: jax.Array
    travelled: jax.Array


def descent_certificate(
    value_fn: Callable[[Any], jax.Array],
    params: Any,
    optimizer: optax.GradientTransformationExtraArgs,
    *,
    steps: int,
    delta: float,
    error: float | None = None,
    lipschitz: float | None = None,
    lower_bound: float = 0.0,
    reference: Estimator | None = None,
    progress: Callable[[int], None] | None = None,
) -> xr.Dataset:
    """Train with CAEO on a whole loss and check Theorem 1 of ``docs/caeo_descent.md`` at every step.

    The theorem says ``L(theta_{t+1}) <= L(theta_t) - c_t eta_t |g_t|^2`` with
    ``c_t = 1 - ((2 - delta)(1 + e) + eta_t rho (D_t + eta_t |g_t|/3))/2``, where e is the relative error of the
    estimated sharpness, rho the fastest rise of the sharpness along the path and D_t the length of the path since the
    estimate. All of these are measured, with the sharpness from a second, tight estimator.

    Parameters
    ----------
    value_fn : callable
        The loss as a function of the parameters, whole (no batch).
    params : pytree
        Where the run begins.
    optimizer : GradientTransformationExtraArgs
        `caeo`, or a chain with it, whose state holds a `CaeoState`. Where the steps are not minus the rate times the
        gradient (momentum, clipping) the certificate says so.
    steps : int
        To train.
    delta : float
        The optimizer's distance from the edge.
    error, lipschitz : float, optional
        e and rho as assumed. If left out, the largest that are met in the run: then the certificate tells what would
        have had to be assumed.
    lower_bound : float, optional
        A number that the loss does not fall below, for the rate of the gradient.
    reference : Estimator, optional
        Measures the true sharpness at every step; ``lanczos(order=16, tol=1e-4, restarts=32)`` if left out.
    progress : callable, optional
        Called with the step reached.

    Returns
    -------
    Dataset (step)
        ``loss``, ``loss_change``, ``rounding`` (of that change), ``gradient_norm``, ``learning_rate``, ``estimate``,
        ``staleness``, ``sharpness`` (reference), ``step_sharpness`` (mean curvature along the step, from the losses; at
        2/learning_rate the loss stays), ``measured_error`` (e of this step), ``measured_lipschitz`` (rho of this step),
        ``travelled``; ``decrease`` (c_t for the assumed e and rho), ``certain_delta`` (the margin above which descent
        is certain), ``certain`` (whether delta is above), ``hindrance`` (what takes most of the margin where it is not:
        "margin" itself, "error", "staleness" or "step"); ``holds`` (the inequality, within rounding and the error of
        the reference), ``failure`` (one of `FAILURES`: which assumption this step breaks); ``best_gradient`` (least
        |g|^2 so far), ``best_bound`` (its bound; NaN once descent was not certain). Attributes: the assumed ``error``
        and ``lipschitz``, and ``verdict``, a sentence.

    Raises
    ------
    InvalidInput
        For settings out of range, or an optimizer whose state holds no `CaeoState`.

    Examples
    --------
    A base rate far above the edge, on a wave: the sharpness rises within the first steps, which the cap does not see.

    >>> from eos_sde import caeo
    >>> import jax.numpy as jnp
    >>> optimizer = caeo(10.0, delta=0.2)
    >>> def wave(x):
    ...     return 1 - jnp.cos(x).mean()
    >>> certificate = descent_certificate(wave, jnp.array([2.0, 1.0]), optimizer, steps=20, delta=0.2)
    >>> print(certificate.attrs["verdict"].replace("; ", ";" + chr(10)))
    descent was certain at 13 of 20 steps;
    the loss rose at 2;
    where it was not certain the margin went to step (7).
    """
    _check(steps, delta, error, lipschitz)
    reference = lanczos(order=16, tol=1e-4, restarts=32) if reference is None else reference
    state = optimizer.init(params)
    if not _caeo_states(state):
        raise InvalidInput("optimizer must be caeo(...) or a chain with it: its state holds no CaeoState.")
    dtype = flat_view(params).dtype
    nothing = jnp.zeros((), dtype)
    carry = _Carry(params, state, reference.init(params, jax.random.PRNGKey(0)), nothing, nothing)
    step = jax.jit(_step(value_fn, optimizer, reference))
    rows = []
    for number in range(steps):
        carry, row = step(carry)
        rows.append(row)
        if progress is not None:
            progress(number + 1)
    measured = _Row(*(np.array(column, dtype=float) for column in zip(*jax.device_get(rows), strict=True)))
    roundoff = flat_view(params).unit_roundoff
    return _judged(measured, roundoff, delta=delta, error=error, lipschitz=lipschitz, lower_bound=lower_bound)


def _check(steps: int, delta: float, error: float | None, lipschitz: float | None) -> None:
    """Refuse settings that cannot be used.

    Raises
    ------
    InvalidInput
        Naming the setting.
    """
    validate(delta=delta)
    if isinstance(steps, bool) or int(steps) != steps or steps < 1:
        raise InvalidInput(f"steps={steps!r} must be a positive whole number")
    for name, value in (("error", error), ("lipschitz", lipschitz)):
        if value is not None and not (np.isfinite(value) and value >= 0):
            raise InvalidInput(f"{name}={value!r} must be a finite number, zero or above, or be left out")


def _caeo_states(state: Any) -> list[CaeoState]:
    leaves = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, CaeoState))
    return [leaf for leaf in leaves if isinstance(leaf, CaeoState)]


def _step(value_fn: Callable[[Any], jax.Array], optimizer: Any, reference: Estimator) -> Callable:
    """One step of training, and what is measured at it."""

    def step(carry: _Carry) -> tuple[_Carry, _Row]:
        params = carry.params
        flat = flat_view(params)
        loss, gradient = jax.value_and_grad(value_fn)(params)
        sharpness, bound, kept = reference.update(hessian_product(value_fn, params), params, carry.reference)
        updates, state = optimizer.update(gradient, carry.state, params, value_fn=value_fn)
        told = _caeo_states(state)[0]
        # an estimate that is followed from step to step is one of now
        fresh = (told.staleness == 0) | (told.sharpness != _caeo_states(carry.state)[0].sharpness)
        at_estimate = jnp.where(fresh, sharpness, carry.at_estimate)
        travelled = jnp.where(fresh, 0.0, carry.travelled)
        moved, slope = flat.ravel(updates), flat.ravel(gradient)
        length, norm = jnp.linalg.norm(moved), jnp.linalg.norm(slope)
        after: Any = optax.apply_updates(params, updates)
        row = _Row(
            loss=loss,
            next_loss=value_fn(after),
            gradient_norm=norm,
            learning_rate=told.learning_rate,
            estimate=told.sharpness,
            staleness=told.staleness,
            sharpness=sharpness,
            sharpness_error=bound,
            at_estimate=at_estimate,
            travelled=travelled,
            deviation=jnp.linalg.norm(moved + told.learning_rate * slope) / jnp.maximum(length, 1e-30),
        )
        return _Carry(after, state, kept, at_estimate, travelled + length), row

    return step


@np.errstate(divide="ignore", invalid="ignore", over="ignore")  # of runs that leave the numbers, or rest
def _judged(
    row: _Row,
    roundoff: float,
    *,
    delta: float,
    error: float | None,
    lipschitz: float | None,
    lower_bound: float,
) -> xr.Dataset:
    """The certificate of what was measured; arrays of shape (steps,)."""
    eta, norm = row.learning_rate, row.gradient_norm
    change = row.next_loss - row.loss
    rounding = ROUNDING * roundoff * np.maximum(np.abs(row.loss), np.abs(row.next_loss))
    squared = (eta * norm) ** 2
    along = 2 * (change + eta * norm**2) / squared
    on_gradient = (
        row.deviation <= ALONG_GRADIENT
    )  # of other steps the losses do not tell the curvature along them
    within = np.where(on_gradient, along - 2 * rounding / squared - row.sharpness - row.sharpness_error, 0.0)
    since = row.sharpness - row.at_estimate - row.sharpness_error
    lipschitz_met = np.maximum(_ratio(since, row.travelled), _ratio(within, WITHIN_STEP * eta * norm))
    error_met = np.maximum(row.at_estimate - row.estimate, 0.0) * eta / (EDGE - delta)
    e = _largest(error_met) if error is None else error
    rho = _largest(lipschitz_met) if lipschitz is None else lipschitz
    rise = sharpness_rise(eta, norm, lipschitz=rho, travelled=row.travelled)
    decrease = guaranteed_decrease(delta, error=e, rise=rise)
    needed = certain_delta(error=e, rise=rise)
    certain = decrease > 0
    holds = change <= -decrease * eta * norm**2 + rounding + squared * row.sharpness_error
    finite = np.isfinite(change) & np.isfinite(decrease)
    too_low = error_met > e * (1 + 1e-9) + row.sharpness_error * eta / (EDGE - delta)
    failure = np.select(
        [~finite, ~on_gradient, too_low, lipschitz_met > rho * (1 + 1e-9), ~holds],
        FAILURES[1:],
        default="",
    )
    parts = np.stack(
        [(EDGE - delta) * e + 0 * eta, eta * rho * row.travelled, WITHIN_STEP * rho * squared / norm]
    )
    blamed = np.array(["error", "staleness", "step"])[np.nan_to_num(parts, nan=-1.0).argmax(axis=0)]
    hindrance = np.where(certain, "", "margin" if delta <= 0 else blamed)
    best = np.minimum.accumulate(norm**2)
    always = np.logical_and.accumulate(certain)
    spent = np.cumsum(np.where(always, decrease * eta, 1.0))
    bound = np.where(always, (row.loss[0] - lower_bound) / spent, np.nan)
    given = {
        "loss": (row.loss, "loss", "loss before the step"),
        "loss_change": (change, "loss", "change of the loss by the step"),
        "rounding": (rounding, "loss", "rounding of that change"),
        "gradient_norm": (norm, "loss/weight", "gradient norm"),
        "learning_rate": (eta, "time", "learning rate"),
        "estimate": (row.estimate, "1/time", "sharpness as the optimizer has it"),
        "staleness": (row.staleness.astype(np.int64), "steps", "age of that"),
        "sharpness": (row.sharpness, "1/time", "sharpness"),
        "step_sharpness": (along, "1/time", "mean curvature along the step"),
        "travelled": (row.travelled, "weight", "length of the path since the estimate"),
        "measured_error": (error_met, "1", "how much the estimate is too low, relative"),
        "measured_lipschitz": (lipschitz_met, "1/(time weight)", "rise of the sharpness per length"),
        "decrease": (decrease, "1", "certain decrease per learning rate and squared gradient"),
        "certain_delta": (needed, "1", "margin above which descent is certain"),
        "certain": (certain, "1", "whether descent is certain"),
        "holds": (holds, "1", "whether the inequality holds"),
        "failure": (failure, "1", "assumption that fails"),
        "hindrance": (hindrance, "1", "what takes most of the margin where descent is not certain"),
        "best_gradient": (best, "(loss/weight)^2", "least squared gradient norm so far"),
        "best_bound": (bound, "(loss/weight)^2", "its bound"),
    }
    return xr.Dataset(
        {
            name: ("step", values, {"units": units, "long_name": said})
            for name, (values, units, said) in given.items()
        },
        coords={"step": np.arange(eta.size)},
        attrs={
            **provenance(method="descent certificate", delta=delta),
            "error": e,
            "lipschitz": rho,
            "verdict": _verdict(change > rounding, certain, failure, hindrance),
        },
    )


def _ratio(rise: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Rise per length where there is a rise, else zero."""
    return np.where((rise > 0) & (length > 0), rise / np.where(length > 0, length, 1.0), 0.0)


def _largest(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.max()) if known.size else 0.0


def _verdict(rose: np.ndarray, certain: np.ndarray, failure: np.ndarray, hindrance: np.ndarray) -> str:
    """A sentence for people."""
    total = certain.size
    said = f"descent was certain at {certain.sum()} of {total} steps; the loss rose at {rose.sum()}"
    if not certain.all():
        names, counts = np.unique(hindrance[~certain], return_counts=True)
        said += f"; where it was not certain the margin went to {_listed(names, counts)}"
    if (failure != "").any():
        names, counts = np.unique(failure[failure != ""], return_counts=True)
        said += f"; assumptions failed: {_listed(names, counts)}"
    return said + "."


def _listed(names: np.ndarray, counts: np.ndarray) -> str:
    return ", ".join(f"{name} ({count})" for name, count in zip(names, counts, strict=True))
