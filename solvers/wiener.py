"""Counter-based Wiener increments: a pure function (seed, path, step, component) -> Gaussian number.

The generator is Threefry-2x64 with 13 rounds (Salmon, Moraes, Dror, Shaw, SC'11), key (seed, path), counter
(step // 2, stream and component), where the seed and the stream with its component go through a mixer first.
Its two 64-bit words become, by Box-Muller, the normals of an even step and of the odd step after it. Nothing
is drawn in sequence, so the numbers do not depend on threads, chunks or on how many paths there are.

Resolution: the radius is sqrt(-2 log u) with u uniform on {1, ..., 2^53} / 2^53, the angle 2 pi v with v
uniform on {0, ..., 2^53 - 1} / 2^53. Normals reach sqrt(106 log 2) = 8.57 in absolute value and no farther.
"""

import math
import operator
from functools import cache
from typing import Any

import numpy as np
from numba import njit

from solvers import vmath
from solvers.errors import InvalidInput
from solvers.lanes import prefer_wide_vectors

BLOCK = 512
"""Paths that `increments` makes at a time."""

ROUNDS = 13
NORMALS, CROSSING = 0, 1
"""Streams: numbers of different use never share a counter."""

_PARITY = np.uint64(0x1BD11BDAA9FC1A22)
_ROTATIONS = (16, 42, 12, 31, 16, 32, 24, 21)
_U11, _U32 = np.uint64(11), np.uint64(32)


@cache
def interleaved_threefry(calls: int, rounds: int = ROUNDS) -> Any:
    """Threefry-2x64 for several keys at once: ``(c0, c1, k0, k1, k1', ...) -> (x0, x1, x0', x1', ...)``.

    Written out, since LLVM vectorises no loop of rounds, and round by round over the calls: each round waits
    for the one before, so that two calls side by side keep the processor busier than one after the other.
    """
    keys = [f"k1_{n}" for n in range(calls)]
    lines = [f"def threefry(c0, c1, k0, {', '.join(keys)}):"]
    for n in range(calls):
        lines += [f"    k2_{n} = k0 ^ k1_{n} ^ PARITY", f"    a{n} = c0 + k0", f"    b{n} = c1 + k1_{n}"]
    for r in range(rounds):
        left = _ROTATIONS[r % 8]
        lines += [f"    a{n} = a{n} + b{n}" for n in range(calls)]
        lines += [f"    b{n} = ((b{n} << U[{left}]) | (b{n} >> U[{64 - left}])) ^ a{n}" for n in range(calls)]
        if r % 4 == 3:
            s = r // 4 + 1
            for n in range(calls):
                schedule = ("k0", f"k1_{n}", f"k2_{n}")
                lines.append(f"    a{n} = a{n} + {schedule[s % 3]}")
                lines.append(f"    b{n} = b{n} + ({schedule[(s + 1) % 3]} + U[{s}])")
    lines.append("    return " + ", ".join(f"a{n}, b{n}" for n in range(calls)))
    scope = {"PARITY": _PARITY, "U": tuple(np.uint64(n) for n in range(65))}
    exec(compile("\n".join(lines), "<threefry>", "exec"), scope)
    return njit(scope["threefry"], forceinline=True)


def threefry(rounds: int) -> Any:
    """Threefry-2x64, ``(c0, c1, k0, k1) -> (x0, x1)``."""
    return interleaved_threefry(1, rounds)


_plain = threefry(ROUNDS)


@njit(forceinline=True)
def mixed(word):
    """A word scattered over all 64 bits, one to one (the finaliser of splitmix64, Steele, Lea, Flood 2014)."""
    z = np.uint64(word) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(forceinline=True)
def threefry2x64(step, use, seed, path):
    """Two words from counter (step, use) and key (seed, path); use is the stream and the component.

    Threefry begins with counter + key, so that (component, path + 1) and (component + 1, path) would go through
    its first four rounds alike, and 13 rounds leave a trace of that; hence use and seed are mixed first.
    """
    return _plain(step, mixed(use), mixed(seed), path)


@njit(error_model="numpy", forceinline=True)
def uniform_of(word):
    """A uniform on {1, ..., 2^53} / 2^53 from the upper 53 bits of a word; never 0, so it has a logarithm."""
    return (float(word >> _U11) + 1.0) * 2.0**-53


@njit(fastmath=vmath.FLAGS, error_model="numpy")
def crossing_uniforms(seed, path, step, draw):
    """Two uniforms in (0, 1] for events inside a step; their counters are disjoint from the normals'."""
    r0, r1 = threefry2x64(
        np.uint64(step), (np.uint64(CROSSING) << _U32) | np.uint64(draw), np.uint64(seed), np.uint64(path)
    )
    return uniform_of(r0), uniform_of(r1)


@njit(fastmath=vmath.FLAGS, error_model="numpy")
def normal_pair(seed, path, pair, component):
    """The standard normals of a path's steps 2 pair and 2 pair + 1: the numbers of `increments`, one by one."""
    radius_word, angle_word = threefry2x64(
        np.uint64(pair), np.uint64(component), np.uint64(seed), np.uint64(path)
    )
    radius = math.sqrt(-2.0 * vmath.log(uniform_of(radius_word)))
    cosine, sine = vmath.cos_sin_turns(angle_word)
    return radius * cosine, radius * sine


# The same function, but inlined: a call would keep LLVM from turning the loop over paths into vectors.
_inlined_pair: Any = njit(fastmath=vmath.FLAGS, error_model="numpy", forceinline=True)(normal_pair.py_func)


@njit(fastmath=vmath.FLAGS, error_model="numpy")
def draw(seed, first_path, pair, component, scale, even, odd):
    """`scale` times the standard normals of two steps for consecutive paths and one component, (paths,) each."""
    for i in range(even.size):
        a, b = _inlined_pair(seed, first_path + i, pair, component)
        even[i] = scale * a
        odd[i] = scale * b


@cache
def word_filler(calls: int) -> Any:
    """``fill(step, use, seed, first, words)``: the words of consecutive keys, the first of each and then the second.

    ``words[i]`` and ``words[calls + i]`` become those of ``threefry2x64(step, use, seed, first + i)``. Four keys
    go side by side: each round waits for the one before, and the processor is busy with the others.
    """
    quarter = calls // 4
    four_calls = interleaved_threefry(4)

    @njit(nogil=True, error_model="numpy", forceinline=True)
    def fill(step, use, seed, first, words):
        stream, key, stride = mixed(use), mixed(seed), np.uint64(quarter)
        # Slices, because indices offset by a variable get a wrap-around test that stops vectorisation.
        a, b = words[:calls], words[calls : 2 * calls]
        a0, a1, a2, a3 = a[:quarter], a[quarter : 2 * quarter], a[2 * quarter : 3 * quarter], a[3 * quarter :]
        b0, b1, b2, b3 = b[:quarter], b[quarter : 2 * quarter], b[2 * quarter : 3 * quarter], b[3 * quarter :]
        for i in range(quarter):
            k0 = first + np.uint64(i)
            k1 = k0 + stride
            k2 = k1 + stride
            a0[i], b0[i], a1[i], b1[i], a2[i], b2[i], a3[i], b3[i] = four_calls(
                step, stream, key, k0, k1, k2, k2 + stride
            )

    return fill


@cache
def filler(block: int) -> Any:
    """``fill(seed, first_path, pair, components, scale, z, words)`` for blocks of the given width.

    It fills z with the increments of the steps 2 pair and 2 pair + 1 (Box and Muller 1958):
    ``z[(parity * components + c) * block + i]`` becomes ``scale`` times the normal of path first_path + i. z is
    flat of 2 * components * block floats, words is scratch of 2 * block unsigned integers. Three short loops
    instead of a long one: consecutive iterations then overlap in the processor (3.3 against 4.0 ns).
    """
    fill_words = word_filler(block)

    @njit(nogil=True, fastmath=vmath.FLAGS, error_model="numpy")
    def fill(seed, first_path, pair, components, scale, z, words):
        prefer_wide_vectors()
        radius_words, angle_words = words[:block], words[block : 2 * block]
        for c in range(components):
            # Slices, because indices offset by a variable get a wrap-around test that stops vectorisation.
            even = z[c * block : (c + 1) * block]
            odd = z[(components + c) * block : (components + c + 1) * block]
            fill_words(np.uint64(pair), np.uint64(c), seed, np.uint64(first_path), words)
            for i in range(block):
                even[i] = scale * math.sqrt(-2.0 * vmath.log(uniform_of(radius_words[i])))
            for i in range(block):
                radius = even[i]
                cosine, sine = vmath.cos_sin_turns(angle_words[i])
                even[i] = radius * cosine
                odd[i] = radius * sine

    return fill


_fill_normals = filler(BLOCK)


@njit(nogil=True)
def _fill_increments(seed, first_path, first_step, scale, out):
    paths, steps, components = out.shape
    z = np.empty(2 * components * BLOCK)
    words = np.empty(2 * BLOCK, np.uint64)
    for start in range(0, paths, BLOCK):
        count = min(BLOCK, paths - start)
        filled = -1
        for step in range(steps):
            pair, parity = divmod(first_step + step, 2)
            if pair != filled:
                _fill_normals(seed, first_path + start, pair, components, scale, z, words)
                filled = pair
            for c in range(components):
                offset = (parity * components + c) * BLOCK
                for i in range(count):
                    out[start + i, step, c] = z[offset + i]


def increments(
    seed: int,
    paths: int,
    steps: int,
    components: int = 1,
    dt: float = 1.0,
    *,
    first_path: int = 0,
    first_step: int = 0,
    resolution: int = 53,
) -> np.ndarray:
    """The Wiener increments that `simulate` uses at a resolution, as an array.

    Parameters
    ----------
    seed : int
        0 <= seed < 2^64.
    paths, steps, components : int
        How many; component c drives the c-th Wiener process.
    dt : float
        Step; increments have variance dt.
    first_path, first_step : int
        Where to start: increment (path, step) is the same whatever window it is asked in.
    resolution : {53, 32}
        Bits behind each normal; the two give different numbers.

    Returns
    -------
    ndarray, shape (paths, steps, components)

    Raises
    ------
    InvalidInput
        If a count is not a positive integer, dt not positive, or the seed or the resolution unknown.
    """
    fill = _fill_increments
    if checked_resolution(resolution) == 32:
        from solvers.fast_normals import fill_increments as fill
    return filled(fill, seed, paths, steps, components, dt, first_path, first_step)


def filled(
    fill: Any, seed: Any, paths: Any, steps: Any, components: Any, dt: float, first_path: int, first_step: int
) -> np.ndarray:
    """The array (paths, steps, components) of a window, by ``fill(seed, first_path, first_step, sqrt(dt), out)``.

    Raises
    ------
    InvalidInput
        If a count is not a positive integer, dt not positive or the seed out of range.
    """
    for name, value in (("paths", paths), ("steps", steps), ("components", components)):
        if checked_integer(name, value) < 1:
            raise InvalidInput(f"{name}={value} must be at least 1")
    if not dt > 0:
        raise InvalidInput(f"dt={dt} must be positive")
    out = np.empty((paths, steps, components))
    fill(np.uint64(checked_seed(seed)), np.int64(first_path), np.int64(first_step), math.sqrt(dt), out)
    return out


def coarsen(fine: np.ndarray, factor: int) -> np.ndarray:
    """Increments of the same Brownian paths over steps ``factor`` times as long.

    Parameters
    ----------
    fine : ndarray, shape (paths, steps, components)
        Increments; steps must be a multiple of factor.
    factor : int
        How many fine steps make a coarse one.

    Returns
    -------
    ndarray, shape (paths, steps // factor, components)

    Raises
    ------
    InvalidInput
        If factor does not divide the number of steps.
    """
    paths, steps, components = fine.shape
    if checked_integer("factor", factor) < 1 or steps % factor:
        raise InvalidInput(f"factor={factor} does not divide the {steps} steps; choose a divisor")
    return fine.reshape(paths, steps // factor, factor, components).sum(axis=2)


def checked_integer(name: str, value: object) -> int:
    """The value as an int, or a refusal that names it; booleans and floats are refused."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidInput(f"{name}={value!r} is not an integer; give a whole number") from None


def checked_resolution(resolution: object) -> int:
    """The bits behind each normal: 32 or 53."""
    if resolution not in {32, 53}:
        raise InvalidInput(f"resolution={resolution!r} is unknown; choose 32 (fast) or 53 (fine)")
    return resolution  # type: ignore[return-value]


def checked_seed(seed: object) -> int:
    """The seed as an int in [0, 2^64)."""
    number = checked_integer("seed", seed)
    if not 0 <= number < 2**64:
        raise InvalidInput(f"seed={number} is outside 0 to 2^64 - 1; choose one inside")
    return number
