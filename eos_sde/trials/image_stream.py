"""Batches of images that fit in no memory: read and decoded as they are needed, and resumed bit for bit."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from eos_sde.bridge.readers.labelled import LabelledImages, pixels
from eos_sde.trials.batch_order import ordered_batches
from solvers.errors import InvalidInput

AHEAD = 2
"""Batches that are being read while one is used, for each worker."""


def image_batches(
    images: LabelledImages,
    *,
    batch_size: int,
    side: int,
    seed: int,
    first: int = 0,
    workers: int = 1,
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Batches of a run without end, each epoch in a random order of its own.

    The order is that of `training.train` on as many examples in memory: a function of the seed and of the number of the
    update. To resume needs no state but that number, and gives the same bits whatever the number of workers. Memory
    holds the index of the images, the order of an epoch, and `workers` x 2 + 1 batches.

    Parameters
    ----------
    images : LabelledImages
        From `bridge.image_folder_tasks.open_images`.
    batch_size : int
        B, at most the images; what is left over at the end of an epoch is left out.
    side : int
        Pixels along an edge.
    seed : int
        Of the order.
    first : int
        Updates made before.
    workers : int
        Threads that read and decode.

    Yields
    ------
    (ndarray, ndarray)
        Pixels (B, side, side, 3), uint8, and labels (B,), int64.

    Raises
    ------
    InvalidInput
        For arguments that cannot be used; and, when its batch is asked for, if an image is broken.
    """
    given = {"batch_size": batch_size, "side": side, "seed": seed, "first": first, "workers": workers}
    for name, value in given.items():
        least = 0 if name in ("seed", "first") else 1
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise InvalidInput(f"{name}={value!r} must be an integer of at least {least}")
    if batch_size > len(images):
        raise InvalidInput(
            f"batch_size={batch_size} must be at most the {len(images)} images of {images.source}"
        )
    return _batches(images, batch_size, side, seed, first, workers)


def _batches(
    images: LabelledImages, batch_size: int, side: int, seed: int, step: int, workers: int
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    def begun(step: int):
        (rows,) = ordered_batches(seed, step, 1, examples=len(images), batch_size=batch_size)
        return pool.submit(pixels, images, rows, side)

    with ThreadPoolExecutor(workers, thread_name_prefix="images") as pool:
        waiting = deque(begun(step + k) for k in range(workers * AHEAD))
        step += len(waiting)
        try:
            while True:
                batch = waiting.popleft().result()
                waiting.append(begun(step))
                step += 1
                yield batch
        finally:
            for one in waiting:
                one.cancel()
