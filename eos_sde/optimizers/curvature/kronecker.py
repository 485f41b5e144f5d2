"""KFAC's estimate of the largest eigenvalue: the largest product of a layer's factors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from eos_sde.optimizers.curvature.interface import (
    PRODUCT_COST,
    ROUNDING,
    Params,
    Product,
    flat_view,
    positive_integer,
    unit,
)
from eos_sde.optimizers.curvature.layers import Model, kronecker_factors, layer_matrices
from solvers.errors import InvalidInput


class KfacState(NamedTuple):
    """The vector found (pytree like params, working dtype), the random key, products of the last update."""

    vector: Params
    key: jax.Array
    products: jax.Array


@dataclasses.dataclass(frozen=True)
class Kfac:
    """See `kfac`."""

    model: Model
    loss: Callable[[jax.Array], jax.Array]
    samples: int

    def init(self, params: Params, key: jax.Array) -> KfacState:
        """Keep the key; the vector is found anew at every update."""
        flat = flat_view(params)
        return KfacState(flat.unravel(jnp.zeros(flat.dimension, flat.dtype)), key, jnp.zeros((), jnp.int32))

    def update(
        self, hvp: Product, params: Params, state: KfacState
    ) -> tuple[jax.Array, jax.Array, KfacState]:
        """Return the largest block eigenvalue, and how far its vector is from an eigenvector of `hvp`."""
        flat = flat_view(params)
        key, draw = jax.random.split(state.key)
        factors = kronecker_factors(self.model, self.loss, params, draw, samples=self.samples)
        pairs = {name: (jnp.linalg.eigh(f.inputs), jnp.linalg.eigh(f.outputs)) for name, f in factors.items()}
        values = {name: a[0][-1] * g[0][-1] for name, (a, g) in pairs.items()}
        value = jnp.max(jnp.stack(list(values.values())))
        best = {
            name: jnp.where(values[name] == value, jnp.outer(a[1][:, -1], g[1][:, -1]), 0.0)
            for name, (a, g) in pairs.items()
        }
        # The transpose of params -> matrices puts the matrix where its entries came from.
        matrices, pull = jax.vjp(lambda at: layer_matrices(self.model, at), params)
        cotangent = jax.tree.map(lambda matrix, like: matrix.astype(like.dtype), best, matrices)
        vector = unit(flat.ravel(pull(cotangent)[0]))
        value = jnp.asarray(value, flat.dtype)
        residual = jnp.linalg.norm(flat.operator(hvp)(vector) - value * vector)
        bound = jnp.maximum(residual, ROUNDING * flat.unit_roundoff * jnp.abs(value))
        return value, bound, KfacState(flat.unravel(vector), key, jnp.full((), self._products, jnp.int32))

    @property
    def _products(self) -> int:
        return 1 + -(-self.samples // 3)  # a backward pass is a third of a product

    def cost(self, params: Params) -> float:  # noqa: ARG002  (the interface of all estimators)
        """Return the cost of one update, the same each time, without the eigenvalues of the factors."""
        return PRODUCT_COST * self._products


def kfac(model: Model, loss: Callable[[jax.Array], jax.Array], *, samples: int = 4) -> Kfac:
    r"""The largest eigenvalue of KFAC's blocks :math:`A \otimes G`, of dense layers, convolutions and attention.

    An estimate of the largest eigenvalue of the Gauss-Newton matrix, from below as far as it leaves out what couples
    the layers, and from either side where inputs and derivatives of a layer are not independent: no bound. The
    error bound says what it is worth: for the unit vector v of the best block, one product gives
    ``|H v - estimate v|``, and an eigenvalue of H lies within that of the estimate (Parlett 1998, Theorem 4.5.1);
    not always the largest. As a vector to start from and to follow, v is in the state.

    Parameters
    ----------
    model : callable
        ``model(params, layers)`` -> outputs of a batch, its layers computed by ``layers.dense`` and
        ``layers.convolution``: see `eos_sde.optimizers.curvature.layers.Layers`.
    loss : callable
        Of the outputs, a scalar, a sum over their leading axes, and convex.
    samples : int
        Backward passes with random signs per update, for G.

    Returns
    -------
    Kfac
        The estimator.

    Raises
    ------
    InvalidInput
        If model or loss is no function, or samples not a positive integer.

    References
    ----------
    J. Martens and R. Grosse, ICML 2015 (arXiv 1503.05671). R. Grosse and J. Martens, ICML 2016 (1602.01407).

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> x = jnp.array([[1.0, 2.0]])
    >>> estimator = kfac(lambda w, layers: layers.dense("only", x, w), lambda y: 0.5 * jnp.sum(y**2))
    >>> hvp = lambda v: x.T @ (x @ v)
    >>> params = jnp.zeros((2, 1))
    >>> value, bound, _ = estimator.update(hvp, params, estimator.init(params, jax.random.key(0)))
    >>> round(float(value), 4)
    5.0
    """
    for name, value in (("model", model), ("loss", loss)):
        if not callable(value):
            raise InvalidInput(f"{name} must be a function, got {value!r}.")
    positive_integer("samples", samples)
    return Kfac(model, loss, samples)
