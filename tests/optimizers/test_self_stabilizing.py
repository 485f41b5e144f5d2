"""Self-stabilizing CAEO: its rule against closed forms, its optax form, and a network that runs away without it."""

import doctest
import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from eos_sde import bridge
from eos_sde.optimizers import caeo, curvature, rule, self_stabilizing, self_stabilizing_caeo
from eos_sde.optimizers import self_stabilizing_rule as stabilizing
from solvers.errors import InvalidInput

CURVATURES = jnp.array([0.5, 5.0, 10.0])


def quadratic(params):
    return 0.5 * jnp.sum(CURVATURES.astype(params.dtype) * params**2)


@given(
    base=st.floats(1e-3, 1e2), sharpness=st.floats(-1e3, 1e3), directional=st.floats(-1e3, 1e3), delta=st.floats(-1, 1)
)  # fmt: skip
def test_rule_is_the_proposal_or_the_nearest_of_three_edges(base, sharpness, directional, delta):
    kept = stabilizing.self_stabilizing_learning_rate(
        base, sharpness, directional, released=False, delta=delta
    )
    free = stabilizing.self_stabilizing_learning_rate(
        base, sharpness, directional, released=True, delta=delta
    )
    assert kept == rule.learning_rate(base, sharpness, delta)
    edges = [base]
    edges += [2 / directional] if directional > 0 else []
    edges += [3 / sharpness] if sharpness > 0 else []
    assert free == pytest.approx(min(edges), rel=1e-12)
    together = stabilizing.self_stabilizing_learning_rate(
        base, np.full(2, sharpness), directional, released=np.array([False, True]), delta=delta
    )
    np.testing.assert_array_equal(together, [kept, free])


@pytest.mark.parametrize("x", [1.0, 0.03])
def test_oscillation_grows_by_what_the_descent_gives(x):
    """The closed form of x^2, and no change of the second-order expansion, where base and growth do not bind."""
    top, slope = 4.0, 0.1
    square = (top * x) ** 2 + slope**2
    directional = stabilizing.directional_sharpness(top, (top * x) ** 2 / square, 0.0)
    rate = stabilizing.self_stabilizing_learning_rate(1e9, top, directional, released=True, growth=1e9)
    after = (x - rate * top * x) ** 2
    assert after == pytest.approx(x**2 * (1 + 2 * slope**2 / (top * x) ** 2) ** 2, rel=1e-12)
    assert after >= x**2 + 4 * slope**2 / top**2
    gained = rate * slope**2 - 0.5 * top * (after - x**2)  # along the flat direction, less along the top one
    assert gained == pytest.approx(0, abs=1e-12 * rate * square)


@pytest.mark.parametrize("stable", [0.05, 0.9, 1.0, 1.8])
def test_descent_of_a_noisy_quadratic_and_of_a_drift(stable):
    """Moving-average form of the gradients, g = xi_t - stable sum a^j xi_{t-1-j}: their autocovariance term by term."""
    a = 1 - stable
    weights = np.concatenate([[1.0], -stable * a ** np.arange(2000.0)])
    lagged = weights[1:] @ weights[:-1] + weights[2:] @ weights[:-2]
    assert lagged == pytest.approx(-stable, rel=1e-10)
    mean = 0.0
    for step in range(500):
        mean = stabilizing.descent(mean, np.nan if step == 7 else 2 * 0.3**2, step)
        assert (mean == 0) == (step < 2)
    assert mean == pytest.approx(2 * 0.3**2)


@pytest.mark.parametrize("growth", [-0.1, np.nan, np.inf, "much"])
def test_bad_settings_are_refused(growth):
    with pytest.raises(InvalidInput, match="growth must be"):
        self_stabilizing_caeo(0.1, growth=growth)


@pytest.mark.slow
def test_least_growth_is_a_floor_of_the_released_rate():
    """On a gradient along the top direction 2/R is the edge; the floor lies beyond it, and below the base rate."""
    rate = functools.partial(
        stabilizing.self_stabilizing_learning_rate, sharpness=10.0, directional=10.0, least_growth=0.5
    )
    assert rate(1.0, released=True) == pytest.approx(0.25)
    assert rate(0.22, released=True) == pytest.approx(0.22)
    assert rate(1.0, released=False) == pytest.approx(0.19)
    # where the descent pays for more it grows by more
    assert rate(1.0, directional=0.1, released=True) == pytest.approx(0.3)
    start = jnp.array([0.0, 0.0, 1.0, 0.0])
    given = (lambda p: quadratic(p[:3]) + 1e-3 * p[3], start, jnp.zeros((40, 4)))
    slow = run(self_stabilizing_caeo(0.25, release="always"), *given)
    fast = run(self_stabilizing_caeo(0.25, release="always", least_growth=0.2), *given)
    np.testing.assert_allclose(slow.caeo.learning_rate, 0.2, rtol=1e-4)
    np.testing.assert_allclose(fast.caeo.learning_rate, 0.22, rtol=1e-6)
    with pytest.raises(InvalidInput, match=r"least_growth=1\.5 must be at most growth"):
        self_stabilizing_caeo(0.1, least_growth=1.5)
    with pytest.raises(InvalidInput, match="least_growth must be"):
        self_stabilizing_caeo(0.1, least_growth=-0.1)


def test_momentum_is_refused_plainly():
    with pytest.raises(InvalidInput, match=r"momentum=0\.9 is not for self-stabilizing CAEO"):
        self_stabilizing_caeo(0.1, momentum=0.9)
    with pytest.raises(InvalidInput, match=r"momentum=0\.9 is not for self-stabilizing CAEO"):
        bridge.make_rule("caeo-ss", eta=0.1, momentum=0.9)


def test_refusals_name_the_argument():
    with pytest.raises(InvalidInput, match="release must be one of descent, always"):
        self_stabilizing_caeo(0.1, release="never")
    with pytest.raises(InvalidInput, match="delta"):
        self_stabilizing_caeo(0.1, delta=2.0)
    with pytest.raises(InvalidInput, match="does not know the top eigenvector"):
        self_stabilizing_caeo(0.1, curvature=curvature.hutchinson()).init(jnp.ones(3))
    optimizer = self_stabilizing_caeo(0.1)
    with pytest.raises(InvalidInput, match="needs value_fn"):
        optimizer.update(jnp.ones(3), optimizer.init(jnp.ones(3)), jnp.ones(3))


def make_step(optimizer, loss):
    @jax.jit
    def step(params, state, noise=0.0):
        grads = jax.tree.map(lambda g: g + noise, jax.grad(loss)(params))
        updates, state = optimizer.update(grads, state, params, value_fn=loss)
        return optax.apply_updates(params, updates), state

    return step


@pytest.mark.slow
def test_directional_sharpness_of_a_network_and_its_following(mlp):
    """At a measurement it is g'Hg/|g|^2 of the dense Hessian; between two, the formula with the old pair and rest."""
    optimizer = self_stabilizing_caeo(0.05, refresh=2, curvature=curvature.lanczos(tol=1e-9, restarts=40))
    step = make_step(optimizer, mlp.loss)
    flat, unravel = ravel_pytree(mlp.params)
    hessian = np.asarray(jax.jit(jax.hessian(lambda f: mlp.loss(unravel(f))))(flat))
    slope = jax.jit(lambda params: ravel_pytree(jax.grad(mlp.loss)(params))[0])
    gradient = np.asarray(slope(mlp.params))
    params, state = step(mlp.params, optimizer.init(mlp.params))
    quotient = gradient @ hessian @ gradient / (gradient @ gradient)
    assert float(state.directional_sharpness) == pytest.approx(quotient, rel=1e-6)
    top = np.linalg.eigh(hessian)[1][:, -1]
    gradient = np.asarray(slope(params))
    share = (gradient @ top) ** 2 / (gradient @ gradient)
    _, after = step(params, state)
    followed = share * float(state.caeo.sharpness) + (1 - share) * float(state.rest)
    assert float(after.directional_sharpness) == pytest.approx(followed, rel=1e-5)
    assert float(after.rest) == float(state.rest)


def run(optimizer, loss, params, noise):
    """Return the state of every update, with noise added to the gradients."""

    @jax.jit
    def scanned(params, state):
        def step(carry, extra):
            params, state = carry
            grads = jax.grad(loss)(params) + extra
            updates, state = optimizer.update(grads, state, params, value_fn=loss)
            return (optax.apply_updates(params, updates), state), state

        return jax.lax.scan(step, (params, state), noise)[1]

    return scanned(params, optimizer.init(params))


def test_noise_keeps_the_margin():
    """The running mean is negative by seven errors once the window of 64 is full.

    Along the curvature 5 the product has mean -eta h c = -0.95 c at the rate 1.9/10 and scatter about 1.4 c an update,
    0.13 c in the running mean.
    """
    rng = np.random.default_rng(0)
    noise = jnp.asarray(rng.standard_normal((400, 3)) * np.array([0.1, 1.0, 1.0]))
    states = run(self_stabilizing_caeo(0.5), quadratic, jnp.zeros(3), noise)
    released = np.asarray(states.released)
    assert not released[64:].any()
    np.testing.assert_allclose(np.asarray(states.caeo.learning_rate)[~released], 0.19, rtol=1e-6)
    assert np.all(states.caeo.capped)


def test_drift_releases_it():
    """A constant slope along a flat direction: from the third update on the rate is at the bound (2 + 1)/10."""
    start = jnp.array([0.0, 0.0, 0.01, 0.0])
    states = run(
        self_stabilizing_caeo(0.5), lambda p: quadratic(p[:3]) + 0.3 * p[3], start, jnp.zeros((5, 4))
    )
    np.testing.assert_array_equal(states.released, [False, False, True, True, True])
    np.testing.assert_allclose(states.caeo.learning_rate, [0.19, 0.19, 0.3, 0.3, 0.3], rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
def test_dtypes_structure_and_scan(dtype):
    optimizer = self_stabilizing_caeo(0.3)
    params = jnp.array([1.0, 1.0, 0.1], dtype)
    state = optimizer.init(params)
    step = make_step(optimizer, quadratic)
    (last, scanned), _ = jax.lax.scan(lambda carry, _: (step(*carry), None), (params, state), length=6)
    looped = (params, state)
    for _ in range(6):
        looped = step(*looped)
    assert looped[0].dtype == dtype
    shapes = functools.partial(jax.tree.map, lambda a: (jnp.shape(a), jnp.result_type(a)))
    assert shapes(state) == shapes(looped[1])
    for one, other in zip(jax.tree.leaves((last, scanned)), jax.tree.leaves(looped), strict=True):
        np.testing.assert_allclose(np.asarray(one, float), np.asarray(other, float), rtol=2e-2, atol=1e-3)


def test_zero_gradients_give_zero_updates():
    optimizer = self_stabilizing_caeo(0.3, release="always")
    params, state = make_step(optimizer, quadratic)(jnp.zeros(3), optimizer.init(jnp.zeros(3)))
    np.testing.assert_array_equal(params, np.zeros(3))
    assert float(state.caeo.learning_rate) == pytest.approx(0.2)


def test_network_runs_away_is_seen_and_is_cured():
    """A tanh network 16-8-10 on 100 digits, full batch, with the base rate above the edge of its start.

    Without the cure the alarm is on at the end: by its definition the sharpness is a quarter above its least. With it
    no alarm comes in the second half, and the sharpness ends lower by more than that quarter, within 1.5 of the edge.
    """
    task = bridge.load_task("digits-mlp", examples=100, hidden=(8,), pool=2)
    with jax.enable_x64():
        start, noise = task.init(3), jnp.zeros((450, task.size))
        proposal = run(caeo(0.6), task.loss, start, noise)
        cured = run(self_stabilizing_caeo(0.6), task.loss, start, noise).caeo
    end = 0.6 * np.mean(cured.sharpness[-50:])
    assert np.all(proposal.runaway[-50:])
    assert not np.any(cured.runaway[225:])
    assert 0.6 * np.mean(proposal.sharpness[-50:]) > 1.25 * end
    assert end < 3


def test_pure_parts_need_no_jax():
    code = (
        "import sys; from eos_sde.optimizers import reduced_model, runaway, self_stabilizing_rule;"
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("module", [stabilizing, self_stabilizing])
def test_docstring_examples(module):
    assert doctest.testmod(module).failed == 0
