"""Eigenpairs of long reversible chains on a line from twisted factorisations, to full relative accuracy."""

from __future__ import annotations

import numpy as np
from numba import njit

from solvers.bidiagonal import line_values
from solvers.chain import Chain
from solvers.coarsening import coarsened

# Chains of so many states have their eigenvalues found by bisection; longer ones start from blocks of them.
_FIRST_GUESS = 4000
_STEPS = 12
# Relative; the last step is taken at values this near.
_SETTLED = 1e-11


def line_modes(chain: Chain, wanted: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The slowest nonzero modes of a line.

    The symmetrised generator is -S = L D L^T with factors that are sums and quotients of rates, which
    determine all eigenvalues relatively, however small. A twisted factorisation of L D L^T - lambda, formed
    in differential form, yields the eigenvector as a product of ratios, every entry to its own digits
    (Dhillon and Parlett 2004, Linear Algebra Appl. 387, 1; LAPACK's dlar1v), and a correction of lambda: a
    Rayleigh quotient iteration, whose start is the spectrum of a chain of blocks of states. The number of
    negative pivots says which eigenvalue has been found.

    Parameters
    ----------
    chain : Chain
        Linear and reversible.
    wanted : int

    Returns
    -------
    values, left : ndarray
        Positive decay rates, ascending, and left functions as columns; None if a rate is zero, or two
        eigenvalues are too near to each other, or the blocks were too coarse a guess.
    """
    n = chain.size
    positive = len(chain.first) == n - 1 and min(chain.forward.min(), chain.backward.min()) > 0
    if not positive or chain.place is None or np.any(np.diff(chain.first) != 1):
        return None
    assert chain.log_weights is not None
    coarse = chain
    if n > 2 * _FIRST_GUESS:
        coarse = coarsened(chain, chain.log_weights, n // _FIRST_GUESS).chain
    guess = line_values(coarse, wanted)
    if guess is None or len(guess) < wanted:
        return None
    zeros = 0 if np.any(chain.loss > 0) else 1
    with np.errstate(under="ignore"):
        weights = np.exp(chain.log_weights)
    pivots = _pivots(chain.forward, chain.backward, chain.loss)
    values, left = guess.copy(), np.empty((n, wanted))
    above, work = np.empty_like(left), np.empty_like(left)
    for _ in range(_STEPS):
        correction, below = _twisted_vectors(
            chain.forward, chain.backward, pivots, weights, values, above, work, left
        )
        values = values + correction
        if not (np.isfinite(correction).all() and np.all(values > 0)):
            return None
        if np.all(np.abs(correction) < _SETTLED * values):
            break
    else:
        return None
    # at the eigenvalue itself its own pivot has either sign
    index = below - np.arange(wanted) - zeros
    if np.any((index != 0) & (index != 1)) or np.any(np.diff(values) < 1e-6 * values[1:]):
        return None
    if not np.isfinite(left).all():
        return None
    return values, _orthogonal(left, weights, zeros)


def _orthogonal(left: np.ndarray, weights: np.ndarray, zeros: int) -> np.ndarray:
    """Functions less what rounding has left in them of the slower ones, in place; row by row, so digits are kept."""
    gram = _gram(left, weights, zeros)
    size = np.sqrt(np.diag(gram))
    factor = np.linalg.cholesky(gram / np.outer(size, size)).T
    mixing = np.linalg.inv(factor) / size[:, None]
    _mix(left, mixing[:, zeros:], zeros)
    return left


@njit(cache=True)
def _gram(left, weights, zeros):
    """Products under the weights of ones (as many as zeros) and the columns; sums of pieces, so that rounding stays."""
    n, m = left.shape
    gram, part, row = np.zeros((zeros + m, zeros + m)), np.zeros((zeros + m, zeros + m)), np.ones(zeros + m)
    for i in range(n):
        row[zeros:] = left[i]
        for p in range(zeros + m):
            f = weights[i] * row[p]
            for q in range(zeros + m):
                part[p, q] += f * row[q]
        if i % 4096 == 4095 or i == n - 1:
            gram += part
            part[:] = 0.0
    return gram


@njit(cache=True)
def _mix(left, mixing, zeros):
    n, m = left.shape
    row, new = np.ones(zeros + m), np.empty(m)
    for i in range(n):
        row[zeros:] = left[i]
        new[:] = 0.0
        for p in range(zeros + m):
            for q in range(m):
                new[q] += row[p] * mixing[p, q]
        left[i] = new


@njit(cache=True, error_model="numpy")
def _pivots(forward, backward, loss):
    """D of -S = L D L^T: the rate forward, and what has been lost to the left."""
    n = len(loss)
    pivots = np.empty(n)
    excess = loss[0]
    for i in range(n - 1):
        pivots[i] = excess + forward[i]
        excess = loss[i + 1] + excess * (backward[i] / pivots[i])
    pivots[n - 1] = excess
    return pivots


@njit(cache=True, error_model="numpy")
def _twisted_vectors(forward, backward, pivots, weights, values, above, work, left):
    """One step at all `values`: left functions into `left`; corrections of the values, and their indices.

    `above` takes the pivots of the elimination from the left, `work` the part of them that changes. The modes
    run side by side: each alone would wait for its divisions.
    """
    n, count = left.shape
    tiny = 1e-300
    negative, s, p = np.zeros(count, np.int64), -values, np.empty(count)
    best, twist, gamma = np.empty(count), np.full(count, n - 1), np.empty(count)
    for i in range(n - 1):
        ratio = forward[i] * (backward[i] / pivots[i])
        for q in range(count):
            pivot = s[q] + pivots[i]
            pivot = tiny if pivot == 0.0 else pivot
            work[i, q] = s[q]
            above[i, q] = forward[i] / pivot
            negative[q] += pivot < 0.0
            s[q] = s[q] * (ratio / pivot) - values[q]
    for q in range(count):
        gamma[q] = s[q] + pivots[n - 1]
        negative[q] += gamma[q] < 0.0
        best[q] = abs(gamma[q])
        p[q] = pivots[n - 1] - values[q]
    # from the right: `left` keeps the ratios until the vector is written
    for i in range(n - 2, -1, -1):
        ratio = forward[i] / pivots[i] * backward[i]
        for q in range(count):
            pivot = p[q] + ratio
            inverse = 1.0 / (tiny if pivot == 0.0 else pivot)
            left[i + 1, q] = backward[i] * inverse
            p[q] = p[q] * (pivots[i] * inverse) - values[q]
            here = work[i, q] + p[q] + values[q]
            if abs(here) < best[q]:
                best[q], twist[q], gamma[q] = abs(here), i, here
    corrections = np.empty(count)
    for q in range(count):
        t = twist[q]
        left[t, q] = 1.0
        square = weights[t]
        for i in range(t - 1, -1, -1):
            left[i, q] = above[i, q] * left[i + 1, q]
            square += weights[i] * left[i, q] * left[i, q]
        for i in range(t, n - 1):
            left[i + 1, q] *= left[i, q]
            square += weights[i + 1] * left[i + 1, q] * left[i + 1, q]
        corrections[q] = gamma[q] * weights[t] / square
    return corrections, negative
