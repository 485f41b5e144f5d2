"""The loss as a function of one group of the parameters, for optax's `multi_transform` and `masked`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax


def of_group(value_fn: Callable[[Any], Any], params: Any) -> Callable[[Any], Any]:
    """Return a `value_fn` for ``caeo`` inside ``optax.multi_transform`` or ``optax.masked``.

    There an optimizer is shown its own group, with placeholders for the rest. The function returned takes the rest
    from `params`: its curvature is that of the group's block of the Hessian. One serves every group.

    Parameters
    ----------
    value_fn : callable
        The loss, of all parameters.
    params : pytree
        All parameters, as at this update.

    Returns
    -------
    callable
        The loss, of a group.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> loss = of_group(lambda p: p["a"] + 10 * p["b"], {"a": jnp.array(1.0), "b": jnp.array(2.0)})
    >>> float(loss({"a": jnp.array(5.0), "b": optax.MaskedNode()}))
    25.0
    """

    def hidden(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode)

    def of_part(part: Any) -> Any:
        # A placeholder may stand for a whole subtree.
        whole = jax.tree.map(lambda mine, all_: all_ if hidden(mine) else mine, part, params, is_leaf=hidden)
        return value_fn(whole)

    return of_part
