"""Rates between the cells of a rectangle and between blocks of them, and masses that balance along the drift."""

from __future__ import annotations

import numpy as np
from numba import njit

# Neighbours, in the order in which rates out of a cell are kept; four where there are no diagonal jumps.
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


@njit(cache=True, inline="always")
def _arriving(rates, log_masses, wrapped0, wrapped1, i, j, s):
    """Mass of a neighbour times its rate to a cell, over the mass of the cell."""
    n0, n1, _ = rates.shape
    a, b = i + STEPS[s][0], j + STEPS[s][1]
    if wrapped0:
        a %= n0
    if wrapped1:
        b %= n1
    result = 0.0
    if 0 <= a < n0 and 0 <= b < n1:
        back = rates[a, b, s + 1 if s % 2 == 0 else s - 1]
        if back > 0.0:
            result = back * np.exp(log_masses[a, b] - log_masses[i, j])
    return result


@njit(cache=True, error_model="numpy")
def against(rates, log_masses, wrapped0, wrapped1, out):
    """Rates of the chain that runs backwards in time: mass of the neighbour times its rate to here, over own mass."""
    n0, n1, slots = rates.shape
    for i in range(n0):
        for j in range(n1):
            for s in range(slots):
                out[i, j, s] = _arriving(rates, log_masses, wrapped0, wrapped1, i, j, s)


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
                inflow += _arriving(rates, log_masses, wrapped0, wrapped1, i, j, s)
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
