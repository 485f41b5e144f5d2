"""Eigenmodes of chains with detailed balance, from the symmetrised generator."""

from __future__ import annotations

import numpy as np
import scipy.linalg as sl
import scipy.sparse as sps

from solvers.bidiagonal import line_values
from solvers.block_krylov import block_krylov
from solvers.chain import Chain
from solvers.chain_kernels import difference_form, difference_squares, project
from solvers.coarsening import coarsened
from solvers.factorisation import on_fronts, start_vector, symmetric_resolvent
from solvers.left_functions import PEAK, extend_left, from_peaks, left_from_symmetric
from solvers.multifrontal import Factors
from solvers.plane_modes import reversible_functions
from solvers.starts import Start
from solvers.symmetric_bases import SHIFT, lanczos_basis, rayleigh_ritz, tridiagonal_basis, without
from solvers.twisted import line_modes

# Eigenvectors are rounded by about eps, and a quotient of sums of squares by eps^2 of the norm, times a factor
# that grows with the problem: measured 1e-2 to 1e2.
_QUOTIENT = 1e6 * np.finfo(float).eps ** 2
# Eigenvalues nearer to zero than this fraction of the norm share one subspace for LAPACK and ARPACK.
_TINY = 1e4 * np.finfo(float).eps
# Longer lines, and grids of more states, start from blocks of states.
LONG_LINE, MANY = 8000, 20_000
# Vectors iterated beside the wanted ones.
_GUARDS = 2
# Weights below exp of this leave their functions to a solve: products of vectors with them would underflow.
_GRADED = -1300.0


def symmetrised(chain: Chain) -> sps.csc_array:
    """S = W^-1/2 L W^1/2 from the rates alone, so that tiny weights neither underflow nor overflow."""
    return sps.csc_array(-chain.matrix("symmetrised", 0.0).T)


def reversible_modes(
    chain: Chain, k: int, method: str, tol: float, start: Start | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]:
    """Eigenvalues, right masses and left functions of the k slowest modes, and what is doubtful about them.

    Iterations begin with the functions of `start`; on lines there are none.
    """
    assert chain.log_weights is not None
    if method == "tridiagonal" and chain.size > LONG_LINE:
        zeros = len(chain.closed_classes)
        found = line_modes(chain, max(k - zeros, 0)) if zeros < 2 else None
        if found is not None:
            values, left = found
            values = np.concatenate([np.zeros(zeros), -values])[:k]
            left = np.hstack([np.ones((chain.size, zeros)), left])[:, :k]
            with np.errstate(under="ignore"):
                return values, np.exp(chain.log_weights)[:, None] * left, left, ()
    with np.errstate(under="ignore"):
        half = np.exp(0.5 * chain.log_weights)
    null = np.zeros((chain.size, len(chain.closed_classes)))
    for column, states in enumerate(chain.closed_classes):
        peak = chain.log_weights[states].max()
        null[states, column] = np.exp(0.5 * (chain.log_weights[states] - peak))
        null[:, column] /= np.linalg.norm(null[:, column])
    wanted = max(k - null.shape[1], 0)
    exact = None
    if method == "tridiagonal":
        exact = _tiny_values(chain, wanted)
        # all tiny modes together: one by one LAPACK could not tell them apart
        together = k if exact is None else min(max(wanted, len(exact)) + null.shape[1], chain.size)
        basis = tridiagonal_basis(chain, together, null)
    elif method == "dense":
        _, basis = sl.eigh(symmetrised(chain).toarray(), subset_by_index=[chain.size - k, chain.size - 1])
        basis = without(basis, null, wanted)
    elif not wanted:
        basis = np.zeros((chain.size, 0))
    elif method == "shift-invert" and chain.size > MANY and on_fronts(chain) and null.shape[1] < 2:
        return _graded_modes(chain, k, half, null, tol, start)
    else:
        basis = lanczos_basis(chain, wanted, null, tol, _start_sum(start, wanted, null.shape[1], half))
    values, vectors = rayleigh_ritz(chain, basis)
    values, doubts = _settled(values, exact, float(chain.outflow.max(initial=0.0)), wanted)
    values = np.concatenate([np.zeros(null.shape[1]), values])[:k]
    vectors = np.hstack([null, vectors])[:, :k]
    adjoint = sps.csr_array(chain.generator.T)
    left = np.column_stack(
        [
            left_from_symmetric(chain, adjoint, values[a], vectors[:, a], first=a < null.shape[1])
            for a in range(len(values))
        ]
    )
    left = from_peaks(chain, values, left, vectors, null.shape[1], tol)
    right = np.exp(chain.log_weights)[:, None] * left
    # where the vector is large beside sqrt(weight), keep it; the product serves the far tails
    reliable = np.abs(vectors) > PEAK * np.abs(vectors).max(axis=0)
    scale = _ratio(right, vectors * half[:, None], reliable)
    right = np.where(reliable, vectors * half[:, None] * scale, right)
    return values, right, left, doubts


def _start_sum(start: Start | None, wanted: int, zeros: int, half: np.ndarray) -> np.ndarray | None:
    """The sum of the symmetric vectors of a start; None if there are too few."""
    block = _start_block(start, wanted, zeros, half)
    if block is None:
        return None
    block = block[:, :wanted]
    return np.sum(block / np.linalg.norm(block, axis=0), axis=1)


def _start_block(start: Start | None, wanted: int, zeros: int, half: np.ndarray) -> np.ndarray | None:
    """Symmetric vectors of a start, and one of random values for what it cannot see; None if there are too few."""
    if start is None:
        return None
    functions = start.functions(zeros)[:, : wanted + _GUARDS]
    if functions.shape[1] < wanted or len(functions) != len(half):
        return None
    return np.column_stack([functions * half[:, None], half * start_vector(len(half), 2)])


def _iterated(solver: Factors, known: np.ndarray, start: np.ndarray, wanted: int, tol: float) -> np.ndarray:
    """Slowest symmetric modes beside the known ones, in the order of elimination."""

    def apply(block: np.ndarray) -> np.ndarray:
        project(block, known, known)
        solver.solve_ordered(block)
        project(block, known, known)
        return block

    found = block_krylov(apply, apply(start), wanted, 0.1 * tol, symmetric=True)
    return apply(found.vectors)  # once more: cleans the rounding of the iteration


def _graded_modes(
    chain: Chain, k: int, half: np.ndarray, null: np.ndarray, tol: float, start: Start | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]:
    """Modes of a large chain on a grid, started from those of a neighbour, or of blocks of cells.

    Start, solves and rotations keep every row of psi = sqrt(weight) q to its own digits, so q = psi / sqrt(weight)
    needs no second solve where there is no mass.
    """
    assert chain.log_weights is not None
    wanted = k - null.shape[1]
    block = _start_block(start, wanted, null.shape[1], half)
    if block is None:
        block = _start_functions(chain, wanted + _GUARDS)
        block *= half[:, None]
    solver = symmetric_resolvent(chain, SHIFT * chain.rate_scale)
    assert isinstance(solver, Factors)
    order = solver.order
    ordered = _iterated(solver, null[order], block[order], wanted, tol)
    del solver, block
    vectors = np.empty_like(ordered)
    vectors[order] = ordered
    del ordered
    pairs = chain.first, chain.second, chain.forward, chain.backward, chain.loss
    form = difference_form(*pairs, vectors)
    _, rotation = sl.eigh(form, vectors.T @ vectors)
    vectors = vectors @ rotation[:, :wanted]
    vectors /= np.linalg.norm(vectors, axis=0)
    # quotients vector by vector: eigh of the form has absolute accuracy only
    squares = difference_squares(*pairs, vectors)
    order = np.argsort(squares, kind="stable")
    values, vectors = -squares[order], vectors[:, order]
    values, doubts = _settled(values, None, float(chain.outflow.max(initial=0.0)), wanted)
    reliable = chain.log_weights > _GRADED
    with np.errstate(under="ignore", invalid="ignore", divide="ignore"):
        left = vectors / half[:, None]
        if not reliable.all():
            adjoint = sps.csr_array(chain.generator.T)
            columns = [extend_left(adjoint, values[a], left[:, a], reliable) for a in range(len(values))]
            left = np.column_stack(columns)
        left = from_peaks(chain, values, left, vectors, 0, tol)
        left = np.hstack([np.ones_like(null), left])
        right = np.exp(chain.log_weights)[:, None] * left
    return np.concatenate([np.zeros(null.shape[1]), values]), right, left, doubts


def modes_on_planes(
    chain: Chain, k: int, tol: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]] | None:
    """The same for all cells of a large rectangle without a factorisation; None if that does not converge."""
    assert chain.log_weights is not None
    zeros = len(chain.closed_classes)
    if zeros > 1 or k <= zeros:
        return None
    functions = reversible_functions(
        chain, k - zeros, tol, lambda blocks, count: reversible_modes(blocks, count, "shift-invert", 1e-6)[:3]
    )
    if functions is None:
        return None
    with np.errstate(under="ignore"):
        weights = np.exp(chain.log_weights)
        # weight times rate is the same both ways: the form is a sum of squares of differences of functions
        flow = np.sqrt(weights[chain.first] * chain.forward) * np.sqrt(weights[chain.second] * chain.backward)
        pairs = chain.first, chain.second, flow, flow, weights * chain.loss
        form = difference_form(*pairs, functions)
        gram = functions.T @ (weights[:, None] * functions)
    _, rotation = sl.eigh(form, gram)
    functions = functions @ rotation
    with np.errstate(under="ignore"):
        # quotients vector by vector: eigh of the form has absolute accuracy only
        squares = difference_squares(*pairs, functions) / np.einsum(
            "i,ia,ia->a", weights, functions, functions
        )
    order = np.argsort(squares, kind="stable")
    values, doubts = _settled(-squares[order], None, float(chain.outflow.max(initial=0.0)), k - zeros)
    left = np.empty((chain.size, k))
    left[:, :zeros], left[:, zeros:] = 1.0, functions[:, order]
    del functions
    with np.errstate(under="ignore"):
        return np.concatenate([np.zeros(zeros), values]), weights[:, None] * left, left, doubts


def _start_functions(chain: Chain, count: int) -> np.ndarray:
    """Left functions near the slowest nonconstant ones, and one of random values for what blocks cannot see."""
    assert chain.log_weights is not None
    levels = [coarsened(chain, chain.log_weights)]
    blocks = levels[0].chain
    assert blocks.log_weights is not None
    levels.append(coarsened(blocks, blocks.log_weights))
    blocks = levels[1].chain
    zeros = len(blocks.closed_classes)
    room = blocks.size // 4
    _, _, functions, _ = reversible_modes(blocks, min(count + zeros, room), "shift-invert", 1e-6)
    functions = functions[:, zeros:]
    for level in levels[::-1]:
        functions = level.interpolate(functions)
    return np.column_stack([functions, start_vector(chain.size, 2)])


def _tiny_values(chain: Chain, wanted: int) -> np.ndarray | None:
    """Exact decay rates: the wanted ones, and all tiny ones."""
    tiny = _TINY * float(chain.outflow.max())
    count = wanted
    while True:
        found = line_values(chain, count + 1)
        if found is None or len(found) <= count or found[-1] > tiny:
            return found if found is None else found[: max(wanted, int(np.sum(found <= tiny)))]
        count *= 2
        count += 1


def _settled(
    values: np.ndarray, exact: np.ndarray | None, norm: float, wanted: int
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Eigenvalues, exact ones where there are any, and what cannot be trusted about the modes."""
    if exact is not None:
        count = min(len(values), len(exact))
        off = np.abs(-values[:count] - exact[:count]) > 0.01 * exact[:count]
        settled = np.concatenate([-exact[:count], values[count:]])
        if np.sum(off) < 2 or not off[:wanted].any():  # one alone is fixed by being orthogonal to the others
            return settled, ()
        return settled, (
            f"{np.sum(off)} eigenvalues down to {exact[0]:.3g} differ by less than the rounding of their "
            f"eigenvectors, {np.finfo(float).eps ** 2 * norm:.1g}: the eigenvalues are right, but these "
            "eigenvectors may be mixed among each other; use more noise",
        )
    floor = _QUOTIENT * norm
    lost = -values[:wanted][-values[:wanted] < floor]
    if not lost.size:
        return values, ()
    return values, (
        f"the eigenvalue {-lost[0]:.3g} is below {floor:.2g}, what rounding of its eigenvector leaves of it; "
        "use more noise",
    )


def _ratio(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> np.ndarray:
    best = np.argmax(np.where(where, np.abs(b), 0.0), axis=0)
    columns = np.arange(b.shape[1])
    return a[best, columns] / b[best, columns]
