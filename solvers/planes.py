"""The backward operator of a chain on a rectangle of cells, on blocks of cells, and multigrid cycles for both.

Functions of the state are smooth where densities span hundreds of orders of magnitude, so single precision is enough
for corrections everywhere, tails included, and each cell keeps its own digits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from solvers import block_lattice as kernels
from solvers.chain import Chain, Place

Bottom = Callable[[np.ndarray, np.ndarray], np.ndarray]
# Orders of the Gauss-Seidel sweeps before and after the correction from blocks. More of them do not help.
_BEFORE, _AFTER = ((True, True),), ((False, False),)


@dataclass
class Plane:
    """An operator on functions, A q = killed q + sum over neighbours of rate (q - q_neighbour).

    Attributes
    ----------
    rates : ndarray of shape (n0, n1, 4 or 8)
        Rates out of each cell, in the order of `block_lattice.STEPS`.
    killed : ndarray of shape (n0, n1)
    masses : ndarray of shape (n0, n1)
        Weights of cells in sums, adding up to 1.
    wrapped : tuple of bool
        Whether an axis is periodic.
    """

    rates: np.ndarray
    killed: np.ndarray
    masses: np.ndarray
    wrapped: tuple[bool, ...]

    def __post_init__(self) -> None:
        self.outflow = self.rates.sum(axis=2) + self.killed
        self.share = np.zeros((0, 0), np.float32)
        self.signs = (1, 1, 1, 1)

    @property
    def shape(self) -> tuple[int, int]:
        """Cells per axis."""
        return self.killed.shape  # type: ignore[return-value]

    def find_absorbing_walls(self) -> None:
        """Let functions vanish on walls all of whose cells lose probability."""
        killed = self.killed > 0
        sides = killed[0], killed[-1], killed[:, 0], killed[:, -1]
        a, b, c, d = (-1 if side.all() else 1 for side in sides)
        self.signs = (a, b, c, d)

    def weigh(self, log_masses: np.ndarray) -> None:
        """Set the masses of the cells, and the share of each in that of its block."""
        peak = log_masses
        for axis in range(2):
            edges = np.arange(0, peak.shape[axis], 2)
            peak = np.maximum.reduceat(peak, edges, axis=axis)
        with np.errstate(under="ignore"):
            self.masses = np.exp(log_masses - log_masses.max())
            self.masses /= self.masses.sum()
            share = np.exp(log_masses - _repeated(peak, self.shape))
            total = share
            for axis in range(2):
                total = np.add.reduceat(total, np.arange(0, total.shape[axis], 2), axis=axis)
            self.share = (share / _repeated(total, self.shape)).astype(np.float32)

    def prepare(self, lanes: tuple[int, ...]) -> None:
        """Make the arrays of cycles for so many functions."""
        self.lanes = lanes
        self.single = self.rates.astype(np.float32), self.killed.astype(np.float32)
        self.inverse = (1.0 / self.outflow).astype(np.float32)
        self.right = np.zeros((*self.shape, len(lanes)), np.float32)
        self.x = self.functions(np.float32)

    def functions(self, dtype: type = np.float64) -> np.ndarray:
        """Functions side by side, zero, with a rim."""
        n0, n1 = self.shape
        return np.zeros((n0 + 2, n1 + 2, len(self.lanes)), dtype)

    def fill_rim(self, x: np.ndarray) -> None:
        """Set the rim from the cells."""
        kernels.fill_rim(x, self.wrapped[0], self.wrapped[1], self.signs, self.lanes)

    def interpolated(self, coarse: np.ndarray, blocks: Plane) -> np.ndarray:
        """Functions on the blocks of this plane at its cells."""
        blocks.fill_rim(coarse)
        fine = self.functions()
        kernels.add_interpolated(coarse, fine, self.lanes)
        return fine


def _repeated(blocks: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return np.repeat(np.repeat(blocks, 2, axis=0), 2, axis=1)[: shape[0], : shape[1]]


def rates_of(chain: Chain) -> np.ndarray | None:
    """Rates out of the cells of a rectangle, (n0, n1, 4 or 8); None if a pair are no neighbours."""
    assert chain.place is not None
    shape, wrapped = chain.place.shape, chain.place.wrapped
    for slots in (4, 8):
        rates = np.zeros((*shape, slots))
        if kernels.rates_out(
            *shape, *wrapped, chain.first, chain.second, chain.forward, chain.backward, rates
        ):
            return rates
    return None


def joined(plane: Plane, widths: tuple[np.ndarray, ...]) -> tuple[Plane, tuple[np.ndarray, ...]]:
    """The same diffusion on blocks of two by two cells, without masses yet, and the widths of the blocks."""
    shape = tuple(-(-n // 2) for n in plane.shape)
    rates, killed = np.empty((*shape, plane.rates.shape[2])), np.empty(shape)
    around0, around1 = plane.wrapped
    kernels.join(plane.rates, plane.killed, widths[0], widths[1], around0, around1, rates, killed)
    blocks = Plane(rates, killed, np.zeros(shape), plane.wrapped)
    blocks.signs = plane.signs
    wider = tuple(np.add.reduceat(w, np.arange(0, len(w), 2)) for w in widths)
    return blocks, (wider[0], wider[1])


def reversed_in_time(plane: Plane, log_masses: np.ndarray) -> Plane:
    """The operator on ratios of masses to the given ones; where these are not stationary, it kills a little."""
    rates = np.empty_like(plane.rates)
    kernels.against(plane.rates, log_masses, plane.wrapped[0], plane.wrapped[1], rates)
    return Plane(rates, plane.outflow - rates.sum(axis=2), plane.masses, plane.wrapped)


def chain_of(plane: Plane, like: Chain) -> Chain:
    """The chain on the cells of a plane."""
    n0, n1 = plane.shape
    cells = np.arange(n0 * n1).reshape(n0, n1)
    first, second, forward, backward = [], [], [], []
    for slot in range(0, plane.rates.shape[2], 2):
        step = kernels.STEPS[slot]
        there = np.roll(cells, (-step[0], -step[1]), (0, 1))
        ahead, back = plane.rates[..., slot], plane.rates[..., slot + 1].ravel()[there]
        at = (ahead > 0) | (back > 0)
        first.append(cells[at])
        second.append(there[at])
        forward.append(ahead[at])
        backward.append(back[at])
    assert like.place is not None
    return replace(
        like,
        size=n0 * n1,
        first=np.concatenate(first),
        second=np.concatenate(second),
        forward=np.concatenate(forward),
        backward=np.concatenate(backward),
        loss=plane.killed.ravel(),
        log_weights=None,
        widths=(),
        place=Place(plane.shape, plane.wrapped),
    )


def cycle(planes: list[Plane], number: int, values: np.ndarray, bottom: Bottom) -> np.ndarray:
    """Approximate (A - value)^-1 on the plane's `right`, with its rim, in single precision."""
    plane = planes[number]
    x, width = plane.x, len(plane.lanes)
    if number == len(planes) - 1:
        x[1:-1, 1:-1] = bottom(plane.right.reshape(-1, width), values).reshape(*plane.shape, width)
        return x
    x[:] = 0
    around = any(plane.wrapped)
    for order in _BEFORE:
        kernels.sweep(x, plane.right, plane.inverse, plane.single[0], *order, plane.lanes)
        if around:
            plane.fill_rim(x)
    blocks = planes[number + 1]
    kernels.restricted_rest(x, plane.right, *plane.single, plane.share, blocks.right, plane.lanes)
    coarse = cycle(planes, number + 1, values, bottom)
    blocks.fill_rim(coarse)
    kernels.add_interpolated(coarse, x, plane.lanes)
    for order in _AFTER:
        if around:
            plane.fill_rim(x)
        kernels.sweep(x, plane.right, plane.inverse, plane.single[0], *order, plane.lanes)
    return x
