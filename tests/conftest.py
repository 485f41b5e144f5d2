"""Test session settings: floating-point faults raise, JAX computes in double precision."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("MPLBACKEND", "agg")
np.seterr(divide="raise", over="raise", invalid="raise", under="ignore")


@pytest.fixture(scope="session")
def reference():
    """Reference values computed independently to high precision; the file says how."""
    return json.loads((Path(__file__).parent / "reference_values.json").read_text())
