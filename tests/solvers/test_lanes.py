"""Sums in fixed lanes: the same bits as a model in exact arithmetic rounded where a processor rounds.

The model adds in the documented order with fused multiply-adds as exact fractions rounded once. Since it knows
nothing of vector registers, a processor with registers of any width must give these bits.
"""

from fractions import Fraction

import numpy as np
import pytest
from numba import njit

from solvers import lanes

SIZES = (32, 64, 256, 512)


def _fma(a, b, c):
    """The value a b + c, rounded once: Python divides integers, and so turns fractions to floats, correctly."""
    return np.array(
        [float(Fraction(x) * Fraction(y) + Fraction(z)) for x, y, z in zip(a, b, c, strict=True)], dtype=float
    )


def _folded(terms):
    """Sums of an array over 32 lanes, then halves onto halves: chains 0 + 1 and 2 + 3, then 8, 4, 2, 1."""
    chains = terms.reshape(4, 8)
    vector = (chains[0] + chains[1]) + (chains[2] + chains[3])
    while vector.size > 1:
        half = vector.size // 2
        vector = vector[:half] + vector[half:]
    return vector[0]


def _lanes(x):
    return x.reshape(-1, 32)


def _model_shifted_sums(x, shift):
    total, squares = np.zeros(32), np.zeros(32)
    for row in _lanes(x):
        gap = row - shift
        total, squares = total + gap, _fma(gap, gap, squares)
    return _folded(total), _folded(squares)


def _model_shifted_product(x, x_shift, y, y_shift):
    total = np.zeros(32)
    for left, right in zip(_lanes(x), _lanes(y), strict=True):
        total = _fma(left - x_shift, right - y_shift, total)
    return _folded(total)


def _model_central_powers(x, mean):
    cubes, fourths = np.zeros(32), np.zeros(32)
    for row in _lanes(x):
        gap = row - mean
        square = gap * gap
        cubes, fourths = _fma(square, gap, cubes), _fma(square, square, fourths)
    return _folded(cubes), _folded(fourths)


@njit
def _shifted_sums(x, shift):
    return lanes.shifted_sums(x, shift)


@njit
def _shifted_product(x, x_shift, y, y_shift):
    return lanes.shifted_product(x, x_shift, y, y_shift)


@njit
def _central_powers(x, mean):
    return lanes.central_powers(x, mean)


@njit
def _probe(x):
    return lanes.not_finite_probe(x)


def _numbers(size, kind):
    """Numbers of one size, or of sizes from 2^-30 to 2^30."""
    rng = np.random.default_rng(size)
    scale = 1.0 if kind == "even" else 2.0 ** rng.integers(-30, 30, size)
    return rng.normal(size=size) * scale


@pytest.mark.parametrize("kind", ["even", "wild"])
@pytest.mark.parametrize("size", SIZES)
def test_sums_have_the_bits_of_the_model(size, kind):
    x, y = _numbers(size, kind), _numbers(size, kind)[::-1].copy()
    assert _shifted_sums(x, x[0]) == _model_shifted_sums(x, x[0])
    assert _shifted_product(x, x[0], y, y[0]) == _model_shifted_product(x, x[0], y, y[0])
    assert _central_powers(x, x.mean()) == _model_central_powers(x, x.mean())


def test_another_order_or_rounding_gives_other_bits():
    """Negative controls: plain sums in a row, 4 or 16 lanes instead of 32, and products rounded by themselves.

    Each agrees by chance now and then, but not on all of 20 arrays.
    """
    differences = np.zeros(4, dtype=int)
    for seed in range(20):
        x = np.random.default_rng(seed).normal(size=512)
        total, squares = _shifted_sums(x, 0.0)
        unfused = np.zeros(32)
        for row in _lanes(x):
            unfused = unfused + row * row
        sums = (sum(x.tolist()), x.reshape(-1, 4).sum(axis=0).sum(), x.reshape(-1, 16).sum(axis=0).sum())
        np.testing.assert_allclose(sums, total, atol=512 * 2.0**-52 * np.abs(x).sum())
        differences += np.array([*(wrong != total for wrong in sums), _folded(unfused) != squares])
    assert (differences > 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_probe_finds_one_bad_number_anywhere(bad):
    for place in (0, 7, 31, 32, 500, 511):
        x = np.ones(512)
        assert _probe(x) == 0.0
        x[place] = bad
        assert np.isnan(_probe(x))
