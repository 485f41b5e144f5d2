"""Sparse factorisation of the shifted generator on a grid by dense fronts, for many right-hand sides at once."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sps
from numba import njit
from scipy.linalg import blas, lapack

from solvers.nested_dissection import Dissection

# Fronts of more unknowns are left to BLAS, one call each; smaller ones are done by compiled loops.
_LARGE_FRONT, _LARGE_SOLVE = 160, 200


class Factors:
    """L L^T (symmetric) or L U of an M-matrix without pivoting, which is stable for these.

    Nothing is compared or exchanged, so a diagonal scaling D^-1 A D of the matrix only scales the factors:
    solutions keep their digits entry by entry even where they span hundreds of orders of magnitude.

    Parameters
    ----------
    matrix : csr_array
        Symmetric positive definite, or with dominant rows; its pattern must be symmetric.
    dissection : Dissection
        Of the same states.
    symmetric : bool

    Attributes
    ----------
    order : ndarray of int
        State at each position of the elimination.

    Raises
    ------
    ValueError
        If the matrix joins states that the dissection separates.
    ZeroDivisionError
        If a pivot is not positive.

    References
    ----------
    Duff and Reid, ACM Trans. Math. Softw. 9 (1983) 302; Liu, SIAM Rev. 34 (1992) 82.
    """

    def __init__(self, matrix: sps.csr_array, dissection: Dissection, *, symmetric: bool):
        self.symmetric = symmetric
        self.order, self._start, parent = dissection.order, dissection.start, dissection.parent
        n = len(self.order)
        self._position = np.empty(n, np.int64)
        self._position[self.order] = np.arange(n)
        indptr, indices = matrix.indptr.astype(np.int64), matrix.indices
        self._edge, self._later = _boundaries(
            indptr, indices, self.order, self._position, self._start, parent
        )
        if self._edge[0] < 0:
            raise ValueError("the matrix joins states that the dissection separates")
        own, rest = np.diff(self._start), np.diff(self._edge)
        self._offset = np.concatenate([[0], np.cumsum(own * (own + rest * (1 if symmetric else 2)))])
        children = np.bincount(parent[parent >= 0], minlength=len(parent))
        self._factor(indptr, indices, matrix.data, own, rest, children)

    @property
    def size(self) -> int:
        """Numbers stored."""
        return len(self._data)

    def _blocks(self, node: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        own = int(self._start[node + 1] - self._start[node])
        rest = int(self._edge[node + 1] - self._edge[node])
        at = int(self._offset[node])
        inner = self._data[at : at + own * own].reshape(own, own)
        at += own * own
        right = self._data[at : at + own * rest].reshape(own, rest)
        at += own * rest
        low = right if self.symmetric else self._data[at : at + own * rest].reshape(rest, own)
        return inner, right, low

    def _factor(self, indptr, indices, values, own, rest, children) -> None:
        n = len(self.order)
        self._data = np.zeros(int(self._offset[-1]))
        stack = np.empty(_stack_size(own, rest, children))
        heights = np.empty(len(own) + 1, np.int64)  # where the complement of each waiting node begins
        waiting = np.empty(len(own) + 1, np.int64)
        place, local = np.empty(n, np.int64), np.empty(int(rest.max(initial=0)), np.int32)
        large = np.flatnonzero(own + rest > _LARGE_FRONT)
        state = np.zeros(2, np.int64)  # waiting nodes, numbers on the stack
        fixed = (
            indptr, indices, values, self.order, self._position, self._start, self._edge, self._later,
            self._offset, children, self._data, stack, heights, waiting, place, local, state, self.symmetric,
        )  # fmt: skip
        at = 0
        for node in [*large.tolist(), len(own)]:
            if not _eliminate(at, node, *fixed):
                raise ZeroDivisionError("a pivot is not positive")
            if node == len(own):
                break
            inner, right, low = self._blocks(node)
            m = int(rest[node])
            complement = np.zeros((m, m))
            _assemble(node, inner, right, low, complement, *fixed)
            if self.symmetric:
                _cholesky_front(inner, right, complement)
            else:
                _lu_front(inner, right, low, complement)
            top = int(state[1])
            stack[top : top + m * m] = complement.ravel()
            heights[state[0]], waiting[state[0]] = top, node
            state[0] += 1
            state[1] += m * m
            at = node + 1

    def solve(self, right: np.ndarray, trans: str = "N") -> np.ndarray:
        """Solution of A x = right, or of A^T x = right with trans="T", for a vector or for columns."""
        given = np.ascontiguousarray(np.reshape(right, (len(right), -1))[self.order], dtype=float)
        self.solve_ordered(given, trans)
        result = np.empty_like(given)
        result[self.order] = given
        return result.reshape(np.shape(right))

    def solve_ordered(self, given: np.ndarray, trans: str = "N") -> None:
        """The same in place, for an array of shape (n, p) whose rows are in elimination order."""
        transposed = trans == "T" and not self.symmetric
        sizes = np.diff(self._start) + np.diff(self._edge)
        large = np.flatnonzero(sizes > _LARGE_SOLVE).tolist()
        arrays = self._start, self._edge, self._later, self._offset, self._data, given, self.symmetric
        at, nodes = 0, len(sizes)
        for node in [*large, nodes]:
            _forward(at, node, *arrays, transposed)
            if node < nodes:
                self._forward_large(node, given, transposed)
            at = node + 1
        at = nodes
        for node in [*large[::-1], -1]:
            _backward(at, node + 1, *arrays, transposed)
            if node >= 0:
                self._backward_large(node, given, transposed)
            at = node

    def _forward_large(self, node: int, x: np.ndarray, transposed: bool) -> None:
        inner, right, low = self._blocks(node)
        mine = x[self._start[node] : self._start[node + 1]]
        later = self._later[self._edge[node] : self._edge[node + 1]]
        if self.symmetric or transposed:  # with the transposed upper factor
            unit = not self.symmetric
            blas.dtrsm(1.0, inner.T, mine.T, side=1, lower=1, trans_a=1, diag=unit, overwrite_b=1)
            x[later] -= right.T @ mine
        else:
            blas.dtrsm(1.0, inner.T, mine.T, side=1, lower=0, overwrite_b=1)
            x[later] -= low @ mine

    def _backward_large(self, node: int, x: np.ndarray, transposed: bool) -> None:
        inner, right, low = self._blocks(node)
        mine = x[self._start[node] : self._start[node + 1]]
        later = self._later[self._edge[node] : self._edge[node + 1]]
        if self.symmetric or not transposed:
            unit = not self.symmetric
            mine -= right @ x[later]
            blas.dtrsm(1.0, inner.T, mine.T, side=1, lower=1, diag=unit, overwrite_b=1)
        else:
            mine -= low.T @ x[later]
            blas.dtrsm(1.0, inner.T, mine.T, side=1, lower=0, trans_a=1, overwrite_b=1)


def _cholesky_front(inner: np.ndarray, right: np.ndarray, complement: np.ndarray) -> None:
    """Upper triangles, in place; arrays in C order are their transposes to LAPACK."""
    _, info = lapack.dpotrf(inner.T, lower=1, clean=0, overwrite_a=1)
    if info:
        raise ZeroDivisionError("a pivot is not positive")
    if right.shape[1]:
        blas.dtrsm(1.0, inner.T, right.T, side=1, lower=1, trans_a=1, overwrite_b=1)
        blas.dsyrk(-1.0, right.T, beta=1.0, c=complement.T, lower=1, overwrite_c=1)


def _lu_front(inner: np.ndarray, right: np.ndarray, low: np.ndarray, complement: np.ndarray) -> None:
    """Lower factor with the pivots, upper one with ones on the diagonal."""
    factors, pivots, _ = lapack.dgetrf(inner.T)
    if np.array_equal(pivots, np.arange(len(pivots))):
        inner.T[...] = factors
    elif not _lu_in_place(inner):  # a tie was broken by an exchange: do without
        raise ZeroDivisionError("a pivot is not positive")
    if right.shape[1]:
        blas.dtrsm(1.0, inner.T, right.T, side=1, lower=0, overwrite_b=1)
        blas.dtrsm(1.0, inner.T, low.T, side=0, lower=1, diag=1, overwrite_b=1)
        blas.dgemm(-1.0, right.T, low.T, beta=1.0, c=complement.T, overwrite_c=1)


def _stack_size(own: np.ndarray, rest: np.ndarray, children: np.ndarray) -> int:
    return int(_most_waiting(own, rest, children))


@njit(cache=True)
def _most_waiting(own, rest, children):
    """Largest number of entries of complements that wait for their parents."""
    waiting = np.empty(len(own) + 1, np.int64)
    count, now, most = 0, 0, 0
    for node in range(len(own)):
        for _ in range(children[node]):
            count -= 1
            now -= waiting[count]
        waiting[count] = rest[node] * rest[node]
        now += waiting[count]
        count += 1
        most = max(most, now)
    return most


@njit(cache=True)
def _boundaries(indptr, indices, order, position, start, parent):
    """Positions after each node that its elimination joins; edge[0] = -1 if they are no ancestors'."""
    nodes, n = len(parent), len(order)
    edge = np.zeros(nodes + 1, np.int64)
    later = np.empty(max(4 * n, 16), np.int64)
    seen = np.full(n, -1, np.int64)
    child, sibling = np.full(nodes, -1, np.int64), np.full(nodes, -1, np.int64)
    used = 0
    for node in range(nodes):
        begin, end = used, start[node + 1]
        if used + n - end > len(later):
            grown = np.empty(2 * len(later) + n, np.int64)
            grown[:used] = later[:used]
            later = grown
        for pos in range(start[node], end):
            row = order[pos]
            for entry in range(indptr[row], indptr[row + 1]):
                p = position[indices[entry]]
                if p >= end and seen[p] != node:
                    seen[p] = node
                    later[used] = p
                    used += 1
        c = child[node]
        while c >= 0:
            for entry in range(edge[c], edge[c + 1]):
                p = later[entry]
                if p < start[node]:
                    edge[0] = -1
                    return edge, later
                if p >= end and seen[p] != node:
                    seen[p] = node
                    later[used] = p
                    used += 1
            c = sibling[c]
        later[begin:used] = np.sort(later[begin:used])
        edge[node + 1] = used
        if parent[node] >= 0:
            sibling[node] = child[parent[node]]
            child[parent[node]] = node
        elif used > begin:
            edge[0] = -1
            return edge, later
    return edge, later[:used].copy()


@njit(cache=True)
def _assemble(
    node, inner, right, low, complement,
    indptr, indices, values, order, position, start, edge, later, offset, children, data, stack, heights,  # noqa: ARG001 - one list of arguments for all
    waiting, place, local, state, symmetric,
):  # fmt: skip
    """Entries of the matrix and complements of the children, which leave the stack."""
    first, end = start[node], start[node + 1]
    own, rest = end - first, edge[node + 1] - edge[node]
    for a in range(rest):
        place[later[edge[node] + a]] = a
    for i in range(own):
        row = order[first + i]
        for entry in range(indptr[row], indptr[row + 1]):
            p = position[indices[entry]]
            if p < first:
                continue
            if p < end:
                inner[i, p - first] += values[entry]
            else:
                right[i, place[p]] += values[entry]
    if not symmetric:
        # the columns: rows after this node that reach into it
        for a in range(rest):
            row = order[later[edge[node] + a]]
            for entry in range(indptr[row], indptr[row + 1]):
                p = position[indices[entry]]
                if first <= p < end:
                    low[a, p - first] += values[entry]
    for _ in range(children[node]):
        state[0] -= 1
        c, at = waiting[state[0]], heights[state[0]]
        state[1] = at
        m = edge[c + 1] - edge[c]
        inside = 0
        for a in range(m):
            p = later[edge[c] + a]
            if p < end:
                local[a] = p - first
                inside += 1
            else:
                local[a] = place[p]
        for a in range(m):
            i, line = local[a], at + a * m
            lowest = a if symmetric else 0
            if a < inside:
                for b in range(lowest, inside):
                    inner[i, local[b]] += stack[line + b]
                for b in range(max(lowest, inside), m):
                    right[i, local[b]] += stack[line + b]
            else:
                for b in range(lowest, inside):
                    low[i, local[b]] += stack[line + b]
                for b in range(max(lowest, inside), m):
                    complement[i, local[b]] += stack[line + b]


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def _eliminate(
    begin, stop,
    indptr, indices, values, order, position, start, edge, later, offset, children, data, stack, heights,
    waiting, place, local, state, symmetric,
):  # fmt: skip
    """Factor the nodes from `begin` to `stop`, all with small fronts."""
    for node in range(begin, stop):
        own, rest = start[node + 1] - start[node], edge[node + 1] - edge[node]
        at = offset[node]
        inner = data[at : at + own * own].reshape((own, own))
        at += own * own
        right = data[at : at + own * rest].reshape((own, rest))
        at += own * rest
        low = right if symmetric else data[at : at + own * rest].reshape((rest, own))
        complement = np.zeros((rest, rest))
        _assemble(
            node, inner, right, low, complement, indptr, indices, values, order, position, start, edge,
            later, offset, children, data, stack, heights, waiting, place, local, state, symmetric,
        )  # fmt: skip
        for i in range(own):
            pivot = inner[i, i]
            if not pivot > 0.0:
                return False
            if symmetric:
                scale = 1.0 / np.sqrt(pivot)
                inner[i, i] = np.sqrt(pivot)
            else:
                scale = 1.0 / pivot
            for j in range(i + 1, own):
                inner[i, j] *= scale
            for j in range(rest):
                right[i, j] *= scale
            for r in range(i + 1, own):
                f = inner[i, r] if symmetric else inner[r, i]
                for j in range(r if symmetric else i + 1, own):
                    inner[r, j] -= f * inner[i, j]
                for j in range(rest):
                    right[r, j] -= f * right[i, j]
            if not symmetric:
                for r in range(rest):
                    f = low[r, i]
                    for j in range(i + 1, own):
                        low[r, j] -= f * inner[i, j]
        for r in range(rest):
            lowest = r if symmetric else 0
            i = 0
            while i + 4 <= own:
                if symmetric:
                    f0, f1, f2, f3 = right[i, r], right[i + 1, r], right[i + 2, r], right[i + 3, r]
                else:
                    f0, f1, f2, f3 = low[r, i], low[r, i + 1], low[r, i + 2], low[r, i + 3]
                for j in range(lowest, rest):
                    complement[r, j] -= (
                        f0 * right[i, j] + f1 * right[i + 1, j] + f2 * right[i + 2, j] + f3 * right[i + 3, j]
                    )
                i += 4
            while i < own:
                f = right[i, r] if symmetric else low[r, i]
                for j in range(lowest, rest):
                    complement[r, j] -= f * right[i, j]
                i += 1
        top = state[1]
        for r in range(rest):
            for j in range(rest):
                stack[top + r * rest + j] = complement[r, j]
        heights[state[0]], waiting[state[0]] = top, node
        state[0] += 1
        state[1] += rest * rest
    return True


@njit(cache=True, error_model="numpy")
def _lu_in_place(inner):
    own = len(inner)
    for i in range(own):
        if not inner[i, i] > 0.0:
            return False
        for j in range(i + 1, own):
            inner[i, j] /= inner[i, i]
        for r in range(i + 1, own):
            f = inner[r, i]
            for j in range(i + 1, own):
                inner[r, j] -= f * inner[i, j]
    return True


@njit(cache=True, inline="always")
def _subtract(x, row, column, width, factors, f, step, rows, count):
    """x[row] -= sum_a factors[f + a step] x[rows[a]], four columns at a time."""
    q = column
    while q + 4 <= column + width:
        s0 = s1 = s2 = s3 = 0.0
        for a in range(count):
            c, r = factors[f + a * step], rows[a]
            s0 += c * x[r, q]
            s1 += c * x[r, q + 1]
            s2 += c * x[r, q + 2]
            s3 += c * x[r, q + 3]
        x[row, q] -= s0
        x[row, q + 1] -= s1
        x[row, q + 2] -= s2
        x[row, q + 3] -= s3
        q += 4
    while q < column + width:
        s0 = 0.0
        for a in range(count):
            s0 += factors[f + a * step] * x[rows[a], q]
        x[row, q] -= s0
        q += 1


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def _forward(begin, stop, start, edge, later, offset, data, x, symmetric, transposed):
    columns = x.shape[1]
    upper = symmetric or transposed
    longest = 0
    for node in range(begin, stop):
        longest = max(longest, start[node + 1] - start[node])
    mine = np.empty(longest, np.int64)
    for node in range(begin, stop):
        first, own, rest = start[node], start[node + 1] - start[node], edge[node + 1] - edge[node]
        at = offset[node]
        side = at + own * own + (0 if upper else own * rest)
        for i in range(own):
            mine[i] = first + i
            _subtract(
                x, first + i, 0, columns, data, at + (i if upper else i * own), own if upper else 1, mine, i
            )
            if not transposed:
                for q in range(columns):
                    x[first + i, q] /= data[at + i * own + i]
        for a in range(rest):
            row = later[edge[node] + a]
            _subtract(
                x, row, 0, columns, data, side + (a if upper else a * own), rest if upper else 1, mine, own
            )


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def _backward(begin, stop, start, edge, later, offset, data, x, symmetric, transposed):
    """From node `begin` - 1 down to `stop`."""
    columns = x.shape[1]
    upper = symmetric or not transposed
    longest = 0
    for node in range(stop, begin):
        longest = max(longest, start[node + 1] - start[node])
    mine = np.empty(longest, np.int64)
    for node in range(begin - 1, stop - 1, -1):
        first, own, rest = start[node], start[node + 1] - start[node], edge[node + 1] - edge[node]
        at = offset[node]
        side = at + own * own + (0 if upper else own * rest)
        beyond = later[edge[node] : edge[node + 1]]
        for i in range(own):
            mine[i] = first + i
        for i in range(own - 1, -1, -1):
            _subtract(
                x,
                first + i,
                0,
                columns,
                data,
                side + (i * rest if upper else i),
                1 if upper else own,
                beyond,
                rest,
            )
            after = at + (i * own + i + 1 if upper else (i + 1) * own + i)
            _subtract(
                x, first + i, 0, columns, data, after, 1 if upper else own, mine[i + 1 : own], own - 1 - i
            )
            if symmetric or transposed:
                for q in range(columns):
                    x[first + i, q] /= data[at + i * own + i]
