"""Nested dissection of the cells of a grid: an elimination order of little fill, with its tree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

# Boxes of at most so many cells are eliminated at once.
_LEAF = 4


@dataclass(frozen=True)
class Dissection:
    """Elimination order and its tree, in postorder.

    Attributes
    ----------
    order : ndarray of int
        State at each position of the elimination.
    start : ndarray of int, shape (nodes + 1,)
        Node k eliminates the positions start[k] to start[k + 1].
    parent : ndarray of int
        Parent of each node, -1 at roots.
    """

    order: np.ndarray
    start: np.ndarray
    parent: np.ndarray


def dissect(shape: tuple[int, ...], wrapped: tuple[bool, ...], cells: np.ndarray | None) -> Dissection:
    """Halve the longest axis of a box again and again; the plane of cells in between is eliminated last.

    Parameters
    ----------
    shape : tuple of int
        Cells per axis, at most three axes.
    wrapped : tuple of bool
        Whether the first and the last cell along an axis are neighbours.
    cells : ndarray of int or None
        Flat number of the cell of each state; None if all cells are states.

    Returns
    -------
    Dissection

    References
    ----------
    George, SIAM J. Numer. Anal. 10 (1973) 345.
    """
    size = int(np.prod(shape))
    state = np.arange(size)
    if cells is not None:
        state = np.full(size, -1)
        state[cells] = np.arange(len(cells))
    missing = 3 - len(shape)
    sides = np.array((*shape, *(1,) * missing), dtype=np.int64)
    # an axis of two cells has no inside to cut
    around = np.array((*wrapped, *(False,) * missing)) & (sides > 2)
    return Dissection(*_dissect(sides, around, state.astype(np.int64)))


@njit(cache=True)
def _dissect(sides, around, state):
    n1, n2 = sides[1], sides[2]
    size = sides[0] * n1 * n2
    count = 0
    for cell in range(size):
        count += state[cell] >= 0
    order = np.empty(count, np.int64)
    most = size + 2
    start, above = np.zeros(most + 1, np.int64), np.empty(most, np.int64)
    node_of_split = np.full(most, -1, np.int64)
    # boxes still to be done: six bounds, split that they hang under, split they are the separator of
    stack = np.empty((512, 8), np.int64)
    used, nodes, splits, depth = 0, 0, 0, 0
    low = around.astype(np.int64)
    if around.any():
        node_of_split[splits] = -2  # the wrapped planes, emitted at the end
        splits += 1
    stack[0, 0:3], stack[0, 3:6] = low, sides
    stack[0, 6], stack[0, 7] = splits - 1, -1
    depth = 1
    while depth:
        depth -= 1
        a0, a1, a2, b0, b1, b2, under, split = stack[depth]
        volume = (b0 - a0) * (b1 - a1) * (b2 - a2)
        if split < 0 and volume > _LEAF:
            axis = 0
            longest = b0 - a0
            if b1 - a1 > longest:
                axis, longest = 1, b1 - a1
            if b2 - a2 > longest:
                axis, longest = 2, b2 - a2
            middle = stack[depth, axis] + longest // 2
            for part in range(3):  # separator below both halves on the stack
                box = stack[depth + part]
                box[0], box[1], box[2], box[3], box[4], box[5] = a0, a1, a2, b0, b1, b2
                box[6], box[7] = splits, -1
            stack[depth, axis], stack[depth, 3 + axis] = middle, middle + 1
            stack[depth, 6], stack[depth, 7] = under, splits
            stack[depth + 1, axis] = middle + 1
            stack[depth + 2, 3 + axis] = middle
            splits += 1
            depth += 3
            continue
        before = used
        for i in range(a0, b0):
            for j in range(a1, b1):
                for k in range(a2, b2):
                    found = state[(i * n1 + j) * n2 + k]
                    if found >= 0:
                        order[used] = found
                        used += 1
        if used == before and split < 0:
            continue
        if split >= 0:
            node_of_split[split] = nodes
        above[nodes] = under
        nodes += 1
        start[nodes] = used
    if around.any():
        for i in range(sides[0]):
            for j in range(n1):
                for k in range(n2):
                    inside = i >= low[0] and j >= low[1] and k >= low[2]
                    found = state[(i * n1 + j) * n2 + k]
                    if not inside and found >= 0:
                        order[used] = found
                        used += 1
        node_of_split[0] = nodes
        above[nodes] = -1
        nodes += 1
        start[nodes] = used
    parent = np.full(nodes, -1, np.int64)
    for node in range(nodes):
        if above[node] >= 0:
            parent[node] = node_of_split[above[node]]
    return order, start[: nodes + 1].copy(), parent
