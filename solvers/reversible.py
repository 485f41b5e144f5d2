"""Eigenmodes of chains with detailed balance, from the symmetrised generator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg as sl
import scipy.sparse as sps
import scipy.sparse.linalg as spl

from solvers.bidiagonal import line_values
from solvers.block_krylov import block_krylov
from solvers.chain import Chain
from solvers.chain_kernels import difference_form, difference_squares, project
from solvers.coarsening import coarsened
from solvers.errors import ConvergenceFailure
from solvers.factorisation import arpack, factor, on_fronts, start_vector, symmetric_resolvent
from solvers.multifrontal import Factors
from solvers.plane_modes import reversible_functions
from solvers.starts import Start
from solvers.twisted import line_modes

# Entries of an eigenvector below this fraction of its largest are solved for anew, not divided by tiny
# weights.
RELIABLE = 1e-6
# Eigenvectors are rounded by about eps, and a quotient of sums of squares by eps^2 of the norm, times a factor
# that grows with the problem: measured 1e-2 to 1e2.
_QUOTIENT = 1e6 * np.finfo(float).eps ** 2
# Eigenvalues nearer to zero than this fraction of the norm share one subspace for LAPACK and ARPACK.
_TINY = 1e4 * np.finfo(float).eps
# Shift of shift-invert, beside the rate of diffusing across the grid.
_SHIFT = 1e-3
# Longer lines, and grids of more states, start from blocks of states.
LONG_LINE, MANY = 8000, 20_000
# The search for missed modes: steps, at least and at most, and the accuracy of what it finds.
_FEWEST, _SEARCH_STEPS, _SEARCHED = 8, 100, 1e-3
_REFINEMENTS = 3
# Beside its largest entry, psi of one mode is told from rounding of the others.
_PEAK = 1e-2
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
        basis = _tridiagonal_basis(chain, together, null)
    elif method == "dense":
        _, basis = sl.eigh(symmetrised(chain).toarray(), subset_by_index=[chain.size - k, chain.size - 1])
        basis = _without(basis, null, wanted)
    elif not wanted:
        basis = np.zeros((chain.size, 0))
    elif method == "shift-invert" and chain.size > MANY and on_fronts(chain) and null.shape[1] < 2:
        return _graded_modes(chain, k, half, null, tol, start)
    else:
        basis = _lanczos_basis(chain, wanted, null, tol, _start_sum(start, wanted, null.shape[1], half))
    values, vectors = _rayleigh_ritz(chain, basis)
    values, doubts = _settled(values, exact, float(chain.outflow.max(initial=0.0)), wanted)
    values = np.concatenate([np.zeros(null.shape[1]), values])[:k]
    vectors = np.hstack([null, vectors])[:, :k]
    adjoint = sps.csr_array(chain.generator.T)
    left = np.column_stack(
        [
            _left_from_symmetric(chain, adjoint, values[a], vectors[:, a], first=a < null.shape[1])
            for a in range(len(values))
        ]
    )
    left = _from_peaks(chain, values, left, vectors, null.shape[1], tol)
    right = np.exp(chain.log_weights)[:, None] * left
    # where the vector is large beside sqrt(weight), keep it; the product serves the far tails
    reliable = np.abs(vectors) > _PEAK * np.abs(vectors).max(axis=0)
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
    solver = symmetric_resolvent(chain, _SHIFT * chain.rate_scale)
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
        left = _from_peaks(chain, values, left, vectors, 0, tol)
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


def _tridiagonal_basis(chain: Chain, k: int, null: np.ndarray) -> np.ndarray:
    off = np.zeros(chain.size - 1)
    off[chain.first] = np.sqrt(chain.forward) * np.sqrt(chain.backward)
    _, vectors = sl.eigh_tridiagonal(
        -chain.outflow, off, select="i", select_range=(chain.size - k, chain.size - 1)
    )
    return _without(vectors, null, max(k - null.shape[1], 0))


def _without(vectors: np.ndarray, null: np.ndarray, wanted: int) -> np.ndarray:
    """An orthonormal basis of the part of a subspace orthogonal to the known null vectors."""
    rest = vectors - null @ (null.T @ vectors)
    rest -= null @ (null.T @ rest)
    left, size, _ = np.linalg.svd(rest, full_matrices=False)
    if wanted and size[wanted - 1] < 0.5:
        raise ConvergenceFailure(
            f"the subspace of the {wanted} slowest modes overlaps the stationary one (singular value "
            f"{size[wanted - 1]:.2g}); use a narrower grid"
        )
    return left[:, :wanted]


def _lanczos_basis(
    chain: Chain, wanted: int, null: np.ndarray, tol: float, near: np.ndarray | None
) -> np.ndarray:
    """Shift-invert Lanczos with the null space projected out, then a search for modes it missed.

    From a sum of vectors near the modes it needs half as many steps.
    """
    shift = _SHIFT * chain.rate_scale
    lu = symmetric_resolvent(chain, shift)

    def inverse(x: np.ndarray, known: np.ndarray) -> np.ndarray:
        x = x - known @ (known.T @ x)
        x = lu.solve(x)
        return x - known @ (known.T @ x)

    def largest(count: int, known: np.ndarray, start: np.ndarray, ncv: int) -> np.ndarray:
        shape = (chain.size, chain.size)
        solve = spl.LinearOperator(shape, matvec=lambda x: inverse(x.ravel(), known), dtype=float)  # pyright: ignore[reportCallIssue]
        settings = {
            "k": count,
            "which": "LA",
            "v0": start,
            "tol": 0.01 * tol,
            "ncv": min(ncv, chain.size - 1),
        }
        return arpack(spl.eigsh, solve, **settings)[1]

    vector, ncv = start_vector(chain.size), max(2 * wanted + 10, 20)
    if near is not None:
        vector, ncv = inverse(near, null), 2 * wanted + 4
    basis = largest(wanted, null, vector, ncv)
    basis = np.linalg.qr(inverse(basis, null))[0]  # one more inverse iteration cleans all vectors at once
    for _ in range(8):
        slowest = _rayleigh_ritz(chain, basis)[0][:wanted]
        known = np.hstack([null, basis])
        limit = (1 + _SEARCHED) / (shift - float(slowest[-1]))
        vector = _missed(lambda x, known=known: inverse(x, known), known, limit)
        if vector is None:
            return basis
        basis = np.linalg.qr(np.hstack([basis, largest(1, known, vector, 20)]))[0]
        basis = np.linalg.qr(inverse(basis, null))[0]
    raise ConvergenceFailure(
        "Lanczos keeps finding missed modes (a large cluster of eigenvalues); ask for larger k"
    )


def _missed(apply: Callable[[np.ndarray], np.ndarray], known: np.ndarray, limit: float) -> np.ndarray | None:
    """A vector of the deflated operator's largest eigenvalue if that is above the limit.

    Lanczos steps from another random vector, until the largest Ritz value with its residual, within which there is an
    eigenvalue, is below the limit, or has converged above it.
    """
    vector = start_vector(len(known), 1)
    vector -= known @ (known.T @ vector)
    basis = np.empty((len(known), min(_SEARCH_STEPS, len(known) - known.shape[1])))
    diagonal, beside = [], []
    values, small, so_far = np.zeros(1), np.zeros((0, 1)), basis[:, :0]
    for step in range(basis.shape[1]):
        basis[:, step] = vector / np.linalg.norm(vector)
        so_far = basis[:, : step + 1]
        vector = apply(basis[:, step])
        share = so_far.T @ vector
        vector = vector - so_far @ share
        vector -= so_far @ (so_far.T @ vector)
        diagonal.append(float(share[-1]))
        beside.append(float(np.linalg.norm(vector)))
        values, small = sl.eigh_tridiagonal(np.array(diagonal), np.array(beside[:-1]))
        residual = beside[-1] * abs(float(small[-1, -1]))
        if step + 1 >= min(_FEWEST, basis.shape[1]) and values[-1] + residual <= limit:
            return None
        if residual <= _SEARCHED * values[-1]:
            break
    return so_far @ small[:, -1] if values[-1] > limit else None


def _rayleigh_ritz(chain: Chain, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if basis.shape[1] == 0:
        return np.zeros(0), basis
    differences = chain.half_difference(basis)
    form = differences.T @ differences + basis.T @ (chain.loss[:, None] * basis)
    _, rotation = sl.eigh(form, basis.T @ basis)
    vectors = basis @ rotation
    vectors /= np.linalg.norm(vectors, axis=0)
    # quotients vector by vector: eigh of the form has absolute accuracy only
    squares = np.sum(chain.half_difference(vectors) ** 2, axis=0) + chain.loss @ vectors**2
    order = np.argsort(squares, kind="stable")
    return -squares[order], vectors[:, order]


def _left_from_symmetric(
    chain: Chain, adjoint: sps.csr_array, value: float, vector: np.ndarray, first: bool
) -> np.ndarray:
    """The left vector: psi / sqrt(weight) where psi has digits, elsewhere from the eigen-equation."""
    assert chain.log_weights is not None
    if first:
        return np.where(vector != 0, 1.0, 0.0) if chain.closed_classes[1:] else np.ones(chain.size)
    reliable = np.abs(vector) > RELIABLE * np.abs(vector).max()
    log_size = np.full(chain.size, -np.inf)
    log_size[reliable] = np.log(np.abs(vector[reliable])) - 0.5 * chain.log_weights[reliable]
    left = np.sign(vector) * np.exp(log_size - log_size.max())
    return extend_left(adjoint, value, left, reliable)


def extend_left(adjoint: sps.csr_array, value: complex, left: np.ndarray, reliable: np.ndarray) -> np.ndarray:
    """Solve (A^T - value) q = 0 for q on unreliable states, given q on the others."""
    if reliable.all():
        return left
    rest = ~reliable
    rows = sps.csr_array(adjoint[rest])
    inner = sps.csc_array(rows[:, rest] - value * sps.eye_array(int(rest.sum())))
    known = rows[:, reliable] @ left[reliable]
    result = left.astype(np.result_type(left, type(value), float))
    try:
        result[rest] = _graded_solution(factor(inner, symmetric=False), inner, -known.astype(inner.dtype))
    except RuntimeError as error:  # SuperLU's only word for it
        raise ConvergenceFailure(
            f"the left eigenvector of {value:.6g} is undetermined where it is below {RELIABLE:g} of its "
            "maximum: the process hardly leaves that region; use more noise or a narrower grid"
        ) from error
    return result


def _from_peaks(
    chain: Chain, values: np.ndarray, left: np.ndarray, vectors: np.ndarray, zeros: int, tol: float
) -> np.ndarray:
    """Functions whose equations fail where the mass is, solved for anew from the peaks of psi.

    A mode on a barrier has its psi there, but its mass in the wells, where psi has few digits beside that of the
    wells' own modes.
    """
    assert chain.log_weights is not None
    weights = np.exp(chain.log_weights)
    adjoint = sps.csr_array(chain.generator.T)
    with np.errstate(invalid="ignore", over="ignore"):
        wrong = weights @ np.abs(adjoint @ left - left * values) / (weights @ np.abs(left))
    allowed = np.maximum(
        tol * np.abs(values), 100 * np.finfo(float).eps * float(chain.outflow.max(initial=0.0))
    )
    for a in np.flatnonzero(wrong > allowed):
        if a >= zeros and values[a] != 0:
            peak = np.abs(vectors[:, a]) > _PEAK * np.abs(vectors[:, a]).max()
            left[:, a] = extend_left(adjoint, values[a], left[:, a], peak)
    return left


def _graded_solution(lu: Any, matrix: sps.csc_array, right: np.ndarray) -> np.ndarray:
    """Solve by factors, and refine: each equation then holds beside its own terms (Skeel 1980, Math. Comp. 35, 817).

    Without, equations hold beside the largest terms anywhere, and functions may differ by many powers of ten
    from place to place.
    """
    solution = lu.solve(right)
    for _ in range(_REFINEMENTS):
        solution += lu.solve(right - matrix @ solution)
    return solution
