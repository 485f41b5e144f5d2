"""Which stability criterion applies to training at given weights, and why: the sizes that decide, and the reason."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from eos_sde.bridge.calibration import calibrate
from eos_sde.bridge.escape import basin_level
from eos_sde.bridge.line_map import LineMap, line_bottom
from eos_sde.bridge.precision import double_precision
from eos_sde.bridge.task_library import Task
from eos_sde.models.arguments import count, positive
from eos_sde.thresholds import flip_barrier, momentum_sgd_scalar
from eos_sde.thresholds.curvature_factors import noise_fraction
from solvers.errors import InvalidInput
from solvers.provenance import provenance

CRITERIA = {
    "catapult": "the loss grows beyond 2/S and comes back below about 4/S, or diverges",
    "plateau": "the sharpness reaches 2/eta within the horizon, and self-stabilization holds it there",
    "none": "the sharpness leaves its value within the horizon before any frozen threshold can act",
    "deterministic": "2/S of the frozen Hessian",
    "mean-square": "second moments of the frozen linear model, or typical runs: almost-sure",
    "escape": "noise drives the weights over the barrier within the horizon",
}


@dataclass(frozen=True)
class Applicable:
    """Which criterion applies.

    Attributes
    ----------
    criterion : str
        A key of `CRITERIA`.
    reason : str
        Why, in words and numbers.
    sizes : Dataset
        What the decision rests on; see `applicable_criterion`.
    """

    criterion: str
    reason: str
    sizes: xr.Dataset


@double_precision
def applicable_criterion(
    task: Task, params: ArrayLike, *, eta: float, batch_size: int, horizon: int
) -> Applicable:
    """Say which threshold still means something at given weights.

    In this order, each from the condition under which its theory was derived:

    1. "catapult": the full gradient exceeds the batch's noise, ``|grad L|^2 > p tr C``, and most of the loss lies
       along the sharpest direction, ``|grad L|^2 > S L``: more than half of its largest value 2 S L on a quadratic,
       which the two-layer network of Lewkowycz et al. (arXiv:2003.02218) attains. No fixed point is near; the
       linearisation about one is void.
    2. The sharpness drifts: on the gradient flow eta S changes by ``eta^2 alpha T`` within the horizon (alpha =
       -grad L . grad S), as much as separates it from 2. Rising: "plateau" (Damian, Nichani and Lee, arXiv:2209.15594).
       Falling, or rising from beyond 2: "none"; recalibrate, or shorten the horizon below |2 - eta S|/(eta^2 |alpha|).
    3. Else the Hessian is as good as frozen, whatever the gradient along slow directions (they are followed
       adiabatically), and stability about the moving minimum applies. Full batch: "deterministic". "escape" if the
       flip along the top eigenvector is subcritical and the map on the line, with its own slopes and noise ("map on
       the line" of `predict_escape`), is expected to leave within the horizon. The barrier of the local normal form
       (`thresholds.flip_barrier`) against log T decides where the line does not reach the basin's level: alone it is
       too high where the noise grows along the line. Otherwise "mean-square": noise is too weak for any barrier, as
       at a minimum that fits every example, or the oscillation is bounded, and linear stability is what is lost first.

    Parameters
    ----------
    task : Task
        The training problem, of at least 2 examples.
    params : array
        Weights, shape (d,).
    eta : float
        Learning rate.
    batch_size, horizon : int
        B, and the number of steps in question.

    Returns
    -------
    Applicable
        With ``sizes``: ``loss``; ``sharpness`` S; ``eta_sharpness``; ``gradient_square`` |grad L|^2; ``noise_square``
        p tr C, the mean square of the batch's deviation from it; ``top_share`` |grad L|^2/(2 S L); ``drift``
        eta^2 alpha T; ``edge_distance`` 2 - eta S; ``barrier`` (infinite where the flip is supercritical or there is
        no noise, 0 from the edge on); ``log_horizon``; ``line_escapes``, expected escapes of the map on the line within
        the horizon (NaN where the barrier is infinite or the line has no basin); ``mean_square``, the mean-square
        threshold along the top eigenvector.

    Raises
    ------
    InvalidInput
        If the weights or a number cannot be used.
    """
    eta = positive("eta", eta)
    batch_size, horizon = count("batch_size", batch_size, most=task.n), count("horizon", horizon)
    theta = jnp.asarray(params, jnp.float64)
    calibration = calibrate(task, theta, batch_size=batch_size, k=1)
    sharpness = positive(
        "sharpness", float(calibration["eigenvalue"][0]), "no direction is unstable at any learning rate here"
    )
    full, deviation = (float(value) for value in _gradient_squares(task, theta))
    p = noise_fraction(task.n, batch_size)
    sizes = {
        "loss": calibration.attrs["loss"],
        "sharpness": sharpness,
        "eta_sharpness": eta * sharpness,
        "gradient_square": full,
        "noise_square": p * deviation,
        "top_share": full / (2 * sharpness * max(calibration.attrs["loss"], np.finfo(float).tiny)),
        "drift": eta**2 * float(calibration["alpha"]) * horizon,
        "edge_distance": 2 - eta * sharpness,
        "barrier": _barrier(calibration, eta, p),
        "log_horizon": math.log(horizon),
        "line_escapes": math.nan,
    }
    if batch_size < task.n and math.isfinite(sizes["barrier"]):
        sizes["line_escapes"] = horizon * _line_rate(task, theta, calibration, eta, batch_size)
    bend = p * float(calibration["curvature_variance"])
    sizes["mean_square"] = float(momentum_sgd_scalar(sharpness, bend))
    criterion, reason = _decide(sizes, eta, full_batch=batch_size == task.n)
    return Applicable(criterion, reason, _dataset(sizes, task, eta, batch_size, horizon))


def _gradient_squares(task: Task, theta: jax.Array) -> tuple[jax.Array, jax.Array]:
    """|grad L|^2, and the mean square deviation of one example's gradient from it."""
    one = jax.grad(lambda w, x, y: task.per_example_loss(w, x[None], y[None])[0])

    @jax.jit
    def squares(theta: jax.Array) -> tuple[jax.Array, jax.Array]:
        def add(total: tuple, example: tuple) -> tuple[tuple, None]:
            gradient = one(theta, *example)
            return (total[0] + gradient, total[1] + gradient @ gradient), None

        start = (jnp.zeros_like(theta), jnp.zeros((), theta.dtype))
        (total, square), _ = jax.lax.scan(add, start, (task.x, task.y))
        mean = total / task.n
        return mean @ mean, square / task.n - mean @ mean

    return squares(theta)


def _barrier(calibration: xr.Dataset, eta: float, p: float) -> float:
    names = ("curvature", "third", "fourth", "per_example_variance", "curvature_variance")
    curvature, third, fourth, kick, bend = (float(calibration[name]) for name in names)
    if p * kick == 0:
        return math.inf
    return flip_barrier(
        eta,
        curvature=curvature,
        third=third,
        fourth=fourth,
        gradient_variance=p * kick,
        curvature_variance=p * bend,
    )


def _line_rate(task: Task, theta: jax.Array, calibration: xr.Dataset, eta: float, batch_size: int) -> float:
    """Escape rate per step of the map on the line; NaN where the line has no minimum or no basin."""
    direction = calibration["eigenvector"].values[0]
    try:
        bottom = line_bottom(task, theta, direction, float(calibration["eigenvalue"][0]))
        level = basin_level(task, calibration.attrs["loss"])
        return LineMap.of(task, bottom, direction, batch_size, level).rate(eta)
    except InvalidInput:  # told by NaN in the sizes: the barrier decides
        return math.nan


def _decide(sizes: dict[str, float], eta: float, *, full_batch: bool) -> tuple[str, str]:
    full, noise, share = (sizes[name] for name in ("gradient_square", "noise_square", "top_share"))
    drift, distance, barrier = (sizes[name] for name in ("drift", "edge_distance", "barrier"))
    if full > noise and share > 0.5:
        return "catapult", (
            f"the squared gradient {full:.3g} exceeds that of the batch noise, {noise:.3g}, and is {share:.2f} of its "
            f"largest value 2 S L: the loss lies along the sharpest direction, no minimum is near; eta S = "
            f"{sizes['eta_sharpness']:.3g} stands against 2 (growth) and about 4 (divergence)"
        )
    if abs(drift) >= abs(distance):
        moved = f"on the gradient flow eta S moves by {drift:+.3g} within the horizon, and is {distance:+.3g} from 2"
        if drift > 0 < distance:
            return "plateau", f"{moved}: it arrives, and self-stabilization, not a frozen threshold, decides"
        return (
            "none",
            f"{moved}: frozen thresholds are void after a part of it; recalibrate, or shorten the horizon",
        )
    frozen = f"eta S moves by {drift:+.3g} within the horizon, less than its distance {distance:+.3g} from 2"
    if full_batch:
        return "deterministic", f"{frozen}; no batch noise"
    escapes, against = sizes["line_escapes"], f"{barrier:.3g} against log T = {sizes['log_horizon']:.3g}"
    if math.isnan(escapes):
        told = f"the flip's barrier is {against}"
    else:
        told = f"the map on the line expects {escapes:.3g} escapes within the horizon (its local barrier: {against})"
    if escapes > 1 or (math.isnan(escapes) and barrier < sizes["log_horizon"]):
        return "escape", f"{frozen}; the flip is subcritical, and {told}: noise can take the weights out"
    weak = (
        "no barrier is within reach of noise, for the flip is supercritical or every example fitted"
        if math.isinf(barrier)
        else f"the noise is too weak: {told}"
    )
    first = f"linear stability is lost first, along the top eigenvector at {sizes['mean_square']:.4g}"
    return "mean-square", f"{frozen}; {weak}; {first}" + (
        "" if eta < sizes["mean_square"] else ", already passed"
    )


_UNITS = {
    "loss": ("1", "full-batch loss"),
    "sharpness": ("1/time", "largest Hessian eigenvalue"),
    "eta_sharpness": ("1", "learning rate times sharpness"),
    "gradient_square": ("1/weight^2", "squared norm of the full gradient"),
    "noise_square": ("1/weight^2", "mean squared norm of the batch gradient's deviation from it"),
    "top_share": ("1", "squared gradient over 2 sharpness loss, its largest value on a quadratic"),
    "drift": ("1", "change of eta times sharpness within the horizon, on the gradient flow"),
    "edge_distance": ("1", "2 - eta sharpness"),
    "barrier": ("1", "Kramers exponent of the subcritical flip"),
    "log_horizon": ("1", "log of the number of steps"),
    "line_escapes": ("1", "expected escapes of the map on the line within the horizon"),
    "mean_square": ("time", "mean-square threshold along the top eigenvector"),
}


def _dataset(sizes: dict[str, float], task: Task, eta: float, batch_size: int, horizon: int) -> xr.Dataset:
    return xr.Dataset(
        {name: ((), sizes[name], {"units": u, "long_name": text}) for name, (u, text) in _UNITS.items()},
        attrs=provenance(task=task.name, eta=eta, batch_size=batch_size, horizon=horizon),
    )
