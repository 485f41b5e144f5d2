"""Slowest modes of reversible chains on large grids: nested iteration, Davidson steps, multigrid cycles.

The finest grid needs the chain's rates in double precision (one operator), the hierarchy in single precision
and the Davidson basis: about 500 bytes a cell for four modes, and no factorisation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from solvers import memory
from solvers.backward import extend
from solvers.blas_threads import one_blas_thread
from solvers.chain import Chain
from solvers.davidson import davidson
from solvers.errors import ConvergenceFailure
from solvers.multigrid import Level, Multigrid, dense_matrix, has_lattice, operator, spread
from solvers.starts import Start

# Vectors beyond the wanted ones, so that the next mode is not far from the start space.
_SPARE = 2
# On coarser lattices a mode need not be better than the lattice is.
_COARSE_TOL = 1e-3
# Beyond this many cells in three dimensions the fill of a factorisation costs more than cycles.
_LARGE = 20000
# Measured: hierarchy and operator, and per vector of the Davidson basis and of the results.
_BYTES, _BYTES_PER_MODE = 350, 60
# Where both are below this fraction of their largest, psi / sqrt(pi) has too few digits.
_RELIABLE = 1e-6
_TINY_WEIGHT = 1e-100
# A mode of a coarse lattice that lies in the start by less than this is new.
_FOUND = 0.5
# A quotient of sums of squares is rounded by eps^2 of the norm, times a factor measured up to 1e2.
_QUOTIENT = 1e6 * np.finfo(float).eps ** 2


def suits_multigrid(chain: Chain) -> bool:
    """Whether the chain is one for `multigrid_modes`."""
    return chain.reversible and has_lattice(chain)


def prefers_multigrid(chain: Chain) -> bool:
    """Whether multigrid beats a factorisation: three dimensions, many cells."""
    return suits_multigrid(chain) and len(chain.widths) == 3 and chain.size > _LARGE


@dataclass
class LargeModes:
    """Eigenvalues, right masses and left functions (columns, bi-orthonormal), backward errors, doubts."""

    values: np.ndarray
    right: np.ndarray
    left: np.ndarray
    residual: np.ndarray
    zeros: int
    norm: float
    doubts: tuple[str, ...]
    spare: np.ndarray


def multigrid_modes(chain: Chain, k: int, tol: float, start: Start | None = None) -> LargeModes:
    """The k slowest modes of a reversible chain on a grid, from those of a neighbour if there is one.

    Raises
    ------
    InvalidInput
        If memory would not suffice.
    ConvergenceFailure
        If an iteration stagnates.
    """
    assert chain.log_weights is not None
    memory.require(
        (_BYTES + _BYTES_PER_MODE * (k + _SPARE)) * chain.size,
        f"the {k} slowest modes of {chain.size} cells",
        "use fewer cells or modes",
    )
    null = _null_rows(chain)
    zeros = len(null)
    found = slowest_symmetric(chain, k - zeros, null, tol, start) if k > zeros else None
    rates, psi, residuals = np.zeros(0), np.zeros((0, chain.size)), np.zeros(0)
    norm = 2.0 * float(chain.outflow.max())
    if found is not None:
        rates, psi, residuals = found.rates, found.vectors, found.residuals
    right, left = np.empty((k, chain.size)), np.empty((k, chain.size))
    for a in range(k):
        left[a] = null[a] != 0 if a < zeros else 0.0
    _fill_functions(chain, rates, psi, left[zeros:])
    for a in range(k):
        _normalise(chain, left[a], right[a])
    floor = _QUOTIENT * norm
    lost = rates[rates < floor]
    doubts = ()
    if lost.size:
        doubts = (
            f"the eigenvalue {lost[0]:.3g} is below {floor:.2g}, what rounding of its eigenvector leaves of it; "
            "use more noise",
        )
    return LargeModes(
        np.concatenate([np.zeros(min(zeros, k)), -rates])[:k],
        right.T,
        left.T,
        np.concatenate([np.zeros(zeros), residuals])[:k] / norm,
        zeros,
        norm,
        doubts,
        _as_functions(chain, found),
    )


def _as_functions(chain: Chain, found: SymmetricModes | None) -> np.ndarray:
    """The spare vectors over sqrt(pi), columns, where there is mass: to start from."""
    if found is None:
        return np.zeros((chain.size, 0))
    assert chain.log_weights is not None
    weight = np.exp(0.5 * (chain.log_weights - chain.log_weights.max()))
    return np.where(weight > _TINY_WEIGHT, found.spare / np.maximum(weight, _TINY_WEIGHT), 0.0).T


def _null_rows(chain: Chain) -> np.ndarray:
    """Orthonormal null vectors sqrt(pi), one for each part that is never left."""
    weights = chain.log_weights
    assert weights is not None
    whole = chain.cells is None and chain.forward.min() > 0 and chain.backward.min() > 0
    in_one_piece = [] if np.any(chain.loss) else [np.arange(chain.size)]
    classes = in_one_piece if whole else chain.closed_classes
    null = np.zeros((len(classes), chain.size))
    for row, states in zip(null, classes, strict=True):
        row[states] = np.exp(0.5 * (weights[states] - weights[states].max()))
        row /= np.linalg.norm(row)
    return null


def _fill_functions(chain: Chain, rates: np.ndarray, psi: np.ndarray, left: np.ndarray) -> None:
    """Write vectors over sqrt(pi) where they have digits; elsewhere from the equation of the eigenfunction."""
    weights = chain.log_weights
    assert weights is not None
    known = np.ones(chain.size, dtype=bool)
    for row, out in zip(psi, left, strict=True):
        size = np.abs(row)
        digits = (size > _RELIABLE * size.max()) | (weights > 2 * np.log(_RELIABLE))
        known &= digits
        usable = digits | (size > 1e-12 * size.max())
        log_size = np.log(np.maximum(size[usable], 1e-300)) - 0.5 * weights[usable]
        out[usable] = np.sign(row[usable]) * np.exp(log_size - log_size[digits[usable]].max())
    if len(psi):
        extend(chain, rates, left, known)


def _normalise(chain: Chain, left: np.ndarray, right: np.ndarray) -> None:
    """Write right = pi * left, masses with absolute values summing to 1, and scale left to left . right = 1."""
    weights = chain.log_weights
    assert weights is not None
    size = np.abs(left)
    log_mass = weights + np.log(np.where(size > 0, size, 1.0))
    with np.errstate(under="ignore"):
        np.multiply(np.sign(left), np.exp(log_mass - log_mass[size > 0].max()), out=right)
    size = np.abs(right)
    right /= size.sum()
    anchor = int(np.argmax(size > 0.5 * size.max()))
    sign = np.sign(right[anchor])
    right *= sign
    left *= sign
    with np.errstate(under="ignore"):
        left /= left @ right


@dataclass
class SymmetricModes:
    """Decay rates and orthonormal vectors psi (rows) of the symmetrised generator, without the known null ones.

    `residuals` are |S psi + rate psi| / |psi| in the 1-norm weighted by sqrt(pi): those of right and left vectors.
    `spare` are approximate vectors of the next modes.
    """

    rates: np.ndarray
    vectors: np.ndarray
    residuals: np.ndarray
    cycles: int
    steps: int
    spare: np.ndarray


@one_blas_thread
def slowest_symmetric(
    chain: Chain, wanted: int, null: np.ndarray, tol: float, start: Start | None = None
) -> SymmetricModes:
    """The slowest decaying modes of a reversible chain with a lattice.

    The modes of a lattice small enough for dense algebra are interpolated to the next finer one, corrected
    there, and so on: on the last lattice a few steps are left.

    Parameters
    ----------
    chain : Chain
    wanted : int
    null : ndarray of shape (z, n)
        Orthonormal null vectors of the symmetrised generator, as rows; deflated.
    tol : float
        Residual relative to the decay rate.
    start : Start, optional
        Modes of a neighbour, in place of those of coarser lattices.

    Raises
    ------
    ConvergenceFailure
        If the iteration stagnates.
    """
    assert chain.log_weights is not None
    grid = Multigrid(chain, "symmetric", follow_slow=False)
    fine = operator(grid.rates[0], "symmetric", float)
    grid.rates[0] = grid.rates[-1]  # the largest arrays, not needed any more
    weight = np.exp(0.5 * (chain.log_weights - chain.log_weights.max()))
    weight /= np.linalg.norm(weight)
    norm = 2.0 * float(fine.diagonal.max())
    rows = _neighbours(start, wanted, len(null), weight)
    if rows is None or not _represented(_nested_start(grid, wanted, len(null), 2, chain.cells), rows, null):
        rows = _nested_start(grid, wanted, len(null), 1, chain.cells)
    apply = _on_states(fine, chain.cells)
    pairs = davidson(apply, grid, rows, wanted=wanted, tol=tol, norm=norm, known=null, weight=weight)
    del grid, rows
    rates, vectors = _dirichlet_ritz(chain, pairs.vectors)
    rests = [np.abs(apply(row) - rate * row) for rate, row in zip(rates, vectors, strict=True)]
    residuals = [weight @ rest / (weight @ np.abs(row)) for rest, row in zip(rests, vectors, strict=True)]
    return SymmetricModes(rates, vectors, np.array(residuals), pairs.corrections, pairs.steps, pairs.spare)


def _neighbours(start: Start | None, wanted: int, zeros: int, weight: np.ndarray) -> np.ndarray | None:
    """Symmetric vectors of a start, rows; None if there are too few."""
    if start is None:
        return None
    functions = start.functions(zeros)[:, : wanted + _SPARE].T
    if len(functions) < wanted or functions.shape[1] != len(weight):
        return None
    return functions * weight


def _represented(coarse: np.ndarray, rows: np.ndarray, null: np.ndarray) -> bool:
    """Whether more than half of each mode of a coarse lattice lies in the span of rows and null vectors."""
    basis = np.linalg.qr(np.vstack([null, rows]).T)[0]
    shares = np.sum((coarse @ basis) ** 2, axis=1) / np.sum(coarse**2, axis=1)
    return bool(shares[: len(shares) - _SPARE].min(initial=1.0) > _FOUND)


def _on_states(level: Level, cells: np.ndarray | None):
    shape = level.diagonal.shape
    out = np.zeros(shape)
    if cells is None:
        return lambda x: level.apply(x.reshape(shape), out).ravel()
    whole = np.zeros(shape)

    def apply(x: np.ndarray) -> np.ndarray:
        whole.ravel()[cells] = x
        return level.apply(whole, out).ravel()[cells]

    return apply


def _nested_start(
    grid: Multigrid, wanted: int, zeros: int, finest: int, cells: np.ndarray | None
) -> np.ndarray:
    """Approximate modes on the states, rows: null ones first, a few more than wanted; from lattice `finest` on up."""
    count, last = zeros + wanted, len(grid.levels) - 1
    random = np.random.Generator(np.random.PCG64(20240501))
    start = np.zeros((0, grid.levels[last].diagonal.size))
    for number in range(last, 0, -1):
        level = operator(grid.rates[number], "symmetric", float)
        size = level.diagonal.size
        alive = grid.rates[number].alive
        missing = min(count + _SPARE, size) - len(start) if number == last else 0
        fresh = random.standard_normal((max(missing, 0) + 1, size))
        if alive is not None:
            fresh = fresh * alive.ravel()
        target = min(count, size // 4)
        if len(start) + len(fresh) > size // 2:
            start = _dense_modes(level, alive, count + _SPARE)
        elif number >= finest:
            found = davidson(
                _on_states(level, None), lambda x, at=number: grid.cycle(x, at), np.vstack([start, fresh]),
                wanted=target, tol=_COARSE_TOL, norm=2.0 * float(level.diagonal.max()), common_scale=True,
            )  # fmt: skip
            start = np.vstack([found.vectors, found.spare])[: count + _SPARE]
        shape = level.diagonal.shape
        steps = grid.levels[number - 1].steps
        start = np.array(
            [spread(steps, v.reshape(shape).astype(np.float32)).ravel() for v in start], dtype=float
        )
    if last == 0:
        level = operator(grid.rates[0], "symmetric", float)
        start = _dense_modes(level, grid.rates[0].alive, count + _SPARE)
    return start if cells is None else start[:, cells]


def _dense_modes(level: Level, alive: np.ndarray | None, count: int) -> np.ndarray:
    size, matrix = level.diagonal.size, dense_matrix(level)
    if alive is not None:
        matrix = matrix[alive.ravel()][:, alive.ravel()]
    _, vectors = np.linalg.eigh(0.5 * (matrix + matrix.T))
    rows = np.zeros((min(count, len(matrix)), size))
    rows[:, slice(None) if alive is None else alive.ravel()] = vectors[:, : len(rows)].T
    return rows


# ---- decay rates as sums of squares ----------------------------------------------------------------------


@njit(cache=True)
def _dirichlet_form(first, second, forward, backward, loss, vectors):
    """Sum over pairs of d d^T with d = sqrt(forward) psi_first - sqrt(backward) psi_second, plus the losses.

    Summed in blocks, so that rounding does not grow with the number of pairs.
    """
    k = vectors.shape[0]
    total, part, d = np.zeros((k, k)), np.zeros((k, k)), np.zeros(k)
    for e in range(len(first)):
        a, b = np.sqrt(forward[e]), np.sqrt(backward[e])
        for i in range(k):
            d[i] = a * vectors[i, first[e]] - b * vectors[i, second[e]]
        for i in range(k):
            for j in range(i + 1):
                part[i, j] += d[i] * d[j]
        if e % 4096 == 4095:
            total += part
            part[:] = 0.0
    total += part
    part[:] = 0.0
    for s in range(len(loss)):
        if loss[s] > 0.0:
            for i in range(k):
                for j in range(i + 1):
                    part[i, j] += loss[s] * vectors[i, s] * vectors[j, s]
    total += part
    return total


def _dirichlet_ritz(chain: Chain, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decay rates without cancellation, and vectors rotated to diagonalise that form, slowest first."""

    def form(rows: np.ndarray) -> np.ndarray:
        half = _dirichlet_form(chain.first, chain.second, chain.forward, chain.backward, chain.loss, rows)
        return half + np.tril(half, -1).T

    matrix = form(vectors)
    if not np.isfinite(matrix).all():
        raise ConvergenceFailure("the modes overflow; use a narrower grid")
    _, rotation = np.linalg.eigh(matrix)
    vectors = rotation.T @ vectors
    vectors /= np.linalg.norm(vectors, axis=1)[:, None]
    # quotients vector by vector: eigh of the form has absolute accuracy only
    rates = np.diag(form(vectors)).copy()
    order = np.argsort(rates, kind="stable")
    return rates[order], vectors[order]
