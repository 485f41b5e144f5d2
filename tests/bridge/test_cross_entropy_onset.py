"""Cross entropy at a minimum that fits every example: curvature, threshold and onset against independent ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eos_sde import thresholds
from eos_sde.bridge.interpolation_tasks import interpolation_task
from eos_sde.bridge.losses import cross_entropy, softmax_curvature, softmax_curvature_root
from eos_sde.bridge.minimum import find_minimum
from eos_sde.bridge.onset import measure_onset
from solvers.errors import InvalidInput

EXAMPLES = 8


@pytest.fixture(scope="module")
def task():
    """Ten classes on 8 examples: 72 residuals for 226 weights, few enough for dense Hessians."""
    return interpolation_task(
        "digits-mlp", examples=EXAMPLES, pool=2, hidden=(8,), loss="cross-entropy", outputs="one-hot"
    )


@pytest.fixture(scope="module")
def minimum(task):
    return find_minimum(task, seed=0)


@pytest.fixture(scope="module")
def hessians(task, minimum):
    """Hessian of each example's loss by automatic differentiation of the loss itself, shape (n, d, d)."""
    one = jax.jit(jax.hessian(lambda w, x, y: task.loss(w, x, y)))
    return np.stack(
        [np.asarray(one(minimum.theta, task.x[i : i + 1], task.y[i : i + 1])) for i in range(EXAMPLES)]
    )


def enumerated_mean_square(hessians, batch_size):
    """2 / lambda_max(C^-1 D) of T2 by power iteration on the range of the Hessian, from the Hessians alone."""
    n = len(hessians)
    mean = hessians.mean(axis=0)
    values, vectors = np.linalg.eigh(mean)
    keep = values > 1e-7 * values[-1]  # below: what is left of the residuals
    h, span = values[keep], vectors[:, keep]
    small = span.T @ hessians @ span
    p = (n - batch_size) / (batch_size * (n - 1))
    scale = 1 / np.sqrt((h[:, None] + h) / 2)
    x = np.diag(np.sqrt(h))
    size = 0.0
    for _ in range(2000):
        y = scale * x
        y = scale * ((1 - p) * h[:, None] * y * h + p * np.mean(small @ y @ small, axis=0))
        size, x = np.linalg.norm(y), y / np.linalg.norm(y)
    return 2 / size


def test_curvature_of_the_softmax():
    rng = np.random.default_rng(0)
    outputs, targets = rng.standard_normal((5, 4)), rng.dirichlet(np.ones(4), 5)
    exact = jax.vmap(jax.hessian(lambda f, q: cross_entropy(f, q)))(
        jnp.asarray(outputs), jnp.asarray(targets)
    )
    p = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    assert np.allclose(softmax_curvature(p), exact, rtol=0, atol=1e-15)
    root = softmax_curvature_root(p)
    assert root.shape == (5, 3, 4)
    assert np.allclose(np.swapaxes(root, 1, 2) @ root, exact, rtol=0, atol=1e-15)
    assert np.allclose(root.sum(axis=2), 0, atol=1e-7)  # rounding of an eigenvalue 0 under a square root


def test_every_softmax_is_its_target(task, minimum):
    probabilities = jax.nn.softmax(task.apply(minimum.theta), axis=1)
    # the loss in units of the smallest curvature, smoothing/c = 0.01, bounds the outputs' errors
    assert np.allclose(probabilities, task.y, rtol=0, atol=np.sqrt(2 * EXAMPLES * 1e-20 / 0.01))
    entropy = -np.sum(np.asarray(task.y) * np.log(task.y), axis=1).mean()
    assert np.isclose(task.loss(minimum.theta), entropy, rtol=1e-14)
    slopes = jax.jacrev(task.per_example_loss)(jnp.asarray(minimum.theta))
    assert np.abs(slopes).max() < 1e-8  # no example pulls: this is what makes the batch noise multiplicative


def test_hessian_is_the_mean_of_the_factors(task, minimum, hessians):
    built = minimum.factors.T @ minimum.factors / EXAMPLES
    assert np.allclose(built, hessians.mean(axis=0), rtol=0, atol=1e-8 * minimum.sharpness)
    assert np.isclose(minimum.sharpness, np.linalg.eigvalsh(hessians.mean(axis=0))[-1], rtol=1e-8)
    whole = np.einsum("nci,ncd,ndj->nij", minimum.jacobian, minimum.weights, minimum.jacobian)
    assert np.allclose(whole, hessians, rtol=0, atol=1e-8 * minimum.sharpness)


def test_curvature_along_a_line_by_finite_differences(task, minimum):
    """Fourth-order second difference of the loss: rounding 1e-16/step^2 = 1e-10, truncation step^4 = 1e-12."""
    rng = np.random.default_rng(1)
    direction = minimum.factors.T @ rng.standard_normal(len(minimum.factors))
    direction /= np.linalg.norm(direction)
    step = 1e-3
    loss = [float(task.loss(minimum.theta + k * step * direction)) for k in (-2, -1, 0, 1, 2)]
    second = np.dot([-1, 16, -30, 16, -1], loss) / (12 * step**2)
    assert np.isclose(second, np.sum((minimum.factors @ direction) ** 2) / EXAMPLES, rtol=0, atol=1e-8)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_threshold_against_the_hessians_of_the_loss(minimum, hessians, batch_size):
    predicted = thresholds.sgd_mean_square(minimum.jacobian, weights=minimum.weights, batch_size=batch_size)
    assert np.isclose(predicted.value, enumerated_mean_square(hessians, batch_size), rtol=1e-6)
    # negative control: with the identity for the curvature of the softmax it is far off
    assert thresholds.sgd_mean_square(minimum.jacobian, batch_size=batch_size) < 0.5 * predicted.value


@pytest.mark.slow
def test_measured_onset_is_the_predicted_one(task, minimum):
    predicted = thresholds.sgd_mean_square(minimum.jacobian, weights=minimum.weights, batch_size=2)
    onset = measure_onset(task, minimum, batch_size=2, seed=0)
    assert np.isclose(float(onset.eta), predicted.value, rtol=0.03)
    assert 1 - float(onset.relative_to_edge) > 4 * float(onset.relative_to_edge_stderr)


def test_one_example_in_closed_form():
    """Logits linear in (x, 1): the curvature is |(x, 1)|^2 lambda_max(W), and W has the eigenvalue c a b.

    With p = a at the label and b = (1 - a)/(c - 1) elsewhere, the vector (1, -1/(c - 1), ...) belongs to c a b; all
    others orthogonal to (1, ..., 1) belong to b.
    """
    one = interpolation_task("digits-mlp", examples=1, hidden=(), loss="cross-entropy", outputs="one-hot")
    minimum = find_minimum(one, seed=0)
    a, b = 0.91, 0.01
    expected = float(np.sum(np.asarray(one.x) ** 2) + 1) * 10 * a * b
    assert np.isclose(minimum.sharpness, expected, rtol=1e-12)
    onset = measure_onset(one, minimum, batch_size=1, seed=0)
    assert abs(float(onset.eta) * expected / 2 - 1) < 3 * float(onset.relative_to_edge_stderr)


def test_hard_targets_are_refused():
    with pytest.raises(InvalidInput, match="hard targets has no minimum at finite weights"):
        find_minimum(interpolation_task("digits-mlp", loss="cross-entropy", smoothing=0.0), seed=0)
