"""How many directions are evaluated at once: as many as the network's intermediate values leave memory for."""

from collections.abc import Callable, Iterator
from functools import lru_cache
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

from eos_sde.bridge.networks import Network
from eos_sde.bridge.precision import double_precision
from eos_sde.bridge.task_library import Task

# intermediate values of a network over all examples and all directions that are evaluated at once: 0.5 GB in double
# precision, of which a Hessian product holds a few
_TOGETHER = 1 << 26


@lru_cache(maxsize=64)
@double_precision
def _values(network: Network, shape: tuple[int, ...], dtype: Any) -> int:
    def count(examples: int) -> int:
        theta = jax.ShapeDtypeStruct((network.size,), jnp.float64)
        x = jax.ShapeDtypeStruct((examples, *shape), dtype)
        return _results(jax.make_jaxpr(network.apply)(theta, x).jaxpr)

    return count(2) - count(1)  # what does not grow with the examples are copies of the weights


def programs_inside(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """The programs among the parameters of an equation: those that it calls.

    Parameters
    ----------
    params : dict
        Of an equation of a program that JAX has traced.

    Yields
    ------
    Jaxpr
        Each.
    """
    for value in params.values():
        for one in value if isinstance(value, list | tuple) else (value,):
            if isinstance(one, ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, Jaxpr):
                yield one


def _results(jaxpr: Jaxpr) -> int:
    """Elements of all results in a program, those of the programs that it calls among them."""
    total = 0
    for equation in jaxpr.eqns:
        inner = list(programs_inside(equation.params))
        if inner:
            total += equation.params.get("length", 1) * sum(map(_results, inner))
        else:
            total += sum(prod(one.aval.shape) for one in equation.outvars)
    return total


def values_of_example(task: Task) -> int:
    """Intermediate values that the network computes for one example.

    Parameters
    ----------
    task : Task
        The training problem.

    Returns
    -------
    int
        At least 1; of the forward pass, copies included.
    """
    return max(1, _values(task.network, task.x.shape[1:], task.x.dtype))


def in_groups(function: Callable, rows: jax.Array, task: Task):
    """A function of every row, of so many rows at a time as the network leaves memory for; traceable.

    Parameters
    ----------
    function : callable
        Of a vector; it evaluates the network, or a derivative, on all examples of the task.
    rows : Array
        Shape (k, d).
    task : Task
        The training problem.

    Returns
    -------
    pytree
        What `jax.vmap` would give.
    """
    count = len(rows)
    most = max(1, _TOGETHER // (task.n * values_of_example(task)))
    if most >= count:
        return jax.vmap(function)(rows)
    return jax.lax.map(function, rows, batch_size=max(g for g in range(1, most + 1) if count % g == 0))
