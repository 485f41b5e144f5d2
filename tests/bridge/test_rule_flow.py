"""The flows of rules with a memory on small networks: limits, the edge, second moments, real runs, refusals."""

from collections import Counter
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from eos_sde.bridge import (
    central_flow,
    flow_cost,
    load_task,
    make_rule,
    record,
    rule_flow,
    stochastic_central_flow,
)
from eos_sde.bridge.flow_loop import follow
from eos_sde.bridge.flow_rules import Memory, flow_rule, initial_memory
from eos_sde.bridge.precision import double_precision
from eos_sde.bridge.rule_central_flow import RuleCentralFlow
from eos_sde.bridge.rule_flow import RuleFlow
from eos_sde.bridge.spectrum import hessian_products, top_modes
from solvers.errors import InvalidInput

MODES = 6


@lru_cache
def compiled(task, name, eta, steps, options):
    rule = make_rule(name, eta=eta, **dict(options))

    @jax.jit
    def run(theta, state):
        def step(carry, _):
            theta, state = carry
            update, state = rule.update(jax.grad(task.loss)(theta), state, theta, value_fn=task.loss)
            return (theta + update, state), theta

        return jax.lax.scan(step, (theta, state), length=steps)

    return rule, run


@double_precision
def real_run(task, start, name, eta, steps, *, state=None, **options):
    """Full-batch weights before each step and at the end, and the last state."""
    rule, run = compiled(task, name, eta, steps, tuple(options.items()))
    theta = jnp.asarray(start)
    (theta, state), path = run(theta, rule.init(theta) if state is None else state)
    return np.concatenate([path, theta[None]]), state


@pytest.fixture(scope="module")
def top(small_task, small_start):
    return float(top_modes(small_task, jnp.asarray(small_start), MODES)[0][0])


@double_precision
def plain_by_both(task, start, **given):
    described = flow_rule("sgd", eta=given["eta"])
    flow = RuleFlow(
        task, jnp.asarray(start), described, initial_memory(described, task.size, None),
        batch_size=given["batch_size"], modes=MODES, seed=0, direction=None, without=["unresolved modes"],
    )  # fmt: skip
    rows, _ = follow(flow, steps=given["steps"], stride=5, save_every=given["steps"], progress=None)
    return rows[-1], np.asarray(flow.theta)


@pytest.mark.slow
def test_without_memory_it_is_the_flow_of_sgd(small_task, small_start):
    """Its steps are the rule's, the other's those of an ODE: they differ by first order in eta."""
    given = {"batch_size": 4, "eta": 0.1, "steps": 60}
    outside = ["unresolved modes"]  # which has draws of its own in each
    plain = stochastic_central_flow(
        small_task, small_start, modes=MODES, save_every=60, without=outside, **given
    )
    row, theta = plain_by_both(small_task, small_start, **given)
    moved = np.linalg.norm(plain["final_params"] - small_start)
    assert np.linalg.norm(theta - plain["final_params"]) < 0.01 * moved
    assert_allclose(row["top_variance"], plain["top_variance"][-1], rtol=0.02)
    assert_allclose(row["radius"], plain["radius"][-1], rtol=5e-3)
    assert_allclose(row["mean_loss"], plain["mean_loss"][-1], rtol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "eta", "options"),
    [
        ("sgdm", 0.01, {}),
        ("caeo", 0.5, {"delta": 0.5}),
        ("nesterov", 0.01, {}),
        ("adam", 0.001, {"b2": 0.99, "eps": 1e-4}),
    ],
)
def test_below_the_edge_it_is_the_rule(small_task, small_start, name, eta, options):
    """Full batches and a state on the way: within 1 % of the run; the negative control starts without the state."""
    path, state = real_run(small_task, small_start, name, eta, 30, **options)
    later, _ = real_run(small_task, path[-1], name, eta, 150, state=state, **options)
    moved = np.linalg.norm(later[-1] - path[-1])
    given = {"rule": name, "eta": eta, "steps": 150, "modes": MODES, "save_every": 50, **options}
    flow = central_flow(small_task, path[-1], state=state, **given)
    assert flow.attrs["stopped"] == ""
    assert flow.attrs["rule"] == name
    assert np.linalg.norm(flow["final_params"] - later[-1]) < 0.01 * moved
    assert_allclose(flow["loss"][-1], small_task.loss(jnp.asarray(later[-1])), rtol=2e-3)
    if name != "caeo":
        fresh = central_flow(small_task, path[-1], **given)
        assert np.linalg.norm(fresh["final_params"] - later[-1]) > 0.01 * moved
    else:
        allowed = np.minimum(eta, 1.5 / flow["sharpness"])
        assert_allclose(flow["learning_rate"], allowed, rtol=1e-12)
        assert float(flow["learning_rate"].min()) < eta


@pytest.mark.slow
def test_momentum_holds_its_own_edge(small_task, small_start, top):
    """Complementarity: no oscillation below the edge, the sharpness at it where there is one."""
    eta = 0.97 * 3.0 / top  # b = 0.5
    flow = central_flow(
        small_task, small_start, rule="sgdm", momentum=0.5, eta=eta, steps=300, modes=MODES, save_every=20
    )
    assert flow.attrs["stopped"] == ""
    assert float(flow["top_variance"][0]) == 0.0
    at_edge = flow.isel(step=slice(-6, None))
    assert np.all(at_edge["top_variance"] > 0)
    assert_allclose(at_edge["effective_sharpness"], 1.0, rtol=5e-3)
    assert_allclose(eta * at_edge["sharpness"], 3.0, rtol=5e-3)
    assert_allclose(at_edge["radius"], 1.0, rtol=0.02)
    assert set(flow.data_vars) >= {"learning_rate", "final_momentum"}


@pytest.fixture(scope="module")
def linear():
    """A linear network under half squared error: a quadratic loss, 170 weights."""
    return load_task("digits-mlp", examples=63, hidden=(), pool=2)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "eta"), [("sgdm", 0.02), ("adam", 0.003)])
def test_iterates_of_a_quadratic_have_its_sharpness(linear, name, eta):
    """The curvature is the same everywhere: to the tolerance of its eigenvectors, whatever the map does."""
    flow = stochastic_central_flow(
        linear, linear.init(0), batch_size=8, rule=name, eta=eta, steps=20, modes=MODES, save_every=10
    )
    assert np.all(flow["top_variance"][1:] > 0)
    assert_allclose(flow["iterate_sharpness"], flow["sharpness"], rtol=1e-3)
    assert_allclose(flow["sharpness"], flow["sharpness"][0], rtol=1e-3)
    assert np.all(flow["iterate_sharpness_stderr"] < 1e-3 * flow["sharpness"])


@double_precision
def balance(flow):
    """A = z* - r H r and X in the critical modes of a settled flow."""
    flow.settle(5, save=False)
    axes = flow.critical_axes
    curvature = np.asarray(axes.T @ hessian_products(flow.task, flow.theta, axes))
    return flow.rule.edge * np.eye(len(curvature)) - curvature, flow.covariance


@pytest.mark.slow
def test_second_moments_at_the_edge_of_a_quadratic(linear):
    """RMSProp on a quadratic rests at the edge by its rates alone: the root moments against 800 real steps.

    The oscillation does nothing to the weights there; all of the balance is in nu, which without it would be many times
    too small (the control: the gradient at the averaged weights).
    """
    options, eta = {"b2": 0.99, "eps": 1e-10}, 5e-3
    start, state = real_run(linear, linear.init(0), "rmsprop", eta, 300, **options)
    flow = central_flow(
        linear,
        start[-1],
        rule="rmsprop",
        eta=eta,
        steps=400,
        modes=12,
        save_every=100,
        state=state,
        **options,
    )
    assert flow.attrs["stopped"] == ""
    assert "learning_rate" not in flow
    assert np.all(flow["critical_modes"] >= 8)
    assert_allclose(flow["effective_sharpness"][1:], 1.0, rtol=1e-3)
    weights, rule = start[-1], flow_rule("rmsprop", eta=eta, **options)
    roots = []
    for _ in range(8):
        path, state = real_run(linear, weights, "rmsprop", eta, 100, state=state, **options)
        weights = path[-1]
        roots.append(np.sqrt(initial_memory(rule, linear.size, state).second_moments).sum())
    forecast = float(np.sqrt(flow["final_second_moments"]).sum())
    assert_allclose(forecast, np.mean(roots[4:]), rtol=0.01)
    still = jax.grad(linear.loss)(jnp.asarray(flow["final_params"].values))
    assert float(jnp.abs(still).sum()) < 0.5 * forecast


@pytest.mark.slow
def test_complementarity_in_the_preconditioned_space(linear):
    options, eta = {"b2": 0.99, "eps": 1e-10}, 5e-3
    start, state = real_run(linear, linear.init(0), "rmsprop", eta, 300, **options)
    rule = flow_rule("rmsprop", eta=eta, **options)
    with jax.enable_x64(True):
        memory = initial_memory(rule, linear.size, state)
        flow = RuleCentralFlow(linear, jnp.asarray(start[-1]), rule, memory, modes=12, direction=None)
        follow(flow, steps=100, stride=5, save_every=100, progress=None)
    slack, covariance = balance(flow)
    size = np.trace(covariance)
    assert covariance.shape[0] >= 8
    assert np.linalg.eigvalsh(covariance)[0] > -1e-7 * size
    assert np.linalg.eigvalsh(slack)[0] > -1e-2 * rule.edge  # what a step leaves of the gap
    assert abs(np.sum(slack * covariance)) < 1e-2 * rule.edge * size
    assert size > 0


@pytest.mark.slow
def test_on_edge_caeo_is_descent_at_the_base_rate(small_task, small_start, top):
    eta = 1.92 / top
    given = {"eta": eta, "steps": 60, "modes": MODES}
    capped = central_flow(small_task, small_start, rule="caeo", delta=-0.1, **given)
    assert np.array_equal(
        capped["final_params"], central_flow(small_task, small_start, **given)["final_params"]
    )
    with pytest.raises(InvalidInput, match="delta=0 has no flow with full batches"):
        central_flow(small_task, small_start, rule="caeo", delta=0.0, **given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "lion"}, "rule='lion' has no flow"),
        ({"rule": "adam", "momentum": 0.9}, "momentum=0.9 is not an option of rule='adam'"),
        ({"stirde": 5}, "stirde=5 is not an option of rule='sgd'"),
        ({"rule": "adam", "state": (np.zeros(3),)}, "state holds 0 nodes with mu, nu, count"),
        ({"rule": "sgdm", "eta": -1.0}, "eta=-1.0 must be a positive learning rate"),
        ({"rule": "adam", "start": np.full(118, np.nan)}, "start must be 118 finite weights"),
        ({"rule": "adam", "modes": 30}, "k=30 modes of 118 weights; choose from 1 to 23"),
    ],
)
def test_refusals(small_task, small_start, change, message):
    given = {"start": small_start, "batch_size": 4, "eta": 0.1, "steps": 10, "modes": MODES} | change
    for batch_size in (4, 63):
        arguments = given | {"batch_size": batch_size}
        if "stirde" in change and batch_size == 63:
            continue
        with pytest.raises(InvalidInput, match=message):
            stochastic_central_flow(small_task, arguments.pop("start"), **arguments)


@pytest.mark.slow
def test_stochastic_rules_are_described_and_repeatable(small_task, small_start):
    given = {"batch_size": 8, "eta": 0.005, "steps": 30, "modes": MODES, "save_every": 10, "rule": "adam"}
    first, second = (stochastic_central_flow(small_task, small_start, b1=0.8, **given) for _ in range(2))
    assert first.identical(second)
    assert first["step"].values.tolist() == [0, 10, 20, 30]
    assert np.all(first["top_variance"][1:] > 0)
    assert np.all(first["final_second_moments"] >= 0)
    assert all(v.attrs["units"] and v.attrs["long_name"] for v in first.variables.values())
    assert first.attrs["rule"] == "adam"
    assert first.attrs["b1"] == 0.8


@pytest.mark.slow
@pytest.mark.parametrize(("name", "eta"), [("sgdm", 0.02), ("caeo", 0.05)])
def test_gradients_of_a_step_are_those_of_its_calls(monkeypatch, small_task, small_start, name, eta):
    """By hand, from how often each part is called: draws take products at five points, held ones one more at four."""
    called = Counter()

    def counted(part):
        function = getattr(rule_flow, part)

        def wrapped(*args, **kwargs):
            called[part] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(rule_flow, part, wrapped)

    for part in ("_local", "averaged", "measured", "sharpness_of_iterates", "sharpness_beside"):
        counted(part)
    given = {"batch_size": 8, "eta": eta, "steps": 30, "modes": MODES, "save_every": 10, "rule": name}
    flow = stochastic_central_flow(small_task, small_start, **given)
    assert called["sharpness_of_iterates"] == 3
    assert (called["sharpness_beside"] > 0) == (name == "caeo")
    k, m = MODES, rule_flow.sharp_modes(small_task.size, MODES)
    products = 2.0 * (8 * 5 + (4 if name == "sgdm" else 0))
    outside = 5.0 + 8 * (products + 2.0 + 1.0)
    each = {
        "_local": 1.0 + 2.0 * k + 17 * (1 + 2 * k) / 3,
        "averaged": 1.0 + 2.0 * k,
        "measured": outside,
        "sharpness_of_iterates": (1 + 2 * m) / 3 + flow_cost.reading(m, small_task.size, 4, k),
        "sharpness_beside": 2 * 3 * (1.0 + 2.0 * 4),
    }
    expected = small_task.n * sum(called[part] * cost for part, cost in each.items()) / 30
    assert_allclose(flow.attrs["gradients_per_step"], expected, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "eta", "options"), [("sgdm", 0.02, {}), ("adam", 0.005, {"b2": 0.99})])
def test_mean_loss_and_what_is_outside_the_carried_modes(small_task, small_start, name, eta, options):
    """400 runs beside flows of 4 modes, which leave a good part of the fluctuation outside.

    The excess of the mean loss over that of the averaged weights is a third of it, the flow of second order in the
    fluctuation: it may miss the square of that share, beside three standard errors of the runs. The control carries
    nothing outside.
    """
    settings = {"batch_size": 4, "eta": eta, "steps": 120}
    runs = record(
        small_task, name, seed=5, start=small_start, every=20, replicas=400, curvature=False, options=options,
        **settings,
    )  # fmt: skip
    late = runs["loss"].isel(step=runs.step >= 60)
    measured, error = late.mean("replica").values, late.std("replica").values / 20
    middle = runs["final_params"].values.mean(axis=0)

    def forecast(*without):
        flow = stochastic_central_flow(
            small_task, small_start, rule=name, modes=4, save_every=20, without=without, **settings, **options
        )
        at = flow.isel(step=flow.step >= 60)
        excess = (at["mean_loss"] - at["loss"]).values
        off = np.abs(at["mean_loss"].values - measured).mean() / measured.mean()
        return off, excess.mean() / measured.mean(), np.linalg.norm(flow["final_params"].values - middle)

    off, share, distance = forecast()
    bare, _, further = forecast("unresolved modes")
    assert off < share**2 + 3 * error.mean() / measured.mean()
    assert bare > 2 * off
    assert distance < further


@pytest.mark.slow
@double_precision
def test_a_fast_start_is_taken_in_short_steps(small_task, small_start):
    """A heavy ball thrown along its top eigenvector, nearly without noise: within 1 % of the way of the rule.

    The control takes five steps at a time from the start.
    """
    eta, steps = 0.02, 40
    throw = 30.0 * top_modes(small_task, jnp.asarray(small_start), MODES)[1][:, 0]
    theta, velocity = jnp.asarray(small_start), throw
    for _ in range(steps):
        velocity = 0.9 * velocity + jax.grad(small_task.loss)(theta)
        theta = theta - eta * velocity
    moved = np.linalg.norm(theta - small_start)

    def off(pace=None):
        flow = RuleFlow(
            small_task, jnp.asarray(small_start), flow_rule("sgdm", eta=eta), Memory(throw, 0.0 * throw, 0),
            batch_size=62, modes=MODES, seed=0, direction=None, without=["unresolved modes"],
        )  # fmt: skip
        flow._pace = pace or flow._pace
        follow(flow, steps=steps, stride=5, save_every=steps, progress=None)
        return np.linalg.norm(flow.theta - theta) / moved, flow.strides

    distance, made = off()
    hasty, fewer = off(lambda: 5)
    assert distance < 0.01
    assert hasty > 3 * distance
    assert fewer < made < steps  # more steps, but not single ones throughout


@pytest.mark.slow
@pytest.mark.parametrize(("name", "eta", "options"), [("sgdm", 0.02, {}), ("rmsprop", 0.001, {"b2": 0.99})])
def test_forecast_of_real_runs(name, eta, options):
    """150 steps at batch 8 of a network on digits, sixteen replicas, from a state on the way.

    The distance to their mean, squared, less its own sampling variance: within 12 % of the way, and a third of that of
    the run without noise (the control).
    """
    task = load_task("digits-mlp", examples=200, hidden=(16,), pool=2)
    path, state = real_run(task, task.init(0), name, eta, 60, **options)
    rule = make_rule(name, eta=eta, **options)
    resumed = rule._replace(init=lambda _: state)
    start, steps = path[-1], 150
    run = record(
        task, resumed, steps=steps, seed=1, eta=eta, batch_size=8, start=start, every=steps, replicas=16,
        batches_measured=1,
    )  # fmt: skip
    flow = stochastic_central_flow(
        task, start, batch_size=8, rule=name, eta=eta, steps=steps, state=state, save_every=steps, **options
    )
    final = run["final_params"].values
    mean = final.mean(axis=0)
    variance = np.sum((final - mean) ** 2) / (16 * 15)
    moved = np.linalg.norm(mean - start)
    distance = max(np.sum((flow["final_params"].values - mean) ** 2) - variance, 0.0) ** 0.5
    quiet = real_run(task, start, name, eta, steps, state=state, **options)[0][-1]
    control = max(np.sum((quiet - mean) ** 2) - variance, 0.0) ** 0.5
    assert distance < 0.12 * moved
    assert distance < control / 3
    error = float(run["loss"][:, -1].std() / 15**0.5)
    assert abs(float(flow["mean_loss"][-1] - run["loss"][:, -1].mean())) < 4 * error + 0.06 * float(
        flow["mean_loss"][-1]
    )
