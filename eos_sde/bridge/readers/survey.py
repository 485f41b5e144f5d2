"""Every image of a set read once: what is broken, how many of each class, and the mean and spread of the colours."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eos_sde.bridge.readers.decoding import opened
from eos_sde.bridge.readers.labelled import LabelledImages
from solvers.errors import InvalidInput


@dataclass(frozen=True, eq=False)
class Survey:
    """What a set of images holds.

    Attributes
    ----------
    source : str
        Which set.
    counts : ndarray
        Whole images of each class, int64.
    broken : tuple of str
        A sentence on each image that cannot be read.
    mean, spread : ndarray
        Of red, green and blue over all pixels of the whole images, in [0, 1], shape (3,); every image counts alike.
        NaN if there is none.
    """

    source: str
    counts: NDArray[np.int64]
    broken: tuple[str, ...]
    mean: NDArray[np.float64]
    spread: NDArray[np.float64]


def survey(images: LabelledImages, *, progress: Callable[[float], None] | None = None) -> Survey:
    """Read and decode every image, checksums looked at.

    Parameters
    ----------
    images : LabelledImages
        From `image_folder_tasks.open_images`.
    progress : callable, optional
        Called with the part done.

    Returns
    -------
    Survey
        Memory holds one image at a time.
    """
    counts, broken = np.zeros(len(images.classes), np.int64), []
    first, second = np.zeros(3), np.zeros(3)
    for index in range(len(images)):
        try:
            content, label, where = images.encoded(index)
            pixels = np.asarray(opened(content, where).convert("RGB"), np.float64) / 255
        except InvalidInput as error:
            broken.append(str(error))
        else:
            counts[label] += 1
            first += pixels.mean(axis=(0, 1))
            second += (pixels**2).mean(axis=(0, 1))
        if progress is not None:
            progress((index + 1) / len(images))
    whole = int(counts.sum())
    mean = first / whole if whole else np.full(3, np.nan)
    spread = np.sqrt(np.maximum(second / whole - mean**2, 0.0)) if whole else np.full(3, np.nan)
    return Survey(images.source, counts, tuple(broken), mean, spread)
