"""Calibration against the dense Hessian, finite differences and enumeration of the examples."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eos_sde.bridge import calibrate, load_task
from eos_sde.bridge.batches import draw_batches, stream
from solvers.errors import InvalidInput

BATCH, K = 5, 6


@pytest.fixture(
    scope="module", params=["half-squared-error", pytest.param("cross-entropy", marks=pytest.mark.slow)]
)
def case(request, small_task):
    """A network of 118 weights after some training; 63 examples, not a multiple of the jackknife's ten groups."""
    task = small_task
    if request.param != task.loss_name:
        task = load_task("digits-mlp", examples=63, hidden=(4,), pool=2, loss=request.param)
    gradient = jax.jit(jax.grad(task.loss))
    theta = task.init(1)
    for _ in range(150):
        theta = theta - 0.2 * gradient(theta)
    hessian = jax.jit(jax.hessian(task.loss))
    values, vectors = np.linalg.eigh(hessian(theta))
    found = calibrate(task, theta, batch_size=BATCH, k=K, seed=3)
    one = jax.jit(jax.vmap(jax.grad(lambda w, x, y: task.loss(w, x[None], y[None])), (None, 0, 0)))
    return SimpleNamespace(
        task=task, theta=theta, gradient=gradient, hessian=hessian, values=values[::-1][:K], found=found,
        vectors=vectors[:, ::-1][:, :K], u=vectors[:, -1], per_example=np.asarray(one(theta, task.x, task.y)),
    )  # fmt: skip


def test_eigenpairs(case):
    error = np.abs(case.found["eigenvalue"].values - case.values)
    residual = case.found["eigenvalue_residual"].values
    assert np.all(error <= residual + 1e-12)  # what the residual promises
    assert error[0] < 1e-10
    vectors = case.found["eigenvector"].values
    assert np.allclose(vectors @ vectors.T, np.eye(K), atol=1e-12)
    # sin(angle) <= residual / gap
    overlap = np.abs(np.sum(vectors[:3] * case.vectors.T[:3], axis=1))
    gap = np.abs(np.subtract.outer(case.values[:3], case.values) + 1e9 * np.eye(3, K)).min(axis=1)
    assert np.all(1 - overlap <= (residual[:3] / gap) ** 2 + 1e-12)


def test_alpha_and_beta_by_differences_of_the_sharpness(case):
    """The slope of the top eigenvalue of the dense Hessian, along minus the gradient and along itself."""
    top = jax.jit(lambda w: jnp.linalg.eigvalsh(case.hessian(w))[-1])
    slope = np.asarray(
        jax.jit(jax.grad(top))(case.theta)
    )  # of the eigenvalue itself: eigenvector not held fixed
    across = slope - (slope @ case.u) * case.u
    downhill = -np.asarray(case.gradient(case.theta))
    downhill = downhill - (downhill @ case.u) * case.u

    def difference(direction, h):
        return float(top(case.theta + h * direction) - top(case.theta - h * direction)) / (2 * h)

    # central differences: truncation h^2/6 times a third derivative, seen to be below 1e-6 by halving h
    for direction, value in ((downhill, case.found["alpha"]), (across, case.found["beta"])):
        scale = np.linalg.norm(direction)
        h = 1e-3 / scale
        coarse, fine = difference(direction, h), difference(direction, h / 2)
        assert np.isclose(float(value), fine, rtol=0, atol=2 * abs(coarse - fine) + 1e-9 * scale)
        assert abs(coarse - fine) < 1e-3 * abs(fine)
    assert np.isclose(float(case.found["beta"]), across @ across, rtol=1e-8)
    assert np.isclose(float(case.found["alpha"]), downhill @ slope, rtol=1e-8)


def test_derivatives_along_the_line(case):
    """Each from central differences of the one before; truncation h^2/6 of one two orders up, and rounding."""
    u, theta = case.u * np.sign(case.u @ case.found["eigenvector"].values[0]), np.asarray(case.theta)

    def slope(s):
        return u @ np.asarray(case.gradient(theta + s * u))

    def bend(s):
        return u @ np.asarray(case.hessian(theta + s * u)) @ u

    found = {name: float(case.found[name]) for name in ("slope", "curvature", "third", "fourth")}
    assert np.isclose(found["slope"], slope(0.0), rtol=1e-9, atol=1e-12)
    assert np.isclose(found["curvature"], case.values[0], rtol=1e-12)
    h = 1e-3
    third = (bend(h) - bend(-h)) / (2 * h)
    fourth = (bend(h) - 2 * bend(0.0) + bend(-h)) / h**2
    assert np.isclose(found["third"], third, rtol=1e-4, atol=1e-4)
    assert np.isclose(found["fourth"], fourth, rtol=1e-4, atol=1e-3)


def test_noise_by_enumeration_of_the_examples(case):
    """Without replacement: covariance of one example's gradient times (n - B)/(B (n - 1))."""
    n = case.task.n
    vectors = case.found["eigenvector"].values
    gradients = case.per_example @ vectors.T
    p = (n - BATCH) / (BATCH * (n - 1))
    expected = p * np.cov(gradients.T, bias=True)
    assert np.allclose(case.found["noise_covariance"], expected, rtol=1e-9, atol=1e-12)
    along = gradients[:, 0]
    assert np.isclose(float(case.found["per_example_variance"]), along.var(), rtol=1e-9)
    assert np.isclose(float(case.found["slope_stderr"]), along.std() / np.sqrt(n), rtol=1e-9)
    squares = (along - along.mean()) ** 2
    assert np.isclose(float(case.found["per_example_variance_stderr"]), squares.std() / np.sqrt(n), rtol=1e-9)


def test_noise_against_random_batches(case):
    """The same covariance met by 20000 batches: 5 standard errors of each entry, false alarm below 1e-5.

    Negative control: p without the finite-population correction, 1/B, is 7 % larger and is rejected.
    """
    vectors = case.found["eigenvector"].values
    batches = draw_batches(stream(7), 20_000, examples=case.task.n, batch_size=BATCH)
    means = (case.per_example @ vectors[0])[batches].mean(axis=1)
    squares = (means - means.mean()) ** 2
    error = squares.std() / np.sqrt(len(means))
    expected = float(case.found["noise_covariance"][0, 0])
    n = case.task.n
    assert abs(squares.mean() - expected) < 5 * error
    assert abs(squares.mean() - expected * (n - 1) / (n - BATCH)) > 5 * error


def test_curvature_of_each_example(case):
    n = case.task.n
    one = jax.jit(jax.vmap(jax.hessian(lambda w, x, y: case.task.loss(w, x[None], y[None])), (None, 0, 0)))
    hessians = np.asarray(one(case.theta, case.task.x, case.task.y))
    vectors = case.found["eigenvector"].values
    bends = np.einsum("nij,ki,kj->nk", hessians, vectors, vectors)
    assert np.allclose(bends.mean(axis=0), case.found["eigenvalue"], rtol=1e-9)
    assert np.allclose(case.found["eigenvalue_stderr"], bends.std(axis=0) / np.sqrt(n), rtol=1e-9)
    assert np.isclose(float(case.found["curvature_variance"]), bends[:, 0].var(), rtol=1e-9)


def test_jackknife_errors_are_the_spread_over_samples(case):
    """Beta of fresh samples of the same size, drawn from the examples with replacement, scatters as its error says.

    A bootstrap of 200 has 5 % of its own error, and a jackknife of ten groups about 25 %: a factor of two is
    four of its standard errors.
    """
    direction = jnp.asarray(case.found["eigenvector"].values[0])

    def curvature_gradient(w, x, y):
        slope = lambda v: jax.jvp(lambda q: case.task.loss(q, x[None], y[None]), (v,), (direction,))[1]  # noqa: E731
        return jax.grad(lambda v: jax.jvp(slope, (v,), (direction,))[1])(w)

    each = jax.jit(jax.vmap(curvature_gradient, (None, 0, 0)))
    sharp = np.asarray(each(case.theta, case.task.x, case.task.y))
    u = np.asarray(direction)
    sharp, loss = (rows - np.outer(rows @ u, u) for rows in (sharp, case.per_example))
    picks = np.random.default_rng(0).integers(0, case.task.n, (200, case.task.n))
    g, s = loss[picks].mean(axis=1), sharp[picks].mean(axis=1)
    for name, sample in (("alpha", -np.sum(g * s, axis=1)), ("beta", np.sum(s * s, axis=1))):
        assert 0.5 < float(case.found[f"{name}_stderr"]) / sample.std() < 2, name


def test_full_batches_make_no_noise_and_everything_is_described(case):
    for name, variable in case.found.data_vars.items():
        assert variable.attrs["units"], name
        assert variable.attrs["long_name"], name
        assert np.all(np.isfinite(variable)), name
        assert name.endswith(("params", "_stderr", "_residual", "vector")) or f"{name}_stderr" in case.found
    assert case.found.attrs["examples"] == 63
    assert case.found.attrs["seed"] == 3
    assert np.isclose(case.found.attrs["loss"], case.task.loss(case.theta))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be from 1 to the 63 examples"),
        ({"batch_size": 64}, "batch_size=64 must be from 1 to the 63 examples"),
        ({"k": 0}, "k=0 modes of 118 weights; choose from 1 to 23"),
        ({"k": 24}, "k=24 modes"),
        ({"params": np.ones(3)}, "params must be 118 finite weights"),
        ({"params": np.full(118, np.nan)}, "params must be 118 finite weights"),
    ],
)
def test_refusals(small_task, change, message):
    with pytest.raises(InvalidInput, match=message):
        calibrate(small_task, **{"params": small_task.init(0), "batch_size": 2, "k": 2} | change)
