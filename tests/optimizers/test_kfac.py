"""KFAC's blocks against kfac-jax, exact cases and dense Gauss-Newton matrices."""

import doctest
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from eos_sde.optimizers import caeo, curvature
from eos_sde.optimizers.curvature import kronecker
from eos_sde.optimizers.curvature.layers import Layers, kronecker_factors, layer_matrices
from solvers.errors import InvalidInput

REFERENCE = json.loads(Path(__file__).with_name("kfac_reference.json").read_text())


def problem():
    """That of make_kfac_reference.py."""
    rng = np.random.default_rng(20)
    shapes = {"kernel": (3, 3, 2, 3), "kernel_b": (3,), "mix": (3, 5), "mix_b": (5,), "out": (5, 4), "out_b": (4,)}
    weights = {name: jnp.asarray(0.7 * rng.standard_normal(shape)) for name, shape in shapes.items()}
    return weights, jnp.asarray(rng.standard_normal((7, 5, 5, 2))), jnp.asarray(rng.integers(0, 4, 7))


WEIGHTS, IMAGES, LABELS = problem()


def network(weights, layers, images=IMAGES):
    hidden = jnp.tanh(layers.convolution("conv", images, weights["kernel"], weights["kernel_b"], strides=(2, 2)))
    tokens = hidden.reshape(len(images), -1, 3)
    mixed = layers.dense("mix", tokens, weights["mix"], weights["mix_b"])
    attention = jax.nn.softmax(mixed @ jnp.swapaxes(mixed, 1, 2), axis=-1)
    pooled = jnp.mean(attention @ mixed, axis=1)
    return layers.dense("out", pooled, weights["out"], weights["out_b"])


def cross_entropy(logits, labels=LABELS):
    logs = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(logs, labels[:, None], axis=1))


def gauss_newton(model, loss, params):
    flat, unravel = ravel_pytree(params)
    outputs = model(params, Layers())
    jacobian = jax.jacobian(lambda f: model(unravel(f), Layers()).ravel())(flat)
    inner = jax.hessian(lambda o: loss(o.reshape(outputs.shape)))(outputs.ravel())
    return jacobian.T @ inner @ jacobian


def test_the_block_eigenvalues_are_those_of_kfac_jax():
    """All eigenvalues of both factors, for convolution, shared and plain dense layers; both in double precision."""
    ours = kronecker_factors(network, cross_entropy, WEIGHTS)
    for name, (title, block) in zip(("conv", "mix", "out"), REFERENCE["blocks"].items(), strict=True):
        theirs = block["scale"] * np.multiply.outer(*map(np.array, block["eigenvalues"]))
        mine = np.multiply.outer(*(np.linalg.eigvalsh(np.asarray(factor)) for factor in ours[name]))
        np.testing.assert_allclose(mine, theirs, rtol=1e-8, atol=1e-12 * theirs.max(), err_msg=title)


if __name__ == "__main__":
    test_the_block_eigenvalues_are_those_of_kfac_jax()
