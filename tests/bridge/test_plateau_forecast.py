"""The late sharpness and loss of a run, forecast: parts of the error, limits, and whether the error covers."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from eos_sde.bridge import central_flow, forecast_plateau, stochastic_central_flow
from eos_sde.bridge.plateau_forecast import error_of_mean
from solvers.errors import InvalidInput

GIVEN = {"eta": 0.1, "steps": 60, "modes": 4}


@pytest.mark.slow
def test_it_is_the_late_mean_of_flows(small_task, small_start):
    found = forecast_plateau(small_task, small_start, batch_size=8, repeats=2, seed=5, **GIVEN)
    flows = [
        stochastic_central_flow(
            small_task, small_start, batch_size=8, seed=seed, save_every=3, stride=3, **GIVEN
        ).sel(step=slice(40, None))
        for seed in (5, 1005)
    ]
    for name, variable in (("sharpness", "iterate_sharpness"), ("loss", "mean_loss")):
        row = found.sel(quantity=name)
        means = [float(flow[variable].mean()) for flow in flows]
        assert_allclose(row["predicted"], np.mean(means), rtol=1e-12)
        assert float(row["sampling_stderr"]) >= np.std(means, ddof=1) / 2**0.5 * (1 - 1e-9)
        assert float(row["model_stderr"]) >= 0.005 * float(row["predicted"])
        assert_allclose(
            row["predicted_stderr"], np.hypot(row["sampling_stderr"], row["model_stderr"]), rtol=1e-12
        )
    again = forecast_plateau(small_task, small_start, batch_size=8, repeats=2, seed=5, **GIVEN)
    assert np.array_equal(found["sharpness_path"], again["sharpness_path"])


@pytest.mark.slow
def test_samples_differ_between_the_flows_and_their_scatter_is_in_the_error(small_task, small_start):
    """Without what is drawn outside the modes the flows of all examples have one path; those of samples do not."""
    alone = {"batch_size": 8, "without": ["unresolved modes"], "repeats": 2} | GIVEN
    of_all = forecast_plateau(small_task, small_start, **alone).sel(quantity="loss")
    sampled = forecast_plateau(small_task, small_start, examples=20, precision="single", **alone)
    assert np.ptp(of_all["loss_path"].values, axis=0).max() < 1e-12
    first, second = sampled["loss_path"].values[:, -7:].mean(axis=1)
    loss = sampled.sel(quantity="loss")
    assert float(loss["sampling_stderr"]) >= abs(first - second) / 2 * (1 - 1e-9) > 1e-6
    assert abs(float(loss["predicted"]) / float(of_all["predicted"]) - 1) < 0.05
    assert (sampled.attrs["examples"], sampled.attrs["precision"]) == (20, "single")
    assert sampled.attrs["gradients_per_step"] < of_all.attrs["gradients_per_step"]


@pytest.mark.slow
def test_full_batches_need_one_flow(small_task, small_start):
    found = forecast_plateau(small_task, small_start, batch_size=small_task.n, rule="gd", repeats=3, **GIVEN)
    flow = central_flow(small_task, small_start, save_every=3, stride=3, **GIVEN).sel(step=slice(40, None))
    assert found.sizes["repeat"] == 1
    assert_allclose(found["predicted"].sel(quantity="loss"), flow["mean_loss"].mean(), rtol=1e-12)


@pytest.mark.slow
def test_an_overshoot_that_ended_makes_the_sharpness_uncertain(small_task, small_start):
    """Even from -o to o the swings of one mode have a root mean square of o over the root of 3; the floor is 1 %."""
    given = {"batch_size": small_task.n, "rule": "gd", "eta": 0.184, "steps": 260, "modes": 6}
    found = forecast_plateau(small_task, small_start, **given)["model_stderr"]
    flow = central_flow(small_task, small_start, eta=0.184, steps=260, modes=6, save_every=10)
    over = float(flow["effective_sharpness"].max()) - 1.0
    assert over > 0.08
    assert int(flow["critical_modes"][-1]) == 1
    relative = float(found.sel(quantity="sharpness")) * 0.184 / 2.0
    assert_allclose(relative, np.hypot(0.01, over / 3**0.5), rtol=0.05)


@pytest.mark.slow
def test_a_flow_that_ends_early_forecasts_nothing(small_task):
    found = forecast_plateau(
        small_task, small_task.init(0), batch_size=1, eta=3.0, steps=100, modes=4, repeats=1
    )
    assert found.attrs["stopped"]
    assert np.all(np.isnan(found["predicted"]))


def test_scatter_about_a_line_is_the_error_of_the_mean():
    """Of white noise on a slope: the root mean square of 4000 estimates is sigma/sqrt(n), to 2 % at 4 of its errors."""
    rng = np.random.default_rng(0)
    x = np.arange(8)
    found = [error_of_mean(3.0 + 0.7 * x + 0.2 * rng.standard_normal(8)) for _ in range(4000)]
    assert_allclose(np.sqrt(np.mean(np.square(found))), 0.2 / 8**0.5, rtol=0.04)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 10}, "steps=10 must be an integer of at least 20"),
        ({"repeats": 0}, "repeats=0 must be"),
        ({"batch_size": 64}, "batch_size=64 must be from 1 to 63"),
        ({"rule": "l4"}, "l4"),
    ],
)
def test_refusals(changes, message, small_task, small_start):
    with pytest.raises(InvalidInput, match=message):
        forecast_plateau(small_task, small_start, **({"batch_size": 4} | GIVEN | changes))
