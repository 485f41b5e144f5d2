"""The fluctuation outside the carried modes against exact recursions and traces on losses written by hand."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from eos_sde.bridge.unresolved_modes import _FORGETS, _GRID, after, excess_loss, measured, quiet

ETA, P, CARRIED = 0.1, 0.2, 2
CURVATURES = np.concatenate([[12.0, 9.0], np.geomspace(6.0, 0.25, 18)])


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@dataclass(frozen=True, eq=False)
class Tilted:
    """Examples of one quadratic form, each with a tilt, and a cubic term: first weight times sixth squared."""

    tilts: np.ndarray
    bent: float = 0.0

    @property
    def n(self):
        return len(self.tilts)

    @property
    def size(self):
        return self.tilts.shape[1]

    def per_example_loss(self, w):
        common = 0.5 * jnp.sum(CURVATURES * w**2) + 0.5 * self.bent * w[0] * w[5] ** 2
        return common + jnp.asarray(self.tilts) @ w

    def loss(self, w):
        return jnp.mean(self.per_example_loss(w))


@pytest.fixture(scope="module")
def task():
    rng = np.random.default_rng(0)
    tilts = rng.normal(size=(30, CURVATURES.size)) * rng.uniform(0.3, 2.0, CURVATURES.size)
    return Tilted(tilts - tilts.mean(axis=0), bent=3.0)


def look(task, state, key, steps=1):
    modes, carried = np.eye(task.size)[:, :CARRIED], CURVATURES[:CARRIED]
    none = jnp.zeros((CARRIED, CARRIED))
    return measured(state, task, jnp.zeros(task.size), modes, carried, none, key, ETA, P, steps)


@pytest.fixture(scope="module")
def looks(task):
    """Compiled: many states and as many keys."""
    return jax.jit(jax.vmap(lambda state, key: look(task, state, key)))


def copies(state, number):
    return jax.tree.map(lambda part: jnp.broadcast_to(part, (number, *part.shape)), state)


@pytest.fixture(scope="module")
def settled(task):
    """1500 first measurements, each as of a fluctuation fed for long."""
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(4), 1500)
        return jax.jit(jax.vmap(lambda key: look(task, quiet(task.size), key, 2000)))(keys)


def covariance(x, y):
    """Of a draw between directions of eta h = x and y, over the noise."""
    return ETA**2 * P / (1 - (1 - _FORGETS) ** 2 * (1 - x) * (1 - y))


def within(samples, truth):
    """Whether the mean of independent samples is within 4.5 standard errors, false alarm 7e-6 each."""
    samples = np.asarray(samples)
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    return np.all(np.abs(samples.mean(axis=0) - truth) < 4.5 * error)


def test_power_has_the_trace_and_the_mean_curvature_of_the_noise(task, settled):
    """Gauss quadrature is exact for both, so that only the random sums scatter."""
    power = np.asarray(settled.power)
    noise = np.mean(task.tilts**2, axis=0)[CARRIED:]
    totals = np.stack([power.sum(axis=1), power @ _GRID / ETA], axis=1)
    truth = np.array([noise.sum(), noise @ CURVATURES[CARRIED:]])
    assert within(totals, truth)
    assert not within(totals, 1.1 * truth)


def test_variances_follow_the_recursion_of_each_curvature():
    rng = np.random.default_rng(2)
    power = jnp.asarray(rng.uniform(0.1, 1.0, _GRID.size))
    state = quiet(3)._replace(variances=power * 0.01, power=power)
    for steps in (1, 3, 40):
        variances = np.asarray(state.variances)
        for _ in range(steps):
            variances = (1 - _GRID) ** 2 * variances + ETA**2 * P * np.asarray(power)
        state = after(state, ETA, P, steps)
        assert_allclose(state.variances, variances, rtol=1e-11)


@pytest.mark.slow
def test_excess_loss_of_noise_that_is_only_gradients(task, looks):
    """Half tr(H Sigma) outside the carried modes, exact for SGD on examples of equal curvature.

    The grid of curvatures, 1.25 apart, interpolates 1/(2 - eta h) and its approach with a relative error below 1/8 of
    the square of its logarithmic step times the second derivative in log h, which is below 2: 1.3 %.
    """
    runs = 200
    state = copies(quiet(task.size), runs)
    for key in jax.random.split(jax.random.key(3), 8):
        state = looks(state, jax.random.split(key, runs))
        state = jax.vmap(lambda one: after(one, ETA, P, 20))(state)
    found = np.asarray(state.variances) @ _GRID / (2 * ETA)
    x = ETA * CURVATURES[CARRIED:]
    variances = (
        np.mean(task.tilts**2, axis=0)[CARRIED:] * ETA**2 * P * (1 - (1 - x) ** 320) / (1 - (1 - x) ** 2)
    )
    truth = 0.5 * np.sum(CURVATURES[CARRIED:] * variances)
    error = found.std(ddof=1) / np.sqrt(runs)
    assert abs(found.mean() - truth) < 4.5 * error + 0.013 * truth
    assert 4.5 * error < 0.08 * truth
    state = quiet(task.size)._replace(variances=jnp.asarray(np.arange(_GRID.size) * 1.0))
    assert excess_loss(state, ETA) == pytest.approx(np.sum(_GRID * np.arange(_GRID.size)) / (2 * ETA))


def test_push_is_the_mean_gradient_over_the_fluctuation(task, settled):
    """A cubic term w_0 w_5^2 pushes along w_0 by half its coefficient times the variance of w_5."""
    push = np.asarray(settled.push)
    x = ETA * CURVATURES[5]
    truth = 0.5 * task.bent * np.mean(task.tilts[:, 5] ** 2) * covariance(x, x)
    error = push.std(axis=0, ddof=1) / np.sqrt(len(push))
    # Krylov spaces of order 8 hold the root of the response to a per cent here
    assert abs(push[:, 0].mean() - truth) < 4.5 * error[0] + 0.023 * truth
    assert 4.5 * error[0] < 0.2 * truth
    assert np.all(np.abs(push.mean(axis=0)[1:]) <= 4.5 * error[1:] + 1e-12)


@pytest.mark.slow
def test_a_draw_taken_along_has_the_covariance_of_the_linear_run():
    """Between unlike curvatures too, where noise that comes at once would have up to twice as much of it.

    All examples tilt along one direction, so that all covariances are those of one number times the tilts: each sample
    mean of 400 squares has the standard error (2/400)^(1/2); six of them within 4.5 of it, false alarm 4e-5.
    """
    rng = np.random.default_rng(7)
    tilt = np.sqrt(CURVATURES)
    sizes = rng.normal(size=(40, 1))
    task = Tilted((sizes - sizes.mean()) * tilt)
    move = jax.jit(jax.vmap(lambda state, key: look(task, state, key, 2)))
    state = copies(quiet(task.size), 400)
    for key in jax.random.split(jax.random.key(8), 40):
        state = move(state, jax.random.split(key, 400))
    found = np.asarray(state.draw)
    noise = np.mean((sizes - sizes.mean()) ** 2)
    for i, j in ((2, 2), (2, 8), (2, 12), (8, 8), (8, 12), (12, 12)):
        truth = noise * tilt[i] * tilt[j] * covariance(ETA * CURVATURES[i], ETA * CURVATURES[j])
        products = found[:, i] * found[:, j]
        # two steps at once: the noise of the second is spread by the mean instead of each; 3 % at these curvatures
        assert abs(products.mean() - truth) < 4.5 * products.std() / 20 + 0.03 * truth
    geometric = (
        noise
        * tilt[2]
        * tilt[12]
        * np.sqrt(
            covariance(ETA * CURVATURES[2], ETA * CURVATURES[2])
            * covariance(ETA * CURVATURES[12], ETA * CURVATURES[12])
        )
    )
    assert np.mean(found[:, 2] * found[:, 12]) < 0.8 * geometric


def test_examples_that_agree_leave_everything_quiet():
    same = Tilted(np.zeros((5, CURVATURES.size)))
    state = after(look(same, quiet(same.size), jax.random.key(0)), ETA, P, 10)
    assert excess_loss(state, ETA) == 0.0
    assert np.all(np.asarray(state.draw) == 0)
    assert np.all(np.isfinite(np.concatenate([np.ravel(part) for part in state])))


def test_running_mean_of_the_power(task, looks):
    keys = jax.random.split(jax.random.key(5), 4)
    singles = looks(copies(quiet(task.size), 4), keys).power
    state = copies(quiet(task.size), 1)
    for key in keys:
        state = looks(state, key[None])
    assert_allclose(state.power[0], np.mean(singles, axis=0), rtol=1e-12, atol=1e-15)
    assert int(state.measured[0]) == 4
