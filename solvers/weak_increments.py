"""Two-point and three-point increments for weak schemes: pure functions of (seed, path, step, component).

They come from Threefry-2x64 with key (seed, path), as the normals do, on a stream of their own: the counter's
second word is ``(2 << 32) | component`` for two-point numbers, with bit 31 set as well for three-point ones.

- Two-point: +-sqrt(dt). The counter's first word is step // 64; bit step % 64 of the first output word is the
  sign, 1 meaning plus. One call serves 64 steps.
- Three-point: 0 with probability 2/3, else +-sqrt(3 dt), whose first five moments are those of a normal. The
  first word is step // 4; the 32-bit pieces of the output (low and high half of the first word, low and high
  half of the second) serve the steps 4 n to 4 n + 3. A piece below 715827883 means minus, one of the 715827883
  largest plus. The probabilities 1/6 are exact to 8e-11, the symmetry exactly.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from solvers import wiener
from solvers.vmath import bits_of, double_of
from solvers.wiener import filled, threefry2x64

if TYPE_CHECKING:
    from solvers.schemes import Draws

STREAM = 2
TWO_POINT_STEPS, THREE_POINT_STEPS = 64, 4
"""Steps that one call of the generator serves."""

_TWO, _THREE = np.uint64(STREAM << 32), np.uint64((STREAM << 32) | (1 << 31))
_LOW, _HIGH = np.uint64(715827883), np.uint64(2**32 - 715827883)
_PIECE, _HALF, _ONE = np.uint64(2**32 - 1), np.uint64(32), np.uint64(1)
_63, _SIGN = np.uint64(63), np.uint64(1 << 63)
_ROOT3 = math.sqrt(3.0)


@njit(forceinline=True)
def two_point_word(seed, path, group, component):
    """The signs of the steps 64 group to 64 group + 63, one bit each."""
    word, _ = threefry2x64(np.uint64(group), _TWO | np.uint64(component), np.uint64(seed), np.uint64(path))
    return word


@njit(forceinline=True)
def two_point_of(word, bit):
    """+1.0 or -1.0 by a bit of the word, 0 <= bit < 64."""
    return 2.0 * float((word >> np.uint64(bit)) & _ONE) - 1.0


@njit(forceinline=True)
def signed(size, word, bit):
    """+size or -size by a bit of the word, 0 <= bit < 64; the same as ``size * two_point_of(word, bit)``."""
    return double_of(bits_of(-size) ^ ((word << (_63 - np.uint64(bit))) & _SIGN))


@njit(forceinline=True)
def three_point_words(seed, path, group, component):
    """Two words whose 32-bit pieces give the steps 4 group to 4 group + 3."""
    return threefry2x64(np.uint64(group), _THREE | np.uint64(component), np.uint64(seed), np.uint64(path))


@njit(forceinline=True)
def three_point_of(words, place):
    """-sqrt(3), 0.0 or sqrt(3) by the piece at 0 <= place < 4."""
    word = words[1] if place >= 2 else words[0]
    piece = (word >> (_HALF if place % 2 else np.uint64(0))) & _PIECE
    return _ROOT3 if piece >= _HIGH else (-_ROOT3 if piece < _LOW else 0.0)


@njit(nogil=True)
def _fill_two_point(seed, first_path, first_step, scale, out):
    paths, steps, components = out.shape
    for i in range(paths):
        for c in range(components):
            group, word = np.int64(-1), np.uint64(0)
            for k in range(steps):
                step = first_step + k
                if step // TWO_POINT_STEPS != group:
                    group = step // TWO_POINT_STEPS
                    word = two_point_word(seed, first_path + i, group, c)
                out[i, k, c] = scale * two_point_of(word, step % TWO_POINT_STEPS)


@njit(nogil=True)
def _fill_three_point(seed, first_path, first_step, scale, out):
    paths, steps, components = out.shape
    for i in range(paths):
        for c in range(components):
            group, words = np.int64(-1), (np.uint64(0), np.uint64(0))
            for k in range(steps):
                step = first_step + k
                if step // THREE_POINT_STEPS != group:
                    group = step // THREE_POINT_STEPS
                    words = three_point_words(seed, first_path + i, group, c)
                out[i, k, c] = scale * three_point_of(words, step % THREE_POINT_STEPS)


def two_point(
    seed: int,
    paths: int,
    steps: int,
    components: int = 1,
    dt: float = 1.0,
    *,
    first_path: int = 0,
    first_step: int = 0,
) -> np.ndarray:
    """Two-point increments, +-sqrt(dt).

    Parameters
    ----------
    seed, paths, steps, components, dt, first_path, first_step
        As for `wiener.increments`.

    Returns
    -------
    ndarray, shape (paths, steps, components)

    Raises
    ------
    InvalidInput
        If a count is not a positive integer, dt not positive or the seed out of range.
    """
    return filled(_fill_two_point, seed, paths, steps, components, dt, first_path, first_step)


def three_point(
    seed: int,
    paths: int,
    steps: int,
    components: int = 1,
    dt: float = 1.0,
    *,
    first_path: int = 0,
    first_step: int = 0,
) -> np.ndarray:
    """Three-point increments, 0 with probability 2/3 and else +-sqrt(3 dt).

    Parameters
    ----------
    seed, paths, steps, components, dt, first_path, first_step
        As for `wiener.increments`.

    Returns
    -------
    ndarray, shape (paths, steps, components)

    Raises
    ------
    InvalidInput
        If a count is not a positive integer, dt not positive or the seed out of range.
    """
    return filled(_fill_three_point, seed, paths, steps, components, dt, first_path, first_step)


def drawn(draws: Draws, seed: int, paths: int, steps: int, dt: float, *, first_path: int = 0) -> np.ndarray:
    """All the numbers that a scheme takes, in the order of its `Draws`, shape (paths, steps, sum(draws)).

    Each kind counts its components from 0.
    """
    parts = [
        source(seed, paths, steps, count, dt, first_path=first_path)
        for source, count in zip((wiener.increments, three_point, two_point), draws, strict=True)
        if count
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
