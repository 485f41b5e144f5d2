"""Top Hessian modes against the dense Hessian: LOBPCG from nothing, and following along a path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eos_sde.bridge.spectrum import (
    curvature_gradients,
    follow_modes,
    hessian_products,
    random_block,
    top_modes,
)
from solvers.errors import ConvergenceFailure, InvalidInput


def test_products_are_those_of_the_dense_hessian(small_task, small_hessian):
    theta = small_task.init(0)
    block = random_block(small_task.size, 3, seed=2)
    products = jax.jit(hessian_products, static_argnums=0)
    assert np.allclose(products(small_task, theta, block), small_hessian(theta) @ block, rtol=0, atol=1e-13)


def test_random_blocks_are_orthonormal_and_repeatable():
    block = random_block(40, 4, seed=1)
    assert np.allclose(block.T @ block, np.eye(4), atol=1e-14)
    assert np.array_equal(block, random_block(40, 4, seed=1))
    assert not np.array_equal(block, random_block(40, 4, seed=2))


def test_largest_algebraic_and_following(small_task, small_hessian):
    """At the start the most negative eigenvalue is not picked up; one step of following squares the angle."""
    theta = small_task.init(0)
    values, vectors, residuals = top_modes(small_task, theta, 6)
    truth, frame = np.linalg.eigh(small_hessian(theta))
    assert truth[0] < 0
    assert np.all(np.abs(values - truth[::-1][:6]) <= residuals + 1e-12)
    assert residuals[0] <= 1e-6 * values[0]
    assert np.allclose(vectors.T @ vectors, np.eye(6), atol=1e-12)
    warm = top_modes(small_task, theta, 6, block=vectors)
    assert np.allclose(warm[0][:3], values[:3], rtol=1e-12)  # the others go on converging
    # turn the leading vectors by 0.01 towards directions outside the block: errors of order 1e-4, then smaller
    outside = frame[:, 40:46]
    turned = jnp.linalg.qr(vectors + 0.01 * outside)[0]
    errors = []
    follow = jax.jit(follow_modes, static_argnums=0)
    for _ in range(3):
        ritz, modes, turned = follow(small_task, theta, turned)
        errors.append(abs(float(ritz[0]) - truth[-1]))
        assert np.allclose(modes.T @ modes, np.eye(6), atol=1e-12)
        assert np.all(np.diff(ritz) <= 0)
    assert errors[0] < 2e-4 * (truth[-1] - truth[40])
    assert errors[1] < errors[0] * (truth[45] / truth[-1]) ** 2 * 2 + 1e-12
    assert errors[2] <= errors[1] + 1e-12


def test_curvature_gradients_are_third_derivatives(small_task, small_hessian):
    """Against central differences of the dense Hessian along random directions; their error is of second order."""
    theta = small_task.init(0)
    frame = random_block(small_task.size, 3, seed=4)
    turning = jax.jit(lambda w: curvature_gradients(small_task, w, frame))(theta)
    assert turning.shape == (3, 3, small_task.size)
    assert np.array_equal(turning, np.swapaxes(turning, 0, 1))
    for v in random_block(small_task.size, 4, seed=5).T:
        rate = turning @ v
        errors = []
        for h in (1e-2, 5e-3):
            difference = small_hessian(theta + h * v) - small_hessian(theta - h * v)
            errors.append(np.linalg.norm(frame.T @ difference @ frame / (2 * h) - rate))
        assert errors[1] < 1e-3 * np.linalg.norm(rate)
        assert abs(errors[0] / errors[1] - 4) < 0.1


def test_refusals(small_task):
    with pytest.raises(InvalidInput, match=r"k=0 modes of 118 weights; choose from 1 to 23"):
        top_modes(small_task, small_task.init(0), 0)
    with pytest.raises(ConvergenceFailure, match=r"residual .* after 200 iterations"):
        top_modes(small_task, small_task.init(0), 6, tol=0.0)
