"""Exit times against closed forms, the gain of the Brownian bridge, and which conditions are levels."""

import numpy as np
import pytest
from scipy import integrate

from solvers.ensemble import simulate
from solvers.errors import InvalidInput
from solvers.exit_times import level_attributes, region_rule, stop_rule
from solvers.sde import SDE

LIMIT = 4.5  # z-scores: a false alarm in 150 000; seeds are fixed
BROWNIAN = SDE(lambda t, y, p, xp: (0.0 * y[0],), lambda t, y, p, xp: (1.0,), convention="ito")
DRIFTING = SDE(lambda t, y, p, xp: (p.mu,), lambda t, y, p, xp: (1.0,), params={"mu": 1.0}, convention="ito")
PLANAR = SDE(
    lambda t, y, p, xp: (0.0 * y[0], 0.0 * y[1]),
    lambda t, y, p, xp: (2.0**0.5, 2.0**0.5),
    names=("x", "z"),
    convention="ito",
)


def _score(result, truth):
    times = result["exit_time"].values
    assert result["exited"].all()
    return (times.mean() - truth) / (times.std() / np.sqrt(times.size))


def test_mean_exit_time_from_an_interval():
    """Brownian motion from 0 leaves (-1, 1) after 1 on average, with variance 2/3; dt = 0.04 is enough."""
    result = simulate(
        BROWNIAN, 0.0, t1=12.0, dt=0.04, paths=20_000, seed=3, save_at=[12.0],
        stop=lambda t, y, p, xp: xp.abs(y[0]) > 1.0,
    )  # fmt: skip
    assert abs(_score(result, 1.0)) < LIMIT
    assert result["exit_time"].values.var() == pytest.approx(2 / 3, abs=0.05)
    np.testing.assert_array_equal(np.abs(result["final"]), 1.0)


def test_without_the_bridge_exits_come_late():
    """The same region, written so that it is no level: as if each barrier were 0.5826 sqrt(dt) farther out.

    (Broadie, Glasserman, Kou 1997.)
    """
    result = simulate(
        BROWNIAN, 0.0, t1=14.0, dt=0.04, paths=20_000, seed=3, save_at=[14.0],
        stop=lambda t, y, p, xp: y[0] * y[0] > 1.0,
    )  # fmt: skip
    assert _score(result, 1.0) > 30
    assert abs(_score(result, (1 + 0.5826 * np.sqrt(0.04)) ** 2)) < LIMIT


def test_first_passage_time_distribution_with_drift():
    """Level 1 from 0 with drift 1 is exact for the bridge: inverse Gaussian(1, 1), Kolmogorov-Smirnov."""
    from scipy import stats

    result = simulate(
        DRIFTING,
        0.0,
        t1=40.0,
        dt=0.5,
        paths=50_000,
        seed=3,
        save_at=[40.0],
        stop=lambda t, y, p, xp: y[0] > 1.0,
    )
    times = result["exit_time"].values
    assert stats.kstest(times, stats.invgauss(1.0).cdf).pvalue > 1e-4
    # Negative control: the two laws differ by 0.016, 3.6 / sqrt(paths), where 2.2 / sqrt(paths) is the limit.
    assert stats.kstest(times, stats.invgauss(1.05).cdf).pvalue < 1e-4


def test_mean_exit_time_from_a_square(reference):
    result = simulate(
        PLANAR, [0.5, 0.5], t1=1.5, dt=0.002, paths=20_000, seed=5, save_at=[1.5],
        stop=lambda t, y, p, xp: (y[0] > 1.0) | (y[0] < 0.0) | (y[1] > 1.0) | (y[1] < 0.0),
    )  # fmt: skip
    assert abs(_score(result, reference["mfpt_square"]["value"])) < LIMIT


def test_mean_first_passage_over_a_barrier(reference):
    """Double well, D = 0.1, from -1 to 0: weak order 1; the bias at dt = 0.02 is allowed 1 %."""
    well = SDE(lambda t, y, p, xp: (y[0] - y[0] ** 3,), lambda t, y, p, xp: (0.2**0.5,), convention="ito")
    truth, paths = reference["mfpt_dw_D0.1"]["value"][0], 4000
    result = simulate(
        well,
        -1.0,
        t1=400.0,
        dt=0.02,
        paths=paths,
        seed=6,
        save_at=[400.0],
        stop=lambda t, y, p, xp: y[0] > 0.0,
    )
    times = result["exit_time"].values
    assert result["exited"].all()
    assert abs(times.mean() / truth - 1) < LIMIT * times.std() / truth / np.sqrt(paths) + 0.01


def exact_mean_exit_time(drift, variance, start):
    """Of a diffusion leaving (-1, 1), by scale function and speed measure (Karlin and Taylor 1981, 15.3)."""
    x = np.linspace(-1.0, 1.0, 4001)

    def integral(f):
        return integrate.cumulative_simpson(f, x=x, initial=0.0)

    exponent = integral(2 * drift(x) / variance(x))
    scale, speed = integral(np.exp(-exponent)), 2 * np.exp(exponent) / variance(x)
    left, right = integral(scale * speed), integral((scale[-1] - scale) * speed)
    chance = np.interp(start, x, scale) / scale[-1]
    return (1 - chance) * np.interp(start, x, left) + chance * (right[-1] - np.interp(start, x, right))


MEAN_REVERTING = SDE(
    lambda t, y, p, xp: (-p.k * y[0],),
    lambda t, y, p, xp: (xp.sqrt(1.0 + p.c * y[0] ** 2),),
    params={"k": 1.0, "c": 0.0},
    convention="ito",
)


@pytest.mark.slow
@pytest.mark.parametrize(("k", "c"), [(1.0, 0.0), (2.0, 0.5)], ids=["additive", "state-dependent"])
def test_the_bridge_restores_order_one(k, c):
    """Error of the mean exit time against dt: order 1 with the bridge, 1/2 without (Gobet 2000).

    Fitted: log|error| = log C + q log dt + c dt, each error weighted by its sampling error or by 1 %, for
    terms the fit leaves out. The interval is 3.3 standard errors plus 0.01: a false alarm in 1000.
    """
    sde, start, end = MEAN_REVERTING.replace(k=k, c=c), 0.3, 40.0
    truth = exact_mean_exit_time(lambda x: -k * x, lambda x: 1 + c * x**2, start)
    steps = np.array([0.2, 0.1, 0.05, 0.025])
    conditions = {
        1.0: lambda t, y, p, xp: xp.abs(y[0]) > 1.0,  # two levels
        0.5: lambda t, y, p, xp: y[0] ** 2 > 1.0,  # the same region, but no levels
    }
    orders = {}
    for stated, stop in conditions.items():
        errors, weights = [], []
        for dt in steps:
            run = simulate(sde, start, t1=end, dt=dt, paths=800_000, seed=4, save_at=[end], stop=stop)
            times = run["exit_time"].fillna(end).values  # e^-12 of the paths, or fewer, are still inside
            errors.append(abs(times.mean() / truth - 1))
            weights.append(1 / max(times.std() / truth / times.size**0.5 / errors[-1], 0.01))
        columns = np.stack([np.ones(4), np.log(steps), steps], axis=1) * np.array(weights)[:, None]
        fit = np.linalg.lstsq(columns, np.log(errors) * weights)[0]
        reach = 3.3 * np.sqrt(np.linalg.inv(columns.T @ columns)[1, 1]) + 0.01
        orders[stated] = fit[1], reach
        assert abs(fit[1] - stated) < reach, orders
        assert abs(fit[1] - (1.5 - stated)) > reach  # negative control: the other order
        assert reach < 0.25


def test_exited_paths_stay_where_they_left():
    result = simulate(
        BROWNIAN, 0.0, t1=2.0, dt=0.1, paths=300, seed=1, save_paths=True, stop=lambda t, y, p, xp: y[0] > 0.5
    )
    state, times = result["state"].values[..., 0], result["exit_time"].values
    assert 0 < result["exited"].sum() < 300
    np.testing.assert_array_equal(result["exited"], ~np.isnan(times))
    for path in np.flatnonzero(result["exited"].values):
        after = result["time"].values >= times[path] - 1e-12
        np.testing.assert_array_equal(state[path, after], 0.5)
        assert (state[path, ~after] < 0.5).all()
    assert (state[~result["exited"].values] < 0.5).all()


def test_a_start_beyond_the_level_exits_at_once():
    starts = np.array([[0.0], [2.0], [1.0]])
    result = simulate(
        BROWNIAN, starts, t1=0.01, dt=0.01, paths=3, seed=1, t0=0.0, stop=lambda t, y, p, xp: y[0] > 1.0
    )
    np.testing.assert_array_equal(result["exit_time"], [np.nan, 0.0, 0.0])
    np.testing.assert_array_equal(result["final"][1:, 0], [2.0, 1.0])


def test_noiseless_crossings_are_interpolated():
    still = SDE(lambda t, y, p, xp: (1.0,), lambda t, y, p, xp: (0.0,), convention="ito")
    result = simulate(still, 0.0, t1=1.0, dt=0.5, paths=2, seed=1, stop=lambda t, y, p, xp: y[0] > 0.6)
    np.testing.assert_allclose(result["exit_time"], 0.6, rtol=1e-14)


INF = np.inf
LEVELS = [
    (lambda t, y, p, xp: y[0] > 1, [(0, -INF, 1)]),
    (lambda t, y, p, xp: 2 * y[0] + 1 <= p.a, [(0, 0.25, INF)]),
    (lambda t, y, p, xp: p.a < -y[1], [(1, -1.5, INF)]),
    (lambda t, y, p, xp: abs(y[1] - 1) > p.a, [(1, -0.5, 2.5)]),
    (lambda t, y, p, xp: xp.abs(2 * y[0]) < 1, [(0, -INF, -0.5), (0, 0.5, INF)]),
    (lambda t, y, p, xp: (y[0] > 1) | (y[0] < -2), [(0, -2, 1)]),
    (lambda t, y, p, xp: xp.logical_and(y[0] > 1, y[0] < 2), [(0, -INF, 1), (0, 2, INF)]),
    (lambda t, y, p, xp: xp.logical_or(y[0] > 1, y[1] < 0), [(0, -INF, 1), (1, 0, INF)]),
    (lambda t, y, p, xp: y[0] > t, []),
    (lambda t, y, p, xp: y[0] > y[1], []),
    (lambda t, y, p, xp: (y[0] > 1) & (y[1] > 1), []),
    (lambda t, y, p, xp: y[0] ** 2 + y[1] ** 2 > 1, []),
]


@pytest.mark.parametrize(("stop", "gaps"), LEVELS)
def test_levels_are_found(stop, gaps):
    sde = SDE(
        lambda t, y, p, xp: (0.0 * y[0], 0.0 * y[1]),
        lambda t, y, p, xp: (1.0, 1.0),
        params={"a": 1.5},
        names=("x", "z"),
        convention="ito",
    )
    rule = stop_rule(stop, sde)
    assert [(int(c), *map(float, g)) for c, g in zip(rule.components, rule.gaps, strict=True)] == gaps


def test_levels_are_listed_by_component():
    rule = stop_rule(lambda t, y, p, xp: (y[1] > 2.0) | (xp.abs(y[0]) > 1.0), PLANAR)
    found = level_attributes(rule, PLANAR.names)
    np.testing.assert_array_equal(found["levels"], [-1.0, 1.0, 2.0])
    assert found["level_components"] == "x, x, z"
    assert level_attributes(stop_rule(lambda t, y, p, xp: y[0] > y[1], PLANAR), PLANAR.names) == {}


def test_a_region_tests_membership_where_a_stop_leaves_it_to_the_gaps():
    def beyond(t, y, p, xp):
        return y[0] > 1.0

    stop, region = stop_rule(beyond, BROWNIAN), region_rule(beyond, BROWNIAN, "target")
    np.testing.assert_array_equal(stop.gaps, region.gaps)
    assert not stop.condition(0.0, (2.0,), BROWNIAN.params)
    assert region.condition(0.0, (2.0,), BROWNIAN.params)
    assert not region.condition(0.0, (0.0,), BROWNIAN.params)
    with pytest.raises(InvalidInput, match="target returns float64"):
        region_rule(lambda t, y, p, xp: y[0], BROWNIAN, "target")


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        (lambda t, y, p, xp: (y[0] > 1, y[0] < 0), "tuple"),
        (lambda t, y, p, xp: True, "always"),
        (lambda t, y, p, xp: y[0] > 1 or y[0] < 0, "stop"),
        (1.0, "stop"),
    ],
)
def test_bad_conditions_are_refused(stop, message):
    with pytest.raises(InvalidInput, match=message):
        simulate(BROWNIAN, 0.0, t1=1.0, dt=0.1, paths=2, seed=0, stop=stop)


@pytest.mark.parametrize(
    ("stop", "words"),
    [
        (lambda t, y, p, xp: y[0], "stop returns float64 and no condition"),
        (lambda t, y, p, xp: 1.0, "stop returns float64 and no condition"),
        (lambda t, y, p, xp: 2.0 * (y[0] > 1.0), "stop returns float64 and no condition"),
        (lambda t, y, p, xp: y[0] > 1.0 or y[0] < -1.0, r"join conditions with \| and &"),
        (lambda t, y, p, xp: True if y[0] > 1.0 else False, r"join conditions with \| and &"),  # noqa: SIM210
        (lambda y: y[0] > 1.0, r"write it as stop\(t, y, p, xp\)"),
        (lambda t, y, p: y[0] > 1.0, r"write it as stop\(t, y, p, xp\)"),
        (lambda t, y, p, xp: y[1] > 1.0, "stop failed on arrays: tuple index"),
        (lambda t, y, p, xp: (y[0] > 1.0,), "got a tuple"),
    ],
)
def test_a_stop_that_is_no_condition_is_refused(stop, words):
    with pytest.raises(InvalidInput, match=words):
        simulate(BROWNIAN, 0.0, t1=0.2, dt=0.1, paths=3, seed=0, stop=stop)
