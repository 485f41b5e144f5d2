"""Gaussian elimination of killed Markov chains without a subtraction: every digit of tiny rates is kept."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sps
from numba import njit

from solvers.chain import Chain
from solvers.factorisation import factor


class Elimination:
    """Factors of A = -L^T, the backward operator of a chain with losses.

    A has nonpositive off-diagonal entries and row sums equal to the losses. Eliminating a state hands its
    rates on to its neighbours; the diagonal is never subtracted from but summed anew from the rates that
    remain (Grassmann, Taksar and Heyman 1985, Oper. Res. 33, 1107; O'Cinneide 1993, Numer. Math. 65, 109).
    All terms are positive, so solutions for nonnegative right-hand sides are accurate relatively, entry by
    entry, however small the losses and however close to singular A is.

    Parameters
    ----------
    chain : Chain
        Without signed transport (``extra``).
    """

    def __init__(self, chain: Chain):
        assert chain.extra is None
        n = chain.size
        first, second = chain.first, chain.second
        self._position = np.arange(n) if chain.linear else _ordering(chain)
        a, b = self._position[first], self._position[second]
        rates = sps.csr_array(
            (
                np.concatenate([chain.forward, chain.backward]),
                (np.concatenate([a, b]), np.concatenate([b, a])),
            ),
            shape=(n, n),
        )
        rates.sum_duplicates()
        pattern = sps.csr_array(
            (np.ones(2 * len(a)), (np.concatenate([a, b]), np.concatenate([b, a]))), shape=(n, n)
        )
        self._starts, self._later = _fill(
            pattern.indptr.astype(np.int64), pattern.indices.astype(np.int64), n
        )
        killed = np.empty(n)
        killed[self._position] = chain.loss
        self._up, self._down, self._leave = _eliminate(
            self._starts,
            self._later,
            rates.indptr.astype(np.int64),
            rates.indices.astype(np.int64),
            rates.data,
            killed,
        )

    def solve(self, right: np.ndarray) -> np.ndarray:
        """Solve A q = right, for a nonnegative right-hand side; infinite where the floats end."""
        given = np.empty(len(right))
        given[self._position] = right
        result = _solve(self._starts, self._later, self._up, self._down, self._leave, given)
        return result[self._position]

    def solve_transposed(self, right: np.ndarray) -> np.ndarray:
        """Solve A^T m = right, that is -L m = right."""
        given = np.empty(len(right))
        given[self._position] = right
        result = _solve_transposed(self._starts, self._later, self._up, self._down, self._leave, given)
        return result[self._position]


def _ordering(chain: Chain) -> np.ndarray:
    """Positions of the states in an order of little fill, SuperLU's for a matrix of the same pattern."""
    n = chain.size
    if not len(chain.first):
        return np.arange(n)
    ones = np.ones(len(chain.first))
    pattern = sps.csc_array((ones, (chain.first, chain.second)), shape=(n, n))
    pattern = pattern + pattern.T
    # strictly dominant: it can always be factored
    dominant = sps.csc_array((pattern.sum(axis=0).max() + 1.0) * sps.eye_array(n) - pattern)
    return factor(dominant, symmetric=True).perm_c.astype(np.int64)


@njit(cache=True)
def _fill(indptr, indices, n):
    """Which later states each state is joined to when its turn comes."""
    starts = np.zeros(n + 1, np.int64)
    later = np.empty(max(len(indices), 16), np.int64)
    seen = np.full(n, -1, np.int64)
    child, sibling = np.full(n, -1, np.int64), np.full(n, -1, np.int64)
    used = 0
    for k in range(n):
        if used + n > len(later):
            grown = np.empty(2 * len(later) + n, np.int64)
            grown[:used] = later[:used]
            later = grown
        begin = used
        seen[k] = k
        for entry in range(indptr[k], indptr[k + 1]):
            j = indices[entry]
            if j > k and seen[j] != k:
                seen[j] = k
                later[used] = j
                used += 1
        c = child[k]
        while c >= 0:
            for entry in range(starts[c], starts[c + 1]):
                j = later[entry]
                if seen[j] != k:
                    seen[j] = k
                    later[used] = j
                    used += 1
            c = sibling[c]
        later[begin:used] = np.sort(later[begin:used])
        starts[k + 1] = used
        if used > begin:
            parent = later[begin]
            sibling[k] = child[parent]
            child[parent] = k
    return starts, later[:used].copy()


@njit(cache=True, error_model="numpy")
def _eliminate(starts, later, indptr, indices, rates, killed):
    """Rates up (k -> later) and down (later -> k, divided by the rate of leaving k), and of leaving."""
    n = len(killed)
    up, down, leave = np.zeros(len(later)), np.zeros(len(later)), np.zeros(n)
    for k in range(n):
        for entry in range(indptr[k], indptr[k + 1]):
            j = indices[entry]
            low, high = min(j, k), max(j, k)
            place = starts[low] + np.searchsorted(later[starts[low] : starts[low + 1]], high)
            if j > k:
                up[place] += rates[entry]
            else:
                down[place] += rates[entry]
    for k in range(n):
        begin, end = starts[k], starts[k + 1]
        total = killed[k]
        for a in range(begin, end):
            total += up[a]
        leave[k] = total
        for a in range(begin, end):
            down[a] = down[a] / total if down[a] > 0.0 else 0.0
        for a in range(begin, end):
            i = later[a]
            killed[i] += down[a] * killed[k] if down[a] > 0.0 else 0.0
            place = starts[i]
            for b in range(a + 1, end):
                while later[place] != later[b]:
                    place += 1
                up[place] += down[a] * up[b] if down[a] > 0.0 else 0.0
                down[place] += down[b] * up[a] if down[b] > 0.0 else 0.0
    return up, down, leave


@njit(cache=True, error_model="numpy")
def _solve(starts, later, up, down, leave, x):
    n = len(x)
    for k in range(n):
        for a in range(starts[k], starts[k + 1]):
            if down[a] > 0.0:
                x[later[a]] += down[a] * x[k]
    for k in range(n - 1, -1, -1):
        total = x[k]
        for a in range(starts[k], starts[k + 1]):
            if up[a] > 0.0:
                total += up[a] * x[later[a]]
        x[k] = total / leave[k] if leave[k] > 0.0 else np.inf
    return x


@njit(cache=True, error_model="numpy")
def _solve_transposed(starts, later, up, down, leave, x):
    n = len(x)
    for k in range(n):
        x[k] = x[k] / leave[k] if leave[k] > 0.0 else np.inf
        for a in range(starts[k], starts[k + 1]):
            if up[a] > 0.0:
                x[later[a]] += up[a] * x[k]
    for k in range(n - 1, -1, -1):
        for a in range(starts[k], starts[k + 1]):
            if down[a] > 0.0:
                x[k] += down[a] * x[later[a]]
    return x
