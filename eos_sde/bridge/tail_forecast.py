"""Tail exponents of SGD's linear map along single directions, from the curvatures of its batches."""

from functools import partial

import numpy as np

from eos_sde.bridge.linear_fluctuation import batch_means, largest_multiplier
from eos_sde.bridge.local_noise import LocalNoise
from eos_sde.thresholds.random_recurrence import TailExponent, kesten_exponent


def directional_tails(
    local: LocalNoise, directions: int, eta: float, batch_size: int, seed: int
) -> list[TailExponent]:
    """Kesten's exponent of x+ = (1 - eta h_B) x - eta g_B along each leading direction.

    Parameters
    ----------
    local : LocalNoise
        At the weights.
    directions : int
        How many.
    eta : float
        Learning rate.
    batch_size, seed : int
        B, without replacement; of 20 000 sampled batches. Whether any batch at all expands is decided exactly, by the
        B examples of largest and of smallest curvature.

    Returns
    -------
    list of TailExponent
        One for each direction.
    """
    curvatures = np.stack([local.curvatures[:, i, i] for i in range(directions)], axis=1)
    sampled = batch_means(curvatures, batch_size=batch_size, seed=seed)
    largest = partial(largest_multiplier, eta=eta, batch_size=batch_size)
    return [
        kesten_exponent(1 - eta * sampled[:, i], largest=largest(curvatures[:, i])) for i in range(directions)
    ]


def tail_variables(name: str, tail: TailExponent) -> dict[str, tuple]:
    """Entries of a dataset.

    Parameters
    ----------
    name : str
        Of the exponent.
    tail : TailExponent
        Its value, error, lower bound and reason.

    Returns
    -------
    dict
        ``name``, ``name_stderr``, ``name_low``.
    """
    return {
        name: (
            (),
            tail.value,
            {
                "units": "1",
                "long_name": "tail exponent of the map in the leading modes",
                "reason": tail.reason,
            },
        ),
        f"{name}_stderr": ((), tail.stderr, {"units": "1", "long_name": "its sampling error"}),
        f"{name}_low": ((), tail.low, {"units": "1", "long_name": "its lower bound"}),
    }
