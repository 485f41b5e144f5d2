"""Faces between the cells of a grid, with what a flux needs there and the rates it gives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Faces:
    """Interior faces across one axis; arrays of the grid's shape but for that axis (a face per entry).

    Attributes
    ----------
    axis : int
    first, second : ndarray of int
        Flat numbers of the cells on the low and high side.
    start, distance : ndarray
        Coordinate of the low cell's centre along the axis, and the distance between both centres.
    diffusion, lift : ndarray
        D on the face and effective drift times distance, the arguments of the flux.
    split : ndarray
        The part of D that jumps between diagonal neighbours carry, not in `diffusion`.
    forward, backward : ndarray
        Rates per unit of time.
    """

    axis: int
    first: np.ndarray
    second: np.ndarray
    start: np.ndarray
    distance: np.ndarray
    diffusion: np.ndarray
    lift: np.ndarray
    split: np.ndarray
    forward: np.ndarray
    backward: np.ndarray

    @cached_property
    def peclet(self) -> np.ndarray:
        """log(p_second / p_first) at zero current: NaN on closed faces, infinite on one-way faces."""
        diffusive = self.diffusion > 0
        ratio = self.lift / np.where(diffusive, self.diffusion, 1.0)
        one_way = np.where(self.lift == 0, np.nan, np.copysign(np.inf, self.lift))
        return np.where(diffusive, ratio, one_way)


def in_one_piece(faces: list[Faces]) -> tuple[list[Faces], tuple[np.ndarray, np.ndarray]]:
    """The same faces with their rates as parts of two arrays, and these: what joins them needs no copy."""
    ends = np.cumsum([face.forward.size for face in faces])[:-1]
    wholes = []
    for name in ("forward", "backward"):
        wholes.append(np.concatenate([getattr(face, name).ravel() for face in faces]))
        parts = np.split(wholes[-1], ends)
        faces = [
            replace(face, **{name: piece.reshape(face.forward.shape)})
            for face, piece in zip(faces, parts, strict=True)
        ]
    return faces, (wholes[0], wholes[1])


def part(values: np.ndarray, axis: int, piece: slice) -> np.ndarray:
    """A piece of an array along one axis."""
    return values[(slice(None),) * axis + (piece,)]


def along(values: np.ndarray, axis: int, d: int) -> np.ndarray:
    """A line of numbers as an array of d axes."""
    return values.reshape((1,) * axis + (-1,) + (1,) * (d - axis - 1))
