"""Errors of the second moments of the linear map: sampling of the examples, and modes left out."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from eos_sde.bridge.linear_fluctuation import SecondMoments, second_moments
from eos_sde.bridge.local_noise import LocalNoise

_GROUPS = 10


def sampling_error(local: LocalNoise, settings: Mapping, directions: int) -> NDArray[np.float64]:
    """Jackknife of the variances over ten groups of examples, as draws from a population, at fixed directions.

    Parameters
    ----------
    local : LocalNoise
        At the weights.
    settings : mapping
        ``eta``, ``batch_size`` and ``window`` of `second_moments`.
    directions : int
        How many.

    Returns
    -------
    ndarray
        Shape (directions,), in weight^2. For the given training set itself the variances have no such error.
    """
    groups = np.array_split(np.arange(local.examples), _GROUPS)
    left_out = []
    for group in groups:
        curvatures = np.delete(local.curvatures, group, axis=0)
        # the eigenvalues of a part are those of its own mean curvature, to first order
        h = local.eigenvalues + np.diagonal(curvatures.mean(axis=0) - local.curvatures.mean(axis=0))
        part = local._replace(
            eigenvalues=h,
            gradients=np.delete(local.gradients, group, axis=0),
            curvatures=curvatures,
            kicks=np.delete(local.kicks, group, axis=1),
        )
        covariance = second_moments(part, **settings).covariance.mean(axis=0)
        left_out.append(np.diagonal(covariance)[:directions])
    with np.errstate(invalid="ignore"):
        return np.sqrt((_GROUPS - 1) * np.var(left_out, axis=0))


def truncation_error(
    local: LocalNoise, moments: SecondMoments, settings: Mapping, directions: int
) -> NDArray[np.float64]:
    """Change of the variances from half the modes to all; an indication of what the rest adds, no bound.

    Parameters
    ----------
    local : LocalNoise
        At the weights.
    moments : SecondMoments
        In all modes.
    settings : mapping
        As for `sampling_error`.
    directions : int
        How many.

    Returns
    -------
    ndarray
        Shape (directions,), in weight^2.
    """
    few = max(directions, len(local.eigenvalues) // 2)
    fewer = second_moments(local.within(few), **settings).covariance.mean(axis=0)
    with np.errstate(invalid="ignore"):
        return np.abs(
            np.diagonal(moments.covariance.mean(axis=0))[:directions] - np.diagonal(fewer)[:directions]
        )
