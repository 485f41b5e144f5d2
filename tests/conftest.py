"""Test session settings: floating-point faults raise, JAX computes in double precision."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("MPLBACKEND", "agg")
# Threads of XLA. With as few as there are cores, large batches of LAPACK calls that do not depend on each other take
# all of them and wait for ever for their parts, which no thread is left to take (jaxlib's ParallelBatchMap, to 0.10).
os.environ.setdefault("NPROC", "8")
np.seterr(divide="raise", over="raise", invalid="raise", under="ignore")


def pytest_addoption(parser):
    """For runs that have to end in time: what has not begun by then is skipped, and shown as such."""
    parser.addoption(
        "--time-budget", type=float, default=float("inf"), help="seconds after which no test begins"
    )


def pytest_configure(config):
    config.began = time.monotonic()


def pytest_collection_modifyitems(items):
    """Notebooks first: they are what a newcomer runs. What is slow may take an hour before it counts as hung."""
    items.sort(key=lambda item: item.get_closest_marker("notebook") is None)
    for item in items:
        if item.get_closest_marker("slow") or item.get_closest_marker("notebook"):
            item.add_marker(pytest.mark.timeout(3600))


def pytest_runtest_setup(item):
    if time.monotonic() - item.config.began > item.config.getoption("--time-budget"):
        pytest.skip(f"no time left for it in the {item.config.getoption('--time-budget'):.0f} s of this run")


@pytest.fixture(scope="session")
def reference():
    """Reference values computed independently to high precision; the file says how."""
    return json.loads((Path(__file__).parent / "reference_values.json").read_text())
