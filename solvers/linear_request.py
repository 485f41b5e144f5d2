"""Checks of what simulations of linear SDEs are asked for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from solvers.errors import InvalidInput
from solvers.linear_growth import Settings
from solvers.request import available_cores
from solvers.wiener import checked_integer, checked_seed


def checked_moments(p: Any) -> np.ndarray:
    """The moments as an array of finite floats."""
    try:
        moments = np.atleast_1d(np.asarray(p, dtype=float))
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"p={p!r}; give finite numbers") from error
    if moments.ndim != 1 or not np.isfinite(moments).all():
        raise InvalidInput(f"p={p!r}; give finite numbers")
    return moments


def checked_matrices(drift: Any, noises: Any) -> tuple[np.ndarray, np.ndarray]:
    """A (d, d) and B (m, d, d) as arrays of finite floats."""
    try:
        matrix, matrices = np.array(drift, dtype=float), np.array(noises, dtype=float)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"drift and noises must be matrices of real numbers ({error})") from error
    d = len(matrix) if matrix.ndim == 2 else 0
    if matrix.shape != (d, d) or matrices.shape[1:] != (d, d) or 0 in matrices.shape:
        raise InvalidInput(
            f"drift has shape {matrix.shape} and noises {matrices.shape}; give (d, d) and (m, d, d), m at least 1"
        )
    if not (np.isfinite(matrix).all() and np.isfinite(matrices).all()):
        raise InvalidInput("drift or noises contains nan or infinity; give finite numbers")
    return matrix, matrices


def checked_simulation(
    seed: int | None, dt: float, duration: float, paths: int, burn_in: float | None, threads: int | None
) -> Settings:
    """The settings of a simulation, its times in whole steps."""
    if seed is None:
        raise InvalidInput("seed=None; method='simulation' needs an integer seed >= 0")
    if not 0 < dt < duration < math.inf:
        raise InvalidInput(f"dt={dt!r} and duration={duration!r}; give 0 < dt < duration")
    if checked_integer("paths", paths) < 20:
        raise InvalidInput(f"paths={paths!r}; give an integer >= 20")
    burn = duration / 10 if burn_in is None else burn_in
    if not 0 <= burn < duration:
        raise InvalidInput(f"burn_in={burn_in!r} must lie between 0 and duration={duration!r}")
    if threads is not None and checked_integer("threads", threads) < 1:
        raise InvalidInput(f"threads={threads} must be at least 1")
    # even numbers of pairs, so that steps of twice the length come in pairs too
    double = max(1, round(duration / (4 * dt)))
    skipped = min(round(burn / (4 * dt)), double - 1)
    return Settings(
        checked_seed(seed),
        float(dt),
        2 * double,
        2 * skipped,
        int(paths),
        available_cores() if threads is None else int(threads),
    )
