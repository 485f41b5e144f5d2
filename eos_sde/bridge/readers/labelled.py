"""What readers of labelled images have in common: examples that are read one by one, and a choice among them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from eos_sde.bridge.datasets import balanced_rows
from eos_sde.bridge.readers.decoding import patch, square
from eos_sde.bridge.readers.random_cuts import Cut
from solvers.errors import InvalidInput


class LabelledImages(Protocol):
    """Encoded images with labels, read when asked for.

    Attributes
    ----------
    source : str
        What they are, for people.
    classes : sequence of str
        What the labels mean.
    labels : ndarray or None
        Of all, int64; None where they are told by the records alone.
    """

    @property
    def source(self) -> str: ...  # noqa: D102

    @property
    def classes(self) -> Sequence[str]: ...  # noqa: D102

    @property
    def labels(self) -> NDArray[np.int64] | None: ...  # noqa: D102

    def __len__(self) -> int:
        """How many."""
        ...

    def encoded(self, index: int) -> tuple[bytes, int, str]:
        """Content of an image, its label, and where it is, for a sentence if it is broken."""
        ...


def pixels(
    images: LabelledImages,
    rows: NDArray[np.integer],
    side: int,
    cuts: Callable[[int, int, int], Cut] | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Some of the images, decoded.

    Parameters
    ----------
    images : LabelledImages
        Where from.
    rows : ndarray
        Which, shape (n,).
    side : int
        Pixels along an edge; see `decoding.square`.
    cuts : callable, optional
        Row, width and height of an image to the part of it that is shown, see `decoding.patch`; the largest centred
        square if left out.

    Returns
    -------
    (ndarray, ndarray)
        Shape (n, side, side, 3), uint8; labels (n,).

    Raises
    ------
    InvalidInput
        If one of them is broken.
    """
    found, labels = np.empty((len(rows), side, side, 3), np.uint8), np.empty(len(rows), np.int64)
    for place, row in enumerate(rows):
        content, labels[place], where = images.encoded(int(row))
        if cuts is None:
            found[place] = square(content, side, where)
        else:
            found[place] = patch(content, side, where, partial(cuts, int(row)))
    return found, labels


def first_rows(images: LabelledImages, examples: int) -> NDArray[np.int64]:
    """Which examples a small task takes: balanced over the classes where the labels are known, else the first.

    Parameters
    ----------
    images : LabelledImages
        Where from.
    examples : int
        How many.

    Returns
    -------
    ndarray
        Their places, int64.

    Raises
    ------
    InvalidInput
        If there are not so many.
    """
    if not 1 <= examples <= len(images):
        raise InvalidInput(
            f"examples={examples} must lie between 1 and {len(images)}, those of {images.source}"
        )
    if images.labels is None:
        return np.arange(examples)
    return balanced_rows(images.labels, len(images.classes), examples)
