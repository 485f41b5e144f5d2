"""The normals of both resolutions: elementary functions against mpmath, windows, streams, and statistical quality.

The statistics are those of benchmarks/normal_quality.py at sizes of a second each. Scores are standard under
the hypothesis, and the bound is 5, so that one score raises a false alarm with probability 6e-7 over all seeds
(the seed is fixed); p-values are held above 1e-4. Every check has a negative control.
"""

import importlib.util
import itertools
import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
from numba import njit
from scipy import stats

from solvers import fast_normals, heavy_tails, weak_increments, wiener

_FILE = Path(__file__).parents[2] / "benchmarks" / "normal_quality.py"
_spec = importlib.util.spec_from_file_location("normal_quality", _FILE)
assert _spec is not None
assert _spec.loader is not None
quality = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(quality)

BOUND, SMALLEST_P = 5.0, 1e-4
RESOLUTIONS = [32, 53]
HALF_ULP = (
    2.0**-25
)  # of a number in [1/2, 1) in single precision: the relative rounding error is below twice that


def u32(values):
    return np.array(values, dtype=np.uint32)


@njit
def _radii(words, out):
    for i in range(words.size):
        out[i] = fast_normals.radius_of(words[i])


@njit
def _pairs(radii, first, second, out):
    for i in range(first.size):
        out[0, i], out[1, i] = fast_normals.normal_pair_of(radii[i], first[i], second[i])


def radii_of(words):
    out = np.empty(words.size, np.float32)
    _radii(words, out)
    return out


def pairs_of(radii, first, second):
    out = np.empty((2, first.size), np.float32)
    _pairs(np.asarray(radii, np.float32), first, second, out)
    return out


def grid_of_words():
    """Around all powers of two, at both ends, and at random."""
    rng = np.random.default_rng(0)
    edges = {(1 << k) + j for k in range(32) for j in (-2, -1, 0, 1, 2)}
    ends = {*range(40), *range(2**31 - 600, 2**31)}
    inside = {w for w in edges | ends if 0 <= w < 2**32}
    return np.concatenate([u32(sorted(inside)), rng.integers(0, 2**32, 3000, dtype=np.uint32)])


def rounded_uniform(word):
    """U as the code rounds it: (k + 1/2) / 2^31 to single precision, k being rounded first."""
    return np.float32(np.float32(int(word) & 0x7FFFFFFF) + np.float32(0.5)) / np.float32(2**31)


def test_radius_is_the_root_of_minus_the_logarithm():
    """Relative error below 3e-7 for the rounded u.

    -log u = (E log 2 - f) + f^2/2 - f^3 L: six roundings of 6e-8, each of a term at most about the result
    where E = 0 and twice it where E = 1 and f < 0, the fit 2e-8; the root halves the sum and rounds once more.
    """
    words = grid_of_words()
    got = radii_of(words)
    with mpmath.workdps(30):
        exact = [mpmath.sqrt(-mpmath.log(mpmath.mpf(float(rounded_uniform(w))))) for w in words]
        errors = [abs(mpmath.mpf(float(g)) - e) / e for g, e in zip(got, exact, strict=True) if e > 0]
    zeros = np.array([e == 0 for e in exact])
    assert float(max(errors)) < 3e-7
    np.testing.assert_array_equal(got[zeros], 0.0)
    assert 0 < zeros.sum() < 700  # u rounds to 1 for the largest k only


def test_radius_against_the_unrounded_uniform():
    """U is rounded twice, by 6e-8 of itself: -log u changes by 1.2e-7, besides the relative error 6e-7 of r^2."""
    words = grid_of_words()
    squared = radii_of(words).astype(float) ** 2
    k = (words & np.uint32(0x7FFFFFFF)).astype(float)
    exact = -np.log1p((k + 0.5 - 2.0**31) / 2.0**31)
    assert np.all(np.abs(squared - exact) < 2 * 2 * HALF_ULP + 6e-7 * exact)


def test_radii_reach_from_zero_to_the_stated_end():
    assert radii_of(u32([2**31 - 1, 2**32 - 1])).tolist() == [0.0, 0.0]
    largest = float(radii_of(u32([0]))[0]) * math.sqrt(2)
    assert largest == pytest.approx(math.sqrt(64 * math.log(2)), rel=3e-7)
    x, _ = pairs_of(radii_of(u32([0])), u32([0]), u32([2**30 - 1]))[:, 0]
    assert x == pytest.approx(largest, rel=5e-7)  # the angle next to the first axis


def test_pair_is_cosine_plus_and_minus_sine():
    """Absolute error below 2.5e-7 r.

    The angle a = v pi/2, |v| <= 1/2, is rounded to 24 bits: 2^-26 * pi/2 = 2.3e-8, by which cos a +- sin a <=
    sqrt 2 changes by up to 3.3e-8; sine and cosine carry the fits' 5e-9 and 3e-8, three roundings each of at
    most 6e-8 of terms at most 1, mostly far smaller, and the sum and the product with r round once more.
    """
    second = grid_of_words()
    rng = np.random.default_rng(1)
    first = rng.integers(0, 2**32, second.size, dtype=np.uint32)
    radii = radii_of(first)
    got = pairs_of(radii, first, second)
    with mpmath.workdps(30):
        for i in range(second.size):
            shifted = (int(second[i]) << 1) & 0xFFFFFFFF
            v = mpmath.mpf(shifted - 2**32 if shifted >= 2**31 else shifted) / 2**32
            a = v * mpmath.pi / 2
            signs = [-1 if int(w) >> 31 else 1 for w in (first[i], second[i])]
            exact = [signs[0] * (mpmath.cos(a) + mpmath.sin(a)), signs[1] * (mpmath.cos(a) - mpmath.sin(a))]
            for g, e in zip(got[:, i], exact, strict=True):
                assert abs(float(g) - float(radii[i]) * float(e)) <= 2.5e-7 * float(radii[i])


def test_each_sign_bit_turns_one_normal_exactly():
    rng = np.random.default_rng(2)
    first, second = rng.integers(0, 2**32, (2, 1000), dtype=np.uint32)
    x, y = pairs_of(radii_of(first), first, second)
    turned_x, same_y = pairs_of(radii_of(first ^ np.uint32(2**31)), first ^ np.uint32(2**31), second)
    same_x, turned_y = pairs_of(radii_of(first), first, second ^ np.uint32(2**31))
    np.testing.assert_array_equal(turned_x, -x)
    np.testing.assert_array_equal(same_y, y)
    np.testing.assert_array_equal(same_x, x)
    np.testing.assert_array_equal(turned_y, -y)


@pytest.mark.slow
def test_fast_normals_are_what_the_module_says():
    """From the words of `wiener.threefry2x64`: lower halves for the even path, upper for the odd one."""
    seed, paths, steps, components = 2**63 + 5, 5, 4, 3
    got = wiener.increments(seed, paths, steps, components, resolution=32)
    for path, pair, c in itertools.product(range(paths), range(steps // 2), range(components)):
        stream = np.uint64((fast_normals.FAST << 32) | c)
        words = wiener.threefry2x64(np.uint64(pair), stream, np.uint64(seed), np.uint64(path // 2))
        first, second = (u32([(int(w) >> (32 * (path % 2))) & 0xFFFFFFFF]) for w in words)
        expected = pairs_of(radii_of(first), first, second)[:, 0]
        np.testing.assert_array_equal(got[path, 2 * pair : 2 * pair + 2, c], expected)


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("first_path", [0, 1, 2, 510, 511, 512, 513])
@pytest.mark.parametrize("first_step", [0, 1, 2, 3])
def test_a_window_has_the_numbers_of_the_whole(resolution, first_path, first_step):
    whole = wiener.increments(9, 1100, 8, 2, 0.5, resolution=resolution)
    for paths, steps in ((1, 1), (3, 2), (530, 5)):
        part = wiener.increments(
            9, paths, steps, 2, 0.5, first_path=first_path, first_step=first_step, resolution=resolution
        )
        inside = whole[first_path : first_path + paths, first_step : first_step + steps]
        np.testing.assert_array_equal(part, inside)


def test_streams_are_disjoint():
    """Each use of the generator has its own counters, and the two resolutions have uncorrelated numbers."""
    streams = (wiener.NORMALS, wiener.CROSSING, weak_increments.STREAM, fast_normals.FAST, heavy_tails.STREAM)
    assert len(set(streams)) == len(streams)
    fine, fast = (wiener.increments(1, 4096, 64, 2, resolution=r).ravel() for r in (53, 32))
    assert abs(np.mean(fine * fast)) < BOUND / math.sqrt(fine.size)
    assert (
        np.unique(np.concatenate([fine, fast])).size > 0.97 * 2 * fine.size
    )  # single precision repeats some


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_six_moments(resolution):
    """Of 3.4e7 normals: a variance wrong by 1.2e-3 would be seen."""
    assert np.abs(quality.scores_of_moments(resolution, 3e7, seed=1)).max() < BOUND


def test_moments_see_a_scale_that_is_wrong_by_a_thousandth():
    """Negative control: the variance is off by 2e-3, 8 standard errors at this size."""
    assert abs(quality.scores_of_moments(32, 3e7, seed=1, scale=1.001)[1]) > BOUND


@pytest.mark.slow
@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_six_moments_of_many(resolution):
    assert np.abs(quality.scores_of_moments(resolution, 1e9, seed=2, threads=2)).max() < BOUND


@pytest.fixture(scope="module", params=RESOLUTIONS)
def sample(request):
    """p-value and correlations of 8.4e6 normals."""
    return quality.distribution(request.param, 8e6, seed=3)


def test_distribution_in_fifteen_hundred_cells(sample):
    """False alarm: 2e-4, both sides taken together."""
    assert SMALLEST_P < sample[0] < 1 - SMALLEST_P


def test_steps_and_paths_are_uncorrelated(sample):
    """Of z and z^2 at lags 1, 2, 3, 4, 8, 64 in steps and in paths: 24 scores."""
    assert np.abs(sample[1]).max() < BOUND


def test_the_checks_see_wide_and_correlated_normals():
    """Negative control: 0.5 % too wide, and 0.4 % of the step before in each step.

    The cells' chi-square has a noncentrality of 2 * 0.005^2 n = 420 on 1400 degrees of freedom (8 standard
    deviations), the correlation a score of 0.004 sqrt(n) = 12.
    """
    p, lags = quality.distribution(32, 8e6, seed=3, scale=1.005, correlated=0.004)
    assert p < SMALLEST_P
    assert lags[0, 0, 0] > BOUND


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_kolmogorov_smirnov_at_twelve_neighbouring_seeds(resolution):
    """Each p above 1e-4, and the twelve as one by Fisher's method: false alarms 1.3e-3 at each resolution."""
    p = quality.kolmogorov_smirnov(resolution, 1e5, range(100, 112))
    assert p.min() > SMALLEST_P
    assert stats.chi2.sf(-2.0 * np.log(p).sum(), 2 * p.size) > SMALLEST_P


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("shift", quality.SHIFTS, ids=str)
def test_neighbours_are_unrelated(resolution, shift):
    """Correlations of z and z^2 and the agreement of 64 bits, 1e6 normals: 66 scores, false alarms 4e-5."""
    products, bits = quality.scores_of_shift(resolution, shift, 1e6, seed=5)
    assert np.abs(products).max() < BOUND
    assert np.abs(bits).max() < BOUND


@pytest.mark.parametrize("components", [(0, 1), (1, 3)])
def test_the_bits_see_a_generator_with_unmixed_keys(components):
    """Negative control: Threefry's counter plus key is the same for (c, path + 1) and (c + 1, path).

    After 13 rounds some bits agree 1 % too often, which is why `wiener` mixes the seed and the stream first.
    """
    low, high = components
    raw, agreements, words = wiener.threefry(wiener.ROUNDS), np.zeros(64, np.int64), 1 << 21

    @njit
    def count(agreements):
        for n in range(words // 8):
            for path in range(8):
                key = np.uint64(path + high - low)
                a, _ = raw(np.uint64(n), np.uint64(low), np.uint64(1), key)
                b, _ = raw(np.uint64(n), np.uint64(high), np.uint64(1), np.uint64(path))
                for bit in range(64):
                    agreements[bit] += (~(a ^ b) >> np.uint64(bit)) & np.uint64(1)

    count(agreements)
    assert np.abs(quality.bit_scores(agreements, words)).max() > BOUND
