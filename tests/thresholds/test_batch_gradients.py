"""Batch sharpness and gradient-noise interaction: enumeration, full batches, a run that rests where they say."""

from itertools import combinations, product

import numpy as np
import pytest

from eos_sde import thresholds
from solvers import InvalidInput

RNG = np.random.default_rng(4)
JACOBIAN, RESIDUALS = RNG.standard_normal((6, 2, 4)), RNG.standard_normal((6, 2))


def enumerated(batches):
    """Means over batches of g' H_B g/|g|^2 and of g' H g, by dense matrices."""
    hessians = np.einsum("ncd,nce->nde", JACOBIAN, JACOBIAN)
    gradients = np.einsum("ncd,nc->nd", JACOBIAN, RESIDUALS)
    own, whole = [], []
    for batch in map(list, batches):
        g = gradients[batch].mean(axis=0)
        own.append(g @ hessians[batch].mean(axis=0) @ g / (g @ g))
        whole.append(g @ hessians.mean(axis=0) @ g)
    full = gradients.mean(axis=0)
    return np.mean(own), np.mean(whole) / (full @ full)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 6])
def test_against_all_batches(batch_size):
    own, whole = enumerated(combinations(range(6), batch_size))
    settings = {"batch_size": batch_size}
    found = thresholds.batch_sharpness(JACOBIAN, RESIDUALS, **settings)
    assert found.value == pytest.approx(2 / own, rel=1e-12)
    assert found.stderr == 0
    exact = thresholds.gradient_noise_interaction(JACOBIAN, RESIDUALS, **settings)
    assert exact.value == pytest.approx(2 / whole, rel=1e-12)


def test_with_replacement_against_all_ordered_batches():
    own, whole = enumerated(product(range(6), repeat=2))
    settings = {"batch_size": 2, "replacement": True}
    exact = thresholds.gradient_noise_interaction(JACOBIAN, RESIDUALS, **settings)
    assert exact.value == pytest.approx(2 / whole, rel=1e-12)
    # 20 000 draws; within 4 standard errors, false alarm 6e-5
    found = thresholds.batch_sharpness(JACOBIAN, RESIDUALS, draws=20_000, **settings)
    assert abs(found.value - 2 / own) < 4 * found.stderr
    assert found.stderr < 0.01 * found.value


def test_one_direction_is_its_curvature():
    """With one weight every batch of all examples reads the sharpness, whatever the residuals."""
    slopes = np.array([[1.0], [2.0], [3.0]])
    found = thresholds.batch_sharpness(slopes, [1.0, -1.0, 2.0], batch_size=3)
    assert found.value == pytest.approx(float(thresholds.gradient_descent(14 / 3)), rel=1e-12)


@pytest.mark.slow
def test_stationary_sgd_reads_its_own_rate():
    """Least squares that cannot be fitted: averaged over a run, the interaction is 2/eta and says nothing of stability.

    E[g_B' H g_B] over E|grad L|^2 is exactly 2/eta in the stationary state of a quadratic. 200 000 steps of one
    trajectory at eta = 0.1, in 40 blocks: within 4 of their standard errors (false alarm 6e-5).
    """
    x, y, eta, size = JACOBIAN[:, 0], RESIDUALS[:, 0], 0.1, 2
    rng, w = np.random.default_rng(7), np.zeros(4)
    hessian = x.T @ x / 6
    order = np.argsort(rng.random((200_000, 6)), axis=1)[:, :size]
    bent, squares = [], []
    for batch in order:
        errors = x @ w - y
        g = x[batch].T @ errors[batch] / size
        full = x.T @ errors / 6
        bent.append(g @ hessian @ g)
        squares.append(full @ full)
        w = w - eta * g
    blocks = np.array([bent, squares])[:, 8000:].reshape(2, 40, -1).mean(axis=2)
    ratio = blocks[0].mean() / blocks[1].mean()
    error = np.std(blocks[0] - ratio * blocks[1]) / 40**0.5 / blocks[1].mean()
    assert abs(ratio - 2 / eta) < 4 * error
    assert error < 0.02 * ratio


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"residuals": np.zeros((6, 2))}, "sgd_mean_square"),
        ({"residuals": np.ones((6, 3))}, "6 x 2 outputs"),
        ({"residuals": np.full((6, 2), np.nan)}, "not finite"),
        ({"batch_size": 7}, "batch_size=7"),
        ({"jacobian": np.ones(3)}, "shape"),
    ],
)
def test_refusals(changes, sentence):
    given = {"jacobian": JACOBIAN, "residuals": RESIDUALS, "batch_size": 2} | changes
    for law in (thresholds.batch_sharpness, thresholds.gradient_noise_interaction):
        with pytest.raises(InvalidInput, match=sentence):
            law(given["jacobian"], given["residuals"], batch_size=given["batch_size"])
    with pytest.raises(InvalidInput, match="draws=1"):
        thresholds.batch_sharpness(JACOBIAN, RESIDUALS, batch_size=2, draws=1)
