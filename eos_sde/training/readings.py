"""What the stability monitor reads at a step, and the xarray log of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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
    "divergence": (
        "time",
        "threshold: learning rate beyond which the predicted peak of the loss is too high",
    ),
}
"""What stands until the next measurement, with units and meaning, in the order of `Reading.numbers`."""

JUDGED = {
    **{
        f"distance_{name}": ("1", "log(threshold / learning rate), negative beyond it")
        for name in ("deterministic", "mean_square", "batch", "catapult", "divergence")
    },
    "predicted_loss": ("1", "loss at the peak of the excursion that is predicted beyond the edge"),
}
"""What follows at every step from that and the learning rate."""

_WHERE = {name: place for place, name in enumerate(MEASURED)}
_HELD = {
    "learning_rate": ("time", "learning rate of the update that follows"),
    "staleness": ("1", "steps since the measurement"),
    "edge": ("1", "whether the learning rate is beyond a threshold, with hysteresis"),
    "warning": ("1", "whether divergence is predicted, with hysteresis"),
}


class Reading(NamedTuple):
    """One reading, or a stack of them from a scan: few arrays, since each costs time at every step.

    Every name of the log is an attribute, for example ``reading.sharpness``, ``reading.distance_deterministic`` or
    ``reading.warning``, of the shape of `learning_rate`; what follows from the rest is computed when it is asked for.

    Attributes
    ----------
    learning_rate : float
        Of the update that follows.
    numbers : Array, shape (..., 14)
        What was measured last, in the order of `MEASURED`.
    marks : int32, shape (..., 3)
        Updates before this one, step of the last measurement, and 1 beyond a threshold plus 2 where divergence is
        predicted.
    """

    learning_rate: Any
    numbers: Any
    marks: Any

    def __getattr__(self, name: str) -> Any:
        if name in _WHERE:
            return self.numbers[..., _WHERE[name]]
        if name in JUDGED:
            return jnp.log(jnp.divide(getattr(self, name.removeprefix("distance_")), self.learning_rate))
        raise AttributeError(f"Reading has no {name!r}; it has {', '.join([*_WHERE, *JUDGED, *_HELD])}")

    def then(self, tree: Any) -> Any:
        """The same arrays, but known only after this reading: give it the gradients of the update.

        A compiler that may overwrite the weights before the monitor has read them keeps a copy of them at every step;
        one that has to wait for the reading needs none. Adam's second moments are spared one too.

        Parameters
        ----------
        tree : pytree of real arrays
            Of the step of this reading.

        Returns
        -------
        pytree
            Bit for bit.
        """
        never = self.measured_at > self.step
        return jax.tree.map(lambda leaf: jnp.where(never, jnp.zeros_like(leaf), leaf), tree)

    @property
    def predicted_loss(self) -> Any:
        """Loss at the peak of the excursion that is predicted beyond the edge."""
        rate = jnp.asarray(self.learning_rate)
        nearest = jnp.minimum(self.deterministic, self.mean_square)
        excess = self.sharpness * jnp.maximum(0.0, 1.0 - nearest / rate)
        # beyond the catapult threshold oscillation no longer lowers the sharpness
        removed = jnp.where(
            rate > self.catapult, jnp.nan, self.sharpness * excess**2 / self.self_stabilization
        )
        return self.loss + jnp.where(excess > 0, jnp.fmin(removed, self.saturation * rate**2), 0.0)

    @property
    def step(self) -> Any:
        """Updates before this one."""
        return self.marks[..., 0]

    @property
    def measured_at(self) -> Any:
        """Step of the last measurement."""
        return self.marks[..., 1]

    @property
    def edge(self) -> Any:
        """Whether the learning rate is beyond a threshold."""
        return self.marks[..., 2] % 2 == 1

    @property
    def warning(self) -> Any:
        """Whether divergence is predicted."""
        return self.marks[..., 2] >= 2

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
    stacked = [
        jax.tree.map(lambda a: a[None], one) if one.learning_rate.ndim == 0 else one for one in stacked
    ]
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *stacked)
    keep = np.ones(len(joined.step), bool) if every_step else joined.measured
    data = {
        name: ("step", np.asarray(getattr(joined, name))[keep], {"units": units, "long_name": text})
        for name, (units, text) in (MEASURED | JUDGED | _HELD).items()
    }
    step = xr.DataArray(joined.step[keep], dims="step", attrs={"units": "1", "long_name": "updates before"})
    return xr.Dataset(data, coords={"step": step}, attrs=provenance(**attrs))
