"""Counter-based increments: published vectors, elementary functions in ulps, distribution, windows."""

import mpmath
import numpy as np
import pytest
from numba import njit
from scipy import stats

from solvers import vmath, wiener
from solvers.errors import InvalidInput

# Random123 (Salmon et al.), file kat_vectors: rounds, counter, key, result.
KNOWN_ANSWERS = [
    (13, (0, 0), (0, 0), (0xF167B032C3B480BD, 0xE91F9FEE4B7A6FB5)),
    (13, (2**64 - 1,) * 2, (2**64 - 1,) * 2, (0xCCDEC5C917A874B1, 0x4DF53ABCA26CEB01)),
    (
        13,
        (0x243F6A8885A308D3, 0x13198A2E03707344),
        (0xA4093822299F31D0, 0x082EFA98EC4E6C89),
        (0xC3AAC71561042993, 0x3FE7AE8801AFF316),
    ),
    (20, (0, 0), (0, 0), (0xC2B6E3A8C2C69865, 0x6F81ED42F350084D)),
    (20, (2**64 - 1,) * 2, (2**64 - 1,) * 2, (0xE02CB7C4D95D277A, 0xD06633D0893B8B68)),
    (
        20,
        (0x243F6A8885A308D3, 0x13198A2E03707344),
        (0xA4093822299F31D0, 0x082EFA98EC4E6C89),
        (0x263C7D30BB0F0AF1, 0x56BE8361D3311526),
    ),
]


@pytest.mark.parametrize(("rounds", "counter", "key", "result"), KNOWN_ANSWERS)
def test_threefry_gives_the_published_answers(rounds, counter, key, result):
    words = [np.uint64(word) for word in (*counter, *key)]
    assert tuple(int(word) for word in wiener.threefry(rounds)(*words)) == result


@njit
def _apply(function, values, out):
    for i in range(values.size):
        out[i] = function(values[i])


@njit
def _cosines_sines(words, out):
    for i in range(words.size):
        out[0, i], out[1, i] = vmath.cos_sin_turns(words[i])


def _worst_ulps(values, exact):
    with mpmath.workdps(40):
        errors = [
            abs((mpmath.mpf(float(v)) - e) / mpmath.mpf(float(np.spacing(abs(float(e))))))
            for v, e in zip(values, exact, strict=True)
        ]
        return float(max(errors))


def test_log_is_within_one_ulp():
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [
            rng.random(1000),
            1 - np.exp2(-rng.uniform(2, 53, 500)),
            np.exp2(rng.uniform(-53, 0, 500)),
            np.sqrt(0.5) * (1 + np.linspace(-1e-15, 1e-15, 9)),
            np.exp(rng.uniform(-700, 700, 500)),
        ]
    )
    values = values[values != 1.0]
    out = np.empty_like(values)
    _apply(vmath.log, values, out)
    with mpmath.workdps(40):
        exact = [mpmath.log(mpmath.mpf(float(v))) for v in values]
    assert _worst_ulps(out, exact) < 1.0


def test_log_of_one_is_zero():
    out = np.empty(1)
    _apply(vmath.log, np.ones(1), out)
    assert out[0] == 0.0


def test_cosine_and_sine_of_turns_are_within_one_and_a_half_ulps():
    rng = np.random.default_rng(1)
    words = rng.integers(0, 2**64, 1500, dtype=np.uint64)
    edges = [(k << 61) + j for k in range(8) for j in (-(1 << 12), 0, 1 << 12)]
    words = np.concatenate([words, np.array([e % 2**64 for e in edges], dtype=np.uint64)])
    out = np.empty((2, words.size))
    _cosines_sines(words, out)
    with mpmath.workdps(40):
        angles = [2 * mpmath.pi * mpmath.mpf(int(w) >> 11) / 2**53 for w in words]
        for row, function in zip(out, (mpmath.cos, mpmath.sin), strict=True):
            exact = [function(a) for a in angles]
            zero = np.array([abs(e) < 1e-30 for e in exact])
            np.testing.assert_array_equal(row[zero], 0.0)
            assert zero.sum() == 2
            rest = [e for e, z in zip(exact, zero, strict=True) if not z]
            assert _worst_ulps(row[~zero], rest) < 1.5


SAMPLE = 1 << 20


@pytest.fixture(scope="module")
def normals():
    return wiener.increments(seed=12345, paths=SAMPLE // 8, steps=4, components=2)


def test_moments_of_the_normals(normals):
    """Six moments, each within 5 standard errors: false alarms 6 * 6e-7 over all seeds; the seed is fixed."""
    z = normals.ravel()
    for order, (moment, second) in enumerate([(0, 1), (1, 3), (0, 15), (3, 105), (0, 945), (15, 10395)], 1):
        stderr = np.sqrt((second - moment**2) / z.size)
        assert abs(np.mean(z**order) - moment) < 5 * stderr, order


def test_distribution_of_the_normals(normals):
    """Chi-square over 256 equally probable cells, p in (1e-4, 1 - 1e-4): false-alarm rate 2e-4."""
    cells = np.floor(256 * stats.norm.cdf(normals.ravel())).astype(int)
    counts = np.bincount(cells, minlength=256)
    p = stats.chi2.sf(((counts - SAMPLE / 256) ** 2).sum() / (SAMPLE / 256), 255)
    assert 1e-4 < p < 1 - 1e-4


def test_the_distribution_test_sees_a_defect_of_one_percent(normals):
    """Negative control: the same test rejects normals that are 1 % too wide."""
    cells = np.floor(256 * stats.norm.cdf(1.01 * normals.ravel())).astype(int)
    counts = np.bincount(cells, minlength=256)
    assert stats.chi2.sf(((counts - SAMPLE / 256) ** 2).sum() / (SAMPLE / 256), 255) < 1e-6


@pytest.mark.parametrize("seed", [0, 1, 2, 2**64 - 1])
def test_kolmogorov_smirnov_at_neighbouring_seeds(seed):
    """Each p-value above 1e-4: false-alarm rate 4e-4 over the four seeds."""
    assert stats.kstest(wiener.increments(seed, 5000, 4).ravel(), "norm").pvalue > 1e-4


def test_steps_components_paths_and_seeds_are_uncorrelated(normals):
    """Correlations of z and of z^2 between neighbours in every direction, |r| < 5 / sqrt(n).

    Counters and keys that differ in one bit are what a weak generator confuses. False alarms: 10 * 6e-7.
    """
    other = wiener.increments(seed=12344, paths=SAMPLE // 8, steps=4, components=2)
    pairs = [
        (normals[:, 0], normals[:, 1]),  # both halves of one Box-Muller pair
        (normals[:, 1], normals[:, 2]),
        (normals[..., 0], normals[..., 1]),
        (normals[:-1], normals[1:]),
        (normals, other),
    ]
    for a, b in pairs:
        bound = 5 / np.sqrt(a.size)
        assert abs(np.mean(a * b)) < bound
        assert abs(np.mean((a**2 - 1) * (b**2 - 1)) / 2) < bound


def test_an_increment_depends_on_seed_path_step_and_component_only():
    whole = wiener.increments(3, 600, 9, 3, dt=0.5)
    window = wiener.increments(3, 300, 4, 2, dt=0.5, first_path=257, first_step=3)
    np.testing.assert_array_equal(window, whole[257:557, 3:7, :2])


def test_increments_scale_with_the_square_root_of_dt():
    np.testing.assert_allclose(
        wiener.increments(3, 5, 4, dt=0.25), 0.5 * wiener.increments(3, 5, 4), rtol=1e-15
    )


def test_coarsening_keeps_the_brownian_path():
    fine = wiener.increments(3, 5, 12, 2, dt=0.1)
    coarse = wiener.coarsen(fine, 4)
    assert coarse.shape == (5, 3, 2)
    np.testing.assert_allclose(coarse.cumsum(axis=1), fine.cumsum(axis=1)[:, 3::4], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"seed": 1.5}, "seed"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"seed": True}, "seed"),
        ({"paths": 0}, "paths"),
        ({"steps": 2.0}, "steps"),
        ({"dt": 0.0}, "dt"),
    ],
)
def test_bad_arguments_are_refused(arguments, named):
    with pytest.raises(InvalidInput, match=named):
        wiener.increments(**{"seed": 0, "paths": 1, "steps": 1, **arguments})


def test_a_factor_that_does_not_divide_is_refused():
    with pytest.raises(InvalidInput, match="factor=5"):
        wiener.coarsen(np.zeros((1, 12, 1)), 5)
