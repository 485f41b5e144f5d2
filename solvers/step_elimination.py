"""Equations of absorbed Markov chains in discrete time, eliminated without a subtraction."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sps
from numba import njit
from scipy.sparse import csgraph

from solvers import memory
from solvers.blas_threads import one_blas_thread
from solvers.chain import Chain
from solvers.elimination import Elimination
from solvers.errors import ConvergenceFailure

_DENSE = 4000
"""States up to which a full matrix is faster than looking for a sparse order."""
_BLOCK = 96
# States per axis of a band from which sparse elimination is worth its order.
_BAND = 0.1
_SETTLING = 100


class StepElimination:
    """Factors of A = 1 - Q^T, for a matrix Q of steps (from columns to rows) and what leaves at each step.

    The diagonal of A is never subtracted from: it is the sum of what leaves a state (Grassmann, Taksar and Heyman
    1985, Oper. Res. 33, 1107), so that solutions for nonnegative right-hand sides are accurate relatively, entry by
    entry, however seldom the chain is absorbed. Full matrices are eliminated in blocks, whose products add up
    nonnegative numbers too; a band of a long line by `Elimination`.

    Parameters
    ----------
    steps : sparse array (n, n)
        Q, nonnegative. Its diagonal is not used: staying follows from what does not leave.
    absorbed : ndarray (n,)
        Probability, per step, to be absorbed from each state.

    Raises
    ------
    InvalidInput
        If memory would not suffice.
    """

    @one_blas_thread
    def __init__(self, steps: sps.csr_array, absorbed: np.ndarray):
        self._size = len(absorbed)
        self._sparse = None
        if self._size > _DENSE and steps.nnz < _BAND * self._size**2:
            self._sparse = Elimination(step_chain(steps, absorbed))
            return
        memory.require(
            10 * self._size**2,
            f"the elimination of {self._size} cells linked by long steps",
            "use fewer cells",
        )
        self._rates = steps.T.toarray()
        np.fill_diagonal(self._rates, 0.0)
        self._corners: list[tuple[np.ndarray, np.ndarray]] = []
        self._eliminate(np.array(absorbed, dtype=float))

    def _eliminate(self, absorbed: np.ndarray) -> None:
        rates, n = self._rates, self._size
        with np.errstate(all="ignore"):  # states that never leave give infinities, for the caller to see
            for begin in range(0, n, _BLOCK):
                end = min(begin + _BLOCK, n)
                here, later = slice(begin, end), slice(end, n)
                outside = absorbed[here] + rates[here, later].sum(axis=1)
                lower, upper = _corner(np.ascontiguousarray(rates[here, here]), outside)
                self._corners.append((lower, upper))
                absorbed[here] = lower @ absorbed[here]
                rates[here, later] = lower @ rates[here, later]
                rates[later, here] = rates[later, here] @ upper
                rates[later, later] += rates[later, here] @ rates[here, later]
                absorbed[later] += rates[later, here] @ absorbed[here]

    def solve(self, right: np.ndarray) -> np.ndarray:
        """Solve (1 - Q^T) q = right >= 0; infinite or not a number where the floats end."""
        if self._sparse is not None:
            return self._sparse.solve(right)
        return self._solve(right, transposed=False)

    def solve_transposed(self, right: np.ndarray) -> np.ndarray:
        """Solve (1 - Q) m = right >= 0."""
        if self._sparse is not None:
            return self._sparse.solve_transposed(right)
        return self._solve(right, transposed=True)

    @one_blas_thread
    def _solve(self, right: np.ndarray, *, transposed: bool) -> np.ndarray:
        x, n, rates = np.array(right, dtype=float), self._size, self._rates
        blocks = [(k * _BLOCK, min((k + 1) * _BLOCK, n), *pair) for k, pair in enumerate(self._corners)]
        with np.errstate(all="ignore"):
            for begin, end, lower, upper in blocks:
                if transposed:
                    x[begin:end] = upper.T @ x[begin:end]
                    x[end:] += x[begin:end] @ rates[begin:end, end:]
                else:
                    x[begin:end] = lower @ x[begin:end]
                    x[end:] += rates[end:, begin:end] @ x[begin:end]
            for begin, end, lower, upper in reversed(blocks):
                if transposed:
                    x[begin:end] = lower.T @ (x[begin:end] + x[end:] @ rates[end:, begin:end])
                else:
                    x[begin:end] = upper @ (x[begin:end] + rates[begin:end, end:] @ x[end:])
        return x


def step_chain(steps: sps.csr_array, absorbed: np.ndarray) -> Chain:
    """The chain in continuous time that leaves each state at the rate at which a step does."""
    links = sps.coo_array(steps)
    target, source = links.coords
    up, down = source < target, source > target
    first = np.concatenate([source[up], target[down]])
    second = np.concatenate([target[up], source[down]])
    zeros = np.zeros(int(up.sum())), np.zeros(int(down.sum()))
    n = len(absorbed)
    forward, backward = (
        sps.csr_array((np.concatenate(parts), (first, second)), shape=(n, n))
        for parts in ((links.data[up], zeros[1]), (zeros[0], links.data[down]))
    )
    for matrix in (forward, backward):
        matrix.sum_duplicates()
    pairs = sps.coo_array(forward)
    return Chain(
        size=n,
        first=pairs.coords[0].astype(np.int64),
        second=pairs.coords[1].astype(np.int64),
        forward=forward.data,
        backward=backward.data,
        loss=np.asarray(absorbed, dtype=float),
        log_weights=None,
        rate_scale=1.0,
    )


def kept_for_ever(steps: sps.csr_array, absorbed: np.ndarray) -> np.ndarray:
    """The states from which no sequence of steps leads to absorption."""
    n = len(absorbed)
    exits = sps.csr_array(np.where(absorbed > 0, 1.0, 0.0)[None, :])
    # from the end backwards: row of a state -> the states that step there
    backwards = sps.vstack([sps.hstack([steps, sps.csr_array((n, 1))]), sps.hstack([exits, [[0.0]]])])
    reached = csgraph.breadth_first_order(sps.csr_array(backwards), n, return_predecessors=False)
    kept = np.ones(n + 1, dtype=bool)
    kept[reached] = False
    return np.flatnonzero(kept[:n])


def eliminated_masses(matrix: sps.csc_array) -> np.ndarray:
    """Stationary masses of an irreducible matrix of steps, every one accurate relatively.

    They are what is found elsewhere on excursions from one state, by `StepElimination`.

    Raises
    ------
    ConvergenceFailure
        If they exceed the range of floats.
    """
    n = matrix.shape[0]  # pyright: ignore[reportOptionalSubscript]
    masses = np.full(n, 1.0 / n)
    for _ in range(_SETTLING):  # to somewhere heavy, round cycles as well
        masses = 0.5 * (masses + matrix @ masses)
    for _ in range(2):
        pin = int(np.argmax(masses))
        others = np.delete(np.arange(n), pin)
        columns = matrix[:, others]
        back, out = columns[[pin]].toarray()[0], matrix[:, [pin]].toarray().ravel()[others]
        masses = np.ones(n)
        masses[others] = StepElimination(sps.csr_array(columns[others]), back).solve_transposed(out)
        if np.isfinite(masses).all():
            return masses / masses.sum()
        masses = np.where(np.isfinite(masses), masses, np.inf)
    raise ConvergenceFailure(
        "the stationary masses exceed the range of floats; use more noise, or a narrower grid"
    )


@njit(cache=True, error_model="numpy")
def _corner(rates, outside):
    """Inverses of the triangles of a block: of 1 - (rates down) and of (leaving) - (rates up); both nonnegative."""
    n = len(outside)
    leave = np.empty(n)
    for k in range(n):
        total = outside[k]
        for i in range(k + 1, n):
            total += rates[k, i]
        leave[k] = total
        for j in range(k + 1, n):
            if rates[j, k] > 0.0:
                share = rates[j, k] / total
                rates[j, k] = share
                for i in range(k + 1, n):
                    rates[j, i] += share * rates[k, i]
                outside[j] += share * outside[k]
    lower, upper = np.zeros((n, n)), np.zeros((n, n))
    for k in range(n):
        lower[k, k] = 1.0
        for j in range(k):
            for i in range(j + 1):
                lower[k, i] += rates[k, j] * lower[j, i]
    for k in range(n - 1, -1, -1):
        for j in range(k + 1, n):
            for i in range(j, n):
                upper[k, i] += rates[k, j] * upper[j, i]
        for i in range(k, n):
            upper[k, i] = ((1.0 if i == k else 0.0) + upper[k, i]) / leave[k]
    return lower, upper
