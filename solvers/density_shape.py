"""The shape of a density: number and places of its modes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numba import njit

from solvers.errors import InvalidInput
from solvers.fokker_planck import FokkerPlanck
from solvers.observables import effective_potential, stationary_density
from solvers.provenance import provenance
from solvers.transfer import TransferOperator


def density_modes(
    density: Any, *, prominence: float = 1e-3, floor: float = 1e-9, periodic: Sequence[str] = ()
) -> xr.Dataset:
    """Number and places of the modes (local maxima) of a density.

    Parameters
    ----------
    density : DataArray, FokkerPlanck or TransferOperator
        A density over its axes, with coordinates; or an operator, for its stationary density.
    prominence : float
        A mode counts if the way to any higher one leads down by at least this share of its height, so that
        neither rounding nor (with a larger value) sampling noise counts.
    floor : float
        Modes lower than this share of the highest are left out: below it a density from a sparse solve is
        rounding.
    periodic : sequence of str
        Axes that close on themselves; known for an operator.

    Returns
    -------
    Dataset
        Highest first: ``position(peak, component)``, found inside the cell by polynomials through the
        logarithms of the density around it; ``height(peak)``; ``prominence(peak)``, 1 - (density on the saddle) /
        height, 1 for the highest; ``saddle(peak, component)``, where the way to higher ground is lowest, NaN for
        the highest; ``at_wall(peak)``, whether it lies in the outermost cells. ``count``: how many.

    Raises
    ------
    InvalidInput
        If this is no density, or a threshold is out of range.

    Notes
    -----
    Peaks are paired with saddles by flooding from the top (persistence of level sets, Edelsbrunner, Letscher and
    Zomorodian, Discrete Comput. Geom. 28 (2002) 511); cells that touch at a corner are neighbours.
    """
    for name, value in (("prominence", prominence), ("floor", floor)):
        if not (isinstance(value, (int, float)) and 0 <= value < 1):
            raise InvalidInput(f"{name}={value!r}; give a share from 0 to below 1")
    level, names, centers, closed, attributes = read_density(density, periodic)
    peaks, saddles = _flooded(level, closed)
    flat = level.ravel()
    depth = np.where(saddles >= 0, -np.expm1(np.minimum(flat[saddles] - flat[peaks], 0.0)), 1.0)
    kept = (depth >= prominence) & (depth > 0) & (flat[peaks] >= flat.max() + _log(floor))
    peaks, saddles, depth = peaks[kept], saddles[kept], depth[kept]
    places = np.array([_refined(level, centers, closed, int(cell)) for cell in peaks])
    passes = np.array(
        [
            _refined(level, centers, closed, int(cell)) if cell >= 0 else np.full(len(names), np.nan)
            for cell in saddles
        ]
    )
    index = np.array(np.unravel_index(peaks, level.shape))
    last = np.array(level.shape)[:, None] - 1
    wall = np.any(((index == 0) | (index == last)) & ~np.array(closed)[:, None], axis=0)
    text = {
        "position": (("peak", "component"), places, "1", "place of the mode"),
        "height": ("peak", np.exp(flat[peaks] + attributes.pop("scale")), "1", "density at the mode's cell"),
        "prominence": ("peak", depth, "1", "relative drop on the way to higher ground"),
        "saddle": (("peak", "component"), passes, "1", "lowest point of the way to higher ground"),
        "at_wall": ("peak", wall, "1", "whether the mode lies at the edge of the grid"),
        "count": ((), len(peaks), "1", "number of modes"),
    }
    return xr.Dataset(
        {k: (dims, values, {"units": u, "long_name": s}) for k, (dims, values, u, s) in text.items()},
        coords={
            "peak": ("peak", np.arange(len(peaks)), {"units": "1", "long_name": "mode, highest first"}),
            "component": ("component", list(names), {"units": "1", "long_name": "component"}),
        },
        attrs=provenance(**attributes),
    )


# ---- reading ---------------------------------------------------------------------------------------------


def read_density(
    density: Any, periodic: Sequence[str]
) -> tuple[np.ndarray, tuple[str, ...], list[np.ndarray], list[bool], dict[str, Any]]:
    """Logarithm of the density, maximum 0, the axes, and which of them close."""
    if isinstance(density, (FokkerPlanck, TransferOperator)):
        if periodic:
            raise InvalidInput("an operator knows its periodic axes; leave out periodic")
        level = -effective_potential(density)
        periodic = [name for name, pair in density.boundary.items() if pair[0] == "periodic"]
        scale = float(np.log(stationary_density(density).values.max()))
        attributes: dict[str, Any] = {"scale": scale, "convention": density.sde.convention}
    elif isinstance(density, xr.DataArray):
        values = np.asarray(density.values, dtype=float)
        if density.ndim == 0 or min(values.shape) < 3:
            raise InvalidInput(
                f"density has shape {values.shape}; give at least three cells along every axis"
            )
        if not np.isfinite(values).all() or values.min() < 0 or values.max() <= 0:
            raise InvalidInput("density is not a density; give finite values >= 0, some of them positive")
        unknown = [name for name in (*density.dims, *periodic) if name not in density.coords]
        if unknown:
            raise InvalidInput(f"density has no coordinate {unknown[0]!r}; give one to every axis")
        scale = float(np.log(values.max()))
        level = density.copy(
            data=np.where(values > 0, np.log(np.where(values > 0, values, 1.0)) - scale, -np.inf)
        )
        attributes = {"scale": scale}
    else:
        raise InvalidInput(
            f"density is a {type(density).__name__}; pass a DataArray over the axes, a FokkerPlanck or a "
            "TransferOperator"
        )
    names = tuple(str(name) for name in level.dims)
    centers = [np.asarray(level.coords[name].values, dtype=float) for name in names]
    return np.asarray(level.values), names, centers, [name in periodic for name in names], attributes


def _log(share: float) -> float:
    return math.log(share) if share > 0 else -math.inf


# ---- peaks and saddles -----------------------------------------------------------------------------------


def _flooded(level: np.ndarray, closed: list[bool]) -> tuple[np.ndarray, np.ndarray]:
    """Cells of all peaks, highest first, and of the saddles where each meets a higher one (-1: never)."""
    flat = level.ravel()
    order = np.argsort(-flat, kind="stable")
    order = order[: int(np.sum(flat > -np.inf))]
    steps = np.array([s for s in itertools.product((-1, 0, 1), repeat=level.ndim) if any(s)])
    shape = np.array(level.shape)
    saddle = _flood(order, shape, steps, np.array(closed))
    peaks = order[saddle[order] != -2]
    return peaks, saddle[peaks]


@njit
def _flood(order, shape, steps, closed):
    size, d = 1, len(shape)
    for n in shape:
        size *= n
    parent = np.full(size, -1, np.int64)  # union-find; the root is the component's peak
    rank = np.full(size, size, np.int64)  # place in the order: lower is higher
    saddle = np.full(size, -2, np.int64)  # -2: no peak, -1: never met a higher one
    index = np.zeros(d, np.int64)
    for place in range(len(order)):
        cell = order[place]
        rest = cell
        for axis in range(d - 1, -1, -1):
            index[axis] = rest % shape[axis]
            rest //= shape[axis]
        best = -1
        for s in range(len(steps)):
            other, inside = 0, True
            for axis in range(d):
                i = index[axis] + steps[s, axis]
                if closed[axis]:
                    i = (i + shape[axis]) % shape[axis]
                elif i < 0 or i >= shape[axis]:
                    inside = False
                    break
                other = other * shape[axis] + i
            if not inside or parent[other] < 0:
                continue
            root = other
            while parent[root] != root:
                parent[root] = parent[parent[root]]
                root = parent[root]
            if best < 0:
                best = root
            elif root != best:
                low, high = (root, best) if rank[root] > rank[best] else (best, root)
                saddle[low] = cell
                parent[low] = high
                best = high
        if best < 0:
            best, saddle[cell], rank[cell] = cell, -1, place
        parent[cell] = best
    return saddle


def _refined(level: np.ndarray, centers: list[np.ndarray], closed: list[bool], cell: int) -> np.ndarray:
    """The stationary point of polynomials through a cell's neighbours, no further than the nearest of them.

    Along each axis degree 4 through five cells (2 through three where there are not more), and a bilinear term
    for each pair of axes, solved by Newton's method.
    """
    index = np.unravel_index(cell, level.shape)
    place = np.array([c[i] for c, i in zip(centers, index, strict=True)])
    stencils = {
        axis: stencil
        for axis in range(level.ndim)
        if (stencil := _stencil(centers[axis], int(index[axis]), closed[axis])) is not None
    }
    slopes, reach, mixed = {}, {}, np.zeros((level.ndim, level.ndim))
    for axis, (cells, offsets) in stencils.items():
        values = level[(*index[:axis], cells, *index[axis + 1 :])] - level[index]
        if not np.isfinite(values).all():
            return place
        scale = float(np.abs(offsets).max())
        fit = np.polynomial.Polynomial(np.linalg.solve(np.vander(offsets / scale, increasing=True), values))
        slopes[axis] = fit.deriv(), scale
        nearest = np.sort(np.abs(offsets))[1:3]
        reach[axis] = float(nearest.max())
    for a, b in itertools.combinations(stencils, 2):
        mixed[a, b] = mixed[b, a] = _mixed_derivative(level, index, a, b, stencils)
    if not np.isfinite(mixed).all() or not stencils:
        return place
    axes = list(stencils)
    part = mixed[np.ix_(axes, axes)]
    limit, offset = np.array([reach[a] for a in axes]), np.zeros(len(axes))
    for _ in range(8):
        slope = part @ offset
        curvature = part.copy()
        for row, axis in enumerate(axes):
            derivative, scale = slopes[axis]
            slope[row] += derivative(offset[row] / scale) / scale
            curvature[row, row] += derivative.deriv()(offset[row] / scale) / scale**2
        size = np.abs(np.linalg.eigvalsh(curvature))
        if size.min() <= 1e-9 * size.max():
            break
        offset = np.clip(offset - np.linalg.solve(curvature, slope), -limit, limit)
    place[axes] += offset
    return place


def _stencil(center: np.ndarray, i: int, closed: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """Numbers of five (or three) cells around one, and their distances from it; None at a wall."""
    n = len(center)
    # across the seam: half of either end cell, whose widths the neighbours tell
    period = center[-1] - center[0] + 0.5 * (center[1] - center[0] + center[-1] - center[-2])
    for half in (2, 1):
        cells = np.arange(i - half, i + half + 1)
        if (closed and n > 2 * half) or (cells[0] >= 0 and cells[-1] < n):
            turns, wrapped = np.divmod(cells, n)
            return wrapped, center[wrapped] + turns * period - center[i]
    return None


def _mixed_derivative(level: np.ndarray, index: Any, a: int, b: int, stencils: dict[int, Any]) -> float:
    span, corners = 1.0, []
    ends = []
    for axis in (a, b):
        cells, offsets = stencils[axis]
        middle = len(cells) // 2
        ends.append((cells[middle - 1], cells[middle + 1]))
        span *= offsets[middle + 1] - offsets[middle - 1]
    for i, j in itertools.product(*ends):
        at = list(index)
        at[a], at[b] = i, j
        corners.append(level[tuple(at)])
    if not np.isfinite(corners).all():
        return 0.0
    return float(corners[0] - corners[1] - corners[2] + corners[3]) / span
