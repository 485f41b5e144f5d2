"""Kernels on a lattice of up to three axes: the operator, a Gauss-Seidel sweep, transfer between levels.

An operator is given by its diagonal and, per axis, the couplings of each cell with the next one along it:

    (A x)_i = diagonal_i x_i - sum over axes of up_i x_(i + 1) + down_(i - 1) x_(i - 1),

arrays of the lattice's shape, zero where nothing joins the last cell of an axis to the first.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True)
def _row(x, up0, down0, up1, down1, i, j, t):
    """Add to t what the neighbours across the first two axes contribute to one row."""
    n0, n1, n2 = x.shape
    above, below = (i + 1) % n0, (i - 1) % n0
    right, left = (j + 1) % n1, (j - 1) % n1
    for k in range(n2):
        t[k] += (
            up0[i, j, k] * x[above, j, k]
            + down0[below, j, k] * x[below, j, k]
            + up1[i, j, k] * x[i, right, k]
            + down1[i, left, k] * x[i, left, k]
        )


@njit(cache=True)
def apply(x, diagonal, up0, down0, up1, down1, up2, down2, out):
    """Write A x to `out`."""
    n0, n1, n2 = x.shape
    t = np.empty(n2, x.dtype)
    for i in range(n0):
        for j in range(n1):
            t[:] = 0
            _row(x, up0, down0, up1, down1, i, j, t)
            for k in range(n2):
                out[i, j, k] = diagonal[i, j, k] * x[i, j, k] - t[k]
            for k in range(n2 - 1):
                out[i, j, k] -= up2[i, j, k] * x[i, j, k + 1]
                out[i, j, k + 1] -= down2[i, j, k] * x[i, j, k]
            out[i, j, n2 - 1] -= up2[i, j, n2 - 1] * x[i, j, 0]
            out[i, j, 0] -= down2[i, j, n2 - 1] * x[i, j, n2 - 1]


@njit(cache=True)
def sweep(x, b, inverse, up0, down0, up1, down1, up2, down2, forward):
    """One Gauss-Seidel sweep for A x = b in place, cell by cell, upwards or downwards."""
    n0, n1, n2 = x.shape
    t = np.empty(n2, x.dtype)
    last = n2 - 1
    for a in range(n0):
        i = a if forward else n0 - 1 - a
        for c in range(n1):
            j = c if forward else n1 - 1 - c
            t[:] = b[i, j]
            _row(x, up0, down0, up1, down1, i, j, t)
            t[last] += up2[i, j, last] * x[i, j, 0]
            t[0] += down2[i, j, last] * x[i, j, last]
            if forward:
                for k in range(last):
                    t[k] += up2[i, j, k] * x[i, j, k + 1]
                value = t[0] * inverse[i, j, 0]
                x[i, j, 0] = value
                for k in range(1, n2):
                    value = (t[k] + down2[i, j, k - 1] * value) * inverse[i, j, k]
                    x[i, j, k] = value
            else:
                for k in range(last):
                    t[k + 1] += down2[i, j, k] * x[i, j, k]
                value = t[last] * inverse[i, j, last]
                x[i, j, last] = value
                for k in range(last - 1, -1, -1):
                    value = (t[k] + up2[i, j, k] * value) * inverse[i, j, k]
                    x[i, j, k] = value


@njit(cache=True)
def restrict(fine, own, other, out):
    """Sum a fine array of shape (outer, n, inner) into pairs along its middle axis: the transpose of `prolong`."""
    outer, n, inner = fine.shape
    m = out.shape[1]
    out[:] = 0
    for o in range(outer):
        for i in range(n):
            near = i // 2
            far = (near - 1) % m if i % 2 == 0 else (near + 1) % m
            for k in range(inner):
                out[o, near, k] += own[o, i, k] * fine[o, i, k]
                out[o, far, k] += other[o, i, k] * fine[o, i, k]


@njit(cache=True)
def prolong(coarse, own, other, out):
    """Interpolate: each fine cell takes from its own pair and from the pair that it lies next to."""
    outer, n, inner = out.shape
    m = coarse.shape[1]
    for o in range(outer):
        for i in range(n):
            near = i // 2
            far = (near - 1) % m if i % 2 == 0 else (near + 1) % m
            for k in range(inner):
                out[o, i, k] = own[o, i, k] * coarse[o, near, k] + other[o, i, k] * coarse[o, far, k]
