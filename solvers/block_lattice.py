"""Kernels on a rectangle of cells for several functions side by side: a coefficient serves all of them.

Arrays of functions have the shape (n0 + 2, n1 + 2, width): a rim of one cell around the rectangle holds what lies
beyond a wall (any finite value: no rate leads there) or on the other side of a periodic axis. Rates out of a cell are
kept in the order of `STEPS`, the first four without diagonal neighbours. `lanes` is a tuple as long as the functions
are many: its length is known when a kernel is compiled, so that loops over functions become vector instructions.
"""

from __future__ import annotations

import numpy as np
from numba import njit

STEPS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1), (1, -1), (-1, 1))


@njit(cache=True)
def rates_out(n0, n1, wrapped0, wrapped1, first, second, forward, backward, out):
    """Add the rates of pairs of cells to `out`, (n0, n1, 4 or 8); False if a pair is no pair of neighbours."""
    slots = out.shape[2]
    for e in range(len(first)):
        for way in range(2):
            a, b = (first[e], second[e]) if way == 0 else (second[e], first[e])
            rate = forward[e] if way == 0 else backward[e]
            i, j = a // n1, a % n1
            s0, s1 = b // n1 - i, b % n1 - j
            if wrapped0 and abs(s0) == n0 - 1 and n0 > 2:
                s0 = -1 if s0 > 0 else 1
            if wrapped1 and abs(s1) == n1 - 1 and n1 > 2:
                s1 = -1 if s1 > 0 else 1
            slot = -1
            for s in range(slots):
                if STEPS[s][0] == s0 and STEPS[s][1] == s1:
                    slot = s
            if slot < 0:
                return False
            out[i, j, slot] += rate
    return True


@njit(cache=True, error_model="numpy")
def against(rates, log_masses, wrapped0, wrapped1, out):
    """Rates of the chain that runs backwards in time: mass of the neighbour times its rate to here, over own mass."""
    n0, n1, slots = rates.shape
    for i in range(n0):
        for j in range(n1):
            for s in range(slots):
                a, b = i + STEPS[s][0], j + STEPS[s][1]
                if wrapped0:
                    a %= n0
                if wrapped1:
                    b %= n1
                out[i, j, s] = 0.0
                if 0 <= a < n0 and 0 <= b < n1:
                    back = rates[a, b, s + 1 if s % 2 == 0 else s - 1]
                    if back > 0.0:
                        out[i, j, s] = back * np.exp(log_masses[a, b] - log_masses[i, j])


@njit(cache=True, error_model="numpy")
def settle(rates, outflow, wrapped0, wrapped1, upwards0, upwards1, log_masses):
    """One Gauss-Seidel sweep, in place, for masses whose inflow is their outflow; the largest change of a logarithm.

    Sums of positive terms: no mass loses its digits or its sign.
    """
    n0, n1, slots = rates.shape
    most = 0.0
    for p in range(n0):
        i = p if upwards0 else n0 - 1 - p
        for q in range(n1):
            j = q if upwards1 else n1 - 1 - q
            inflow = 0.0
            for s in range(slots):
                a, b = i + STEPS[s][0], j + STEPS[s][1]
                if wrapped0:
                    a %= n0
                if wrapped1:
                    b %= n1
                if 0 <= a < n0 and 0 <= b < n1:
                    back = rates[a, b, s + 1 if s % 2 == 0 else s - 1]
                    if back > 0.0:
                        inflow += back * np.exp(log_masses[a, b] - log_masses[i, j])
            if inflow > 0.0:
                change = np.log(inflow / outflow[i, j])
                log_masses[i, j] += change
                most = max(most, abs(change))
    return most


@njit(cache=True)
def _bernoulli(z):
    return 1.0 - 0.5 * z if abs(z) < 1e-8 else z / np.expm1(z)


@njit(cache=True)
def _fitted(ahead, back, stretch):
    """Rate across a face over `stretch` times the distance, times the stretch, by exponential fitting."""
    if ahead == 0.0 or back == 0.0:
        return ahead * stretch if back == 0.0 else 0.0
    peclet = np.log(ahead / back)
    if abs(peclet) * stretch > 600.0:
        return ahead * stretch if peclet > 0.0 else 0.0
    return ahead * _bernoulli(-stretch * peclet) / _bernoulli(-peclet)


@njit(cache=True)
def _hybrid(ahead, back, stretch):
    """The same by central differences, upwind where these would be negative, as correlated noise has it."""
    drift = stretch * (ahead - back)
    return max(drift, 0.0, 0.5 * (ahead + back + drift))


@njit(cache=True, error_model="numpy")
def join(rates, killed, width0, width1, wrapped0, wrapped1, joined, joined_killed):
    """Rates between blocks of two by two cells, and of loss.

    The drift and the diffusion that two rates across a face stand for are those of the coarser face too: the same
    scheme on coarser cells. Diagonal jumps carry no drift; of them the ones between blocks that touch in a corner
    have the rate of the coarser cells.
    """
    n0, n1, slots = rates.shape
    joined[:] = 0.0
    joined_killed[:] = 0.0
    for i in range(n0):
        for j in range(n1):
            block0, block1 = min(2, n0 - 2 * (i // 2)), min(2, n1 - 2 * (j // 2))
            share = 1.0 / (block0 * block1)
            joined_killed[i // 2, j // 2] += 0.5 * share * killed[i, j]
            for s in range(slots):
                a, b = i + STEPS[s][0], j + STEPS[s][1]
                if wrapped0:
                    a %= n0
                if wrapped1:
                    b %= n1
                if not (0 <= a < n0 and 0 <= b < n1) or (a // 2 == i // 2 and b // 2 == j // 2):
                    continue
                ahead = rates[i, j, s]
                if s >= 4:
                    if a // 2 != i // 2 and b // 2 != j // 2:
                        joined[i // 2, j // 2, s] += share * ahead
                    continue
                back = rates[a, b, s + 1 if s % 2 == 0 else s - 1]
                near, far, width = (i, a, width0) if s < 2 else (j, b, width1)
                first = 2 * (near // 2)
                own = width[first] + (width[first + 1] if first + 1 < len(width) else 0.0)
                first = 2 * (far // 2)
                other = width[first] + (width[first + 1] if first + 1 < len(width) else 0.0)
                stretch = (own + other) / (width[near] + width[far])
                along = block0 if s < 2 else block1
                # the average over a block counts only the cells at the face: times `along`
                rate = _hybrid(ahead, back, stretch) if slots == 8 else _fitted(ahead, back, stretch)
                rate *= width[near] / (own * stretch)
                joined[i // 2, j // 2, s] += share * along * rate


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


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def sweep(x, b, inverse, rates, upwards0, upwards1, lanes):
    """One Gauss-Seidel sweep, in place, for diagonal x - sum of rates times neighbours = b, in the order asked for."""
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
def restricted_rest(x, b, rates, killed, share, out, lanes):
    """Write b - A x, averaged over blocks of two by two cells with the weights `share`, to `out`."""
    width = len(lanes)
    n0, n1, slots = rates.shape
    t = np.empty(width, x.dtype)
    out[:] = 0
    for i in range(n0):
        for j in range(n1):
            _image(x, rates, killed, i, j, slots, t, lanes)
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
