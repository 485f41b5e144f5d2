"""Multigrid for the operators of diffusions on a lattice of cells: the cost of a cycle grows with their number."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.linalg as sl

from solvers import lattice
from solvers.chain import Chain
from solvers.lattice_rates import Rates, rates_of
from solvers.lattice_transfer import Form, Step, axes_to_join, coarsened, gathered, spread

_COARSEST = 300
# Single precision is enough to precondition; values that decay on and on would end in slow subnormal numbers.
_BIAS = np.float32(1e-25)
# Largest logarithm of a ratio of balancing factors in neighbouring cells.
_STEEPEST = 30.0

_apply: Any = lattice.apply
_sweep: Any = lattice.sweep


@dataclass
class Level:
    """The operator on one lattice; see `solvers.lattice` for its arrays."""

    diagonal: np.ndarray
    couplings: list[np.ndarray]
    inverse: np.ndarray
    steps: list[Step] = field(default_factory=list)

    def shifted(self, shift: float) -> Level:
        """The operator plus a multiple of the identity; couplings and steps are shared."""
        diagonal = self.diagonal + self.diagonal.dtype.type(shift)
        return Level(diagonal, self.couplings, _inverted(diagonal), self.steps)

    def transposed(self) -> Level:
        """The transpose, on the same arrays."""
        couplings = [c for a in range(3) for c in self.couplings[2 * a : 2 * a + 2][::-1]]
        return Level(self.diagonal, couplings, self.inverse, [step.transposed() for step in self.steps])

    def apply(self, x: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Write A x to `out`, arrays of the lattice's shape."""
        _apply(x, self.diagonal, *self.couplings, out)
        return out

    def sweep(self, x: np.ndarray, b: np.ndarray, forward: bool) -> None:
        """One Gauss-Seidel sweep for A x = b."""
        _sweep(x, b, self.inverse, *self.couplings, forward)


def operator(rates: Rates, form: Form, dtype: Any, shift: float = 0.0) -> Level:
    """The operator of rates on a lattice; entries that would only underflow are zero.

    With weights w it is balanced: w^1/2 A w^-1/2 with A = -L^T ("backward"), or its transpose ("forward").
    """
    diagonal = rates.outflow() + shift
    couplings = []
    scale = float(diagonal.max())
    for axis, (up, down) in enumerate(zip(rates.up, rates.down, strict=True)):
        if form == "symmetric":
            both = np.sqrt(up) * np.sqrt(down)
            up = down = np.where(both < 1e-30 * scale, 0.0, both).astype(dtype)
        else:
            if rates.log_weights is not None:
                lift = 0.5 * (rates.log_weights - np.roll(rates.log_weights, -1, axis))
                lift = np.exp(np.clip(lift, -_STEEPEST, _STEEPEST, out=lift), out=lift)
                up, down = up * lift, down / lift
            up, down = up.astype(dtype), down.astype(dtype)
            if form == "forward":
                up, down = down, up
        couplings += [up, down]
    diagonal = np.minimum(diagonal, 1e30).astype(dtype)
    return Level(diagonal, couplings, _inverted(diagonal))


def _inverted(diagonal: np.ndarray) -> np.ndarray:
    return np.divide(1, diagonal, out=np.ones_like(diagonal), where=diagonal > 0)


def coarser_lattices(rates: Rates, form: Form) -> tuple[list[Rates], list[list[Step]]]:
    """Rates on coarser and coarser lattices, the given ones first, and the steps from each to the next."""
    all_rates, all_steps = [rates], []
    while rates.loss.size > _COARSEST:
        all_steps.append([])
        for axis in reversed(axes_to_join(rates)):
            rates, step = coarsened(rates, axis, form)
            all_steps[-1].append(step)
        # the distance to a wall doubles with the cells
        rates.loss *= 0.5
        all_rates.append(rates)
    return all_rates, all_steps


class Multigrid:
    """V-cycles for A = -L^T of a chain on a lattice, its transpose, its symmetrised or a balanced form.

    Lattices are halved along the axes of strong coupling, cells joined as in `coarsened`, one Gauss-Seidel
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
    log_weights : ndarray, optional
        Over the cells of the lattice: A is balanced with them (see `operator`).
    """

    def __init__(
        self,
        chain: Chain,
        form: Form,
        *,
        shift: float = 0.0,
        follow_slow: bool = True,
        log_weights: np.ndarray | None = None,
    ):
        self._cells = chain.cells
        finest = rates_of(chain)
        finest.log_weights = log_weights
        self.rates, steps = coarser_lattices(finest, form)
        self.levels = [operator(rates, form, np.float32, shift) for rates in self.rates]
        for level, joined in zip(self.levels, steps, strict=False):
            level.steps = joined
        self._bottom_rates = self.rates[-1]
        self._form: Form = form
        self._bottom = _inverse(self._bottom_rates, form, shift, follow_slow)
        self._make_room()

    def _make_room(self) -> None:
        shapes = [level.diagonal.shape for level in self.levels]
        self._work = [(np.zeros(shape, np.float32), np.zeros(shape, np.float32)) for shape in shapes]
        self._rest = [np.zeros(shape, np.float32) for shape in shapes]

    def shifted(self, shift: float) -> Multigrid:
        """Cycles for A plus a multiple of the identity; most arrays are shared."""
        other = copy.copy(self)
        other.levels = [level.shifted(shift) for level in self.levels]
        other._bottom = _inverse(self._bottom_rates, self._form, shift, True)
        other._make_room()
        return other

    def transposed(self) -> Multigrid:
        """Cycles for the transpose; all arrays are shared."""
        other = copy.copy(self)
        other.levels = [level.transposed() for level in self.levels]
        other._bottom = np.ascontiguousarray(self._bottom.T)
        return other

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
