"""Circular functions and their inverses as straight-line polynomials; see `solvers.vmath`.

Arguments are reduced by multiples of pi / 2 held to 160 bits (Cody and Waite 1980), the difference being carried
in two doubles: right also next to the zeros, where most digits cancel. This holds for |x| <= `LIMIT`. Beyond it
neighbouring doubles are more than 1e-4 apart and the reduction would need hundreds of digits; the result is
then NaN, so that a run reports the path instead of averaging a meaningless phase.
"""

import math

import numpy as np

from solvers.vmath import bits_of, double_of, exactly, fma, polynomial

LIMIT = 2.0**40
"""Largest |x| for which `sin`, `cos` and `tan` are computed, about 1.1e12; NaN beyond."""

_HALF_PI = 1.5707963267948966
_HALF_PI_2 = 6.123233995736766e-17
_HALF_PI_3 = -1.4973849048591698e-33
_TWO_OVER_PI = 0.6366197723675814
_ONE_OVER_PI = 0.3183098861837907
_ROUND = 1.5 * 2.0**52  # adding it rounds to an integer and leaves its parity in the lowest bit
_TAN_EIGHTH = 0.41421356237309503  # tan(pi / 8)
_U1, _U63, _SIGN = np.uint64(1), np.uint64(63), np.uint64(1 << 63)
_sin_half_turn = polynomial(
    (
        -0.16666666666666666, 0.008333333333333212, -0.00019841269841215238, 2.7557319212121625e-06,
        -2.505210695903975e-08, 1.6058943863352053e-10, -7.64309547091591e-13, 2.7222291797420715e-15,
    )
)  # fmt: skip
_sin_quarter = polynomial(
    (
        -0.16666666666666632, 0.008333333333322469, -0.00019841269829830617, 2.7557313694838175e-06,
        -2.50507579928589e-08, 1.5896762266126313e-10,
    )
)  # fmt: skip
_cos_quarter = polynomial(
    (
        0.0416666666666666, -0.001388888888887446, 2.4801587289656294e-05, -2.7557314394841103e-07,
        2.087572822703551e-09, -1.1359869876153852e-11,
    )
)  # fmt: skip
_arctan_tail = polynomial(
    (
        -0.333333333333332, 0.19999999999953819, -0.14285714280220466, 0.11111110784669168, -0.0909089779251113,
        0.0769206082817962, -0.0666311090426087, 0.05847938025939773, -0.050395180339326995,
        0.038069807923734995, -0.017912756369733544,
    )
)  # fmt: skip
_arcsin_tail = polynomial(
    (
        0.16666666666665386, 0.07500000000342469, 0.04464285682385843, 0.030381959318281825,
        0.02237175379289417, 0.017359767498091122, 0.013884630644220932, 0.012173086291165192,
        0.006511623557300922, 0.01957194563950363, -0.016291192700147117, 0.031957105851315,
    )
)  # fmt: skip


@exactly
def _reduced(x, j):
    """The rest x - j pi / 2 as the unevaluated sum of two doubles, for j within 1.001 of 2 x / pi and x <= LIMIT."""
    a = fma(-j, _HALF_PI, x)  # exact: a multiple of 2^-52 below 2
    h = j * _HALF_PI_2
    s = a - h
    error = (a - s) - h  # exact: a is a multiple of the last place of h
    low = fma(j, _HALF_PI_3, fma(j, _HALF_PI_2, -h) - error)
    r = s - low
    return r, (s - r) - low


@exactly
def _sin_of(x, j, flip):
    """sin(x - j pi / 2), its sign changed by the top bit of `flip`."""
    r, low = _reduced(x, j)
    r = r if x <= LIMIT else math.nan
    z = r * r
    return double_of(bits_of(r + fma(r * z, _sin_half_turn(z), low)) ^ flip)


@exactly
def sin(x):
    """Sine to 3.5 ulp for |x| <= LIMIT, NaN beyond."""
    x = float(x)
    a = abs(x)
    shifted = fma(a, _ONE_OVER_PI, _ROUND)
    k = shifted - _ROUND
    return _sin_of(a, k + k, (bits_of(shifted) << _U63) ^ (bits_of(x) & _SIGN))


@exactly
def cos(x):
    """Cosine to 3.5 ulp for |x| <= LIMIT, NaN beyond."""
    a = abs(float(x))
    shifted = fma(a, _ONE_OVER_PI, -0.5) + (_ROUND + 1.0)
    k = shifted - (_ROUND + 1.0)
    return _sin_of(a, fma(2.0, k, 1.0), bits_of(shifted) << _U63)


@exactly
def tan(x):
    """Tangent to 2.5 ulp for |x| <= LIMIT, NaN beyond."""
    x = float(x)
    a = abs(x)
    shifted = fma(a, _TWO_OVER_PI, _ROUND)
    r, low = _reduced(a, shifted - _ROUND)
    r = r if a <= LIMIT else math.nan
    z = r * r
    sine = r + fma(r * z, _sin_quarter(z), low)
    cosine = fma(z, fma(z, _cos_quarter(z), -0.5), -r * low) + 1.0
    odd = (bits_of(shifted) & _U1) != np.uint64(0)
    quotient = (-cosine if odd else sine) / (sine if odd else cosine)
    return double_of(bits_of(quotient) ^ (bits_of(x) & _SIGN))


@exactly
def arctan(x):
    """Inverse tangent to 1.5 ulp, for every double."""
    x = float(x)
    a = abs(x)
    large, middle = a > 1.0 / _TAN_EIGHTH, a > _TAN_EIGHTH
    r = (-1.0 if large else (a - 1.0 if middle else a)) / (a if large else (a + 1.0 if middle else 1.0))
    base = _HALF_PI if large else (0.5 * _HALF_PI if middle else 0.0)
    base_low = _HALF_PI_2 if large else (0.5 * _HALF_PI_2 if middle else 0.0)
    z = r * r
    return math.copysign(base + (r + fma(r * z, _arctan_tail(z), base_low)), x)


@exactly
def arctan2(y, x):
    """Angle of the point (x, y) in [-pi, pi], to 2 ulp; signed zeros and infinities as in C99."""
    y, x = float(y), float(x)
    a, b = abs(y), abs(x)
    steep = a > b
    larger, smaller = (a, b) if steep else (b, a)
    scale = 2.0**-60 if larger > 2.0**1000 else (2.0**60 if larger < 2.0**-900 else 1.0)
    larger, smaller = larger * scale, smaller * scale
    middle = smaller > _TAN_EIGHTH * larger
    r = (smaller - larger if middle else smaller) / (smaller + larger if middle else larger)
    both = a == b  # also 0 / 0 and inf / inf
    r = 0.0 if both else r
    octant = a > 0.0 if both else middle
    z = r * r
    # The angle is base +- (r + ...), with base the multiple of pi / 4 that octant, steepness and side give.
    quarters = 1.0 if octant else 0.0
    quarters = 2.0 - quarters if steep else quarters
    left = math.copysign(1.0, x) < 0.0
    quarters = 4.0 - quarters if left else quarters
    down = steep != left
    r = -r if down else r
    base, base_low = quarters * (0.5 * _HALF_PI), quarters * (0.5 * _HALF_PI_2)
    return math.copysign(base + (r + fma(r * z, _arctan_tail(z), base_low)), y)


@exactly
def arcsin(x):
    """Inverse sine to 2.5 ulp on [-1, 1], NaN outside."""
    x = float(x)
    a = abs(x)
    outer = a > 0.5
    z = 0.5 - 0.5 * a if outer else a * a
    r = math.sqrt(z) if outer else a
    tail = r * z * _arcsin_tail(z)
    return math.copysign(_HALF_PI - (2.0 * (r + tail) - _HALF_PI_2) if outer else r + tail, x)


@exactly
def arccos(x):
    """Inverse cosine to 1.5 ulp on [-1, 1], NaN outside."""
    x = float(x)
    a = abs(x)
    outer = a > 0.5
    z = 0.5 - 0.5 * a if outer else a * a
    r = math.sqrt(z) if outer else x
    tail = r * z * _arcsin_tail(z)
    inner = _HALF_PI - (r + (tail - _HALF_PI_2))
    twice = 2.0 * (r + tail)
    twice = 2.0 * _HALF_PI - (twice - 2.0 * _HALF_PI_2) if x < 0.0 else twice
    return twice if outer else inner
