"""Where a step lands: probabilities of target cells for a source cell, as compiled columns of a matrix."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba
import numpy as np
import scipy.sparse as sps

from solvers.correlated_landing import REACH, correlated, masses
from solvers.curved_landing import curved
from solvers.errors import InvalidInput
from solvers.grid import Grid
from solvers.source_cells import Images

_LARGEST = 1e8


class Targets(NamedTuple):
    """Edges of the cells of an axis and of their images beyond the walls; the cell of each, -1 if removed."""

    edges: np.ndarray
    cells: np.ndarray

    def window(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First target, and one beyond the last, of landing points between low and high."""
        inner = self.edges[1:-1]
        return np.searchsorted(inner, low, side="right"), np.searchsorted(inner, high, side="right") + 1


ANYWHERE = Targets(np.array([-np.inf, np.inf]), np.array([0]))
"""The second axis of a one-dimensional grid."""


def images(grid: Grid, name: str, kinds: tuple[str, str], reach: float) -> Targets:
    """Targets of an axis with these walls; `reach`: how far beyond a periodic wall a step may lead."""
    edges, n = grid.edges[name], grid.shape[grid.names.index(name)]
    cells = np.arange(n)
    length = float(edges[-1] - edges[0])
    if kinds[0] == "periodic":
        turns = 1 + math.ceil(reach / length)
        shifts = length * np.arange(-turns, turns + 1)
        all_edges = np.concatenate([*(edges[:-1] + shift for shift in shifts), edges[-1:] + shifts[-1]])
        return Targets(all_edges, np.tile(cells, len(shifts)))
    below, above = (2 * edges[0] - edges[:0:-1], cells[::-1]), (2 * edges[-1] - edges[-2::-1], cells[::-1])
    if kinds[0] == "absorbing":
        below = (np.array([-np.inf]), np.array([-1]))
    if kinds[1] == "absorbing":
        above = (np.array([np.inf]), np.array([-1]))
    all_edges = np.concatenate([below[0], edges, above[0]])
    all_edges[0], all_edges[-1] = -np.inf, np.inf
    return Targets(all_edges, np.concatenate([below[1], cells, above[1]]))


class Normal(NamedTuple):
    """Landing laws at quadrature nodes (sources, nodes): normal per axis, the second given the first.

    Attributes
    ----------
    means, deviations : list of two arrays
        The second deviation is the one left when the first coordinate is known.
    regression : array or None
        Shift of the second mean per shift of the first coordinate; None if independent.
    weights : array (nodes,)
    """

    means: list[np.ndarray]
    deviations: list[np.ndarray]
    regression: np.ndarray | None
    weights: np.ndarray


class Curves(NamedTuple):
    """Landing laws of pieces of source cells: curved images, plus boxes of noise.

    Attributes
    ----------
    images : Images
        Of two components.
    noise_low, noise_width : array (n, 2)
    mass : array (n,)
    """

    images: Images
    noise_low: np.ndarray
    noise_width: np.ndarray
    mass: np.ndarray


def normal_matrix(law: Normal, targets: list[Targets], n2: int, sources: int) -> tuple[Any, np.ndarray]:
    """Columns (csc) of a Gaussian kernel, and what each column loses at absorbing walls.

    Raises
    ------
    InvalidInput
        If the matrix would be too large.
    """
    spread = list(law.deviations)
    if law.regression is not None:
        spread[1] = np.hypot(spread[1], law.regression * spread[0])
    windows: Any = [
        t.window((m - REACH * s).min(axis=1), (m + REACH * s).max(axis=1))
        for t, m, s in zip(targets, law.means, spread, strict=True)
    ]
    starts = _starts(windows)
    if law.regression is None:
        data = _independent(
            starts, windows[0][0], windows[0][1], windows[1][0], windows[1][1], targets[0].edges, targets[1].edges,
            law.means[0], law.deviations[0], law.means[1], law.deviations[1], law.weights,
        )  # fmt: skip
    else:
        width = float(np.diff(targets[0].edges[1:-1]).max())
        narrow = np.minimum(law.deviations[0], law.deviations[1] / np.maximum(np.abs(law.regression), 1e-300))
        points = 3 + math.ceil(2 * float(np.max(np.minimum(width, 2 * REACH * law.deviations[0]) / narrow)))
        if points > 40:
            raise InvalidInput(
                "the noise of the two axes is so strongly correlated that it lies along a line within a cell; use "
                "less correlation, or smaller cells"
            )
        abscissae, weights = np.polynomial.legendre.leggauss(points)
        data = correlated(
            starts, windows[0][0], windows[0][1], windows[1][0], windows[1][1], targets[0].edges, targets[1].edges,
            law.means[0], law.deviations[0], law.means[1], law.deviations[1], law.regression, law.weights,
            abscissae, weights,
        )  # fmt: skip
    return _matrix(starts, windows, targets, data, n2, sources)


def table_matrix(law: Curves, targets: list[Targets], n2: int, sources: int) -> tuple[Any, np.ndarray]:
    """Columns (csc) of a kernel with tabulated noise, and what each column loses at absorbing walls.

    Raises
    ------
    InvalidInput
        If the matrix would be too large.
    """
    images, windows = law.images, []
    for k, t in enumerate(targets):
        lowest, highest = law.noise_low[:, k].min(), (law.noise_low[:, k] + law.noise_width[:, k]).max()
        windows.append(t.window(images.low[k] + lowest, images.high[k] + highest))
    starts = _starts(windows)
    data = curved(
        starts, windows[0][0], windows[0][1], windows[1][0], windows[1][1], targets[0].edges, targets[1].edges,
        images.coefficients[0], images.coefficients[1], images.bent, law.noise_low, law.noise_width, law.mass,
        targets[1] is ANYWHERE,
    )  # fmt: skip
    return _matrix(starts, windows, targets, data, n2, sources)


def _starts(windows: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    counts = (windows[0][1] - windows[0][0]) * (windows[1][1] - windows[1][0])
    if counts.sum() > _LARGEST:
        raise InvalidInput(
            f"the matrix would hold {counts.sum():.2g} numbers; use fewer cells or a smaller step"
        )
    return np.concatenate([[0], np.cumsum(counts)])


def _matrix(
    starts: np.ndarray, windows: list[Any], targets: list[Targets], data: np.ndarray, n2: int, sources: int
) -> tuple[Any, np.ndarray]:
    rows = _rows(
        starts,
        windows[0][0],
        windows[0][1],
        windows[1][0],
        windows[1][1],
        targets[0].cells,
        targets[1].cells,
        n2,
    )
    gone = rows < 0
    loss = np.add.reduceat(np.where(gone, data, 0.0), starts[:-1])
    rows[gone], data[gone] = 0, 0.0
    matrix = sps.csc_array((data, rows, starts), shape=(sources, sources))
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix, loss


@numba.njit
def _rows(starts, first1, last1, first2, last2, cells1, cells2, n2):
    rows = np.empty(starts[-1], np.int32)
    place = 0
    for source in range(len(starts) - 1):
        for i in range(first1[source], last1[source]):
            for j in range(first2[source], last2[source]):
                gone = cells1[i] < 0 or cells2[j] < 0
                rows[place] = -1 if gone else cells1[i] * n2 + cells2[j]
                place += 1
    return rows


@numba.njit(fastmath={"contract"})
def _independent(starts, first1, last1, first2, last2, edges1, edges2, mean1, sd1, mean2, sd2, weights):
    data = np.zeros(starts[-1])
    buffer1 = np.empty(np.max(last1 - first1))
    buffer2 = np.empty(np.max(last2 - first2))
    for source in range(len(starts) - 1):
        a, b = first1[source], last1[source]
        c, d = first2[source], last2[source]
        for node in range(len(weights)):
            other = node % mean2.shape[1]
            masses(edges1, a, b, mean1[source, node], sd1[source, node], buffer1)
            masses(edges2, c, d, mean2[source, other], sd2[source, other], buffer2)
            place = starts[source]
            for i in range(b - a):
                factor = weights[node] * buffer1[i]
                if factor > 0:
                    for j in range(d - c):
                        data[place + j] += factor * buffer2[j]
                place += d - c
    return data
