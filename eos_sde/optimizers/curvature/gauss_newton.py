"""The Gauss-Newton matrix in place of the Hessian, for a loss of the outputs of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax

from eos_sde.optimizers.curvature.interface import Params, Product
from solvers.errors import InvalidInput


def gauss_newton_product(
    model: Callable[[Params], jax.Array], loss: Callable[[jax.Array], jax.Array], params: Params
) -> Product:
    """Return ``v -> J' (d2 loss) J v``, with J the derivative of the model's outputs in the parameters.

    It is the Hessian of the loss without the curvature of the model: positive semidefinite where the loss is convex
    in the outputs, and equal to the Hessian where they fit or where the model is linear.

    Parameters
    ----------
    model : callable
        Parameters -> outputs.
    loss : callable
        Outputs -> real scalar.
    params : pytree
        Where it is taken.

    Returns
    -------
    callable
        A pytree like params -> the matrix times it, of the same structure.

    References
    ----------
    N. N. Schraudolph, Neural Comput. 14 (2002) 1723.
    """
    outputs, push = jax.linearize(model, params)
    pull = jax.linear_transpose(push, params)
    inner = jax.linearize(jax.grad(loss), outputs)[1]
    return lambda vector: pull(inner(push(vector)))[0]


@dataclasses.dataclass(frozen=True)
class GaussNewton:
    """See `gauss_newton`."""

    model: Callable[[Params], jax.Array]
    loss: Callable[[jax.Array], jax.Array]

    def __call__(self, params: Params) -> jax.Array:
        """The loss of the parameters."""
        return self.loss(self.model(params))

    def product(self, params: Params) -> Product:
        """Its Gauss-Newton matrix, as a product."""
        return gauss_newton_product(self.model, self.loss, params)


def gauss_newton(model: Callable[[Params], jax.Array], loss: Callable[[jax.Array], jax.Array]) -> GaussNewton:
    """A `value_fn` for ``caeo`` whose curvature is measured by its Gauss-Newton matrix.

    Parameters
    ----------
    model : callable
        Parameters -> outputs, of the batch that it closes over.
    loss : callable
        Outputs -> real scalar.

    Returns
    -------
    GaussNewton
        A function of the parameters.

    Raises
    ------
    InvalidInput
        If either is no function.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> loss = gauss_newton(lambda w: w**2, lambda outputs: 0.5 * jnp.sum((outputs - 8.0) ** 2))
    >>> float(loss.product(jnp.array([1.0]))(jnp.array([1.0]))[0])  # the Hessian there is 4 + 2 (1 - 8) = -10
    4.0
    """
    for name, value in (("model", model), ("loss", loss)):
        if not callable(value):
            raise InvalidInput(f"{name} must be a function, got {value!r}.")
    return GaussNewton(model, loss)
