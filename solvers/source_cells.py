"""Steps from the cells of a grid: where their points and pieces lead."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from solvers.errors import InvalidInput
from solvers.grid import Grid
from solvers.map_noise import Atoms

_STRAIGHT = 1e-4  # distance, in cells, that a map may keep from its chords within a piece of a source cell
_MAX_PIECES = {1: 32, 2: 8}
_INSET = 1e-9  # of a cell


class Law(NamedTuple):
    """Where a step leads from given coordinates: mean, and deviations and their regression unless tabulated."""

    move: Callable[[tuple[np.ndarray, ...]], tuple[list[np.ndarray], list[np.ndarray], np.ndarray | None]]
    atoms: Atoms | None


@dataclass(frozen=True)
class NoisyMap:
    """What a transfer operator made by `TransferOperator.of_map` was made from.

    Attributes
    ----------
    map, noise
        As given.
    convention : None
        A discrete map needs none.
    """

    map: Callable[..., Any]
    noise: Any
    convention: None = None


def pieces_of_cells(law: Law, grid: Grid) -> int:
    """Pieces of a source cell, per axis, on which chords replace the map."""
    mean = law.move(inner_points(grid, 2))[0]
    bend, mixed = 0.0, False
    for values, name in zip(mean, grid.names, strict=True):
        corners = by_cell(values, grid, 3).reshape(grid.size, *(3,) * grid.d)
        width = float(grid.widths[name].min())
        moves = []
        for k in range(1, grid.d + 1):
            bend = max(bend, float(np.abs(np.diff(corners, 2, axis=k)).max()) / (2 * width))
            moves.append(np.abs(np.diff(corners, axis=k)).max() / width)
        mixed |= grid.d == 2 and min(moves) > _STRAIGHT
    wanted = max(math.ceil(math.sqrt(bend / _STRAIGHT)), 4 if mixed else 1)
    return min(wanted, _MAX_PIECES[grid.d])


def inner_points(grid: Grid, pieces: int) -> tuple[np.ndarray, ...]:
    """Ends of equal pieces of every cell, those on edges moved inwards: jumps of a map there have two sides."""
    share = np.linspace(0, 1, pieces + 1)
    share[0], share[-1] = _INSET, 1 - _INSET
    lines = [
        (grid.edges[n][:-1, None] + grid.widths[n][:, None] * share[None, :]).ravel() for n in grid.names
    ]
    return tuple(np.meshgrid(*lines, indexing="ij"))


def rectangles(values: np.ndarray, grid: Grid, pieces: int) -> tuple[np.ndarray, np.ndarray]:
    """Middle and width of the image of each piece along one axis, from the map at `inner_points`.

    The width is that of a uniform law with the variance of the piece's image under its linear part.
    """
    corners = by_cell(values, grid, pieces + 1).reshape(grid.size, *(pieces + 1,) * grid.d)
    middle, square = corners, np.zeros(())
    for k in range(1, grid.d + 1):
        move = np.diff(corners, axis=k)
        for other in range(1, grid.d + 1):
            if other != k:
                move = 0.5 * (lower(move, other) + upper(move, other))
        square = square + move**2
        middle = 0.5 * (lower(middle, k) + upper(middle, k))
    return middle.reshape(grid.size, -1), np.sqrt(square).reshape(grid.size, -1)


def by_cell(values: np.ndarray, grid: Grid, nodes: int) -> np.ndarray:
    """Values on a product of lines with `nodes` points in each cell, as (cells, points of a cell)."""
    split = [size for n in grid.shape for size in (n, nodes)]
    order = [*range(0, 2 * grid.d, 2), *range(1, 2 * grid.d, 2)]
    return np.ascontiguousarray(values.reshape(split).transpose(order).reshape(grid.size, -1))


def conditional(covariance: Sequence[Sequence[Any]]) -> tuple[list[np.ndarray], np.ndarray | None]:
    """Deviation of the first component, of the second given the first, and its regression (None if 0)."""
    first = np.sqrt(covariance[0][0])
    if len(covariance) == 1:
        return [first], None
    if not np.any(covariance[0][1]):
        return [first, np.sqrt(covariance[1][1])], None
    regression = covariance[0][1] / np.where(covariance[0][0] > 0, covariance[0][0], 1.0)
    rest = covariance[1][1] - regression * covariance[0][1]
    return [first, np.sqrt(np.maximum(rest, 0.0))], regression


def evaluated(function: Callable[..., Any], coords: tuple[np.ndarray, ...], what: str) -> list[np.ndarray]:
    """Components of a function of the coordinates, of their shape.

    Raises
    ------
    InvalidInput
        If it returns anything else.
    """
    result = function(*coords)
    parts = list(result) if isinstance(result, (tuple, list)) else [result]
    if len(parts) != len(coords):
        raise InvalidInput(
            f"{what} returns {len(parts)} components on a grid of {len(coords)} axes; return one each"
        )
    try:
        return [np.broadcast_to(np.asarray(part, dtype=float), coords[0].shape) for part in parts]
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"{what} does not return numbers of the shape of its arguments ({error}); write it for arrays"
        ) from error


def lower(values: np.ndarray, axis: int) -> np.ndarray:
    """All but the last along an axis."""
    return values[(slice(None),) * axis + (slice(None, -1),)]


def upper(values: np.ndarray, axis: int) -> np.ndarray:
    """All but the first along an axis."""
    return values[(slice(None),) * axis + (slice(1, None),)]
