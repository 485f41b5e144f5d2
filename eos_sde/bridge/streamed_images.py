"""Training images that fit in no memory: a task holds some of them to measure on, and its batches come from all."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from eos_sde.bridge.readers.labelled import LabelledImages


@dataclass(frozen=True, eq=False)
class ImageStream:
    """Where the batches of a task come from; itself `readers.labelled.LabelledImages`.

    Attributes
    ----------
    images : LabelledImages
        All training images.
    sample : ndarray
        Places among them of the examples that the task holds, in their order.
    rows : ndarray
        Places of those that batches are drawn from.
    side : int
        Pixels along an edge.
    mean, spread : ndarray
        Of each colour, in [0, 1], by which images are standardised; shape (3,).
    smoothing : float
        Of the targets, (1 - s) one-hot + s/c.
    augment : str
        How what is drawn is augmented, one of `readers.random_cuts.AUGMENTATIONS`; what the task holds is not.
    """

    images: LabelledImages
    sample: NDArray[np.int64]
    rows: NDArray[np.int64]
    side: int
    mean: NDArray[np.float64]
    spread: NDArray[np.float64]
    smoothing: float
    augment: str = "none"

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def source(self) -> str:
        """What they are, for people."""
        return self.images.source

    @property
    def classes(self) -> Sequence[str]:
        """What the labels mean."""
        return self.images.classes

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Of those that batches are drawn from."""
        known = self.images.labels
        return None if known is None else known[self.rows]

    def encoded(self, index: int) -> tuple[bytes, int, str]:
        """Content, label and place of one of those that batches are drawn from."""
        return self.images.encoded(int(self.rows[index]))

    def without(self, places: NDArray[np.integer]) -> "ImageStream":
        """The stream without examples that are held out.

        Parameters
        ----------
        places : ndarray
            Which of the examples that the task holds.

        Returns
        -------
        ImageStream
            That draws none of them.
        """
        return dataclasses.replace(self, rows=np.setdiff1d(self.rows, self.sample[places]))

    def prepared(self, pixels: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Inputs and targets as the task has them; traceable.

        Parameters
        ----------
        pixels : Array
            Shape (n, side, side, 3), uint8.
        labels : Array
            Shape (n,).

        Returns
        -------
        (Array, Array)
            Shapes (n, 3 side^2) and (n, classes), float64.
        """
        x = (pixels.astype(jnp.float64) / 255 - self.mean) / self.spread
        count = len(self.classes)
        y = (1 - self.smoothing) * jax.nn.one_hot(labels, count, dtype=jnp.float64) + self.smoothing / count
        return x.reshape(len(x), -1), y
