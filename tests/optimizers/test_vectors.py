"""Pytrees as vectors: the same numbers as the flat vector's, drawn and measured leaf by leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eos_sde.optimizers import curvature
from eos_sde.optimizers.curvature.vectors import _places, normal_block


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_a_block_of_normal_numbers_is_that_of_the_whole(dtype, make):
    whole = jax.random.normal(make(5), (500,), dtype)
    block = normal_block(make(5), 137, (7, 5, 9), dtype, size=500)
    assert block.dtype == whole.dtype
    np.testing.assert_array_equal(block, whole[137 : 137 + 315].reshape(7, 5, 9))
    others = normal_block(jax.random.key(5, impl="rbg"), 3, (4,), dtype, size=9)
    np.testing.assert_array_equal(others, jax.random.normal(jax.random.key(5, impl="rbg"), (9,), dtype)[3:7])


def test_places_carry_beyond_32_bits():
    high, low = (np.asarray(word).astype(np.uint64) for word in _places((1 << 33) - 7, (3, 11, 2)))
    np.testing.assert_array_equal(
        (high.ravel() << np.uint64(32)) | low.ravel(), (1 << 33) - 7 + np.arange(66)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator", [curvature.lanczos(order=4), curvature.power(), curvature.random_rayleigh()]
)
def test_arrays_and_their_flat_vector_give_the_same_estimate(estimator):
    """Sums of 30 numbers in another order: 30 units of rounding of the norm (1), times 12 products and 30 for luck."""
    draw = np.random.default_rng(1).standard_normal((30, 30))
    matrix = jnp.asarray(draw + draw.T)
    flat = jnp.zeros(30)
    tree = {"a": jnp.zeros((4, 5)), "b": jnp.zeros(()), "c": jnp.zeros((9, 1))}
    split = {"a": (0, 20), "b": (20, 21), "c": (21, 30)}

    def ravel(vector):
        return jnp.concatenate([vector[name].ravel() for name in tree])

    def unravel(vector):
        return {name: vector[first:last].reshape(tree[name].shape) for name, (first, last) in split.items()}

    key = jax.random.key(2)
    one = estimator.update(lambda v: matrix @ v, flat, estimator.init(flat, key))
    two = estimator.update(lambda v: unravel(matrix @ ravel(v)), tree, estimator.init(tree, key))
    close = 30 * 12 * 30 * 2.2e-16 * float(jnp.linalg.norm(matrix))
    np.testing.assert_allclose(two[:2], one[:2], rtol=0, atol=close)
    if hasattr(one[2], "vector"):
        np.testing.assert_allclose(ravel(two[2].vector), one[2].vector, rtol=0, atol=close)


def test_recomputed_products_are_the_hessians():
    def loss(w):
        return jnp.sum(jnp.sin(w["a"]) * w["b"]) + jnp.sum(w["a"] ** 4)

    params = {"a": jnp.arange(3.0), "b": jnp.array(0.5)}
    vector = {"a": jnp.array([1.0, -1.0, 2.0]), "b": jnp.array(3.0)}
    products = (
        curvature.recomputed(loss).product(params)(vector),
        curvature.hessian_product(loss, params)(vector),
    )
    for one, two in zip(*map(jax.tree.leaves, products), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-14)
    slope = curvature.recomputed(loss).product.slope(params, vector)

    def bend(w):
        image = curvature.hessian_product(loss, w)(vector)
        return jnp.vdot(vector["a"], image["a"]) + vector["b"] * image["b"]

    for one, two in zip(*map(jax.tree.leaves, (slope, jax.grad(bend)(params))), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-14, atol=1e-14)
