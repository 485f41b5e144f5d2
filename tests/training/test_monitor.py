"""The stability monitor: its numbers against dense algebra, its place in a loop, its warnings."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from eos_sde import bridge, thresholds
from eos_sde.optimizers import curvature
from eos_sde.training import Reading, StabilityMonitor, max_stable_lr, monitored
from eos_sde.training.judgement import divergence_rate
from eos_sde.training.linear_rules import linear_rule
from eos_sde.training.readings import JUDGED, MEASURED
from solvers import InvalidInput

FULL = curvature.lanczos(order=12, tol=1e-6, restarts=20)


def network_loss(params, x, y):
    return 0.5 * jnp.mean(jnp.sum((jnp.tanh(x @ params["w"]) @ params["v"] - y) ** 2, axis=1))


@pytest.fixture(scope="module")
def problem():
    """A 3-5-2 tanh network away from a minimum: parameters, data of 12 examples, a batch of 4."""
    keys = jax.random.split(jax.random.key(1), 4)
    params = {"w": jax.random.normal(keys[0], (3, 5)), "v": jax.random.normal(keys[1], (5, 2))}
    data = (jax.random.normal(keys[2], (12, 3)), jax.random.normal(keys[3], (12, 2)))
    return params, data, tuple(a[:4] for a in data)


def dense(params, batch, scale=1.0):
    """Gradient and Hessian on a batch in the coordinates w / scale."""
    flat, unravel = ravel_pytree(params)

    def value(z):
        return network_loss(unravel(flat + scale * z), *batch)

    zero = jnp.zeros_like(flat)
    return np.asarray(jax.grad(value)(zero)), np.asarray(jax.hessian(value)(zero)), value


def curvatures_along(u, params, data, scale):
    """u'H_i u of every example, in the coordinates w / scale."""
    flat, unravel = ravel_pytree(params)

    def one(x, y):
        value = lambda z: network_loss(unravel(flat + scale * z), x[None], y[None])  # noqa: E731
        return u @ jax.hessian(value)(jnp.zeros_like(flat)) @ u

    return np.asarray(jax.vmap(one)(*data))


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["sgd", "nesterov", "adamw"])
def test_numbers_against_dense_algebra(problem, rule):
    params, data, batch = problem
    optimizer = bridge.make_rule(rule, eta=0.1)
    state = optimizer.init(params)
    for _ in range(2):
        _, state = optimizer.update(jax.grad(network_loss)(params, *data), state, params)
    scale = 1.0
    if rule == "adamw":  # the preconditioner of the coming update, by optax's own arithmetic
        gradient = ravel_pytree(jax.grad(network_loss)(params, *batch))[0]
        nu = 0.999 * ravel_pytree(state[0].nu)[0] + 0.001 * gradient**2
        scale = 1 / jnp.sqrt((1 - 0.9**3) * (jnp.sqrt(nu / (1 - 0.999**3)) + 1e-8))
    monitor = StabilityMonitor(network_loss, rule=rule, examples=12, estimator=FULL)
    _, reading = monitor.update(monitor.init(params), params, batch, 0.3, data=data, opt_state=state)
    g, hessian, value = dense(params, data, scale)
    gb, hessian_b, _ = dense(params, batch, scale)
    values, vectors = np.linalg.eigh(hessian)
    u = vectors[:, -1]
    each = curvatures_along(u, params, data, scale)
    step = linear_rule(rule)
    spread = (12 - 4) / (4 * 11) * np.var(each)
    third = np.asarray(jax.grad(lambda z: u @ jax.hessian(value)(z) @ u)(jnp.zeros(len(u))))
    expected = {
        "loss": float(network_loss(params, *data)),
        "gradient_norm": np.linalg.norm(g),
        "sharpness": values[-1],
        "batch_sharpness": gb @ hessian_b @ gb / (gb @ gb),
        "gradient_noise_interaction": gb @ hessian @ gb / (g @ g),
        "curvature_spread": np.std(each),
        "self_stabilization": third @ third - (third @ u) ** 2,
        "deterministic": step.edge(values[-1]),
        "batch": step.edge(gb @ hessian_b @ gb / (gb @ gb)),
        "distance_deterministic": np.log(step.edge(values[-1]) / 0.3),
    }
    # Lanczos to a residual of 1e-6: 1e-12 in the eigenvalue, 1e-6 over the gap in the vector
    for name, truth in expected.items():
        assert float(getattr(reading, name)) == pytest.approx(float(truth), rel=1e-5), name
    root = float(reading.mean_square)
    assert spread * step.response(root, values[-1], values[-1]) == pytest.approx(1.0, rel=1e-5)
    assert bool(reading.measured)


@pytest.mark.slow
def test_one_mode_threshold_is_the_closed_form():
    def loss(w, h):
        return 0.5 * jnp.mean(h) * w[0] ** 2

    h = jnp.array([0.5, 2.5, 1.0, 2.0])
    for name, options in (("sgd", {}), ("sgdm", {"momentum": 0.8})):
        monitor = StabilityMonitor(loss, rule=name, batch_size=2, examples=4, **options)
        _, reading = monitor.update(monitor.init(jnp.ones(1)), jnp.ones(1), h[:2], 0.1, data=h)
        variance = (4 - 2) / (2 * 3) * float(jnp.var(h))
        closed = thresholds.momentum_sgd_scalar(1.5, variance, momentum=options.get("momentum", 0.0))
        assert float(reading.mean_square) == pytest.approx(float(closed), rel=1e-6)


def loop(monitor, optimizer, params, data, rates, *, compiled):
    """Full-batch training; one scan, or single calls of a compiled step."""

    def step(carry, rate):
        params, opt_state, state = carry
        state, reading = monitor.update(state, params, data, rate, opt_state=opt_state)
        updates, opt_state = optimizer.update(jax.grad(network_loss)(params, *data), opt_state, params)
        return (jax.tree.map(lambda p, u: p + rate * u, params, updates), opt_state, state), reading

    carry = (params, optimizer.init(params), monitor.init(params))
    if compiled:
        return jax.lax.scan(step, carry, jnp.asarray(rates))
    readings, step = [], jax.jit(step)
    for rate in rates:
        carry, reading = step(carry, jnp.asarray(rate))
        readings.append(reading)
    return carry, readings


@pytest.mark.slow
def test_scan_single_steps_and_no_monitor_agree(problem):
    params, data, _ = problem
    rates = np.full(12, 0.05)
    monitor = StabilityMonitor(network_loss, rule="gd", every=5)
    (scanned, _, _), stacked = loop(monitor, optax.sgd(1.0), params, data, rates, compiled=True)
    (stepped, _, _), listed = loop(monitor, optax.sgd(1.0), params, data, rates, compiled=False)
    one, two = monitor.dataset(stacked, every_step=True), monitor.dataset(listed, every_step=True)
    for name in one:  # another program, so that sums may be ordered otherwise
        np.testing.assert_allclose(one[name].values, two[name].values, rtol=1e-9, err_msg=name)
    assert list(monitor.dataset(stacked).step) == [0, 5, 10]
    assert list(one.staleness) == [0, 1, 2, 3, 4] * 2 + [0, 1]

    def plain(w, rate):
        return jax.tree.map(lambda p, g: p - rate * g, w, jax.grad(network_loss)(w, *data)), None

    bare = jax.lax.scan(plain, params, jnp.asarray(rates))[0]
    for a, b, c in zip(*map(jax.tree.leaves, (scanned, stepped, bare)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
        np.testing.assert_allclose(a, c, rtol=1e-12)


def test_sharpness_is_that_of_max_stable_lr_and_distances_follow_the_rate(problem):
    params, data, _ = problem
    monitor = StabilityMonitor(network_loss, rule="sgdm", every=100, estimator=FULL)
    rates = np.geomspace(0.001, 0.004, 5)
    _, readings = loop(monitor, optax.sgd(1.0, momentum=0.9), params, data, rates, compiled=True)
    edge = max_stable_lr(network_loss, params, data, rule="sgdm", criterion="deterministic")
    np.testing.assert_allclose(readings.distance_deterministic, np.log(float(edge) / rates), rtol=1e-9)


@pytest.mark.slow
def test_log_has_units_and_survives_a_file(problem, tmp_path):
    params, data, _ = problem
    monitor = StabilityMonitor(network_loss, rule="gd", every=2)
    _, readings = loop(monitor, optax.sgd(1.0), params, data, np.full(4, 0.01), compiled=True)
    log = monitor.dataset([readings, readings])
    assert log.sizes["step"] == 4
    assert set(log) == {*MEASURED, *JUDGED, "learning_rate", "staleness", "edge", "warning"}
    assert all({"units", "long_name"} <= set(log[name].attrs) for name in log.variables)
    assert log.attrs["rule"] == "gd"
    log.to_netcdf(tmp_path / "log.nc", engine="h5netcdf")


def test_a_rate_of_zero_is_infinitely_far(problem):
    # as a warm-up begins; numpy must not complain of the division either
    params, data, _ = problem
    monitor = StabilityMonitor(network_loss, rule="gd")
    _, readings = loop(monitor, optax.sgd(1.0), params, data, [0.0, 1e-3], compiled=True)
    with np.errstate(all="raise"):
        log = monitor.dataset(readings, every_step=True)
    assert float(log.distance_deterministic[0]) == np.inf
    assert float(log.predicted_loss[0]) == float(log.loss[0])
    assert not log.edge.any()


def quadratic(w, x, y):
    return 0.5 * jnp.mean((x @ w - y) ** 2)


LINE = (jnp.sqrt(2.0) * jnp.diag(jnp.sqrt(jnp.array([4.0, 1.0]))), jnp.zeros(2))  # H = diag(4, 1)


def test_a_linear_model_is_warned_beyond_the_edge_with_hysteresis():
    # No self-stabilization: the excursion never ends, so there is an alarm from the edge at 1/2 on. A second
    # measurement confirms it, and the warning is off below 0.45.
    monitor = StabilityMonitor(quadratic, rule="gd", every=1)
    state, seen = monitor.init(jnp.ones(2)), []
    update = jax.jit(monitor.update)
    for rate in (0.3, 0.49, 0.51, 0.47, 0.51, 0.52, 0.47, 0.46, 0.44, 0.48):
        state, reading = update(state, jnp.ones(2), LINE, rate)
        seen.append((bool(reading.edge), bool(reading.warning)))
    assert seen == [(False, False)] * 2 + [(True, False)] * 3 + [(True, True)] * 3 + [(False, False)] * 2


def test_an_alarm_is_no_warning_while_the_sharpness_comes_down():
    # beyond the edge at each step, 2/4, 2/3 and 2/3 as the data are scaled: the second has fallen by a quarter
    monitor = StabilityMonitor(quadratic, rule="gd", every=1)
    state, update, seen = monitor.init(jnp.ones(2)), jax.jit(monitor.update), []
    for sharpness in (4.0, 3.0, 3.0):
        scaled = (LINE[0] * np.sqrt(sharpness / 4), LINE[1])
        state, reading = update(state, jnp.ones(2), scaled, 0.8)
        seen.append((bool(reading.edge), bool(reading.warning)))
    assert seen == [(True, False), (True, False), (True, True)]


@pytest.mark.slow
def test_far_beyond_the_catapult_an_alarm_is_a_warning_at_once():
    monitor = StabilityMonitor(quadratic, rule="gd", every=1)
    for factor, warned in ((2.9, False), (3.1, True)):  # of 4/S = 1
        _, reading = monitor.update(monitor.init(jnp.ones(2)), jnp.ones(2), LINE, factor)
        assert bool(reading.warning) == warned


@pytest.mark.slow
def test_an_alarm_that_the_budget_cannot_measure_is_a_warning_at_once():
    monitor = StabilityMonitor(quadratic, rule="gd", overhead=1e-3)
    state, _ = monitor.update(monitor.init(jnp.ones(2)), jnp.ones(2), LINE, 0.3)
    state = state._replace(count=jnp.int32(100))
    _, looked = monitor.update(state, jnp.ones(2), LINE, 0.6)
    assert bool(looked.measured)
    assert not bool(looked.warning)
    broke = state._replace(schedule=state.schedule._replace(debt=jnp.int32(2**24)))
    _, unseen = monitor.update(broke, jnp.ones(2), LINE, 0.6)
    assert not bool(unseen.measured)
    assert bool(unseen.warning)


@pytest.mark.slow
def test_the_network_at_its_edge_is_not_warned_and_beyond_the_catapult_it_is(problem):
    params, data, _ = problem
    monitor = StabilityMonitor(network_loss, rule="gd", every=1, estimator=FULL)
    state = monitor.init(params)
    _, reading = monitor.update(state, params, data, 1e-3)
    edge = float(reading.deterministic)
    for factor, edge_flag, warned in ((0.9, False, False), (1.1, True, False), (2.1, True, True)):
        once, reading = monitor.update(state, params, data, factor * edge)
        assert not bool(reading.warning)
        _, reading = monitor.update(once, params, data, factor * edge)
        assert (bool(reading.edge), bool(reading.warning)) == (edge_flag, warned)
    assert "allows" in monitor.message(reading)
    _, quiet = monitor.update(state, params, data, 0.1 * edge)
    assert monitor.message(quiet) == ""


@pytest.mark.parametrize("nesterov", [False, True])
def test_catapult_edge_is_where_the_two_layer_linear_network_diverges(nesterov):
    # u.v/sqrt(n) fitted to 0: the sharpness is (|u|^2 + |v|^2)/n. With momentum the network, a chaotic map there,
    # diverges at some rates in a band below the edge (from 0.95 of it at b = 0.3, from 0.8 at 0.9), and at all above.
    n, b = 2000, 0.3
    rng = np.random.default_rng(0)
    u, v = rng.standard_normal((2, n))
    v -= u * (u @ v) / (u @ u) - u * 1e-3 * np.sqrt(n) / (u @ u)
    sharpness = (u @ u + v @ v) / n
    step = linear_rule("nesterov" if nesterov else "sgdm", momentum=b)
    edge = step.edge(sharpness, growth=3.0)
    for factor, diverges in ((0.93, False), (1.03, True)):
        w, memory = np.stack([u, v]), np.zeros((2, n))
        for _ in range(400):
            f = w[0] @ w[1] / np.sqrt(n)
            if not abs(f) < 1e6:
                break
            gradient = f * w[::-1] / np.sqrt(n)
            memory = b * memory + gradient
            w = w - factor * edge * (gradient + b * memory if nesterov else memory)
        assert (not abs(f) < 1e6) == diverges


@pytest.mark.parametrize("adaptive", [False, True])
def test_an_alarm_begins_where_the_predicted_peak_passes_the_limit(adaptive):
    # 2000 states, every fifth with unknown feedback, and 200 rates each: the edge in closed form against the peak
    keys = iter(jax.random.split(jax.random.key(3), 10))

    def draw(spread):
        return jnp.exp(spread * jax.random.normal(next(keys), (2000, 1)))

    limit, sharpness, deterministic = 10.0, draw(1.0), draw(0.3)
    found = dict.fromkeys(MEASURED, jnp.zeros((2000, 1))) | {
        "loss": draw(1.0), "sharpness": sharpness,
        "deterministic": deterministic, "mean_square": deterministic * draw(0.5),
        "self_stabilization": sharpness**3 * draw(2.0) / 10, "catapult": deterministic * 2 * draw(0.3),
        "saturation": draw(2.0) if adaptive else jnp.full((2000, 1), jnp.inf),
    }  # fmt: skip
    unknown = jnp.arange(2000)[:, None] % 5 == 0
    found["self_stabilization"] = jnp.where(unknown, jnp.nan, found["self_stabilization"])
    first, rates = draw(1.0), jnp.geomspace(0.01, 100.0, 200)[None, :]
    nearest = jnp.minimum(found["deterministic"], found["mean_square"])
    edge = divergence_rate(
        found["loss"], first, sharpness, found["self_stabilization"], found["saturation"], nearest, found["catapult"],
        limit=limit, adaptive=adaptive,
    )  # fmt: skip
    numbers = jnp.broadcast_to(
        jnp.stack([found[name] for name in MEASURED], axis=-1), (2000, 200, len(MEASURED))
    )
    reading = Reading(jnp.broadcast_to(rates, (2000, 200)), numbers, jnp.zeros((2000, 200, 3), jnp.int32))
    alarm = (rates > nearest) & (reading.predicted_loss > limit * jnp.maximum(first, found["loss"]))
    if not adaptive:
        alarm |= rates > found["catapult"]
    assert 0.1 < float(alarm.mean()) < 0.9
    np.testing.assert_array_equal(rates > edge, alarm)


def test_what_waits_for_a_reading_keeps_its_bits(problem):
    params, data, _ = problem
    monitor = StabilityMonitor(network_loss, rule="gd")
    state = monitor.init(params)

    @jax.jit
    def both(state):
        _, reading = monitor.update(state, params, data, 0.1)
        gradient = jax.grad(network_loss)(params, *data)
        return gradient, reading.then(gradient)

    jax.tree.map(np.testing.assert_array_equal, *both(state))


def lifted(w, x, y):
    return 1.0 + quadratic(w, x, y)


@pytest.mark.slow
def test_adam_is_judged_by_its_bounded_steps():
    # Beyond its edge Adam oscillates with steps of about eta in each weight: no warning while these cost little.
    monitor = StabilityMonitor(lifted, rule="adam", every=1)
    optimizer, w = optax.scale_by_adam(), jnp.full(2, 1e-3, float)
    _, opt_state = optimizer.update(jax.grad(lifted)(w, *LINE), optimizer.init(w))
    state = monitor.init(w)
    for rate, warned in ((0.1, False), (10.0, True)):
        once, _ = monitor.update(state, w, LINE, rate, opt_state=opt_state)
        _, reading = monitor.update(once, w, LINE, rate, opt_state=opt_state)
        assert bool(reading.edge)
        assert bool(reading.warning) == warned
        # one mode along the first weight, or both weights in step: eta^2/2 times 4, or 4 + 1
        cost = (float(reading.predicted_loss) - float(reading.loss)) / rate**2
        assert min(abs(cost - 2.0), abs(cost - 2.5)) < 1e-6


@pytest.mark.slow
def test_transformation_reads_and_leaves_the_updates_alone(problem):
    params, data, batch = problem
    schedule = optax.linear_schedule(0.1, 0.2, 10)
    bare = optax.adam(schedule)
    monitor = StabilityMonitor(network_loss, rule="adam", every=1)
    wrapped = monitored(bare, monitor, schedule)
    state, plain = wrapped.init(params), bare.init(params)
    for _ in range(3):
        gradient = jax.grad(network_loss)(params, *batch)
        updates, state = wrapped.update(gradient, state, params, batch=batch, data=data)
        expected, plain = bare.update(gradient, plain, params)
        for a, b in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(a, b)
    assert float(state.monitor.reading.learning_rate) == pytest.approx(0.12)
    with pytest.raises(InvalidInput, match="batch"):
        wrapped.update(gradient, state, params)


def test_notify_once_per_warning():
    heard = []
    monitor = StabilityMonitor(quadratic, rule="gd", every=1, notify=heard.append)
    state, update = monitor.init(jnp.ones(2)), jax.jit(monitor.update)
    for rate in (0.4, 0.6, 0.7, 0.8, 0.3, 0.8, 0.9):
        state, _ = update(state, jnp.ones(2), LINE, rate)
    jax.effects_barrier()
    assert [round(float(reading.learning_rate), 3) for reading in heard] == [0.7, 0.9]


def test_diverged_weights_are_reported_and_do_not_spoil_the_monitor():
    monitor = StabilityMonitor(quadratic, rule="gd", every=1)
    state, update = monitor.init(jnp.ones(2)), jax.jit(monitor.update)
    with warnings.catch_warnings():
        state, reading = update(state, jnp.full(2, jnp.inf, float), LINE, 0.1)
    assert bool(reading.warning)
    _, reading = update(state, jnp.ones(2), LINE, 0.1)
    assert float(reading.sharpness) == pytest.approx(4.0, rel=1e-3)
    assert np.isfinite(float(reading.batch_sharpness))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"rule": "lion"}, "rule='lion'"),
        ({"every": 0}, "every=0"),
        ({"overhead": 1.5}, "overhead"),
        ({"limit": -1.0}, "limit"),
        ({"batch_size": 8, "examples": 4}, "batch_size=8"),
        ({"loss": None}, "not callable"),
    ],
)
def test_refusals(arguments, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        StabilityMonitor(arguments.pop("loss", quadratic), **arguments)


def test_other_parameters_than_at_the_start():
    monitor = StabilityMonitor(quadratic, rule="gd")
    with pytest.raises(InvalidInput, match="init"):
        monitor.update(monitor.init(jnp.ones(2)), jnp.ones(3), LINE, 0.1)
    with pytest.raises(InvalidInput, match="init"):
        monitor.update(monitor.init(jnp.ones(2)), jnp.ones(2, jnp.float32), LINE, 0.1)


def test_adam_needs_its_state():
    monitor = StabilityMonitor(quadratic, rule="adam")
    with pytest.raises(InvalidInput, match="opt_state"):
        monitor.update(monitor.init(jnp.ones(2)), jnp.ones(2), LINE, 0.1)
