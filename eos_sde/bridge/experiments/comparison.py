"""What every experiment of the replay returns: rows of prediction against measurement, and paths to draw."""

import math
from dataclasses import dataclass, field

import numpy as np
import xarray as xr


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
    def z(self) -> float:
        """Difference in combined standard errors; infinite where both errors are zero and the values differ."""
        difference = self.predicted - self.measured
        error = math.hypot(self.predicted_stderr, self.measured_stderr)
        if error == 0:
            return 0.0 if difference == 0 else math.copysign(math.inf, difference)
        return difference / error

    @property
    def verdict(self) -> str:
        """In words: agrees (within two standard errors), close (within 5 %), or off."""
        if not math.isfinite(self.measured):
            return "not measured: the runs diverged"
        if not math.isfinite(self.predicted):
            return "no prediction"
        if abs(self.z) <= 2:
            return "agrees"
        return "close" if abs(self.deviation) <= 0.05 else "off"


@dataclass(frozen=True)
class Outcome:
    """Rows of an experiment and the variables of its pictures, named ``experiment_*``."""

    rows: list[Row]
    paths: xr.Dataset = field(default_factory=xr.Dataset)


def variable(dims, values, units: str, long_name: str) -> xr.Variable:
    """A described variable."""
    return xr.Variable(dims, np.asarray(values), {"units": units, "long_name": long_name})


def mean_and_stderr(sample: np.ndarray) -> tuple[float, float]:
    """Mean over independent values and its standard error (NaN for fewer than two finite values)."""
    sample = np.asarray(sample, dtype=float)
    sample = sample[np.isfinite(sample)]
    if sample.size < 2:
        return (float(sample.mean()) if sample.size else math.nan), math.nan
    return float(sample.mean()), float(sample.std(ddof=1) / math.sqrt(sample.size))
