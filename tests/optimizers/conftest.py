"""Operators and losses with known spectra."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Compile with few optimisations: compiling tiny programs is most of the time of these tests.

    What was compiled so is dropped at the end, since the option is not part of JAX's cache keys: later tests of
    the same process would compute with it, to other last bits than another process.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()


class Problem(NamedTuple):
    """A loss, a point, and the eigenvalues of the Hessian there, ascending."""

    loss: object
    params: object
    spectrum: np.ndarray


@pytest.fixture(scope="session")
def mlp():
    """A 4-6-2 tanh network at a random point, with its dense spectrum."""
    keys = jax.random.split(jax.random.key(3), 6)
    params = {
        "hidden": {"w": jax.random.normal(keys[0], (4, 6)), "b": jax.random.normal(keys[1], (6,))},
        "out": {"w": jax.random.normal(keys[2], (6, 2)), "b": jnp.zeros(2)},
        "scale": jnp.asarray(1.1),
    }
    inputs = jax.random.normal(keys[3], (20, 4))
    targets = jax.random.normal(keys[4], (20, 2))

    def loss(params):
        hidden = jnp.tanh(inputs @ params["hidden"]["w"] + params["hidden"]["b"])
        outputs = params["scale"] * (hidden @ params["out"]["w"] + params["out"]["b"])
        return 0.5 * jnp.mean(jnp.sum((outputs - targets) ** 2, axis=1))

    flat, unravel = ravel_pytree(params)
    hessian = jax.jit(jax.hessian(lambda f: loss(unravel(f))))(flat)
    return Problem(loss, params, np.linalg.eigvalsh(np.asarray(hessian)))


@pytest.fixture(scope="session")
def rotated():
    """Return a maker of dense symmetric matrices of given eigenvalues, in a random basis."""

    def make(spectrum, seed=0):
        spectrum = np.asarray(spectrum, float)
        basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((spectrum.size, spectrum.size)))[0]
        return jnp.asarray((basis * spectrum) @ basis.T)

    return make
