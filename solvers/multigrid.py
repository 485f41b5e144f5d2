"""Multigrid for the operators of diffusions on a lattice of cells: the cost of a cycle grows with their number."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import scipy.linalg as sl

from solvers import lattice
from solvers.chain import Chain

Form = Literal["symmetric", "backward", "forward"]
_COARSEST = 300
# An axis is coarsened where its couplings are at least this share of the strongest: point smoothing does the rest.
_STRONG = 0.25
# Single precision is enough to precondition; below this share of the largest, entries count as zero.
_NEGLIGIBLE = 1e-20
_BIAS = np.float32(1e-25)

_apply: Any = lattice.apply
_sweep: Any = lattice.sweep


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
    """

    up: list[np.ndarray]
    down: list[np.ndarray]
    loss: np.ndarray
    alive: np.ndarray | None
    widths: list[np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        """Cells per axis."""
        return self.loss.shape

    def outflow(self) -> np.ndarray:
        """Total rate of leaving each cell; 1 where there is no chain."""
        total = self.loss.copy()
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


# ---- coarsening ------------------------------------------------------------------------------------------


@dataclass
class _Step:
    """Transfer between a lattice and the one with half the cells along an axis.

    `gather` are the weights of sums over pairs, `spread` those of interpolation, each (own, other).
    """

    axis: int
    fine: tuple[int, ...]
    gather: tuple[np.ndarray, np.ndarray]
    spread: tuple[np.ndarray, np.ndarray]


def _coarsened(rates: Rates, axis: int, form: Form) -> tuple[Rates, _Step]:
    """Join pairs of cells along an axis.

    Within a pair the stationary shares follow from its own two rates, so no stationary density is asked for.
    Rates across the sides of pairs are averaged with these shares; rates along the axis are as well, and
    multiplied by the ratio of distances between centres, which is exact for a constant drift: it is what
    exponential fitting gives on the coarser grid.
    """
    n = rates.shape[axis]
    up, down = (np.moveaxis(r[axis], axis, 0) for r in (rates.up, rates.down))
    pairs = n // 2
    inner_up, inner_down = up[0 : 2 * pairs : 2], down[0 : 2 * pairs : 2]
    total = inner_up + inner_down
    joined = total > 0
    low = np.where(joined, inner_down / np.where(joined, total, 1.0), 0.5)
    if rates.alive is not None:
        alive = np.moveaxis(rates.alive, axis, 0)
        a, b = alive[0 : 2 * pairs : 2], alive[1 : 2 * pairs : 2]
        low = np.where(a & ~b, 1.0, np.where(b & ~a, 0.0, low))
    share = np.ones(up.shape)
    share[0 : 2 * pairs : 2], share[1 : 2 * pairs : 2] = low, 1.0 - low

    def summed(values: np.ndarray) -> np.ndarray:
        out = values[0::2].copy()
        out[:pairs] += values[1::2]
        return out

    def averaged(values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.moveaxis(summed(share * np.moveaxis(values, axis, 0)), 0, axis))

    new_up, new_down = [], []
    for other in range(3):
        if other != axis:
            new_up.append(averaged(rates.up[other]))
            # a rate back leaves the next cell along the other axis, so that cell's share counts
            there = np.roll(np.moveaxis(share, 0, axis), -1, other)
            back = summed(np.moveaxis(there * rates.down[other], axis, 0))
            new_down.append(np.ascontiguousarray(np.moveaxis(back, 0, axis)))
            continue
        last = np.minimum(2 * np.arange((n + 1) // 2) + 1, n - 1)
        first_of_next = (last + 1) % n
        stretch, _ = _distances(rates.widths[axis])
        stretch = stretch.reshape(-1, 1, 1)
        new_up.append(np.ascontiguousarray(np.moveaxis(stretch * share[last] * up[last], 0, axis)))
        new_down.append(
            np.ascontiguousarray(np.moveaxis(stretch * share[first_of_next] * down[last], 0, axis))
        )
    width = rates.widths[axis]
    widths = list(rates.widths)
    widths[axis] = np.add.reduceat(width, np.arange(0, n, 2))
    alive = None
    if rates.alive is not None:
        alive = np.moveaxis(rates.alive, axis, 0)
        joined_alive = alive[0::2].copy()
        joined_alive[:pairs] |= alive[1::2]
        alive = np.ascontiguousarray(np.moveaxis(joined_alive, 0, axis))
    coarse = Rates(new_up, new_down, averaged(rates.loss), alive, widths)
    return coarse, _transfer(share, coarse, rates, axis, form)


def _distances(width: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances along an axis whose cells are joined in pairs.

    Per pair: from its last cell to the next pair's first, over the distance of the pairs' centres. Per cell: the
    share of the way from its own pair's centre to the other pair's at which it lies.
    """
    n = len(width)
    coarse = np.add.reduceat(width, np.arange(0, n, 2))
    last = np.minimum(2 * np.arange(len(coarse)) + 1, n - 1)
    following = (last + 1) % n
    between = 0.5 * (width[last] + width[following])
    apart = 0.5 * (coarse + np.roll(coarse, -1))
    edges = np.concatenate([[0.0], np.cumsum(width)])
    centre = 0.5 * (edges[1:] + edges[:-1])
    ends = np.concatenate([edges[0:n:2], [edges[-1]]])
    own_centre = 0.5 * (ends[1:] + ends[:-1])
    index = np.arange(n)
    near = index // 2
    upwards = index % 2 == 1
    gap = np.where(upwards, apart[near], np.roll(apart, 1)[near])
    fraction = np.abs(centre - own_centre[near]) / gap
    return between / apart, fraction


def _transfer(share: np.ndarray, coarse: Rates, rates: Rates, axis: int, form: Form) -> _Step:
    """Interpolation that is exact where the drift between two centres is constant, and sums of residuals."""
    n = rates.shape[axis]
    up, down = (np.moveaxis(r[axis], axis, 0) for r in (coarse.up, coarse.down))
    m = up.shape[0]
    index = np.arange(n)
    near, upwards = index // 2, (index % 2 == 1).reshape(-1, 1, 1)
    far = np.where(index % 2 == 1, (near + 1) % m, (near - 1) % m)
    _, fraction = _distances(rates.widths[axis])
    fraction = fraction.reshape(-1, 1, 1)
    towards = np.where(upwards, up[near], down[far])
    back = np.where(upwards, down[near], up[far])
    open_way = (towards > 0) & (back > 0)
    peclet = np.log(np.where(open_way, towards, 1.0) / np.where(open_way, back, 1.0))
    size = np.abs(peclet)
    small = size < 1e-4
    safe = np.where(small, 1.0, np.clip(peclet, -300, 300))
    weight = np.where(small, fraction, -np.expm1(-safe * fraction) / -np.expm1(-safe))
    # one-way: all from there, or nothing
    weight = np.where(open_way, weight, np.where(towards > 0, 1.0, 0.0))
    if rates.alive is not None:
        alive_far = np.moveaxis(coarse.alive, axis, 0)[far]  # pyright: ignore[reportArgumentType, reportCallIssue]
        weight = np.where(alive_far, weight, 0.0)
    own, other = 1.0 - weight, weight
    # what a unit of function value on a coarse cell weighs in the residual it gathers
    ratio = np.where(open_way, np.exp(-np.clip(peclet, -300, 300)), 1.0)
    if form == "symmetric":
        own = own * np.sqrt(share)
        other = other * np.sqrt(share) * np.sqrt(ratio)
        pair = _compact(own, axis), _compact(other, axis)
        return _Step(axis, rates.shape, pair, pair)
    spread = _compact(own, axis), _compact(other, axis)
    gather = _compact(own * share, axis), _compact(other * share * ratio, axis)
    return (
        _Step(axis, rates.shape, gather, spread)
        if form == "backward"
        else _Step(axis, rates.shape, spread, gather)
    )


def _compact(values: np.ndarray, axis: int) -> np.ndarray:
    """Weights in single precision, in the shape (outer, n, inner) that the kernels take."""
    values = np.moveaxis(values, 0, axis)
    values = np.where(np.abs(values) < _NEGLIGIBLE, 0.0, values)
    shape = values.shape
    outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    return np.ascontiguousarray(values, dtype=np.float32).reshape(outer, shape[axis], inner)


def _axes_to_join(rates: Rates) -> list[int]:
    strength = np.zeros(3)
    for axis in range(3):
        if rates.shape[axis] > 1:
            size = np.sqrt(rates.up[axis]) * np.sqrt(rates.down[axis]) + 1e-3 * (
                rates.up[axis] + rates.down[axis]
            )
            size = size[size > 0]
            strength[axis] = np.mean(size) if size.size else 0.0
    candidates = [axis for axis in range(3) if rates.shape[axis] > 1]
    best = max(strength[axis] for axis in candidates)
    return [axis for axis in candidates if strength[axis] >= _STRONG * best]


# ---- cycles ----------------------------------------------------------------------------------------------


@dataclass
class Level:
    """The operator on one lattice; see `solvers.lattice` for its arrays."""

    diagonal: np.ndarray
    couplings: list[np.ndarray]
    inverse: np.ndarray
    steps: list[_Step] = field(default_factory=list)

    def apply(self, x: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Write A x to `out`, arrays of the lattice's shape."""
        _apply(x, self.diagonal, *self.couplings, out)
        return out

    def sweep(self, x: np.ndarray, b: np.ndarray, forward: bool) -> None:
        """One Gauss-Seidel sweep for A x = b."""
        _sweep(x, b, self.inverse, *self.couplings, forward)


def operator(rates: Rates, form: Form, dtype: Any, shift: float = 0.0) -> Level:
    """The operator of rates on a lattice; entries that would only underflow are zero."""
    diagonal = rates.outflow() + shift
    couplings = []
    scale = float(diagonal.max())
    for up, down in zip(rates.up, rates.down, strict=True):
        if form == "symmetric":
            both = np.sqrt(up) * np.sqrt(down)
            up = down = np.where(both < 1e-30 * scale, 0.0, both).astype(dtype)
        elif form == "forward":
            up, down = down.astype(dtype), up.astype(dtype)
        else:
            up, down = up.astype(dtype), down.astype(dtype)
        couplings += [up, down]
    diagonal = np.minimum(diagonal, 1e30)
    positive = np.where(diagonal > 0, diagonal, 1.0)
    return Level(diagonal.astype(dtype), couplings, (1.0 / positive).astype(dtype))


class Multigrid:
    """V-cycles for A = -L^T of a chain on a lattice, its transpose, or its symmetrised form.

    Lattices are halved along the axes of strong coupling, cells joined as in `_coarsened`, one Gauss-Seidel
    sweep down and one up, the last lattice by a dense inverse. Arithmetic is in single precision: a cycle is
    meant to precondition.

    Parameters
    ----------
    chain : Chain
        With a lattice (`has_lattice`).
    form : {"symmetric", "backward", "forward"}
        W^1/2 A W^-1/2 with W the stationary weights, A, or A^T.
    shift : float
        Added to A.
    follow_slow : bool
        Whether cycles should solve for modes much slower than typical ones too; not needed where those are
        deflated, and never for a null vector.
    """

    def __init__(self, chain: Chain, form: Form, *, shift: float = 0.0, follow_slow: bool = True):
        self.form: Form = form
        self._cells = chain.cells
        rates = rates_of(chain)
        self.levels: list[Level] = []
        self.rates: list[Rates] = []
        while True:
            level = operator(rates, form, np.float32, shift)
            self.levels.append(level)
            self.rates.append(rates)
            if rates.loss.size <= _COARSEST:
                break
            for axis in reversed(_axes_to_join(rates)):
                rates, step = _coarsened(rates, axis, form)
                level.steps.append(step)
            # the distance to a wall doubles with the cells
            rates.loss *= 0.5
        self._bottom = _inverse(rates, form, shift, follow_slow)
        shapes = [level.diagonal.shape for level in self.levels]
        self._work = [(np.zeros(shape, np.float32), np.zeros(shape, np.float32)) for shape in shapes]
        self._rest = [np.zeros(level.diagonal.shape, np.float32) for level in self.levels]

    def __call__(self, b: np.ndarray) -> np.ndarray:
        """An approximate solution x of A x = b, for a b over the states of the chain."""
        return self._over_states(b, self.cycle)

    def smooth(self, b: np.ndarray) -> np.ndarray:
        """The same by sweeps on the finest lattice alone, in double precision: for drift that dominates."""

        def sweeps(whole: np.ndarray) -> np.ndarray:
            level = self.levels[0]
            shape = level.diagonal.shape
            x = np.zeros(shape)
            for _ in range(2):
                level.sweep(x, whole.reshape(shape), True)
                level.sweep(x, whole.reshape(shape), False)
            return x.ravel()

        return self._over_states(b, sweeps)

    def _over_states(self, b: np.ndarray, solve: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        if self._cells is None:
            return solve(b)
        whole = np.zeros(self.levels[0].diagonal.size)
        whole[self._cells] = b
        return solve(whole)[self._cells]

    def cycle(self, b: np.ndarray, number: int = 0) -> np.ndarray:
        """An approximate solution on one of the lattices, all cells of it, flat."""
        scale = float(np.abs(b).max())
        if scale == 0.0:
            return np.zeros_like(b)
        right, x = self._work[number]
        np.multiply(b.reshape(right.shape), 1 / scale, out=right, casting="same_kind")
        right += _BIAS  # values that decay on and on would end in slow subnormal numbers
        self._cycle(number)
        return np.multiply(x.ravel(), scale, dtype=float)

    def spread_null(self) -> np.ndarray:
        """The null vector of the coarsest operator, interpolated to the finest lattice, nonnegative, flat."""
        last = self.levels[-1]
        _, _, right = np.linalg.svd(dense_matrix(last))
        vector = np.abs(right[-1]).reshape(last.diagonal.shape).astype(np.float32)
        for level in reversed(self.levels[:-1]):
            vector = spread(level.steps, vector)
        return vector.astype(float).ravel()

    def _cycle(self, number: int) -> None:
        level, (b, x) = self.levels[number], self._work[number]
        if number == len(self.levels) - 1:
            x.ravel()[:] = self._bottom @ b.ravel()
            return
        x[:] = 0
        level.sweep(x, b, True)
        rest = level.apply(x, self._rest[number])
        np.subtract(b, rest, out=rest)
        below = self._work[number + 1]
        below[0][:] = gathered(level.steps, rest)
        self._cycle(number + 1)
        x += spread(level.steps, below[1])
        level.sweep(x, b, False)


def gathered(steps: list[_Step], fine: np.ndarray) -> np.ndarray:
    """Residuals summed onto the next coarser lattice."""
    for step in steps:
        own, other = step.gather
        outer, n, inner = own.shape
        out = np.empty((outer, (n + 1) // 2, inner), np.float32)
        lattice.restrict(fine.reshape(own.shape), own, other, out)
        shape = list(step.fine)
        shape[step.axis] = (n + 1) // 2
        fine = out.reshape(shape)
    return fine


def spread(steps: list[_Step], coarse: np.ndarray) -> np.ndarray:
    """Values interpolated onto the next finer lattice."""
    for step in reversed(steps):
        own, other = step.spread
        outer, n, inner = own.shape
        out = np.empty(own.shape, np.float32)
        lattice.prolong(coarse.reshape(outer, (n + 1) // 2, inner), own, other, out)
        coarse = out.reshape(step.fine)
    return coarse


def dense_matrix(level: Level) -> np.ndarray:
    """The operator on a small lattice as a matrix, in double precision."""
    shape, size = level.diagonal.shape, level.diagonal.size
    double = Level(level.diagonal.astype(float), [c.astype(float) for c in level.couplings], level.inverse)
    columns = np.eye(size).reshape(size, *shape)
    return np.array([double.apply(c, np.empty(shape)).ravel() for c in columns]).T


def _inverse(rates: Rates, form: Form, shift: float, follow_slow: bool) -> np.ndarray:
    """Dense inverse; along nearly stationary directions of no more than the size of typical ones."""
    matrix = dense_matrix(operator(rates, form, float, shift))
    # a chain without losses has a null vector, found otherwise; where there are some, slow escape can be followed
    floor = 1e-12 if follow_slow and (np.any(rates.loss) or shift) else 0.1
    if form == "symmetric":
        values, vectors = sl.eigh(0.5 * (matrix + matrix.T))
        typical = values[min(len(values) - 1, max(3, len(values) // 20))]
        return (vectors / np.maximum(values, floor * typical)) @ vectors.T
    left, values, right = np.linalg.svd(matrix)
    typical = values[len(values) - 1 - min(len(values) - 1, max(3, len(values) // 20))]
    return (right.T / np.maximum(values, floor * typical)) @ left.T
