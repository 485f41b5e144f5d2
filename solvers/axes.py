"""Edges of one grid axis: equal cells, equal ratios, or cells that shrink smoothly around given points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from solvers.errors import InvalidInput

_INVERSIONS = 60


def uniform_axis(low: float, high: float, cells: int) -> np.ndarray:
    """Edges of equal cells.

    Parameters
    ----------
    low, high : float
        Finite, low < high.
    cells : int
        At least 2.

    Returns
    -------
    ndarray of shape (cells + 1,)

    Raises
    ------
    InvalidInput
        If low >= high, or cells is not an integer >= 2.
    """
    low, high, cells = _checked(low, high, cells)
    # an edge meant to be 0 must be 0: noise may vanish there, and then nothing crosses it
    return _zeroed(np.linspace(low, high, cells + 1))


def log_axis(low: float, high: float, cells: int) -> np.ndarray:
    """Edges in a constant ratio, for quantities that span decades.

    The error of the operator is second order in log(high / low) / cells.

    Parameters
    ----------
    low, high : float
        Of one sign, neither of them 0; low < high.
    cells : int
        At least 2.

    Returns
    -------
    ndarray of shape (cells + 1,)

    Raises
    ------
    InvalidInput
        As for `uniform_axis`, and if 0 lies in [low, high].

    Examples
    --------
    >>> log_axis(0.01, 100, 4)
    array([1.e-02, 1.e-01, 1.e+00, 1.e+01, 1.e+02])
    """
    low, high, cells = _checked(low, high, cells)
    if low * high <= 0:
        raise InvalidInput(
            f"a logarithmic axis from {low:g} to {high:g} would contain 0; start it at a small number of the "
            "sign you need, or use a stretched axis"
        )
    edges = np.geomspace(low, high, cells + 1)
    edges[0], edges[-1] = low, high
    return edges


def stretched_axis(
    low: float,
    high: float,
    cells: int,
    *,
    around: float | Sequence[float],
    width: float | None = None,
    ratio: float = 10.0,
) -> np.ndarray:
    """Edges whose spacing shrinks around given points, which become edges themselves.

    The number of cells per length is proportional to 1 + (ratio - 1) sum_c 1 / (1 + ((x - c) / width)^2), so
    cells at a lone point c are about `ratio` times smaller than far away, and spacing varies smoothly: the
    error of the operator stays second order as the number of cells grows.

    Parameters
    ----------
    low, high : float
        Finite, low < high.
    cells : int
        At least 2, and one on each side of every point.
    around : float or sequence of float
        Points c in [low, high].
    width : float, optional
        Half width of the fine region around each point; a tenth of the axis by default.
    ratio : float
        Finest to coarsest number of cells per length, >= 1.

    Returns
    -------
    ndarray of shape (cells + 1,)

    Raises
    ------
    InvalidInput
        As for `uniform_axis`, and for points outside the axis, width <= 0 or ratio < 1.

    Examples
    --------
    >>> stretched_axis(-1, 1, 4, around=0, ratio=9, width=0.1).round(3)
    array([-1.   , -0.201,  0.   ,  0.201,  1.   ])
    """
    low, high, cells = _checked(low, high, cells)
    points = np.unique(_numbers("around", around))
    if points.size == 0 or points[0] < low or points[-1] > high:
        raise InvalidInput(f"around={around!r}; give at least one point between {low:g} and {high:g}")
    half = 0.1 * (high - low) if width is None else float(width)
    if not (np.isfinite(half) and half > 0):
        raise InvalidInput(f"width={width!r}; give the half width of the fine region, a finite number > 0")
    if not (np.isfinite(ratio) and ratio >= 1):
        raise InvalidInput(f"ratio={ratio!r}; give a finite number >= 1")

    def count(x: np.ndarray) -> np.ndarray:
        """The primitive of the number of cells per length."""
        return x + (ratio - 1.0) * half * np.arctan((x[..., None] - points) / half).sum(axis=-1)

    # each stretch between points gets a whole number of cells: that changes the spacing by one part in as many
    stops = np.unique(np.concatenate([[low], points, [high]]))
    levels = count(stops)
    share = np.rint((levels - levels[0]) / (levels[-1] - levels[0]) * cells).astype(int)
    numbers = np.diff(share)
    if numbers.min() < 1:
        raise InvalidInput(f"cells={cells} leaves no cell between two of the points; use more cells")
    targets = np.concatenate(
        [np.linspace(levels[k], levels[k + 1], n + 1)[:-1] for k, n in enumerate(numbers)]
    )
    edges = _zeroed(np.append(_inverse(count, targets, low, high), high))
    edges[share] = stops
    return edges


def read_axis(name: str, value: Any, kind: Any) -> np.ndarray:
    """The edges of an axis given as a triple (low, high, cells) for `kind`, or as an array of edges."""
    if isinstance(value, np.ndarray):
        return value
    try:
        low, high, cells = value
        low, high = float(low), float(high)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"axis {name}={value!r} is not a triple (low, high, cells)") from error
    try:
        return kind(low, high, cells)
    except InvalidInput as error:
        raise InvalidInput(f"axis {name}: {error}") from error


def _inverse(count: Any, targets: np.ndarray, low: float, high: float) -> np.ndarray:
    """Solve count(x) = target by bisection, which cannot fail: count increases."""
    below, above = np.full(targets.shape, low), np.full(targets.shape, high)
    for _ in range(_INVERSIONS):
        middle = 0.5 * (below + above)
        under = count(middle) < targets
        below, above = np.where(under, middle, below), np.where(under, above, middle)
    return 0.5 * (below + above)


def _zeroed(edges: np.ndarray) -> np.ndarray:
    return np.where(np.abs(edges) < 1e-13 * (edges[-1] - edges[0]), 0.0, edges)


def _numbers(what: str, value: Any) -> np.ndarray:
    try:
        return np.atleast_1d(np.asarray(value, dtype=float)).ravel()
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{what}={value!r}; give numbers") from error


def _checked(low: Any, high: Any, cells: Any) -> tuple[float, float, int]:
    if not (isinstance(cells, (int, np.integer)) and not isinstance(cells, bool) and cells >= 2):
        raise InvalidInput(f"cells={cells!r}; give an integer >= 2")
    try:
        low, high = float(low), float(high)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"an axis from {low!r} to {high!r}; give finite low < high") from error
    if not (np.isfinite([low, high]).all() and low < high):
        raise InvalidInput(f"an axis goes from {low} to {high}; give finite low < high")
    return low, high, int(cells)
