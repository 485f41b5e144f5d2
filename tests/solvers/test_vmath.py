"""Elementary functions for models: ulps against mpmath, special values, the same bits in every loop, speed's cause."""

import math

import mpmath
import numpy as np
import pytest
from numba import cfunc, float64, njit, types

from solvers import vmath, vmath_trig
from solvers.vectorisation import explain

RNG = np.random.default_rng(20)
N = 300


def logarithmic(low, high, signed=True):
    values = np.exp2(RNG.uniform(low, high, N))
    return values * RNG.choice([-1.0, 1.0], N) if signed else values


def near_multiples_of_half_pi():
    """Doubles on both sides of k pi / 2, k < 2^39: nearly all digits of the argument cancel."""
    with mpmath.workdps(50):
        nearest = np.array([float(int(2 ** RNG.uniform(0, 39)) * mpmath.pi / 2) for _ in range(N)])
    return np.concatenate([nearest, np.nextafter(nearest, np.inf)])


NEAR_ONE = 1 - np.exp2(-RNG.uniform(1, 53, N))
TINY = logarithmic(-1070, 0)
CIRCULAR = [RNG.uniform(-10, 10, 3 * N), TINY, logarithmic(0, 39.9), near_multiples_of_half_pi()]

# name: function, exact function, arguments, the ulps that its docstring states
FUNCTIONS = {
    "exp": (vmath.exp, mpmath.exp, [RNG.uniform(-745, 709.7, 3 * N), RNG.uniform(-1, 1, N)], 1.5),
    "expm1": (vmath.expm1, mpmath.expm1, [RNG.uniform(-50, 709.7, N), RNG.uniform(-1, 1, 3 * N), TINY], 2.5),
    "log": (
        vmath.log_full,
        mpmath.log,
        [RNG.uniform(0, 4, 3 * N), logarithmic(-1074, 1023.9, False), NEAR_ONE, 2 - NEAR_ONE],
        1.0,
    ),
    "log1p": (
        vmath.log1p,
        lambda x: mpmath.log1p(x) if abs(x) < 1e-5 else mpmath.log(1 + x),  # mpmath's loses digits far from 0
        [RNG.uniform(-0.99, 4, 3 * N), logarithmic(-1074, 1023.9, False), -NEAR_ONE, -TINY[TINY > 0]],
        1.5,
    ),
    "tanh": (vmath.tanh, mpmath.tanh, [RNG.uniform(-22, 22, N), RNG.uniform(-2, 2, 3 * N), TINY], 3.0),
    "sinh": (vmath.sinh, mpmath.sinh, [RNG.uniform(-710, 710, N), RNG.uniform(-2, 2, 3 * N), TINY], 2.5),
    "cosh": (vmath.cosh, mpmath.cosh, [RNG.uniform(-710, 710, N), RNG.uniform(-2, 2, 3 * N), TINY], 1.5),
    "sin": (vmath_trig.sin, mpmath.sin, CIRCULAR, 3.5),
    "cos": (vmath_trig.cos, mpmath.cos, CIRCULAR, 3.5),
    "tan": (vmath_trig.tan, mpmath.tan, CIRCULAR, 2.5),
    "arctan": (vmath_trig.arctan, mpmath.atan, [RNG.uniform(-4, 4, 3 * N), logarithmic(-1070, 1000)], 1.5),
    "arcsin": (vmath_trig.arcsin, mpmath.asin, [RNG.uniform(-1, 1, 3 * N), TINY, NEAR_ONE], 2.5),
    "arccos": (vmath_trig.arccos, mpmath.acos, [RNG.uniform(-1, 1, 3 * N), TINY, NEAR_ONE, -NEAR_ONE], 1.5),
}
OF_TWO = {
    "hypot": (vmath.hypot, mpmath.hypot, 1.5),
    "arctan2": (vmath_trig.arctan2, mpmath.atan2, 2.0),
}
SPECIAL = np.array(
    [
        0.0, -0.0, 1.0, -1.0, 0.5, -0.5, np.inf, -np.inf, np.nan, 5e-324, -5e-324, 2.3e-308, 1e-310, -1e-310,
        1e308, -1e308, 1.7976931348623157e308, 709.782712893384, 709.79, -745.13, -745.14, -746.0, -1e5, 1e5,
        710.47, 710.48, -710.47, 2.0**1023, 1.5 * 2.0**1023, 1e-17, -1e-17, 1e-8, np.nextafter(-1, 0),
        np.nextafter(1, 2), np.nextafter(-1, -2), 1e15, 2.0**53,
    ]
)  # fmt: skip


def compiled(name):
    """A loop as in a kernel, with the kernels' flags: what a model's values are."""
    function = FUNCTIONS[name][0]

    @njit(fastmath={"contract", "reassoc"}, error_model="numpy")
    def run(x, out):
        for i in range(x.size):
            out[i] = function(x[i])

    return run


def ulps(values, exact):
    """Errors in units in the last place of the exact values; inf where the value is not finite."""
    with mpmath.workdps(50):
        return np.array(
            [
                float(abs(mpmath.mpf(float(v)) - e) / mpmath.mpf(float(np.spacing(abs(float(e))))))
                if math.isfinite(v)
                else np.inf
                for v, e in zip(values, exact, strict=True)
            ]
        )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_within_the_stated_ulps(name):
    _, exact, arguments, bound = FUNCTIONS[name]
    x = np.concatenate(arguments)
    out = np.empty_like(x)
    compiled(name)(x, out)
    with mpmath.workdps(50):
        truth = [exact(mpmath.mpf(float(v))) for v in x]
    errors = ulps(out, truth)
    assert errors.max() < bound, x[errors.argmax()]


@pytest.mark.parametrize("name", OF_TWO)
def test_of_two_arguments_within_the_stated_ulps(name):
    function, exact, bound = OF_TWO[name]
    a = np.concatenate([RNG.normal(size=3 * N), logarithmic(-1000, 1020), RNG.normal(size=N)])
    b = np.concatenate([RNG.normal(size=3 * N), logarithmic(-1000, 1020), a[-N:] * logarithmic(-60, 60)])
    out = np.array([function(p, q) for p, q in zip(a, b, strict=True)])
    with mpmath.workdps(50):
        truth = [exact(mpmath.mpf(float(p)), mpmath.mpf(float(q))) for p, q in zip(a, b, strict=True)]
    normal = np.array([abs(t) > 2.0**-1022 for t in truth])
    assert normal.mean() > 0.9
    errors = ulps(out[normal], [t for t, k in zip(truth, normal, strict=True) if k])
    assert errors.max() < bound


def test_the_measure_sees_an_error_of_four_ulps():
    """Negative control."""
    x = RNG.uniform(0.5, 1, 20)
    with mpmath.workdps(50):
        truth = [mpmath.exp(mpmath.mpf(float(v))) for v in x]
    assert ulps(np.exp(x) + 4 * np.spacing(np.exp(x)), truth).max() > 3.5


def same(value, expected):
    """NaN for NaN, the sign of zero, and otherwise 3.5 + 1 ulps: NumPy errs by up to one itself."""
    if math.isnan(expected):
        return math.isnan(value)
    close = value == expected or abs(value - expected) <= 4.5 * np.spacing(abs(expected))
    return close and math.copysign(1.0, value) == math.copysign(1.0, expected)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_special_values_as_in_numpy(name):
    out = np.empty_like(SPECIAL)
    compiled(name)(SPECIAL, out)
    with np.errstate(all="ignore"):
        expected = getattr(np, name)(SPECIAL)
    if name in {"sin", "cos", "tan"}:
        expected[np.abs(SPECIAL) > vmath_trig.LIMIT] = np.nan
    for x, value, truth in zip(SPECIAL, out, expected, strict=True):
        assert same(value, truth), (x, value, truth)


@pytest.mark.parametrize("name", OF_TWO)
def test_special_pairs_as_in_numpy(name):
    with np.errstate(all="ignore"):
        for a in SPECIAL:
            for b in SPECIAL:
                assert same(OF_TWO[name][0](a, b), getattr(np, name)(a, b)), (a, b)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_integers_are_numbers(name):
    function = FUNCTIONS[name][0]
    assert function(1) == function(1.0)
    assert function(np.int32(0)) == function(0.0) or name == "log"


def test_symmetries_are_exact():
    x = np.concatenate([RNG.uniform(-30, 30, N), TINY])
    for name in ("sin", "tan", "tanh", "sinh", "arctan"):
        function = FUNCTIONS[name][0]
        assert all(function(-v) == -function(v) for v in x)
    for name in ("cos", "cosh"):
        function = FUNCTIONS[name][0]
        assert all(function(-v) == function(v) for v in x)
    assert max(abs(vmath.tanh(v)) for v in 10 * x) <= 1.0


@pytest.mark.parametrize("name", FUNCTIONS)
def test_loops_are_vectors_and_give_the_bits_of_single_calls(name):
    """Every operation is fixed by IEEE 754: vectors, single calls and the caller's flags give the same bits."""
    function = FUNCTIONS[name][0]

    @cfunc(types.void(float64[::1], float64[::1]), fastmath={"contract", "reassoc"}, error_model="numpy")
    def loop(x, out):
        for i in range(512):
            out[i] = function(x[i])

    assert "x double>" in loop.inspect_llvm()
    assert explain(loop) is None
    x = np.concatenate(FUNCTIONS[name][2])
    out = np.empty_like(x)
    compiled(name)(x, out)
    for i in range(0, x.size, 7):
        assert np.array_equal(function(x[i]), out[i], equal_nan=True)
