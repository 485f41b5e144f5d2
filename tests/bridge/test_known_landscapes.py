"""Tasks whose answer is known, against that answer: closed forms, not another run of the same code."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from numpy.polynomial import Polynomial

from eos_sde import bridge
from eos_sde.bridge.landscape_tasks import edge_minimum
from eos_sde.bridge.regression_tasks import balanced_spectrum
from solvers.errors import InvalidInput


def balanced_weights(task):
    """Weights of the deep linear network with equal singular values in all layers, from the data alone."""
    x, y = np.asarray(task.x), np.asarray(task.y)
    left, values, right = np.linalg.svd(np.linalg.lstsq(x, y, rcond=None)[0], full_matrices=False)
    shapes = [w.shape for w in task.network.unravel(task.init(0)).weights]
    root = np.diag(values ** (1 / len(shapes)))
    frames = [left] + [np.eye(m)[:, : len(values)] for m, _ in shapes[1:]] + [right.T]
    layers = [a @ root @ b.T for a, b in pairwise(frames)]
    arrays = task.network.unravel(task.init(0))
    return ravel_pytree(jax.tree.unflatten(jax.tree.structure(arrays), [jnp.asarray(w) for w in layers]))[0]


def test_deep_linear_hessian_at_its_balanced_minimum():
    """The inputs are white and the noise is orthogonal to them: the closed form holds to rounding, with the noise."""
    task = bridge.load_task("deep-linear")
    theta = balanced_weights(task)
    assert np.allclose(jax.jit(jax.grad(task.loss))(theta), 0, atol=1e-13)
    noise = np.asarray(task.y - task.apply(theta))
    assert np.isclose(task.loss(theta), 0.5 * (noise**2).sum(axis=1).mean(), rtol=1e-12)
    assert np.isclose(noise.std(), 0.2, rtol=0.2)  # 400 draws: 3.5 % standard error, less 8 % fitted away
    found = np.linalg.eigvalsh(jax.jit(jax.hessian(task.loss))(theta))[::-1]
    exact = balanced_spectrum(task.settings["spectrum"], depth=4, inputs=8)
    assert exact.shape == (32,)
    assert np.allclose(found[:32], exact, rtol=0, atol=1e-12)
    assert np.allclose(found[32:], 0, atol=1e-12)
    assert np.isclose(exact[0], 4.0)  # L s^(2 - 2/L) at s = 1


def test_deep_linear_spectrum_where_the_sum_is_short():
    """Two layers: s_i + s_j, and s_i where the input is not used."""
    assert np.allclose(balanced_spectrum((2.0, 0.5), depth=2, inputs=3), [4, 2.5, 2.5, 2, 1, 0.5])


def test_deep_linear_descent_settles_below_the_edge():
    """At eta = 0.45 the flattest minimum has eta * sharpness = 1.8: descent is flattened to between it and 2."""
    task = bridge.load_task("deep-linear")
    run = bridge.record(task, "gd", steps=600, seed=0, every=600)
    assert 1.8 < task.eta * float(run["sharpness"][0, -1]) < 2.0
    assert float(run["gradient_norm"][0, -1]) < 1e-2


@pytest.mark.parametrize("degree", [1, 3, 4, 5])
def test_chebyshev_targets_are_cosines(degree):
    task = bridge.load_task("chebyshev", degree=degree)
    x = np.asarray(task.x)[:, 0]
    assert np.array_equal(x, np.linspace(-1, 1, 20))
    assert np.allclose(task.y[:, 0], np.cos(degree * np.arccos(x)), rtol=0, atol=1e-13)
    power = Polynomial(np.polynomial.chebyshev.cheb2poly([0] * degree + [1]))
    assert np.allclose(task.y_test[:, 0], power(np.asarray(task.x_test)[:, 0]), rtol=0, atol=1e-13)


def test_chebyshev_network_by_hand():
    task = bridge.load_task("chebyshev")
    theta = task.init(4)
    arrays = task.network.unravel(theta)
    a, b, c = (np.asarray(v) for v in (arrays.slopes, arrays.offsets, arrays.heights))
    expected = np.tanh(np.asarray(task.x) * a + b) @ c
    assert np.allclose(jax.jit(task.apply)(theta)[:, 0], expected, rtol=1e-12)
    # 100 normal entries: the variance scatters by 14 %; 4 of that, false alarm 6e-5 each
    assert np.isclose(a.var(), 1.9**2 * 2 / 101, rtol=0.57)
    assert np.isclose(c.var(), 2 / 101, rtol=0.57)


@pytest.mark.parametrize("eta", [0.1, 0.2, 0.35, 0.5])
def test_edge_minimum_has_the_sharpness_of_the_edge(eta):
    """The sharpness times eta is 2 in both forms, by the dense Hessian; the other eigenvalues at a minimum are zero."""
    x = edge_minimum(eta)
    for tied, theta in ((False, [x, 1 / x, x, 1 / x]), (True, [x, 1 / x])):
        task = bridge.load_task("landscape-xyzw", tied=tied)
        values = np.linalg.eigvalsh(jax.jit(jax.hessian(task.loss))(jnp.array(theta)))
        assert np.isclose(eta * values[-1], 2, rtol=1e-12)
        assert np.allclose(values[:-1], 0, atol=1e-12)
        assert float(task.loss(jnp.array(theta))) < 1e-30


def test_edge_minimum_refuses_what_no_minimum_reaches():
    with pytest.raises(InvalidInput, match=r"eta=0\.51 must be from above 0 to 1/2"):
        edge_minimum(0.51)


@pytest.mark.slow
def test_two_tied_weights_move_as_four():
    """To rounding, which the oscillation at the edge may double in each of ten steps."""
    four, two = (bridge.load_task("landscape-xyzw", tied=tied, spread=0.0) for tied in (False, True))
    runs = [bridge.record(task, "gd", steps=10, seed=0)["final_params"].values[0] for task in (four, two)]
    assert np.allclose(runs[0], np.tile(runs[1], 2), rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_descent_on_the_product_ends_at_the_edge(seed):
    """From a start sharper than the edge, descent is brought to the minimum whose sharpness is 2/eta (Zhu et al.)."""
    task = bridge.load_task("landscape-xyzw")
    run = bridge.record(task, "gd", steps=1000, seed=seed, every=1000)
    products = task.eta * run["sharpness"].values[0]
    assert products[0] > 2.5
    assert 1.95 < products[-1] < 2
    assert float(run["loss"][0, -1]) < 1e-8


def test_label_noise_keeps_the_minimum():
    task = bridge.load_task("landscape-xyzw", examples=50, noise=0.3)
    theta = jnp.array([2.0, 0.5, 2.0, 0.5])
    assert np.allclose(jax.jit(jax.grad(task.loss))(theta), 0, atol=1e-13)
    assert float(jnp.std(task.y)) > 0.2


@pytest.mark.parametrize("examples", [1, 7])
def test_catapult_map_is_descent_on_the_task(examples):
    """f+ = f (1 - eta l + eta^2 f^2 / m), l+ = l + (eta f^2 / m)(eta l - 4), step by step, to rounding."""
    task = bridge.load_task("uv-catapult", examples=examples)
    eta, m = task.eta, 128
    gradient = jax.jit(jax.grad(task.loss))
    theta = task.init(1)
    largest = 0.0
    for _ in range(12):
        u, v = np.asarray(theta[:m]), np.asarray(theta[m:])
        f, kernel = u @ v / m**0.5, (u @ u + v @ v) / m
        theta = theta - eta * gradient(theta)
        u, v = np.asarray(theta[:m]), np.asarray(theta[m:])
        assert np.isclose(u @ v / m**0.5, f * (1 - eta * kernel + eta**2 * f**2 / m), rtol=0, atol=1e-12)
        grown = kernel + (eta * f**2 / m) * (eta * kernel - 4)
        assert np.isclose((u @ u + v @ v) / m, grown, rtol=1e-13)
        largest = max(largest, f**2 / 2)
    # a catapult: the loss rises above its start, and the kernel ends below 2/eta
    assert largest > 5 * float(task.loss(task.init(1)))
    assert eta * grown < 2
