"""Points in bundles, each of about half a second of work: what a worker is sent, and loses if it dies."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from eos_sde.store.layout import Layout

BUNDLE_SECONDS = 0.5
"""The work of a bundle, as far as the points before it tell."""
LONGEST_SECONDS = 2 * BUNDLE_SECONDS
"""A worker begins no point of a bundle after so long, and gives the rest back."""
_MOST_POINTS = 20_000
_MOST_BYTES = 1 << 23
_GROWTH = 4


class Pace:
    """How many points make a bundle of about half a second, from what finished ones took.

    The scheduler's work for a task, some milliseconds, is shared by its points; and no more than about so much is lost
    when a worker dies.

    Parameters
    ----------
    point_bytes : int
        Of a point's result; a bundle's results keep below 8 MiB.
    """

    def __init__(self, point_bytes: int) -> None:
        self._most = max(1, min(_MOST_POINTS, _MOST_BYTES // max(1, point_bytes)))
        self._size, self.seconds = 1, 0.0
        self.points = 0

    @property
    def size(self) -> int:
        """Points in the next bundle."""
        return self._size

    def learn(self, points: int, seconds: float) -> None:
        """A bundle of so many points took so long."""
        self.points, self.seconds = self.points + points, self.seconds + seconds
        wanted = BUNDLE_SECONDS * points / max(seconds, 1e-9)
        self._size = int(max(1, min(wanted, _GROWTH * max(self._size, points), self._most)))


class Bundles:
    """Pending points in bundles of the size that the pace says; along a line, all points of one line in each.

    Parameters
    ----------
    pending : iterator of ndarray of int64
        Numbers of points.
    pace : Pace
    layout : Layout
    line : str, optional
        An axis whose lines stay whole.
    """

    def __init__(
        self, pending: Iterator[NDArray[np.int64]], pace: Pace, layout: Layout, line: str | None = None
    ) -> None:
        self._whole = line is not None
        self._parts = (
            pending
            if line is None
            else (one for points in pending for one in lines_through(points, layout, line))
        )
        self._pace, self._ready = pace, deque[NDArray[np.int64]]()

    def __iter__(self) -> Bundles:
        return self

    def __next__(self) -> NDArray[np.int64]:
        points = self._ready.popleft() if self._ready else next(self._parts)
        if self._whole:
            return points
        size = self._pace.size
        if len(points) > size:
            self._ready.appendleft(points[size:])
        return points[:size]

    def give_back(self, points: NDArray[np.int64]) -> None:
        """Points that a worker left are the next to be taken."""
        if len(points):
            self._ready.appendleft(points)


def lines_through(points: NDArray[np.int64], layout: Layout, line: str) -> Iterator[NDArray[np.int64]]:
    """The whole lines that any of the points is on."""
    axis = layout.dims.index(line)
    places = np.array(np.unravel_index(points, layout.shape))
    places[axis] = 0
    for start in np.unique(np.ravel_multi_index(tuple(places), layout.shape)):
        at = [np.full(layout.shape[axis], place) for place in np.unravel_index(start, layout.shape)]
        at[axis] = np.arange(layout.shape[axis])
        yield np.asarray(np.ravel_multi_index(tuple(at), layout.shape), np.int64)
