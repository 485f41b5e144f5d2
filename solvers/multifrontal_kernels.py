"""Compiled loops of the multifrontal factorisation: its tree, small fronts, and solves with them."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True)
def most_waiting(own, rest, children):
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
def boundaries(indptr, indices, order, position, start, parent):
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
def assemble(
    node, inner, right, low, complement,
    indptr, indices, values, order, position, start, edge, later, children, stack, heights,
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
def eliminate(
    begin, stop, offset, data,
    indptr, indices, values, order, position, start, edge, later, children, stack, heights,
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
        assemble(
            node, inner, right, low, complement, indptr, indices, values, order, position, start, edge,
            later, children, stack, heights, waiting, place, local, state, symmetric,
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
def lu_in_place(inner):
    """Lower factor with the pivots, upper one with ones on the diagonal; False if a pivot is not positive."""
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
def forward(begin, stop, start, edge, later, offset, data, x, symmetric, transposed):
    """Solve with the first factor, in place, from node `begin` up to `stop`."""
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
def backward(begin, stop, start, edge, later, offset, data, x, symmetric, transposed):
    """Solve with the second factor, in place, from node `begin` - 1 down to `stop`."""
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
