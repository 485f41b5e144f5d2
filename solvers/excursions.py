"""Compiled loops of `rare_exit`: single paths between a source and a target, and the splitting of a population.

Paths are pure functions of (seed, path number, step), so no path is stored: to branch from one, it is computed
again from where it was last known. A particle remembers one point (its own start, or the last branching point)
from which its future runs; since levels only rise, that point only moves forward, and every step of a path is
computed at most twice.

Path numbers of a repeat: 2^63 + repeat 2^32 + clone, apart from those of `simulate`; clone 0 is the path that
measures the flux, the particles and their replacements follow.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit

from solvers.exit_times import earliest_crossing
from solvers.schemes import Stepper
from solvers.weak_increments import (
    THREE_POINT_STEPS,
    TWO_POINT_STEPS,
    three_point_of,
    three_point_words,
    two_point_of,
    two_point_word,
)
from solvers.wiener import crossing_uniforms, normal_pair

RETURNED, ARRIVED, DIVERGED, LONG, AWAITED = 0, 1, 2, 3, 4
"""How a path ends: in the source or at the end of time, in the target, not finite, too long, at a level."""
UNFINISHED, DONE, EXTINCT, FAILED = 0, 1, 2, 3
"""States of a population."""
CLONES = 1 << 32
_FIRST = np.uint64(1 << 63)
_SELECT, _TARGET, _SOURCE = 1 << 20, 0, 1 << 16


@njit
def path_number(repeat, clone):
    """The number of a path, disjoint from those of `simulate`."""
    return _FIRST + np.uint64(repeat) * np.uint64(CLONES) + np.uint64(clone)


@njit
def pick(seed, path, step, count):
    """A number from 0 to count - 1, uniform to 2^-53 count."""
    u, _ = crossing_uniforms(seed, path, step, _SELECT)
    return min(int(u * count), count - 1)


@njit
def _weak_increments(seed, path, step, counts, scale, dw):
    """Three-point and two-point numbers of one step, after the Gaussian ones in dw."""
    gaussian, three, two = counts
    for c in range(three):
        words = three_point_words(seed, path, step // THREE_POINT_STEPS, c)
        dw[gaussian + c] = scale * three_point_of(words, step % THREE_POINT_STEPS)
    for c in range(two):
        word = two_point_word(seed, path, step // TWO_POINT_STEPS, c)
        dw[gaussian + three + c] = scale * two_point_of(word, step % TWO_POINT_STEPS)


@lru_cache(maxsize=128)
def compiled(stepper: Stepper, source: Any, target: Any, score: Any) -> tuple[Any, Any]:
    """``(split, circulate)`` for one model: see their docstrings.

    Parameters
    ----------
    stepper : Stepper
        With block width 1.
    source, target, score : dispatchers ``f(t, y, p)``
    """
    step, ops, model = stepper.step, stepper.ops, stepper.model
    load, load_noise, store, variances = ops.load, ops.load_noise, ops.store, ops.variances
    diffusion, d = model.diffusion, model.d
    counts = tuple(stepper.draws)
    gaussian, width = counts[0], sum(counts)

    @njit(error_model="numpy", forceinline=True)  # a third of the time otherwise goes into passing arrays
    def moved(p, t, dt, seed, path, taken, y, first, noise, walls):
        """One step: the new state and what it met. Normals come in pairs: noise keeps the odd step's."""
        target_gaps, target_components, source_gaps, source_components = walls
        scale = math.sqrt(dt)
        if first or taken % 2 == 0:
            for c in range(gaussian):
                even, odd = normal_pair(seed, path, taken // 2, c)
                noise[c], noise[width + c] = scale * even, scale * odd
        offset = (taken % 2) * width
        if width > gaussian:
            _weak_increments(seed, path, taken, counts, scale, noise[offset : offset + width])
        new = step(p, t, dt, y, load_noise(noise, offset))
        finite = 0.0
        for value in new:
            finite += value * 0.0
        if finite != 0.0:
            return new, DIVERGED
        into, back = 2.0, 2.0
        if target_components.size + source_components.size > 0:
            variance = variances(diffusion(t, y, p))
            into, _, _ = earliest_crossing(
                target_gaps, target_components, y, new, variance, dt, seed, path, taken, _TARGET
            )
            back, _, _ = earliest_crossing(
                source_gaps, source_components, y, new, variance, dt, seed, path, taken, _SOURCE
            )
        if into > 1.0 and target(t + dt, new, p):
            into = 1.0
        if back > 1.0 and source(t + dt, new, p):
            back = 1.0
        if into <= 1.0 and into <= back:
            return new, ARRIVED
        return new, RETURNED if back <= 1.0 else AWAITED

    @njit(error_model="numpy")
    def follow(p, times, seed, path, y, taken, best, level, noise, walls):
        """Follow a path until it ends or its score exceeds `level`: state, step, best score, what ended it."""
        t0, dt, last, horizon = times
        first = True
        while taken < last:
            y, met = moved(p, t0 + taken * dt, dt, seed, path, taken, y, first, noise, walls)
            first = False
            taken += 1
            if met == ARRIVED:
                return y, taken, math.inf, ARRIVED
            if met != AWAITED:
                return y, taken, best, met
            value = score(t0 + taken * dt, y, p)
            if not abs(value) < math.inf:
                return y, taken, best, DIVERGED
            if value > best:
                best = value
                if best > level:
                    return y, taken, best, AWAITED
        return y, taken, best, RETURNED if horizon else LONG

    @njit(nogil=True, error_model="numpy")
    def split(p, times, seed, repeat, starts, particles, counters, tallies, walls, budget):
        """Carry on one population until it has reached the target, is extinct, or the budget of steps is spent.

        Parameters
        ----------
        p, times, seed, repeat
            Parameters; (t0, dt, last step, whether the last step is a horizon); keys of the random numbers.
        starts : float array (r, d)
            Particle k starts in row k if there is one row each, else in a random row.
        particles : (state (n, d), step (n), clone (n), score there (n), best score (n))
            Where the future of each particle is computed from; best is infinite in the target.
        counters : int array
            Status, particles launched, next clone, levels, path-steps, diverged paths, reason of failure.
        tallies : float array
            log of the weight, highest score met by a path that did not arrive.
        walls : gaps and components of the target and of the source
        """
        states, taken, clones, here, best = particles
        n = best.size
        noise = np.empty(2 * max(width, 1))
        survivors, victims = np.empty(n, np.int64), np.empty(n, np.int64)
        limit = counters[4] + budget
        level, left, pending, parent = -math.inf, 0, 0, -1
        while True:
            aim = math.inf
            if counters[1] < n:
                if counters[4] >= limit:
                    return
                mover = counters[1]
                counters[1] += 1
                clones[mover] = counters[2]
                counters[2] += 1
                own = path_number(repeat, clones[mover])
                row = mover if len(starts) == n else pick(seed, own, 0, len(starts))
                for c in range(d):
                    states[mover, c] = starts[row, c]
                taken[mover] = 0
                here[mover] = score(times[0], load(states[mover], 0), p)
            elif pending == 0:
                if counters[4] >= limit:
                    return
                level = best.min()
                if level == math.inf:
                    counters[0] = DONE
                    return
                left = 0
                for i in range(n):
                    if best[i] > level:  # strictly: of particles tied at the level none survives
                        survivors[left] = i
                        left += 1
                    else:
                        victims[pending] = i
                        pending += 1
                counters[3] += 1
                if left == 0:
                    counters[0], tallies[0] = EXTINCT, -math.inf
                    return
                tallies[0] += math.log(left / n)
                continue
            else:
                mover = victims[pending - 1]
                if parent < 0:
                    if counters[2] == CLONES:
                        counters[0] = FAILED
                        return
                    clones[mover] = counters[2]
                    counters[2] += 1
                    parent = survivors[pick(seed, path_number(repeat, clones[mover]), 0, left)]
                if here[parent] <= level:
                    mover, aim = parent, level
                else:
                    for c in range(d):
                        states[mover, c] = states[parent, c]
                    taken[mover], here[mover], best[mover] = taken[parent], here[parent], here[parent]
                    parent = -1
                    pending -= 1
                    if here[mover] == math.inf:
                        continue
            # The only call: two inlined copies could round differently, and a path would not repeat itself.
            y, end, top, met = follow(
                p, times, seed, path_number(repeat, clones[mover]), load(states[mover], 0), taken[mover],
                here[mover], aim, noise, walls,
            )  # fmt: skip
            counters[4] += end - taken[mover]
            if met == LONG:
                counters[0], counters[6] = FAILED, LONG
                return
            if aim < math.inf:
                if not top > level:  # the path did not repeat itself
                    counters[0], counters[6] = FAILED, AWAITED
                    return
                store(states[mover], 0, y)
                taken[mover], here[mover] = end, top
            else:
                best[mover] = top
                counters[5] += met == DIVERGED
                if met != ARRIVED:
                    tallies[1] = max(tallies[1], top)

    @njit(nogil=True, error_model="numpy")
    def circulate(p, times, seed, repeat, origin, state, window, counters, exits, walls):
        """One long path that starts anew in the target: count its exits from the source and keep some of them.

        Parameters
        ----------
        origin, state : float array (d,)
            Where it starts, and where it is: updated.
        window : (first step, last step, first step that counts)
        counters : int array
            Whether it is in the source, exits, arrivals, whether it diverged.
        exits : float array (n, d)
            A uniform sample of the exit points, without replacement (Vitter 1985, algorithm R).
        """
        t0, dt = times[0], times[1]
        first_step, last_step, counted = window
        path = path_number(repeat, 0)
        noise = np.empty(2 * max(width, 1))
        y = load(state, 0)
        first = True
        for taken in range(first_step, last_step):
            y, met = moved(p, t0, dt, seed, path, taken, y, first, noise, walls)
            first = False
            if met == DIVERGED:
                counters[3] = 1
                return
            if met == ARRIVED:
                y = load(origin, 0)
                counters[0] = 1
                counters[2] += 1
            elif met == RETURNED:
                counters[0] = 1
            elif counters[0] == 1:
                counters[0] = 0
                if taken >= counted:
                    found = counters[1]
                    counters[1] += 1
                    slot = found if found < len(exits) else pick(seed, path, found, found + 1)
                    if slot < len(exits):
                        store(exits[slot], 0, y)
        store(state, 0, y)

    return split, circulate
