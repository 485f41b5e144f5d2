"""Boundary conditions: which wall does what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from solvers.errors import InvalidInput

Wall = Literal["reflecting", "absorbing", "periodic"]
Boundary = str | Mapping[str, tuple[str, str] | str]
WALLS: tuple[Wall, ...] = ("reflecting", "absorbing", "periodic")


def walls(boundary: Boundary, names: tuple[str, ...]) -> dict[str, tuple[Wall, Wall]]:
    """The kind of both walls of every axis.

    Parameters
    ----------
    boundary : str or mapping
        One word for all walls, or ``{axis: (low, high)}`` (or ``{axis: word}``); axes left out reflect.
        "reflecting": no flux. "absorbing": probability that reaches the face is removed. "periodic": the
        two ends are joined, so both sides of an axis together.
    names : tuple of str
        Axes of the grid.

    Returns
    -------
    dict
        ``{axis: (low, high)}`` for every axis.

    Raises
    ------
    InvalidInput
        For an unknown word or axis, or an axis periodic on one side only.
    """
    if isinstance(boundary, str):
        given: Mapping[str, tuple[str, str] | str] = dict.fromkeys(names, boundary)
    elif isinstance(boundary, Mapping):
        given = boundary
    else:
        raise InvalidInput(f"boundary={boundary!r} is neither a word nor a mapping {{axis: (low, high)}}")
    unknown = [axis for axis in given if axis not in names]
    if unknown:
        raise InvalidInput(f"boundary names axis {unknown[0]!r}; the grid's axes are {', '.join(names)}")
    result: dict[str, tuple[Wall, Wall]] = {}
    for axis in names:
        pair = given.get(axis, "reflecting")
        if isinstance(pair, str):
            pair = (pair, pair)
        if len(pair) != 2:
            raise InvalidInput(f"boundary[{axis!r}]={pair!r} is not a pair (low, high)")
        low, high = _checked_word(pair[0]), _checked_word(pair[1])
        if (low == "periodic") != (high == "periodic"):
            raise InvalidInput(
                f"boundary[{axis!r}]={pair!r}: an axis is periodic on both sides or on neither"
            )
        result[axis] = (low, high)
    return result


def _checked_word(word: str) -> Wall:
    for known in WALLS:
        if word == known:
            return known
    raise InvalidInput(f"boundary={word!r} is unknown; choose one of {', '.join(WALLS)}")
