"""A Markov chain in continuous time as pairs of rates: what is left of a diffusion once it is on a grid."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import scipy.sparse as sps
from scipy.sparse import csgraph

from solvers import chain_kernels

_STARTS = 20  # sums of weights begin anew where the last ones had their maximum, at most so often


@dataclass(frozen=True)
class Place:
    """Where the states of a chain are on a grid.

    Attributes
    ----------
    shape : tuple of int
        Cells per axis; all exchange is between neighbours, diagonal ones included.
    wrapped : tuple of bool
        Whether the first and last cell along an axis are neighbours.
    cells : ndarray of int or None
        Flat number of each state's cell, increasing; None if every cell is a state.
    """

    shape: tuple[int, ...]
    wrapped: tuple[bool, ...]
    cells: np.ndarray | None = None

    def cells_of(self, size: int) -> np.ndarray:
        """Flat cell numbers of all states."""
        return np.arange(size) if self.cells is None else self.cells

    def kept(self, kept: np.ndarray) -> Place:
        """The place of the states in a boolean mask."""
        cells = np.flatnonzero(kept) if self.cells is None else self.cells[kept]
        return Place(self.shape, self.wrapped, cells)


@dataclass(frozen=True)
class Chain:
    """Rates between n states.

    Attributes
    ----------
    size : int
        n.
    first, second : ndarray of int
        The two states of each connected pair.
    forward, backward : ndarray
        Rates first -> second and second -> first, per unit of time.
    loss : ndarray of shape (n,)
        Rate at which each state is removed (absorbing walls, targets).
    log_weights : ndarray of shape (n,) or None
        log of the reversible measure, maximum 0: weight_i forward = weight_j backward on every pair. None
        if there is none.
    rate_scale : float
        A typical slow rate (diffusion across the whole grid), to place spectral shifts.
    linear : bool
        Whether the states form one line, so that the generator is tridiagonal.
    joined : bool
        Whether the weights of all states are tied together, by pairs whose rates may underflow to zero.
    widths : tuple of ndarray
        Cell widths per axis, where the states are cells of a grid and all pairs are faces between them.
    extra : sparse array or None
        Transport that is not a set of rates (signed cross terms); columns sum to zero.
    place : Place or None
        Where the states are on a grid.
    """

    size: int
    first: np.ndarray
    second: np.ndarray
    forward: np.ndarray
    backward: np.ndarray
    loss: np.ndarray
    log_weights: np.ndarray | None
    rate_scale: float
    linear: bool = False
    joined: bool = True
    widths: tuple[np.ndarray, ...] = ()
    extra: sps.csr_array | None = field(default=None)
    place: Place | None = None

    @property
    def cells(self) -> np.ndarray | None:
        """Flat cell numbers of the states on their grid; None for all cells in order, or without a grid."""
        return None if self.place is None else self.place.cells

    @cached_property
    def outflow(self) -> np.ndarray:
        """Total rate of leaving each state."""
        return chain_kernels.outflow(self.first, self.second, self.forward, self.backward, self.loss)

    @cached_property
    def generator(self) -> sps.csr_array:
        """L with dm/dt = L m: L[i, j] is the rate from j to i; column j sums to -loss[j]."""
        matrix = self._compressed(self.backward, self.forward, -self.outflow)
        if self.extra is not None:
            matrix = sps.csr_array(matrix + self.extra)
            matrix.sort_indices()
        return matrix

    def matrix(self, kind: str, shift: float) -> sps.csr_array:
        """Shift - A for the rates alone: A is L^T ("backward"), or W^-1/2 L W^1/2 ("symmetrised").

        The symmetrised generator comes from the rates, so that tiny weights neither underflow nor overflow.
        """
        if kind == "backward":
            return self._compressed(-self.forward, -self.backward, shift + self.outflow)
        coupling = -(np.sqrt(self.forward) * np.sqrt(self.backward))
        return self._compressed(coupling, coupling, shift + self.outflow)

    def _compressed(self, above: np.ndarray, below: np.ndarray, diagonal: np.ndarray) -> sps.csr_array:
        starts, columns, values = chain_kernels.compressed_rows(
            self.first, self.second, above, below, diagonal
        )
        return sps.csr_array((values, columns, starts), shape=(self.size, self.size))

    @property
    def reversible(self) -> bool:
        """Whether detailed balance holds for some measure."""
        return self.log_weights is not None

    @cached_property
    def closed_classes(self) -> list[np.ndarray]:
        """Sets of states that communicate and are never left: one zero eigenvalue each."""
        if len(self.first) and self.forward.min() > 0 and self.backward.min() > 0 and self.extra is None:
            part = chain_kernels.parts(self.size, self.first, self.second)
            leaves = np.zeros(self.size, dtype=bool)
            leaves[part[self.loss > 0]] = True
            roots = np.flatnonzero(part == np.arange(self.size))
            if len(roots) == 1:
                return [] if leaves[0] else [np.arange(self.size)]
            return [np.flatnonzero(part == root) for root in roots if not leaves[root]]
        graph = self.generator.copy()
        graph.eliminate_zeros()  # a stored zero would count as a connection
        count, label = csgraph.connected_components(graph, directed=True, connection="strong")
        if count == 1:
            return [] if np.any(self.loss > 0) else [np.arange(self.size)]
        leaves = np.zeros(count, dtype=bool)
        leaves[label[self.loss > 0]] = True
        crossing = label[self.first] != label[self.second]
        leaves[label[self.first[crossing & (self.forward > 0)]]] = True
        leaves[label[self.second[crossing & (self.backward > 0)]]] = True
        return [np.flatnonzero(label == c) for c in range(count) if not leaves[c]]

    def half_difference(self, columns: np.ndarray) -> np.ndarray:
        """E with E^T E = -S + diag(loss) for the symmetrised generator S = W^-1/2 L W^1/2 (reversible only).

        Row of a pair: sqrt(forward) psi_first - sqrt(backward) psi_second. The quadratic form |E psi|^2 is
        a sum of squares without cancellation, so it keeps the relative accuracy of tiny eigenvalues.
        """
        a, b = np.sqrt(self.forward), np.sqrt(self.backward)
        return a[:, None] * columns[self.first] - b[:, None] * columns[self.second]

    def keep(self, kept: np.ndarray, extra_loss: np.ndarray) -> Chain:
        """The chain killed outside the boolean mask `kept`.

        Parameters
        ----------
        kept : ndarray of bool, shape (n,)
        extra_loss : ndarray of shape (n,)
            Rates into the removed states, used where kept.
        """
        number = np.cumsum(kept) - 1
        inside = kept[self.first] & kept[self.second]
        weights = None
        if self.log_weights is not None:
            weights = self.log_weights[kept] - self.log_weights[kept].max()
        extra = None if self.extra is None else sps.csr_array(self.extra[kept][:, kept])
        return Chain(
            size=int(kept.sum()),
            first=number[self.first[inside]],
            second=number[self.second[inside]],
            forward=self.forward[inside],
            backward=self.backward[inside],
            loss=(self.loss + extra_loss)[kept],
            log_weights=weights,
            rate_scale=self.rate_scale,
            linear=self.linear,
            joined=self.joined,
            widths=self.widths,
            extra=extra,
            place=None if self.place is None else self.place.kept(kept),
        )


def reversible_weights(
    shape: tuple[int, ...], faces: list[tuple[np.ndarray, np.ndarray, np.ndarray]], tolerance: float = 1e-9
) -> np.ndarray | None:
    """Log density of the reversible measure, or None (Kolmogorov's criterion on every loop).

    Parameters
    ----------
    shape : tuple of int
        Cells per axis.
    faces : list of (first, second, lift)
        Per axis, arrays of the grid's shape but for that axis, which has one entry per face (the interior
        ones first): flat cell numbers on both sides and log(density_second / density_first) at zero current;
        NaN on a face that nothing crosses, infinite on a one-way face.
    tolerance : float
        Largest mismatch of the logarithms that counts as rounding.

    Returns
    -------
    ndarray or None
        Shape `shape`, maximum 0.
    """
    if any(np.isinf(lift).any() for _, _, lift in faces):
        return None
    first, second, lift = (np.concatenate([face[k].ravel() for face in faces]) for k in range(3))
    closed = np.isnan(lift)
    if closed.any():
        weights = _weights_by_search(int(np.prod(shape)), first[~closed], second[~closed], lift[~closed])
        passed = np.full(weights.shape, float(np.ptp(weights)))
    else:
        weights, passed = _weights_by_sums(shape, [lift for _, _, lift in faces])
    mismatch = np.abs(weights[second] - weights[first] - lift)
    # partial sums of N terms round to about eps * sqrt(N) times the largest of them
    allowed = tolerance * np.maximum(1.0, 1e-3 * np.maximum(passed[first], passed[second]))
    if np.any(mismatch[~closed] > allowed[~closed]):
        return None
    return (weights - weights.max()).reshape(shape)


def _weights_by_sums(shape: tuple[int, ...], lifts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Sum from the cell of largest weight, along axis 0, from there along axis 1, and so on.

    From a far corner, where weights can be exp(-1e20), rounding would spoil those that matter. Returned with the
    largest sum passed on the way to each cell.
    """
    start: tuple[int, ...] = (0,) * len(shape)
    weights, passed = _summed_from(start, shape, lifts)
    for _ in range(_STARTS):
        peak = tuple(int(i) for i in np.unravel_index(int(np.argmax(weights)), shape))
        if peak == start:
            break
        start = peak
        weights, passed = _summed_from(start, shape, lifts)
    return weights.ravel(), passed.ravel()


def _summed_from(
    start: tuple[int, ...], shape: tuple[int, ...], lifts: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    weights, passed = np.zeros(shape), np.zeros(shape)
    for axis, lift in enumerate(lifts):
        at, later = start[axis], len(shape) - axis - 1
        line = lift[(slice(None),) * axis + (slice(shape[axis] - 1), *start[axis + 1 :])]
        up = np.cumsum(line[..., at:], axis=-1)
        down = -np.cumsum(line[..., :at][..., ::-1], axis=-1)[..., ::-1]
        sums = np.concatenate([down, np.zeros((*line.shape[:-1], 1)), up], axis=-1)
        weights += sums.reshape(sums.shape + (1,) * later)
        size = np.abs(weights[(..., *start[axis + 1 :])])
        size[..., at:] = np.maximum.accumulate(size[..., at:], axis=-1)
        size[..., at::-1] = np.maximum.accumulate(size[..., at::-1], axis=-1)
        passed = np.maximum(passed, size.reshape(sums.shape + (1,) * later))
    return weights, passed


def _weights_by_search(size: int, first: np.ndarray, second: np.ndarray, lift: np.ndarray) -> np.ndarray:
    """The same along a spanning tree of each connected part, for grids with closed faces."""
    graph = sps.csr_array((np.ones(len(first)), (first, second)), shape=(size, size))
    count, label = csgraph.connected_components(graph, directed=False)
    step = dict(zip(zip(first.tolist(), second.tolist(), strict=True), lift.tolist(), strict=True))
    weights = np.zeros(size)
    for component in range(count):
        root = int(np.flatnonzero(label == component)[0])
        order, parent = csgraph.breadth_first_order(graph, root, directed=False)
        for cell in order[1:].tolist():
            before = int(parent[cell])
            known = step.get((before, cell))
            weights[cell] = weights[before] + (known if known is not None else -step[cell, before])
    return weights
