"""Eigenpairs of Markov chains: the choice of method, normalisation and residuals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sps

from solvers import memory, nonreversible, reversible
from solvers.blas_threads import one_blas_thread
from solvers.chain import Chain
from solvers.chain_kernels import residuals
from solvers.errors import ConvergenceFailure, InvalidInput
from solvers.lattice_modes import lattice_modes, suits_lattice_modes
from solvers.multigrid_modes import QUOTIENT, multigrid_modes, prefers_multigrid, suits_multigrid
from solvers.nonreversible import nonreversible_modes
from solvers.plane_modes import MANY, suits_planes
from solvers.reversible import reversible_modes
from solvers.starts import Start
from solvers.stochastic_modes import stochastic_modes

# Eigenvalues of an irreversible operator are rounded by eps of its norm, times a modest condition number.
_ABSOLUTE = 100 * np.finfo(float).eps
_STOCHASTIC = 1e-13  # columns sum to 1 within some 1e-15, and an eigenvalue collects that over the matrix
_DENSE = 100
# Bytes of SuperLU's factors in three dimensions, over cells^(4/3): measured 260 at 20^3, 300 at 32^3.
_FILL = 300


@dataclass
class Modes:
    """Eigenpairs: masses `right` and functions `left`, columns, bi-orthonormal; `norm` is the 1-norm of A.

    `doubts` are sentences about what rounding may have spoilt, `start` has more modes than were asked for.
    """

    values: np.ndarray
    right: np.ndarray
    left: np.ndarray
    residual: np.ndarray
    zeros: int
    norm: float
    method: str
    doubts: tuple[str, ...] = ()
    reason: str = "asked for"
    start: Start | None = None

    def near(self) -> Start:
        """What an eigen-solve of a neighbour can start from."""
        return Start(self.values, self.right, self.left) if self.start is None else self.start


@one_blas_thread
def generator_modes(chain: Chain, k: int, method: str, tol: float, start: Start | None = None) -> Modes:
    """The k modes of largest real part (k + 1 if that would split a complex pair).

    Iterations begin with the modes of `start`, if there are any.

    Raises
    ------
    InvalidInput
        If the method does not suit the chain.
    ConvergenceFailure
        If an iteration fails or modes may be missing.
    """
    if method not in {"auto", "tridiagonal", "shift-invert", "davidson", "dense"}:
        raise InvalidInput(
            f"method={method!r} is not for generators; choose 'auto', 'tridiagonal', 'shift-invert', 'davidson', "
            "'dense'"
        )
    planes, lattice = suits_planes(chain), suits_lattice_modes(chain)
    if method == "davidson" and not (planes or lattice or suits_multigrid(chain)):
        raise InvalidInput(
            "method='davidson' needs a reversible operator in at most three dimensions, or one on more than "
            f"{MANY} cells in two or three, without signed or diagonal exchange; use 'auto'"
        )
    tried = ""
    if planes and method in {"auto", "davidson"}:
        modes = _on_planes(chain, k, tol, method)
        if modes is not None:
            return modes
        tried = "; multigrid cycles on blocks of cells did not converge"
    if (method == "davidson" and suits_multigrid(chain)) or (method == "auto" and prefers_multigrid(chain)):
        large = multigrid_modes(chain, k, tol, start)
        return Modes(
            large.values,
            large.right,
            large.left,
            large.residual,
            large.zeros,
            large.norm,
            "davidson",
            large.doubts,
            start=Start(large.values, large.right, large.left, large.spare),
        )
    if method == "davidson" and not lattice:
        raise ConvergenceFailure(
            f"method='davidson'{tried}; use method='auto', which then factors the operator"
        )
    asked = method
    if method == "auto" and lattice:
        method = "davidson"
    tridiagonal = chain.linear and chain.reversible
    if method == "tridiagonal" and not tridiagonal:
        raise InvalidInput("method='tridiagonal' needs a reversible operator in one dimension; use 'auto'")
    if method == "auto":
        small = chain.size <= max(_DENSE, 3 * k + 20)
        method = "tridiagonal" if tridiagonal else "dense" if small else "shift-invert"
    if method == "shift-invert" and chain.size < 3 * k + 20:
        raise InvalidInput(f"method='shift-invert' needs more than {3 * k + 20} cells for k={k}; use 'dense'")
    if method == "shift-invert" and len(chain.widths) == 3:
        memory.require(
            int(_FILL * chain.size ** (4 / 3)),
            f"a sparse factorisation in three dimensions on {chain.size} cells",
            "use fewer cells" + (", or method='davidson'" if chain.reversible else ""),
        )
    zeros, doubts, near = len(chain.closed_classes), (), None
    if chain.reversible:
        values, right, left, doubts = reversible_modes(chain, k, method, tol, start)
    elif method == "davidson":
        values, right, left = lattice_modes(chain, k, tol)
    else:
        values, right, left, near = nonreversible_modes(chain, k, method, tol, start)
    modes = _measured(chain, values, right, left, zeros, method)
    if asked == "auto":
        modes.reason = _reason(chain, method) + tried
    modes.start = near
    modes.doubts = doubts if chain.reversible else _irreversible_doubts(modes, quotients=method == "davidson")
    return modes


def _on_planes(chain: Chain, k: int, tol: float, method: str) -> Modes | None:
    """Modes by nested iteration with multigrid cycles, in two dimensions; None if it does not converge."""
    zeros, doubts = len(chain.closed_classes), ()
    if zeros > 1 or k <= zeros:
        return None
    if chain.reversible:
        found = reversible.modes_on_planes(chain, k, tol)
        if found is None:
            return None
        values, right, left, doubts = found
    else:
        triple = nonreversible.modes_on_planes(chain, k, tol)
        if triple is None:
            return None
        values, right, left = triple
    modes = _measured(chain, values, right, left, zeros, "davidson")
    if method == "auto":
        modes.reason = _reason(chain, "davidson")
    modes.doubts = doubts if chain.reversible else _irreversible_doubts(modes, quotients=False)
    return modes


def _measured(
    chain: Chain, values: np.ndarray, right: np.ndarray, left: np.ndarray, zeros: int, method: str
) -> Modes:
    """Normalised modes and their residuals, from the rates where these are all there is."""
    if chain.extra is not None:
        return _finish(chain.generator, values, right, left, zeros, method)
    _normalise(right, left)
    pairs = chain.first, chain.second, chain.forward, chain.backward
    weight = _weight(right, zeros)
    one_by_one = [  # less memory than all at once
        residuals(*pairs, chain.outflow, values[a : a + 1], right[:, [a]], left[:, [a]], weight)
        for a in range(len(values))
    ]
    sums = np.concatenate(one_by_one, axis=1)
    norm = float((2.0 * chain.outflow - chain.loss).max())
    return Modes(values, right, left, _backward_error(sums, norm), zeros, norm, method)


def _reason(chain: Chain, method: str) -> str:
    """Why "auto" has chosen a method."""
    balance = "detailed balance" if chain.reversible else "no detailed balance"
    if method == "tridiagonal":
        return f"{balance} in one dimension: the symmetrised generator is tridiagonal"
    if method == "dense":
        return f"{chain.size} cells: a full matrix is fastest"
    if method == "davidson":
        cells = f"{chain.size} cells in {'three' if len(chain.widths) == 3 else 'two'} dimensions"
        return f"{balance}, {cells}: multigrid cycles on all modes at once, no factorisation"
    return (
        f"{balance}, {chain.size} cells: a sparse factorisation, which also finds modes close to each other"
    )


def _irreversible_doubts(modes: Modes, *, quotients: bool) -> tuple[str, ...]:
    floor, size = _ABSOLUTE * modes.norm, np.abs(modes.values[modes.zeros :])
    # of a single slow mode the quotient of flows has as many digits as a sum of squares
    if quotients and np.sum(size < floor) < 2:
        floor = QUOTIENT * modes.norm
    lost = modes.values[modes.zeros :][size < floor]
    if not lost.size:
        return ()
    return (
        f"the eigenvalue {lost[0]:.3g} is below {floor:.2g}, the rounding of an operator without detailed "
        "balance; use more noise",
    )


@one_blas_thread
def transfer_modes(
    matrix: sps.csr_array, k: int, method: str, tol: float, start: Start | None = None
) -> Modes:
    """The k modes of largest modulus of a (sub)stochastic matrix; iterations begin with those of `start`.

    Raises
    ------
    InvalidInput
        If the method is unknown.
    ConvergenceFailure
        If an iteration fails.
    """
    if method not in {"auto", "arnoldi", "dense"}:
        raise InvalidInput(
            f"method={method!r} is not for transfer operators; choose 'auto', 'arnoldi' or 'dense'"
        )
    conserving = conserves(matrix)
    reason = "asked for"
    if method == "auto":
        size = matrix.shape[0]  # pyright: ignore[reportOptionalSubscript]
        method = "dense" if size <= max(_DENSE, 3 * k + 20) else "arnoldi"
        reason = f"a transfer operator on {size} cells"
    values, right, left, near = stochastic_modes(matrix, k, method, tol, start)
    modes = _finish(matrix, values, right, left, int(conserving), method)
    modes.reason, modes.doubts, modes.start = reason, _transfer_doubts(modes), near
    return modes


def conserves(matrix: sps.csr_array) -> bool:
    """Whether the columns of a stochastic matrix sum to 1."""
    return bool(np.abs(matrix.sum(axis=0) - 1).max() < 1e-12)


def _transfer_doubts(modes: Modes) -> tuple[str, ...]:
    slow = 1.0 - np.abs(modes.values[modes.zeros :])
    if not np.any(slow < _STOCHASTIC):
        return ()
    return (
        f"1 - |eigenvalue| is {slow.min():.2g}, below {_STOCHASTIC:g}, the rounding of a stochastic matrix; use more "
        "noise, or the Fokker-Planck operator of the model",
    )


def _finish(
    matrix: sps.csr_array, values: np.ndarray, right: np.ndarray, left: np.ndarray, zeros: int, method: str
) -> Modes:
    """Normalise, fix signs, and measure residuals with the matrix itself."""
    _normalise(right, left)
    adjoint = sps.csr_array(matrix.T)
    norm = float(abs(matrix).sum(axis=0).max())
    weight = _weight(right, zeros)[:, None]
    sums = np.array(
        [
            np.abs(matrix @ right - right * values).sum(axis=0),
            np.abs(right).sum(axis=0),
            (weight * np.abs(adjoint @ left - left * values)).sum(axis=0),
            (weight * np.abs(left)).sum(axis=0),
        ]
    )
    return Modes(values, right, left, _backward_error(sums, norm), zeros, norm, method)


def _weight(right: np.ndarray, zeros: int) -> np.ndarray:
    """Where functions are judged: where the slowest modes have mass, for in empty tails they may grow without bound."""
    return np.abs(right[:, : max(zeros, 1)]).sum(axis=1)


def _backward_error(sums: np.ndarray, norm: float) -> np.ndarray:
    """The larger of the right and left residual, relative to the vectors and the norm of the operator."""
    return np.maximum(sums[0] / sums[1], sums[2] / sums[3]) / norm


def _normalise(right: np.ndarray, left: np.ndarray) -> None:
    """Sizes and signs, in place."""
    size = np.abs(right)
    total, peak = size.sum(axis=0), size.max(axis=0)
    columns = np.arange(right.shape[1])
    anchor = np.array([int(np.argmax(size[:, a] > 0.5 * peak[a])) for a in columns])
    lost = np.flatnonzero(
        left[anchor, columns] == 0
    )  # what leaves with certainty has no part in the left vector
    anchor[lost] = np.abs(left[:, lost] * right[:, lost]).argmax(axis=0)
    phase = left[anchor, columns] / np.abs(left[anchor, columns])
    right *= phase / total
    left /= phase
    left /= np.einsum("ia,ia->a", left, right)
