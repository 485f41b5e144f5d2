"""Top Hessian modes against the dense Hessian: LOBPCG from nothing, and following along a path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eos_sde.bridge import load_task
from eos_sde.bridge.spectrum import follow_modes, hessian_products, random_block, top_modes
from solvers.errors import ConvergenceFailure, InvalidInput


@pytest.fixture(scope="module")
def task():
    return load_task("digits-mlp", examples=30, hidden=(4,), pool=2)


@pytest.fixture(scope="module")
def dense(task):
    return jax.jit(jax.hessian(task.loss))


def test_products_are_those_of_the_dense_hessian(task, dense):
    theta = task.init(0)
    block = random_block(task.size, 3, seed=2)
    assert np.allclose(hessian_products(task, theta, block), dense(theta) @ block, rtol=0, atol=1e-13)


def test_random_blocks_are_orthonormal_and_repeatable():
    block = random_block(40, 4, seed=1)
    assert np.allclose(block.T @ block, np.eye(4), atol=1e-14)
    assert np.array_equal(block, random_block(40, 4, seed=1))
    assert not np.array_equal(block, random_block(40, 4, seed=2))


def test_largest_algebraic_and_following(task, dense):
    """At the start the most negative eigenvalue is not picked up; one step of following squares the angle."""
    theta = task.init(0)
    values, vectors, residuals = top_modes(task, theta, 4)
    truth, frame = np.linalg.eigh(dense(theta))
    assert truth[0] < 0
    assert np.all(np.abs(values - truth[::-1][:4]) <= residuals + 1e-12)
    assert residuals[0] <= 1e-6 * values[0]
    assert np.allclose(vectors.T @ vectors, np.eye(4), atol=1e-12)
    warm = top_modes(task, theta, 4, block=vectors)
    assert np.allclose(warm[0], values, rtol=1e-12)
    # turn the leading vectors by 0.01 towards directions outside the block: errors of order 1e-4, then smaller
    outside = frame[:, 40:44]
    turned = jnp.linalg.qr(vectors + 0.01 * outside)[0]
    errors = []
    for _ in range(3):
        ritz, modes, turned = follow_modes(task, theta, turned)
        errors.append(abs(float(ritz[0]) - truth[-1]))
        assert np.allclose(modes.T @ modes, np.eye(4), atol=1e-12)
        assert np.all(np.diff(ritz) <= 0)
    assert errors[0] < 2e-4 * (truth[-1] - truth[40])
    assert errors[1] < errors[0] * (truth[43] / truth[-1]) ** 2 * 2 + 1e-12
    assert errors[2] <= errors[1] + 1e-12


def test_refusals(task):
    with pytest.raises(InvalidInput, match=r"k=0 modes of 118 weights; choose from 1 to 23"):
        top_modes(task, task.init(0), 0)
    with pytest.raises(ConvergenceFailure, match=r"residual .* after 200 iterations"):
        top_modes(task, task.init(0), 4, tol=0.0)
