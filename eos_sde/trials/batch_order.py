"""The order of the data, a function of the seed and of the number of the update alone."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from eos_sde.bridge.batches import stream

_ORDER = 3  # after the streams of `bridge.record` and its checkpoints


@lru_cache(maxsize=4)
def _shuffled(seed: int, epoch: int, examples: int) -> NDArray[np.int32]:
    words = stream(seed, _ORDER, epoch).random_raw(examples)
    return np.argsort(words, kind="stable").astype(np.int32)


def epoch_and_place(step: int, *, examples: int, batch_size: int) -> tuple[int, int]:
    """Where an update is.

    Parameters
    ----------
    step : int
        Updates made before.
    examples, batch_size : int
        n and B.

    Returns
    -------
    (int, int)
        Its epoch, and its place in it, from 0.
    """
    return divmod(step, examples // batch_size)


def ordered_batches(
    seed: int, first: int, count: int, *, examples: int, batch_size: int
) -> NDArray[np.int32]:
    """Batches of consecutive updates: each epoch in a random order of its own, without what is left over at its end.

    Parameters
    ----------
    seed : int
        Of the order.
    first, count : int
        Updates made before, and how many follow.
    examples, batch_size : int
        n and B.

    Returns
    -------
    ndarray
        Shape (count, batch_size), int32. However updates are grouped, the batches are the same.
    """
    rows = np.empty((count, batch_size), np.int32)
    for row, step in enumerate(range(first, first + count)):
        epoch, place = epoch_and_place(step, examples=examples, batch_size=batch_size)
        rows[row] = _shuffled(seed, epoch, examples)[place * batch_size : (place + 1) * batch_size]
    return rows
