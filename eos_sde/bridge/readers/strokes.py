"""Pen strokes of Chars74k: read from its trajectory files or from JSON, and drawn as images."""

import gzip
import json
import re
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solvers.errors import InvalidInput

Strokes = list[NDArray[np.float64]]
"""Of one drawing: points (x, y) of each stroke, shape (points, 2), y downwards."""

_CELL = r"\b{}\s*=\s*\{{(.*?)\}}"
_VECTOR = re.compile(r"\[([^\[\]]*)\]")
_MARGIN = 1


def trajectory(content: bytes, where: str) -> Strokes:
    """A trajectory file (``.m``): the MATLAB cells ``rows`` and ``cols``, with a vector for each stroke.

    Nothing is run: numbers in brackets are looked for.

    Parameters
    ----------
    content : bytes
        Of the file.
    where : str
        For the sentence if it is another.

    Returns
    -------
    list of ndarray
        Strokes.

    Raises
    ------
    InvalidInput
        If there are no such cells, they do not fit each other, or hold something else than numbers.
    """
    text = content.decode("latin1")
    cells: list[list[NDArray]] = []
    for name in ("cols", "rows"):
        cell = re.search(_CELL.format(name), text, re.DOTALL)
        if cell is None:
            raise InvalidInput(
                f"{where} has no cell {name} = {{...}}: it is no trajectory of Chars74k, or cut short"
            )
        try:
            cells.append([np.array(one.split(), float) for one in _VECTOR.findall(cell[1])])
        except ValueError as error:
            raise InvalidInput(f"{where} has something else than numbers in {name}: {error}") from error
    return _fitted(cells[0], cells[1], where)


def _fitted(x: list[NDArray], y: list[NDArray], where: str) -> Strokes:
    if [len(one) for one in x] != [len(one) for one in y]:
        raise InvalidInput(
            f"{where} has strokes of {[*map(len, x)]} points in cols and of {[*map(len, y)]} in rows"
        )
    return _checked([np.stack(both, axis=1) for both in zip(x, y, strict=True)], where)


def _checked(strokes: Strokes, where: str) -> Strokes:
    if not strokes or not all(one.size and np.isfinite(one).all() for one in strokes):
        raise InvalidInput(f"{where} has no stroke, one without points, or a place that is not finite")
    return strokes


def stroke_dictionary(content: bytes, where: str) -> dict[str, list[Strokes]]:
    """A JSON file, gzipped or not: character to its drawings, each a list of strokes, each a list of [x, y].

    Parameters
    ----------
    content : bytes
        Of the file.
    where : str
        For the sentence if it is another.

    Returns
    -------
    dict
        Character to drawings.

    Raises
    ------
    InvalidInput
        If it is cut short, no JSON, or of another structure.
    """
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise InvalidInput(f"{where} is a broken gzip file ({error}): get it anew") from error
    try:
        whole = json.loads(content)
    except json.JSONDecodeError as error:
        raise InvalidInput(f"{where} is no JSON at byte {error.pos}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{where} is no JSON at byte {error.start}: {error.reason}") from error
    if not isinstance(whole, dict) or not all(isinstance(drawings, list) for drawings in whole.values()):
        raise InvalidInput(f"{where} is no JSON object from characters to lists of drawings")
    found = {}
    for character, drawings in whole.items():
        of = f"of {character!r} in {where}"
        found[character] = [_drawing(one, f"drawing {number} {of}") for number, one in enumerate(drawings, 1)]
    return found


def _drawing(given: Any, where: str) -> Strokes:
    try:
        strokes = [np.array(stroke, float) for stroke in given]
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{where} is no list of strokes, lists of [x, y]") from error
    if not all(one.ndim == 2 and one.shape[1] == 2 for one in strokes):
        raise InvalidInput(f"{where} is no list of strokes, lists of [x, y]")
    return _checked(strokes, where)


def drawn(strokes: Strokes, side: int, *, thickness: float | None = None) -> NDArray[np.float64]:
    """Image of a drawing: white lines on black, fitted into the square by their bounding box.

    A pixel is as bright as 1/2 + thickness/2 minus the distance of its middle from the nearest segment, within [0, 1]:
    lines with smooth edges, the same on every machine.

    Parameters
    ----------
    strokes : list of ndarray
        See `Strokes`.
    side : int
        Pixels along an edge, from 4. One at every edge stays free of the lines' middles.
    thickness : float, optional
        Of the lines in pixels; a tenth of the side if left out.

    Returns
    -------
    ndarray
        Shape (side, side).
    """
    wide = side / 10 if thickness is None else thickness
    points = np.concatenate(strokes)
    low, high = points.min(axis=0), points.max(axis=0)
    extent = float((high - low).max())
    scale = (side - 2 * _MARGIN - wide) / extent if extent > 0 else 0.0
    placed = [(one - (low + high) / 2) * scale + side / 2 for one in strokes]
    starts = np.concatenate([one[:-1] if len(one) > 1 else one for one in placed])
    ends = np.concatenate([one[1:] if len(one) > 1 else one for one in placed])
    middles = np.arange(side) + 0.5
    pixels = np.stack(np.meshgrid(middles, middles), axis=-1).reshape(-1, 1, 2)  # (side^2, 1, 2), x first
    along = ends - starts
    squared = (along**2).sum(axis=1)
    part = ((pixels - starts) * along).sum(axis=2) / np.where(squared > 0, squared, 1.0)
    nearest = starts + np.clip(part, 0, 1)[:, :, None] * along
    distance = np.sqrt(((pixels - nearest) ** 2).sum(axis=2)).min(axis=1)
    return np.clip(0.5 + wide / 2 - distance, 0, 1).reshape(side, side)
