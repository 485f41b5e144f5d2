"""Rules as the flows need them: their covariance by enumeration and closed form, their rates and memory by optax."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose

from eos_sde.bridge import make_rule
from eos_sde.bridge.flow_rules import flow_rule, initial_memory
from eos_sde.bridge.gradient_moments import sign_rows
from eos_sde.bridge.state_covariance import averaged_steps, settled_curvature, state_recursion
from solvers.errors import InvalidInput

MOMENTUM = ["sgdm", "nesterov", "adam"]


@pytest.fixture(scope="module")
def quadratic():
    """Six examples, three weights: gradients of mean zero, curvatures in the eigenbasis of their mean."""
    rng = np.random.default_rng(0)
    jacobian = rng.standard_normal((6, 2, 3)) * [1.5, 1.0, 0.4]
    values, basis = np.linalg.eigh(np.einsum("nci,ncj->ij", jacobian, jacobian) / 6)
    jacobian = jacobian @ basis
    gradients = rng.standard_normal((6, 3))
    return values, gradients - gradients.mean(axis=0), np.einsum("nci,ncj->nij", jacobian, jacobian)


def one_step(rule, curvature):
    """The rule's matrix on (w, v), shape (2 d, 2 d), and the kick of a gradient, written out."""
    d, b, gain = len(curvature), rule.linear.momentum, rule.linear.gain
    eye, none = np.eye(d), np.zeros((d, d))
    velocity = np.block([gain * curvature, b * eye])
    look = b if rule.linear.nesterov else 1.0
    direct = gain if rule.linear.nesterov else 0.0
    weights = np.block([eye, none]) - look * velocity - np.block([direct * curvature, none])
    return np.concatenate([weights, velocity]), np.concatenate([-(look * gain + direct) * eye, gain * eye])


@pytest.mark.parametrize("name", MOMENTUM)
@pytest.mark.parametrize("batch", [1, 5])
def test_covariance_is_the_average_over_all_batches(quadratic, name, batch):
    values, gradients, curvatures = (0.3 * part for part in quadratic)
    rule = flow_rule(name, eta=1.0, **({"b1": 0.8} if name == "adam" else {"momentum": 0.8}))
    p = (6 - batch) / (batch * 5)
    recursion = state_recursion(
        rule.linear, jnp.asarray(values), jnp.asarray(gradients), jnp.asarray(curvatures), p
    )
    draw = np.random.default_rng(1).standard_normal((6, 9))
    expected = draw @ draw.T / 9
    start = expected.reshape(2, 3, 2, 3).transpose(1, 0, 3, 2)
    drawn = [list(rows) for rows in combinations(range(6), batch)]
    for steps in range(1, 5):
        later = np.zeros((6, 6))
        for rows in drawn:
            matrix, kick = one_step(rule, curvatures[rows].mean(axis=0))
            push = kick @ gradients[rows].mean(axis=0)
            later += (matrix @ expected @ matrix.T + np.outer(push, push)) / len(drawn)
        expected = later
        got = np.asarray(recursion.after(jnp.asarray(start), steps)).transpose(1, 0, 3, 2).reshape(6, 6)
        assert_allclose(got, expected, rtol=1e-11, atol=1e-12)
    whole = np.zeros((36, 36))
    for rows in drawn:
        matrix = one_step(rule, curvatures[rows].mean(axis=0))[0]
        whole += np.kron(matrix, matrix) / len(drawn)
    radius = np.abs(np.linalg.eigvals(whole)).max()
    assert_allclose(float(recursion.radius()), radius, rtol=5e-3)  # by powers
    if radius < 1:
        pushes = sum(
            np.outer(push, push)
            for rows in drawn
            for push in [one_step(rule, curvatures[rows].mean(axis=0))[1] @ gradients[rows].mean(axis=0)]
        ) / len(drawn)
        fixed = np.linalg.solve(np.eye(36) - whole, pushes.ravel()).reshape(6, 6)
        late = recursion.after(jnp.zeros((3, 2, 3, 2)), 5000)
        assert_allclose(late[:, 0, :, 0], fixed[:3, :3], rtol=1e-8)


@pytest.mark.parametrize("name", MOMENTUM)
@pytest.mark.parametrize("b", [0.5, 0.9])
def test_edge_and_stationary_variance_of_one_mode(name, b):
    """Heavy ball: Var w = s (1 + b)/((1 - b) z (2 (1 + b) - z)), at a rate of 1; the edge is its pole."""
    rule = flow_rule(name, eta=0.3, **({"b1": b} if name == "adam" else {"momentum": b}))
    edge = {
        "sgdm": 2 + 2 * b, "nesterov": (2 + 2 * b) / (1 + 2 * b), "adam": (2 + 2 * b) / (1 - b),
    }[name]  # fmt: skip
    assert_allclose(rule.edge, edge, rtol=1e-14)
    pair, none = jnp.asarray([[1.0], [-1.0]]), jnp.zeros((2, 1, 1))
    for share, stable in ((0.98, True), (1.02, False)):
        recursion = state_recursion(rule.linear, jnp.asarray([share * edge]), pair, none, 1.0)
        assert (float(recursion.radius()) < 1) == stable
    if name != "sgdm":
        return
    for z in (0.05, 1.0, 0.95 * edge):
        late = state_recursion(rule.linear, jnp.asarray([z]), pair, none, 0.4).after(
            jnp.zeros((1, 2, 1, 2)), 4000
        )
        assert_allclose(float(late[0, 0, 0, 0]), 0.4 * (1 + b) / ((1 - b) * z * (2 * (1 + b) - z)), rtol=1e-9)


@pytest.mark.parametrize("name", ["sgd", *MOMENTUM])
def test_averaged_steps_are_the_rule_on_a_quadratic(name):
    """In modes that do not alternate; weights outside them move under a constant force."""
    rng, rule = np.random.default_rng(3), flow_rule(name, eta=1.0)
    curvature = np.array([0.9, 0.4, 0.02, -0.01]) * min(settled_curvature(rule.linear), 1.0)
    scale = np.array([0.5, 1.0, 2.0, 0.3, 1.0])
    modes = np.linalg.qr(rng.standard_normal((5, 4)))[0]
    hessian = (modes * curvature) @ modes.T / np.outer(scale, scale)
    gradient, velocity = rng.standard_normal(5), rng.standard_normal(5) * bool(rule.linear.momentum)
    moved, later = averaged_steps(
        rule.linear, jnp.asarray(gradient), jnp.asarray(velocity), jnp.asarray(scale), jnp.asarray(curvature),
        jnp.asarray(modes), 7,
    )  # fmt: skip
    b, gain, w, v = rule.linear.momentum, rule.linear.gain, np.zeros(5), velocity
    for _ in range(7):
        slope = gradient + hessian @ w
        v = b * v + gain * slope
        w = w - scale**2 * (gain * slope + b * v if rule.linear.nesterov else v)
    assert_allclose(moved, w, rtol=1e-10)
    if rule.linear.momentum:
        assert_allclose(later, v, rtol=1e-10)


def test_the_mean_of_an_alternating_mode_settles():
    """Beyond the edge the mode itself grows; its mean stays where the force vanishes."""
    rule = flow_rule("sgdm", eta=1.0)
    z = jnp.asarray([1.1 * rule.edge])
    moved = averaged_steps(rule.linear, jnp.ones(1), jnp.zeros(1), jnp.ones(1), z, jnp.ones((1, 1)), 400)[0]
    assert_allclose(float(moved[0]), -1.0 / float(z[0]), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adam", {"b1": 0.8, "b2": 0.99, "eps": 1e-3}),
        ("rmsprop", {"b2": 0.95, "eps": 1e-3}),
        ("rmsprop", {"b2": 0.95, "eps": 1e-3, "eps_in_sqrt": False, "bias_correction": True}),
    ],
)
def test_rates_and_memory_are_those_of_optax(name, options):
    """At each of eight steps: update = -rate * velocity, from the moments that the step leaves."""
    rule, transformation = flow_rule(name, eta=0.1, **options), make_rule(name, eta=0.1, **options)
    draws = jnp.asarray(np.random.default_rng(2).standard_normal((8, 4)))
    state = transformation.init(draws[0])
    memory = initial_memory(rule, 4, state)
    assert_allclose(memory.second_moments, 0.0)
    moments = jnp.zeros(4)
    for count, gradient in enumerate(draws, 1):
        update, state = transformation.update(gradient, state, draws[0])
        moments = rule.later(moments, gradient**2, 1)
        memory = initial_memory(rule, 4, state)
        assert_allclose(memory.second_moments, moments, rtol=1e-6)
        moved = memory.velocity if rule.linear.momentum else gradient
        assert_allclose(update, -rule.rates(memory.second_moments, count) * moved, rtol=1e-5)
        assert memory.updates == (count if rule.bias_correction else 0)


def test_memory_of_a_trace():
    rule, transformation = flow_rule("nesterov", eta=0.1), make_rule("nesterov", eta=0.1)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
    state = transformation.init(params)
    for _ in range(2):
        state = transformation.update({"a": jnp.array([1.0, 2.0]), "b": jnp.array([3.0])}, state, params)[1]
    assert_allclose(initial_memory(rule, 3, state).velocity, 1.9 * np.array([1.0, 2.0, 3.0]), rtol=1e-6)
    assert_allclose(initial_memory(rule, 3, None).velocity, 0.0)
    assert_allclose(
        initial_memory(flow_rule("caeo", eta=0.1), 3, state).velocity, 0.0
    )  # it remembers nothing


def test_signs_are_orthogonal():
    for modes in (1, 6, 16):
        signs = sign_rows(modes)
        assert_allclose(signs.T @ signs, len(signs) * np.eye(modes))
        assert_allclose(signs.sum(axis=0), 0.0)


def test_capped_rate():
    rule = flow_rule("caeo", eta=0.1, delta=0.5)
    assert_allclose(rule.capped(jnp.asarray([1.0, 30.0])), [0.1, 0.05])
    assert flow_rule("sgdm", eta=0.1).capped(30.0) == 0.1


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("lion", {}, "rule='lion' has no flow: choose one of gd, sgd, sgdm"),
        ("sgd", {"momentum": 0.9}, "momentum=0.9 is not an option of rule='sgd': leave it out"),
        ("sgdm", {"b2": 0.9}, "b2=0.9 is not an option of rule='sgdm'"),
        ("sgdm", {"momentum": 1.0}, "momentum"),
        ("adam", {"b2": 1.5}, "b2"),
        ("rmsprop", {"eps": -1.0}, "eps"),
        ("caeo", {"delta": 2.0}, "delta must be a finite number below 2"),
        ("adam", {"eta": 0.0}, "eta=0.0 must be a positive learning rate"),
    ],
)
def test_refusals(name, given, message):
    with pytest.raises(InvalidInput, match=message):
        flow_rule(name, **({"eta": 0.1} | given))


@pytest.mark.parametrize(
    ("name", "state", "message"),
    [
        ("sgdm", optax.adam(0.1).init(jnp.zeros(3)), "state holds 0 nodes with trace, which rule='sgdm' keeps"),
        ("adam", optax.sgd(0.1, 0.9).init(jnp.zeros(3)), "state holds 0 nodes with mu, nu, count"),
        ("sgdm", optax.sgd(0.1, 0.9).init(jnp.zeros(4)), r"3 finite numbers in trace, got shape \(4,\)"),
        ("rmsprop", (optax.ScaleByRmsState(nu=jnp.full(3, jnp.nan)),), "state must hold 3 finite numbers in nu"),
    ],
)  # fmt: skip
def test_states_that_do_not_fit(name, state, message):
    with pytest.raises(InvalidInput, match=message):
        initial_memory(flow_rule(name, eta=0.1), 3, state)


def test_make_rule_knows_rmsprop():
    default, named = make_rule("rmsprop", eta=0.1), optax.rmsprop(0.1)
    grad = jnp.asarray([1.0, -2.0])
    updates = [rule.update(grad, rule.init(grad), grad)[0] for rule in (default, named)]
    assert_allclose(*updates)
    assert jax.tree.structure(default.init(grad)) == jax.tree.structure(named.init(grad))
    with pytest.raises(InvalidInput, match="rule='rmsprop' does not take one of the options b1"):
        make_rule("rmsprop", eta=0.1, b1=0.9)
