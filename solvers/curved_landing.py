"""Columns of a kernel with tabulated noise: where the curved images of source cells fall, integrated between kinks.

On a piece of a source cell each component of the map is a polynomial of degree 5 in local coordinates u, v on
[-1, 1]. Along a line of constant u the landing point enters another target where a component meets an edge (less
the noise): roots of polynomials, between which the probabilities are constant (point masses of noise) or smooth
(boxes). As functions of u these integrals are smooth between the values where such a root appears at an end of the
line, or where two of them cross, which is where both components meet edges. Gauss-Legendre rules between all of these
are exact for affine maps, and of order eight in what is curved.
"""

from __future__ import annotations

import math

import numba
import numpy as np

DEGREE = 5
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(4)
# Where a component turns along a line, integrals have square roots at tangencies: u = (3 t - t^3)/2 between kinks makes
# them smooth.
_SMOOTHED, _SMOOTHED_WEIGHTS = np.polynomial.legendre.leggauss(16)
_BOXED, _BOXED_WEIGHTS = np.polynomial.legendre.leggauss(10)  # boxes of noise are smoother by two orders
_INNER = 1.0 - 1e-13  # roots beyond are on the end of a line: cells that land on cells do not spill over
_PARTS = 8  # in which turning points of a line are looked for
_STARTS = np.array([[0.0, 0.0], [-0.6, -0.6], [-0.6, 0.6], [0.6, -0.6], [0.6, 0.6]])


@numba.njit(cache=True)
def curved(
    starts, first1, last1, first2, last2, edges1, edges2, images1, images2, bent, low, width, mass, flat
):  # fmt: skip
    """Entries of all columns.

    images1, images2: coefficients (sources, pieces, powers of u, powers of v); bent: whether a component turns along
    u or v in a piece or near it (sources, pieces); flat: a single line is enough (one dimension).
    """
    data = np.zeros(starts[-1])
    pieces = images1.shape[1]
    most = 2 * max(np.max(last1 - first1), np.max(last2 - first2)) + 4
    levels1, levels2 = np.empty(most), np.empty(most)
    kinks, roots = np.empty(36 * most + 5 * most * most + 2), np.empty(2 * DEGREE * most + 2)
    side, a, b = np.empty(DEGREE + 1), np.empty(DEGREE + 1), np.empty(DEGREE + 1)
    for source in range(len(starts) - 1):
        window = (first1[source], last1[source], first2[source], last2[source])
        block = data[starts[source] : starts[source + 1]]
        for piece in range(pieces):
            one, two = images1[source, piece], images2[source, piece]
            turning = bent[source, piece]
            for k in range(len(mass)):
                n1 = _levels(edges1, window[0], window[1], one, low[k, 0], width[k, 0], levels1)
                n2 = _levels(edges2, window[2], window[3], two, low[k, 1], width[k, 1], levels2)
                share = mass[k] / pieces
                nodes, weights = _NODES, _WEIGHTS
                if turning and width[k, 0] > 0 and width[k, 1] > 0:
                    nodes, weights = _BOXED, _BOXED_WEIGHTS
                elif turning:
                    nodes, weights = _SMOOTHED, _SMOOTHED_WEIGHTS
                if flat:
                    _line(
                        one[0], two[0], levels1[:n1], levels2[:n2], turning, roots, edges1, edges2, window,
                        low[k], width[k], share, block,
                    )  # fmt: skip
                    continue
                count = _kinks(one, two, levels1[:n1], levels2[:n2], turning, side, kinks)
                for interval in range(count - 1):
                    begin, end = kinks[interval], kinks[interval + 1]
                    if end - begin < 1e-14:
                        continue
                    for node in range(len(nodes)):
                        at, weight = nodes[node], weights[node]
                        if turning:
                            weight *= 1.5 * (1 - at * at)
                            at *= 0.5 * (3 - at * at)
                        u = 0.5 * (begin + end) + 0.5 * (end - begin) * at
                        _restrict(one, u, a)
                        _restrict(two, u, b)
                        _line(
                            a, b, levels1[:n1], levels2[:n2], turning, roots, edges1, edges2, window,
                            low[k], width[k], 0.25 * share * (end - begin) * weight, block,
                        )  # fmt: skip
    return data


@numba.njit(cache=True)
def _levels(edges, first, last, image, low, width, levels):
    """Values of a component at which a point, or either end of a box of noise, meets an edge."""
    reach = 0.0
    for i in range(image.shape[0]):
        for j in range(image.shape[1]):
            reach += abs(image[i, j])
    middle = image[0, 0]
    reach -= abs(middle)
    count = 0
    for i in range(first + 1, last):
        for offset in range(2 if width > 0 else 1):
            level = edges[i] - low - offset * width
            if abs(level - middle) <= reach:
                levels[count] = level
                count += 1
    return count


@numba.njit(cache=True)
def _kinks(one, two, levels1, levels2, turning, side, kinks):
    """Sorted values of u between which integrals along v are smooth, -1 and 1 included."""
    kinks[0], kinks[1], count = -1.0, 1.0, 2
    for end in (-1.0, 1.0):
        for which in range(2):
            image, levels = (one, levels1) if which == 0 else (two, levels2)
            for i in range(DEGREE + 1):
                value = image[i, DEGREE]
                for j in range(DEGREE - 1, -1, -1):
                    value = value * end + image[i, j]
                side[i] = value
            for level in levels:
                count = _roots(side, level, turning, kinks, count)
    for x in levels1:
        for y in levels2:
            for start in range(len(_STARTS) if turning else 1):
                u, found = _corner(one, two, x, y, _STARTS[start, 0], _STARTS[start, 1])
                if found:
                    kinks[count] = u
                    count += 1
    if turning:
        for level in levels1:
            count = _tangencies(one, level, kinks, count)
        for level in levels2:
            count = _tangencies(two, level, kinks, count)
    kinks[:count].sort()
    return count


@numba.njit(cache=True)
def _corner(one, two, x, y, u, v):
    """Where along u a piece lands on a corner, by Newton's method, and whether it does."""
    for _ in range(20):
        f, fu, fv = _with_slopes(one, u, v)
        g, gu, gv = _with_slopes(two, u, v)
        f, g = x - f, y - g
        determinant = fu * gv - fv * gu
        if abs(determinant) <= 1e-13 * (abs(fu) + abs(fv)) * (abs(gu) + abs(gv)):
            return u, False  # the level curves are parallel: they cross at ends of lines, if at all
        du, dv = (f * gv - g * fv) / determinant, (fu * g - gu * f) / determinant
        u, v = u + du, v + dv
        if abs(u) > 4 or abs(v) > 4:
            return u, False
        if abs(du) + abs(dv) < 1e-14:
            break
    return u, abs(u) < 1 and abs(v) < 1


@numba.njit(cache=True)
def _with_slopes(image, u, v):
    value, along, across = 0.0, 0.0, 0.0
    for i in range(DEGREE, -1, -1):
        row, slope = 0.0, 0.0
        for j in range(DEGREE, -1, -1):
            slope = slope * v + row
            row = row * v + image[i, j]
        along = along * u + value
        value = value * u + row
        across = across * u + slope
    return value, along, across


@numba.njit(cache=True)
def _restrict(image, u, out):
    for j in range(DEGREE + 1):
        value = image[DEGREE, j]
        for i in range(DEGREE - 1, -1, -1):
            value = value * u + image[i, j]
        out[j] = value


@numba.njit(cache=True)
def _value(c, x):
    value = c[DEGREE]
    for j in range(DEGREE - 1, -1, -1):
        value = value * x + c[j]
    return value


@numba.njit(cache=True)
def _roots(c, level, turning, out, count):
    """Append where a polynomial meets a level within (-1, 1)."""
    before, left = _value(c, -1.0) - level, -1.0
    if turning:
        slope = np.zeros(DEGREE + 1)
        for j in range(DEGREE):
            slope[j] = (j + 1) * c[j + 1]
        at = _value(slope, -1.0)
        for part in range(_PARTS):
            a, b = 2.0 * part / _PARTS - 1.0, 2.0 * (part + 1) / _PARTS - 1.0
            then = _value(slope, b)
            if (at < 0) != (then < 0):
                right = _root(slope, 0.0, a, b, at, then)
                after = _value(c, right) - level
                if (before < 0) != (after < 0):
                    out[count] = _root(c, level, left, right, before, after)
                    count += abs(out[count]) < _INNER
                before, left = after, right
            at = then
    after = _value(c, 1.0) - level
    if (before < 0) != (after < 0):
        out[count] = _root(c, level, left, 1.0, before, after)
        count += abs(out[count]) < _INNER
    return count


@numba.njit(cache=True)
def _tangencies(image, level, kinks, count):
    """Append where along u a line touches a level, by Newton's method from the turning points of four lines."""
    slopes = np.zeros_like(image)
    for i in range(DEGREE + 1):
        for j in range(DEGREE):
            slopes[i, j] = (j + 1) * image[i, j + 1]
    line, turning = np.empty(DEGREE + 1), np.empty(DEGREE)
    for start in (-0.75, -0.25, 0.25, 0.75):
        _restrict(slopes, start, line)
        at, many = _value(line, -1.0), 0
        for part in range(_PARTS):
            a, b = 2.0 * part / _PARTS - 1.0, 2.0 * (part + 1) / _PARTS - 1.0
            then = _value(line, b)
            if (at < 0) != (then < 0) and many < DEGREE:
                turning[many] = _root(line, 0.0, a, b, at, then)
                many += 1
            at = then
        for v in turning[:many]:
            u, found = _corner(image, slopes, level, 0.0, start, v)
            if found:
                kinks[count] = u
                count += 1
    return count


@numba.njit(cache=True)
def _root(c, level, low, high, at_low, at_high):
    """The root in a bracket, by Newton's method kept within it."""
    x = low - at_low * (high - low) / (at_high - at_low)
    for _ in range(60):
        value, slope = c[DEGREE], 0.0
        for j in range(DEGREE - 1, -1, -1):
            slope = slope * x + value
            value = value * x + c[j]
        value -= level
        if (value < 0) == (at_low < 0):
            low = x
        else:
            high = x
        step = value / slope if slope != 0 else np.inf
        if not low < x - step < high:
            if abs(step) < 1e-15 or high - low < 1e-15:
                break
            step = x - 0.5 * (low + high)
        x -= step
        if abs(step) < 1e-15:
            break
    return x


@numba.njit(cache=True)
def _line(a, b, levels1, levels2, turning, roots, edges1, edges2, window, low, width, share, block):
    """Add what lands from a line of constant u; `share` is the mass of the whole line."""
    roots[0], roots[1], count = -1.0, 1.0, 2
    for level in levels1:
        count = _roots(a, level, turning, roots, count)
    for level in levels2:
        count = _roots(b, level, turning, roots, count)
    roots[:count].sort()
    for segment in range(count - 1):
        begin, end = roots[segment], roots[segment + 1]
        if end <= begin:
            continue
        if width[0] == 0 and width[1] == 0:
            middle = 0.5 * (begin + end)
            _add(
                _value(a, middle) + low[0], _value(b, middle) + low[1], width, edges1, edges2, window,
                0.5 * share * (end - begin), block,
            )  # fmt: skip
            continue
        for node in range(len(_NODES)):
            v = 0.5 * (begin + end) + 0.5 * (end - begin) * _NODES[node]
            _add(
                _value(a, v) + low[0], _value(b, v) + low[1], width, edges1, edges2, window,
                0.25 * share * (end - begin) * _WEIGHTS[node], block,
            )  # fmt: skip


@numba.njit(cache=True)
def _add(x, y, width, edges1, edges2, window, share, block):
    """Add a box of uniform noise with its low corner at x, y; a point if it has no width."""
    first1, last1, first2, last2 = window
    across = last2 - first2
    i = first1 + np.searchsorted(edges1[first1 + 1 : last1], x, side="right")
    begin = first2 + np.searchsorted(edges2[first2 + 1 : last2], y, side="right")
    left = x
    while True:
        right = edges1[i + 1] if i + 1 < last1 else math.inf
        part = share if width[0] == 0 else share * (min(right, x + width[0]) - left) / width[0]
        j, down = begin, y
        while True:
            up = edges2[j + 1] if j + 1 < last2 else math.inf
            piece = part if width[1] == 0 else part * (min(up, y + width[1]) - down) / width[1]
            block[(i - first1) * across + j - first2] += piece
            if y + width[1] <= up:
                break
            j, down = j + 1, up
        if x + width[0] <= right:
            break
        i, left = i + 1, right
