"""Which criterion applies: constructed weights where the answer is known, and the sizes against dense algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eos_sde import bridge, thresholds
from eos_sde.bridge.applicability import CRITERIA, _decide, applicable_criterion
from solvers.errors import InvalidInput


@pytest.mark.slow
def test_sizes(small_task, small_start, small_gradient, small_hessian):
    """Gradients of every example by a dense Jacobian, alpha by finite differences of the curvature."""
    eta, horizon, batch_size = 0.1, 50, 16
    found = applicable_criterion(small_task, small_start, eta=eta, batch_size=batch_size, horizon=horizon)
    sizes = {name: float(value) for name, value in found.sizes.items()}
    rows = np.asarray(jax.jacrev(small_task.per_example_loss)(jnp.asarray(small_start)))
    mean = rows.mean(axis=0)
    p = (63 - batch_size) / (batch_size * 62)
    values, vectors = np.linalg.eigh(np.asarray(small_hessian(small_start)))
    assert sizes["gradient_square"] == pytest.approx(mean @ mean, rel=1e-9)
    assert sizes["noise_square"] == pytest.approx(p * np.mean(np.sum((rows - mean) ** 2, axis=1)), rel=1e-9)
    assert sizes["sharpness"] == pytest.approx(values[-1], rel=1e-6)
    assert sizes["top_share"] == pytest.approx(mean @ mean / (2 * values[-1] * sizes["loss"]), rel=1e-6)
    assert sizes["edge_distance"] == pytest.approx(2 - eta * values[-1], rel=1e-6)
    u, step = vectors[:, -1], 1e-4
    across = mean - u * (u @ mean)
    curvatures = [u @ np.asarray(small_hessian(small_start + s * step * across)) @ u for s in (1, -1)]
    alpha = -(curvatures[0] - curvatures[1]) / (2 * step)
    assert sizes["drift"] == pytest.approx(eta**2 * alpha * horizon, rel=1e-4)  # truncation of order step^2
    assert found.criterion in CRITERIA
    assert found.sizes["drift"].attrs["units"] == "1"


def test_far_out_along_the_sharpest_direction_of_a_quadratic():
    """There |grad L|^2 = 2 S L but for what is left at the minimum: a catapult, whatever the learning rate."""
    task = bridge.load_task("digits-mlp", examples=40, hidden=(), outputs="scalar", pool=2)
    x = np.column_stack([np.asarray(task.x), np.ones(task.n)])
    _, vectors = np.linalg.eigh(x.T @ x)
    best = np.linalg.lstsq(x, np.asarray(task.y)[:, 0], rcond=None)[0]
    far = applicable_criterion(task, best + 20 * vectors[:, -1], eta=0.1, batch_size=20, horizon=100)
    assert far.criterion == "catapult"
    assert float(far.sizes["top_share"]) == pytest.approx(1.0, abs=0.01)
    assert "no minimum is near" in far.reason
    near = applicable_criterion(task, best, eta=0.1, batch_size=20, horizon=100)
    assert near.criterion == "mean-square"  # a quadratic has no barrier
    assert applicable_criterion(task, best, eta=0.1, batch_size=40, horizon=100).criterion == "deterministic"


@pytest.mark.slow
def test_at_a_minimum_that_fits_every_example_linear_stability_decides():
    task = bridge.interpolation_task("digits-mlp", examples=24, hidden=(8,))
    minimum = bridge.find_minimum(task, seed=0)
    eta = 0.8 * float(thresholds.gradient_descent(minimum.sharpness))
    found = applicable_criterion(task, minimum.theta, eta=eta, batch_size=4, horizon=10_000)
    assert found.criterion == "mean-square"
    assert abs(float(found.sizes["drift"])) < 1e-6


SIZES = {
    "gradient_square": 0.1, "noise_square": 1.0, "top_share": 0.1, "drift": 0.1, "edge_distance": 0.5,
    "eta_sharpness": 1.5, "barrier": 3.0, "log_horizon": 5.0, "line_escapes": np.nan, "mean_square": 0.2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "criterion", "words"),
    [
        ({}, "escape", "against log T"),
        ({"barrier": 8.0}, "mean-square", "the noise is too weak"),
        ({"barrier": 8.0, "line_escapes": 2.0}, "escape", "expects 2 escapes"),
        ({"line_escapes": 0.3}, "mean-square", "expects 0.3 escapes"),
        ({"barrier": np.inf, "mean_square": 0.05}, "mean-square", "already passed"),
        ({"drift": 0.6}, "plateau", "self-stabilization"),
        ({"drift": -0.6}, "none", "shorten the horizon"),
        ({"drift": 0.6, "edge_distance": -0.5}, "none", "recalibrate"),
        ({"gradient_square": 2.0, "top_share": 0.6}, "catapult", "sharpest direction"),
        ({"gradient_square": 2.0}, "escape", "less than its distance"),  # large along slow directions only
    ],
)
def test_rules(changes, criterion, words):
    found, reason = _decide(SIZES | changes, 0.1, full_batch=False)
    assert found == criterion
    assert words in reason
    assert _decide(SIZES, 0.1, full_batch=True)[0] == "deterministic"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eta": 0.0}, "eta=0.0"),
        ({"batch_size": 64}, "batch_size=64"),
        ({"horizon": 0}, "horizon=0"),
        ({"params": np.zeros(3)}, "must be 118 finite weights"),
    ],
)
def test_refusals(small_task, small_start, changes, message):
    given = {"params": small_start, "eta": 0.1, "batch_size": 4, "horizon": 100} | changes
    with pytest.raises(InvalidInput, match=message):
        applicable_criterion(small_task, given.pop("params"), **given)
