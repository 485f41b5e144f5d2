"""Which part of an image is shown when training is augmented: random resized crops and flips, as ImageNet's."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from eos_sde.bridge.batches import stream
from solvers.errors import InvalidInput

AUGMENTATIONS = ("none", "crop-flip")
AREA, ASPECT, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10
"""Part of the image's area, width over height, and how often they are drawn before the centre is taken."""
_CUTS = 6  # a stream of its own


@dataclass(frozen=True)
class Cut:
    """A part of an image.

    Attributes
    ----------
    left, upper : int
        Its first column and row.
    width, height : int
        Of it, in pixels; at least 1.
    flipped : bool
        Whether left and right are exchanged.
    """

    left: int
    upper: int
    width: int
    height: int
    flipped: bool

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, upper, right and lower, as Pillow has them."""
        return self.left, self.upper, self.left + self.width, self.upper + self.height


def random_cut(words: np.random.Philox, width: int, height: int) -> Cut:
    """A random resized crop, flipped with probability 1/2.

    The convention is that of torchvision's RandomResizedCrop and RandomHorizontalFlip, with which most published
    recipes for ImageNet train: part of the area uniform on [0.08, 1], logarithm of the aspect uniform on
    [log 3/4, log 4/3], sides rounded to pixels, place uniform over all that fit. What does not fit into the image is
    drawn anew, so that of a square image large areas are rarer than small ones: beyond 3/4 the density of the area a
    falls as log(1/a) / log(4/3). After ten tries the centre is taken: the whole image, or of one whose aspect is out
    of range as much of it as has the nearest aspect in it. TensorFlow's sample_distorted_bounding_box draws the aspect
    itself uniformly, and has no such centre.

    Parameters
    ----------
    words : numpy.random.Philox
        Source of randomness, of this image alone: how many words are consumed depends on the image.
    width, height : int
        Of the image, in pixels.

    Returns
    -------
    Cut
        Inside the image.

    References
    ----------
    Szegedy et al., Going deeper with convolutions, CVPR 2015, section 6 (areas and aspects).
    torchvision.transforms.RandomResizedCrop.get_params (the logarithm, the tries and the centre).
    """

    def uniform() -> float:
        return int(words.random_raw() >> 11) * 2.0**-53

    flipped = uniform() < 0.5
    for _ in range(TRIES):
        area = width * height * (AREA[0] + (AREA[1] - AREA[0]) * uniform())
        least, most = map(math.log, ASPECT)
        aspect = math.exp(least + (most - least) * uniform())
        wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < high <= height:
            left, upper = (int(uniform() * (room + 1)) for room in (width - wide, height - high))
            return Cut(left, upper, wide, high, flipped)
    wide, high = min(width, round(height * ASPECT[1])), min(height, round(width / ASPECT[0]))
    return Cut((width - wide) // 2, (height - high) // 2, wide, high, flipped)


def cuts_of(augment: str, *, seed: int, epoch: int) -> Callable[[int, int, int], Cut] | None:
    """What is shown of the images of an epoch.

    Parameters
    ----------
    augment : {"none", "crop-flip"}
        How training is augmented.
    seed, epoch : int
        Of the run, and passes made before.

    Returns
    -------
    callable or None
        Place of an image, its width and its height to its cut, a function of these, the seed and the epoch alone,
        whenever and by whomever it is asked for; None for images that are shown as they are.

    Raises
    ------
    InvalidInput
        For an unknown augmentation.
    """
    check_augmentation(augment)
    if augment == "none":
        return None
    return lambda place, width, height: random_cut(stream(seed, _CUTS, epoch, place), width, height)


def check_augmentation(augment: str) -> None:
    """Refuse an unknown augmentation.

    Parameters
    ----------
    augment : str
        One of `AUGMENTATIONS`.

    Raises
    ------
    InvalidInput
        If it is not.
    """
    if augment not in AUGMENTATIONS:
        raise InvalidInput(f"augment={augment!r} is not known: choose one of {', '.join(AUGMENTATIONS)}")
