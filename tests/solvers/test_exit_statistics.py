"""Survival, rates, mean times and places of exits against closed forms, with and without censoring."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from solvers import SDE, AccuracyWarning, InvalidInput, simulate
from solvers.exit_statistics import exit_summary, survival
from solvers.exit_times import level_attributes, stop_rule

LIMIT = 4.5  # z-scores: a false alarm in 150 000; seeds are fixed
BROWNIAN = SDE(
    lambda t, y, p, xp: (p.mu + 0.0 * y[0],), lambda t, y, p, xp: (1.0,), params={"mu": 0.0}, convention="ito"
)


def interval(t, y, p, xp):
    return xp.abs(y[0]) > 1.0


def leave(t1, paths=20_000, seed=3, mu=0.0, dt=0.02, y0=0.0):
    """Brownian motion leaves (-1, 1): the bridge leaves no error but of two crossings in a step, e^-50."""
    sde = BROWNIAN.replace(mu=mu)
    result = simulate(sde, y0, t1=t1, dt=dt, paths=paths, seed=seed, save_at=[t1], stop=interval)
    result["exit_time"].attrs.update(level_attributes(stop_rule(interval, sde), sde.names))
    return result


@pytest.fixture(scope="module")
def censored():
    return leave(1.0)


def handmade(times, end=4.0, **variables):
    """A result with these exit times, nan where censored."""
    times = np.array(times, dtype=float)
    return xr.Dataset(
        {
            "exit_time": ("path", times, {"found": "by hand"}),
            "final": (("path", "component"), np.zeros((times.size, 1))),
            **{name: ("path", values) for name, values in variables.items()},
        },
        coords={"component": ["x"]},
        attrs={"t0": 0.0, "dt": 0.5, "steps": round(end / 0.5)},
    )


def exact_survival(t):
    """Carslaw and Jaeger, section 3.4: the interval's sine series."""
    k = np.arange(60)
    odd = 2 * k + 1
    return float((4 / np.pi * (-1.0) ** k / odd * np.exp(-((odd * np.pi) ** 2) * t / 8)).sum())


# ---- survival ----------------------------------------------------------------------------------------------


def test_survival_by_hand():
    """6 paths: exits at 1, 2, 2, 3 and two censored at 4."""
    result = survival(handmade([2, np.nan, 1, 3, 2, np.nan]))
    np.testing.assert_array_equal(result["time"], [0, 1, 2, 3])
    np.testing.assert_allclose(result["survival"], [1, 5 / 6, 1 / 2, 1 / 3])
    np.testing.assert_array_equal(result["at_risk"], [6, 6, 5, 3])
    # without censoring before the end Greenwood's formula is the binomial one
    s = result["survival"].values
    np.testing.assert_allclose(result["stderr"], np.sqrt(s * (1 - s) / 6))
    assert result.attrs["censoring"] == "2 of 6 paths still inside at t=4"


def test_survival_when_all_have_left():
    result = survival(handmade([1, 2, 3]), times=[0.5, 1.0, 2.9, 3.0, 4.0])
    np.testing.assert_allclose(result["survival"], [1, 2 / 3, 1 / 3, 0, 0])
    assert np.isnan(result["stderr"].values[3:]).all()
    assert np.isfinite(result["stderr"].values[:3]).all()
    assert result.attrs["censoring"] == "none"


def test_intervals_agree_with_scipy(censored):
    times = censored["exit_time"].values
    sample = stats.CensoredData.right_censored(np.where(np.isnan(times), 1.0, times), np.isnan(times))
    expected = stats.ecdf(sample).sf.confidence_interval(0.9, method="log-log")
    result = survival(censored, level=0.9)
    inside = slice(1, None)  # after the start, where nobody has left
    count = result.sizes["time"] - 1
    np.testing.assert_allclose(result["low"][inside], expected.low.probabilities[:count], rtol=1e-9)
    np.testing.assert_allclose(result["high"][inside], expected.high.probabilities[:count], rtol=1e-9)


def test_survival_of_brownian_motion(censored):
    at = [0.1, 0.3, 0.6, 1.0]
    result = survival(censored, times=at)
    exact = np.array([exact_survival(t) for t in at])
    assert np.abs((result["survival"] - exact) / result["stderr"]).max() < LIMIT
    later = np.array([exact_survival(t + 0.02) for t in at])  # negative control: late by one step
    assert np.abs((result["survival"] - later) / result["stderr"]).max() > LIMIT


# ---- rate and mean time -----------------------------------------------------------------------------------

RATE = np.pi**2 / 8  # the slowest mode in (-1, 1)


def test_rate_and_mean_time_with_censoring(censored):
    """A third is still inside at t = 1; mean exit time 1, whatever the censoring."""
    result = exit_summary(censored)
    assert 0.3 < float(result.censored / result.paths) < 0.45
    assert abs(float(result.rate) - RATE) < LIMIT * float(result.rate_stderr)
    assert float(result.rate_low) < float(result.rate) < float(result.rate_high)
    assert abs(float(result.mean_time) - 1) < LIMIT * float(result.mean_time_stderr)
    t = np.linspace(0.0, 1.0, 2001)
    restricted = np.trapezoid([1.0, *(exact_survival(v) for v in t[1:])], t)
    assert abs(float(result.restricted_mean) - restricted) < LIMIT * float(result.restricted_mean_stderr)
    assert float(result.restricted_mean) < 0.8  # negative control: what ignoring the censoring would give
    assert "taken to be exponential" in result.attrs["censoring"]


def test_mean_time_without_censoring():
    run = leave(15.0)
    result = exit_summary(run)
    assert int(result.censored) == 0
    assert float(result.mean_time) == float(run["exit_time"].mean())
    np.testing.assert_allclose(
        result.mean_time_stderr, run["exit_time"].std(ddof=1) / 20_000**0.5, rtol=1e-12
    )
    assert result.attrs["censoring"] == "none"


def test_a_tail_that_is_given_is_used():
    """Exits at 1 + a multiple of 1/8, censored at 4: rate = exits over time at risk after 1."""
    times = 1 + np.arange(1, 25) / 8
    result = exit_summary(handmade([*times, np.nan, 0.5]), tail_start=1.0)
    assert float(result.rate) == pytest.approx(24 / ((times - 1).sum() + 3.0))
    assert float(result.rate_stderr) == pytest.approx(24**0.5 / ((times - 1).sum() + 3.0))


def test_intervals_cover():
    """The 95 % intervals of the rate, its tail found from the data, and of the mean, in 120 ensembles of 600.

    A false alarm in 10^4 if the coverage is 92 %, which allows for the search for the tail.
    """
    hits = np.zeros(2)
    for seed in range(120):
        result = exit_summary(leave(2.0, paths=600, seed=seed, dt=0.04))
        hits += [
            float(result.rate_low) < RATE < float(result.rate_high),
            abs(float(result.mean_time) - 1) < 1.96 * float(result.mean_time_stderr),
        ]
    assert (hits >= stats.binom.ppf(1e-4, 120, 0.92)).all()
    assert (hits < 120).all()  # negative control: intervals that always cover are too wide; 0.95^120 = 0.002


def test_a_rate_that_is_not_constant_is_named():
    """Weibull exits of shape 3 have a hazard that grows as t^2."""
    times = stats.weibull_min(3).rvs(3000, random_state=1)
    with pytest.warns(AccuracyWarning, match="is not constant"):
        exit_summary(handmade(times), tail_start=0.1)


def test_few_exits_have_no_rate():
    result = exit_summary(handmade([1.0, 2.0, np.nan]))
    assert np.isnan(result.rate)
    assert np.isnan(result.mean_time)
    assert float(result.restricted_mean) == pytest.approx(7 / 3)


# ---- place -------------------------------------------------------------------------------------------------


def test_sides_of_an_interval():
    """With drift 1, from 0: P(right) = 1/(1 + e^-2) (scale function); paths stay on the level exactly."""
    run = leave(8.0, mu=1.0)
    result = exit_summary(run)
    right = 1 / (1 + np.exp(-2.0))
    assert list(result["side_level"].values) == [-1.0, 1.0]
    assert list(result["side_component"].values) == ["x", "x"]
    assert float(result["fraction"].sum()) == 1.0
    found, error = float(result["fraction"][1]), float(result["fraction_stderr"][1])
    assert abs(found - right) < LIMIT * error
    assert abs(found - 0.5) > LIMIT * error  # negative control: no drift
    assert float(result["place_mean"][0]) == pytest.approx(2 * found - 1)
    assert (np.abs(run["final"].values[run["exited"].values]) == 1.0).all()


@pytest.mark.slow
def test_places_on_a_square():
    """From the centre each side takes a quarter, and on a side the place has the mean of the centre."""
    sde = SDE(
        lambda t, y, p, xp: (0.0 * y[0], 0.0 * y[1]),
        lambda t, y, p, xp: (1.0, 1.0),
        names=("x", "z"),
        convention="ito",
    )

    def stop(t, y, p, xp):
        return (xp.abs(y[0]) > 1.0) | (xp.abs(y[1]) > 1.0)

    run = simulate(sde, [0.0, 0.0], t1=6.0, dt=0.01, paths=8000, seed=2, save_at=[6.0], stop=stop)
    run["exit_time"].attrs.update(level_attributes(stop_rule(stop, sde), sde.names))
    result = exit_summary(run)
    assert list(result["side_component"].values) == ["x", "x", "z", "z"]
    assert np.abs((result["fraction"] - 0.25) / result["fraction_stderr"]).max() < LIMIT
    assert np.abs(result["place_mean"] / result["place_stderr"]).max() < LIMIT
    np.testing.assert_allclose(result["fraction"].sum(), 1.0)


def test_exits_at_the_start_have_no_side():
    result = leave(1.0, paths=3, y0=np.array([[1.5], [-2.0], [0.0]]))
    summary = exit_summary(result)
    assert int(summary.exits) >= 2
    assert float(summary["fraction"].sum()) <= 1 / 3


# ---- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: survival("run"), "result is a str"),
        (lambda: survival(xr.Dataset()), "result has no exit_time; call simulate with stop="),
        (lambda: survival(handmade([1.0]).drop_attrs()), "lacks the attribute 't0'"),
        (lambda: survival(handmade([1.0]), times=[5.0]), "within the run, from 0 to 4"),
        (lambda: survival(handmade([1.0]), level=95), "level=95 must lie between 0 and 1"),
        (lambda: exit_summary(handmade([1.0]), tail_start=4.0), "tail_start=4.0 is outside the run"),
        (lambda: exit_summary(handmade([np.nan, np.nan])), "none of the 2 paths exited by t=4"),
        (lambda: survival(handmade([np.nan], diverged=[True])), "every path diverged"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(InvalidInput, match=words):
        call()


def test_diverged_paths_are_left_out_and_named():
    run = handmade([1.0, np.nan, np.nan], diverged=[False, True, False])
    with pytest.warns(AccuracyWarning, match="1 of 3 paths diverged before they exited"):
        result = survival(run, times=[1.0])
    assert float(result["survival"][0]) == 0.5


def test_every_variable_is_described(censored):
    for result in (survival(censored), exit_summary(censored)):
        for variable in result.variables.values():
            assert variable.attrs["long_name"]
        for variable in result.data_vars.values():
            assert variable.attrs["units"] in {"1", "time", "1/time"}
        assert result.attrs["seed"] == 3
