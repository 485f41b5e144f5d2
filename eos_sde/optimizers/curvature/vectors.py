"""Pytrees as vectors, array by array: none is brought together with others, so that each may lie on many devices."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry2x32_p

from eos_sde.optimizers.curvature.interface import Params, Product, working_precision
from solvers.errors import InvalidInput

_PRECISION = jax.lax.Precision.HIGHEST  # accelerators multiply with fewer digits by default


class Space(NamedTuple):
    """The vectors shaped like a pytree, in the working dtype (float32, or float64 if a leaf is).

    Attributes
    ----------
    params : pytree
        Its shapes and dtypes.
    dimension : int
        Numbers in all leaves.
    dtype : dtype
        Of the vectors.
    unit_roundoff : float
        The coarsest of the leaves.
    """

    params: Params
    dimension: int
    dtype: Any
    unit_roundoff: float

    def operator(self, hvp: Product) -> Callable[[Params], Params]:
        """Return `hvp` on these vectors: products in the dtypes of the leaves, sums in the working dtype.

        Raises
        ------
        InvalidInput
            If the tree has no leaves.
        """
        if self.dimension == 0:
            raise InvalidInput("params holds no numbers, so the loss has no curvature; pass the parameters.")

        def apply(vector: Params) -> Params:
            image = hvp(jax.tree.map(lambda v, p: v.astype(jnp.result_type(p)), vector, self.params))
            return jax.tree.map(lambda leaf: jnp.asarray(leaf, self.dtype), image)

        return apply

    def random_unit(self, key: jax.Array) -> Params:
        """Return a unit vector of rotation-invariant law: the normal numbers of the flat vector, leaf by leaf."""
        leaves, structure = jax.tree.flatten(self.params)
        shapes = tuple(map(jnp.shape, leaves))
        return jax.tree.unflatten(structure, _unit_normal(key, shapes, self.dtype, self.dimension))


def space_of(params: Params) -> Space:
    """Return the space of vectors like a pytree of real floating-point arrays.

    Parameters
    ----------
    params : pytree of real arrays
        Only shapes and dtypes are read.

    Raises
    ------
    InvalidInput
        If a leaf is not real floating point.
    """
    return Space(params, *working_precision(params))


def dot(one: Params, two: Params) -> jax.Array:
    """Inner product over all leaves, in their dtype."""
    parts = [
        jnp.tensordot(a, b, axes=a.ndim, precision=_PRECISION)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    ]
    return sum(parts[1:], parts[0]) if parts else jnp.zeros(())


def norm(vector: Params) -> jax.Array:
    """Length."""
    return jnp.sqrt(dot(vector, vector))


def combine(function: Callable[..., jax.Array], *vectors: Params) -> Params:
    """Leaf by leaf."""
    return jax.tree.map(function, *vectors)


def unit(vector: Params) -> Params:
    """The vector at length one, and unchanged when it is zero."""
    length = norm(vector)
    length = jnp.where(length > 0, length, 1.0)
    return combine(lambda leaf: leaf / length, vector)


def overlaps(basis: Params, vector: Params) -> jax.Array:
    """Inner products of a vector with each of k, whose leaves have a first axis of k; shape (k,)."""
    parts = [
        jnp.tensordot(rows, leaf, axes=leaf.ndim, precision=_PRECISION)
        for rows, leaf in zip(jax.tree.leaves(basis), jax.tree.leaves(vector), strict=True)
    ]
    return sum(parts[1:], parts[0])


def combination(weights: jax.Array, basis: Params) -> Params:
    """The sum of k vectors with weights (k,)."""
    return combine(lambda rows: jnp.tensordot(weights, rows, axes=1, precision=_PRECISION), basis)


# one program: it is also called outside of others, where each of its many operations would be compiled by itself
@partial(jax.jit, static_argnums=(1, 2, 3), inline=True)
def _unit_normal(
    key: jax.Array, shapes: tuple[tuple[int, ...], ...], dtype: Any, size: int
) -> list[jax.Array]:
    drawn, offset = [], 0
    for shape in shapes:
        drawn.append(normal_block(key, offset, shape, dtype, size=size))
        offset += math.prod(shape)
    return unit(drawn)


def normal_block(key: jax.Array, offset: int, shape: tuple[int, ...], dtype: Any, *, size: int) -> jax.Array:
    """Some of the numbers of ``jax.random.normal(key, (size,), dtype)``, without drawing the others.

    A number is a function of the key and its place alone (Threefry, Salmon et al. 2011, in the form that JAX calls
    partitionable): an array that is cut over devices is drawn by each for itself.

    Parameters
    ----------
    key : jax.Array
        A JAX random key, typed or raw.
    offset : int
        Place of the first.
    shape : tuple of int
        How they are arranged, in C order.
    dtype : dtype
        float32 or float64.
    size : int
        Of the whole vector.

    Returns
    -------
    Array
        Shape `shape`. For keys of another kind than partitionable Threefry, and beyond 2^32 numbers, all are drawn
        and these cut out.
    """
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    kind = str(jax.random.key_impl(key)) if typed else str(jax.config.jax_default_prng_impl)
    dtype = np.dtype(dtype)
    counted = "threefry2x32" in kind and jax.config.jax_threefry_partitionable
    if not counted or dtype.name not in ("float32", "float64") or math.prod(shape) > 1 << 32:
        whole = jax.random.normal(key, (size,), dtype)
        return whole[offset : offset + math.prod(shape)].reshape(shape)
    words = jax.random.key_data(key) if typed else key
    high, low = _places(offset, shape)
    first, second = threefry2x32_p.bind(
        jnp.broadcast_to(words[0], shape), jnp.broadcast_to(words[1], shape), high, low
    )
    if dtype.name == "float64":
        bits = (first.astype(jnp.uint64) << 32) | second.astype(jnp.uint64)
        digits, width = 52, 64
    else:
        bits, digits, width = first ^ second, 23, 32
    one = np.ones((), dtype).view(bits.dtype)
    fraction = jax.lax.bitcast_convert_type((bits >> (width - digits)) | one, dtype) - np.ones((), dtype)
    lowest = np.nextafter(np.array(-1, dtype), np.array(0, dtype), dtype=dtype)
    uniform = jnp.maximum(lowest, fraction * (np.array(1, dtype) - lowest) + lowest)
    return jax.lax.erf_inv(uniform) * np.array(np.sqrt(2), dtype)


def _places(offset: int, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """The high and low words of offset, offset + 1, ... in an array of at most 2^32 numbers."""
    within, stride = jnp.zeros(shape, jnp.uint32), math.prod(shape)
    for axis, length in enumerate(shape):
        stride //= max(length, 1)
        within = within + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride)
    low = within + np.uint32(offset & 0xFFFFFFFF)
    carried = (low < within).astype(jnp.uint32)
    return carried + np.uint32(offset >> 32), low
