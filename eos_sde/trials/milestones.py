"""When a run reaches a target, and how steady the loss is on the way."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solvers.errors import InvalidInput

_RANGES = {"loss": (-math.inf, math.inf), "accuracy": (0.0, 1.0), "perplexity": (1.0, math.inf)}


@dataclass(frozen=True)
class Target:
    """What a run has to reach on the validation examples.

    Attributes
    ----------
    kind : {"loss", "accuracy", "perplexity"}
        At most so much loss or perplexity (the exponential of a cross entropy), at least so much accuracy.
    value : float
        How much.

    Raises
    ------
    InvalidInput
        For another kind, or a value out of its range.
    """

    kind: str
    value: float

    def __post_init__(self):
        if self.kind not in _RANGES:
            raise InvalidInput(f"target {self.kind!r} is not known: choose one of {', '.join(_RANGES)}")
        least, most = _RANGES[self.kind]
        if not (math.isfinite(self.value) and least <= self.value <= most):
            raise InvalidInput(
                f"target {self.kind}={self.value!r} is out of its range, {least:g} to {most:g}"
            )

    def reached(self, loss: ArrayLike, accuracy: ArrayLike) -> NDArray[np.bool_]:
        """Where validation losses and accuracies reach the target; NaN does not.

        Parameters
        ----------
        loss, accuracy : array
            Over the measured steps.

        Returns
        -------
        ndarray
            Of bool.
        """
        if self.kind == "accuracy":
            return np.asarray(accuracy) >= self.value
        return np.asarray(loss) <= (self.value if self.kind == "loss" else math.log(self.value))


def first_reached(at: ArrayLike, reached: ArrayLike) -> float:
    """Position at which a target is first met.

    Parameters
    ----------
    at : array
        Steps, epochs, seconds or gradients, at the measurements.
    reached : array of bool
        Whether it is met there.

    Returns
    -------
    float
        One of `at`; NaN if it never is. No finer than the measurements are.
    """
    where = np.flatnonzero(np.asarray(reached))
    return float(np.asarray(at)[where[0]]) if where.size else math.nan


def mean_loss_variance(losses: ArrayLike) -> float:
    r"""The proposal's stability, :math:`(1/T) \sum_t \mathrm{Var}\, L(\theta_t)`, with the variance over runs.

    Parameters
    ----------
    losses : array
        Training loss of every run at the measured steps, shape (runs, T), of two runs or more.

    Returns
    -------
    float
        Mean over the steps of the unbiased variance between the runs; NaN where a run is not whole.

    Raises
    ------
    InvalidInput
        If there are no two runs.
    """
    values = np.asarray(losses, float)
    if values.ndim != 2 or len(values) < 2 or not values.shape[1]:
        raise InvalidInput(f"losses of shape {values.shape} must be (runs, steps) of two runs or more")
    if not np.isfinite(values).all():
        return math.nan
    return float(values.var(axis=0, ddof=1).mean())


def end_loss(losses: ArrayLike) -> float:
    """Mean over the last fifth of the measurements: a run that swings at its end is not taken by its luckiest point.

    Parameters
    ----------
    losses : array
        At the measured steps.

    Returns
    -------
    float
        NaN if one of them is.
    """
    values = np.asarray(losses, float)
    return float(values[-max(1, len(values) // 5) :].mean())
