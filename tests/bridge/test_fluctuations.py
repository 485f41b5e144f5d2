"""Fluctuations forecast from given weights: linear regression, where SGD is the linear map, simulated and solved."""

from functools import partial
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from eos_sde import bridge, plots
from eos_sde.bridge.fluctuation_densities import DensityTable
from eos_sde.bridge.fluctuation_loss import fluctuation_loss, slow_linear_variance
from eos_sde.bridge.fluctuation_statistics import path_statistics
from eos_sde.bridge.gaussian_fluctuation import normal_hill
from eos_sde.bridge.line_fluctuation import FluctuatingLine, two_cycle
from eos_sde.bridge.line_map import LineMap
from eos_sde.bridge.linear_fluctuation import sampled_path, second_moments
from eos_sde.bridge.local_noise import local_noise
from eos_sde.bridge.networks import mlp
from eos_sde.bridge.slow_fluctuation import averaged_kicks, with_slow_kicks
from eos_sde.bridge.task_library import Task
from solvers import tabulated
from solvers.errors import InvalidInput

EXAMPLES, INPUTS, BATCH, ETA = 80, 30, 16, 0.3


@pytest.fixture(scope="module")
def regression():
    """Linear least squares with 31 weights: no third derivative, a Hessian of 31 known eigenvalues."""
    rng = np.random.default_rng(0)
    scales = np.array([2.0, 1.5, 1.0, 0.8, 0.6, 0.5] + 24 * [0.3])
    x = rng.standard_normal((EXAMPLES, INPUTS)) * scales
    y = x @ rng.standard_normal((INPUTS, 1)) + rng.standard_normal((EXAMPLES, 1))
    arrays = (jnp.asarray(x), jnp.asarray(y))
    return Task(
        "regression",
        mlp((INPUTS, 1)),
        *arrays,
        *arrays,
        "half-squared-error",
        ETA,
        MappingProxyType({}),
        "rng",
        "none",
    )


@pytest.fixture(scope="module")
def minimum(regression):
    """The least squares solution."""
    design = np.concatenate([np.asarray(regression.x), np.ones((EXAMPLES, 1))], axis=1)
    solution = np.linalg.lstsq(design, np.asarray(regression.y), rcond=None)[0][:, 0]
    return np.asarray(solution)


@pytest.fixture(scope="module")
def dense(regression, minimum):
    """Hessian and noise covariance of one example at the minimum, whole."""
    design = np.concatenate([np.asarray(regression.x), np.ones((EXAMPLES, 1))], axis=1)
    residuals = design @ minimum - np.asarray(regression.y)[:, 0]
    gradients = residuals[:, None] * design
    return design.T @ design / EXAMPLES, np.cov(gradients.T, bias=True)


@pytest.fixture(scope="module")
def local(regression, minimum):
    return local_noise(regression, jnp.asarray(minimum), 6)


@pytest.fixture(scope="module")
def forecast(regression, minimum):
    return bridge.forecast_fluctuations(
        regression, minimum, batch_size=BATCH, horizon=(20, 69), follow=False, modes=6, seed=1
    )


@pytest.fixture(scope="module")
def measured(regression, minimum, forecast):
    return bridge.measure_fluctuations(regression, minimum, forecast=forecast, replicas=600, seed=2)


def within(forecast, measured, name, model, sigmas=4.0, slack=0.0):
    """Whether forecast and measurement differ by less than their errors, and a slack, in every direction."""
    value, error = forecast[name].sel(model=model), forecast[f"{name}_stderr"].sel(model=model)
    allowed = sigmas * np.hypot(error, measured[f"{name}_stderr"]) + slack * np.abs(measured[name])
    return bool(np.all(np.abs(value - measured[name]) < allowed))


@pytest.mark.slow
def test_local_noise_is_that_of_the_whole_hessian(local, dense, regression, minimum):
    hessian, noise = dense
    values = np.linalg.eigvalsh(hessian)[::-1]
    assert_allclose(local.eigenvalues, values[:6], rtol=1e-8)
    assert_allclose(local.noise_trace, np.trace(noise), rtol=1e-10)
    assert_allclose(np.cov(local.gradients.T, bias=True), local.modes.T @ noise @ local.modes, atol=1e-10)
    design = np.concatenate([np.asarray(regression.x), np.ones((EXAMPLES, 1))], axis=1)
    each = design[:, :, None] * design[:, None, :]
    deviation = each - hessian
    square = np.einsum("nij,njk->ik", deviation, deviation) / EXAMPLES
    assert_allclose(local.spread, local.modes.T @ square @ local.modes, rtol=1e-8, atol=1e-9)
    assert_allclose(local.gradient, 0.0, atol=1e-10)


@pytest.mark.slow
def test_sgd_fluctuates_as_the_linear_map_says(forecast, measured):
    """600 replicas, 2 directions, statistics at 4 errors: false alarm 1e-3 in all.

    The kicks from outside the six modes rest on eight draws, hence 3 % of slack in the variance.
    """
    for model in ("gaussian", "linear map"):
        assert within(forecast, measured, "variance", model, slack=0.03)
        assert within(forecast, measured, "autocorrelation", model)
        assert within(forecast, measured, "flip_rate", model, slack=0.1 if model == "gaussian" else 0.0)
    for name in ("kurtosis", "amplitude", "hysteresis_flip_rate", "tail"):
        assert within(forecast, measured, name, "linear map", slack=0.03)
    # curvature noise makes tails that a normal law does not have
    assert not within(forecast, measured, "tail", "gaussian")
    linear, gaussian = (
        forecast["quantile"].sel(model="linear map"),
        forecast["quantile"].sel(model="gaussian"),
    )
    assert_allclose(linear.values[:, 2:-2], measured["quantile"].values[:, 2:-2], rtol=0.1, atol=0.01)
    assert np.all(linear[:, -1] > gaussian[:, -1])
    assert_allclose(
        np.sum(forecast["density"].sel(model="gaussian") * np.diff(forecast["edge"], axis=1), axis=1),
        1,
        rtol=1e-6,
    )


@pytest.mark.slow
def test_another_batch_size_is_rejected(regression, minimum, measured):
    other = bridge.forecast_fluctuations(
        regression, minimum, batch_size=BATCH + 2, horizon=(20, 69), follow=False, modes=6, seed=1
    )
    assert not within(other, measured, "variance", "gaussian", slack=0.03)


def test_loss_of_the_fluctuation(forecast, measured):
    """Four errors of the measurement and of the probes, and the 3 % of the draws."""
    found, error = float(measured["excess_loss"]), float(measured["excess_loss_stderr"])
    allowed = 4 * np.hypot(error, float(forecast["excess_loss_stderr"])) + 0.03 * found
    assert abs(float(forecast["excess_loss"]) - found) < allowed
    outside = found - float(forecast["excess_loss_resolved"])
    assert float(forecast["excess_loss_unresolved_low"]) - allowed < outside
    assert outside < float(forecast["excess_loss_unresolved_high"]) + allowed
    spread, error = float(measured["loss_deviation"]), float(measured["loss_deviation_stderr"])
    sampled, own = (float(forecast[f"loss_deviation_sampled{suffix}"]) for suffix in ("", "_stderr"))
    assert abs(sampled - spread) < 4 * np.hypot(error, own)
    assert float(forecast["loss_deviation"]) < sampled  # a Gaussian has no tails


@pytest.mark.parametrize("window", [None, (5, 8)])
def test_quadrature_outside_the_modes(regression, local, dense, window):
    """Against eigenvalues of the whole Hessian: additive noise of every mode on its own; four errors of the probes."""
    hessian, noise = dense
    values, vectors = np.linalg.eigh(hessian)
    values, vectors = values[:-6], vectors[:, :-6]
    p = local.batch_variance(BATCH)
    kept = np.diag(vectors.T @ noise @ vectors)
    steps = np.arange(window[0], window[1] + 1) if window else np.array([10_000])
    grown = 1 - np.mean((1 - ETA * values[:, None]) ** (2 * steps), axis=1)
    exact = 0.5 * ETA * p * np.sum(kept * grown / (2 - ETA * values))
    zero = np.zeros((1, 6, 6))
    run = partial(
        fluctuation_loss, regression, local, zero, np.zeros((1, 6)), eta=ETA, batch_size=BATCH, moving=False
    )
    found = run(window=window, seed=3)
    assert found.resolved == 0
    assert abs(found.unresolved - exact) < 4 * found.unresolved_stderr
    assert found.low <= exact <= found.high
    flat = 0.25 * ETA * p * (np.trace(noise) - np.trace(local.modes.T @ noise @ local.modes))
    if window is None:
        assert_allclose(found.low, flat, rtol=1e-9)  # eta p c/4 whatever the curvature
        assert found.high < 1.15 * flat


def test_slow_variance_of_the_loss(regression, local, dense, minimum):
    """G' Sigma g outside the modes against the whole matrices."""
    hessian, noise = dense
    theta = minimum + 0.1 * np.random.default_rng(4).standard_normal(minimum.size)
    outside = np.eye(minimum.size) - local.modes @ local.modes.T
    design = np.concatenate([np.asarray(regression.x), np.ones((EXAMPLES, 1))], axis=1)
    gradients = (design @ theta - np.asarray(regression.y)[:, 0])[:, None] * design
    noise = outside @ np.cov(gradients.T, bias=True) @ outside
    contraction = outside @ (np.eye(minimum.size) - ETA * hessian) @ outside
    gradient, sigma = outside @ gradients.mean(axis=0), np.zeros_like(noise)
    for _ in range(7):
        sigma = contraction @ sigma @ contraction + ETA**2 * noise
        gradient = contraction @ gradient
    arrays = jnp.asarray(theta), jnp.asarray(local.modes)
    assert_allclose(
        slow_linear_variance(regression, *arrays, ETA, 7, 7), gradient @ sigma @ gradient, rtol=1e-8
    )


def test_slow_kicks(regression, local, dense, minimum):
    """Their covariance against that of the exact fluctuation outside the modes, within 4 errors of the eight draws."""
    hessian, noise = dense
    outside = np.eye(minimum.size) - local.modes @ local.modes.T
    contraction = outside @ (np.eye(minimum.size) - ETA * hessian) @ outside
    sigma = np.zeros_like(noise)
    for _ in range(30):
        sigma = (
            contraction @ sigma @ contraction
            + ETA**2 * local.batch_variance(BATCH) * outside @ noise @ outside
        )
    design = np.concatenate([np.asarray(regression.x), np.ones((EXAMPLES, 1))], axis=1)
    deviation = design[:, :, None] * design[:, None, :] - hessian
    exact = np.array([np.mean([u @ d @ sigma @ d @ u for d in deviation]) for u in local.modes.T])
    kicked = with_slow_kicks(regression, local, eta=ETA, batch_size=BATCH, steps=30, seed=5)
    each = np.mean(kicked.kicks**2, axis=1)
    error = each.std(axis=0, ddof=1) / np.sqrt(len(each))
    assert np.all(np.abs(np.diag(averaged_kicks(kicked)) - exact) < 4 * error)
    assert_allclose(np.diag(averaged_kicks(kicked)), each.mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize("window", [(1, 12), pytest.param(None, marks=pytest.mark.slow)])
def test_moments_of_the_sampled_map(local, window):
    """From a point with a gradient the mean moves, and its curvature noise counts; without the motion it is off.

    Six means, six variances and covariances at 4.5 errors, false alarm 1e-4.
    """
    moved = local._replace(
        gradients=local.gradients + 1.5 * local.curvatures[:, :, 0]
    )  # as from weights 1.5 away
    moments = second_moments(moved, eta=ETA, batch_size=BATCH, window=window)
    path = sampled_path(moved, eta=ETA, batch_size=BATCH, window=window, replicas=4000, seed=6)
    x = path if window else path[:, ::40]
    centred = x - x.mean(axis=0)
    sample = np.mean(centred[..., :, None] * centred[..., None, :], axis=1)
    error = sample.std(axis=0) / np.sqrt(len(sample))
    assert np.all(np.abs(sample.mean(axis=0) - moments.covariance.mean(axis=0))[:3, :3] < 4.5 * error[:3, :3])
    if window:
        assert np.all(np.abs(path.mean(axis=0) - moments.means) < 4.5 * path.std(axis=0) / 4000**0.5 + 1e-12)
        still = second_moments(moved.resting(), eta=ETA, batch_size=BATCH, window=window)
        assert np.any(
            np.abs(sample.mean(axis=0) - still.covariance.mean(axis=0))[:3, :3] > 4.5 * error[:3, :3]
        )


@pytest.mark.slow
def test_kernel_of_a_straight_line(regression, local, minimum):
    """On a quadratic the line has linear slopes and a noise that grows along it: a variance in closed form."""
    batch = 40
    h, p = local.eigenvalues[0], local.batch_variance(batch)
    bends, kicks = local.curvatures[:, 0, 0], local.gradients[:, 0]
    exact = ETA**2 * p * kicks.var() / (1 - (1 - ETA * h) ** 2 - ETA**2 * p * bends.var())
    line = FluctuatingLine(
        regression, minimum, local.modes[:, 0], eta=ETA, batch_size=batch, curvature=h, slope=0.0,
        deviation=exact**0.5, window=None, resting=True,
    )  # fmt: skip
    law = line.law()
    assert_allclose(law.statistics["variance"], exact, rtol=5e-3)
    assert_allclose(law.statistics["autocorrelation"], 1 - ETA * h, rtol=2e-3)
    assert_allclose(law.second_eigenvalue, 1 - ETA * h, rtol=2e-3)
    assert law.statistics["kurtosis"] > 0.05  # its noise depends on the place
    assert np.isnan(law.two_cycle)
    paths = path_statistics(line.path(1500, seed=8), hysteresis=1.0)
    for name in ("variance", "autocorrelation", "amplitude", "flip_rate", "hysteresis_flip_rate"):
        value, error = paths[name]
        assert abs(law.statistics[name] - value) < 4 * error + 0.01 * abs(value), name


def test_two_cycle_of_the_mean_map():
    """X - eta (h x + q x^3) has the cycle x^2 = (2 - eta h)/(eta q): stable beyond the edge for q < 0."""
    points = np.linspace(-1, 1, 4001)
    for h, q, cycle in ((2.2, -1.0, np.sqrt(0.2)), (1.8, -1.0, np.nan), (2.2, 1.0, np.nan)):
        slope = tabulated(points, h * points + q * points**3)
        line = LineMap(slope, tabulated(points, np.ones_like(points)), (-1.0, 1.0), h)
        assert_allclose(two_cycle(line, 1.0), cycle, rtol=1e-4)


def test_statistics_of_a_gaussian_sequence():
    """Known variance, correlation and amplitude; 4 errors each, and errors that an independent sample confirms."""
    rng = np.random.default_rng(9)

    def sample():
        x = np.empty((400, 60))
        x[:, 0] = rng.standard_normal(400)
        for k in range(1, 60):
            x[:, k] = -0.6 * x[:, k - 1] + 0.8 * rng.standard_normal(400)
        return 3.0 + 0.1 * np.arange(60) + 2.0 * x  # a mean that moves is no fluctuation

    exact = {"variance": 4.0, "kurtosis": 0.0, "autocorrelation": -0.6,
             "amplitude": 2.0 * np.sqrt(2 / np.pi) * np.sqrt(3.2) / 2, "tail": normal_hill(0.02)}  # fmt: skip
    found = [path_statistics(sample(), hysteresis=1.0) for _ in range(8)]
    for name, value in exact.items():
        values, errors = np.array([one[name] for one in found]).T
        slack = 0.01 * abs(value) if name in {"amplitude", "tail"} else 0.0
        assert abs(values.mean() - value) < 4 * np.sqrt(np.mean(errors**2) / 8) + slack, name
        assert 0.3 < values.std(ddof=1) / np.sqrt(np.mean(errors**2)) < 2.2, name  # chi with 7 degrees, 1e-3


def test_densities():
    table = DensityTable(("gaussian", "law"), np.array([2.0]))
    table.add_gaussian(0, np.array([4.0]))
    assert_allclose(table.quantile[0, 0, [2, 4, 7]], 2 * np.array([-1.6449, 0, 2.3263]), atol=1e-3)
    assert_allclose(table.hill("gaussian", 0), normal_hill(0.02), rtol=5e-3)
    cells = np.linspace(-1, 1, 41)
    table.add_law("law", 0, np.stack([cells, cells + 0.5]), np.full((2, 40), 1 / 40))
    assert_allclose(table.quantile[1, 0, 4], 0.25, atol=1e-3)
    assert_allclose(table.density[1, 0, 80], 0.5, rtol=0.05)


@pytest.mark.slow
def test_beyond_the_mean_square_edge(regression, minimum):
    """No stationary covariance: infinite, not a number that looks like one."""
    eta = 1.98 / float(np.linalg.eigvalsh(jax.hessian(regression.loss)(jnp.asarray(minimum)))[-1])
    unstable = bridge.forecast_fluctuations(regression, minimum, batch_size=BATCH, eta=eta, modes=6)
    assert float(unstable["radius"]) > 1
    assert np.isinf(unstable["variance"].sel(model="gaussian")).all()
    assert np.isinf(float(unstable["excess_loss"]))
    assert np.isnan(unstable["density"].sel(model="gaussian")).all()
    assert float(unstable["tail_exponent"][0]) < 2.5


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"batch_size": EXAMPLES}, "batch_size"),
        ({"batch_size": 4, "eta": -1}, "eta"),
        ({"batch_size": 4, "horizon": (5, 5)}, "horizon"),
        ({"batch_size": 4, "horizon": (1, 2, 3)}, "horizon"),
        ({"batch_size": 4, "replicas": 5}, "replicas"),
    ],
)
def test_bad_forecasts(regression, minimum, settings, told):
    with pytest.raises(InvalidInput, match=told):
        bridge.forecast_fluctuations(regression, minimum, **settings)


def test_bad_measurements(regression, minimum, forecast):
    measure = bridge.measure_fluctuations
    with pytest.raises(InvalidInput, match="missing"):
        measure(regression, minimum, batch_size=4)
    with pytest.raises(InvalidInput, match="directions"):
        measure(regression, minimum, batch_size=4, directions=np.ones((1, 3)), horizon=4)
    with pytest.raises(InvalidInput, match="horizon"):
        measure(regression, minimum, batch_size=4, directions=np.ones((1, 31)))
    with pytest.raises(InvalidInput, match="diverge"):
        measure(regression, minimum, forecast=forecast, eta=1e6, replicas=40)


def test_figure_shows_what_was_recorded(forecast, measured):
    figure = plots.fluctuation_figure([(forecast, measured)])
    assert len(figure.axes) == 2
    for row, axis in enumerate(figure.axes):
        assert axis.get_yscale() == "log"
        assert [line.get_label() for line in axis.lines if not line.get_label().startswith("_")][:1] == [
            "gaussian"
        ]
        shown = axis.containers[0].lines[0].get_ydata()
        density = measured["density"].values[row]
        assert_allclose(shown, density[density > 0])


@pytest.mark.slow
def test_a_network_from_a_checkpoint(small_task, small_start):
    """The chain as a whole: the flow carries the weights, the variance is that of the network's runs within 15 %."""
    forecast = bridge.forecast_fluctuations(
        small_task, small_start, batch_size=8, eta=0.1, horizon=(10, 30), directions=1
    )
    measured = bridge.measure_fluctuations(small_task, small_start, forecast=forecast, replicas=300)
    assert_allclose(forecast["variance"].sel(model="gaussian"), measured["variance"], rtol=0.15)
    assert_allclose(float(forecast["excess_loss"]), float(measured["excess_loss"]), rtol=0.15)
    assert forecast.attrs["first"] == measured.attrs["first"] == 10
