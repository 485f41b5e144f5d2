"""Rates of a chain on a lattice of cells, axis by axis."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from solvers.chain import Chain, Place


@dataclass
class Rates:
    """Rates of a chain on a lattice of three axes (missing ones have one cell).

    Attributes
    ----------
    up, down : list of ndarray
        Per axis, rates to the next cell along it and back, kept at the lower cell.
    loss : ndarray
    alive : ndarray of bool, or None
        Cells that belong to the chain; None for all.
    widths : list of ndarray
        Cell widths per axis.
    log_weights : ndarray, or None
        log of weights near those of the stationary distribution (without losses), for balanced operators.
    """

    up: list[np.ndarray]
    down: list[np.ndarray]
    loss: np.ndarray
    alive: np.ndarray | None
    widths: list[np.ndarray]
    log_weights: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Cells per axis."""
        return self.loss.shape

    def outflow(self, *, lossless: bool = False) -> np.ndarray:
        """Total rate of leaving each cell; 1 where there is no chain."""
        total = np.zeros_like(self.loss) if lossless else self.loss.copy()
        for axis in range(3):
            total += self.up[axis]
            total += np.roll(self.down[axis], 1, axis) if self.shape[axis] > 1 else 0.0
        if self.alive is not None:
            total[~self.alive] = 1.0
        return total


def has_lattice(chain: Chain) -> bool:
    """Whether the chain's pairs are the faces of a grid of at most three axes."""
    return 0 < len(chain.widths) <= 3 and chain.extra is None


def rates_of(chain: Chain) -> Rates:
    """The chain's rates, axis by axis, on the lattice it comes from."""
    assert has_lattice(chain)
    widths = [np.ones(1)] * (3 - len(chain.widths)) + [np.asarray(w) for w in chain.widths]
    shape = tuple(len(w) for w in widths)
    size = math.prod(shape)
    up = [np.zeros(size) for _ in range(3)]
    down = [np.zeros(size) for _ in range(3)]
    first, second = chain.first, chain.second
    if chain.cells is not None:
        first, second = chain.cells[first], chain.cells[second]
    step = second - first
    for axis in range(3):
        if shape[axis] == 1:
            continue
        stride = math.prod(shape[axis + 1 :])
        at = (step == stride) | (step == -(shape[axis] - 1) * stride)
        low = first[at]
        up[axis][low], down[axis][low] = chain.forward[at], chain.backward[at]
    loss, alive = chain.loss, None
    if chain.cells is not None:
        loss, alive = np.zeros(size), np.zeros(size, dtype=bool)
        loss[chain.cells], alive[chain.cells] = chain.loss, True
        alive = alive.reshape(shape)
    return Rates(
        [u.reshape(shape) for u in up], [d.reshape(shape) for d in down], loss.reshape(shape), alive, widths
    )


def chain_of(rates: Rates, rate_scale: float) -> Chain:
    """The chain with these rates."""
    shape = rates.shape
    numbers = np.arange(rates.loss.size).reshape(shape)
    wrapped = tuple(bool(np.any(np.take(rates.up[a] + rates.down[a], -1, a))) for a in range(3))
    first, second, forward, backward = [], [], [], []
    for axis in range(3):
        last = shape[axis] if wrapped[axis] and shape[axis] > 1 else shape[axis] - 1
        low = np.take(numbers, range(last), axis)
        open_way = np.take(rates.up[axis] + rates.down[axis], range(last), axis) > 0
        first.append(low[open_way])
        second.append(np.roll(numbers, -1, axis).ravel()[first[-1]])
        forward.append(rates.up[axis].ravel()[first[-1]])
        backward.append(rates.down[axis].ravel()[first[-1]])
    chain = Chain(
        size=numbers.size,
        first=np.concatenate(first),
        second=np.concatenate(second),
        forward=np.concatenate(forward),
        backward=np.concatenate(backward),
        loss=rates.loss.ravel(),
        log_weights=None,
        rate_scale=rate_scale,
        place=Place(shape, wrapped),
    )
    return chain if rates.alive is None else chain.keep(rates.alive.ravel(), np.zeros(chain.size))
