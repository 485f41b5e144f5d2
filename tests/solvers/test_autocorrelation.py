"""Autocorrelation in time: against stored paths, the exact recursion of Euler-Maruyama, and Isserlis' theorem.

z-scores are compared with 4.5: a false alarm in 150 000 per number over all seeds; the seeds are fixed.
"""

import numpy as np
import pytest

from solvers import SDE, InvalidInput, simulate
from tests import problems

LIMIT = 4.5


def _autocovariance_of(samples, lag):
    """By the formulas, from stored samples (paths, times): value and standard error."""
    n = samples.shape[1] - lag
    a = (samples[:, :n] * samples[:, lag:]).mean(axis=1)
    h, t = samples[:, :n].mean(axis=1), samples[:, lag:].mean(axis=1)
    value = a.mean() - h.mean() * t.mean() + np.cov(h, t)[0, 1] / len(h)
    return value, a - t.mean() * h - h.mean() * t


@pytest.mark.slow
def test_autocorrelation_is_that_of_the_paths():
    """Samples every 0.02 from 0.1 on, 1003 = 512 + 491 paths of two components."""
    result = simulate(
        problems.correlated_linear().sde,
        [0.3, 0.1],
        t1=0.3,
        dt=0.01,
        paths=1003,
        seed=9,
        save_paths=True,
        autocorrelation={"lags": [0.02, 0.04, 0.1], "start": 0.1},
    )
    for c in range(2):
        samples = result["state"].values[:, 10::2, c]
        zero, influence_of_zero = _autocovariance_of(samples, 0)
        for k, lag in enumerate((1, 2, 5)):
            value, influence = _autocovariance_of(samples, lag)
            ratio = value / zero
            relative = (influence - ratio * influence_of_zero) / zero
            expected = {
                "autocovariance": value,
                "autocovariance_stderr": influence.std(ddof=1) / np.sqrt(1003),
                "autocorrelation": ratio,
                "autocorrelation_stderr": relative.std(ddof=1) / np.sqrt(1003),
            }
            for name, number in expected.items():
                assert float(result[name][k, c]) == pytest.approx(number, rel=1e-9)
    np.testing.assert_allclose(result["lag"], [0.02, 0.04, 0.1])
    assert result["lag"].attrs["units"] == "time"
    told = result["autocovariance"].attrs
    assert "unbiased" in told["long_name"]
    times = [told[name] for name in ("window_start", "window_end", "sampled_every")]
    np.testing.assert_allclose(times, [0.1, 0.3, 0.02])


@pytest.mark.slow
def test_a_continued_run_begins_its_window_anew():
    """The window of the second run is that of the second half of the paths, its first sample included."""
    lags = [0.0, 0.05]
    settings = {"dt": 0.01, "paths": 600, "seed": 2}
    sde = problems.ornstein_uhlenbeck().sde
    first = simulate(sde, 0.0, t1=0.2, **settings)
    second = simulate(sde, first, t1=0.4, autocorrelation=lags, **settings)
    whole = simulate(sde, 0.0, t1=0.4, autocorrelation={"lags": lags, "start": 0.2}, **settings)
    np.testing.assert_array_equal(second["autocovariance"], whole["autocovariance"])


K, S, DT = 1.5, 0.9, 0.05
STATIONARY = S**2 * DT / (1 - (1 - K * DT) ** 2)
"""Variance of the stationary Euler-Maruyama recursion."""


def _stationary(shift=0.0, paths=4000):
    starts = shift + np.sqrt(STATIONARY) * np.random.default_rng(0).normal(size=(paths, 1))
    sde = SDE(
        lambda t, y, p, xp: (-p.k * (y[0] - p.m),),
        lambda t, y, p, xp: (p.s,),
        params={"k": K, "s": S, "m": shift},
        convention="ito",
    )
    lags = np.array([0, 1, 4, 20]) * DT
    return simulate(
        sde, starts, t1=4.0, dt=DT, paths=paths, seed=6, autocorrelation=lags, save_at=[4.0], statistics=()
    )


@pytest.mark.slow
def test_autocorrelation_of_the_ornstein_uhlenbeck_process():
    """Euler-Maruyama is the recursion x' = (1 - k dt) x + noise: autocorrelation (1 - k dt)^n, exactly.

    That is exp(-k lag) within n (k dt)^2/2 relative: log(1 - z) + z lies between -z^2/2 (1 + z) and 0.
    """
    result = _stationary()
    n = np.array([0, 1, 4, 20])
    exact = (1 - K * DT) ** n
    scores = (result["autocovariance"][:, 0] - STATIONARY * exact) / result["autocovariance_stderr"][:, 0]
    assert np.abs(scores).max() < LIMIT
    assert result["autocorrelation"][0, 0] == 1.0
    stderr = result["autocorrelation_stderr"].values[1:, 0]
    assert np.abs((result["autocorrelation"][1:, 0] - exact[1:]) / stderr).max() < LIMIT
    truncation = n[1:] * (K * DT) ** 2 * (1 + K * DT) / 2 * np.exp(-K * n[1:] * DT)
    gaps = np.abs(result["autocorrelation"][1:, 0] - np.exp(-K * n[1:] * DT))
    assert (gaps < truncation + LIMIT * stderr).all()
    wrong = (1 - 1.1 * K * DT) ** n[1:]  # negative control: a rate 10 % too large, some 9 standard errors
    assert np.abs((result["autocorrelation"][1:, 0] - wrong) / stderr).max() > LIMIT


def test_the_error_of_the_autocovariance_is_that_of_theory():
    """For a Gaussian process the variance of one path's mean product is known (Isserlis 1918).

    It is the sum over s, s' of C(s - s')^2 + C(s - s' + n) C(s - s' - n), over the square of the number of
    pairs. A standard error from 4000 paths is off by sqrt((kurtosis + 2)/4000)/2 with the excess kurtosis of the
    mean product, below that of a single square of a normal, 12: 3 %.
    """
    result = _stationary()

    def correlation(m):
        return STATIONARY * (1 - K * DT) ** np.abs(m)

    for row, n in enumerate((0, 1, 4, 20)):
        s = np.arange(81 - n)
        gap = s[:, None] - s[None, :]
        variance = np.mean(correlation(gap) ** 2 + correlation(gap + n) * correlation(gap - n))
        expected = np.sqrt(variance / 4000)
        assert float(result["autocovariance_stderr"][row, 0]) == pytest.approx(expected, rel=LIMIT * 0.03)


def test_autocorrelation_survives_a_large_mean():
    """Mean 1e6, spread s = 0.5: each rounding moves the state by at most 2^-34 = 6e-11.

    Damped at 0.925 per step they add up to 8e-10, 1.6e-9 s: products and their standard errors, at most
    fourth powers of the state, by four times that and a factor 10 for E|z|^3; the factor 4/s^2 covers the
    absolute scale.
    """
    near, far = _stationary(paths=600), _stationary(shift=1e6, paths=600)
    for name in ("autocovariance", "autocorrelation", "autocovariance_stderr", "autocorrelation_stderr"):
        np.testing.assert_allclose(far[name], near[name], rtol=4 * 10 * 1.6e-9, atol=4 * 1.6e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"autocorrelation": [-0.1]}, "increasing times, 0 or greater"),
        ({"autocorrelation": [0.15]}, "no multiple of dt"),
        ({"autocorrelation": [2.0]}, "in a window of length 1"),
        ({"autocorrelation": {"lag": [0.1]}}, r"keys \['lag'\]; give 'lags'"),
        ({"autocorrelation": {"lags": [0.2, 0.3], "every": 0.2}}, "a step of which all lags are multiples"),
        ({"autocorrelation": {"lags": [0.1], "start": 2.0}}, "starts at 2.0, outside the run"),
        ({"autocorrelation": [0.1], "paths": 1}, "at least 2 paths"),
    ],
)
def test_bad_windows_are_refused_before_work(changes, message, monkeypatch):
    monkeypatch.setattr("solvers.running.run_blocks", None)
    arguments = {"t1": 1.0, "dt": 0.1, "paths": 5, "seed": 0} | changes
    with pytest.raises(InvalidInput, match=message):
        simulate(problems.ornstein_uhlenbeck().sde, 1.0, **arguments)
