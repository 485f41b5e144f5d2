"""Logarithm, cosine and sine as straight-line polynomials, so that LLVM turns loops over them into vectors.

Calls into the C library stop vectorisation (3 to 10 ns each); these cost well under 1 ns. Coefficients are
minimax-like fits (Chebyshev interpolation in 50 digits, rounded to double): the fit errors are below 1e-17
relative, the evaluated functions are within the ulps stated in each docstring (tests/solvers/test_wiener.py).
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

FLAGS = {"contract"}

_LN2_HIGH = 0.6931471805598903  # 42 bits: k * _LN2_HIGH is exact for |k| < 2048
_LN2_LOW = 5.497923018708371e-14
_SQRT_HALF = np.uint64(0x3FE6A09E667F3BCD)
_SHIFT_TO_ONE = np.uint64(0x3FF0000000000000 - 0x3FE6A09E667F3BCD)
_MANTISSA = np.uint64(0x000FFFFFFFFFFFFF)
_TWO_52 = np.uint64(0x4330000000000000)  # bits of the double 2^52, whose unit in the last place is 1
_TWO_52_AND_BIAS = 2.0**52 + 1023.0
_TWO_52_AND_HALF = 2.0**52 + 2.0**50
_U11, _U13, _U52, _U62, _U63 = (np.uint64(n) for n in (11, 13, 52, 62, 63))
_U1, _U2, _EIGHTH_TURN = np.uint64(1), np.uint64(2), np.uint64(1 << 61)


def _bits_of(typingctx, value):  # noqa: ARG001 - Numba's signature
    """The 64 bits of a double as an unsigned integer."""

    def codegen(context, builder, signature, args):  # noqa: ARG001
        return builder.bitcast(args[0], ir.IntType(64))

    return types.uint64(types.float64), codegen


def _double_of(typingctx, bits):  # noqa: ARG001
    """The double with the given 64 bits."""

    def codegen(context, builder, signature, args):  # noqa: ARG001
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.uint64), codegen


bits_of: Any = intrinsic(_bits_of)
double_of: Any = intrinsic(_double_of)


@njit(fastmath=FLAGS, error_model="numpy", forceinline=True)
def log(x):
    """Natural logarithm of a positive normal double, to 1 ulp.

    x = 2^k m with m in [sqrt(1/2), sqrt(2)); log m = 2 atanh(s) with s = (m - 1)/(m + 1).
    """
    shifted = bits_of(x) + _SHIFT_TO_ONE
    k = double_of((shifted >> _U52) | _TWO_52) - _TWO_52_AND_BIAS
    f = double_of((shifted & _MANTISSA) + _SQRT_HALF) - 1.0
    s = f / (2.0 + f)
    z = s * s
    z2 = z * z
    # Estrin's scheme: a third of Horner's chain of dependent operations, so that iterations overlap.
    r = (
        (0.6666666666666666 + 0.4000000000000088 * z)
        + (0.28571428570803614 + 0.22222222391713917 * z) * z2
        + (
            (0.18181795640132906 + 0.15386239702814658 * z)
            + (0.13268773138656886 + 0.13086626147840102 * z) * z2
        )
        * (z2 * z2)
    )
    half_square = 0.5 * f * f
    return k * _LN2_HIGH - ((half_square - (s * (half_square + r * z) + k * _LN2_LOW)) - f)


@njit(fastmath=FLAGS, error_model="numpy", forceinline=True)
def cos_sin_turns(bits):
    """Cosine and sine of 2 pi u, u = (bits / 2^64 rounded down to a multiple of 2^-53), each to 1.5 ulp.

    The quadrant and the signed rest f in [-1/2, 1/2) quarter turns are cut out of the integer, so that no
    rounding is involved before the polynomials in f^2.
    """
    turned = bits + _EIGHTH_TURN
    quadrant = turned >> _U62
    f = (
        double_of(((turned << _U2) >> _U13) | _TWO_52) - (4503599627370496.0 + 1125899906842624.0)
    ) * 2.0**-51
    z = f * f
    z2 = z * z
    z4 = z2 * z2
    s = f * 1.5707963267948966 + (f * z) * (
        (-0.6459640975062443 + 0.07969262624604301 * z)
        + (-0.004681754132340976 + 0.0001604411507421909 * z) * z2
        + (-3.59864335298231e-06 + 5.633933781537854e-08 * z) * z4
    )
    c = 1.0 + z * (
        (-1.2337005501361697 + 0.2536695079010478 * z)
        + (-0.020863480763340773 + 0.0009192602745468447 * z) * z2
        + ((-2.5202039028029178e-05 + 4.710678405505227e-07 * z) - 6.329396344967424e-09 * z2) * z4
    )
    odd = (quadrant & _U1) != np.uint64(0)
    cosine = s if odd else c
    sine = c if odd else s
    sign_of_cosine = ((quadrant ^ (quadrant >> _U1)) & _U1) << _U63
    sign_of_sine = (quadrant >> _U1) << _U63
    return double_of(bits_of(cosine) ^ sign_of_cosine), double_of(bits_of(sine) ^ sign_of_sine)
