"""Moment Lyapunov exponents of SGD near an interpolating minimum, by cloning: what lies between the thresholds.

Lambda(p) = lim (1/k) log E|w_k|^p is convex in p with Lambda(0) = 0. Its slope at 0 is the Lyapunov exponent, zero at
the almost-sure threshold; Lambda(2) is zero at the mean-square one, and since Lambda(2) >= 2 Lambda'(0) that comes
first. Between the two, typical runs shrink while second moments grow: the p > 0 where Lambda crosses zero again is the
exponent of the tail of |w|.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import xarray as xr

from eos_sde.models.arguments import count, finite, positive
from eos_sde.thresholds.batch_products import CHUNK, Sampling, population_rate
from eos_sde.thresholds.curvature_factors import factors_and_noise
from solvers import memory
from solvers.errors import AccuracyWarning
from solvers.provenance import provenance

_BURN_IN = 0.2
_HALVED = 1 << 20
"""Number of the first population of half the size."""


def sgd_moment_exponents(
    jacobian: Any,
    eta: float,
    orders: Sequence[float] | float,
    *,
    batch_size: int,
    seed: int,
    weights: Any = None,
    replacement: bool = False,
    clones: int = 512,
    populations: int = 8,
    steps: int = 1000,
    threads: int = 1,
) -> xr.DataArray:
    """Growth of E|w|^p per step of SGD at an interpolating minimum, on the range of H.

    Parameters
    ----------
    jacobian, batch_size, weights, replacement
        As for `sgd_mean_square`.
    eta : float
        Learning rate, > 0.
    orders : float or sequence of float
        p.
    seed : int
        Of the batches.
    clones, populations : int
        Of each population, at least 8, and how many independent ones, at least 4; as many of half the size tell
        the bias.
    steps : int
        SGD steps, at least 500, rounded up to a multiple of 100; the first fifth is discarded.
    threads : int
        Changes no bit.

    Returns
    -------
    DataArray (p)
        Lambda(p), per step, with coordinates ``stderr`` and ``bias``: the part that is due to the finite number
        of clones, estimated by populations of half the size (value there minus value here), not subtracted.

    Raises
    ------
    InvalidInput
        As for `sgd_mean_square`, or if eta is not positive, an order not finite, or a count too small.

    Warns
    -----
    AccuracyWarning
        If that bias is significant and exceeds twice the standard error: high orders need many clones.

    References
    ----------
    Tailleur and Kurchan 2007, Nature Physics 3, 203 (cloning); Arnold 1984, SIAM J. Appl. Math. 44, 793 (what
    Lambda tells of stability).
    """
    eta = positive("eta", eta)
    moments = np.array([finite("orders", p) for p in np.atleast_1d(np.asarray(orders, dtype=object))])
    seed, clones = count("seed", seed, least=0), count("clones", clones, least=8)
    populations, steps = count("populations", populations, least=4), count("steps", steps, least=500)
    threads = count("threads", threads)
    factors, _ = factors_and_noise(jacobian, weights, batch_size, replacement)
    rows, chunks = np.ascontiguousarray(factors.rows), math.ceil(steps / CHUNK)
    memory.require(
        8 * threads * clones * (CHUNK * int(batch_size) + 2 * rows.shape[2]),
        f"{clones} clones with batches of {batch_size}",
        "lower clones or threads",
    )
    sampling, burn = Sampling(int(batch_size), replacement, seed), int(_BURN_IN * chunks)
    jobs = [
        (first + k, p, size)
        for p in moments
        for first, size in ((0, clones), (_HALVED, clones // 2))
        for k in range(populations)
    ]
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(
            lambda job: population_rate(rows, sampling, job[0], eta, float(job[1]), job[2], chunks, burn),
            jobs,
        )
        rates = np.fromiter(found, float, len(jobs)).reshape(len(moments), 2, populations)
    value = rates[:, 0].mean(axis=1)
    stderr, smaller = rates.std(axis=2, ddof=1).T / math.sqrt(populations)
    bias = rates[:, 1].mean(axis=1) - value
    for p, shift, error, spread in zip(moments, bias, stderr, np.hypot(stderr, smaller), strict=True):
        if abs(shift) > max(2 * error, 4 * spread):
            warnings.warn(
                f"the number of clones, {clones}, changes Lambda({p:g}) by about {shift:.2g}, with a standard error of "
                f"{error:.2g}; use more clones",
                AccuracyWarning,
                stacklevel=2,
            )
    units = {"units": "1/step"}
    return xr.DataArray(
        value,
        dims="p",
        coords={
            "p": ("p", moments, {"units": "1", "long_name": "moment"}),
            "stderr": ("p", stderr, units | {"long_name": "standard error"}),
            "bias": ("p", bias, units | {"long_name": "estimated bias from the number of clones"}),
        },
        name="moment_lyapunov_exponent",
        attrs=units
        | {"long_name": "moment Lyapunov exponent of SGD"}
        | provenance(
            method="cloning",
            learning_rate=eta,
            batch_size=int(batch_size),
            replacement=int(replacement),
            clones=clones,
            populations=populations,
            steps=chunks * CHUNK,
            seed=seed,
        ),
    )
