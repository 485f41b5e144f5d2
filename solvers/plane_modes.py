"""Slowest modes of large chains on a rectangle of cells: nested iteration over blocks, multigrid cycles, Ritz values.

The modes of a lattice of a few thousand blocks are interpolated to the next finer lattice, corrected there by cycles
that aim at each one's own eigenvalue, and so on: on the cells themselves some six cycles are left, for all modes at
once, and no factorisation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sps

from solvers import block_lattice as kernels
from solvers.chain import Chain
from solvers.coarsening import coarsened
from solvers.factorisation import Solver, factor
from solvers.planes import Bottom, Plane, cycle, rates_of

# Blocks of the last lattice, at most.
COARSEST = 6000
# On blocks modes need not be better than the blocks are.
_COARSE_TOL = 1e-4
_ROUGH = 0.01
# A residual cannot fall below about eps of the norm.
_ROUNDING = 2.0 * np.finfo(float).eps
_MOST_CYCLES, _PATIENCE = 60, 4
# Functions grow where there is no mass, which weighted residuals do not see: the largest residual anywhere.
TAILS, _TAILS_ROUNDING = 1e-7, 100 * np.finfo(float).eps
# Relative distance of a mode to the value aimed at that is trusted, and that of wanted modes from those not iterated.
_NEAR, _APART = 0.1, 0.15
# So many functions are iterated, or multiples of four more; as many begin as noise, to show what blocks cannot.
_LANES, _STEP, NOISE = 8, 4, 1
# Smaller chains are factored; thinner ones are lines.
MANY, _NARROW = 20_000, 40
# Shift of resolvents, beside the rate of diffusing across the grid.
SHIFT = 1e-3

# Doubt about a converged rate of decay: two nearer than that may come in another order on the left and on the right.
_ORDERED = 1e-3
# A series around the shift is used for values up to this share of the slowest unknown rate; factors are shared by
# values so near each other, and so many are kept.
_SERIES, _SHARED, _KEPT = 0.5, 0.02, 24

Map = Callable[[np.ndarray], np.ndarray]
Triple = tuple[np.ndarray, np.ndarray, np.ndarray]
Slowest = Callable[[Chain, int], Triple]


@dataclass
class Coarse:
    """Modes of the last lattice: rates (-eigenvalues), functions and dual measures (columns), and their operator A."""

    rates: np.ndarray
    functions: np.ndarray
    measures: np.ndarray
    matrix: sps.csr_array
    shift: float


@dataclass
class Found:
    """An invariant subspace: functions with their rim, A x = x turn, their values, how many converged, and cycles."""

    x: np.ndarray
    turn: np.ndarray
    values: np.ndarray
    count: int
    cycles: int


class _Inverses:
    """(A - value)^-1 outside the known modes, applied to columns; factors for values near each other are shared."""

    def __init__(self, coarse: Coarse):
        self._matrix, self._shift, self._size = coarse.matrix, coarse.shift, len(coarse.functions)
        # what is not known decays at least so fast
        self._reach = _SERIES * float(coarse.rates[-1].real)
        self._factors: list[tuple[complex, Solver]] = []

    def _at(self, value: complex) -> Solver:
        for known, solver in self._factors:
            if abs(known - value) <= _SHARED * abs(value) and (known.imag == 0) == (value.imag == 0):
                return solver
        at = value if value.imag else value.real
        matrix = sps.csc_array(self._matrix - at * sps.eye_array(self._size))
        solver = factor(matrix, symmetric=False)
        self._factors = [*self._factors[-_KEPT:], (value, solver)]
        return solver

    def near_zero(self, values: np.ndarray) -> np.ndarray:
        """For which values the series around the shift is used."""
        return np.abs(values + self._shift) <= self._reach

    def by_series(self, b: np.ndarray, values: np.ndarray, outside: Map) -> np.ndarray:
        """For columns, each with its real value, near zero."""
        solver = self._at(complex(-self._shift))
        y = outside(solver.solve(b))
        for _ in range(3):
            y = outside(solver.solve(b + (values + self._shift) * y))
        return y

    def by_factors(self, b: np.ndarray, value: complex, outside: Map) -> np.ndarray:
        """For one vector."""
        return outside(self._at(value).solve(b))


def bottom_of(coarse: Coarse, kept: int) -> Bottom:
    """(A - value)^-1 on the last lattice, without the first `kept` modes, which Ritz values take care of.

    Known modes one by one. The others by the resolvent at the shift and corrections for the distance to a value near
    zero; by factors for the value itself if modes that are not known may be nearer to zero.
    """
    z, v, rates = coarse.functions, coarse.measures, coarse.rates
    inverses = _Inverses(coarse)

    def outside(y: np.ndarray) -> np.ndarray:
        rest = z @ (v.T @ y)
        return y - rest if np.iscomplexobj(y) else y - rest.real

    def bottom(right: np.ndarray, values: np.ndarray) -> np.ndarray:
        b = right.astype(complex)
        first = np.flatnonzero(values.imag > 0)
        b[:, first] += 1j * b[:, first + 1].real
        gap = rates[:, None] - values
        least = _NEAR * np.abs(rates)[:, None]
        close = np.abs(gap) < least  # as far as the blocks can tell
        gap = np.where(close, np.where(gap.real < 0, -least, least), gap)
        gap[:kept] = np.inf
        known = z @ ((v.T @ b) / gap)
        series = (values.imag == 0) & inverses.near_zero(values)
        result = np.zeros(b.shape, complex)
        if series.any():
            result[:, series] = inverses.by_series(outside(b.real[:, series]), values.real[series], outside)
        for column in np.flatnonzero(~series & (values.imag >= 0)):
            value = complex(values[column])
            given = b[:, column] if value.imag else b[:, column].real
            result[:, column] = inverses.by_factors(outside(given), value, outside)
        result += known
        real = result.real.copy()
        real[:, first + 1] = result[:, first].imag
        return real

    return bottom


def _ritz(
    gram: np.ndarray, form: np.ndarray, symmetric: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Values, the rotation to real columns of Ritz vectors, slowest first, and the block diagonal of the values."""
    size = np.sqrt(np.diag(gram))
    weights, turn = np.linalg.eigh(gram / np.outer(size, size))
    if not weights[0] > 1e-10:
        return None
    basis = turn / np.sqrt(weights) / size[:, None]
    small = basis.T @ form @ basis
    if symmetric:
        values, vectors = np.linalg.eigh(0.5 * (small + small.T))
        return values.astype(complex), basis @ vectors, np.diag(values)
    values, vectors = np.linalg.eig(small)
    order = np.lexsort((-values.imag, np.round(np.abs(values.imag), 12), np.round(values.real, 12)))
    values, vectors = values[order], vectors[:, order]
    columns, turned, at = np.empty(small.shape), np.zeros(small.shape), 0
    while at < len(values):
        if values[at].imag == 0:
            columns[:, at], turned[at, at] = vectors[:, at].real, values[at].real
            at += 1
            continue
        if values[at].imag < 0:
            values[at : at + 2], vectors[:, at : at + 2] = (
                values[at : at + 2].conj(),
                vectors[:, at : at + 2].conj(),
            )
        columns[:, at], columns[:, at + 1] = vectors[:, at].real, vectors[:, at].imag
        a, b = values[at].real, values[at].imag
        turned[at : at + 2, at : at + 2] = [[a, b], [-b, a]]
        values[at + 1] = np.conj(values[at])
        at += 2
    return values, basis @ columns, turned


def improved(
    planes: list[Plane],
    number: int,
    x: np.ndarray,
    wanted: int,
    noise: int,
    tol: float,
    bottom: Bottom,
    tails: float,
    *,
    conserving: bool = False,
    symmetric: bool = False,
    seen: float = 0.0,
) -> Found | None:
    """Iterate functions on a plane until the first `wanted` have converged; None if they do not.

    Each step: Ritz values, residuals, and a cycle for (A - value) on each residual (Jacobi-Davidson's correction). The
    last `noise` columns begin as noise and aim at 0: what blocks cannot see would appear there. `tails` is the largest
    residual anywhere (where there is at least the mass `seen`), relative to value and function, or 0 on blocks, where
    modes need not be accurate.
    """
    plane = planes[number]
    norm = 2.0 * float(plane.outflow.max())
    lanes = plane.lanes
    best, waited = np.inf, 0
    for count in range(_MOST_CYCLES):
        plane.fill_rim(x)
        gram, form, mean, drift = kernels.projections(x, x, plane.rates, plane.killed, plane.masses, lanes)
        if conserving:
            gram -= np.outer(mean, mean)
            form -= np.outer(mean, drift)
        found = _ritz(gram, form, symmetric) if np.isfinite(gram).all() and np.isfinite(form).all() else None
        if found is None:
            return None
        values, rotation, turn = found
        shown = wanted if symmetric else uncut(values, wanted, len(lanes) - noise, _ORDERED * np.abs(values))
        kernels.rotate(x, rotation, mean @ rotation if conserving else np.zeros(len(lanes)), lanes)
        plane.fill_rim(x)
        sums = kernels.rest(x, turn, plane.rates, plane.killed, plane.masses, seen, plane.right, lanes)
        size = np.abs(values[:shown])
        if tails:
            size = np.where(size > _ROUNDING * norm, size, size[size > _ROUNDING * norm].min(initial=norm))
        else:
            size = np.maximum(size, _ROUGH * size.max())
        off = sums[0] / sums[1]
        excess = off[:shown] / np.maximum(tol * size, _ROUNDING * norm)
        far = sums[2] / sums[3] / max(tails * float(size.max()), _TAILS_ROUNDING * norm)
        worst = max(float(excess.max()), float(far[:shown].max()) if tails else 0.0)
        if worst <= 1.0:
            return Found(x, turn, values, shown, count)
        waited = 0 if worst < 0.8 * best else waited + 1
        best = min(best, worst)
        if waited >= _PATIENCE or not np.isfinite(worst):
            return None
        aims = values.copy()
        aims[len(lanes) - noise :] = 0.0
        kernels.subtract(x, cycle(planes, number, aims, bottom), lanes)
    return None


def uncut(rates: np.ndarray, wanted: int, most: int, doubt: np.ndarray) -> int:
    """The first of `wanted` or more rates, slowest first, that cuts no pair, nor rates nearer than their doubt."""
    count = wanted
    while count < min(most, len(rates)):
        near = rates[count].real - doubt[count] < (rates.real + doubt)[:count].max()
        paired = np.abs(rates[:count] - np.conj(rates[count])).min() < 1e-6 * abs(rates[count])
        if not (near or (paired and rates[count].imag != 0)):
            break
        count += 1
    return count


def lanes_for(rates: np.ndarray, zeros: int, wanted: int) -> tuple[int, ...]:
    """As many functions as are iterated for the `wanted` slowest: more where others are near them."""
    width = max(_LANES, _STEP * -(-(wanted + NOISE) // _STEP))
    for more in (width, width + _STEP, width + 2 * _STEP):
        others = rates[zeros + more - NOISE :, None]
        if not others.size or np.all(
            np.abs(others - rates[zeros : zeros + wanted]) > _APART * np.abs(others)
        ):
            return (0,) * more
    return (0,) * (width + 2 * _STEP)


def tolerance(number: int, tol: float) -> float:
    """Relative residual to reach on a plane."""
    return tol if number == 0 else _COARSE_TOL


def climbed(
    planes: list[Plane], x: np.ndarray, wanted: int, tol: float, bottom: Bottom, noise: int, **kind: bool
) -> Found | None:
    """From functions on the last lattice to the modes on the first."""
    found = None
    for number in range(len(planes) - 2, -1, -1):
        x = planes[number].interpolated(x, planes[number + 1])
        add_noise(x, noise)
        found = improved(
            planes, number, x, wanted, noise, tolerance(number, tol), bottom, 0.0 if number else TAILS, **kind
        )
        if found is None:
            return None
    return found


def add_noise(x: np.ndarray, noise: int) -> None:
    """Fill the last columns with numbers that are the same every time."""
    m0, m1, width = x.shape
    random = np.random.Generator(np.random.PCG64(20240501))
    for column in range(width - noise, width):
        x[1:-1, 1:-1, column] = random.standard_normal((m0 - 2, m1 - 2))


def started(functions: np.ndarray, plane: Plane) -> np.ndarray:
    """Functions (columns) on a plane, with a rim and empty columns behind them."""
    x = plane.functions()
    x[1:-1, 1:-1, : functions.shape[1]] = functions.reshape(*plane.shape, -1)
    return x


# ---- with detailed balance -------------------------------------------------------------------------------


def suits_planes(chain: Chain) -> bool:
    """Whether the states are all cells of a rectangle that is worth blocks of cells."""
    place = chain.place
    return (
        chain.size > MANY
        and chain.extra is None
        and place is not None
        and place.cells is None
        and len(place.shape) == 2
        and min(place.shape) >= _NARROW
    )


def reversible_planes(chain: Chain) -> tuple[list[Plane], Chain] | None:
    """The chain and its blocks, each with its backward operator, and the chain of the last blocks."""
    planes: list[Plane] = []
    while True:
        assert chain.log_weights is not None
        assert chain.place is not None
        rates = rates_of(chain)
        if rates is None:
            return None
        shape = chain.place.shape
        planes.append(Plane(rates, chain.loss.reshape(shape), np.zeros(shape), chain.place.wrapped))
        planes[-1].find_absorbing_walls()
        planes[-1].weigh(chain.log_weights.reshape(shape))
        if chain.size <= COARSEST:
            return planes, chain
        chain = coarsened(chain, chain.log_weights).chain


def reversible_functions(chain: Chain, wanted: int, tol: float, slowest: Slowest) -> np.ndarray | None:
    """Left functions (n, wanted), orthonormal under the stationary masses, of the slowest modes that decay.

    Parameters
    ----------
    chain : Chain
        Reversible, for which `suits_planes` holds; at most one zero mode.
    wanted : int
    tol : float
        Residual relative to the eigenvalue.
    slowest : callable
        (chain of blocks, k) -> values, right masses, left functions of its k slowest modes.

    Returns
    -------
    ndarray or None
        None if the iteration does not converge: noise that is weak beside the blocks.
    """
    found = reversible_planes(chain)
    if found is None:
        return None
    planes, last = found
    zeros = len(last.closed_classes)
    values, right, left = slowest(last, min(zeros + 4 * _LANES + 2 * wanted, last.size // 4))
    lanes = lanes_for(-values, zeros, wanted)
    kept = zeros + len(lanes) - NOISE
    if len(values) < kept:
        return None
    shift = SHIFT * last.rate_scale
    measures = right / np.einsum("ia,ia->a", left, right)
    coarse = Coarse(-values, left, measures, last.matrix("backward", 0.0), shift)
    for plane in planes:
        plane.prepare(lanes, balanced=True)
    modes = climbed(
        planes,
        started(left[:, zeros:kept], planes[-1]),
        wanted,
        tol,
        bottom_of(coarse, kept),
        NOISE,
        conserving=zeros == 1,
        symmetric=True,
    )
    if modes is None or modes.values[wanted - 1].real > modes.values[len(lanes) - NOISE].real:
        return None
    return modes.x[1:-1, 1:-1, :wanted].reshape(-1, wanted)
