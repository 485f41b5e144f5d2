"""Slowest modes of large chains on a rectangle of cells: nested iteration over blocks, multigrid cycles, Ritz values.

The modes of a lattice of a few thousand blocks are interpolated to the next finer lattice, corrected there by cycles
that aim at each one's own eigenvalue, and so on: on the cells themselves some six cycles are left, for all modes at
once, and no factorisation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from solvers import block_lattice as kernels
from solvers.chain import Chain
from solvers.coarsening import coarsened
from solvers.factorisation import Solver, resolvent
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
# Functions are iterated in bundles of so many; of each as many begin as noise, to show what blocks cannot.
_LANES, NOISE = 8, 1
# Smaller chains are factored; thinner ones are lines.
MANY, _NARROW = 20_000, 40
# Shift of resolvents, beside the rate of diffusing across the grid.
SHIFT = 1e-3

Triple = tuple[np.ndarray, np.ndarray, np.ndarray]
Slowest = Callable[[Chain, int], Triple]


@dataclass
class Coarse:
    """Modes of the last lattice: rates (-eigenvalues), functions and dual measures (columns), and its resolvent."""

    rates: np.ndarray
    functions: np.ndarray
    measures: np.ndarray
    solver: Solver
    shift: float
    scale: np.ndarray | None = None  # of right vectors over the functions they are seen as


@dataclass
class Found:
    """An invariant subspace: functions with their rim, A x = x turn, their values, and the number of cycles."""

    x: np.ndarray
    turn: np.ndarray
    values: np.ndarray
    cycles: int


def bottom_of(coarse: Coarse, kept: int) -> Bottom:
    """(A - value)^-1 on the last lattice, without the first `kept` modes, which Ritz values take care of.

    Known modes one by one; the others by the resolvent at the shift and corrections for the distance to the value.
    """
    z, v, rates = coarse.functions, coarse.measures, coarse.rates

    def outside(y: np.ndarray) -> np.ndarray:
        return y - np.real(z @ (v.T @ y)) if not np.iscomplexobj(y) else y - z @ (v.T @ y)

    def inverse(b: np.ndarray) -> np.ndarray:
        if coarse.scale is None:
            return coarse.solver.solve(b, "T")
        return coarse.solver.solve(b * coarse.scale, "N") / coarse.scale

    def solve(b: np.ndarray) -> np.ndarray:
        if not np.iscomplexobj(b):
            return inverse(b)
        both = inverse(np.ascontiguousarray(np.hstack([b.real, b.imag])))
        return both[:, : b.shape[1]] + 1j * both[:, b.shape[1] :]

    def bottom(right: np.ndarray, values: np.ndarray) -> np.ndarray:
        b = right.astype(float)
        paired = np.flatnonzero(values.imag > 0)
        if len(paired):
            b = b.astype(complex)
            b[:, paired] += 1j * b[:, paired + 1].real
            values = values.copy()
            values[paired + 1] = values[paired]
            b[:, paired + 1] = 0.0
        else:
            values = values.real
        parts = v.T @ b
        gap = rates[:, None] - values
        least = _NEAR * np.abs(rates)[:, None]
        close = np.abs(gap) < least  # as far as the blocks can tell
        gap = np.where(close, np.where(gap.real < 0, -least, least), gap)
        gap[:kept] = np.inf
        known = parts / gap
        b = outside(b)
        y = outside(solve(b))
        for _ in range(3):
            y = outside(solve(b + (values + coarse.shift) * y))
        y = y + z @ known
        result = np.real(y).copy()
        if len(paired):
            result[:, paired + 1] = np.imag(y[:, paired])
        return result

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
) -> Found | None:
    """Iterate functions on a plane until the first `wanted` have converged; None if they do not.

    Each step: Ritz values, residuals, and a cycle for (A - value) on each residual (Jacobi-Davidson's correction). The
    last `noise` columns begin as noise and aim at 0: what blocks cannot see would appear there. `tails` is the largest
    residual anywhere, relative to value and function, or 0 on blocks, where modes need not be accurate.
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
        kernels.rotate(x, rotation, mean @ rotation if conserving else np.zeros(len(lanes)), lanes)
        plane.fill_rim(x)
        sums = kernels.rest(x, turn, plane.rates, plane.killed, plane.masses, plane.right, lanes)
        size = np.abs(values[:wanted])
        if tails:
            size = np.where(size > _ROUNDING * norm, size, size[size > _ROUNDING * norm].min(initial=norm))
        else:
            size = np.maximum(size, _ROUGH * size.max())
        off = sums[0] / sums[1]
        excess = off[:wanted] / np.maximum(tol * size, _ROUNDING * norm)
        far = sums[2] / sums[3] / max(tails * float(size.max()), _TAILS_ROUNDING * norm)
        worst = max(float(excess.max()), float(far[:wanted].max()) if tails else 0.0)
        if worst <= 1.0:
            return Found(x, turn, values, count)
        waited = 0 if worst < 0.8 * best else waited + 1
        best = min(best, worst)
        if waited >= _PATIENCE or not np.isfinite(worst):
            return None
        aims = values.copy()
        aims[len(lanes) - noise :] = 0.0
        kernels.subtract(x, cycle(planes, number, aims, bottom), lanes)
    return None


def lanes_for(rates: np.ndarray, zeros: int, wanted: int) -> tuple[int, ...]:
    """As many functions as are iterated for the `wanted` slowest: more where others are near them."""
    width = _LANES * -(-(wanted + NOISE) // _LANES)
    for more in (width, width + _LANES):
        others = rates[zeros + more - NOISE :, None]
        if not others.size or np.all(
            np.abs(others - rates[zeros : zeros + wanted]) > _APART * np.abs(others)
        ):
            return (0,) * more
    return (0,) * (width + _LANES)


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
    coarse = Coarse(-values, left, measures, resolvent(last, shift), shift)
    for plane in planes:
        plane.prepare(lanes)
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
