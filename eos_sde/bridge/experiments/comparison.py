"""What every experiment of the replay returns: rows of prediction against measurement, and paths to draw."""

import math
from dataclasses import dataclass, field

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Row:
    """One quantity, predicted and measured.

    Attributes
    ----------
    experiment : str
        The experiment it belongs to.
    quantity : str
        What it is, for people.
    model : str
        Which theory predicts it; where a theory has no answer, its reason.
    predicted, predicted_stderr : float
        NaN where the theory has no answer.
    measured, measured_stderr : float
        From the network, or as the quantity says.
    units : str
        Of both.
    """

    experiment: str
    quantity: str
    model: str
    predicted: float
    predicted_stderr: float
    measured: float
    measured_stderr: float
    units: str = "1"

    @property
    def deviation(self) -> float:
        """Prediction over measurement, minus 1."""
        return self.predicted / self.measured - 1 if self.measured else math.nan

    @property
    def verdict(self) -> str:
        """In words, judged by the error of the measurement first.

        "agrees": within two standard errors of the measurement; "close": within 5 %; "within its error": within
        two combined standard errors, so that the calibration is too uncertain to tell; else "off".
        """
        if not math.isfinite(self.measured):
            return "not measured"
        if not math.isfinite(self.predicted):
            return "no prediction"
        difference = abs(self.predicted - self.measured)
        if difference <= 2 * np.nan_to_num(self.measured_stderr):
            return "agrees"
        if difference <= 0.05 * abs(self.measured):
            return "close"
        combined = math.hypot(*np.nan_to_num([self.predicted_stderr, self.measured_stderr]))
        return "within its error" if difference <= 2 * combined else "off"


@dataclass(frozen=True)
class Outcome:
    """Rows of an experiment and the variables of its pictures, named ``experiment_*``."""

    rows: list[Row]
    paths: xr.Dataset = field(default_factory=xr.Dataset)


def variable(dims, values, units: str, long_name: str) -> xr.Variable:
    """A described variable."""
    return xr.Variable(dims, np.asarray(values), {"units": units, "long_name": long_name})


def mean_and_stderr(sample: ArrayLike) -> tuple[float, float]:
    """Mean over independent values and its standard error (NaN for fewer than two finite values)."""
    values = np.asarray(sample, dtype=float)
    sample = values[np.isfinite(values)]
    if sample.size < 2:
        return (float(sample.mean()) if sample.size else math.nan), math.nan
    return float(sample.mean()), float(sample.std(ddof=1) / math.sqrt(sample.size))
