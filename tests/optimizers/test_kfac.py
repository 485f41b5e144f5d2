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
    shapes = {
        "kernel": (3, 3, 2, 3),
        "kernel_b": (3,),
        "mix": (3, 5),
        "mix_b": (5,),
        "out": (5, 4),
        "out_b": (4,),
    }
    weights = {name: jnp.asarray(0.7 * rng.standard_normal(shape)) for name, shape in shapes.items()}
    return weights, jnp.asarray(rng.standard_normal((7, 5, 5, 2))), jnp.asarray(rng.integers(0, 4, 7))


WEIGHTS, IMAGES, LABELS = problem()


def network(weights, layers, images=IMAGES):
    hidden = jnp.tanh(
        layers.convolution("conv", images, weights["kernel"], weights["kernel_b"], strides=(2, 2))
    )
    tokens = hidden.reshape(len(images), -1, 3)
    mixed = layers.dense("mix", tokens, weights["mix"], weights["mix_b"])
    attention = jax.nn.softmax(mixed @ jnp.swapaxes(mixed, 1, 2), axis=-1)
    pooled = jnp.mean(attention @ mixed, axis=1)
    return layers.dense("out", pooled, weights["out"], weights["out_b"])


def cross_entropy(logits, labels=LABELS):
    logs = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(logs, labels[:, None], axis=1))


def gauss_newton(model, loss, params, wrap=lambda w: w):
    flat, unravel = ravel_pytree(params)
    outputs = model(wrap(params), Layers())
    jacobian = jax.jit(jax.jacobian(lambda f: model(wrap(unravel(f)), Layers()).ravel()))(flat)
    inner = jax.hessian(lambda o: loss(o.reshape(outputs.shape)))(outputs.ravel())
    return jacobian.T @ inner @ jacobian


def test_the_block_eigenvalues_are_those_of_kfac_jax():
    """All products of both factors' eigenvalues, for convolution, shared and plain dense layers, in double precision.

    For a dense layer that is shared among positions kfac-jax sums the inputs over these, where for a convolution it
    takes their mean: as if the derivatives of all positions of an example were one. We take the mean for both.
    """
    ours = jax.jit(lambda weights: kronecker_factors(network, cross_entropy, weights))(WEIGHTS)
    positions = {"conv": 1, "mix": 9, "out": 1}
    for name, (title, block) in zip(positions, REFERENCE["blocks"].items(), strict=True):
        theirs = block["scale"] * np.multiply.outer(*map(np.array, block["eigenvalues"])) / positions[name]
        mine = np.multiply.outer(*(np.linalg.eigvalsh(np.asarray(factor)) for factor in ours[name]))
        np.testing.assert_allclose(mine, theirs, rtol=1e-8, atol=1e-12 * theirs.max(), err_msg=title)


@pytest.mark.slow
def test_exact_for_one_example():
    """One example and position: the block of the last layer is the Kronecker product itself."""
    model = lambda w, layers: network({**WEIGHTS, **w}, layers, IMAGES[:1])  # noqa: E731
    loss = lambda logits: cross_entropy(logits, LABELS[:1])  # noqa: E731
    last = {name: WEIGHTS[name] for name in ("out", "out_b")}
    factors = kronecker_factors(model, loss, last)["out"]
    matrix = gauss_newton(model, loss, [last["out"], last["out_b"]], lambda w: {"out": w[0], "out_b": w[1]})
    np.testing.assert_allclose(np.kron(factors.inputs, factors.outputs), matrix, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_the_estimate_its_vector_and_its_bound():
    """The vector attains the block's value in the factors, and an eigenvalue lies within the bound."""
    estimator = curvature.kfac(network, cross_entropy, samples=400)
    plain = lambda w: network(w, Layers())  # noqa: E731

    @jax.jit
    def estimate(weights):
        hvp = curvature.gauss_newton_product(plain, cross_entropy, weights)
        return estimator.update(hvp, weights, estimator.init(weights, jax.random.key(0)))

    value, bound, state = estimate(WEIGHTS)
    factors = kronecker_factors(network, cross_entropy, WEIGHTS)
    tops = {
        n: np.linalg.eigvalsh(f.inputs)[-1] * np.linalg.eigvalsh(f.outputs)[-1] for n, f in factors.items()
    }
    # 400 signs for 4 classes: a relative standard error of G of sqrt(2/400) = 7 %, five of it
    assert float(value) == pytest.approx(max(tops.values()), rel=0.35)
    spectrum = np.linalg.eigvalsh(gauss_newton(network, cross_entropy, WEIGHTS))
    assert np.min(np.abs(spectrum - float(value))) <= float(bound) * (1 + 1e-9)
    best = max(tops, key=tops.get)
    matrices = layer_matrices(network, state.vector)
    sizes = {name: float(jnp.linalg.norm(matrix)) for name, matrix in matrices.items()}
    assert sizes[best] == pytest.approx(1.0, rel=1e-12)
    assert all(size == 0 for name, size in sizes.items() if name != best)
    quotient = np.einsum(
        "ij,ik,jl,kl", matrices[best], factors[best].inputs, factors[best].outputs, matrices[best]
    )
    assert quotient == pytest.approx(tops[best], rel=0.1)


@pytest.mark.slow
def test_drives_caeo():
    """At a base rate that is safe without a cap: KFAC's estimate is no upper bound, so that the cap is none either."""
    optimizer = caeo(0.05, curvature=curvature.kfac(network, cross_entropy))
    plain = lambda w: cross_entropy(network(w, Layers()))  # noqa: E731

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(plain)(params), state, params, value_fn=plain)
        return jax.tree.map(jnp.add, params, updates), state

    params, state = WEIGHTS, optimizer.init(WEIGHTS)
    for _ in range(30):
        params, state = step(params, state)
    assert float(plain(params)) < 0.9 * float(plain(WEIGHTS))
    assert float(state.sharpness) > 0
    assert float(jnp.linalg.norm(ravel_pytree(state.schedule.slope)[0])) > 0  # its vector is followed


def test_refusals():
    with pytest.raises(InvalidInput, match="model has no layers"):
        kronecker_factors(lambda w, layers: w, jnp.sum, jnp.ones(2))
    with pytest.raises(InvalidInput, match="name='a' is used by two layers"):
        layer_matrices(
            lambda w, layers: layers.dense("a", layers.dense("a", jnp.ones((1, 2)), w), w), jnp.ones((2, 2))
        )
    with pytest.raises(InvalidInput, match="samples must be a positive whole number"):
        curvature.kfac(network, cross_entropy, samples=0)
    with pytest.raises(InvalidInput, match="loss must be a function"):
        curvature.kfac(network, 3.0)


def test_docstring_examples():
    result = doctest.testmod(kronecker)
    assert result.attempted > 0
    assert result.failed == 0
