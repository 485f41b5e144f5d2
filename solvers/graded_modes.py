"""Modes of large chains on a grid without detailed balance, started from those of blocks of cells."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from solvers.block_krylov import RitzPairs, block_krylov
from solvers.chain import Chain
from solvers.chain_kernels import project
from solvers.coarsening import Coarse, coarsened
from solvers.factorisation import TransposedFactors, start_vector
from solvers.mode_order import real_span

Triple = tuple[np.ndarray, np.ndarray, np.ndarray]
# Real vectors iterated beside those that must converge: the last blocks' ones, and a random one.
_GUARDS = 2


def two_levels(chain: Chain, log_masses: np.ndarray) -> list[Coarse]:
    """Blocks of two by two, and of four by four cells, per axis."""
    first = coarsened(chain, log_masses)
    peak = log_masses.max()
    with np.errstate(under="ignore", divide="ignore"):
        masses = np.bincount(first.block, np.exp(log_masses - peak), first.chain.size)
        return [first, coarsened(first.chain, np.log(np.maximum(masses, 1e-300)))]


def interpolated(levels: list[Coarse], functions: np.ndarray) -> np.ndarray:
    """Functions on the coarsest blocks at the states."""
    for level in levels[::-1]:
        functions = level.interpolate(functions)
    return functions


class TwoSided:
    """Shift-invert on both sides of a generator scaled by `balance`; rows keep their own digits.

    Parameters
    ----------
    solver : TransposedFactors
        Of shift - L.
    masses, balance : ndarray
        Slowest right vector, or near it, and the scaling.
    conserving : bool
        Whether the slowest mode is stationary: its left vector is 1, and it is kept out of the iteration.
    """

    def __init__(self, solver: TransposedFactors, masses: np.ndarray, balance: np.ndarray, conserving: bool):
        self._solver, self._conserving = solver, conserving
        self._order = solver.order
        self._masses, self._balance = masses[self._order], balance[self._order][:, None]

    @property
    def masses(self) -> np.ndarray:
        """The stationary masses, improved by every application to right vectors."""
        result = np.empty_like(self._masses)
        result[self._order] = self._masses
        return result

    def iterate(self) -> float:
        """Improve the stationary masses alone; the largest relative change of an entry that matters."""
        new = self._masses[:, None].copy()
        self._solver.solve_ordered(new, "N")
        new = new[:, 0] / new.sum()
        noticed = new > 1e-250
        change = float(np.abs(self._masses[noticed] / new[noticed] - 1.0).max())
        self._masses = new
        return change

    def right(self, block: np.ndarray) -> np.ndarray:
        """(shift - M)^-1 with M = L scaled, in elimination order; overwrites."""
        if not self._conserving:
            block *= self._balance
            self._solver.solve_ordered(block, "N")
            block /= self._balance
            return block
        wide = np.empty((len(block), block.shape[1] + 1))
        np.multiply(block, self._balance, out=wide[:, :-1])
        wide[:, -1] = self._masses
        self._solver.solve_ordered(wide, "N")
        self._masses = wide[:, -1] / wide[:, -1].sum()
        np.divide(wide[:, :-1], self._balance, out=block)
        project(block, self._masses[:, None] / self._balance, self._balance)
        return block

    def left(self, block: np.ndarray) -> np.ndarray:
        """The transpose of the same."""
        block /= self._balance
        self._solver.solve_ordered(block, "T")
        block *= self._balance
        if self._conserving:
            project(block, self._balance, self._masses[:, None] / self._balance)
        return block

    def iterated(self, start: np.ndarray, wanted: int, tol: float, transposed: bool) -> RitzPairs:
        """Ritz pairs nearest the shift, `start` and vectors in the order of the states."""
        apply = self.left if transposed else self.right
        found = block_krylov(apply, apply(start[self._order]), wanted, tol, symmetric=False)
        found.vectors = self._cleaned(found, wanted, apply)
        return found

    def _cleaned(
        self, found: RitzPairs, wanted: int, apply: Callable[[np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """The operator once more, which leaves only its own rounding."""
        vectors = found.vectors[:, :wanted]
        both = apply(np.ascontiguousarray(np.hstack([vectors.real, vectors.imag])))
        result = np.empty_like(vectors)
        result[self._order] = (both[:, :wanted] + 1j * both[:, wanted:]) / found.values[:wanted]
        return result


def nearest_modes(
    chain: Chain,
    two_sided: TwoSided,
    levels: list[Coarse],
    coarse: Triple,
    masses: np.ndarray,
    balance: np.ndarray,
    zeros: int,
    tol: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Modes nearest the shift, without the stationary one: 1 / (shift - value), seen from both sides, and vectors.

    Parameters
    ----------
    chain, two_sided, levels
        The chain, its operator, and its blocks.
    coarse : tuple
        Values, right and left vectors of the coarsest blocks.
    masses, balance : ndarray
    zeros : int
        Stationary modes, the first ones of `coarse`.
    tol : float

    Returns
    -------
    right_values, left_values, right_vectors, left_vectors
        Vectors of the scaled generator.
    """
    values, right, left = (part[..., zeros:] for part in coarse)
    block_masses = masses
    for level in levels:
        block_masses = np.bincount(level.block, block_masses, level.chain.size)
    ratios = real_span(values, right / np.maximum(block_masses, 1e-300)[:, None])
    functions = real_span(values, left)
    noise = start_vector(chain.size)
    wanted = ratios.shape[1] + 1 - _GUARDS
    starts = []
    for columns, scale in ((ratios, masses / balance), (functions, balance)):
        block = np.column_stack([interpolated(levels, columns), noise])
        block *= scale[:, None]
        starts.append(block)
    z_start = starts.pop()
    y = two_sided.iterated(starts.pop(), wanted, tol, False)
    z = two_sided.iterated(z_start, wanted, tol, True)
    return y.values[:wanted], z.values[:wanted], y.vectors, z.vectors
