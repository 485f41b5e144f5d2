"""Slowest modes without detailed balance on large lattices: balanced cycles, nested iteration, Davidson steps.

The generator is scaled by the square root of weights near the stationary ones, which makes it nearly normal (for a
reversible chain: symmetric), and its symmetric part is then a Dirichlet form, so that Ritz values approach the
spectrum from the decaying side. The modes of a lattice of some thousand cells come from Arnoldi's method, which
checks that none is missing; each finer lattice corrects them. Right and left modes are found on their own, and
must agree.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from scipy.optimize import linear_sum_assignment

from solvers import memory
from solvers.backward import extend
from solvers.blas_threads import one_blas_thread
from solvers.chain import Chain
from solvers.conjugate_directions import conjugate_residuals
from solvers.davidson import EPS, HOVERING
from solvers.errors import ConvergenceFailure
from solvers.factorisation import start_vector
from solvers.lattice_operator import on_states, prefers_cycles
from solvers.lattice_rates import Rates, chain_of, rates_of
from solvers.lattice_transfer import spread
from solvers.lattice_weights import balancing_weights
from solvers.mode_order import biorthonormal, real_span
from solvers.multigrid import Level, Multigrid, coarser_lattices, operator
from solvers.nonreversible import Triple, nonreversible_modes
from solvers.nonsymmetric_davidson import ComplexPairs, closed, nonsymmetric_davidson

# Modes start on the finest lattice of no more cells than this.
_START = 10_000
# Modes beyond the wanted ones that are followed; cuts avoid neighbours closer than this share.
_SPARE, _CLOSE = 3, 0.02
# On coarser lattices a mode need not be better than the lattice is.
_COARSE_TOL = 1e-3
# Where both are below this fraction of their largest, z / sqrt(w) has too few digits.
_RELIABLE = 1e-6
# Largest disagreement of right and left eigenvalues, relative to the largest.
_AGREE = 1e-6
_STATIONARY = 1e-8
# Measured: hierarchy and operator, and per vector of the Davidson basis and of the results.
_BYTES, _BYTES_PER_MODE = 450, 100


def suits_lattice_modes(chain: Chain) -> bool:
    """Whether the chain is one for `lattice_modes`: three dimensions, many cells, no detailed balance."""
    return not chain.reversible and prefers_cycles(chain) and len(chain.closed_classes) < 2


@one_blas_thread
def lattice_modes(chain: Chain, k: int, tol: float) -> Triple:
    """Eigenvalues, right masses and left functions (columns, bi-orthonormal) of a chain on a large grid.

    The k slowest, or k + 1 so as not to split a complex pair.

    Raises
    ------
    InvalidInput
        If memory would not suffice.
    ConvergenceFailure
        If an iteration stagnates, or right and left modes disagree.
    """
    memory.require(
        (_BYTES + _BYTES_PER_MODE * (k + _SPARE)) * chain.size,
        f"the {k} slowest modes of {chain.size} cells without detailed balance",
        "use fewer cells or modes",
    )
    zeros = len(chain.closed_classes)
    weights = balancing_weights(*coarser_lattices(rates_of(chain), "forward"))
    grid = Multigrid(chain, "forward", follow_slow=False, log_weights=weights)
    cut, right_start, left_start = _nested_start(grid, chain.rate_scale, k, zeros)
    fine = operator(grid.rates[0], "forward", float)
    grid.rates.clear()
    balance = np.exp(0.5 * weights.ravel())
    if chain.cells is not None:
        balance, right_start, left_start = (a[..., chain.cells] for a in (balance, right_start, left_start))
    del weights
    sides = _Sides(chain, fine, grid, balance / np.linalg.norm(balance))
    stationary = sides.stationary(right_start[0]) if zeros else None
    null = [] if stationary is None else [sides.root, stationary]
    if k == zeros and stationary is not None:
        masses = stationary * balance
        return np.zeros(1, complex), masses[:, None] / masses.sum() + 0j, np.ones((chain.size, 1), complex)
    right = sides.slowest(right_start[zeros:], cut - zeros, tol, null[:1], transposed=False)
    left = sides.slowest(left_start[zeros:], cut - zeros, tol, null[1:], transposed=True)
    del right_start, left_start, sides, grid, fine
    shown = closed(right.values, k - zeros)
    y, z = _paired(right, left, 2.0 * float(chain.outflow.max()))
    z = biorthonormal(y.T, z.T)[:, :shown].T
    # conjugates: eigenvalues, -rates, have the positive imaginary part first
    rates, y, z = right.values[:shown].conj(), y[:shown].conj(), z.conj()
    functions = _functions(chain, rates, z, balance)
    masses = y * balance
    del y, z
    values = [_quotient(chain, m, q) for m, q in zip(masses, functions, strict=True)]
    if stationary is not None:
        values = [0.0, *values]
        first = stationary * balance
        masses = np.vstack([first / first.sum(), masses])
        functions = np.vstack([np.ones(chain.size), functions])
    return np.array(values, complex), masses.T, functions.T


def _nested_start(
    grid: Multigrid, rate_scale: float, k: int, zeros: int
) -> tuple[int, np.ndarray, np.ndarray]:
    """How many modes to iterate, and real bases of approximate right and left ones on the finest lattice, rows."""
    number = next(i for i, rates in enumerate(grid.rates) if i and rates.loss.size <= _START)
    cut, *sides = _coarse_modes(grid.rates[number], rate_scale, k, zeros)
    while True:
        shape, joined = grid.levels[number].diagonal.shape, grid.levels[number - 1].steps
        for side, steps in enumerate((joined, [step.transposed() for step in joined])):
            sides[side] = np.array(
                [spread(steps, v.reshape(shape).astype(np.float32)).ravel() for v in sides[side]], dtype=float
            )
        number -= 1
        if number == 0:
            return cut, sides[0], sides[1]
        level = operator(grid.rates[number], "forward", float)
        for side in range(2):
            here, there = (level, level.transposed())[:: 1 - 2 * side]
            cycles = grid if side == 0 else grid.transposed()
            pairs = nonsymmetric_davidson(
                on_states(here, None), on_states(there, None), lambda x, c=cycles, at=number: c.cycle(x, at),
                sides[side], wanted=cut, tol=_COARSE_TOL, norm=2.0 * float(level.diagonal.max()),
                common_scale=True,
            )  # fmt: skip
            sides[side] = np.vstack([real_span(pairs.values, pairs.vectors.T).T, pairs.spare])


def _coarse_modes(rates: Rates, rate_scale: float, k: int, zeros: int) -> tuple[int, np.ndarray, np.ndarray]:
    """How many modes end at a gap, and real bases of right and left modes of a small lattice, balanced."""
    chain = chain_of(rates, rate_scale)
    if len(chain.closed_classes) != zeros:
        raise ConvergenceFailure("coarser grids fall into other parts than the finest; use more noise")
    count = k + _SPARE
    while True:
        values, right, left, _ = nonreversible_modes(chain, count, "shift-invert", 1e-6)
        cut = _gap(values, k)
        if cut is not None or count > 3 * k + 10:
            break
        count += max(k, _SPARE)
    assert rates.log_weights is not None
    balance = np.exp(0.5 * rates.log_weights.ravel())
    bases = []
    for vectors, scale in ((right, 1.0 / balance), (left, balance)):
        rows = np.zeros((vectors.shape[1], rates.loss.size))
        span = real_span(values, vectors)
        rows[:, slice(None) if chain.cells is None else chain.cells] = span.T
        bases.append(rows * scale)
    return cut or closed(values, k), bases[0], bases[1]


def _gap(values: np.ndarray, k: int) -> int | None:
    """The least count >= k behind which a gap follows; None if there is none."""
    for count in range(k, len(values)):
        near = np.abs(values[:count] - values[count])
        conjugate = values[count].imag < 0 and values[count - 1].imag > 0
        if not conjugate and near.min() > _CLOSE * abs(values[count]):
            return count
    return None


class _Sides:
    """Both sides of a balanced operator A: its cycles, and modes over the states of the chain.

    Parameters
    ----------
    chain : Chain
    fine : Level
        The balanced operator of masses.
    grid : Multigrid
    root : ndarray
        Square roots of the weights, of norm 1: the null vector of the transpose where probability is conserved.
    """

    def __init__(self, chain: Chain, fine: Level, grid: Multigrid, root: np.ndarray):
        self._apply = on_states(fine, chain.cells)
        self._transposed = on_states(fine.transposed(), chain.cells)
        self._grid, self.root, self._outflow = grid, root, chain.outflow
        self._conserving = not np.any(chain.loss)

    def stationary(self, start: np.ndarray) -> np.ndarray:
        """The null vector of A, of norm 1."""
        start = start / np.linalg.norm(start)
        correction, _, _ = conjugate_residuals(
            self._apply,
            self._grid,
            -self._apply(start),
            tol=1e-14,
            reference=self._outflow * start,
        )
        vector = start + correction
        vector /= np.linalg.norm(vector) * np.copysign(1.0, vector @ self.root)
        flow = np.abs(self._apply(vector))
        left = float(flow @ self.root) / float(self._outflow * self.root @ np.abs(vector))
        negative = -float(np.minimum(vector, 0.0) @ self.root) / float(vector @ self.root)
        if not max(left, negative) < _STATIONARY:
            raise ConvergenceFailure(
                f"the stationary density is undetermined: net flow {left:.2g} of the exchange, negative mass "
                f"{negative:.2g}; use more noise"
            )
        return vector

    def slowest(
        self, start: np.ndarray, wanted: int, tol: float, null: list[np.ndarray], *, transposed: bool
    ) -> ComplexPairs:
        """Slowest modes of A or of its transpose, orthogonal to the null vector of the other one."""
        maps = (self._transposed, self._apply) if transposed else (self._apply, self._transposed)
        return nonsymmetric_davidson(
            *maps,
            self._grid.transposed() if transposed else self._grid,
            np.vstack([start, start_vector(len(self.root))]),
            wanted=wanted,
            tol=tol,
            norm=2.0 * float(self._outflow.max()),
            known=np.array(null) if null else None,
            weight=self.root,
        )


def _paired(right: ComplexPairs, left: ComplexPairs, norm: float) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of both sides, the left ones in the order of the right ones."""
    if len(right.values) != len(left.values):
        raise ConvergenceFailure(
            "right and left modes end at different places; ask for another number of modes"
        )
    far = np.abs(right.values[:, None] - left.values)
    rows, columns = linear_sum_assignment(far)
    worst = float(far[rows, columns].max())
    if worst > max(_AGREE * float(np.abs(right.values).max()), HOVERING * EPS * norm):
        raise ConvergenceFailure(
            f"right and left eigenvalues disagree by {worst:.2g}; ask for another number of modes, or use more "
            "cells"
        )
    return right.vectors, left.vectors[columns]


def _functions(chain: Chain, rates: np.ndarray, z: np.ndarray, balance: np.ndarray) -> np.ndarray:
    """Left functions z / balance where they have digits; elsewhere from the equation of the eigenfunction."""
    functions = np.zeros_like(z)
    known = np.ones(chain.size, dtype=bool)
    for row, out in zip(z, functions, strict=True):
        size = np.abs(row)
        digits = (size > _RELIABLE * size.max()) | (balance > _RELIABLE * balance.max())
        known &= digits
        usable = digits | (size > 1e-12 * size.max())
        out[usable] = row[usable] / balance[usable]
    for a, rate in enumerate(rates):
        if rate.imag > 0:  # the partner of the one before
            functions[a] = functions[a - 1].conj()
        elif rate.imag < 0:
            extend(chain, rates[a : a + 1], functions[a : a + 1], known)
        else:
            real = functions[a].real.copy()
            extend(chain, rates[a : a + 1].real, real[None], known)
            functions[a] = real
    return functions


@njit(cache=True)
def _flows(first, second, forward, backward, loss, masses, function):
    """Sum over pairs of (change of the function) (net flow of the masses), less what is lost; in blocks."""
    total = part = 0.0 * function[0]
    for e in range(len(first)):
        i, j = first[e], second[e]
        part += (function[j] - function[i]) * (forward[e] * masses[i] - backward[e] * masses[j])
        if e % 4096 == 4095:
            total += part
            part = 0.0 * part
    for i in range(len(loss)):
        if loss[i] > 0.0:
            part -= loss[i] * function[i] * masses[i]
    return total + part


def _quotient(chain: Chain, masses: np.ndarray, function: np.ndarray) -> complex:
    """The eigenvalue of a right and a left vector; slow ones without cancellation, where the function is flat."""
    pairs = chain.first, chain.second, chain.forward, chain.backward
    return _flows(*pairs, chain.loss, masses, function) / (function @ masses)
