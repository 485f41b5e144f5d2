"""What the stability monitor reads at a step, and the xarray log of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr

from solvers.errors import InvalidInput
from solvers.provenance import provenance

MEASURED = {
    "loss": ("1", "loss on the probe data"),
    "gradient_norm": ("1/weight", "norm of the gradient on the probe data, preconditioned for Adam"),
    "sharpness": ("1/time", "largest Hessian eigenvalue on the probe data, of P^-1 H for Adam"),
    "sharpness_error": ("1/time", "residual of the eigenpair"),
    "batch_sharpness": ("1/time", "running mean of g_B' H_B g_B / |g_B|^2"),
    "gradient_noise_interaction": ("1/time", "running means of g_B' H g_B over |grad L|^2"),
    "curvature_spread": ("1/time", "standard deviation over examples of the curvature along the top mode"),
    "self_stabilization": ("1/weight^6", "beta = |grad S|^2 across the top mode; NaN far from the edge"),
    "saturation": ("1/time^2", "loss per squared rate of steps of full size in every weight; Adam only"),
    "deterministic": ("time", "threshold: learning rate at which the full-batch step is unstable"),
    "mean_square": ("time", "threshold: upper bound, that of the top mode alone with its curvature noise"),
    "batch": ("time", "threshold: edge at the batch sharpness"),
    "catapult": (
        "time",
        "threshold: beyond it oscillation raises the sharpness, of the batch or of the probe data",
    ),
}
"""What stands until the next measurement, with units and meaning, in the order of `Reading.numbers`."""

JUDGED = {
    "learning_rate": ("time", "learning rate of the update that follows"),
    "distance_deterministic": ("1", "log(threshold / learning rate), negative beyond it"),
    "distance_mean_square": ("1", "log(threshold / learning rate), negative beyond it"),
    "distance_batch": ("1", "log(threshold / learning rate), negative beyond it"),
    "distance_catapult": ("1", "log(threshold / learning rate), negative beyond it"),
    "predicted_loss": ("1", "loss at the peak of the excursion that is predicted beyond the edge"),
}
"""What follows at every step from that and the learning rate."""

_WHERE = {name: place for place, name in enumerate([*MEASURED, *JUDGED])}
_FLAGS = {
    "staleness": ("1", "steps since the measurement"),
    "edge": ("1", "whether the learning rate is beyond a threshold, with hysteresis"),
    "warning": ("1", "whether divergence is predicted, with hysteresis"),
}


class Reading(NamedTuple):
    """One reading, or a stack of them from a scan: few arrays, since each costs time at every step.

    Every name of the log is an attribute, for example ``reading.sharpness`` or ``reading.distance_deterministic``,
    of the shape of `step`.

    Attributes
    ----------
    step : int32
        Updates before this one.
    measured_at : int32
        Step of the last measurement.
    edge, warning : bool
        Beyond a threshold; divergence predicted.
    numbers : Array, shape (..., 19)
        Everything else.
    """

    step: Any
    measured_at: Any
    edge: Any
    warning: Any
    numbers: Any

    def __getattr__(self, name: str) -> Any:
        if name in _WHERE:
            return self.numbers[..., _WHERE[name]]
        raise AttributeError(f"Reading has no {name!r}; it has {', '.join([*_WHERE, *_FLAGS])}")

    @property
    def staleness(self) -> Any:
        """Steps since the measurement."""
        return self.step - self.measured_at

    @property
    def measured(self) -> Any:
        """Whether this step measured."""
        return self.step == self.measured_at


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
        raise InvalidInput(
            "readings holds no Reading: pass what StabilityMonitor.update returned, stacked or in a list"
        )
    stacked = [jax.tree.map(np.asarray, piece) for piece in pieces]
    stacked = [jax.tree.map(lambda a: a[None], one) if one.step.ndim == 0 else one for one in stacked]
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *stacked)
    keep = np.ones(len(joined.step), bool) if every_step else joined.measured
    data = {
        name: ("step", getattr(joined, name)[keep], {"units": units, "long_name": text})
        for name, (units, text) in (MEASURED | JUDGED | _FLAGS).items()
    }
    step = xr.DataArray(joined.step[keep], dims="step", attrs={"units": "1", "long_name": "updates before"})
    return xr.Dataset(data, coords={"step": step}, attrs=provenance(**attrs))
