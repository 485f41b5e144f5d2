"""Sparse factorisation of the shifted generator on a grid by dense fronts, for many right-hand sides at once."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sps
from scipy.linalg import blas, lapack

from solvers.multifrontal_kernels import (
    assemble,
    backward,
    boundaries,
    eliminate,
    forward,
    lu_in_place,
    most_waiting,
)  # fmt: skip
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
        self._edge, self._later = boundaries(indptr, indices, self.order, self._position, self._start, parent)
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
            children, stack, heights, waiting, place, local, state, self.symmetric,
        )  # fmt: skip
        at = 0
        for node in [*large.tolist(), len(own)]:
            if not eliminate(at, node, self._offset, self._data, *fixed):
                raise ZeroDivisionError("a pivot is not positive")
            if node == len(own):
                break
            inner, right, low = self._blocks(node)
            m = int(rest[node])
            complement = np.zeros((m, m))
            assemble(node, inner, right, low, complement, *fixed)
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
            forward(at, node, *arrays, transposed)
            if node < nodes:
                self._forward_large(node, given, transposed)
            at = node + 1
        at = nodes
        for node in [*large[::-1], -1]:
            backward(at, node + 1, *arrays, transposed)
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
    elif not lu_in_place(inner):  # a tie was broken by an exchange: do without
        raise ZeroDivisionError("a pivot is not positive")
    if right.shape[1]:
        blas.dtrsm(1.0, inner.T, right.T, side=1, lower=0, overwrite_b=1)
        blas.dtrsm(1.0, inner.T, low.T, side=0, lower=1, diag=1, overwrite_b=1)
        blas.dgemm(-1.0, right.T, low.T, beta=1.0, c=complement.T, overwrite_c=1)


def _stack_size(own: np.ndarray, rest: np.ndarray, children: np.ndarray) -> int:
    return int(most_waiting(own, rest, children))
