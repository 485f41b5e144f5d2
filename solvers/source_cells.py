"""Steps from the cells of a grid: where their points and pieces lead."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from solvers.curved_landing import DEGREE
from solvers.errors import InvalidInput
from solvers.grid import Grid
from solvers.map_noise import Atoms

_POINTS = np.polynomial.legendre.leggauss(DEGREE + 1)[0]
# Size, in cells, of the highest power that a polynomial for a piece of a source cell may have; the rest is a hundredth
# of it or less, and orthogonal to polynomials.
_HIGHEST = 1e-5
_MAX_PIECES = {1: 32, 2: 8}
# Change of a slope within a piece, of itself, from which rules for square roots are used: with less, its zero is ten
# widths away and four Gauss-Legendre nodes err by 20^-8. A change in cells per piece that is none.
_BENT, _FLAT = 0.2, 1e-10


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


class Images(NamedTuple):
    """Images of pieces of source cells under a map: polynomials in local coordinates u, v on [-1, 1].

    Attributes
    ----------
    coefficients : list of arrays (sources, pieces, powers of u, powers of v)
        One for each axis; in one dimension powers of u have only the first entry.
    bent : ndarray of bool (sources, pieces)
        Whether the slope of a component along a coordinate changes so much that it vanishes in the piece or near it.
    low, high : list of arrays (sources,)
        What each component keeps within.
    """

    coefficients: list[np.ndarray]
    bent: np.ndarray
    low: list[np.ndarray]
    high: list[np.ndarray]


def images_of_cells(mean_of: Callable[[tuple[np.ndarray, ...]], list[np.ndarray]], grid: Grid) -> Images:
    """Polynomials through the map at Gauss-Legendre points of each piece, so many that the highest power is small."""
    whole = _interpolated(mean_of, grid, 1)
    highest = 0.0
    for coefficients, name in zip(whole, grid.names, strict=True):
        ends = (
            (coefficients[:, :, -1, :], coefficients[:, :, :, -1])
            if grid.d == 2
            else (coefficients[..., -1],)
        )
        highest = max(highest, *(float(np.abs(end).max()) / float(grid.widths[name].min()) for end in ends))
    pieces = min(max(1, math.ceil((highest / _HIGHEST) ** (1 / DEGREE))), _MAX_PIECES[grid.d])
    parts = whole if pieces == 1 else _interpolated(mean_of, grid, pieces)
    points = np.concatenate([[-1.0], _POINTS, [1.0]])
    powers = points[:, None] ** np.arange(DEGREE + 1)
    slopes = np.arange(DEGREE + 1) * points[:, None] ** np.maximum(np.arange(DEGREE + 1) - 1, 0)
    bent, low, high = np.zeros(parts[0].shape[:2], dtype=bool), [], []
    for coefficients, name in zip(parts, grid.names, strict=True):
        values = np.einsum("ai,bj,spij->spab", powers, powers, coefficients)
        least, most = values.min(axis=(1, 2, 3)), values.max(axis=(1, 2, 3))
        slack = 0.05 * (most - least) + 1e-12 * float(np.abs(grid.edges[name]).max())
        low.append(least - slack)
        high.append(most + slack)
        for first, second in ((slopes, powers), (powers, slopes)):
            slope = np.einsum("ai,bj,spij->spab", first, second, coefficients)
            least, most = slope.min(axis=(2, 3)), slope.max(axis=(2, 3))
            change = np.maximum(_BENT * np.maximum(most, -least), _FLAT * float(grid.widths[name].min()))
            bent |= most - least > change
    return Images(parts, bent, low, high)


def _interpolated(
    mean_of: Callable[[tuple[np.ndarray, ...]], list[np.ndarray]], grid: Grid, pieces: int
) -> list[np.ndarray]:
    share = (0.5 * (_POINTS + 1)[None, :] + np.arange(pieces)[:, None]).ravel() / pieces
    lines = [
        (grid.edges[n][:-1, None] + grid.widths[n][:, None] * share[None, :]).ravel() for n in grid.names
    ]
    inverse = np.linalg.inv(_POINTS[:, None] ** np.arange(DEGREE + 1))
    result = []
    for values in mean_of(tuple(np.meshgrid(*lines, indexing="ij"))):
        if grid.d == 1:
            rows = np.zeros((grid.size, pieces, DEGREE + 1, DEGREE + 1))
            rows[:, :, 0] = values.reshape(grid.size, pieces, DEGREE + 1) @ inverse.T
        else:
            n = DEGREE + 1
            split = values.reshape(grid.shape[0], pieces, n, grid.shape[1], pieces, n)
            split = split.transpose(0, 3, 1, 4, 2, 5).reshape(grid.size, pieces**2, n, n)
            rows = inverse @ split @ inverse.T
        result.append(np.ascontiguousarray(rows))
    return result


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
