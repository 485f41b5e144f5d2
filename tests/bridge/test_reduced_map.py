"""The reduced map: its coefficients by differences, its runs by automatic gradients, and what a network shows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from eos_sde.bridge import central_flow, checkpoint, load_task, record, stochastic_central_flow
from eos_sde.bridge.averaged_path import fluctuation_draws, sharpness_beside
from eos_sde.bridge.reduced_map import ReducedMap, iterates_sharpness, reduced_map, sharp_modes, swings
from eos_sde.bridge.spectrum import top_modes
from eos_sde.training.linear_rules import linear_rule

ETA = 0.1


@pytest.fixture(scope="module")
def around(small_task, small_start):
    values, modes, _ = top_modes(small_task, jnp.asarray(small_start), 3)
    scale = jnp.full(small_task.size, ETA**0.5)
    return reduced_map(small_task, jnp.asarray(small_start), ETA * values, modes, scale), modes


def test_coefficients_are_derivatives_of_the_loss(around, small_task, small_start, small_hessian):
    """Against the dense Hessian: A and Lambda at the point, T by central differences of U'HU, to their order h^2."""
    found, modes = around
    basis, m = np.asarray(found.basis), modes.shape[1]
    hessian = ETA * np.asarray(small_hessian(small_start))
    assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-12)
    assert_allclose(basis.T @ np.asarray(modes), 0.0, atol=1e-12)
    assert_allclose(found.hessian, basis.T @ hessian @ basis, atol=1e-10)
    assert_allclose(np.diag(np.asarray(found.eigenvalues)), modes.T @ hessian @ modes, atol=1e-6)
    h = 1e-4
    for column in (0, m, basis.shape[1] - 1):
        step = ETA**0.5 * h * basis[:, column]
        ahead, behind = (ETA * np.asarray(small_hessian(small_start + s * step)) for s in (1, -1))
        expected = np.asarray(modes).T @ (ahead - behind) @ np.asarray(modes) / (2 * h)
        assert_allclose(np.asarray(found.turning)[:, :, column], expected, atol=1e-6)


def test_the_basis_holds_all_that_turns_the_curvature(around, small_task, small_start, small_hessian):
    """A step off the modes changes U'HU as its part in the basis does: the rest is orthogonal to every T."""
    found, modes = around
    away = np.random.default_rng(0).standard_normal(small_task.size)
    away -= np.asarray(modes) @ (np.asarray(modes).T @ away)
    away -= np.asarray(found.basis) @ (np.asarray(found.basis).T @ away)
    step = 1e-4 * away / np.linalg.norm(away)
    ahead, behind = (np.asarray(small_hessian(small_start + s * step)) for s in (1, -1))
    change = np.asarray(modes).T @ (ahead - behind) @ np.asarray(modes)
    assert np.abs(change).max() < 1e-9 * np.abs(ahead).max()


def cubic(eigenvalues, seed=0, beside=3):
    """A map with turning of order 1 and a stable A."""
    rng = np.random.default_rng(seed)
    m = len(eigenvalues)
    turning = rng.standard_normal((m, m, beside))
    turning = (turning + turning.transpose(1, 0, 2)) / 2
    spread = rng.standard_normal((beside, beside))
    hessian = 0.02 * np.eye(beside) + 0.01 * spread @ spread.T
    return ReducedMap(
        *map(jnp.asarray, (np.asarray(eigenvalues), turning, np.eye(m + beside)[:, m:], hessian))
    )


@pytest.mark.parametrize(("name", "options"), [("sgdm", {"momentum": 0.5}), ("nesterov", {"momentum": 0.5})])
def test_runs_descend_the_cubic_loss(name, options):
    """The states at the end are those of the rule, by automatic gradients of the cubic loss written out."""
    rule = linear_rule(name, **options)
    edge = rule.edge(1.0)
    found = cubic([0.9 * edge, 0.5 * edge])
    state = jnp.zeros((2, 2, 2, 2)).at[0, 0, 0, 0].set(1e-4).at[1, 0, 1, 0].set(4e-4)
    key = jax.random.key(3)
    settled = state
    matrices = np.asarray(rule.step(1.0, np.asarray(found.eigenvalues))[0])
    for _ in range(20):
        settled = np.einsum("iac,icjd,jbd->iajb", matrices, settled, matrices)
    sigma = settled[:, 0, :, 0]

    def loss(z):
        x, q = z[:2], z[2:]
        mean = jnp.einsum("ijs,ij,s->", found.turning, sigma, q) / 2
        return (
            x @ (found.eigenvalues * x) / 2
            + x @ (found.turning @ q) @ x / 2
            + q @ found.hessian @ q / 2
            - mean
        )

    runs = swings(found, rule, (jnp.zeros((1, 2)), jnp.zeros((1, 2, 2)), 0.0), state, key)
    values, rotation = np.linalg.eigh(settled.reshape(4, 4))
    kicks = np.asarray(jax.random.normal(jax.random.split(key)[0], (16, 4)))
    starts = kicks * np.sqrt(np.maximum(values, 0.0)) @ rotation.T
    slope = jax.jit(jax.grad(loss))
    for run in (0, 7):
        x, v = starts[run].reshape(2, 2).T
        z, velocity = np.concatenate([x, np.zeros(3)]), np.concatenate([v, np.zeros(3)])
        for _ in range(300):
            gradient = np.asarray(slope(z))
            velocity = rule.momentum * velocity + gradient
            z = z - (gradient + rule.momentum * velocity if rule.nesterov else velocity)
        reached = np.concatenate([runs.along[run], runs.beside[run]])
        assert_allclose(reached, z, rtol=1e-7, atol=1e-12)


def test_one_mode_is_brought_back_to_the_edge():
    """Self-stabilization: x neither grows nor dies, so that log|1 - z| is 0 in its mean over time, and z is 2.

    |x| changes by less than a factor of e^2 in the 200 steps averaged, so the mean of log|1 - z| is below 0.01; z
    starts at 2.03. Its swings of y add their mean square over 2, and the noise its share of E x^2, 0.001.
    """
    found = ReducedMap(jnp.array([2.03]), jnp.array([[[1.0]]]), jnp.eye(2)[:, 1:], jnp.array([[0.02]]))
    gradients = jnp.asarray(np.random.default_rng(0).standard_normal((64, 1)))
    state = jnp.zeros((1, 2, 1, 2)).at[0, 0, 0, 0].set(0.004)
    noise = gradients, jnp.zeros((64, 1, 1)), 1e-7
    runs = swings(found, linear_rule("gd"), noise, state, jax.random.key(0))
    assert abs(float(jnp.median(runs.mean_tops)) - 2.0) < 0.015


def test_without_turning_the_top_eigenvalue_rests():
    found = cubic([1.5, 0.7])._replace(turning=jnp.zeros((2, 2, 3)))
    rng = np.random.default_rng(1)
    noise = jnp.asarray(rng.standard_normal((10, 2))), jnp.zeros((10, 2, 2)), 0.3
    runs = swings(found, linear_rule("sgd"), noise, jnp.zeros((2, 2, 2, 2)), jax.random.key(0))
    assert_allclose(runs.mean_tops, 1.5, rtol=1e-12)
    assert np.all(np.asarray(runs.beside) == 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sgdm", "nesterov"])
def test_without_turning_the_map_is_the_rule_on_a_quadratic(name):
    """Variance of 16 runs of 40 modes of one curvature, against the closed form: within 4 sqrt(2/640) = 22 %.

    A false alarm in 16 000. The control is the variance that noise leaves without momentum, at the same edge.
    """
    rule, m, p = linear_rule(name, momentum=0.9), 40, 0.3
    curvature = 0.5 * rule.edge(1.0)
    found = ReducedMap(jnp.full(m, curvature), jnp.zeros((m, m, 1)), jnp.eye(m + 1)[:, m:], jnp.zeros((1, 1)))
    rows = np.random.default_rng(4).standard_normal((400, m))
    rows -= rows.mean(axis=0)
    rows = rows @ np.linalg.inv(np.linalg.cholesky(rows.T @ rows / 400)).T  # of unit covariance
    noise = jnp.asarray(rows), jnp.zeros((400, m, m)), p
    runs = swings(found, rule, noise, jnp.zeros((m, 2, m, 2)), jax.random.key(0))
    expected = p * float(rule.response(1.0, curvature, curvature))
    if name == "sgdm":
        edge = rule.edge(1.0)
        assert_allclose(expected, p * 1.9 / (0.1 * curvature * (edge - curvature)), rtol=1e-9)
    variance = float((runs.along**2).mean())
    assert abs(variance / expected - 1) < 0.22
    plain = p * float(linear_rule("sgd").response(1.0, 1.0, 1.0))
    assert abs(plain / expected - 1) > 0.22


def test_a_run_that_leaves_the_cubic_model_is_told():
    found = cubic([3.0, 0.5])  # beyond the edge, and kicks too large for q to stop
    state = jnp.zeros((2, 2, 2, 2)).at[0, 0, 0, 0].set(100.0)
    noise = jnp.zeros((1, 2)), jnp.zeros((1, 2, 2)), 0.0
    runs = swings(found, linear_rule("gd"), noise, state, jax.random.key(0))
    assert np.all(np.isnan(runs.mean_tops))
    assert np.all(np.isfinite(runs.along))


@pytest.mark.slow
def test_where_the_cubic_model_is_left_the_fluctuation_is_gaussian(small_task, small_start):
    """Kicks of the size of the weights: read at the draws themselves."""
    theta = jnp.asarray(small_start)
    values, modes, _ = top_modes(small_task, theta, 2)
    spread, key, still = 4.0 * jnp.eye(2), jax.random.key(0), jnp.zeros((8, small_task.size))
    noise = jnp.zeros((1, 2)), jnp.zeros((1, 2, 2)), 0.0
    given = {"eta": 1.9 / float(values[0]), "noise": noise, "covariance": spread, "others": still, "key": key}
    found, error = iterates_sharpness(small_task, theta, values, modes, **given)
    points = fluctuation_draws(modes, spread, key, 4)
    assert_allclose(found, sharpness_beside(small_task, theta, modes, points).mean(), rtol=1e-9)
    assert error > 0


def test_there_is_room_beside_the_modes():
    assert [sharp_modes(d, k) for d, k in ((1, 1), (4, 4), (40, 16), (4000, 3))] == [1, 2, 6, 3]


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [256, 1000])
def test_runs_with_several_modes_at_the_edge_show_more_than_the_edge(batch_size):
    """Five modes of this network are at 2/eta on average, so that the largest is above: 6 to 8 % are seen.

    Six runs, or one of full batches averaged over every 50 steps, within 2 % over steps 200 to 500; 2/eta is 5 % off.
    """
    task = load_task("digits-mlp")
    start = checkpoint(task, eta=task.eta, steps=150, seed=0)
    given = {"steps": 500, "eta": task.eta, "seed": 0}
    if batch_size < task.n:
        flow = stochastic_central_flow(task, start, batch_size=batch_size, **given)
        runs = record(
            task,
            "sgd",
            **(given | {"seed": 10_000}),
            batch_size=batch_size,
            start=start,
            replicas=6,
            every=50,
        )
    else:
        flow = central_flow(task, start, steps=500, eta=task.eta)
        runs = record(task, "gd", **given, batch_size=task.n, start=start, every=1)
    measured = float(runs["sharpness"].sel(step=slice(200, 500)).mean())
    forecast = float(flow["iterate_sharpness"].sel(step=slice(200, 500)).mean())
    assert abs(forecast / measured - 1) < 0.02
    assert abs(2.0 / task.eta / measured - 1) > 0.05
