"""The Threshold type: a float with an error, a criterion and a source."""

import math

import numpy as np
import pytest
import xarray as xr

from eos_sde.thresholds import Threshold
from solvers import InvalidInput


def make(value=0.463, stderr=0.002):
    return Threshold(value, stderr, "mean-square", "Lanczos", "a paper")


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (0.463, 0.002, "0.463 +- 0.002"),
        (0.4631, 0.0123, "0.463 +- 0.012"),
        (12.3456, 0.6, "12.3 +- 0.6"),
        (12345.0, 30.0, "12345 +- 30"),
        (0.125, 0.0, "0.125"),
        (2.0, 1e-14, "2"),
        (math.inf, 0.0, "inf"),
        (1.25, math.inf, "1.25 +- inf"),
    ],
)
def test_text_shows_the_error_to_its_own_digits(value, stderr, text):
    assert str(make(value, stderr)) == f"{text} (mean-square, Lanczos)"


def test_it_compares_as_a_float_and_is_frozen():
    threshold = make()
    assert float(threshold) == 0.463
    assert 0.4 < threshold < 0.5
    assert threshold == 0.463
    assert threshold >= make(0.4)
    assert threshold != make(0.4)
    assert threshold != "0.463"
    assert np.float64(0.4) < threshold < np.array(0.5)
    assert (np.array([0.4, 0.5]) < threshold).tolist() == [True, False]
    assert xr.DataArray(0.4) < threshold
    assert len({threshold, make()}) == 1
    assert "source='a paper'" in repr(threshold)
    with pytest.raises(AttributeError):
        threshold.value = 1.0
    with pytest.raises(TypeError):
        sorted([threshold, "a"])


@pytest.mark.parametrize(
    ("value", "stderr"), [(math.nan, 0.0), (1.0, math.nan), (1.0, -0.1), ("x", 0.0), (1.0, None)]
)
def test_refusals(value, stderr):
    with pytest.raises(InvalidInput):
        make(value, stderr)
