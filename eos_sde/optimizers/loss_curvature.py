"""The curvature of the loss that an update of an optimizer is given."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax

from eos_sde.optimizers.curvature.gauss_newton import GaussNewton
from eos_sde.optimizers.curvature.interface import Params, Product, curvature_slope, hessian_product
from eos_sde.optimizers.curvature.recomputed import Recomputed


@dataclasses.dataclass(frozen=True, eq=False)
class LossProduct:
    """The Hessian of a loss as products that share a forward pass.

    Attributes
    ----------
    loss : callable
        Scalar of the parameters.
    """

    loss: Callable[[Params], jax.Array]

    def __call__(self, params: Params) -> Product:
        """Return ``v -> H v`` at the parameters."""
        return hessian_product(self.loss, params)

    def slope(self, params: Params, vector: Params) -> Params:
        """Return the gradient of v'Hv in the parameters."""
        return curvature_slope(self.loss, params, vector)


def loss_product(value_fn: Callable[..., Any], extra_args: dict[str, Any]) -> Callable[[Params], Product]:
    """Return the function that makes ``v -> H v`` of the parameters.

    Parameters
    ----------
    value_fn : callable
        Loss of the parameters, or one that says by what products it is measured: `gauss_newton`, `recomputed`.
    extra_args : dict
        Handed to it where it names them.

    Returns
    -------
    callable
        Parameters to a product.
    """
    if isinstance(value_fn, GaussNewton | Recomputed):
        return value_fn.product
    return LossProduct(functools.partial(value_fn, **_accepted(value_fn, extra_args)))


def _accepted(value_fn: Callable[..., Any], extra_args: dict[str, Any]) -> dict[str, Any]:
    """Return the extra arguments that `value_fn` names (as optax's line searches hand them on)."""
    named = inspect.signature(value_fn).parameters
    return {name: value for name, value in extra_args.items() if name in named}
