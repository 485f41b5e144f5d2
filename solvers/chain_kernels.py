"""Compiled loops over the pairs of a chain, without temporaries of the size of the pairs."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True)
def outflow(first, second, forward, backward, loss):
    """Total rate of leaving each state."""
    total = loss.copy()
    for e in range(len(first)):
        total[first[e]] += forward[e]
        total[second[e]] += backward[e]
    return total


@njit(cache=True)
def compressed_rows(first, second, above, below, diagonal):
    """CSR with `above` at (first, second), `below` at (second, first), equal places summed, columns ascending."""
    n = len(diagonal)
    starts = np.zeros(n + 1, np.int32)
    for e in range(len(first)):
        starts[first[e] + 1] += 1
        starts[second[e] + 1] += 1
    for i in range(n):
        starts[i + 1] += starts[i] + 1
    columns, values = np.empty(starts[n], np.int32), np.empty(starts[n])
    at = starts[:-1].copy()
    for i in range(n):
        columns[at[i]], values[at[i]] = i, diagonal[i]
        at[i] += 1
    for e in range(len(first)):
        i, j = first[e], second[e]
        columns[at[i]], values[at[i]] = j, above[e]
        at[i] += 1
        columns[at[j]], values[at[j]] = i, below[e]
        at[j] += 1
    used = 0
    for i in range(n):
        begin, end = starts[i], at[i]
        for a in range(begin + 1, end):
            c, v = columns[a], values[a]
            b = a
            while b > begin and columns[b - 1] > c:
                columns[b], values[b] = columns[b - 1], values[b - 1]
                b -= 1
            columns[b], values[b] = c, v
        starts[i] = used
        for a in range(begin, end):
            if a > begin and columns[used - 1] == columns[a]:
                values[used - 1] += values[a]
            else:
                columns[used], values[used] = columns[a], values[a]
                used += 1
    starts[n] = used
    return starts, columns[:used], values[:used]


@njit(cache=True)
def parts(size, first, second):
    """Number of the connected part of each state (arbitrary numbers), by joining."""
    root = np.arange(size)
    for e in range(len(first)):
        a, b = first[e], second[e]
        while root[a] != a:
            root[a] = root[root[a]]
            a = root[a]
        while root[b] != b:
            root[b] = root[root[b]]
            b = root[b]
        if a < b:
            root[b] = a
        elif b < a:
            root[a] = b
    for i in range(size):
        root[i] = root[root[i]]
    return root


@njit(cache=True)
def difference_form(first, second, forward, backward, loss, columns):
    """Sum over pairs of d d^T, d = sqrt(forward) psi_first - sqrt(backward) psi_second, plus losses."""
    m = columns.shape[1]
    form, d = np.zeros((m, m)), np.empty(m)
    for e in range(len(first)):
        i, j, a, b = first[e], second[e], np.sqrt(forward[e]), np.sqrt(backward[e])
        for q in range(m):
            d[q] = a * columns[i, q] - b * columns[j, q]
        for q in range(m):
            for r in range(q + 1):
                form[q, r] += d[q] * d[r]
    for i in range(len(loss)):
        if loss[i] > 0.0:
            for q in range(m):
                for r in range(q + 1):
                    form[q, r] += loss[i] * columns[i, q] * columns[i, r]
    for q in range(m):
        for r in range(q):
            form[r, q] = form[q, r]
    return form


@njit(cache=True)
def difference_squares(first, second, forward, backward, loss, columns):
    """The diagonal of `difference_form`."""
    m = columns.shape[1]
    squares = np.zeros(m)
    for e in range(len(first)):
        i, j, a, b = first[e], second[e], np.sqrt(forward[e]), np.sqrt(backward[e])
        for q in range(m):
            d = a * columns[i, q] - b * columns[j, q]
            squares[q] += d * d
    for i in range(len(loss)):
        if loss[i] > 0.0:
            for q in range(m):
                squares[q] += loss[i] * columns[i, q] * columns[i, q]
    return squares


@njit(cache=True)
def residuals(first, second, forward, backward, outflow, values, right, left, weight):
    """Per mode: 1-norms of L r - value r and of r, and of these for L^T and left with a weight (n,)."""
    n, m = right.shape
    sums = np.zeros((4, m))
    ahead, back = np.empty_like(right), np.empty_like(left)
    for i in range(n):
        for q in range(m):
            ahead[i, q] = -(outflow[i] + values[q]) * right[i, q]
            back[i, q] = -(outflow[i] + values[q]) * left[i, q]
    for e in range(len(first)):
        i, j, f, b = first[e], second[e], forward[e], backward[e]
        for q in range(m):
            ahead[j, q] += f * right[i, q]
            ahead[i, q] += b * right[j, q]
            back[i, q] += f * left[j, q]
            back[j, q] += b * left[i, q]
    for i in range(n):
        for q in range(m):
            sums[0, q] += abs(ahead[i, q])
            sums[1, q] += abs(right[i, q])
            sums[2, q] += weight[i] * abs(back[i, q])
            sums[3, q] += weight[i] * abs(left[i, q])
    return sums


@njit(cache=True)
def project(block, right, left):
    """Block -= right (left^T block), in place; columns of right and left are bi-orthonormal."""
    n, p = block.shape
    for a in range(right.shape[1]):
        sums = np.zeros(p)
        for i in range(n):
            for q in range(p):
                sums[q] += left[i, a] * block[i, q]
        for i in range(n):
            for q in range(p):
                block[i, q] -= right[i, a] * sums[q]
