"""P-bifurcations: parameters at which the number of modes of a stationary density changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from solvers.density_shape import density_modes, read_density
from solvers.errors import InvalidInput
from solvers.provenance import provenance
from solvers.root_search import checked_bracket

Modes = Callable[[float], xr.Dataset]
_RESOLVED = 5.0  # cells between a mode and its saddle from which their distance is trusted
# Squared distances, in units of that, that are near enough for a parabola, and that are aimed at.
_FAR, _AIM = 6.0, 1.5
_TRIES = 8
_COARSE = 1 / 32  # share of the bracket at which bisection makes way for the parabola
# The bracket ends where it is narrower than this share of the change that moves modes by a cell; so many such
# changes around the estimate it is looked for.
_SHARE, _BESIDE = 0.1, 2.0
# A grid sees modes that are two cells apart, hence four such changes from the bifurcation.
_SEEN = 4.0


def p_bifurcation(
    build: Callable[[float], Any],
    bracket: tuple[float, float],
    *,
    prominence: float = 1e-6,
    floor: float = 1e-9,
    periodic: Sequence[str] = (),
    tol: float = 1e-4,
) -> xr.Dataset:
    """The parameter at which the number of modes of the stationary density changes (a P-bifurcation).

    Parameters
    ----------
    build : callable
        ``build(parameter)`` returns what `density_modes` takes: an operator, or a density.
    bracket : tuple of float
        Two parameters with different numbers of modes; between several changes one is found.
    prominence, floor, periodic
        As for `density_modes`.
    tol : float
        Width of the final bracket, relative to the given one, unless the cells are too coarse to tell.

    Returns
    -------
    Dataset
        ``value``: the parameter. ``uncertainty``, of order h^2: how far it lies from where the modes merge on the
        grid itself, and how far the parameter moves them apart by one cell. ``count(side)``: modes at the two ends
        of the final ``bracket(side)``. ``position(component)``: where the mode appears. The attribute
        ``densities`` counts those that were computed.

    Raises
    ------
    InvalidInput
        If the bracket is unusable or both ends have the same number of modes.

    Notes
    -----
    Bisection on the number of modes, then beyond it: the squared distance of the new mode from its saddle grows
    linearly from the bifurcation, in a pitchfork as in a fold, so that a parabola through three parameters at which
    it spans at least five cells is continued to zero. The bracket then closes around that until it is a tenth as wide
    as the change that moves the modes by one cell, or has the width asked for.
    """
    if not callable(build):
        raise InvalidInput(f"build is a {type(build).__name__}; give a function of the parameter")
    low, high = checked_bracket(bracket)
    if not 0 < tol < 1:
        raise InvalidInput(f"tol={tol!r}; give a number between 0 and 1")

    seen: dict[float, xr.Dataset] = {}

    def modes(value: float) -> xr.Dataset:
        if value not in seen:
            seen[value] = density_modes(build(value), prominence=prominence, floor=floor, periodic=periodic)
        return seen[value]

    ends = [low, high]
    counts = [int(modes(value)["count"]) for value in ends]
    if counts[0] == counts[1]:
        raise InvalidInput(
            f"the density has {counts[0]} modes at both ends of the bracket {low:g}, {high:g}; give a bracket across "
            "the change"
        )
    more = int(counts[1] > counts[0])
    limit = (low, high)[more]
    _bisect(modes, ends, counts, max(tol, _COARSE) * (high - low))
    centers = read_density(build(ends[more]), ())[2]
    estimate = _continued(modes, ends, more, limit, centers)
    width = tol * (high - low)
    if estimate is not None:
        _narrow(modes, ends, counts, estimate)
        width = max(width, _SHARE * estimate[1])
    _bisect(modes, ends, counts, width)
    merged = ends[more]
    position = _newest(modes(merged))[0]
    middle = 0.5 * (ends[0] + ends[1])
    if estimate is None:  # as if the squared distance grew linearly all the way to the end
        estimate = math.inf, abs(limit - merged) / max(_apart(modes(limit), position, centers), 1.0)
    found, cell = estimate
    uncertainty = abs(found - merged) + cell + ends[1] - ends[0]
    if abs(found - merged) > _SEEN * cell:  # a parabola through something else, such as wiggles of the scheme
        found, uncertainty = middle, _SEEN * cell + ends[1] - ends[0]
    names = modes(merged).component.values
    text = {
        "value": ((), found, "1", "parameter at which the number of modes changes"),
        "uncertainty": ((), uncertainty, "1", "distance from where the modes merge on the grid"),
        "bracket": ("side", ends, "1", "parameters on either side"),
        "count": ("side", counts, "1", "number of modes"),
        "position": ("component", position, "1", "where the mode appears"),
    }
    return xr.Dataset(
        {k: (dims, values, {"units": u, "long_name": s}) for k, (dims, values, u, s) in text.items()},
        coords={
            "side": ("side", [0, 1], {"units": "1", "long_name": "low or high end of the bracket"}),
            "component": ("component", names, {"units": "1", "long_name": "component"}),
        },
        attrs=provenance(densities=len(seen)),
    )


def _newest(found: xr.Dataset, near: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Place and saddle of the mode that is about to merge: the least prominent, or the one nearest a place."""
    lower = np.flatnonzero(np.isfinite(found.saddle.values).all(axis=1))
    place, saddle = found.position.values[lower], found.saddle.values[lower]
    if near is None:
        chosen = int(np.argmin(found.prominence.values[lower]))
    else:
        chosen = int(np.argmin(np.sum((0.5 * (place + saddle) - near) ** 2, axis=1)))
    return place[chosen], saddle[chosen]


def _bisect(modes: Modes, ends: list[float], counts: list[int], width: float) -> None:
    """Narrow the bracket, in place; what is neither end's number counts as the upper end's."""
    while ends[1] - ends[0] > width:
        _replace(modes, ends, counts, 0.5 * (ends[0] + ends[1]))


def _narrow(modes: Modes, ends: list[float], counts: list[int], estimate: tuple[float, float]) -> None:
    """Try the bracket where the density has merged on the grid too, a few cells around the estimate."""
    value, cell = estimate
    for beside in (value - _BESIDE * cell, value + _BESIDE * cell):
        if ends[0] < beside < ends[1]:
            _replace(modes, ends, counts, beside)


def _replace(modes: Modes, ends: list[float], counts: list[int], value: float) -> None:
    count = int(modes(value)["count"])
    side = 0 if count == counts[0] else 1
    ends[side], counts[side] = value, count


def _continued(
    modes: Modes, ends: list[float], more: int, limit: float, centers: list[np.ndarray]
) -> tuple[float, float] | None:
    """Where the squared distance of mode and saddle vanishes, from three parameters that resolve it.

    Beside it, the change of the parameter that moves them apart by one cell. None if the distance does not behave so.
    """
    outwards, merged = (1.0 if more else -1.0), ends[more]
    position = _newest(modes(merged))[0]

    def apart(value: float) -> float:
        return _apart(modes(value), position, centers)

    root, step = 0.5 * (ends[0] + ends[1]), ends[1] - ends[0]
    for _ in range(_TRIES):
        if not 0 < 2 * step <= outwards * (limit - root):
            return None
        first, last = (apart(root + outwards * factor * step) for factor in (1.0, 2.0))
        if last <= first:
            return None
        growth = (last - first) / step
        nearest = root + outwards * (step - first / growth)
        resolved = _RESOLVED**2 <= first <= _FAR * _RESOLVED**2
        root, step = nearest, step if resolved else _AIM * _RESOLVED**2 / growth
        if resolved:
            break
    else:
        return None
    squares = [apart(root + outwards * factor * step) for factor in (1.0, 1.5, 2.0)]
    # parabola in the parameter offset u, in units of the step: the root nearest 0
    c0, c1, c2 = np.linalg.solve(np.vander([1.0, 1.5, 2.0], increasing=True), squares)
    inner = c1**2 - 4 * c0 * c2
    if c1 <= 0 or inner <= 0:
        return None
    nearest = -2 * c0 / (c1 + np.sqrt(inner))  # without cancellation, however small c2
    growth = c1 + 2 * c2 * nearest
    if abs(nearest) >= 1 or growth <= 0:
        return None
    return root + outwards * nearest * step, step / growth


def _apart(found: xr.Dataset, position: np.ndarray, centers: list[np.ndarray]) -> float:
    """Squared distance, in cells, of the mode nearest a position from its saddle."""
    place, saddle = _newest(found, position)
    width = np.array([_width_at(c, p) for c, p in zip(centers, position, strict=True)])
    return float(np.sum(((place - saddle) / width) ** 2))


def _width_at(center: np.ndarray, position: float) -> float:
    near = int(np.clip(np.searchsorted(center, position), 1, len(center) - 1))
    return float(center[near] - center[near - 1])
