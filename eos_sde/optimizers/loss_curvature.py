"""The curvature of the loss that an update of an optimizer is given."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from eos_sde.optimizers.curvature.gauss_newton import GaussNewton
from eos_sde.optimizers.curvature.interface import Params, Product, hessian_product
from eos_sde.optimizers.curvature.recomputed import Recomputed


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
    return functools.partial(hessian_product, functools.partial(value_fn, **_accepted(value_fn, extra_args)))


def _accepted(value_fn: Callable[..., Any], extra_args: dict[str, Any]) -> dict[str, Any]:
    """Return the extra arguments that `value_fn` names (as optax's line searches hand them on)."""
    named = inspect.signature(value_fn).parameters
    return {name: value for name, value in extra_args.items() if name in named}
