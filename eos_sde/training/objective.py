"""A user's loss and data in one form: loss(params, batch), the mean over the examples of a batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from solvers.errors import InvalidInput

Objective = Callable[[Any, Any], jax.Array]


def objective(loss: Callable[..., Any], data: Any) -> Objective:
    """Return ``loss`` as a function of (params, batch).

    A loss that takes several arrays, ``loss(params, x, y)``, receives the items of a tuple one by one.

    Parameters
    ----------
    loss : callable
        Of params and a batch, or of params and the items of a batch.
    data : pytree
        A batch or the data.

    Returns
    -------
    callable
        (params, batch) -> scalar.

    Raises
    ------
    InvalidInput
        If the loss is not callable, or takes neither form.
    """
    if not callable(loss):
        raise InvalidInput(
            f"loss={loss!r} is not callable; give loss(params, batch), a mean over the examples"
        )
    if type(data) not in {tuple, list} or not _takes(loss, len(data)):
        return loss
    return _spread(loss) if isinstance(loss, Hashable) else partial(_on_items, loss)


def _on_items(loss: Callable[..., Any], params: Any, batch: Any) -> Any:
    return loss(params, *batch)


@lru_cache(maxsize=16)
def _spread(loss: Callable[..., Any]) -> Objective:
    """One object for one loss, so that what was compiled for it is found again."""
    return partial(_on_items, loss)


def _takes(loss: Callable[..., Any], items: int) -> bool:
    """Whether the loss wants the items of a batch as arguments of their own."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = inspect.signature(loss).parameters.values()
    places = [p for p in named if p.kind in kinds]
    needed = sum(p.default is inspect.Parameter.empty for p in places) - 1
    if needed == 1:
        return False
    return len(places) - 1 >= items or any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in named)


def examples(data: Any) -> int:
    """Number of examples: the length of the leading axis that all arrays share.

    Raises
    ------
    InvalidInput
        If there is none, or they differ.
    """
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
    if len(lengths) != 1 or () in lengths or (0,) in lengths:
        raise InvalidInput(
            f"data has leading axes of lengths {sorted(lengths)}; give arrays with one row per example"
        )
    return lengths.pop()[0]


def rows(data: Any, index: Any) -> Any:
    """The examples of an index array, or of a slice."""
    return jax.tree.map(lambda a: a[index], data)


def single(example: Any) -> Any:
    """An example (one row of each array, as under vmap) as a batch of one."""
    return jax.tree.map(lambda a: a[None], example)
