"""Eigenmodes of chains without detailed balance, by balanced Arnoldi."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg as sl
import scipy.sparse as sps
import scipy.sparse.linalg as spl

from solvers.backward import stationary_by_cycles
from solvers.blas_threads import one_blas_thread
from solvers.chain import Chain
from solvers.errors import ConvergenceFailure, InvalidInput
from solvers.factorisation import TransposedFactors, arpack, factor, on_fronts, resolvent, start_vector
from solvers.graded_modes import TwoSided, nearest_modes, two_levels
from solvers.lattice_operator import prefers_cycles
from solvers.left_functions import RELIABLE, extend_left
from solvers.missed_modes import both_completed, same_values
from solvers.mode_order import biorthonormal, closed_count, ordered, slowest_first
from solvers.starts import Start
from solvers.turning_planes import nonreversible_functions

Triple = tuple[np.ndarray, np.ndarray, np.ndarray]
# Scalings below this leave the left vectors to a solve: products with them would underflow.
_GRADED = 1e-120
# Up to so many states Arnoldi's method with SuperLU is faster than blocks of vectors (1e5 cells: 7.6 against 17 s).
_BLOCKS = 300_000
# Blocks up to which a full matrix is faster, and the relative residual of their modes.
_FEW, _ROUGH = 800, 1e-5
# Fast rotation: the imaginary parts to search exceed the real ones by this factor.
_TALL = 3.0
MORE = 3
"""Modes beyond the wanted ones that a neighbour starts from: it must search beyond the wanted ones too."""


@one_blas_thread
def stationary_masses(chain: Chain, near: np.ndarray | None = None) -> np.ndarray:
    """The one stationary distribution; `near`, another one like it, saves a factorisation.

    Raises
    ------
    InvalidInput
        If there is none, or more than one.
    ConvergenceFailure
        If the equations do not determine it to 1e-6.
    """
    if chain.log_weights is not None and chain.joined and not np.any(chain.loss):
        weights = np.exp(chain.log_weights)
        return weights / weights.sum()
    classes = chain.closed_classes
    if len(classes) != 1:
        reason = (
            "an absorbing wall removes all probability"
            if not classes
            else (f"the grid falls into {len(classes)} parts that exchange no probability")
        )
        raise InvalidInput(f"there is no unique stationary density: {reason}")
    if prefers_cycles(chain):
        result, flow = stationary_by_cycles(chain)
        return _determined(result, flow)
    generator = chain.generator
    # Pinned at a state that carries mass, the rest solves an M-matrix system.
    masses = _where_mass_is(chain) if near is None or len(near) != chain.size else near
    pin = int(classes[0][np.argmax(masses[classes[0]])])
    rest = np.delete(np.arange(chain.size), pin)
    system = sps.csc_array(generator[rest][:, rest])
    column = generator[rest][:, [pin]].toarray().ravel()
    result = np.ones(chain.size)
    if on_fronts(chain):
        kept = np.arange(chain.size) != pin
        into = generator[[pin]].toarray().ravel()
        into[pin] = 0.0
        result[rest] = resolvent(chain.keep(kept, into), 0.0).solve(column)
    else:
        result[rest] = -factor(system, symmetric=False).solve(column)
    result /= result.sum()
    flow = float(np.abs(generator @ result).sum() / max(np.abs(generator.diagonal() @ result), 1e-300))
    return _determined(result, flow)


def _where_mass_is(chain: Chain) -> np.ndarray:
    """A few resolvent steps towards the stationary distribution."""
    lu, masses = resolvent(chain, 1e-3 * chain.rate_scale), np.full(chain.size, 1.0 / chain.size)
    for _ in range(20):
        masses = lu.solve(masses)
        masses /= masses.sum()
    return masses


def _determined(masses: np.ndarray, flow: float) -> np.ndarray:
    if not flow < 1e-6:
        raise ConvergenceFailure(
            f"the stationary density is undetermined: net flow {flow:.2g} of the exchange"
        )
    return masses


def nonreversible_modes(
    chain: Chain, k: int, method: str, tol: float, start: Start | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Start | None]:
    """Eigenvalues, right masses and left functions; k modes, or k + 1 so as not to split a complex pair.

    Beside them a start for a neighbour, with a few modes more, where iterations can use one.

    The generator is first scaled by sqrt(right / left) of its slowest mode. That is the symmetrisation of a
    reversible chain; for others it brings the matrix close to normal, without which Arnoldi would return
    pseudospectrum: the weights of a grid span hundreds of orders of magnitude.
    """
    if (
        method == "shift-invert"
        and chain.size > _BLOCKS
        and on_fronts(chain)
        and len(chain.closed_classes) < 2
    ):
        found = _graded_modes(chain, k, tol)
        if found is not None:
            return *found, None
    if start is not None and len(start.left) != chain.size:
        start = None
    generator, n = chain.generator, chain.size
    balance, null_right = np.ones(n), None
    if len(chain.closed_classes) == 1:
        null_right = stationary_masses(chain, None if start is None else start.right[:, 0].real)
        balance = balancing(_positive(chain, null_right), np.ones(n))
    elif not chain.closed_classes:
        right, left = _slowest_pair(chain) if start is None else start.slowest_pair()
        balance = balancing(_positive(chain, right), _positive(chain, left))
    matrix = sps.csc_array(sps.diags_array(1 / balance) @ generator @ sps.diags_array(balance))
    spare = None
    if method == "dense":
        values, y, z = dense_modes(matrix, slowest_first)
    else:
        projector = None if null_right is None else (null_right / balance, balance)
        near = None if start is None else start.scaled(len(chain.closed_classes), balance)
        values, y, z = _arnoldi(matrix, k, chain.rate_scale, projector, tol, near)
        more = closed_count(values, k + MORE, cluster=False)
        spare = Start(values[:more], y[:, :more] * balance[:, None], z[:, :more] / balance[:, None])
    values, y, z = selected(values, y, z, k)
    right, left = y * balance[:, None], left_functions(sps.csr_array(generator.T), values, z, balance)
    values[: len(chain.closed_classes)] = 0.0
    if null_right is not None:
        right[:, 0], left[:, 0] = null_right, 1.0
    return values, right, left, spare


def modes_on_planes(chain: Chain, k: int, tol: float) -> Triple | None:
    """The same for all cells of a large rectangle without a factorisation; None if that does not converge."""
    found = nonreversible_functions(
        chain,
        k,
        tol,
        lambda blocks, count: nonreversible_modes(
            blocks, count, "dense" if blocks.size <= _FEW else "shift-invert", _ROUGH
        )[:3],
    )
    if found is None:
        return None
    shown = closed_count(found[0], k, cluster=False)
    return found[0][:shown], found[1][:, :shown], found[2][:, :shown]


def _graded_modes(chain: Chain, k: int, tol: float) -> Triple | None:
    """Modes of a large chain on a grid; None if those near zero do not settle which are slowest."""
    conserving = len(chain.closed_classes) == 1
    shift = 1e-3 * chain.rate_scale
    solver = resolvent(chain, shift)
    assert isinstance(solver, TransposedFactors)
    right, left = np.full(chain.size, 1.0 / chain.size), np.ones(chain.size)
    for _ in range(3 if conserving else 6):  # only to balance, and for the blocks: need not converge
        right = solver.solve(right)
        right /= right.sum()
        if not conserving:
            left = solver.solve(left, "T")
            left /= left.max()
    right = np.maximum(right, 1e-300)
    balance = balancing(right, left)
    levels = two_levels(chain, np.log(right))
    blocks, zeros = levels[-1].chain, int(conserving)
    if len(blocks.closed_classes) != zeros:
        return None
    coarse = nonreversible_modes(blocks, k + 3, "shift-invert", 1e-6)[:3]
    if len(coarse[0]) > 3 * k + 10:
        return None
    two_sided = TwoSided(solver, right, balance, conserving)
    found = nearest_modes(chain, two_sided, levels, coarse, right, balance, zeros, 0.1 * tol)
    values, values_left = (shift - 1.0 / found[0], shift - 1.0 / found[1])
    order, order_left = slowest_first(values), slowest_first(values_left)
    values, values_left = values[order], values_left[order_left]
    y, z = found[2][:, order], found[3][:, order_left]
    kept = closed_count(values, k - zeros, cluster=True)
    if k - zeros == 0 or not _settle(values, values_left, kept, shift):
        return None
    if conserving:
        for _ in range(30):
            if two_sided.iterate() < 1e-10:
                break
        else:
            return None
        right = two_sided.masses
    y, z = y[:, :kept], z[:, :kept]
    if conserving:
        z -= balance[:, None] * ((right / balance) @ z)
    z = biorthonormal(y, z)
    shown = closed_count(values, k - zeros, cluster=False)
    values, z = values[:shown], z[:, :shown]
    right_modes, left_modes = y[:, :shown] * balance[:, None], z / balance[:, None]
    reliable = balance > _GRADED
    if not reliable.all():
        adjoint = sps.csr_array(chain.generator.T)
        columns = [extend_left(adjoint, complex(v), left_modes[:, a], reliable) for a, v in enumerate(values)]
        left_modes = np.column_stack(columns)
    if conserving:
        values = np.concatenate([[0.0], values])
        right_modes = np.column_stack([right, right_modes])
        left_modes = np.column_stack([np.ones(chain.size), left_modes])
    return values, right_modes, left_modes


def _settle(values: np.ndarray, values_left: np.ndarray, kept: int, shift: float) -> bool:
    """Whether modes nearest the shift, slowest first, contain the `kept` slowest, and both sides agree.

    They do if the disc that was searched contains every eigenvalue as slow as the last kept one within the
    sector |Im| <= t |Re| spanned by the modes found. Of equally distant pairs one may be cut, so the rim is not
    trusted.
    """
    if kept >= len(values):
        return False
    radius = float(np.abs(values - shift).max()) * (1 - 1e-6)
    slow = values[:kept]
    sector = float(np.max(np.abs(slow.imag) / np.maximum(-slow.real, 1e-300)))
    reach = float(-slow[-1].real) * np.hypot(1.0, sector)
    allowed = 1e-5 * max(float(np.abs(slow).max()), 1e-300)
    return reach <= radius and float(np.abs(slow - values_left[:kept]).max()) <= allowed


def dense_modes(
    matrix: sps.csr_array | sps.csc_array, order_of: Callable[[np.ndarray], np.ndarray]
) -> Triple:
    """All values in the given order, and right and left vectors, of a full matrix."""
    result: Any = sl.eig(matrix.toarray(), left=True, right=True)
    values, z, y = result[0], np.conj(result[1]), result[2]
    order = order_of(values)
    return values[order], y[:, order], z[:, order]


def selected(values: np.ndarray, y: np.ndarray, z: np.ndarray, k: int) -> Triple:
    """The first k modes, made bi-orthonormal together with the cluster that the cut would split."""
    kept = closed_count(values, k, cluster=True)
    z = biorthonormal(y[:, :kept], z[:, :kept])
    shown = closed_count(values, k, cluster=False)
    return values[:shown].astype(complex), y[:, :shown].astype(complex), z[:, :shown].astype(complex)


def left_functions(
    adjoint: sps.csr_array, values: np.ndarray, z: np.ndarray, balance: np.ndarray
) -> np.ndarray:
    """Left vectors of a matrix from those `z` of it scaled, by a solve where they are below rounding."""
    left = np.empty_like(z)
    for a, value in enumerate(values):
        reliable = np.abs(z[:, a]) > RELIABLE * np.abs(z[:, a]).max()
        left[:, a] = extend_left(adjoint, complex(value), z[:, a] / balance, reliable)
    return left


def _positive(chain: Chain, vector: np.ndarray) -> np.ndarray:
    """Itself if positive; else (signed cross terms) the largest size nearby, above the sign noise."""
    if vector.min() > 0:
        return vector
    size = np.maximum(np.abs(vector), 10 * max(-float(vector.min()), 1e-300))
    for _ in range(2):
        wide = size.copy()
        np.maximum.at(wide, chain.first, size[chain.second])
        np.maximum.at(wide, chain.second, size[chain.first])
        size = wide
    return size


def balancing(right: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Scaling that would symmetrise a reversible chain, and makes any other as normal as it gets."""
    with np.errstate(under="ignore"):
        scale = np.sqrt(np.maximum(right, 1e-250 * right.max()) / np.maximum(left, 1e-50 * left.max()))
    return scale / scale.max()


def _slowest_pair(chain: Chain) -> tuple[np.ndarray, np.ndarray]:
    lu = factor(sps.csc_array(-chain.generator), symmetric=False)
    right, left = np.full(chain.size, 1.0 / chain.size), np.ones(chain.size)
    for _ in range(30):
        right, left = lu.solve(right), lu.solve(left, trans="T")
        right, left = np.abs(right) / np.abs(right).sum(), np.abs(left) / np.abs(left).max()
    return right, left


def _arnoldi(
    matrix: sps.csc_array,
    k: int,
    rate_scale: float,
    projector: tuple[np.ndarray, np.ndarray] | None,
    tol: float,
    near: tuple[np.ndarray, np.ndarray, int] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Modes of largest real part by Arnoldi on (shift - M)^-1, which finds those nearest the shift.

    Nearness is not slowness: a fast rotation has a small real part far from the origin. So more modes than
    wanted are computed, until the disc that was searched contains every eigenvalue as slow as the k-th
    within the sector |Im| <= t |Re| spanned by the modes found. Of a disc around a shift as large as the imaginary
    parts the rim is nearly upright, so that fewer fast modes are found on the way. `near` are sums of right and left
    vectors like those sought, and their number.
    """
    n = matrix.shape[0]  # pyright: ignore[reportOptionalSubscript]

    def factored(shift: float):
        return factor(sps.csc_array(shift * sps.eye_array(n) - matrix), symmetric=False)

    shift = 1e-3 * rate_scale
    lu = factored(shift)

    def solver(transpose: bool) -> spl.LinearOperator:
        mode = "T" if transpose else "N"
        right, left = projector if projector else (np.zeros(n), np.zeros(n))
        if transpose:
            right, left = left, right
        scaled = left / np.sum(left * right) if projector else left

        def project(x: np.ndarray) -> np.ndarray:
            # a sum, not a BLAS dot: threads woken for 1e4 numbers cost more than the whole solve
            return x - right * np.sum(scaled * x) if projector else x

        def matvec(x: np.ndarray) -> np.ndarray:
            return project(lu.solve(project(x.ravel()), trans=mode))

        return spl.LinearOperator((n, n), matvec=matvec, dtype=float)  # pyright: ignore[reportCallIssue]

    count, first = 2 * k + 10, (start_vector(n), start_vector(n))
    if near is not None and k < near[2] <= count:
        count, first = near[2], near[:2]
    while True:
        count = min(count, n - 2)
        found = []
        for transpose in (False, True):
            nu, vectors = arpack(
                spl.eigs, solver(transpose), k=count, which="LM", v0=first[transpose], tol=0.01 * tol,
                ncv=min(2 * count + 10, n),
            )  # fmt: skip
            found.append(ordered(shift - 1 / nu, vectors, slowest_first))
        (values, y), (values_left, z) = found
        # Arnoldi orders by distance; of equally distant pairs one may be cut, so the rim is not trusted
        radius = float(np.abs(values - shift).max()) * (1 - 1e-6)
        kept = closed_count(values, k, cluster=True)
        slow = values[: min(kept, len(values))]
        sector = float(np.max(np.abs(slow.imag) / np.maximum(-slow.real, 1e-300)))
        slowness = float(-slow[-1].real)
        reach = float(np.hypot(shift + slowness, sector * slowness))
        if reach <= radius:
            found = both_completed(
                [solver(transpose).matmat for transpose in (False, True)],
                [(1 / (shift - lam), vectors) for lam, vectors in found],
                min(kept, len(values)),
                1 / reach,
                0.1 * tol,
            )
            found = [ordered(shift - 1 / nu, vectors, slowest_first) for nu, vectors in found]
            (values, y), (values_left, z) = found
            kept = closed_count(values, k, cluster=True)
            equal = 1e-5 * max(float(np.abs(values[:kept]).max()), 1e-300)
            if kept < len(values) and same_values(values, values_left, kept, equal):
                break
        if count >= min(n - 2, 40 * k + 200):
            raise ConvergenceFailure(
                f"{count} modes nearest {shift:.3g} do not settle which {k} are slowest (searched radius "
                f"{radius:.3g}, needed {reach:.3g}); use fewer modes or method='dense' on a coarser grid"
            )
        count *= 2
        if sector * slowness > max(shift, _TALL * slowness):
            shift = sector * slowness
            lu = factored(shift)
    if projector is not None:
        values = np.concatenate([[0.0], values])
        y = np.column_stack([projector[0], y])
        z = np.column_stack([projector[1], z])
    return values, y, z
