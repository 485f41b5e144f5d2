"""The compiled inner loops of `simulate`: blocks of paths through all steps, statistics on the way.

A block is `wiener.BLOCK` paths in flat arrays ``x[component * BLOCK + i]`` that stay in the first-level
cache; constant widths and strides let LLVM vectorise. Blocks are cut at absolute path numbers and always
computed in full, so that neither threads nor chunks nor the number of paths can change a bit of any path.

Only the pass that moves a block by one step contains the user's model. It is called through a pointer, once
per 256 paths, so that everything else is compiled once per process.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numba import cfunc, float64, int64, njit, types, uint64

from solvers.exit_times import crossing_fraction
from solvers.schemes import FLAGS, Stepper
from solvers.wiener import BLOCK, fill_normals

_FLOATS = float64[::1]
ADVANCE = types.void(
    float64,  # t
    float64,  # dt
    _FLOATS,  # x (d * BLOCK), in and out
    _FLOATS,  # increments (m * BLOCK)
    _FLOATS,  # parameters of the model
    types.Tuple((uint64, int64, int64)),  # seed, number of the first path, number of the step
    types.Tuple((_FLOATS, float64[:, ::1], int64[::1])),  # exit times, gaps, their components
)
"""Signature of the pass that moves a block by one step."""


@njit(fastmath=FLAGS, error_model="numpy")
def record(x, count, pairs, mean, second):
    """Mean of each component and summed (products of) deviations over the first `count` paths of a block.

    ``second`` holds the sums for (0, 0), (1, 1), ... or, with `pairs`, for (0, 0), (0, 1), ..., (1, 1), ...
    Two passes, so that nothing cancels when the mean is much larger than the spread.
    """
    d = mean.size
    for a in range(d):
        column = x[a * BLOCK : a * BLOCK + count]
        total = 0.0
        for i in range(count):
            total += column[i]
        mean[a] = total / count
    q = 0
    for a in range(d):
        for b in range(a, d if pairs else a + 1):
            left, right = x[a * BLOCK : a * BLOCK + count], x[b * BLOCK : b * BLOCK + count]
            total = 0.0
            for i in range(count):
                total += (left[i] - mean[a]) * (right[i] - mean[b])
            second[q] = total
            q += 1


@njit
def tally(x, count, edges, offsets, counts):
    """Count the paths of a block in the cells of a grid; axis a has edges[offsets[a]:offsets[a + 1]]."""
    axes = offsets.size - 1
    for i in range(count):
        cell = 0
        for a in range(axes):
            axis = edges[offsets[a] : offsets[a + 1]]
            value = x[a * BLOCK + i]
            if not (axis[0] <= value <= axis[-1]):  # also when not a number
                cell = -1
                break
            k, end = 0, axis.size - 1  # axis[k] <= value <= axis[end] throughout
            while end - k > 1:
                middle = (k + end) // 2
                if axis[middle] <= value:
                    k = middle
                else:
                    end = middle
            cell = cell * (axis.size - 1) + k
        if cell >= 0:
            counts[cell] += 1


@njit(fastmath=FLAGS, error_model="numpy")
def mark_diverged(x, d, count, step, diverged):
    """Note the first step at which a path of the block is not finite; -1 until then."""
    probe = 0.0
    for i in range(d * BLOCK):
        probe += x[i] * 0.0  # not a number as soon as one entry is infinite or not a number
    if probe == 0.0:
        return
    for a in range(d):
        for i in range(count):
            if diverged[i] < 0 and not np.isfinite(x[a * BLOCK + i]):
                diverged[i] = step


@njit(nogil=True, fastmath=FLAGS, error_model="numpy")
def run_blocks(advance, parameters, seed, times, window, noises, saves, x, sums, states, grid, events):
    """Carry the blocks in x from one step to another.

    Parameters
    ----------
    advance : function pointer
        From `advancing` or `advancing_until`: moves one block by one step.
    parameters : float array
        Of the model.
    seed : uint64
    times : (t0, dt)
    window : (first path in x, paths in the whole run, first step, last step, first index into saves)
    noises : int
        Number of Wiener processes.
    saves : int array
        Steps at which results are taken.
    x : float array (blocks, d * BLOCK)
        State, updated in place.
    sums : (pairs, mean (blocks, saves, d), second (blocks, saves, q))
        See `record`; zero blocks long when no statistics are wanted.
    states : float array (paths in x, saves, d)
        Zero paths long when no paths are wanted.
    grid : (edges, offsets, counts (saves, cells))
        See `tally`; zero saves long when no histogram is wanted.
    events : (diverged (paths in x), exits (paths in x), gaps, gap components)
        First non-finite step or -1, exit time or not a number; gaps as in `solvers.exit_times`.
    """
    t0, dt = times
    first_path, paths, first_step, last_step, first_save = window
    pairs, mean, second = sums
    edges, offsets, counts = grid
    diverged, exits, gaps, gap_components = events
    d = x.shape[1] // BLOCK
    z = np.empty(2 * noises * BLOCK)
    words = np.empty(2 * BLOCK, np.uint64)
    scale = np.sqrt(dt)
    for b in range(x.shape[0]):
        block = x[b]
        start = first_path + b * BLOCK
        count = min(BLOCK, paths - start)
        rows = slice(b * BLOCK, (b + 1) * BLOCK)
        events_here = (exits[rows], gaps, gap_components)
        diverged_here = diverged[rows]
        save = first_save
        for step in range(first_step, last_step + 1):
            if step > first_step:
                taken = step - 1
                if taken % 2 == 0 or step == first_step + 1:
                    fill_normals(seed, start, taken // 2, noises, scale, z, words)
                dw = z[(taken % 2) * noises * BLOCK : (taken % 2 + 1) * noises * BLOCK]
                keys = (seed, start, taken)
                advance(t0 + taken * dt, dt, block, dw, parameters, keys, events_here)
                mark_diverged(block, d, count, step, diverged_here)
            if save < saves.size and saves[save] == step:
                if mean.shape[0] > 0:
                    record(block, count, pairs, mean[b, save], second[b, save])
                if counts.shape[0] > 0:
                    tally(block, count, edges, offsets, counts[save])
                if states.shape[0] > 0:
                    for a in range(d):
                        for i in range(count):
                            states[b * BLOCK + i, save, a] = block[a * BLOCK + i]
                save += 1


def _unpacking(kind: type, count: int) -> Any:
    """Compiled code from the flat parameters to the tuple or named tuple that the model reads."""
    entries = ", ".join(f"values[{k}]" for k in range(count))
    made = f"kind({entries})" if hasattr(kind, "_fields") else f"({entries},)" if count else "()"
    scope: dict[str, Any] = {"kind": kind}
    exec(compile(f"def unpack(values):\n    return {made}\n", "<parameters>", "exec"), scope)
    return njit(forceinline=True)(scope["unpack"])


@lru_cache(maxsize=256)
def advancing(stepper: Stepper, kind: type, count: int) -> Any:
    """The pass that moves all paths of a block by one step.

    `kind` is the type of the model's parameters and `count` how many.
    """
    step, ops = stepper.step, stepper.ops
    load, load_noise, store = ops.load, ops.load_noise, ops.store
    unpack = _unpacking(kind, count)

    @cfunc(ADVANCE, fastmath=FLAGS, error_model="numpy")
    def advance(t, dt, x, dw, parameters, _keys, _events):
        p = unpack(parameters)
        for i in range(BLOCK):
            store(x, i, step(p, t, dt, load(x, i), load_noise(dw, i)))

    return advance


@lru_cache(maxsize=256)
def advancing_until(stepper: Stepper, kind: type, count: int, stop: Any) -> Any:
    """The pass that moves the paths of a block that have not met the stop condition, and looks for exits.

    With gaps (the stop condition is a set of levels) the exit is sought inside the step by a Brownian bridge
    and the path is put on the level; otherwise it ends with the step at which the condition first holds.
    """
    step, ops, d, diffusion = stepper.step, stepper.ops, stepper.model.d, stepper.model.diffusion
    load, load_noise, store, variances = ops.load, ops.load_noise, ops.store, ops.variances
    unpack = _unpacking(kind, count)

    @cfunc(ADVANCE, fastmath=FLAGS, error_model="numpy")
    def advance(t, dt, x, dw, parameters, keys, events):
        p = unpack(parameters)
        seed, start, number = keys
        exits, gaps, gap_components = events
        for i in range(BLOCK):
            if not np.isnan(exits[i]):
                continue
            y = load(x, i)
            new = step(p, t, dt, y, load_noise(dw, i))
            store(x, i, new)
            if gap_components.size == 0:
                if stop(t + dt, new, p):
                    exits[i] = t + dt
                continue
            variance = variances(diffusion(t, y, p))
            earliest, level, component = 2.0, 0.0, 0
            for g in range(gap_components.size):
                c = gap_components[g]
                low, high = gaps[g, 0], gaps[g, 1]
                if not low < y[c] < high:
                    continue
                for side in range(2):
                    bound = high if side else low
                    if np.isinf(bound):
                        continue
                    sign = 1.0 if side else -1.0
                    fraction = crossing_fraction(
                        sign * (bound - y[c]), sign * (bound - new[c]), variance[c] * dt, seed, start + i,
                        number, 2 * g + side,
                    )  # fmt: skip
                    if fraction < earliest:
                        earliest, level, component = fraction, bound, c
            if earliest <= 1.0:
                exits[i] = t + earliest * dt
                for j in range(d):
                    x[j * BLOCK + i] = y[j] + earliest * (new[j] - y[j])
                x[component * BLOCK + i] = level

    return advance
