"""A loss about a point in flat coordinates, with functions that are compiled once for all calls on the same loss."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from eos_sde.optimizers.curvature.interface import flat_view
from eos_sde.training.objective import Objective, rows, single

_CHUNK = 2**24  # numbers in the products of the examples that are worked on at once
_KEPT = 16  # losses and structures of weights whose compiled functions are kept


class Frame(NamedTuple):
    """Flat coordinates z of the weights ``origin + scale * z``: shapes (d,), and (d,) or ()."""

    origin: jax.Array
    scale: jax.Array


class Programs:
    """Compiled functions of one loss over weights of one structure.

    Parameters
    ----------
    value_of : callable
        (params, batch) -> mean loss.
    likes : pytree
        Arrays of the shapes and dtypes of the params.
    """

    def __init__(self, value_of: Objective, likes: Any) -> None:
        flat = flat_view(likes)

        def value(frame: Frame, point: jax.Array, batch: Any) -> jax.Array:
            return value_of(flat.cast(flat.unravel(frame.origin + frame.scale * point)), batch)

        slope = jax.grad(value, 1)

        def product(frame: Frame, point: jax.Array, batch: Any, vector: jax.Array) -> jax.Array:
            return jax.jvp(lambda z: slope(frame, z, batch), (point,), (vector,))[1]

        def images(frame: Frame, point: jax.Array, data: Any, vectors: jax.Array, *, chunk: int) -> jax.Array:
            def one(example: Any) -> jax.Array:
                return jax.vmap(lambda v: product(frame, point, single(example), v))(vectors)

            return jax.lax.map(one, data, batch_size=chunk)

        def projections(
            frame: Frame, point: jax.Array, data: Any, columns: jax.Array, *, chunk: int
        ) -> jax.Array:
            def one(example: Any) -> jax.Array:
                vectors = columns.T
                return jax.vmap(lambda v: product(frame, point, single(example), v))(vectors) @ columns

            return jax.lax.map(one, data, batch_size=chunk)

        def factors(
            frame: Frame, point: jax.Array, data: Any, vectors: jax.Array, project: Any, *, form, chunk: int
        ) -> tuple[jax.Array, jax.Array]:
            def one(example: Any) -> tuple[jax.Array, jax.Array]:
                found = form(vectors, jax.vmap(lambda v: product(frame, point, single(example), v))(vectors))
                return found if project is None else found @ project, found @ found.T

            return jax.lax.map(one, data, batch_size=chunk)

        def batch_sharpness(frame: Frame, point: jax.Array, data: Any, index: jax.Array) -> jax.Array:
            def one(rows_of: jax.Array) -> jax.Array:
                along = partial(slope, frame, batch=rows(data, rows_of))
                gradient, image = jax.jvp(along, (point,), (along(point),))
                return (gradient @ image) / (gradient @ gradient)

            return jax.lax.map(one, index)

        def squares(frame: Frame, point: jax.Array, data: Any) -> tuple[jax.Array, jax.Array]:
            mean = slope(frame, point, data)

            def add(total: jax.Array, example: Any) -> tuple[jax.Array, None]:
                return total + (slope(frame, point, single(example)) - mean) ** 2, None

            total, _ = jax.lax.scan(add, jnp.zeros_like(mean), data)
            return mean, total / jax.tree.leaves(data)[0].shape[0]

        self.value = jax.jit(value)
        self.gradient = jax.jit(slope)
        self.product = jax.jit(product)
        self.images = jax.jit(images, static_argnames="chunk")
        self.projections = jax.jit(projections, static_argnames="chunk")
        self.factors = jax.jit(factors, static_argnames=("form", "chunk"))
        self.batch_sharpness = jax.jit(batch_sharpness)
        self.squares = jax.jit(squares)


def programs(value_of: Objective, params: Any) -> Programs:
    """The compiled functions of a loss over weights like these; those of an earlier call where there are any.

    Parameters
    ----------
    value_of : callable
        (params, batch) -> mean loss.
    params : pytree of real arrays
        Only shapes and dtypes are read.

    Returns
    -------
    Programs
        Kept for the losses that were used last.
    """
    leaves, structure = jax.tree.flatten(params)
    kinds = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    if not isinstance(value_of, Hashable):
        return _build(value_of, structure, kinds)
    return _kept(value_of, structure, kinds)


def _build(value_of: Objective, structure: Any, kinds: tuple) -> Programs:
    return Programs(value_of, jax.tree.unflatten(structure, [jnp.zeros(*kind) for kind in kinds]))


_kept = lru_cache(_KEPT)(_build)


class Local(NamedTuple):
    """A loss about a point: what curvature is computed from.

    Attributes
    ----------
    programs : Programs
        The loss, compiled.
    frame : Frame
        What the coordinates mean.
    point : Array
        Shape (d,).
    data : pytree
        All examples.
    n : int
        How many.
    """

    programs: Programs
    frame: Frame
    point: jax.Array
    data: Any
    n: int

    @property
    def dimension(self) -> int:
        """Number of weights."""
        return self.point.shape[0]

    def gradient(self) -> jax.Array:
        """Gradient of the mean loss over all data, shape (d,)."""
        return self.programs.gradient(self.frame, self.point, self.data)

    def product(self, vector: jax.Array) -> jax.Array:
        """Hessian of the mean loss over all data times a vector, shape (d,)."""
        return self.programs.product(self.frame, self.point, self.data, vector)

    def images(self, data: Any, vectors: jax.Array) -> jax.Array:
        """Hessians of some examples times the rows of a matrix (r, d), shape (m, r, d)."""
        return self.programs.images(self.frame, self.point, data, vectors, chunk=self._chunk(len(vectors)))

    def projections(self, columns: jax.Array) -> jax.Array:
        """Hessians of all examples on directions (d, k), shape (n, k, k)."""
        chunk = self._chunk(columns.shape[1])
        return self.programs.projections(self.frame, self.point, self.data, columns, chunk=chunk)

    def factors(
        self, data: Any, vectors: jax.Array, project: Any, form: Callable[[jax.Array, jax.Array], jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        """What `form` (hashable) makes of the vectors and their images under the Hessians of some examples.

        Shape (m, r, d) or, projected on directions (d, k), (m, r, k); and its Gram matrices, (m, r, r).
        """
        chunk = self._chunk(len(vectors))
        return self.programs.factors(self.frame, self.point, data, vectors, project, form=form, chunk=chunk)

    def batch_sharpness(self, index: jax.Array) -> jax.Array:
        """g_B' H_B g_B/|g_B|^2 of batches, the rows of an index array (m, B): shape (m,)."""
        return self.programs.batch_sharpness(self.frame, self.point, self.data, index)

    def _chunk(self, vectors: int) -> int:
        return max(1, _CHUNK // (vectors * self.dimension))
