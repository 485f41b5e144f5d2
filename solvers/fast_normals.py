"""Normals of 32-bit resolution: one Threefry call gives four, in single precision, eight to a register.

A call keyed by (seed, pair of paths) yields two words of 64 bits: the lower halves serve the even path of the
pair, the upper halves the odd one, so that arrays of words, read as 32-bit halves, lie in the order of the
paths. Of a path's two halves the first gives the radius (31 bits) and the sign of the first normal, the
second the angle within a quarter turn (31 bits) and the sign of the second normal.

Box and Muller 1958 with the angle measured from the diagonal, ``x = r (cos a + sin a) / sqrt 2``,
``y = r (cos a - sin a) / sqrt 2`` for a in [-pi/4, pi/4): no quadrants to sort out, and r / sqrt 2 =
sqrt(-log u). u takes the values (k + 1/2) / 2^31, rounded to 24 significant bits; normals reach
sqrt(64 log 2) = 6.66 in absolute value. Relative errors of single precision (some 1e-7) are far below what
1e12 normals could show in a moment.
"""

import math
from functools import cache
from typing import Any

import numpy as np
from numba import njit

from solvers.lanes import (
    add_u32,
    and_u32,
    bits_of_f32,
    f32_of_bits,
    f32_of_signed,
    left_u32,
    prefer_wide_vectors,
    signed_right_u32,
    sqrt_f32,
    xor_u32,
)
from solvers.wiener import word_filler

FAST = 3
"""Stream of the generator, so that these numbers share no counter with the 53-bit ones."""
FLAGS = {"contract"}

_f, _u = np.float32, np.uint32
_HALF, _ONE, _LOG2 = _f(0.5), _f(1.0), _f(math.log(2.0))
_UNIT = _f(2.0**-32)
_EXPONENT_OF_ONE = _f(127.0 + 31.0)  # of u = k / 2^31
_TO_ONE = _u(0x3F800000 - 0x3F3504F3)  # so that mantissas m lie in [sqrt(1/2), sqrt(2))
_MANTISSA, _SQRT_HALF = _u(0x007FFFFF), _u(0x3F3504F3)
_LOW, _SIGN = _u(0x7FFFFFFF), _u(0x80000000)
_23, _1 = _u(23), _u(1)
# log(1 + f) = f - f^2/2 + f^3 L(f), Chebyshev fit on [sqrt(1/2) - 1, sqrt(2) - 1], 2e-8 relative.
_L0, _L1, _L2, _L3 = _f(0.333333307282), _f(-0.250003064226), _f(0.200010450942), _f(-0.166412814631)
_L4, _L5, _L6, _L7 = _f(0.142144959239), _f(-0.129981837637), _f(0.126223198492), _f(-0.0790274377239)
# sin and cos of v quarter turns, v in [-1/2, 1/2): 5e-9 and 3e-8.
_S0, _S1, _S2, _S3 = _f(1.57079632195), _f(-0.645963477665), _f(0.0796802176478), _f(-0.00460214921281)
_C0, _C1, _C2, _C3 = _f(0.999999972328), _f(-1.23369700742), _f(0.253598571303), _f(-0.020408158393)


@njit(fastmath=FLAGS, error_model="numpy", forceinline=True)
def radius_of(first):
    """sqrt(-log u) in single precision, u from the lower 31 bits of a 32-bit word."""
    u = f32_of_signed(and_u32(first, _LOW)) + _HALF
    shifted = add_u32(bits_of_f32(u), _TO_ONE)
    exponent = f32_of_signed(signed_right_u32(shifted, _23))
    f = f32_of_bits(add_u32(and_u32(shifted, _MANTISSA), _SQRT_HALF)) - _ONE
    z = f * f
    # Estrin's scheme: short chains of dependent operations, so that iterations overlap.
    series = ((_L0 + _L1 * f) + (_L2 + _L3 * f) * z) + ((_L4 + _L5 * f) + (_L6 + _L7 * f) * z) * (z * z)
    return sqrt_f32(((_EXPONENT_OF_ONE - exponent) * _LOG2 - f) + z * _HALF - (f * z) * series)


@njit(fastmath=FLAGS, error_model="numpy", forceinline=True)
def normal_pair_of(radius, first, second):
    """Two independent standard normals from `radius_of` the first word, its sign bit, and the second word."""
    v = f32_of_signed(left_u32(second, _1)) * _UNIT
    q = v * v
    sine = v * _S0 + (v * q) * ((_S1 + q * _S2) + (q * q) * _S3)
    cosine = (_C0 + q * _C1) + (q * q) * (_C2 + q * _C3)
    x, y = radius * (cosine + sine), radius * (cosine - sine)
    return (
        f32_of_bits(xor_u32(bits_of_f32(x), and_u32(first, _SIGN))),
        f32_of_bits(xor_u32(bits_of_f32(y), and_u32(second, _SIGN))),
    )


@cache
def filler(block: int) -> Any:
    """``fill(seed, first_path, pair, components, z, words)`` for blocks of the given (even) width.

    It fills z (float32, 2 * components * block) with the standard normals of the steps 2 pair and 2 pair + 1:
    ``z[(parity * components + c) * block + i]`` belongs to path first_path + i; first_path is even. words is
    scratch of `block` unsigned 64-bit integers.
    """
    fill_words = word_filler(block // 2)

    @njit(nogil=True, fastmath=FLAGS, error_model="numpy")
    def fill(seed, first_path, pair, components, z, words):
        prefer_wide_vectors()
        halves = words.view(np.uint32)
        radii, angles = halves[:block], halves[block:]
        for c in range(components):
            use = (np.uint64(FAST) << np.uint64(32)) | np.uint64(c)
            fill_words(np.uint64(pair), use, seed, np.uint64(first_path >> 1), words)
            # Slices, because indices offset by a variable get a wrap-around test that stops vectorisation.
            even = z[c * block : (c + 1) * block]
            odd = z[(components + c) * block : (components + c + 1) * block]
            # Two loops, because one needs more constants than there are registers.
            for i in range(block):
                even[i] = radius_of(radii[i])
            for i in range(block):
                even[i], odd[i] = normal_pair_of(even[i], radii[i], angles[i])

    return fill


_BLOCK = 512
_fill_block = filler(_BLOCK)


@njit(nogil=True)
def fill_increments(seed, first_path, first_step, scale, out):
    """Fill out (paths, steps, components) with `scale` times the normals of a window of paths and steps."""
    paths, steps, components = out.shape
    z, words = np.empty(2 * components * _BLOCK, np.float32), np.empty(_BLOCK, np.uint64)
    lead = first_path % 2  # blocks begin with an even path
    for start in range(-lead, paths, _BLOCK):
        filled = -1
        for step in range(steps):
            pair, parity = divmod(first_step + step, 2)
            if pair != filled:
                _fill_block(seed, first_path + start, pair, components, z, words)
                filled = pair
            for c in range(components):
                offset = (parity * components + c) * _BLOCK - start
                for i in range(max(start, 0), min(start + _BLOCK, paths)):
                    out[i, step, c] = z[offset + i] * scale
