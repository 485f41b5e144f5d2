"""The Gram matrix by Jacobian products against explicit Jacobians, and thresholds from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eos_sde import bridge, thresholds
from eos_sde.bridge.losses import LOSSES
from solvers import InvalidInput

N, C = 14, 3


def model(params, x):
    hidden = jnp.tanh(x @ params["in"] + params["bias"])
    return hidden @ params["out"]


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    params = {"in": rng.normal(size=(4, 6)), "bias": rng.normal(size=6), "out": rng.normal(size=(6, C))}
    x = rng.normal(size=(N, 4))
    return params, x, np.eye(C)[rng.integers(0, C, N)]


def explicit(case):
    params, x, y = case
    with jax.enable_x64(True):
        leaves = jax.tree.leaves(jax.jacrev(model)(params, x))
        jacobian = np.concatenate([np.reshape(leaf, (N, C, -1)) for leaf in leaves], axis=2)
        curvature = jax.vmap(jax.hessian(lambda o, t: LOSSES["cross-entropy"](o[None], t[None])[0]))
        return jacobian, np.asarray(curvature(model(params, x), jnp.asarray(y)))


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["half-squared-error", "cross-entropy", LOSSES["cross-entropy"]])
def test_products_and_blocks(case, loss):
    jacobian, curvature = explicit(case)
    weighted = loss != "half-squared-error"
    gram = bridge.curvature_gram(model, *case, loss=loss)
    weights = curvature if weighted else np.broadcast_to(np.eye(C), (N, C, C))
    z = np.random.default_rng(1).normal(size=(N * C, 5))
    # roots of the curvature differ by a rotation in the outputs; (root^T z) -> gradients is the same for both
    hessian = np.einsum("nap,nab,nbq->pq", jacobian, weights, jacobian) / N
    matrix = gram.product(np.eye(N * C))
    rank = min(len(hessian), N * C)
    ours, theirs = np.linalg.eigvalsh(matrix)[::-1][:rank], np.linalg.eigvalsh(hessian)[::-1][:rank]
    assert np.allclose(ours, theirs, atol=1e-12 * theirs[0])
    assert np.allclose(gram.product(z), matrix @ z, atol=1e-12 * theirs[0] * np.abs(z).sum(0).max())
    blocks = matrix.reshape(N, C, N, C)[np.arange(N), :, np.arange(N), :]
    assert np.allclose(gram.blocks, blocks, atol=1e-13 * theirs[0])
    settings = {"batch_size": 3, "weights": curvature if weighted else None}
    expected = thresholds.sgd_mean_square(jacobian, **settings)
    assert float(thresholds.sgd_mean_square(gram, batch_size=3)) == pytest.approx(float(expected), rel=1e-7)


def test_one_output_and_targets_left_out(case):
    params, x, _ = case
    gram = bridge.curvature_gram(lambda w, inputs: model(w, inputs)[:, 0], params, x)
    assert gram.blocks.shape == (N, 1, 1)
    assert np.all(gram.blocks > 0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"loss": "hinge"}, "loss='hinge' is not known"),
        ({"loss": "cross-entropy", "y": None}, "y is missing"),
        ({"loss": lambda out, y: -jnp.sum(out**2, axis=1)}, "convex in the outputs"),
        ({"model": lambda params, x: jnp.sum(model(params, x))}, r"make it return \(14, c\)"),
        ({"model": lambda params, x: model(params, x) / 0.0}, "not finite"),
        ({"model": lambda params, x, y: jnp.mean((model(params, x) - y) ** 2)}, "not the loss"),
        ({"model": lambda params, x: (model(params, x), 0)}, "not the loss"),
        ({"x": np.ones((N, 5))}, "cannot be evaluated on params and x"),
    ],
)
def test_refusals(case, change, sentence):
    params, x, y = case
    arguments = {"model": model, "params": params, "x": x, "y": y, **change}
    with pytest.raises(InvalidInput, match=sentence):
        bridge.curvature_gram(**arguments)


@pytest.mark.slow
def test_a_minimum_gives_the_same_threshold_by_products():
    task = bridge.interpolation_task("digits-mlp", examples=12, hidden=(8,))
    minimum = bridge.find_minimum(task, seed=0)
    gram = bridge.curvature_gram(task.network.apply, minimum.theta, task.x)
    expected = thresholds.sgd_mean_square(minimum.jacobian, batch_size=4)
    assert float(thresholds.sgd_mean_square(gram, batch_size=4)) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.slow
def test_a_network_of_a_hundred_thousand_weights_in_little_memory():
    """The largest object is the basis, N x rank; what N^2 or d^2 would take is not there."""
    import tracemalloc

    task = bridge.load_task("fashion-mlp", examples=2000, hidden=(300, 128))
    gram = bridge.curvature_gram(task.network.apply, task.init(0), task.x)
    tracemalloc.start()
    basis = thresholds.GramBasis(gram)
    threshold = thresholds.sgd_mean_square(basis, batch_size=16, max_rank=1024)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # basis twice while it grows, its rotations and products in single precision: 5 x N x rank x 8 bytes
    assert peak < 5 * 8 * gram.side * 1100
    assert threshold.upper - threshold.lower < 0.01 * threshold.value
    lower, *uppers = (
        thresholds.sgd_sufficient_bound(gram, batch_size=16),
        *thresholds.sgd_necessary_bounds(basis, batch_size=16),
    )
    assert float(lower) < threshold.lower
    assert all(float(bound) > threshold.upper for bound in uppers)
