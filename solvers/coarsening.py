"""A chain on blocks of cells: where the modes of a large chain on a grid are looked for first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sps

from solvers.chain import Chain, Place


@dataclass(frozen=True)
class Coarse:
    """A coarser chain and how its functions are carried to the finer one.

    Attributes
    ----------
    chain : Chain
    block : ndarray of int
        State of the coarse chain that each state of the fine one belongs to.
    """

    chain: Chain
    block: np.ndarray
    _fine: Chain

    def interpolate(self, functions: np.ndarray) -> np.ndarray:
        """Functions on the coarse states (columns) at the fine ones, linearly along each axis."""
        fine, coarse = self._fine.place, self.chain.place
        assert fine is not None
        assert coarse is not None
        result = np.empty((self._fine.size, functions.shape[1]), dtype=functions.dtype)
        for column in range(functions.shape[1]):
            values = np.full(int(np.prod(coarse.shape)), np.nan, dtype=functions.dtype)
            values[coarse.cells_of(self.chain.size)] = functions[:, column]
            values = values.reshape(coarse.shape)
            for axis, sides in enumerate(fine.shape):
                values = refined(values, axis, sides, fine.wrapped[axis])
            result[:, column] = values.ravel()[fine.cells_of(self._fine.size)]
        return result


def refined(values: np.ndarray, axis: int, sides: int, wrapped: bool) -> np.ndarray:
    """Twice as many cells along an axis; beside a missing neighbour or a wall the values go on."""
    values = np.moveaxis(values, axis, 0)
    below, above = np.roll(values, 1, axis=0), np.roll(values, -1, axis=0)
    if not wrapped:
        below[0], above[-1] = values[0], values[-1]
    result = np.empty((2 * len(values), *values.shape[1:]), dtype=values.dtype)
    for parity, beside in ((0, below), (1, above)):
        result[parity::2] = 0.75 * values + 0.25 * np.where(np.isnan(beside), values, beside)
    return np.moveaxis(result[:sides], 0, axis)


def coarsened(chain: Chain, log_masses: np.ndarray, factor: int = 2) -> Coarse:
    """Blocks of two (or `factor`) cells along each axis.

    Exchange between blocks is that of their cells over so many times the distance; the net current is theirs. For a
    smooth solution that is the same finite-volume scheme on the coarser grid.

    Parameters
    ----------
    chain : Chain
        With a place on a grid and no signed transport.
    log_masses : ndarray
        log of the reversible measure or, without one, of the slowest right vector.
    factor : int
        Functions are interpolated from blocks of two only.
    """
    place = chain.place
    assert place is not None
    shape = tuple(-(-sides // factor) for sides in place.shape)
    cell = np.zeros((), dtype=np.int64)
    for coarse, sides in zip(shape, place.shape, strict=True):
        cell = np.add.outer(cell * coarse, np.arange(sides) // factor)
    cell = cell.ravel() if place.cells is None else cell.ravel()[place.cells]
    present = np.zeros(int(np.prod(shape)), dtype=bool)
    present[cell] = True
    block = (np.cumsum(present) - 1)[cell]
    count = int(present.sum())
    # masses relative to one state of their block: no overflow
    one = np.empty(count)
    one[block] = log_masses
    with np.errstate(under="ignore"):
        relative = np.exp(np.minimum(log_masses - one[block], 600.0))
        total = np.bincount(block, relative, count)
        share = relative / total[block]
        shift = one + np.log(total)
        crossing = np.flatnonzero(block[chain.first] != block[chain.second])
        first, second = chain.first[crossing], chain.second[crossing]
        a, b = block[first], block[second]
        if chain.reversible:
            up = share[first] * chain.forward[crossing] / factor
            down = share[second] * chain.backward[crossing] / factor
        else:
            # seen from the block of `first`, and of `second`: the exchange, mean of both ways, over `factor`,
            # and half the net current
            ratio = np.exp(np.clip(shift[b] - shift[a], -600.0, 600.0))
            out = share[first] * chain.forward[crossing]
            back = share[second] * chain.backward[crossing]
            same, other = 0.5 / factor + 0.5, 0.5 - 0.5 / factor
            up = np.maximum(same * out - other * back * ratio, 0.0)
            down = np.maximum(same * back - other * out / ratio, 0.0)
        loss = np.bincount(block, share * chain.loss, count) / factor
    rows, columns = np.concatenate([a, b]), np.concatenate([b, a])
    rates = sps.csr_array((np.concatenate([up, down]), (rows, columns)), shape=(count, count))
    rates.sum_duplicates()
    against = sps.csr_array(rates.T)
    against.sort_indices()
    i = np.repeat(np.arange(count), np.diff(rates.indptr))
    upper = i < rates.indices
    weights = None
    if chain.reversible:
        weights = shift - shift.max()
    coarse = Chain(
        size=count,
        first=i[upper],
        second=rates.indices[upper].astype(np.int64),
        forward=rates.data[upper],
        backward=against.data[upper],
        loss=loss,
        log_weights=weights,
        rate_scale=chain.rate_scale,
        linear=chain.linear,
        joined=chain.joined,
        place=Place(shape, place.wrapped, np.flatnonzero(present)),
    )
    return Coarse(coarse, block, chain)
