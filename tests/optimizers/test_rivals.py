"""L4, CDAT and 1/|lambda| by hand on quadratics."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eos_sde.bridge import make_rule
from eos_sde.optimizers import cdat, inverse_sharpness, l4
from solvers.errors import InvalidInput

CURVATURE = np.array([1.0, 3.0, 10.0])
START = np.array([1.0, -2.0, 0.5])


def quadratic(x):
    return 0.5 * jnp.sum(jnp.asarray(CURVATURE) * x**2)


def descend(optimizer, steps):
    """Weights and rates of a run, from the compiled update."""

    @jax.jit
    def step(x, state):
        value, gradient = jax.value_and_grad(quadratic)(x)
        updates, state = optimizer.update(gradient, state, x, value=value, value_fn=quadratic)
        return x + updates, state

    x, rates, points = jnp.asarray(START), [], [START]
    state = optimizer.init(x)
    for _ in range(steps):
        x, state = step(x, state)
        rates.append(float(state.learning_rate))
        points.append(np.asarray(x))
    return np.array(points), np.array(rates)


@pytest.mark.parametrize("direction", ["momentum", "adam"])
def test_l4_is_the_authors_recursion(direction):
    """Their code, step by step in plain numbers: means, least loss, its growth, the rate."""
    points, rates = descend(l4(0.2, direction=direction, gamma=0.8, tau=50.0), 12)
    x, m, s, least = START.copy(), np.zeros(3), np.zeros(3), np.inf
    for t in range(12):
        loss, gradient = 0.5 * np.sum(CURVATURE * x**2), CURVATURE * x
        m, s = 0.9 * m + 0.1 * gradient, 0.999 * s + 0.001 * gradient**2
        mean = m / (1 - 0.9 ** (t + 1))
        way = mean if direction == "momentum" else mean / (np.sqrt(s / (1 - 0.999 ** (t + 1))) + 1e-4)
        least = 0.75 * loss if t == 0 else min(least, loss)
        rate = 0.2 * (loss - 0.8 * least) / (mean @ way + 1e-12)
        least *= 1 + 1 / 50
        x = x - rate * way
        np.testing.assert_allclose(rates[t], rate, rtol=1e-10)
        np.testing.assert_allclose(points[t + 1], x, rtol=1e-10, atol=1e-14)


def test_l4_computes_the_loss_that_it_is_not_given():
    gradient, x = jax.grad(quadratic)(jnp.asarray(START)), jnp.asarray(START)
    rule = l4()
    given, _ = rule.update(gradient, rule.init(x), x, value=quadratic(x))
    computed, _ = rule.update(gradient, rule.init(x), x, value_fn=quadratic)
    np.testing.assert_array_equal(given, computed)
    with pytest.raises(InvalidInput, match="l4 needs value"):
        rule.update(gradient, rule.init(x), x)


def test_cdat_is_sigma_times_the_exact_line_search():
    """On a quadratic sigma = 1 makes the next gradient orthogonal to the update, and sigma = 2 keeps the loss."""
    points, rates = descend(cdat(1.0), 5)
    gradients = CURVATURE * points
    across = np.sum(gradients[1:] * gradients[:-1], axis=1)
    assert np.all(np.abs(across) <= 1e-10 * np.sum(gradients[:-1] ** 2, axis=1))
    expected = np.sum(gradients**2, axis=1) / np.sum(CURVATURE * gradients**2, axis=1)
    np.testing.assert_allclose(rates, expected[:-1], rtol=1e-10)
    edge, _ = descend(cdat(2.0), 5)
    losses = 0.5 * np.sum(CURVATURE * edge**2, axis=1)
    np.testing.assert_allclose(losses, losses[0], rtol=1e-9)


def test_cdat_takes_running_means_of_both_parts():
    points, rates = descend(cdat(1.5, decay=0.7, direction="momentum"), 6)
    slope = bend = 0.0
    m = np.zeros(3)
    for t in range(6):
        gradient = CURVATURE * points[t]
        m = 0.9 * m + 0.1 * gradient
        way = m / (1 - 0.9 ** (t + 1))
        slope = 0.7 * slope + 0.3 * max(gradient @ way, 0.0)
        bend = 0.7 * bend + 0.3 * abs(np.sum(CURVATURE * way**2))
        np.testing.assert_allclose(rates[t], 1.5 * slope / (bend + 1e-12), rtol=1e-10)


def test_cdat_stands_still_where_its_direction_ascends():
    uphill = optax.scale(-1.0)
    _, rates = descend(cdat(direction=uphill), 1)
    assert rates[0] == 0.0


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_inverse_of_the_size_of_the_top_eigenvalue(sign):
    """Positive: multiple/10; all negative: the largest is -1, whose size is 1."""

    def loss(x):
        return sign * quadratic(x)

    rule, x = inverse_sharpness(0.5, refresh=1), jnp.asarray(START)
    update, state = jax.jit(lambda s: rule.update(jax.grad(loss)(x), s, x, value_fn=loss))(rule.init(x))
    rate = 0.05 if sign > 0 else 0.5
    np.testing.assert_allclose(state.learning_rate, rate, rtol=1e-9)
    np.testing.assert_allclose(update, -rate * sign * CURVATURE * START, rtol=1e-9)


@pytest.mark.parametrize("make", [l4, cdat, inverse_sharpness])
def test_a_bound_is_not_exceeded(make):
    _, rates = descend(make(learning_rate=0.001), 2)
    np.testing.assert_allclose(rates, 0.001)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "l4", "alpha": 0.0}, "alpha=0.0"),
        ({"name": "l4", "gamma": 1.0}, "gamma=1.0"),
        ({"name": "l4", "direction": "best"}, "direction='best' must be one of"),
        ({"name": "cdat", "sigma": -1.0}, "sigma=-1.0"),
        ({"name": "cdat", "decay": 1.0}, "decay=1.0"),
        ({"name": "inverse-sharpness", "multiple": float("nan")}, "multiple=nan"),
        ({"name": "cdat", "eta": lambda count: 0.1}, "takes no schedule"),
        ({"name": "sgd"}, "needs eta"),
        ({"name": "adagrad"}, "rule='adagrad' is not known"),
    ],
)
def test_what_cannot_be_used_is_refused(settings, words):
    with pytest.raises(InvalidInput, match=words):
        make_rule(**settings)
