"""Streaming statistics: against stored paths, closed forms, and themselves on other chunks and threads.

z-scores are compared with 4.5: a false alarm in 150 000 per number over all seeds; the seeds are fixed.
"""

import numpy as np
import pytest
from scipy import special, stats

from solvers import SDE, AccuracyWarning, InvalidInput, simulate
from solvers.vector_form import VectorSDE
from tests import problems

OU = problems.ornstein_uhlenbeck()
LINEAR = problems.correlated_linear()
BROWNIAN = SDE(lambda t, y, p, xp: (0.0 * y[0],), lambda t, y, p, xp: (1.0,), convention="ito")
LIMIT = 4.5
LEVELS = (0.0, 0.05, 0.5, 0.95, 1.0)
EVERYTHING = {
    "statistics": (
        "mean", "mean_stderr", "skewness", "kurtosis", "maximum", "minimum", "step_maximum", "step_minimum",
    ),
    "quantiles": LEVELS,
    "autocorrelation": {"lags": [0.02, 0.04, 0.1], "start": 0.1},
}  # fmt: skip


@pytest.fixture(scope="module")
def everything():
    """Two components, a partial last block (2003 = 1024 + 979), every statistic and the paths."""
    return _everything(threads=1)


def _everything(**settings):
    arguments = {"t1": 0.3, "dt": 0.01, "paths": 2003, "seed": 2**63 + 9, "save_every": 3, **EVERYTHING}
    return simulate(LINEAR.sde, [0.3, 0.1], **(arguments | settings))


@pytest.fixture(scope="module")
def stored():
    """All steps of the same paths."""
    return _everything(statistics=(), quantiles=None, autocorrelation=None, save_paths=True, save_every=1)[
        "state"
    ].values


@pytest.mark.slow
def test_bits_do_not_depend_on_threads_or_chunks(everything):
    for threads, chunk in ((1, 1024), (2, 1024), (2, 2048), (2, None)):
        assert _everything(threads=threads, chunk=chunk).identical(everything)


def test_bits_do_not_depend_on_the_length_of_a_call(everything, monkeypatch):
    from solvers import running

    monkeypatch.setattr(running, "_WORK", 8192)  # four steps per call
    assert _everything().identical(everything)


def test_shapes_are_those_of_the_paths(everything, stored):
    saved = stored[:, ::3]
    deviation = saved - saved.mean(axis=0)
    second = (deviation**2).mean(axis=0)[1:]
    np.testing.assert_allclose(
        everything["skewness"][1:], (deviation**3).mean(axis=0)[1:] / second**1.5, atol=1e-12
    )
    np.testing.assert_allclose(
        everything["kurtosis"][1:], (deviation**4).mean(axis=0)[1:] / second**2 - 3, atol=1e-12
    )
    assert np.isnan(everything["skewness"][0]).all()  # all paths start at one point
    np.testing.assert_allclose(
        everything["mean_stderr"], saved.std(axis=0, ddof=1) / np.sqrt(2003), atol=1e-15
    )


def _brownian_and_square(start):
    """X is a Brownian motion from `start`, and dZ = (X - start)/2 dW: Z = Z(0) + (W^2 - t)/4 for small steps."""
    return SDE(
        lambda t, y, p, xp: (0.0 * y[0], 0.0 * y[0]),
        lambda t, y, p, xp: (1.0, 0.5 * (y[0] - start)),
        names=("x", "z"),
        convention="ito",
    )


def test_shapes_survive_a_large_mean():
    """Mean 1e8, spread about 1: sums of fourth powers would need 32 decimal digits.

    Each of 8 steps rounds the state to multiples of 2^-26, by at most 2^-27: paths move by up to 8 * 2^-27 =
    6e-8. A standardised moment of order m <= 4 changes by m E|z|^(m-1) times that over the spread of 0.35 (of
    the square): E|z|^3 < 10 for a kurtosis below 10, so by less than 4 * 10 * 6e-8/0.35 = 7e-6.
    """
    near, far = (
        simulate(
            _brownian_and_square(c),
            [c, c],
            t1=1.0,
            dt=0.125,
            paths=1000,
            seed=5,
            save_at=[1.0],
            statistics=["skewness", "kurtosis"],
        )
        for c in (0.0, 1e8)
    )
    assert abs(near["kurtosis"][0, 1]) > 0.5
    for name in ("skewness", "kurtosis"):
        np.testing.assert_allclose(far[name], near[name], atol=7e-6)


def test_shapes_of_a_known_law():
    """Brownian motion is normal: 0 and 0, with standard errors sqrt(6/N) and sqrt(24/N).

    Negative control: its square (the other component) is not.
    """
    paths = 40_000
    result = simulate(
        _brownian_and_square(0.0),
        [0.0, 0.0],
        t1=1.0,
        dt=0.1,
        paths=paths,
        seed=8,
        save_at=[1.0],
        statistics=["skewness", "kurtosis"],
    )
    scores = np.array(
        [
            result["skewness"][0] / np.sqrt(6 / paths),
            result["kurtosis"][0] / np.sqrt(24 / paths),
        ]
    )
    assert np.abs(scores[:, 0]).max() < LIMIT
    assert scores[1, 1] > LIMIT


def test_extremes_over_the_steps_are_those_of_the_paths(everything, stored):
    np.testing.assert_array_equal(everything["step_maximum"], stored.max(axis=1))
    np.testing.assert_array_equal(everything["step_minimum"], stored.min(axis=1))
    running = np.maximum.accumulate(stored, axis=1)[:, ::3]
    np.testing.assert_allclose(everything["mean_step_maximum"], running.mean(axis=0), rtol=1e-12)
    stderr = running.std(axis=0, ddof=1) / np.sqrt(2003)
    np.testing.assert_allclose(everything["mean_step_maximum_stderr"], stderr, rtol=1e-9, atol=1e-15)
    assert (everything["maximum"] >= everything["step_maximum"]).all()
    assert (everything["minimum"] <= everything["step_minimum"]).all()
    np.testing.assert_allclose(everything["maximum"].mean("path"), everything["mean_maximum"][-1], rtol=1e-12)


def _brownian_extremes(dt, paths=20_000):
    return simulate(
        BROWNIAN,
        0.0,
        t1=1.0,
        dt=dt,
        paths=paths,
        seed=4,
        save_at=[1.0],
        statistics=["maximum", "minimum", "step_maximum"],
    )


@pytest.mark.slow
def test_the_maximum_of_brownian_motion_obeys_the_reflection_principle():
    """The maximum of W on [0, 1] is distributed as |W(1)|, exactly, however long the steps; so is -min W.

    Kolmogorov-Smirnov with false-alarm rate 1e-5 each. Negative control: the maximum over the steps fails.
    """
    result = _brownian_extremes(0.125)
    for values, passes in (
        (result["maximum"], True),
        (-result["minimum"], True),
        (result["step_maximum"], False),
    ):
        assert (stats.kstest(values.values[:, 0], stats.halfnorm.cdf).pvalue > 1e-5) == passes


def test_the_maximum_over_steps_has_the_stated_bias():
    """Spitzer 1956: E max(0, S_1, ..., S_n) = sum of E S_k^+ / k = sqrt(dt) sum of 1/sqrt(2 pi k).

    That the sum is sqrt(2/pi) + zeta(1/2) sqrt(dt/(2 pi)) + O(dt), -zeta(1/2)/sqrt(2 pi) = 0.5826, is checked too.
    """
    dt = 0.01
    k = np.arange(1, 101)
    exact = np.sqrt(dt) * np.sum(1 / np.sqrt(2 * np.pi * k))
    assert -special.zeta(0.5) / np.sqrt(2 * np.pi) == pytest.approx(0.5826, abs=5e-5)
    assert exact == pytest.approx(np.sqrt(2 / np.pi) - 0.5826 * np.sqrt(dt), abs=dt)
    result = _brownian_extremes(dt)
    stderr = float(result["mean_step_maximum_stderr"][-1, 0])
    assert stderr == pytest.approx(np.sqrt((1 - 2 / np.pi) / 20_000), rel=0.1)
    assert abs(float(result["mean_step_maximum"][-1, 0]) - exact) < LIMIT * stderr
    assert abs(float(result["mean_maximum"][-1, 0]) - np.sqrt(2 / np.pi)) < LIMIT * stderr
    assert abs(float(result["mean_step_maximum"][-1, 0]) - np.sqrt(2 / np.pi)) > LIMIT * stderr


@pytest.mark.slow
def test_the_bridge_takes_each_component_s_own_noise():
    """Two independent Brownian motions, one four times as strong, by a matrix of noise with three columns."""
    sde = SDE(
        lambda t, y, p, xp: (0.0 * y[0], 0.0 * y[1]),
        lambda t, y, p, xp: ((0.6, 0.8, 0.0), (0.0, 0.0, 4.0)),
        names=("x", "z"),
        convention="ito",
        noise="general",
    )
    result = simulate(
        sde, [0.0, 5.0], t1=1.0, dt=0.25, paths=10_000, seed=3, statistics="maximum", save_at=[1.0]
    )
    x, z = result["maximum"].values.T
    assert stats.kstest(x, stats.halfnorm.cdf).pvalue > 1e-5
    assert stats.kstest((z - 5.0) / 4.0, stats.halfnorm.cdf).pvalue > 1e-5
    # negative control: 10 % off is a distance of 0.05, five times what 1e4 numbers scatter by
    assert stats.kstest((z - 5.0) / 3.6, stats.halfnorm.cdf).pvalue < 1e-5


def test_a_continued_run_has_the_extremes_of_both():
    whole = simulate(OU.sde, 0.0, t1=0.4, dt=0.02, paths=600, seed=1, statistics=["maximum", "step_minimum"])
    first = simulate(OU.sde, 0.0, t1=0.2, dt=0.02, paths=600, seed=1, statistics=["maximum", "step_minimum"])
    second = simulate(
        OU.sde, first, t1=0.4, dt=0.02, paths=600, seed=1, statistics=["maximum", "step_minimum"]
    )
    joined = np.maximum(first["maximum"], second["maximum"])
    np.testing.assert_array_equal(joined, whole["maximum"])
    np.testing.assert_array_equal(
        np.minimum(first["step_minimum"], second["step_minimum"]), whole["step_minimum"]
    )


@pytest.mark.slow
def test_models_in_vector_form_have_the_same_statistics():
    """40 components with an array of parameters, in blocks narrower than 512."""

    def drift(t, y, p, out):
        for j in range(out.size):
            out[j] = -p.k[j] * y[j]

    def diffusion(t, y, p, out):
        for j in range(out.size):
            out[j] = 0.5

    sde = VectorSDE(drift, diffusion, params={"k": np.linspace(0.5, 2.0, 40)}, dimension=40, convention="ito")
    settings = {"t1": 0.1, "dt": 0.01, "paths": 700, "seed": 3, "quantiles": [0.1, 0.9]}
    settings["statistics"] = ("kurtosis", "step_maximum", "step_minimum")
    result = simulate(sde, np.zeros(40), threads=1, save_paths=True, **settings)
    state = result["state"].values
    np.testing.assert_array_equal(result["step_maximum"], state.max(axis=1))
    np.testing.assert_array_equal(result["step_minimum"], state.min(axis=1))
    deviation = state[:, 1:] - state[:, 1:].mean(axis=0)
    kurtosis = (deviation**4).mean(axis=0) / (deviation**2).mean(axis=0) ** 2 - 3
    np.testing.assert_allclose(result["kurtosis"][1:], kurtosis, atol=1e-12)
    exact = np.quantile(state, [0.1, 0.9], axis=0).transpose(1, 0, 2)
    assert (np.abs(result["quantile"] - exact) <= result["quantile_error"]).all()
    again = simulate(sde, np.zeros(40), threads=2, chunk=64, **settings)
    assert again.identical(result.drop_vars("state"))


def test_extremes_of_diverged_paths_are_no_numbers():
    sde = SDE(lambda t, y, p, xp: (y[0] ** 3,), lambda t, y, p, xp: (0.0 * y[0],), convention="ito")
    with pytest.warns(AccuracyWarning):
        result = simulate(
            sde, [[0.1], [3.0], [-3.0]], t1=2.0, dt=0.1, paths=3, seed=0, statistics=["maximum", "step_maximum"],
            quantiles=[0.5],
        )  # fmt: skip
    for name in ("maximum", "step_maximum"):
        np.testing.assert_array_equal(np.isfinite(result[name][:, 0]), [True, False, False])
    assert np.isnan(result["quantile"][-1]).all()


def test_quantiles_lie_within_their_bounds(everything, stored):
    exact = np.quantile(stored[:, ::3], LEVELS, axis=0).transpose(1, 0, 2)
    error = np.abs(everything["quantile"] - exact)
    assert (error <= everything["quantile_error"]).all()
    quartile = np.ptp(np.quantile(stored[:512, ::3], (0.25, 0.75), axis=0), axis=0)[:, None]
    median = np.median(stored[:512, ::3], axis=0)[:, None]
    bound = (quartile / 2 + np.abs(exact - median)) / 1024
    # The pilot takes single paths for median and quartiles, where numpy interpolates: 2 % off at 512 paths.
    assert (everything["quantile_error"].values[1:] <= 1.05 * bound[1:]).all()


def test_quantiles_of_the_normal_law():
    """Against Euler-Maruyama's own normal law; standard error sqrt(q (1 - q)/N)/density, plus the bound."""
    paths, levels = 40_000, [0.01, 0.25, 0.5, 0.9, 0.999]
    result = simulate(OU.sde, 2.0, t1=1.0, dt=0.01, paths=paths, seed=7, save_at=[1.0], quantiles=levels)
    factor = (1 - 0.015) ** 100
    law = stats.norm(2.0 * factor, np.sqrt(0.81 * 0.01 * (1 - factor**2) / (1 - (1 - 0.015) ** 2)))
    stderr = np.sqrt(np.multiply(levels, np.subtract(1, levels)) / paths) / law.pdf(law.ppf(levels))
    tolerance = LIMIT * stderr + result["quantile_error"].values[0, :, 0]
    assert (np.abs(result["quantile"].values[0, :, 0] - law.ppf(levels)) < tolerance).all()
    shifted = stats.norm(law.mean() + 0.05 * law.std(), law.std())  # negative control
    assert (np.abs(result["quantile"].values[0, :, 0] - shifted.ppf(levels)) > tolerance).any()


def test_quantiles_where_the_first_paths_tell_nothing():
    """The first 512 paths agree; the others, far away, are found all the same, and their bound is kept."""
    starts = np.zeros((2000, 1))
    starts[512:, 0] = np.linspace(5.0, 6.0, 1488)
    still = SDE(lambda t, y, p, xp: (0.0 * y[0],), lambda t, y, p, xp: (0.0 * y[0],), convention="ito")
    result = simulate(still, starts, t1=0.1, dt=0.1, paths=2000, seed=0, save_at=[0.1], quantiles=LEVELS)
    error = np.abs(result["quantile"].values[0, :, 0] - np.quantile(starts, LEVELS))
    assert (error <= result["quantile_error"].values[0, :, 0]).all()
    assert result["quantile_error"].max() < 0.02


def test_quantiles_beyond_the_bins_are_infinite():
    """The first 512 paths spread over 1, one later path lies 1e6 away."""
    starts = np.linspace(0.0, 1.0, 1024)[:, None]
    starts[1000] = 1e6
    still = SDE(lambda t, y, p, xp: (0.0 * y[0],), lambda t, y, p, xp: (0.0 * y[0],), convention="ito")
    result = simulate(still, starts, t1=0.1, dt=0.1, paths=1024, seed=0, save_at=[0.1], quantiles=[0.5, 1.0])
    assert result["quantile"].values[0, 1, 0] == result["quantile_error"].values[0, 1, 0] == np.inf
    assert abs(result["quantile"].values[0, 0, 0] - np.quantile(starts, 0.5)) < 1e-3


def test_an_interrupted_run_goes_on_from_its_checkpoint(everything, tmp_path, monkeypatch):
    from solvers import checkpoint

    monkeypatch.setattr(checkpoint, "_INTERVAL", 0.0)

    def interrupt(fraction):
        raise KeyboardInterrupt

    file = tmp_path / "run.npz"
    with pytest.raises(KeyboardInterrupt):
        _everything(checkpoint=file, chunk=1024, threads=1, progress=interrupt)
    assert file.exists()
    assert _everything(checkpoint=file, chunk=1024).identical(everything)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantiles": [0.5, 1.5]}, "between 0 and 1"),
        ({"quantiles": [0.5, 0.5]}, "must increase"),
        ({"quantiles": "median"}, "quantiles='median'"),
        ({"statistics": "maximum", "stop": lambda t, y, p, xp: y[0] > 1}, "ask for 'step_maximum'"),
        ({"statistics": "minimum", "scheme": "weak-euler"}, "not Gaussian; ask for 'step_minimum'"),
    ],
)
def test_bad_arguments_are_refused_before_work(changes, message, monkeypatch):
    monkeypatch.setattr("solvers.running.run_blocks", None)
    arguments = {"t1": 1.0, "dt": 0.1, "paths": 5, "seed": 0} | changes
    with pytest.raises(InvalidInput, match=message):
        simulate(OU.sde, 1.0, **arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"statistics": "maximum", "paths": 300_000}, "maximum of 300000 paths"),
        ({"quantiles": [0.5]}, "quantiles at 1001 times"),
        ({"statistics": ["kurtosis"], "dt": 1e-5}, "kurtosis at 1000001 times"),
        (
            {"statistics": (), "autocorrelation": {"lags": [0, 9.0], "every": 0.01}},
            "autocorrelation at 2 lags",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes, message, monkeypatch):
    from solvers import memory

    monkeypatch.setattr(memory, "available", lambda: 10**7)
    arguments = {"t1": 10.0, "dt": 0.01, "paths": 1000, "seed": 0, "threads": 1} | changes
    with pytest.raises(InvalidInput, match=f"{message}.* needs .* GB"):
        simulate(OU.sde, 0.0, **arguments)


def test_the_variables_say_what_they_are(everything):
    assert all({"units", "long_name"} <= set(v.attrs) for v in everything.data_vars.values())
    assert "excess" in everything["kurtosis"].attrs["long_name"]
    assert "unbiased" in everything["autocovariance"].attrs["long_name"]
    assert everything["quantile"].dims == ("time", "q", "component")
    assert everything["lag"].attrs["units"] == "time"
