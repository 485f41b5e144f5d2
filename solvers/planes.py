"""The backward operator of a chain on a rectangle of cells, on blocks of cells, and multigrid cycles for both.

Functions of the state are smooth where densities span hundreds of orders of magnitude, so single precision is enough
for corrections everywhere, tails included, and each cell keeps its own digits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from solvers import block_lattice as kernels
from solvers import block_rates
from solvers.chain import Chain, Place

Bottom = Callable[[np.ndarray, np.ndarray], np.ndarray]
# Orders of the Gauss-Seidel sweeps before and after the correction from blocks: with detailed balance more of them
# do not help; a drift that turns has to be followed into each quadrant.
_BALANCED = (((True, True),), ((False, False),))
_TURNING = (((True, True), (True, False)), ((False, False), (False, True)))
# Sweeps over lines, to and fro, where exchange along one axis is faster by such a factor.
_LINES = (((True, True), (False, False)), ((True, True), (False, False)))
_STIFF = 4.0
# Sets of sweeps over masses at most, and the change of a logarithm at which they are good enough for a guess.
_SETS, _SETTLED = 12, 0.05


@dataclass
class Plane:
    """An operator on functions, A q = killed q + sum over neighbours of rate (q - q_neighbour).

    Attributes
    ----------
    rates : ndarray of shape (n0, n1, 4 or 8)
        Rates out of each cell, in the order of `block_rates.STEPS`.
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

    def settled(self, log_masses: np.ndarray, rate: float = 0.0) -> np.ndarray:
        """Masses (their logarithms) nearer to those that decay at a rate: each cell's inflow balances its outflow.

        Interpolated ones are far off where they change by orders of magnitude from cell to cell; there a few sweeps
        along the drift determine them.
        """
        logs, out = log_masses.copy(), np.maximum(self.outflow - rate, 0.5 * self.outflow)
        around0, around1 = self.wrapped
        for _ in range(_SETS):
            changes = [
                block_rates.settle(self.rates, out, around0, around1, upwards0, upwards1, logs)
                for upwards0, upwards1 in (*_TURNING[0], *_TURNING[1])
            ]
            if max(changes) < _SETTLED:
                break
        return logs

    def tame(self, cells: np.ndarray) -> None:
        """In these cells, let no function grow by itself, and no rate be larger than the outflow is meant to be."""
        rates, sums = self.rates[cells], self.rates[cells].sum(axis=1)
        rates *= np.minimum(1.0, self.outflow[cells] / np.maximum(sums, 1e-300))[:, None]
        self.rates[cells] = rates
        self.killed[cells] = np.maximum(self.killed[cells], 0.0)
        self.outflow = self.rates.sum(axis=2) + self.killed

    def prepare(self, lanes: tuple[int, ...], *, balanced: bool = False) -> None:
        """Make the arrays of cycles for so many functions; `balanced` says that there is detailed balance."""
        self.lanes = lanes
        self.before, self.after = _BALANCED if balanced else _TURNING
        self.single = self.rates.astype(np.float32), self.killed.astype(np.float32)
        self.inverse = (1.0 / self.outflow).astype(np.float32)
        self.lines = None if balanced else self._stiff_axis()
        if self.lines is not None:
            self.inverse = self.outflow.astype(np.float32)
            self.before, self.after = _LINES
        self.right = np.zeros((*self.shape, len(lanes)), np.float32)
        self.x = self.functions(np.float32)

    def _stiff_axis(self) -> int | None:
        """The axis along which exchange is much faster, if one is: there functions are smoothed line by line."""
        across = [float(np.median(self.rates[..., 2 * a : 2 * a + 2].sum(axis=2))) for a in range(2)]
        for axis in range(2):
            if across[axis] > _STIFF * across[1 - axis]:
                return axis
        return None

    def smooth(self, order: tuple[bool, bool], aims: np.ndarray | None) -> None:
        """One sweep over `x` for the equation with `right` and the aims, in an order."""
        x, right, rates = self.x, self.right, self.single[0]
        if self.lines is None:
            kernels.sweep(x, right, self.inverse, rates, *order, aims, self.lanes)
        else:
            kernels.sweep_lines(x, right, self.inverse, rates, self.lines, order[1 - self.lines], self.lanes)

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
        if block_rates.rates_out(
            *shape, *wrapped, chain.first, chain.second, chain.forward, chain.backward, rates
        ):
            return rates
    return None


def joined(plane: Plane, widths: tuple[np.ndarray, ...]) -> tuple[Plane, tuple[np.ndarray, ...]]:
    """The same diffusion on blocks of two by two cells, without masses yet, and the widths of the blocks."""
    shape = tuple(-(-n // 2) for n in plane.shape)
    rates, killed = np.empty((*shape, plane.rates.shape[2])), np.empty(shape)
    around0, around1 = plane.wrapped
    block_rates.join(plane.rates, plane.killed, widths[0], widths[1], around0, around1, rates, killed)
    blocks = Plane(rates, killed, np.zeros(shape), plane.wrapped)
    blocks.signs = plane.signs
    wider = tuple(np.add.reduceat(w, np.arange(0, len(w), 2)) for w in widths)
    return blocks, (wider[0], wider[1])


def reversed_in_time(plane: Plane, log_masses: np.ndarray) -> Plane:
    """The operator on ratios of masses to the given ones; where these are not stationary, it kills a little."""
    rates = np.empty_like(plane.rates)
    block_rates.against(plane.rates, log_masses, plane.wrapped[0], plane.wrapped[1], rates)
    result = Plane(rates, plane.outflow - rates.sum(axis=2), plane.masses, plane.wrapped)
    result.outflow = plane.outflow
    return result


def chain_of(plane: Plane, like: Chain) -> Chain:
    """The chain on the cells of a plane."""
    n0, n1 = plane.shape
    cells = np.arange(n0 * n1).reshape(n0, n1)
    first, second, forward, backward = [], [], [], []
    for slot in range(0, plane.rates.shape[2], 2):
        step = block_rates.STEPS[slot]
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
    aims = None
    if plane.before is _TURNING[0]:  # elsewhere they are no help, but on the last lattice
        aims = np.array([values.real, np.maximum(values.imag, 0.0)], np.float32)
    around = any(plane.wrapped)
    for order in plane.before:
        plane.smooth(order, aims)
        if around:
            plane.fill_rim(x)
    blocks = planes[number + 1]
    kernels.restricted_rest(x, plane.right, *plane.single, plane.share, blocks.right, aims, plane.lanes)
    coarse = cycle(planes, number + 1, values, bottom)
    blocks.fill_rim(coarse)
    kernels.add_interpolated(coarse, x, plane.lanes)
    for order in plane.after:
        if around:
            plane.fill_rim(x)
        plane.smooth(order, aims)
    return x
