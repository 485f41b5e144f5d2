"""What the stability monitor reads at a step, and the xarray log of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr

from solvers.errors import InvalidInput
from solvers.provenance import provenance

_UNITS = {
    "learning_rate": ("time", "learning rate of the update that follows"),
    "measured": ("1", "whether the curvature was measured at this step"),
    "staleness": ("1", "steps since it was"),
    "loss": ("1", "loss on the probe data"),
    "gradient_norm": ("1/weight", "norm of the gradient on the probe data, preconditioned for Adam"),
    "sharpness": ("1/time", "largest Hessian eigenvalue on the probe data, of P^-1 H for Adam"),
    "sharpness_error": ("1/time", "residual of the eigenpair"),
    "batch_sharpness": ("1/time", "running mean of g_B' H_B g_B / |g_B|^2"),
    "gradient_noise_interaction": ("1/time", "running means of g_B' H g_B over |grad L|^2"),
    "curvature_spread": ("1/time", "standard deviation over examples of the curvature along the top mode"),
    "self_stabilization": ("1/weight^6", "beta = |grad S|^2 across the top mode; NaN far from the edge"),
    "deterministic": ("time", "threshold: learning rate at which the full-batch step is unstable"),
    "mean_square": ("time", "threshold: upper bound, that of the top mode alone with its curvature noise"),
    "batch": ("time", "threshold: edge at the batch sharpness"),
    "distance_deterministic": ("1", "log(threshold / learning rate), negative beyond it"),
    "distance_mean_square": ("1", "log(threshold / learning rate), negative beyond it"),
    "distance_batch": ("1", "log(threshold / learning rate), negative beyond it"),
    "predicted_loss": ("1", "loss at the peak of the excursion that self-stabilization predicts"),
    "edge": ("1", "whether the learning rate is beyond a threshold, with hysteresis"),
    "warning": ("1", "whether divergence is predicted, with hysteresis"),
}


class Reading(NamedTuple):
    """One reading; scalars, or arrays over steps when stacked by a scan. Units and meanings: the log's attributes.

    Attributes
    ----------
    step : int32
        Updates before this one.
    measured, edge, warning : bool
        See the log; so do the other fields.
    staleness : int32
        Steps since the measurement.
    learning_rate, loss, gradient_norm, sharpness, sharpness_error, batch_sharpness : float
    gradient_noise_interaction, curvature_spread, self_stabilization : float
    deterministic, mean_square, batch : float
        Thresholds, learning rates.
    distance_deterministic, distance_mean_square, distance_batch : float
        log(threshold / learning rate).
    predicted_loss : float
    """

    step: Any
    measured: Any
    staleness: Any
    learning_rate: Any
    loss: Any
    gradient_norm: Any
    sharpness: Any
    sharpness_error: Any
    batch_sharpness: Any
    gradient_noise_interaction: Any
    curvature_spread: Any
    self_stabilization: Any
    deterministic: Any
    mean_square: Any
    batch: Any
    distance_deterministic: Any
    distance_mean_square: Any
    distance_batch: Any
    predicted_loss: Any
    edge: Any
    warning: Any


def log(readings: Reading | Iterable[Reading], *, every_step: bool, **attrs: object) -> xr.Dataset:
    """Log of readings with units.

    Parameters
    ----------
    readings : Reading or iterable of Reading
        Scalars, or stacked over steps; several pieces are joined.
    every_step : bool
        Whether steps without a measurement are kept.
    **attrs
        Written to the attributes.

    Returns
    -------
    Dataset
        Over ``step``.

    Raises
    ------
    InvalidInput
        If there are no readings.
    """
    pieces = [readings] if isinstance(readings, Reading) else list(readings)
    if not pieces or not all(isinstance(piece, Reading) for piece in pieces):
        raise InvalidInput("readings holds no Reading: pass what StabilityMonitor.update returned, stacked or in a list")
    joined = jax.tree.map(lambda *parts: np.concatenate([np.atleast_1d(np.asarray(p)) for p in parts]), *pieces)
    keep = np.ones(len(joined.step), bool) if every_step else joined.measured
    data = {
        name: ("step", getattr(joined, name)[keep], {"units": units, "long_name": text})
        for name, (units, text) in _UNITS.items()
    }
    step = xr.DataArray(joined.step[keep], dims="step", attrs={"units": "1", "long_name": "updates before"})
    return xr.Dataset(data, coords={"step": step}, attrs=provenance(**attrs))
