"""Elementary functions as straight-line polynomials, so that LLVM turns loops over them into vectors.

Calls into the C library stop vectorisation (4 to 20 ns each); these cost 1 to 3 ns on AVX2. `log` and `cos_sin_turns`
serve the random numbers and their bits are pinned; the others are what a model finds in `xp`
(`solvers.scalar`), with `solvers.vmath_trig`. Those use explicit fused multiply-adds and no fast-math flags:
every operation is fixed by IEEE 754, so that their bits are the same in any loop and on any instruction set.

Coefficients are minimax fits of the relative error (Remez exchange in 50 digits, rounded to double), with fit
errors below 3e-17. The ulps in the docstrings bound the largest error seen against mpmath on the random and
adverse arguments of tests/solvers/test_vmath.py.
"""

import math
from collections.abc import Sequence
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
_U64, _U1983, _U2046, _U2048 = (np.uint64(n) for n in (64, 1983, 2046, 2048))
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


def _fma(typingctx, a, b, c):  # noqa: ARG001
    """The value a b + c, rounded once."""

    def codegen(context, builder, signature, args):  # noqa: ARG001
        return builder.fma(*args)

    return types.float64(types.float64, types.float64, types.float64), codegen


bits_of: Any = intrinsic(_bits_of)
double_of: Any = intrinsic(_double_of)
fma: Any = intrinsic(_fma)
exactly: Any = njit(error_model="numpy", forceinline=True)
"""Compiles a function of this module: inlined into the caller's loop, no freedom for the optimiser."""


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


def polynomial(coefficients: Sequence[float]) -> Any:
    """Compiled ``sum c[i] z^i`` by Estrin's scheme, of fused multiply-adds."""
    lines, terms, power = ["def polynomial(z):"], [repr(c) for c in coefficients], "z"
    while len(terms) > 1:
        paired = [f"fma({b}, {power}, {a})" for a, b in zip(terms[::2], terms[1::2], strict=False)]
        terms = paired + terms[len(terms) - len(terms) % 2 :]
        if len(terms) > 1:
            lines.append(f"    {power}z = {power} * {power}")
            power += "z"
    lines.append(f"    return {terms[0]}")
    scope: dict[str, Any] = {"fma": fma}
    exec(compile("\n".join(lines), "<polynomial>", "exec"), scope)
    return exactly(scope["polynomial"])


_LOG2_E = 1.4426950408889634
_BIASED_2046 = 1.5 * 2.0**52 + 2046.0  # adding it rounds to an integer k and leaves k + 2046 in the low bits
_BIASED_1023 = 1.5 * 2.0**52 + 1023.0
_TINY = 2.0**-54
_LEAST_NORMAL = 2.0**-1022
_exp_tail = polynomial(
    (
        0.5000000000000004, 0.16666666666666685, 0.041666666666583016, 0.008333333333315462,
        0.001388888893005762, 0.00019841269901690797, 2.4801506721949155e-05, 2.7557228795249853e-06,
        2.7625554930795446e-07, 2.511429053027529e-08,
    )
)  # fmt: skip
_log_tail = polynomial(
    (
        0.6666666666666734, 0.39999999999416647, 0.28571428742022886, 0.2222219860591713,
        0.1818356279514551, 0.15314086455747786, 0.14795616425024516,
    )
)  # fmt: skip


@exactly
def _remainder(x, shifted, bias):
    """The bits of `shifted`, and e^(x - k log 2) - 1 with k = shifted - bias."""
    k = shifted - bias
    r = fma(-k, _LN2_LOW, fma(-k, _LN2_HIGH, x))
    return bits_of(shifted), fma(r * r, _exp_tail(r), r)


@exactly
def _exponent(x, bias):
    """The integer k = x / log 2 rounded, as the lowest bits of k + bias, and e^(x - k log 2) - 1."""
    return _remainder(x, fma(x, _LOG2_E, bias), bias)


@exactly
def exp(x):
    """e^x to 1.5 ulp, for every double: subnormal results, overflow to inf, 0 of -inf, NaN of NaN."""
    x = float(x)
    x = 710.0 if x > 710.0 else x
    shifted = fma(x, _LOG2_E, _BIASED_2046)
    shifted = _BIASED_2046 - 1082.0 if shifted < _BIASED_2046 - 1082.0 else shifted
    x = -750.0 if x < -750.0 else x  # two clamps in a row would cost three instructions
    bits, p = _remainder(x, shifted, _BIASED_2046)
    # 2^k in two factors, floor(k / 2) and the rest: each is a normal double, and the second product is exact
    # unless the result is subnormal.
    half = bits >> _U1
    scale = double_of(half << _U52)
    return fma(scale, p, scale) * double_of((bits - half) << _U52)


@exactly
def expm1(x):
    """e^x - 1 to 2.5 ulp, for every double."""
    x = float(x)
    y = 710.0 if x > 710.0 else x
    y = -40.0 if y < -40.0 else y
    bits, p = _exponent(y, _BIASED_1023 - 1.0)
    half_scale = double_of(bits << _U52)  # 2^(k - 1), which is finite for k = 1024
    value = 2.0 * fma(half_scale, p, half_scale - 0.5)
    return x if abs(x) < _TINY else value


@exactly
def tanh(x):
    """Hyperbolic tangent to 3 ulp, for every double; |tanh| <= 1 always.

    With E = e^(2 |x|) - 1 it is E / (E + 2), in which nothing cancels.
    """
    x = float(x)
    a = abs(x)
    y = 22.0 if a > 22.0 else a
    bits, p = _exponent(y + y, _BIASED_1023)
    scale = double_of(bits << _U52)
    magnitude = fma(scale, p, scale - 1.0) / fma(scale, p, scale + 1.0)
    return math.copysign(a if a < _TINY else magnitude, x)


@exactly
def sinh(x):
    """Hyperbolic sine to 2.5 ulp, for every double."""
    x = float(x)
    a = abs(x)
    y = 710.5 if a > 710.5 else a
    bits, p = _exponent(y, _BIASED_1023 - 2.0)
    quarter_scale = double_of(bits << _U52)
    quarter = fma(quarter_scale, p, quarter_scale - 0.25)  # (e^|x| - 1) / 4
    magnitude = 2.0 * (quarter + quarter / fma(4.0, quarter, 1.0))
    return math.copysign(a if a < _TINY else magnitude, x)


@exactly
def cosh(x):
    """Hyperbolic cosine to 1.5 ulp, for every double."""
    a = abs(float(x))
    a = 710.5 if a > 710.5 else a
    bits, p = _exponent(a, _BIASED_1023 - 2.0)
    quarter_scale = double_of(bits << _U52)
    quarter = fma(quarter_scale, p, quarter_scale)  # e^|x| / 4
    return 2.0 * (quarter + 0.0625 / quarter)


@exactly
def _log_of(k, f):
    """The sum k log 2 + log(1 + f) for 1 + f in [sqrt(1/2), sqrt(2)); see `log`."""
    s = f / (2.0 + f)
    z = s * s
    half_square = 0.5 * f * f
    low = fma(s, fma(z, _log_tail(z), half_square), k * _LN2_LOW)
    return fma(k, _LN2_HIGH, f - (half_square - low))


@exactly
def log_full(x):
    """Natural logarithm to 1 ulp, for every double: -inf of 0, NaN below, inf of inf, subnormal arguments."""
    x = float(x)
    subnormal = x < _LEAST_NORMAL
    shifted = bits_of(x * 2.0**54 if subnormal else x) + _SHIFT_TO_ONE
    k = double_of((shifted >> _U52) | _TWO_52) - (_TWO_52_AND_BIAS + 54.0 if subnormal else _TWO_52_AND_BIAS)
    value = _log_of(k, double_of((shifted & _MANTISSA) + _SQRT_HALF) - 1.0)
    value = value if x < math.inf else x
    return (math.nan if x < 0.0 else -math.inf) if x <= 0.0 else value


@exactly
def log1p(x):
    """log(1 + x) to 1.5 ulp, for every double."""
    x = float(x)
    shifted = bits_of(1.0 + x) + _SHIFT_TO_ONE
    exponent = shifted >> _U52
    k = double_of(exponent | _TWO_52) - _TWO_52_AND_BIAS
    # 1 + f = (1 + x) 2^-k without the rounding of 1 + x; 2^(2 - k) is a normal double for every k <= 1024.
    scale = double_of((_U2048 - exponent) << _U52)
    value = _log_of(k, fma(0.25 * x, scale, fma(0.25, scale, -1.0)))
    value = value if x < math.inf else x
    value = x if abs(x) < _TINY else value
    return (math.nan if x < -1.0 else -math.inf) if x <= -1.0 else value


@exactly
def hypot(a, b):
    """sqrt(a^2 + b^2) to 1.5 ulp without overflow or underflow inside; inf if either is infinite."""
    a, b = abs(float(a)), abs(float(b))
    larger = a if a > b else b
    # The larger is brought near 1 by a power of two; its own exponent, kept away from both ends of the range.
    exponent = bits_of(larger) >> _U52
    exponent = _U64 if exponent < _U64 else (_U1983 if exponent > _U1983 else exponent)
    down = double_of((_U2046 - exponent) << _U52)
    a_small, b_small = a * down, b * down
    value = math.sqrt(fma(a_small, a_small, b_small * b_small)) * double_of(exponent << _U52)
    return math.inf if (a == math.inf) | (b == math.inf) else value
