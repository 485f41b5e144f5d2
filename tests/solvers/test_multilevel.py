"""Multilevel Monte Carlo: stated errors against closed forms, rates, cost, bits."""

import math

import numpy as np
import pytest
from scipy import stats

from solvers import SDE, ConvergenceFailure, InvalidInput
from solvers import level_statistics as ls
from solvers.multilevel import expectation, plain_expectation
from solvers.wiener import increments
from tests.problems import geometric_brownian, ornstein_uhlenbeck

OU, GBM = ornstein_uhlenbeck(), geometric_brownian()


def exact_mean(problem):
    assert problem.mean is not None
    return float(problem.mean(1.0)[0])


def exact_square(problem):
    assert problem.variance is not None
    return exact_mean(problem) ** 2 + float(problem.variance(1.0)[0])


GBM_MEAN = exact_mean(GBM)


def first(t, y, p, xp):
    return y[0]


def square(t, y, p, xp):
    return y[0] ** 2


def call(t, y, p, xp):
    return xp.maximum(y[0] - 1.5, 0.0)


def call_price(mu, s, strike):
    """E (X_1 - K)^+ for log X_1 normal (Black and Scholes 1973, without discount)."""
    d = (-math.log(strike) + mu + 0.5 * s**2) / s
    return math.exp(mu) * stats.norm.cdf(d) - strike * stats.norm.cdf(d - s)


CASES = {
    "ou-square-sra1": (OU, square, exact_square(OU), "auto"),
    "ou-square-euler": (OU, square, exact_square(OU), "euler-maruyama"),
    "gbm-mean-euler": (GBM, first, GBM_MEAN, "euler-maruyama"),
    "gbm-call-milstein": (GBM, call, call_price(0.5, 0.6, 1.5), "auto"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.slow
def test_errors_over_many_seeds_are_as_stated(case):
    problem, observable, truth, scheme = CASES[case]
    error = 0.02
    results = [
        expectation(problem.sde, problem.y0, observable, t1=1.0, error=error, seed=seed, scheme=scheme)
        for seed in range(100)
    ]
    misses = np.array([float(r.value) - truth for r in results])
    # If the mean square is error^2 or less, the sum of squares over error^2 is at most chi-square with 100
    # degrees (biases are within): above its 1e-4 quantile in 1e-4 of all choices of seeds.
    assert (misses**2).sum() / error**2 < stats.chi2.isf(1e-4, 100)
    # With the estimated bias taken out, what is left has the stated standard error: two sides of 1e-4.
    scores = np.array(
        [(float(r.value + r.bias) - truth) / math.hypot(r.stderr, r.bias_stderr) for r in results]
    )
    assert stats.chi2.ppf(1e-4, 100) < (scores**2).sum() < stats.chi2.isf(1e-4, 100)
    # Coverage of the 95 % interval, at least binomial: fewer than 84 of 100 in 2e-5.
    assert sum(float(r.low) <= truth <= float(r.high) for r in results) >= 84
    # Negative controls: half the error would be rejected, and so would a truth two errors away.
    assert (misses**2).sum() / (0.3 * error) ** 2 > stats.chi2.isf(1e-4, 100)
    assert ((misses - 2 * error) ** 2).sum() / error**2 > stats.chi2.isf(1e-4, 100)


def test_rates_and_cost_of_additive_noise():
    coarse, fine = (
        expectation(OU.sde, OU.y0, square, t1=1.0, error=error, seed=4, scheme="euler-maruyama")
        for error in (4e-3, 5e-4)
    )
    # Euler with additive noise has strong order 1: beta = 2, alpha = 1; three stderr: false alarm 3e-3 each.
    assert abs(float(fine.beta) - 2) < 3 * float(fine.beta_stderr) + 0.1
    assert abs(float(fine.alpha) - 1) < 3 * float(fine.alpha_stderr) + 0.1
    assert float(fine.gamma) == pytest.approx(1, abs=1e-12)
    # beta > gamma: cost is proportional to error^-2, 64 here; plain Monte Carlo pays 512. Sample numbers
    # follow estimated variances, 10 percent; the coarse run pays for its trials besides.
    ratio = float(fine.cost / coarse.cost) * float(fine.rms_error / coarse.rms_error * 8) ** 2
    assert 64 / 1.8 < ratio < 64 * 1.15
    assert float(fine.plain_cost) > 20 * float(fine.cost)


def test_rates_and_cost_of_eulers_scheme_with_multiplicative_noise():
    coarse, fine = (
        expectation(GBM.sde, GBM.y0, first, t1=1.0, error=error, seed=4, scheme="euler-maruyama")
        for error in (16e-3, 2e-3)
    )
    # strong order 1/2: beta = 1, approached from below (0.9 over the levels of this size)
    assert 0.8 < float(fine.beta) < 1.05
    # beta = gamma: cost grows as error^-2 times the square of the number of levels, up to the coarsest ones
    levels = fine.level.size / coarse.level.size
    ratio = float(fine.cost / coarse.cost) * float(fine.rms_error / coarse.rms_error * 8) ** 2
    assert 64 < ratio < 64 * levels**2 * 1.3
    assert float(fine.plain_cost) > 5 * float(fine.cost)


def test_milsteins_scheme_makes_multiplicative_noise_as_cheap():
    coarse, fine = (
        expectation(GBM.sde, GBM.y0, first, t1=1.0, error=error, seed=4, scheme="milstein")
        for error in (8e-3, 1e-3)
    )
    # strong order 1: beta = 2, approached from below (1.7 over the levels of this size); see above for the cost
    assert 1.6 < float(fine.beta) < 2.05
    ratio = float(fine.cost / coarse.cost) * float(fine.rms_error / coarse.rms_error * 8) ** 2
    assert 64 / 1.8 < ratio < 64 * 1.15
    euler = expectation(GBM.sde, GBM.y0, first, t1=1.0, error=1e-3, seed=4, scheme="euler-maruyama")
    assert float(euler.cost) > 3 * float(fine.cost)


@pytest.mark.slow
def test_a_step_of_order_one_and_a_half_is_coupled_through_its_integrals():
    # Of dX = -k X dt + s dW, SRA1's strong error is of order dt^2 (the drift is linear): beta = 4. A wrong
    # integral of the coarse Wiener path would leave a difference of order dt^(3/2), beta = 3, and a wrong
    # increment one of order dt^(1/2). First-order corrections in k dt: 0.4.
    result = expectation(
        OU.sde, OU.y0, first, t1=1.0, error=2e-4, seed=3, scheme="sra1", first_steps=8, max_cost=1e9
    )
    assert abs(float(result.beta) - 4) < 0.4
    scalar = expectation(GBM.sde, GBM.y0, first, t1=1.0, error=1e-3, seed=3, scheme="sriw1", first_steps=8)
    assert float(scalar.beta) > 2.2


def clark_cameron():
    """DX = dW_1, dZ = X dW_2 (Clark and Cameron 1980): the noise does not commute."""
    return SDE(
        lambda t, y, p, xp: (0.0 * y[0], 0.0 * y[0]),
        lambda t, y, p, xp: ((1.0, 0.0), (0.0, y[0])),
        names=("x", "z"),
        noise="general",
        convention="ito",
    )


def bump(t, y, p, xp):
    return xp.cos(y[1])


@pytest.mark.slow
def test_antithetic_paths_make_up_for_the_areas_left_out():
    # E cos Z = E exp(-1/2 int W^2) = cosh(1)^(-1/2) (Cameron and Martin 1945)
    exact = math.cosh(1.0) ** -0.5
    euler, twins = (
        expectation(clark_cameron(), (0.0, 0.0), bump, t1=1.0, error=1e-3, seed=2, antithetic=antithetic)
        for antithetic in (False, True)
    )
    for result in (euler, twins):
        assert abs(float(result.value) - exact) < 4.5 * float(result.stderr) + abs(float(result.bias)) + 2e-4
    assert euler.attrs["scheme"] == "euler-maruyama"
    # strong order 1/2: beta = 1; antithetic for smooth f: beta = 2
    assert 0.8 < float(euler.beta) < 1.2
    assert 1.8 < float(twins.beta) < 2.2
    assert float(twins.cost) < 0.7 * float(euler.cost)
    with pytest.raises(InvalidInput, match="leave both out"):
        expectation(clark_cameron(), (0.0, 0.0), bump, t1=1.0, error=1, seed=2, antithetic=True, refinement=4)
    with pytest.raises(InvalidInput, match="use it"):
        expectation(GBM.sde, 1.0, first, t1=1.0, error=1, seed=2, antithetic=True)


def test_plain_monte_carlo_costs_what_was_predicted():
    result = expectation(GBM.sde, GBM.y0, first, t1=1.0, error=0.01, seed=2)
    steps, stderr = int(result.plain_steps), float(result.plain_stderr)
    plain = plain_expectation(GBM.sde, GBM.y0, first, t1=1.0, steps=steps, stderr=stderr, seed=3)
    assert float(plain.stderr) <= stderr * 1.01
    # the variances of both runs have relative errors of sqrt(kurtosis / n) < 10 percent
    assert float(plain.cost) == pytest.approx(float(result.plain_cost), rel=0.2)
    # its bias is the square root of a third of the squared error: 4 stderr and that
    assert abs(float(plain.value) - GBM_MEAN) < 4 * stderr + float(result.rms_error)
    assert float(plain.cost) > 2 * float(result.cost)


def test_the_result_has_the_same_bits_for_any_number_of_threads(monkeypatch):
    settings = {"t1": 1.0, "error": 0.01, "seed": 9, "over": "mean"}
    one = expectation(GBM.sde, GBM.y0, square, threads=1, **settings)
    monkeypatch.setattr("solvers.coupled_levels._WORK", 1 << 13)  # other tasks, too
    two = expectation(GBM.sde, GBM.y0, square, threads=3, **settings)
    assert one.identical(two)
    assert not one.identical(expectation(GBM.sde, GBM.y0, square, **{**settings, "seed": 10}))


def test_levels_use_the_increments_of_their_own_paths():
    result = expectation(
        OU.sde, OU.y0, first, t1=1.0, error=0.2, seed=6, first_steps=4, scheme="euler-maruyama"
    )
    level = result.isel(level=1)
    steps, paths = int(level.steps), int(level.samples)
    dw = increments(6, paths, steps, 1, 1.0 / steps, first_path=1 << 40)[:, :, 0]
    ends = []
    for table, dt in ((dw, 1.0 / steps), (dw.reshape(paths, -1, 2).sum(axis=2), 2.0 / steps)):
        x = np.full(paths, 2.0)
        for column in table.T:
            x = x - 1.5 * x * dt + 0.9 * column
        ends.append(x)
    difference = ends[0] - ends[1]
    assert float(level["mean"]) == pytest.approx(difference.mean(), rel=1e-10)
    assert float(level["variance"]) == pytest.approx(difference.var(ddof=1), rel=1e-10)
    centred = difference - difference.mean()
    assert float(level["kurtosis"]) == pytest.approx(
        (centred**4).mean() / difference.var(ddof=1) ** 2, rel=1e-9
    )


@pytest.mark.slow
def test_time_averages_and_extremes():
    # (1/T) int_0^T E X^2 for the Ornstein-Uhlenbeck process
    k, s, x0 = 1.5, 0.9, 2.0
    level = s**2 / (2 * k)
    exact = level + (x0**2 - level) * -math.expm1(-2 * k) / (2 * k)
    result = expectation(OU.sde, OU.y0, square, t1=1.0, error=0.01, seed=1, over="mean")
    assert abs(float(result.value) - exact) < 4 * float(result.stderr) + 0.01
    # E max of Brownian motion on [0, 1]: sqrt(2/pi); its maximum over steps falls short by 0.5826 sqrt(dt)
    # (Broadie, Glasserman, Kou 1997)
    still = SDE(lambda t, y, p, xp: (0.0,), lambda t, y, p, xp: (1.0,), convention="ito")
    top = expectation(still, 0.0, first, t1=1.0, error=0.02, seed=1, over="max")
    assert abs(float(top.value) - math.sqrt(2 / math.pi)) < 4 * float(top.stderr) + 0.02
    finest = float(top.dt[-1])
    assert float(top.bias) == pytest.approx(0.5826 * math.sqrt(finest), rel=0.5)
    low = expectation(still, 0.0, first, t1=1.0, error=0.02, seed=1, over="min")
    assert abs(float(low.value + top.value)) < 4 * math.hypot(float(low.stderr), float(top.stderr)) + 0.03


@pytest.mark.slow
def test_stratonovich_and_klimontovich_models_are_converted():
    # E X_1 = exp(mu + s^2/2) and exp(mu + s^2), by the Ito drift; Ito itself, exp(mu), is the negative control
    for convention, rate in (("stratonovich", 0.3 + 0.18), ("klimontovich", 0.3 + 0.36)):
        sde = geometric_brownian(0.3, convention="ito").sde
        other = SDE(sde.drift, sde.diffusion, params=sde.params, convention=convention)
        result = expectation(other, 1.0, first, t1=1.0, error=0.02, seed=8)
        assert abs(float(result.value) - math.exp(rate)) < 0.08
        assert abs(float(result.value) - math.exp(0.3)) > 0.16


def test_a_stiff_drift_starts_on_a_stable_grid():
    stiff = ornstein_uhlenbeck(k=300.0, s=20.0, x0=0.5)
    exact = exact_square(stiff)
    result = expectation(stiff.sde, stiff.y0, square, t1=1.0, error=0.02, seed=1)
    assert int(result.steps[0]) >= 150
    assert abs(float(result.value) - exact) < 0.08
    with pytest.raises(InvalidInput, match="too large for the drift"):
        expectation(stiff.sde, stiff.y0, square, t1=1.0, error=0.02, seed=1, first_steps=100)


def test_an_equation_without_noise_costs_almost_nothing():
    quiet = SDE(lambda t, y, p, xp: (-y[0],), lambda t, y, p, xp: (0.0 * y[0],), convention="ito")
    result = expectation(quiet, 1.0, first, t1=1.0, error=1e-3, seed=1, scheme="euler-maruyama")
    assert float(result.stderr) == 0
    assert abs(float(result.value) - math.exp(-1)) < 1e-3
    # the largest of three predictions of the bias is off by a few times 4 dt, dt < 0.003
    assert float(result.dt[-1]) < 0.003
    assert float(result.value + result.bias) == pytest.approx(
        math.exp(-1), abs=0.05 * abs(float(result.bias))
    )


def test_divergence_is_reported():
    cubic = SDE(lambda t, y, p, xp: (-(y[0] ** 3),), lambda t, y, p, xp: (3.0,), convention="ito")
    with pytest.raises(ConvergenceFailure, match=r"are not finite; use a tamed"):
        expectation(cubic, 0.0, square, t1=8.0, error=0.05, seed=1, first_steps=8)
    # without first_steps the trial finds grids on which no trial path diverges
    assert expectation(cubic, 0.0, square, t1=1.0, error=0.1, seed=1).steps[0] > 1


def test_rates_bias_and_samples_of_given_levels():
    levels = np.arange(6)
    means = np.where(levels == 0, 1.0, 0.3 * 0.5**levels)
    exact = ls.fitted_rate(means, 1e-3 * means, 2)
    assert exact.value == pytest.approx(1.0, abs=1e-12)
    # the rest of the geometric series 0.3 (1/64 + 1/128 + ...) = 0.3/32
    bias = ls.remaining_bias(means, np.full(6, 1e-3), 1.0, 2)
    assert bias.value == pytest.approx(0.3 / 32, rel=1e-12)
    # levels that contradict each other: the largest prediction counts
    odd = means.copy()
    odd[-2] = 0.0
    assert ls.remaining_bias(odd, np.full(6, 1e-5), 1.0, 2).value == pytest.approx(0.3 / 32, rel=1e-12)
    assert ls.used_rate(ls.Rate(0.5, 0.1), 1.0) == 0.5
    assert ls.used_rate(ls.Rate(0.9, 0.1), 1.0) == 1.0
    assert ls.used_rate(ls.Rate(math.nan, math.nan), 1.0) == 1.0
    variances, costs = np.array([1.0, 0.25, 0.01]), np.array([1.0, 3.0, 6.0])
    samples = ls.optimal_samples(variances, costs, 1e-6)
    assert float((variances / samples).sum()) == pytest.approx(1e-6, rel=1e-4)
    for change in ([1.05, 0.98, 1.0], [0.98, 1.0, 1.08]):  # other splits of equal variance cost more
        other = samples * change
        other *= (variances / other).sum() / 1e-6
        assert other @ costs > samples @ costs


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"error": 0.0}, "error=0.0 must be positive"),
        ({"error": math.nan}, "error=nan"),
        ({"t1": 0.0}, "t1=0.0 must be later"),
        ({"scheme": "rk4"}, "available"),
        ({"scheme": "weak-platen"}, "do not add up"),
        ({"over": "median"}, "over='median'"),
        ({"levels": 2}, "levels=2"),
        ({"refinement": 1}, "refinement=1"),
        ({"first_steps": 0}, "first_steps=0"),
        ({"threads": 0}, "threads=0"),
        ({"seed": -1}, "seed=-1"),
        ({"max_cost": 1e5, "error": 1e-3}, "more than max_cost=100000"),
        ({"observable": lambda y: y[0]}, r"\(t, y, p, xp\)"),
        ({"observable": lambda t, y, p, xp: (y[0],)}, "one real number"),
    ],
)
def test_bad_arguments_are_refused(settings, words):
    given = {"t1": 1.0, "error": 0.1, "seed": 1, "observable": square, **settings}
    observable = given.pop("observable")
    with pytest.raises(InvalidInput, match=words):
        expectation(OU.sde, OU.y0, observable, **given)


def test_a_bias_that_does_not_fall_in_time_is_reported():
    with pytest.raises(ConvergenceFailure, match="raise levels=3 or error"):
        expectation(OU.sde, OU.y0, square, t1=1.0, error=1e-3, seed=1, levels=3)


def test_progress_rises_to_one():
    seen = []
    expectation(OU.sde, OU.y0, square, t1=1.0, error=2e-3, seed=1, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
