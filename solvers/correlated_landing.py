"""Columns of a kernel whose two components have correlated normal noise: vectorised masses of narrow cells."""

from __future__ import annotations

import math

import numba
import numpy as np

from solvers import vmath

REACH = 8.5
"""Standard deviations kept per axis: the two tails beyond hold 2e-17 of the mass."""
_RADIUS = 8.9  # and of both axes together: 6e-18 beyond
_NEGLIGIBLE = 1e-18
# Narrower cells, in deviations, have tables or series; a table of finer ones would leave the caches.
_WIDEST, _FINEST = 1.2, 0.005
# 16 terms round the mass of such a cell to 3e-16 of itself, up to the edge of the reach.
_TERMS = 16
# Offsets of a mean within a cell, between which six rows of a table interpolate: the error of a mass z deviations away
# is (z w / 128)^6 / 200 of it for cells of w deviations, 1e-13 for z = 5 and w = 1/2.
_ROWS = 128
_VECTOR = 8
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)


@numba.njit
def masses(edges, first, last, mean, deviation, out):
    """Normal probabilities of consecutive intervals, without cancellation in either tail: one tail per edge."""
    scale = 0.7071067811865476 / deviation
    z = (edges[first] - mean) * scale
    tail = 0.5 * math.erfc(abs(z))
    for i in range(first, last):
        z_next = (edges[i + 1] - mean) * scale
        tail_next = 0.5 * math.erfc(abs(z_next))
        if z > 0:
            out[i - first] = tail - tail_next
        elif z_next < 0:
            out[i - first] = tail_next - tail
        else:
            out[i - first] = 1.0 - tail - tail_next
        z, tail = z_next, tail_next


@numba.njit
def correlated(
    starts, first1, last1, first2, last2, edges1, edges2,
    mean1, sd1, mean2, sd2, regression, weights, abscissae, inner_weights,
):  # fmt: skip
    """Entries of all columns: the second component given the first, by quadrature over each first target."""
    data = np.zeros(starts[-1])
    buffer1 = np.empty(np.max(last1 - first1))
    buffer2 = np.empty(np.max(last2 - first2))
    density = np.empty(len(abscissae))
    middles, width = _equal_cells(edges2)
    constant = _FINEST < width / sd2.max() < _WIDEST and sd2.max() == sd2.min()
    table = _table(width / sd2.max()) if constant else np.zeros((1, 1))
    origin, half = (edges2[1] if edges2[0] == -np.inf else edges2[0]), (table.shape[1] - 1) // 2
    lowest = int(edges2[0] == -np.inf)  # number of the cell that begins at the origin
    share, series, spread, narrow = np.zeros(6), np.zeros(_TERMS), -1.0, False
    for source in range(len(starts) - 1):
        a, b = first1[source], last1[source]
        c, d = first2[source], last2[source]
        # cells without an end, beyond absorbing or folded walls, are none of the equal ones
        whole_c, whole_d = c + (edges2[c] == -np.inf), d - (edges2[d] == np.inf)
        for node in range(len(weights)):
            m, s, s2 = mean1[source, node], sd1[source, node], sd2[source, node]
            if s2 != spread:
                spread, narrow = s2, width < _WIDEST * s2
                if narrow:
                    _series(width / s2, series)
            masses(edges1, a, b, m, s, buffer1)
            place = starts[source] - c
            for i in range(a, b):
                low, high = max(edges1[i], m - REACH * s), min(edges1[i + 1], m + REACH * s)
                if high > low and buffer1[i - a] > 0:
                    total = 0.0
                    for k in range(len(abscissae)):
                        z = (0.5 * (low + high) + 0.5 * (high - low) * abscissae[k] - m) / s
                        density[k] = inner_weights[k] * math.exp(-0.5 * z * z)
                        total += density[k]
                    for k in range(len(abscissae)):
                        # given the first coordinate, in proportion to its exact mass in this cell
                        shift = 0.5 * (low + high) + 0.5 * (high - low) * abscissae[k] - m
                        mean = mean2[source, node] + regression[source, node] * shift
                        factor = weights[node] * buffer1[i - a] * density[k] / max(total, 1e-300)
                        if factor <= _NEGLIGIBLE:
                            continue
                        reach = s2 * min(REACH, math.sqrt(max(_RADIUS**2 - (shift / s) ** 2, 0.0)))
                        at = (mean - origin) / width
                        if constant:
                            begin = lowest + math.floor(at - reach / width)
                            end = lowest + 1 + math.floor(at + reach / width)
                            begin, end = min(max(begin, c), d), min(max(end, c), d)
                        else:
                            begin = c + np.searchsorted(edges2[c + 1 : d], mean - reach)
                            end = c + 1 + np.searchsorted(edges2[c + 1 : d], mean + reach)
                        if not (constant or narrow):
                            masses(edges2, begin, end, mean, s2, buffer2)
                            for j in range(begin, end):
                                data[place + j] += factor * buffer2[j - begin]
                            continue
                        if begin < whole_c:
                            masses(edges2, c, c + 1, mean, s2, buffer2)
                            data[place + c] += factor * buffer2[0]
                        if end > whole_d:
                            masses(edges2, d - 1, d, mean, s2, buffer2)
                            data[place + d - 1] += factor * buffer2[0]
                        begin, end = max(begin, whole_c), min(end, whole_d)
                        # a few cells more are cheaper than what is left over of a vector
                        end = min(begin + -(-(end - begin) // _VECTOR) * _VECTOR, whole_d)
                        if begin < end and constant:
                            cell = math.floor(at)
                            offset = (at - cell) * _ROWS
                            row = min(int(offset), _ROWS - 1)
                            _lagrange(offset - row, factor, share)
                            left = begin - lowest - cell + half
                            _add_rows(data[place + begin : place + end], table, row, left, share)
                        elif begin < end:
                            _add_narrow(
                                data[place + begin : place + end],
                                middles[begin:end],
                                series,
                                mean,
                                1 / s2,
                                factor,
                            )
                place += d - c
    return data


@numba.njit
def _equal_cells(edges):
    """Middles of the cells between finite edges, and their width if it is one, otherwise infinity."""
    middles, width = np.zeros(len(edges) - 1), 0.0
    for j in range(len(edges) - 1):
        own = edges[j + 1] - edges[j]
        if own < np.inf:
            middles[j] = 0.5 * (edges[j] + edges[j + 1])
            if width == 0.0:
                width = own
            elif abs(own - width) > 1e-13 * (abs(edges[j]) + abs(edges[j + 1]) + width):
                width = np.inf
    return middles, width


@numba.njit
def _series(width, series):
    """Coefficients of a cell's mass over exp(-z^2/2), in powers of z^2; z is its middle, all in deviations.

    With u from the middle: the integral of exp(-(z + u)^2/2) / sqrt(2 pi), whose factor exp(-z u) is expanded. Odd
    powers vanish, so that every term is positive.
    """
    for k in range(_TERMS):
        series[k] = 0.0
    for q in range(len(_NODES)):
        u = 0.5 * width * _NODES[q]
        term = 0.5 * _WEIGHTS[q] * width * 0.3989422804014327 * math.exp(-0.5 * u * u)
        for k in range(_TERMS):
            series[k] += term
            term *= u * u / ((2 * k + 1) * (2 * k + 2))


@numba.njit
def _table(width):
    """Masses of cells of this width (in deviations) around a mean: rows of offsets in its cell, columns of cells."""
    half = math.ceil((REACH + 1.0) / width) + _VECTOR + 2
    table, series = np.empty((_ROWS + 6, 2 * half + 1)), np.empty(_TERMS)
    _series(width, series)
    for row in range(_ROWS + 6):
        for column in range(2 * half + 1):
            z = (column - half + 0.5 - (row - 2) / _ROWS) * width
            value = series[_TERMS - 1]
            for k in range(_TERMS - 2, -1, -1):
                value = value * z * z + series[k]
            table[row, column] = value * math.exp(-0.5 * z * z)
    return table


@numba.njit
def _lagrange(x, factor, share):
    """Weights of six points -2 ... 3 for the value at x, times a factor."""
    a, b, c, d, e = x + 2, x + 1, x - 1, x - 2, x - 3
    low, high = factor * a * b, factor * d * e
    share[0], share[1] = b * x * c * high * (-1 / 120), a * x * c * high * (1 / 24)
    share[2], share[3] = low * c * d * e * (-1 / 12), low * x * d * e * (1 / 12)
    share[4], share[5] = low * x * c * e * (-1 / 24), low * x * c * d * (1 / 120)


@numba.njit(fastmath={"contract"})
def _add_rows(data, table, row, left, share):
    n = len(data)
    s0, s1, s2, s3, s4, s5 = share[0], share[1], share[2], share[3], share[4], share[5]
    a, b, c = table[row, left : left + n], table[row + 1, left : left + n], table[row + 2, left : left + n]
    d, e, f = (
        table[row + 3, left : left + n],
        table[row + 4, left : left + n],
        table[row + 5, left : left + n],
    )
    for j in range(n):
        data[j] += (s0 * a[j] + s5 * f[j]) + (s1 * b[j] + s4 * e[j]) + (s2 * c[j] + s3 * d[j])


@numba.njit(fastmath={"contract"}, error_model="numpy")
def _add_narrow(data, middles, c, mean, scale, factor):
    c0, c1, c2, c3, c4, c5, c6, c7 = c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]
    c8, c9, c10, c11, c12, c13, c14, c15 = c[8], c[9], c[10], c[11], c[12], c[13], c[14], c[15]
    for j in range(len(data)):
        z = (middles[j] - mean) * scale
        q = z * z
        p = c15 * q + c14
        p = p * q + c13
        p = p * q + c12
        p = p * q + c11
        p = p * q + c10
        p = p * q + c9
        p = p * q + c8
        p = p * q + c7
        p = p * q + c6
        p = p * q + c5
        p = p * q + c4
        p = p * q + c3
        p = p * q + c2
        p = p * q + c1
        p = p * q + c0
        data[j] += factor * p * vmath.exp(-0.5 * q)
