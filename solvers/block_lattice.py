"""Kernels on a rectangle of cells for several functions side by side: a coefficient serves all of them.

Arrays of functions have the shape (n0 + 2, n1 + 2, width): a rim of one cell around the rectangle holds what lies
beyond a wall (any finite value: no rate leads there) or on the other side of a periodic axis. Rates out of a cell are
kept in the order of `block_rates.STEPS`, the first four without diagonal neighbours. `lanes` is a tuple as long as the
functions are many: its length is known when a kernel is compiled, so that loops over functions become vector
instructions.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True)
def fill_rim(x, wrapped0, wrapped1, signs, lanes):
    """Set the rim: the other side of a periodic axis, or the last cell times the sign of a wall, -1 if it absorbs."""
    width = len(lanes)
    m0, m1, _ = x.shape
    for i in range(1, m0 - 1):
        for q in range(width):
            x[i, 0, q] = x[i, m1 - 2, q] if wrapped1 else signs[2] * x[i, 1, q]
            x[i, m1 - 1, q] = x[i, 1, q] if wrapped1 else signs[3] * x[i, m1 - 2, q]
    for j in range(m1):
        for q in range(width):
            x[0, j, q] = x[m0 - 2, j, q] if wrapped0 else signs[0] * x[1, j, q]
            x[m0 - 1, j, q] = x[1, j, q] if wrapped0 else signs[1] * x[m0 - 2, j, q]


@njit(cache=True, inline="always")
def _add_aims(x, i, j, aims, t, lanes):
    """Add aims x at a cell to t.

    `aims`, (2, width): real parts, and, at the first of two functions that are parts of one, the imaginary part.
    """
    width = len(lanes)
    for q in range(width):
        t[q] += aims[0, q] * x[i + 1, j + 1, q]
    for q in range(width - 1):
        t[q] -= aims[1, q] * x[i + 1, j + 1, q + 1]
        t[q + 1] += aims[1, q] * x[i + 1, j + 1, q]


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def sweep(x, b, inverse, rates, upwards0, upwards1, aims, lanes):
    """One Gauss-Seidel sweep, in place, for A x = b + aims x, in the order asked for; the aims' x is that before."""
    width = len(lanes)
    n0, n1, slots = rates.shape
    t = np.empty(width, x.dtype)
    for a in range(n0):
        i = a if upwards0 else n0 - 1 - a
        for c in range(n1):
            j = c if upwards1 else n1 - 1 - c
            for q in range(width):
                t[q] = (
                    b[i, j, q]
                    + rates[i, j, 0] * x[i + 2, j + 1, q]
                    + rates[i, j, 1] * x[i, j + 1, q]
                    + rates[i, j, 2] * x[i + 1, j + 2, q]
                    + rates[i, j, 3] * x[i + 1, j, q]
                )
            if slots == 8:
                for q in range(width):
                    t[q] += (
                        rates[i, j, 4] * x[i + 2, j + 2, q]
                        + rates[i, j, 5] * x[i, j, q]
                        + rates[i, j, 6] * x[i + 2, j, q]
                        + rates[i, j, 7] * x[i, j + 2, q]
                    )
            if aims is not None:
                _add_aims(x, i, j, aims, t, lanes)
            f = inverse[i, j]
            for q in range(width):
                x[i + 1, j + 1, q] = t[q] * f


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def sweep_lines(x, b, outflow, rates, axis, upwards, lanes):
    """One Gauss-Seidel sweep, in place, that solves for whole lines of cells along an axis at once."""
    width = len(lanes)
    n0, n1, slots = rates.shape
    many, length = (n0, n1) if axis == 1 else (n1, n0)
    ahead, back = (2, 3) if axis == 1 else (0, 1)
    c, d = np.empty(length + 1, x.dtype), np.empty((length + 1, width), x.dtype)
    t = np.empty(width, x.dtype)
    c[0] = 0
    d[0] = 0
    for a in range(many):
        line = a if upwards else many - 1 - a
        for p in range(length):
            i, j = (line, p) if axis == 1 else (p, line)
            for q in range(width):
                t[q] = b[i, j, q]
            if axis == 1:
                for q in range(width):
                    t[q] += rates[i, j, 0] * x[i + 2, j + 1, q] + rates[i, j, 1] * x[i, j + 1, q]
            else:
                for q in range(width):
                    t[q] += rates[i, j, 2] * x[i + 1, j + 2, q] + rates[i, j, 3] * x[i + 1, j, q]
            if slots == 8:
                for q in range(width):
                    t[q] += (
                        rates[i, j, 4] * x[i + 2, j + 2, q]
                        + rates[i, j, 5] * x[i, j, q]
                        + rates[i, j, 6] * x[i + 2, j, q]
                        + rates[i, j, 7] * x[i, j + 2, q]
                    )
            # around a periodic axis: what was there before
            if p == 0:
                for q in range(width):
                    t[q] += rates[i, j, back] * (x[i + 1, j, q] if axis == 1 else x[i, j + 1, q])
            if p == length - 1:
                for q in range(width):
                    t[q] += rates[i, j, ahead] * (x[i + 1, j + 2, q] if axis == 1 else x[i + 2, j + 1, q])
            before = rates[i, j, back] if p > 0 else x.dtype.type(0.0)
            f = x.dtype.type(1.0) / (outflow[i, j] - before * c[p])
            c[p + 1] = rates[i, j, ahead] * f
            for q in range(width):
                d[p + 1, q] = (t[q] + before * d[p, q]) * f
        for q in range(width):
            t[q] = d[length, q]
        for p in range(length - 1, -1, -1):
            i, j = (line, p) if axis == 1 else (p, line)
            if p < length - 1:
                for q in range(width):
                    t[q] = d[p + 1, q] + c[p + 1] * t[q]
            for q in range(width):
                x[i + 1, j + 1, q] = t[q]


@njit(cache=True, inline="always")
def _image(x, rates, killed, i, j, slots, t, lanes):
    """Write A x at a cell to t, from differences: a constant gives nothing but what is killed."""
    width = len(lanes)
    for q in range(width):
        here = x[i + 1, j + 1, q]
        t[q] = (
            killed[i, j] * here
            + rates[i, j, 0] * (here - x[i + 2, j + 1, q])
            + rates[i, j, 1] * (here - x[i, j + 1, q])
            + rates[i, j, 2] * (here - x[i + 1, j + 2, q])
            + rates[i, j, 3] * (here - x[i + 1, j, q])
        )
    if slots == 8:
        for q in range(width):
            here = x[i + 1, j + 1, q]
            t[q] += (
                rates[i, j, 4] * (here - x[i + 2, j + 2, q])
                + rates[i, j, 5] * (here - x[i, j, q])
                + rates[i, j, 6] * (here - x[i + 2, j, q])
                + rates[i, j, 7] * (here - x[i, j + 2, q])
            )


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def restricted_rest(x, b, rates, killed, share, out, aims, lanes):
    """Write b - A x + aims x, averaged over blocks of two by two cells with the weights `share`, to `out`."""
    width = len(lanes)
    n0, n1, slots = rates.shape
    t = np.empty(width, x.dtype)
    out[:] = 0
    back = aims
    if aims is not None:
        back = -aims
    for i in range(n0):
        for j in range(n1):
            _image(x, rates, killed, i, j, slots, t, lanes)
            if aims is not None:
                _add_aims(x, i, j, back, t, lanes)
            f = share[i, j]
            for q in range(width):
                out[i // 2, j // 2, q] += f * (b[i, j, q] - t[q])


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def add_interpolated(coarse, x, lanes):
    """Add a coarse function (with its rim) to a fine one, linearly along each axis."""
    width = len(lanes)
    m0, m1, _ = x.shape
    three, sixteenth = x.dtype.type(3.0), x.dtype.type(0.0625)
    for i in range(m0 - 2):
        here, beside = i // 2 + 1, i // 2 + (2 if i % 2 else 0)
        for j in range(m1 - 2):
            at, by = j // 2 + 1, j // 2 + (2 if j % 2 else 0)
            for q in range(width):
                x[i + 1, j + 1, q] += sixteenth * (
                    three * (three * coarse[here, at, q] + coarse[here, by, q] + coarse[beside, at, q])
                    + coarse[beside, by, q]
                )


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def projections(x, y, rates, killed, masses, lanes):
    """Sums over cells of mass times y x^T, times y (A x)^T, times x and times A x."""
    width = len(lanes)
    n0, n1, slots = rates.shape
    gram, form, means = np.zeros((width, width)), np.zeros((width, width)), np.zeros((2, width))
    t = np.empty(width)
    for i in range(n0):
        # sums by rows: rounding does not grow with the number of cells
        gram_row, form_row, mean_row = (
            np.zeros((width, width)),
            np.zeros((width, width)),
            np.zeros((2, width)),
        )
        for j in range(n1):
            _image(x, rates, killed, i, j, slots, t, lanes)
            m = masses[i, j]
            for q in range(width):
                mean_row[0, q] += m * x[i + 1, j + 1, q]
                mean_row[1, q] += m * t[q]
            for p in range(width):
                f = m * y[i + 1, j + 1, p]
                for q in range(width):
                    gram_row[p, q] += f * x[i + 1, j + 1, q]
                    form_row[p, q] += f * t[q]
        gram += gram_row
        form += form_row
        means += mean_row
    return gram, form, means[0], means[1]


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def rotate(x, matrix, constant, lanes):
    """Replace x by x matrix - constant."""
    width = len(lanes)
    m0, m1, _ = x.shape
    t = np.empty(width)
    for i in range(1, m0 - 1):
        for j in range(1, m1 - 1):
            for q in range(width):
                t[q] = -constant[q]
            for p in range(width):
                f = x[i, j, p]
                for q in range(width):
                    t[q] += f * matrix[p, q]
            for q in range(width):
                x[i, j, q] = t[q]


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def rest(x, turn, rates, killed, masses, seen, out, lanes):
    """Write A x - x turn to `out`.

    Returns sums over cells: of mass |rest| and mass |x| per function, and the largest |rest| and |x| where there is
    at least the mass `seen`.
    """
    width = len(lanes)
    n0, n1, slots = rates.shape
    sums = np.zeros((4, width))
    t = np.empty(width)
    for i in range(n0):
        row = np.zeros((2, width))
        for j in range(n1):
            _image(x, rates, killed, i, j, slots, t, lanes)
            for p in range(width):
                f = x[i + 1, j + 1, p]
                for q in range(width):
                    t[q] -= f * turn[p, q]
            m = masses[i, j]
            for q in range(width):
                out[i, j, q] = t[q]
                row[0, q] += m * abs(t[q])
                row[1, q] += m * abs(x[i + 1, j + 1, q])
            if m >= seen:
                for q in range(width):
                    sums[2, q] = max(sums[2, q], abs(t[q]))
                    sums[3, q] = max(sums[3, q], abs(x[i + 1, j + 1, q]))
        sums[:2] += row
    return sums


@njit(cache=True)
def subtract(x, correction, lanes):
    """Subtract a correction, inside the rim."""
    width = len(lanes)
    m0, m1, _ = x.shape
    for i in range(1, m0 - 1):
        for j in range(1, m1 - 1):
            for q in range(width):
                x[i, j, q] -= correction[i, j, q]
