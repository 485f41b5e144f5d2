"""Encoded images to pixels: JPEG and PNG, by Pillow."""

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from eos_sde.bridge.readers.random_cuts import Cut
from solvers.errors import InvalidInput

FORMATS = ("JPEG", "PNG")
_BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning)


def opened(content: bytes, where: str) -> Image.Image:
    """An image, decoded whole.

    Parameters
    ----------
    content : bytes
        JPEG or PNG, whatever its name says.
    where : str
        For the sentence if it is broken.

    Returns
    -------
    Image
        Of Pillow, in the colours of the file.

    Raises
    ------
    InvalidInput
        If it is another format, cut short or broken.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        image.load()
    except _BROKEN as error:
        reason = "cannot identify it" if "cannot identify" in str(error) else str(error)
        raise InvalidInput(
            f"{where} is no whole {' or '.join(FORMATS)} image ({len(content)} bytes; {reason}): get it anew"
        ) from error
    return image


def square(content: bytes, side: int, where: str) -> NDArray[np.uint8]:
    """The largest centred square of an image, resized.

    Grey images, palettes and CMYK (as some of ImageNet's are) become RGB; orientation tags are not looked at.

    Parameters
    ----------
    content : bytes
        JPEG or PNG.
    side : int
        Pixels along an edge afterwards. Resized with the triangle filter of Pillow, which averages where it shrinks.
    where : str
        For the sentence if it is broken.

    Returns
    -------
    ndarray
        Shape (side, side, 3), uint8.

    Raises
    ------
    InvalidInput
        As `opened`.
    """
    image = opened(content, where).convert("RGB")
    return np.asarray(ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR), np.uint8)


def patch(content: bytes, side: int, where: str, choose: Callable[[int, int], Cut]) -> NDArray[np.uint8]:
    """A part of an image, resized to a square whatever its aspect.

    It is cut out of the image as it was decoded, before anything is resized: no pixel beside it is looked at.

    Parameters
    ----------
    content, side, where
        As of `square`, with the same colours and filter.
    choose : callable
        Width and height of the image to its part.

    Returns
    -------
    ndarray
        Shape (side, side, 3), uint8.

    Raises
    ------
    InvalidInput
        As `opened`.
    """
    image = opened(content, where).convert("RGB")
    cut = choose(image.width, image.height)
    small = image.crop(cut.box).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(small.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if cut.flipped else small, np.uint8)


def ink(content: bytes, side: int, where: str, *, margin: int = 1) -> NDArray[np.float64]:
    """A dark drawing on a light ground: cut out by its bounding box, fitted into a square, white on black.

    Parameters
    ----------
    content : bytes
        JPEG or PNG.
    side : int
        Pixels along an edge afterwards.
    where : str
        For the sentence if it is broken.
    margin : int
        Pixels left empty at every edge; the longer side of the box fills what is between.

    Returns
    -------
    ndarray
        Shape (side, side), in [0, 1].

    Raises
    ------
    InvalidInput
        If it is broken, or nothing is drawn on it.
    """
    drawn = ImageOps.invert(opened(content, where).convert("L"))
    box = drawn.point([0] * 128 + [255] * 128).getbbox()  # darker than mid-grey
    if box is None:
        raise InvalidInput(f"{where} has no pixel darker than mid-grey: nothing is drawn on it")
    inner = side - 2 * margin
    cut = drawn.crop(box)
    longer = max(cut.size)
    size = tuple(max(1, round(inner * part / longer)) for part in cut.size)
    small = cut.resize((size[0], size[1]), Image.Resampling.BOX)
    whole = Image.new("L", (side, side))
    whole.paste(small, ((side - size[0]) // 2, (side - size[1]) // 2))
    return np.asarray(whole, np.float64) / 255
