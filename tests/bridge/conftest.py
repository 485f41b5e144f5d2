"""One small network for all tests of the bridge that need no other: JAX compiles per task."""

import jax
import numpy as np
import pytest

from eos_sde.bridge import load_task


@pytest.fixture(scope="session")
def small_task():
    """118 weights on 63 examples: small enough for a dense Hessian, and no multiple of ten."""
    return load_task("digits-mlp", examples=63, hidden=(4,), pool=2)


@pytest.fixture(scope="session")
def small_gradient(small_task):
    return jax.jit(jax.grad(small_task.loss))


@pytest.fixture(scope="session")
def small_hessian(small_task):
    return jax.jit(jax.hessian(small_task.loss))


@pytest.fixture(scope="session")
def small_start(small_task, small_gradient):
    """Weights after a hundred steps of gradient descent."""
    theta = small_task.init(1)
    for _ in range(100):
        theta = theta - 0.1 * small_gradient(theta)
    return np.asarray(theta)
