"""Tail exponents of random recurrences against closed forms, exact samples and simulation."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from eos_sde.thresholds import hill_exponent, kesten_exponent, recurrence_moments, sgd_tail_exponent
from solvers.errors import InvalidInput


@pytest.mark.parametrize("q", [0.05, 0.2, 0.4])
def test_two_point_multiplier(q):
    """Q 2^k + (1 - q) 2^-k = 1 at 2^k = (1 - q)/q."""
    found = kesten_exponent([-2.0, 0.5], probabilities=[q, 1 - q])
    assert_allclose(found.value, math.log2((1 - q) / q), rtol=1e-9)
    assert found.stderr == 0
    assert found.low == found.value


@pytest.mark.parametrize(("mu", "s"), [(-0.2, 0.5), (-0.1, 0.3)])
def test_lognormal_multiplier(mu, s):
    """Kappa = -2 mu/s^2. Within 4 standard errors, false alarm 6e-5 each; another s is rejected."""
    draws = np.exp(mu + s * np.random.default_rng(1).standard_normal(400_000))
    found = kesten_exponent(draws)
    assert found.stderr < 0.02 * found.value
    assert abs(found.value + 2 * mu / s**2) < 4 * found.stderr
    assert abs(found.value + 2 * mu / (1.1 * s) ** 2) > 4 * found.stderr
    assert found.low <= found.value


def test_where_there_is_no_power_law():
    assert kesten_exponent([0.9, -1.0, 0.2]).value == math.inf
    assert kesten_exponent([2.0, 0.9]).value == 0  # E log|a| > 0
    # ten thousand draws below 1, though 3 is possible: nothing seen, and a bound that the unseen allow
    draws = np.full(10_000, 0.5)
    unseen = kesten_exponent(draws, largest=3.0)
    assert unseen.value == math.inf
    share = 3e-4
    assert_allclose((1 - share) * 0.5**unseen.low + share * 3**unseen.low, 1.0, rtol=1e-9)
    assert kesten_exponent([0.0, 0.0, 1.5]).value == pytest.approx(math.log(3) / math.log(1.5))


def test_moments_of_a_uniform_law():
    """x+ = x/2 +- 1 is uniform on [-2, 2]."""
    assert_allclose(recurrence_moments([0.5, 0.5], [1.0, -1.0]), [0, 4 / 3, 0, 16 / 5], atol=1e-14)


def test_moments_of_a_random_multiplier():
    """Against a simulation, 4 standard errors (false alarm 3e-4 in all); without the joint law they fail."""
    rng = np.random.default_rng(3)
    a, b = np.array([0.9, -0.6, 0.3]), np.array([1.0, 0.5, -0.7])
    x = np.zeros(400_000)
    for _ in range(60):
        pick = rng.integers(3, size=x.size)
        x = a[pick] * x + b[pick]
    exact = recurrence_moments(a, b)
    for order in range(1, 5):
        sample = x**order
        assert abs(sample.mean() - exact[order - 1]) < 4 * sample.std() / math.sqrt(x.size)
    careless = recurrence_moments(np.repeat(a, 3), np.tile(b, 3))  # as if a and b were independent
    assert abs(np.mean(x**2) - careless[1]) > 4 * np.std(x**2) / math.sqrt(x.size)
    heavy = recurrence_moments([2.0] + 4 * [0.4], [0.1, -0.1, 0.0, 0.2, 0.0])
    assert np.all(np.isinf(heavy[2:]))  # E |a|^3 = 1.65
    assert np.isfinite(heavy[1])  # E a^2 = 0.93


def test_hill_on_exact_samples():
    """On a Pareto law Hill is unbiased but for 1/count; Student's t shows its exponent far out, a normal none."""
    rng = np.random.default_rng(5)
    pareto = rng.random(100_000) ** (-1 / 3)
    value, error = hill_exponent(pareto)
    assert abs(value - 3) < 4 * error
    assert_allclose(error, 3 / math.sqrt(2000), rtol=0.1)
    student = rng.standard_t(3, 1_000_000)
    value, error = hill_exponent(student, tail=1e-3)
    assert abs(value - 3) < 4 * error  # the bias at 0.1 % is 2 %, the error 3 %
    normal = rng.standard_normal(100_000)
    assert hill_exponent(normal)[0] > 6
    rows = pareto.reshape(200, 500)
    again, jackknifed = hill_exponent(rows)
    assert again == pytest.approx(hill_exponent(pareto)[0])
    assert 0.5 < jackknifed / (3 / math.sqrt(2000)) < 2
    # rows that repeat carry no more information: the error sees it
    assert hill_exponent(np.repeat(rows, 4, axis=1))[1] == pytest.approx(jackknifed, rel=0.3)


def test_hill_of_a_simulated_recurrence():
    """Tail of x+ = a x + 1 with lognormal a, kappa = 2.2; Hill at 0.1 % has some per cent of bias beside its error."""
    rng = np.random.default_rng(7)
    mu, s = -0.55, math.sqrt(0.5)
    x = np.zeros(400_000)
    for _ in range(80):
        x = np.exp(mu + s * rng.standard_normal(x.size)) * x + 1.0
    value, error = hill_exponent(x, tail=1e-3)
    assert abs(value - 2.2) < 4 * error + 0.1
    assert abs(value - 3.2) > 4 * error + 0.1


@pytest.mark.slow
def test_sgd_in_one_direction_is_the_scalar_recurrence():
    """Two kinds of examples at batch 1: E|1 - eta h|^kappa = 1 by hand; four errors, false alarm 6e-5."""
    eta, heavy, light = 1.0, 3.0, 0.5  # multipliers -2 (one in five) and 0.5
    jacobian = np.sqrt(np.array([heavy, light, light, light, light]))[:, None]
    found = sgd_tail_exponent(jacobian, eta, batch_size=1, seed=2, clones=64)
    assert found.stderr < 0.25
    assert abs(found.value - 2.0) < 4 * found.stderr
    assert sgd_tail_exponent(jacobian, 0.66, batch_size=1, seed=2).value == math.inf
    assert sgd_tail_exponent(jacobian, eta, batch_size=5, seed=2).value == math.inf
    unstable = sgd_tail_exponent(
        np.full((4, 1), 2.0), eta, batch_size=1, seed=2, clones=8
    )  # every multiplier is -3
    assert unstable.value == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: kesten_exponent([]),
        lambda: kesten_exponent([np.nan]),
        lambda: kesten_exponent([0.5, 2.0], probabilities=[0.5, 0.6]),
        lambda: recurrence_moments([0.5], [1.0, 2.0]),
        lambda: recurrence_moments([1.5], [1.0]),
        lambda: hill_exponent(np.ones(50)),
        lambda: hill_exponent([np.inf] * 1000),
        lambda: sgd_tail_exponent(np.ones((4, 1)), -1.0, batch_size=1, seed=0),
    ],
)
def test_bad_input(call):
    with pytest.raises(InvalidInput):
        call()
