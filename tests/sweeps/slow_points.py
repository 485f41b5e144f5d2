"""Functions for sweeps that are run in other processes: slow enough to be killed, and told apart bit by bit."""

import math
import time

import numpy as np
import xarray as xr


def wave(x: float, seed: int, pause: float = 0.0) -> xr.Dataset:
    time.sleep(pause)
    if seed == 3 and x > 0.9:
        raise ValueError(f"no wave at x={x}")
    noise = np.random.default_rng([seed, int(1000 * x)]).normal(size=16)
    matrix = np.random.default_rng(seed).normal(size=(40, 40)) + x * np.eye(40)
    return xr.Dataset(
        {
            "height": ("place", np.sin(x * np.arange(16)) + noise),
            "trace": ((), np.trace(matrix @ matrix @ matrix)),
        }
    )


def trivial(x: float) -> float:
    return math.sqrt(x)
