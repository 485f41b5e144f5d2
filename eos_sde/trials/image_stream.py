"""Batches of images that fit in no memory: read and decoded as they are needed, and resumed bit for bit."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eos_sde.bridge.readers.labelled import LabelledImages, pixels
from eos_sde.bridge.readers.random_cuts import check_augmentation, cuts_of
from eos_sde.bridge.task_library import Task
from eos_sde.trials.batch_order import epoch_and_place, ordered_batches
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
    ahead: int | None = None,
    augment: str = "none",
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Batches of a run without end, each epoch in a random order of its own.

    The order is that of `training.train` on as many examples in memory: a function of the seed and of the number of the
    update. What is shown of an image is one of the seed, the epoch and the place of the image. To resume needs no state
    but that number, and gives the same bits whatever the number of workers. Memory holds the index of the images, the
    order of an epoch, and `ahead` + 1 batches.

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
    ahead : int, optional
        Batches that are being read, or wait, while one is used; `workers` x 2 if left out.
    augment : {"none", "crop-flip"}
        "crop-flip": of an image another random part each epoch, see `bridge.readers.random_cuts.random_cut`.

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
    given["ahead"] = workers * AHEAD if ahead is None else ahead
    for name, value in given.items():
        least = 0 if name in ("seed", "first") else 1
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise InvalidInput(f"{name}={value!r} must be an integer of at least {least}")
    check_augmentation(augment)
    if batch_size > len(images):
        raise InvalidInput(
            f"batch_size={batch_size} must be at most the {len(images)} images of {images.source}"
        )
    return _batches(images, batch_size, side, seed, first, workers, given["ahead"], augment)


def _batches(
    images: LabelledImages,
    batch_size: int,
    side: int,
    seed: int,
    step: int,
    workers: int,
    ahead: int,
    augment: str,
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    def begun(step: int):
        sizes = {"examples": len(images), "batch_size": batch_size}
        (rows,) = ordered_batches(seed, step, 1, **sizes)
        epoch, _ = epoch_and_place(step, **sizes)
        return pool.submit(pixels, images, rows, side, cuts_of(augment, seed=seed, epoch=epoch))

    with ThreadPoolExecutor(workers, thread_name_prefix="images") as pool:
        waiting = deque(begun(step + k) for k in range(ahead))
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


class Drawn:
    """The batches of a run, so many updates at a time: rows of the examples in memory, or images of a stream.

    Parameters
    ----------
    task : Task
        The training part.
    seed, batch_size : int
        Of the order.
    first : int
        Updates made before.
    every : int
        Updates at a time.
    workers : int
        Threads that read and decode a stream.
    """

    def __init__(self, task: Task, *, seed: int, batch_size: int, first: int, every: int, workers: int):
        self._order = {"examples": task.n, "batch_size": batch_size}
        self._seed, self._every, self._done, self._stream = seed, every, first, None
        if task.stream is not None:
            self._stream = image_batches(
                task.stream, batch_size=batch_size, side=task.stream.side, seed=seed, first=first, workers=workers,
                ahead=max(every, workers * AHEAD), augment=task.stream.augment,
            )  # fmt: skip

    def next(self) -> Any:
        """Batches of the next updates, each array with axes (update, example): rows, or pixels and labels."""
        if self._stream is None:
            rows = ordered_batches(self._seed, self._done, self._every, **self._order)
            self._done += self._every
            return rows
        pixels, labels = zip(*islice(self._stream, self._every), strict=True)
        return np.stack(pixels), np.stack(labels)

    def close(self) -> None:
        """End the threads."""
        if self._stream is not None:
            self._stream.close()
