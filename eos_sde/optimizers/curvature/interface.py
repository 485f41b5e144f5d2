"""What every curvature estimator shares: the interface, the Hessian product, the flat view of a pytree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from solvers.errors import InvalidInput

Params: TypeAlias = Any
Product: TypeAlias = Callable[[Params], Params]

PRODUCT_COST = 2.0
"""Gradient-equivalents of one Hessian-vector product: forward-over-reverse does the arithmetic of two."""

ROUNDING = 16.0
"""No error bound is reported below this many units of rounding of the largest number met."""


class Estimator(Protocol):
    """An estimator of the largest algebraic eigenvalue of a symmetric operator on pytrees.

    Estimators are frozen dataclasses holding settings only. Both methods are pure; they can be compiled,
    scanned and vmapped. States are NamedTuples of arrays with a field ``products``: the number of operator
    products that the last update took (times `PRODUCT_COST`: its cost in gradient-equivalents).
    """

    def init(self, params: Params, key: jax.Array) -> Any:
        """Return the state before the first update.

        Parameters
        ----------
        params : pytree of real arrays
            Only shapes and dtypes are read.
        key : jax.Array
            A JAX random key, typed or raw.
        """
        ...

    def update(self, hvp: Product, params: Params, state: Any) -> tuple[jax.Array, jax.Array, Any]:
        """Return ``(estimate, error_bound, new_state)``, the first two as scalars.

        Parameters
        ----------
        hvp : callable
            The operator at the current point, ``v -> H v``, on pytrees of the shapes and dtypes of `params`.
        params : pytree of real arrays
            Only shapes and dtypes are read.
        state : NamedTuple
            From `init` or the last `update`.
        """
        ...

    def cost(self, params: Params) -> float:
        """Return the most that one update can cost, in gradient-equivalents."""
        ...


def hessian_product(value_fn: Callable[[Params], jax.Array], params: Params) -> Product:
    """Return ``v -> H v`` for the Hessian of `value_fn` at `params`, forward over reverse.

    The gradient is linearised once, so that several products at one point share its forward pass
    (Pearlmutter 1994; the memory is that of one gradient more).

    Parameters
    ----------
    value_fn : callable
        Scalar loss of the parameters.
    params : pytree
        Where the Hessian is taken.

    Returns
    -------
    callable
        A pytree like params -> H times it, of the same structure.

    Raises
    ------
    TypeError
        From JAX, if `value_fn` does not return a real scalar.
    """
    return jax.linearize(jax.grad(value_fn), params)[1]


def curvature_slope(value_fn: Callable[[Params], jax.Array], params: Params, vector: Params) -> Params:
    """Return the gradient of ``v'H v`` in the parameters: the second derivative of the gradient along v.

    The third derivatives of a loss are symmetric, so that it can go forward over forward over reverse: a third to nine
    tenths of the time of ``jax.grad`` of v'Hv, which goes backward through all that a product computes and holds it.

    Parameters
    ----------
    value_fn : callable
        Scalar loss of the parameters, three times differentiable.
    params, vector : pytree
        Where, and along what; of the same dtypes.

    Returns
    -------
    pytree
        Like params.
    """

    def along(at: Params) -> Params:
        return jax.jvp(jax.grad(value_fn), (at,), (vector,))[1]

    return jax.jvp(along, (params,), (vector,))[1]


def preconditioned_product(
    product: Callable[[Params], Product], preconditioner: Params, params: Params
) -> Product:
    """Return ``v -> P^-1/2 H P^-1/2 v``, symmetric, with the eigenvalues of P^-1 H.

    Parameters
    ----------
    product : callable
        Parameters -> ``v -> H v`` there.
    preconditioner : pytree
        The diagonal of P, positive, like params.
    params : pytree
        Where the Hessian is taken.

    Returns
    -------
    callable
        A pytree like params -> the matrix times it.
    """
    hvp = product(params)

    def scale(tree: Params) -> Params:
        return jax.tree.map(lambda t, p: (t / jnp.sqrt(p)).astype(t.dtype), tree, preconditioner)

    return lambda vector: scale(hvp(scale(vector)))


class Flat(NamedTuple):
    """A pytree seen as one vector of the working dtype (float32, or float64 if a leaf is)."""

    dimension: int
    dtype: Any
    unit_roundoff: float
    ravel: Callable[[Params], jax.Array]
    unravel: Callable[[jax.Array], Params]
    cast: Callable[[Params], Params]

    def operator(self, hvp: Product) -> Callable[[jax.Array], jax.Array]:
        """Return `hvp` on flat vectors: products in the dtypes of the leaves, sums in the working dtype.

        Raises
        ------
        InvalidInput
            If the tree has no leaves (optax initialises with such placeholders, so `flat_view` takes them).
        """
        if self.dimension == 0:
            raise InvalidInput("params holds no numbers, so the loss has no curvature; pass the parameters.")
        return lambda vector: self.ravel(hvp(self.cast(self.unravel(vector))))

    def random_unit(self, key: jax.Array) -> jax.Array:
        """Return a unit vector of rotation-invariant law, shape (dimension,)."""
        return unit(jax.random.normal(key, (self.dimension,), self.dtype))


def working_precision(params: Params) -> tuple[int, Any, float]:
    """Return what vectors like a pytree of real floating-point arrays are: how many numbers, dtype, coarsest rounding.

    Parameters
    ----------
    params : pytree of real arrays
        Only shapes and dtypes are read.

    Raises
    ------
    InvalidInput
        If a leaf is not real floating point.
    """
    leaves = jax.tree.leaves(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise InvalidInput(
                f"params{jax.tree_util.keystr(path)} has dtype {jnp.result_type(leaf)}: curvature is defined "
                "for real floating-point parameters, so split complex ones and keep integers out of params."
            )
    roundoff = max((float(jnp.finfo(jnp.result_type(leaf)).eps) for leaf in leaves), default=0.0)
    return sum(jnp.size(leaf) for leaf in leaves), jnp.result_type(jnp.float32, *leaves), roundoff


def flat_view(params: Params) -> Flat:
    """Return the flat view of a pytree of real floating-point arrays.

    Parameters
    ----------
    params : pytree of real arrays
        Only shapes and dtypes are read.

    Raises
    ------
    InvalidInput
        If a leaf is not real floating point.
    """
    dimension, dtype, roundoff = working_precision(params)
    likes = jax.tree.map(lambda leaf: jnp.zeros(jnp.shape(leaf), dtype), params)
    unravel = ravel_pytree(likes)[1]

    def ravel(tree: Params) -> jax.Array:
        return ravel_pytree(jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree))[0]

    def cast(tree: Params) -> Params:
        return jax.tree.map(lambda leaf, like: leaf.astype(jnp.result_type(like)), tree, params)

    return Flat(dimension, dtype, roundoff, ravel, unravel, cast)


def unit(vector: jax.Array) -> jax.Array:
    """Return `vector` at length one, and unchanged when it is zero."""
    length = jnp.linalg.norm(vector)
    return vector / jnp.where(length > 0, length, 1.0)


def positive_integer(name: str, value: Any) -> None:
    """Refuse a setting that is not a positive whole number.

    Raises
    ------
    InvalidInput
        Naming the setting and its value.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidInput(f"{name} must be a positive whole number, got {value!r}.")
