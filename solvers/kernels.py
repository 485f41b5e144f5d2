"""The compiled inner loops of `simulate`: blocks of paths through all steps, statistics on the way.

A block is `sources.block_width` paths in flat arrays ``x[component * width + i]`` that stay in the first-level
cache; constant widths and strides let LLVM vectorise. Blocks are cut at absolute path numbers and always
computed in full, so that neither threads nor chunks nor the number of paths can change a bit of any path.

Each step is a few short passes over the block, called through addresses, so that only the pass that contains
the user's model is compiled for each model.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numba import carray, cfunc, float32, float64, int64, njit, types, uint64

from solvers.exit_times import CERTAIN, earliest_crossing
from solvers.lanes import not_finite_probe, prefer_wide_vectors, shifted_product, shifted_sums
from solvers.observers import OBSERVE
from solvers.pointers import borrowed, calling
from solvers.schemes import FLAGS, Stepper
from solvers.schemes.algebra import compiled, row
from solvers.sources import FILL, Packing
from solvers.vmath import bits_of
from solvers.weak_increments import TWO_POINT_STEPS, signed

_FLOATS = types.CPointer(float64)
ADVANCE = types.void(
    float64,  # t
    float64,  # dt
    _FLOATS,  # x (d * width), in and out
    _FLOATS,  # random numbers (draws * width), as doubles
    types.CPointer(float32),  # or in single precision, see `sources.Packing`
    _FLOATS,  # parameters of the model
    uint64,  # seed
    int64,  # number of the first path
    int64,  # number of the step
    _FLOATS,  # exit times (width)
    _FLOATS,  # gaps (g, 2)
    types.CPointer(int64),  # their components
    int64,  # how many gaps
)
"""Signature of the pass that moves a block by one step."""

_advance, _fill, _observe = calling(ADVANCE), calling(FILL), calling(OBSERVE)


@njit(fastmath=FLAGS, error_model="numpy")
def record(x, count, pairs, mean, second, padded):
    """Mean of each component and summed (products of) deviations over the first `count` paths of a block.

    ``second`` holds the sums for (0, 0), (1, 1), ... or, with `pairs`, for (0, 0), (0, 1), ..., (1, 1), ...
    Deviations are taken from the first path, so that little cancels when the mean is much larger than the
    spread. Returns whether everything was finite.
    """
    d = mean.size
    width = x.size // d
    if count < width:  # repeat the first path, which adds nothing to sums of deviations from it
        for a in range(d):
            for i in range(width):
                padded[a * width + i] = x[a * width + (i if i < count else 0)]
        x = padded
    probe = 0.0
    q = 0
    for a in range(d):
        column = x[a * width : (a + 1) * width]
        shift = column[0]
        total, squares = shifted_sums(column, shift)
        mean[a] = total / count
        second[q] = squares - total * (total / count)
        probe += second[q] * 0.0
        q += 1
        if pairs:
            for b in range(a + 1, d):
                other = x[b * width : (b + 1) * width]
                rest, _ = shifted_sums(other, other[0])
                second[q] = shifted_product(column, shift, other, other[0]) - total * (rest / count)
                q += 1
        mean[a] += shift
    return probe == 0.0


@njit(error_model="numpy")
def mark_diverged(x, d, count, step, diverged):
    """Note the first step at which a path of the block is not finite; -1 until then."""
    width = x.size // d
    for a in range(d):
        for i in range(count):
            if diverged[i] < 0 and not np.isfinite(x[a * width + i]):
                diverged[i] = step


@njit(nogil=True, fastmath=FLAGS, error_model="numpy")
def run_blocks(
    advance, fill, parameters, seed, times, window, noise, saves, x, sums, states, events, observations,
    space,
):  # fmt: skip
    """Carry the blocks in x from one step to another.

    Parameters
    ----------
    advance, fill : int
        Addresses of passes: from `advancing` or `advancing_until`, and of a `sources.Source`.
    parameters : float array
        Of the model.
    seed : uint64
    times : (t0, dt)
    window : (first path in x, paths in the whole run, first step, last step, first index into saves)
    noise : (numbers per path and step, depth, table)
        Of the source.
    saves : int array
        Steps at which results are taken.
    x : float array (blocks, d * width)
        State, updated in place.
    sums : (pairs, mean (blocks, saves, d), second (blocks, saves, q))
        See `record`; zero blocks long when no statistics are wanted.
    states : float array (paths in x, saves, d)
        Zero paths long when no paths are wanted.
    events : (diverged (paths in x), exits (paths in x), gaps, gap components)
        First non-finite step or -1, exit time or not a number; gaps as in `solvers.exit_times`.
    observations : (watched, passes (observers, 13))
        0: no observers, 1: at saved steps, 2: at every step. For each observer the address of its pass, of
        its carried rows (with the bytes per block and the number of rows), of its sums (bytes per block,
        rows, columns), of its counts (rows, columns) and of its settings (rows, columns).
    space : (numbers (depth * numbers * width), the same in single precision, words, padded (d * width))
        To work in; `words` as the source wants it.
    """
    # The caller holds the arrays.
    parameters, saves, x, states = borrowed(parameters), borrowed(saves), borrowed(x), borrowed(states)
    t0, dt = times
    first_path, paths, first_step, last_step, first_save = window
    numbers, depth, table = noise
    pairs, mean, second = sums[0], borrowed(sums[1]), borrowed(sums[2])
    diverged, exits, gaps, gap_components = events
    diverged, exits = borrowed(diverged), borrowed(exits)
    watched, observers = observations
    z, unit, words, padded = borrowed(space[0]), borrowed(space[1]), borrowed(space[2]), borrowed(space[3])
    d = mean.shape[2]
    width = x.shape[1] // d
    for b in range(x.shape[0]):
        block = x[b]
        start = first_path + b * width
        count = min(width, paths - start)
        exits_here = exits[b * width : (b + 1) * width]
        diverged_here = diverged[b * width : (b + 1) * width]
        save = first_save
        for step in range(first_step, last_step + 1):
            if step > first_step:
                taken = step - 1
                slot = taken % depth
                fresh = step == first_step + 1
                if slot == 0 or fresh:
                    _fill(
                        fill, seed, start, taken, np.int64(fresh), dt, z, unit, words, table,
                        table.shape[0], table.shape[1],
                    )  # fmt: skip
                here = slice(slot * numbers * width, (slot + 1) * numbers * width)
                _advance(
                    advance, t0 + taken * dt, dt, block, z[here], unit[here], parameters, seed, start, taken,
                    exits_here, gaps, gap_components, gap_components.size,
                )  # fmt: skip
            saved = save < saves.size and saves[save] == step
            if saved and mean.shape[0] > 0:
                finite = record(block, count, pairs, mean[b, save], second[b, save], padded)
            else:
                finite = not_finite_probe(block) == 0.0
            if not finite:
                mark_diverged(block, d, count, step, diverged_here)
            if watched > 0 and (saved or watched > 1):
                for k in range(observers.shape[0]):
                    o = observers[k]
                    _observe(
                        o[0], step, save if saved else -1, count, width, block, o[1] + b * o[2], o[3],
                        o[4] + b * o[5], o[6], o[7], o[8], o[9], o[10], o[11], o[12], d,
                    )  # fmt: skip
            if saved:
                if states.shape[0] > 0:
                    for a in range(d):
                        for i in range(count):
                            states[b * width + i, save, a] = block[a * width + i]
                save += 1


_LOADED: dict[Packing, str] = {
    "ready": "ready[{0} + i]",
    "single": "unit[{0} + i] * root",
    "signs": "signed(root, bits_of(ready[{0} + i]), bit)",
}


def _loading(draws: int, width: int, packing: Packing) -> Any:
    """Compiled code from the random numbers of a block to the tuple for one path."""
    entries = row(_LOADED[packing].format(k * width) for k in range(draws))
    source = f"def load(ready, unit, root, bit, i):\n    return {entries}\n"
    return compiled(source, signed=signed, bits_of=bits_of)


def unpacking(kind: type, count: int) -> Any:
    """Compiled code from the flat parameters to the tuple or named tuple that the model reads."""
    entries = row(f"values[{k}]" for k in range(count))
    made = f"kind{entries}" if hasattr(kind, "_fields") else entries
    return compiled(f"def unpack(values):\n    return {made}\n", kind=kind)


@lru_cache(maxsize=256)
def advancing(stepper: Stepper, kind: type, count: int, width: int, packing: Packing) -> Any:
    """The pass that moves all paths of a block by one step.

    `kind` is the type of the model's parameters and `count` how many; the stepper is for blocks of `width`;
    `packing` is the source's.
    """
    step, ops, d, numbers = stepper.step, stepper.ops, stepper.model.d, sum(stepper.draws)
    load, store, load_noise = ops.load, ops.store, _loading(numbers, width, packing)
    unpack = unpacking(kind, count)

    @cfunc(ADVANCE, fastmath=FLAGS, error_model="numpy")
    def advance(t, dt, at_x, at_ready, at_unit, at_p, _seed, _start, number, _exits, _gaps, _of, _g):
        prefer_wide_vectors()
        x, p = carray(at_x, (d * width,)), unpack(carray(at_p, (count,)))
        ready, unit = carray(at_ready, (numbers * width,)), carray(at_unit, (numbers * width,))
        root, bit = math.sqrt(dt), number % TWO_POINT_STEPS
        for i in range(width):
            store(x, i, step(p, t, dt, load(x, i), load_noise(ready, unit, root, bit, i)))

    return advance


@lru_cache(maxsize=256)
def advancing_until(stepper: Stepper, kind: type, count: int, width: int, packing: Packing, stop: Any) -> Any:
    """The pass that moves the paths of a block that have not met the stop condition, and looks for exits.

    With gaps (the stop condition is a set of levels) the exit is sought inside the step by a Brownian bridge
    and the path is put on the level; otherwise it ends with the step at which the condition first holds.

    All paths are moved, and those that may have left are flagged, in loops without branches; only the flagged
    ones, few in most steps, are looked at one by one.
    """
    step, ops, d = stepper.step, stepper.ops, stepper.model.d
    numbers, diffusion = sum(stepper.draws), stepper.model.diffusion
    load, store, variances = ops.load, ops.store, ops.variances
    load_noise = _loading(numbers, width, packing)
    unpack = unpacking(kind, count)
    settle = settling(d, width)

    @cfunc(ADVANCE, fastmath=FLAGS, error_model="numpy")
    def advance(t, dt, at_x, at_ready, at_unit, at_p, seed, start, number, at_exits, at_gaps, at_of, g):
        prefer_wide_vectors()
        x, p = carray(at_x, (d * width,)), unpack(carray(at_p, (count,)))
        ready, unit = carray(at_ready, (numbers * width,)), carray(at_unit, (numbers * width,))
        exits, gaps, components = carray(at_exits, (width,)), carray(at_gaps, (g, 2)), carray(at_of, (g,))
        root, bit = math.sqrt(dt), number % TWO_POINT_STEPS
        new, spread, flags = np.empty(d * width), np.empty(d * width), np.zeros(width)
        if g == 0:
            for i in range(width):
                after = step(p, t, dt, load(x, i), load_noise(ready, unit, root, bit, i))
                store(new, i, after)
                flags[i] = 1.0 if stop(t + dt, after, p) else 0.0
        else:
            for i in range(width):
                y = load(x, i)
                store(new, i, step(p, t, dt, y, load_noise(ready, unit, root, bit, i)))
                store(spread, i, variances(diffusion(t, y, p)))
        settle(t, dt, x, new, spread, flags, exits, gaps, components, seed, start, number)

    return advance


@lru_cache(maxsize=256)
def settling(d: int, width: int) -> Any:
    """What follows the step of a block with a stop condition; independent of the model."""

    @njit(nogil=True, error_model="numpy")
    def settle(t, dt, x, new, spread, flags, exits, gaps, components, seed, start, number):
        for n in range(components.size):
            before = x[components[n] * width : (components[n] + 1) * width]
            after = new[components[n] * width : (components[n] + 1) * width]
            variance = spread[components[n] * width : (components[n] + 1) * width]
            low, high = gaps[n, 0], gaps[n, 1]
            for i in range(width):
                y, z, reach = before[i], after[i], CERTAIN * (dt * variance[i])
                above = (z >= high) | ((high - y) * (high - z) <= reach)
                below = (z <= low) | ((y - low) * (z - low) <= reach)
                flags[i] += 1.0 if (low < y) & (y < high) & (above | below) else 0.0
        for i in range(width):
            if flags[i] == 0.0 or not np.isnan(exits[i]):
                continue
            if components.size == 0:
                exits[i] = t + dt
                flags[i] = -1.0  # it has just left: still moved below
                continue
            earliest, level, component = earliest_crossing(
                gaps, components, x[i::width], new[i::width], spread[i::width], dt, seed, start + i, number, 0
            )
            if earliest <= 1.0:
                exits[i] = t + earliest * dt
                flags[i] = -1.0
                for j in range(d):
                    place = j * width + i
                    new[place] = x[place] + earliest * (new[place] - x[place])
                new[component * width + i] = level
        for j in range(d):
            now, then = x[j * width : (j + 1) * width], new[j * width : (j + 1) * width]
            for i in range(width):
                moves = (exits[i] != exits[i]) | (flags[i] < 0.0)
                now[i] = then[i] if moves else now[i]

    return settle
