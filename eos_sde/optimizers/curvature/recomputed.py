"""Hessian products that keep nothing between them, for losses whose blocks are recomputed (`jax.checkpoint`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax

from eos_sde.optimizers.curvature.interface import Params, Product, curvature_slope
from solvers.errors import InvalidInput


@dataclasses.dataclass(frozen=True)
class RecomputedProduct:
    """The Hessian of a loss as products that go forward and backward anew each time.

    Attributes
    ----------
    loss : callable
        Scalar of the parameters.
    """

    loss: Callable[[Params], jax.Array]

    def __call__(self, params: Params) -> Product:
        """Return ``v -> H v`` at the parameters."""
        return lambda vector: jax.jvp(jax.grad(self.loss), (params,), (vector,))[1]

    def slope(self, params: Params, vector: Params) -> Params:
        """Return the gradient of v'Hv in the parameters, which holds nothing between the passes either."""
        return curvature_slope(self.loss, params, vector)


@dataclasses.dataclass(frozen=True)
class Recomputed:
    """See `recomputed`."""

    loss: Callable[[Params], jax.Array]

    def __call__(self, params: Params) -> jax.Array:
        """The loss of the parameters."""
        return self.loss(params)

    @property
    def product(self) -> RecomputedProduct:
        """Parameters to ``v -> H v`` there."""
        return RecomputedProduct(self.loss)


def recomputed(loss: Callable[[Params], jax.Array]) -> Recomputed:
    """A `value_fn` for ``caeo`` whose products share no forward pass, and so keep no activations.

    `hessian_product` linearises the gradient once: a product then costs two gradients, and all that a gradient computes
    is held meanwhile, which undoes ``jax.checkpoint``. Here a product costs three, and the memory is that of two
    gradients; the gradient of v'Hv, by which the budget of ``caeo`` follows the sharpness, that of four.

    Parameters
    ----------
    loss : callable
        Scalar of the parameters.

    Returns
    -------
    Recomputed
        A function of the parameters.

    Raises
    ------
    InvalidInput
        If it is no function.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> loss = recomputed(lambda w: jnp.sum(w**3))
    >>> float(loss.product(jnp.array([2.0]))(jnp.array([1.0]))[0])
    12.0
    """
    if not callable(loss):
        raise InvalidInput(f"loss must be a function, got {loss!r}.")
    return Recomputed(loss)
