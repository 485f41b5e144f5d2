"""The central flow of gradient descent: limits, the edge, the order of its step, refusals, and two real runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from eos_sde.bridge import central_flow, full_batch_flow, load_task, stochastic_central_flow
from eos_sde.bridge.spectrum import top_modes
from solvers.errors import InvalidInput

MODES = 6


@pytest.fixture(scope="module")
def edge(small_task, small_start):
    """A learning rate at which the checkpoint is a little below the edge, 0.96 of it."""
    top = float(top_modes(small_task, jnp.asarray(small_start), MODES)[0][0])
    return 1.92 / top


def flow_of(task, start, **given):
    return central_flow(task, start, **({"steps": 200, "modes": MODES, "save_every": 20} | given))


def test_below_the_edge_it_is_gradient_flow(small_task, small_gradient, small_start):
    """It differs from descent by its own step and by that of descent, both of first order in eta."""
    distances, moved = [], 0.0
    for eta, steps in ((0.04, 100), (0.02, 200)):
        flow = flow_of(small_task, small_start, eta=eta, steps=steps)
        theta = jnp.asarray(small_start)
        for _ in range(steps):
            theta = theta - eta * small_gradient(theta)
        distances.append(np.linalg.norm(flow["final_params"] - theta))
        moved = np.linalg.norm(theta - small_start)
        assert flow.attrs["stopped"] == ""
        assert np.all(flow["critical_modes"] == 0)
        assert np.all(flow["top_variance"] == 0)
        assert np.array_equal(flow["mean_loss"], flow["loss"])
        assert np.array_equal(flow["iterate_sharpness"], flow["sharpness"])
    assert distances[0] < 0.01 * moved
    assert abs(distances[0] / distances[1] - 2) < 0.2


@pytest.mark.slow
def test_it_holds_the_edge(small_task, small_start, edge):
    flow = flow_of(small_task, small_start, eta=edge, steps=400, direction=np.eye(small_task.size)[3])
    assert flow.attrs["stopped"] == ""
    at_edge = flow.isel(step=slice(-8, None))
    quiet = float(flow["top_variance"][0])  # below the edge: that of the checkpoint, which fades
    assert quiet < 0.01 * float(at_edge["top_variance"].min())
    assert np.all(at_edge["critical_modes"] >= 1)
    assert np.all(at_edge["top_variance"] > 0)
    # what the step leaves of the gap is of second order in it
    assert_allclose(edge * at_edge["sharpness"], 2.0, rtol=2e-3)
    assert_allclose(at_edge["radius"], 1.0, rtol=1e-2)
    assert np.all(at_edge["mean_loss"] > at_edge["loss"])
    assert np.all(at_edge["direction_variance"] <= edge * (at_edge["mean_loss"] - at_edge["loss"]) * 1.01)
    single = at_edge.where(at_edge["critical_modes"] == 1, drop=True)
    assert single.sizes["step"]
    assert_allclose(single["mean_loss"] - single["loss"], single["top_variance"] / edge, rtol=2e-3)
    free = flow_of(small_task, small_start, eta=edge / 8, steps=3200, stride=20)  # the same time, no edge
    assert float(free["sharpness"][-1]) > 1.02 * 2.0 / edge
    assert all(v.attrs["units"] and v.attrs["long_name"] for v in flow.variables.values())


@pytest.mark.slow
def test_an_oscillation_must_grow_before_it_holds_the_edge(
    small_task, small_gradient, small_hessian, small_start, edge
):
    """Descent from the same weights, step by step: it overshoots the edge by 10 %, then bursts and falls below it.

    Before the burst descent lags its continuous path by a part of first order in eta, 1e-3 of the sharpness or less.
    The burst comes when growth by some 1e6 is done, at 1.2 a step in the end: an amplitude that is wrong by a factor
    2 at its start, or that is carried through the last step of the flow at its old rate, shifts it by 4 or 5 steps.
    """
    flow = flow_of(small_task, small_start, eta=edge, save_every=5)
    theta, seen = jnp.asarray(small_start), []
    for _ in range(201):
        seen.append(edge * float(jnp.linalg.eigvalsh(small_hessian(theta))[-1]))
        theta = theta - edge * small_gradient(theta)
    seen, forecast = np.array(seen), edge * flow["iterate_sharpness"].values
    assert seen.max() > 2.15
    highest = int(np.argmax(seen))
    burst = highest + int(np.argmax(seen[highest:] < 2.05))
    quiet = flow["step"].values < burst - 15
    assert quiet.sum() > 25
    assert_allclose(forecast[quiet], seen[flow["step"].values[quiet]], rtol=1e-3)
    highest = int(np.argmax(forecast))
    ended = 5 * (highest + int(np.argmax(forecast[highest:] < 2.05)))
    assert abs(ended - burst) <= 10
    assert "overshoots it by 10 %" in flow.attrs["caution"]


@pytest.mark.slow
def test_step_is_of_first_order(small_task, small_start, edge):
    ends = [
        flow_of(small_task, small_start, eta=edge, save_every=40, stride=s)["final_params"].values
        for s in (1, 2, 4)
    ]
    ratio = np.linalg.norm(ends[2] - ends[1]) / np.linalg.norm(ends[1] - ends[0])
    assert abs(ratio - 2) < 0.5


@pytest.mark.slow
def test_full_batches_are_the_limit_of_the_stochastic_flow(small_task, small_start, edge):
    seen = []
    settings = {"eta": edge, "steps": 42, "modes": MODES, "save_every": 10}
    first = central_flow(small_task, small_start, **settings)
    second = stochastic_central_flow(
        small_task, small_start, batch_size=small_task.n, progress=seen.append, **settings
    )
    assert first.identical(second)
    assert seen == first["step"].values.tolist() == [0, 10, 20, 30, 40]
    noisy = stochastic_central_flow(small_task, small_start, batch_size=small_task.n - 1, **settings)
    assert set(noisy.variables) == set(first.variables)


@pytest.mark.slow
def test_descent_on_a_quadratic_has_nothing_to_hold_it():
    """The loss of a linear network has no third derivative: beyond 2/eta the flow ends, below it does not."""
    task = load_task("digits-mlp", examples=63, hidden=(), pool=2)
    top = float(top_modes(task, task.init(0), 12, tol=1e-3)[0][0])
    given = {"modes": 12, "steps": 20, "save_every": 10}
    below = central_flow(task, task.init(0), eta=1.8 / top, **given)
    assert below.attrs["stopped"] == ""
    assert np.all(np.diff(below["loss"]) < 0)
    beyond = central_flow(task, task.init(0), eta=2.2 / top, **given)
    assert beyond.attrs["stopped"].startswith("step 0: no oscillation opens the gap")
    assert beyond.sizes["step"] == 0
    # the start without its alternation: on a quadratic, the bottom of the valley along modes with eta h > 1
    final = jnp.asarray(beyond["final_params"].values)
    values, modes, _ = top_modes(task, final, 12, tol=1e-3)
    steep = modes[:, 2.2 / top * values > 1.0]
    slopes = [np.asarray(steep.T @ jax.grad(task.loss)(jnp.asarray(w))) for w in (final, task.init(0))]
    assert np.all(np.abs(slopes[0]) < 2e-3 * np.linalg.norm(slopes[1]))  # the tolerance of the modes
    assert set(beyond.variables) == set(below.variables)


@pytest.mark.slow
def test_it_says_where_it_ceases_to_apply(small_task, small_start, edge):
    flow = flow_of(small_task, small_start, eta=edge, modes=1)
    assert flow.attrs["stopped"].startswith(
        "step 0: all modes=1 that are followed are at the edge; raise modes"
    )
    far = flow_of(small_task, small_start, eta=1.5 * edge)
    assert far.attrs["stopped"] == "step 0: eta * sharpness = 2.88 is far beyond 2: a catapult"
    near = flow_of(small_task, small_start, eta=1.1 * edge)  # as descent itself may be met
    assert near.attrs["stopped"] == ""
    assert_allclose(1.1 * edge * near["sharpness"][-5:], 2.0, rtol=5e-3)


def test_it_stops_where_the_oscillation_outgrows_the_model(small_task, small_start, edge, monkeypatch):
    """An alternation of 10 along the sharpest mode, which no checkpoint of this network has, is put in."""

    class Swinging(full_batch_flow._DescentFlow):
        def __init__(self, *given, **settings):
            super().__init__(*given, **settings)
            self.swing = self.swing.at[0].set(10.0)

    monkeypatch.setattr(full_batch_flow, "_DescentFlow", Swinging)
    flow = flow_of(small_task, small_start, eta=edge)
    assert flow.attrs["stopped"].startswith("step 0: the oscillation outgrows the quadratic model (mean loss")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eta": 0.0}, "eta=0.0 must be a positive learning rate"),
        ({"eta": np.inf}, "eta=inf must be a positive learning rate"),
        ({"steps": 0}, "steps=0 and stride=5 must be positive"),
        ({"save_every": 7}, "save_every=7 a multiple of stride"),
        ({"save_every": 0}, "save_every=0 a multiple of stride"),
        ({"modes": 30}, "k=30 modes of 118 weights; choose from 1 to 23"),
        ({"start": np.zeros(3)}, r"start must be 118 finite weights of digits-mlp, got shape \(3,\)"),
    ],
)
def test_refusals(small_task, small_start, change, message):
    given = {"start": small_start, "eta": 0.1, "steps": 10, "modes": MODES} | change
    with pytest.raises(InvalidInput, match=message):
        central_flow(small_task, given.pop("start"), **given)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "eta", "early"),
    [("digits-mlp", 0.16, 40), ("fashion-mlp", 0.1, 30)],  # step and number of modes were chosen on the first
)
def test_forecast_of_real_descent(name, eta, early):
    """600 steps of descent on two networks, averaged over windows of 41 steps, against the flow from their start.

    Three to five modes reach the edge; the averaged loss, the mean loss and the weights follow the flow. The negative
    control, gradient flow over the same time, ends many times further off in the weights. The curvature of the critical
    modes is at 2/eta in the mean only: descent makes it fluctuate, and that parts their eigenvalues, so that the
    largest stays above 2/eta by up to 10 % at each moment. The flow does not know this.
    """
    task = load_task(name, examples=400, hidden=(24, 24))
    steps, half = 600, 20
    step = jax.jit(jax.value_and_grad(task.loss))
    theta = task.init(0)
    path, losses = [], []
    for _ in range(early + steps + half + 1):
        loss, slope = step(theta)
        path.append(np.asarray(theta))
        losses.append(float(loss))
        theta = theta - eta * slope
    path, losses = np.array(path[early:]), np.array(losses[early:])
    start = path[0]
    flow = central_flow(task, start, eta=eta, steps=steps, save_every=75)
    assert flow.attrs["stopped"] == ""
    assert float(flow["critical_modes"][-1]) >= 3

    late = flow.sel(step=slice(300, None))
    windows = [slice(k - half, k + half + 1) for k in late["step"].values]
    loss_of_average = [float(task.loss(path[w].mean(axis=0))) for w in windows]
    assert_allclose(late["loss"], loss_of_average, rtol=0.01)
    # the mean loss swings with the curvature: windows of 41 steps see part of a swing, their mean most of it
    assert abs(float(late["mean_loss"].mean()) / np.mean([losses[w].mean() for w in windows]) - 1) < 0.05
    assert np.mean([losses[w].mean() for w in windows]) > 1.03 * np.mean(
        loss_of_average
    )  # the control: no Sigma

    end = path[windows[-1]].mean(axis=0)
    free = central_flow(task, start, eta=eta / 10, steps=10 * steps, stride=50, save_every=steps)
    distance = np.linalg.norm(flow["final_params"] - end)
    assert distance < 0.03 * np.linalg.norm(end - start)
    assert distance < 0.25 * np.linalg.norm(free["final_params"] - end)
    assert float(free["sharpness"][-1]) > 1.15 * 2 / eta

    critical = int(flow["critical_modes"][-1])
    eigenvalues = eta * np.asarray(top_modes(task, jnp.asarray(end), 16, tol=1e-3)[0])
    assert abs(eigenvalues[:critical].mean() - 2.0) < 0.06
    assert_allclose(eta * late["sharpness"], 2.0, rtol=1e-3)
