"""The measured onset against Theorem 3 of Mulayoff and Michaeli by enumeration, and where it must differ."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from eos_sde.bridge.interpolation_tasks import interpolation_task
from eos_sde.bridge.minimum import find_minimum
from eos_sde.bridge.onset import _rate, _rotate, measure_onset
from eos_sde.bridge.task_library import load_task
from solvers.errors import ConvergenceFailure, InvalidInput

EXAMPLES = 12


@pytest.fixture(scope="module")
def task():
    return interpolation_task("digits-mlp", examples=EXAMPLES, hidden=(8,))


@pytest.fixture(scope="module")
def minimum(task):
    return find_minimum(task, seed=0)


def predicted_mean_square(factors, batch_size):
    """2 / lambda_max(C^-1 D) as a dense matrix over the row space (r^2 x r^2): T2 without any economy."""
    n = len(factors)
    u, s, _ = np.linalg.svd(factors, full_matrices=False)
    rows = u * s
    p = (n - batch_size) / (batch_size * (n - 1))
    hessians = np.einsum("ia,ib->iab", rows, rows)
    hessian = hessians.mean(axis=0)
    one = np.eye(len(s))
    c = 0.5 * (np.kron(hessian, one) + np.kron(one, hessian))
    d = (1 - p) * np.kron(hessian, hessian) + p * np.mean([np.kron(h, h) for h in hessians], axis=0)
    return 2 / np.linalg.eigvals(np.linalg.solve(c, d)).real.max()


def test_minimum_interpolates_and_its_jacobian_is_right(task, minimum):
    assert minimum.loss < 1e-20
    assert minimum.jacobian.shape == (EXAMPLES, 1, task.size)
    direction = np.random.default_rng(0).standard_normal(task.size)
    step = 1e-6
    outputs = [np.asarray(task.apply(minimum.theta + s * step * direction))[:, 0] for s in (1, -1)]
    # central difference: step^2 truncation, 1e-16/step rounding
    assert np.allclose((outputs[0] - outputs[1]) / (2 * step), minimum.jacobian[:, 0] @ direction, atol=1e-7)


def test_gradient_descent_leaves_at_two_over_sharpness(task, minimum):
    onset = measure_onset(task, minimum, batch_size=EXAMPLES, seed=0)
    assert abs(float(onset.relative_to_edge) - 1) < 3 * float(onset.relative_to_edge_stderr)
    assert float(onset.relative_to_edge_stderr) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 4])
def test_mean_square_onset_is_the_predicted_one(task, minimum, batch_size):
    onset = measure_onset(task, minimum, batch_size=batch_size, seed=1)
    predicted = predicted_mean_square(minimum.jacobian[:, 0], batch_size)
    # 3 % covers the linear fit and the finite populations
    assert np.isclose(float(onset.eta), predicted, rtol=0.03)
    assert float(onset.eta_low) < float(onset.eta_high)
    # negative control: the deterministic edge is not the answer
    assert 1 - float(onset.relative_to_edge) > 4 * float(onset.relative_to_edge_stderr)


@pytest.mark.slow
def test_same_seed_same_bits(task, minimum):
    runs = [measure_onset(task, minimum, batch_size=4, seed=3, tolerance=0.2, horizon=100) for _ in range(2)]
    assert runs[0].identical(runs[1])
    other = measure_onset(task, minimum, batch_size=4, seed=4, tolerance=0.2, horizon=100)
    assert float(other.eta) != float(runs[0].eta)


@pytest.mark.slow
def test_typical_runs_outlast_the_mean_square(task, minimum):
    """Lambda(p)/p grows with p, so almost-sure stability is lost later; at batch 4 visibly so."""
    onset = measure_onset(task, minimum, batch_size=4, seed=0, criterion="almost-sure")
    assert float(onset.eta) > 1.01 * predicted_mean_square(minimum.jacobian[:, 0], 4)


def test_rate_recovers_the_mean_of_lognormal_growth():
    """Populations of one: the mean of exp(N(m, s^2)) grows at m + s^2/2, which the mean of the log misses."""
    rng = np.random.default_rng(0)
    m, s, blocks, populations = 0.01, 0.2, 80, 8
    rates = (5 * m + np.sqrt(5) * s * rng.standard_normal((blocks, populations))) / 5
    value, stderr = _rate(rates, corrected=True)
    assert abs(value - (m + s**2 / 2)) < 4 * stderr  # false alarm 6e-5
    # scatter s/sqrt(3200 steps) = 0.0035, half the variance s^2/2 known to sqrt(6/64 windows): 0.0061; 1.4 of both
    assert stderr < 0.010
    uncorrected, _ = _rate(rates, corrected=False)
    assert abs(uncorrected - m) < 4 * s / np.sqrt(5 * blocks * populations)


def test_rate_does_not_take_bursts_for_growth():
    """The log of the moment is 50 m a window plus an independent level: the mean grows at m, levels or not."""
    rng = np.random.default_rng(1)
    m, populations, windows = 0.002, 32, 8
    levels = rng.standard_normal((windows + 1, populations))
    rates = np.repeat(m + np.diff(levels, axis=0) / 50, 10, axis=0)
    value, stderr = _rate(rates, corrected=True)
    assert abs(value - m) < 4 * stderr  # false alarm 6e-5
    # negative control: half the variance of the windows alone, 50/2 * 2/50^2, is beyond that error
    assert 4 * stderr < 0.02


def test_rotation_keeps_second_moments():
    rng = np.random.default_rng(0)
    replicas = rng.standard_normal((8, 2, 3)) * 10.0 ** -np.arange(8)[:, None, None]
    order = np.array([2, 0, 3, 1, 5, 7, 4, 6])
    mixed = np.asarray(_rotate(jnp.asarray(replicas), order, rng.choice([-1.0, 1.0], 8), 4)).reshape(2, 4, 6)
    for before, after in zip(replicas.reshape(2, 4, 6), mixed, strict=True):
        assert np.allclose(after.T @ after, before.T @ before, rtol=0, atol=1e-14 * np.sum(before**2))
        sizes = np.linalg.norm(after, axis=1)
        assert sizes.max() < 2 * sizes.min()  # one replica held nearly all: each of the four gets its share


def test_a_bracket_without_the_onset_is_said_to_be_so(task, minimum):
    edge = 2 / minimum.sharpness
    with pytest.raises(ConvergenceFailure, match="wider bracket"):
        measure_onset(
            task, minimum, batch_size=EXAMPLES, seed=0, bracket=(0.2 * edge, 0.5 * edge), horizon=100
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 13}, "batch_size=13 must be an integer from 1 to 12"),
        ({"criterion": "median"}, "criterion='median' is not known"),
        ({"bracket": (0.2, 0.1)}, "two increasing positive"),
        ({"populations": 2}, "populations=2 must be at least 3"),
        ({"horizon": 10}, "horizon=10"),
        ({"tolerance": 0.0}, "tolerance=0.0"),
        ({"replicas": 0}, "replicas=0"),
        ({"replicas": 48}, "replicas=48 must be 1, 2, 4, 8"),
    ],
)
def test_bad_input_is_refused(task, minimum, settings, message):
    with pytest.raises(InvalidInput, match=message):
        measure_onset(task, minimum, **{"batch_size": 2, "seed": 0, **settings})


def test_minimum_of_another_task_is_refused(task, minimum):
    wrong = dataclasses.replace(minimum, theta=minimum.theta[:-1])
    with pytest.raises(InvalidInput, match="find it again"):
        measure_onset(task, wrong, batch_size=1, seed=0)


@pytest.mark.slow
def test_no_interpolation_without_enough_weights():
    with pytest.raises(InvalidInput, match="interpolation needs fewer"):
        find_minimum(load_task("digits-mlp", examples=1000, hidden=(8,)), seed=0)
    with pytest.raises(InvalidInput, match="hard targets"):
        find_minimum(load_task("digits-mlp", examples=10, loss="cross-entropy"), seed=0)
    with pytest.raises(ConvergenceFailure, match="above tolerance"):
        find_minimum(interpolation_task("digits-mlp", examples=12), seed=0, tolerance=1e-60)
