"""What a run costs: the curvature that its rule measures, in gradients of a batch, and floating-point operations."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

from eos_sde.bridge.evaluation_groups import programs_inside
from eos_sde.bridge.precision import double_precision
from eos_sde.bridge.task_library import Task
from eos_sde.optimizers.curvature.interface import PRODUCT_COST, curvature_slope
from eos_sde.optimizers.refresh import LINEARIZATION_COST, SLOPE_COST
from solvers.errors import InvalidInput


class CurvatureWork(NamedTuple):
    """Counts of what measuring curvature takes; of one update, or of all so far.

    Attributes
    ----------
    linearizations : int
        Passes that the products at a point share.
    products : int
        Hessian-vector products.
    slopes : int
        Gradients of v'Hv.
    """

    linearizations: Any
    products: Any
    slopes: Any

    def gradients(self, scale: float = 1.0) -> Any:
        """Their price in gradients of a training batch; `scale` is the curvature's examples over those of a batch."""
        return scale * (
            LINEARIZATION_COST * self.linearizations + PRODUCT_COST * self.products + SLOPE_COST * self.slopes
        )


def curvature_work(rule: str, state: Any) -> CurvatureWork:
    """Counts of the last update of a rule, from its state; traceable.

    Parameters
    ----------
    rule : str
        Its name.
    state : pytree
        After the update.

    Returns
    -------
    CurvatureWork
        Integers; all 0 for rules without curvature.
    """
    if rule == "cdat":
        return CurvatureWork(*(jnp.asarray(count, jnp.int32) for count in (1, 1, 0)))
    staleness = optax.tree_utils.tree_get(state, "staleness", default=None)
    if staleness is None:
        return CurvatureWork(*(jnp.zeros((), jnp.int32) for _ in range(3)))
    measured = (staleness == 0).astype(jnp.int32)
    own = int(rule == "caeo-ss")  # the product with the gradient
    products = jnp.asarray(optax.tree_utils.tree_get(state, "products"), jnp.int32)
    followed = optax.tree_utils.tree_get(state, "slope", default=None) is not None
    followed &= optax.tree_utils.tree_get(state, "vector", default=None) is not None
    return CurvatureWork(measured * (1 + own), measured * (products + own), measured * int(followed))


class Flops(NamedTuple):
    """Floating-point operations for one example, as XLA counts them.

    Attributes
    ----------
    gradient, product, slope : float
        Of a gradient, of a Hessian-vector product beyond the gradient that it shares, of a gradient of v'Hv.
    """

    gradient: float
    product: float
    slope: float

    def of(self, work: CurvatureWork, *, gradients: int, examples: int, batch_size: int) -> float:
        """All operations of a run, but for the few of the update itself.

        Parameters
        ----------
        work : CurvatureWork
            Of the whole run.
        gradients : int
            Updates.
        examples : int
            Of the loss whose curvature is measured.
        batch_size : int
            Of the training batches.
        """
        curved = work.linearizations * self.gradient + work.products * self.product + work.slopes * self.slope
        return float(gradients * batch_size * self.gradient + examples * curved)


@lru_cache(maxsize=4)
@double_precision
def task_flops(task: Task, batch_size: int) -> Flops:
    """Operations of a task, for one example of a batch.

    Parameters
    ----------
    task : Task
        The training problem.
    batch_size : int
        B; what all examples of a batch share is divided by it.

    Returns
    -------
    Flops
        Counted on the program as it is before XLA optimises it.
    """
    theta = jnp.zeros(task.size)
    x, y = (jnp.zeros((batch_size, *one.shape[1:]), one.dtype) for one in (task.x, task.y))  # of any values

    def loss(w: jax.Array) -> jax.Array:
        return task.loss(w, x, y)

    def product(w: jax.Array, v: jax.Array) -> jax.Array:
        return jax.jvp(jax.grad(loss), (w,), (v,))[1]

    gradient = count_flops(jax.grad(loss), theta)
    whole = count_flops(product, theta, theta)
    slope = count_flops(partial(curvature_slope, loss), theta, theta)
    return Flops(*(count / batch_size for count in (gradient, whole - gradient, slope)))


def count_flops(function: Callable[..., Any], *arguments: Any) -> float:
    """Floating-point operations of a function, with the bodies of scans counted as often as they run.

    XLA counts the body of a loop once. What it leaves out is added here, from the program that JAX traces.

    Parameters
    ----------
    function : callable
        Of arrays; without loops whose length depends on data.
    *arguments
        Arrays, of which shapes and dtypes matter.

    Returns
    -------
    float
        Additions and multiplications, as XLA counts them; exponentials and their like are no part of it.

    Raises
    ------
    InvalidInput
        For a loop whose length is not known before it runs.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> ones = jnp.ones((8, 8))
    >>> once = count_flops(lambda a: a @ ones, ones)
    >>> often = count_flops(lambda a: jax.lax.scan(lambda c, _: (c @ ones, None), a, None, length=5)[0], ones)
    >>> once, 5 * once <= often <= 5 * once + 20  # the counter of the loop adds a few
    (1024.0, True)
    """
    return _counted(jax.make_jaxpr(function)(*arguments))


def _counted(closed: ClosedJaxpr) -> float:
    avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars]
    cost: Any = jax.jit(jaxpr_as_fun(closed)).lower(*avals).cost_analysis()
    return float((cost or {}).get("flops", 0.0)) + _beyond_once(closed.jaxpr)


def _beyond_once(jaxpr: Jaxpr) -> float:
    """What is left out by counting the body of each scan once."""
    missing = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "while":
            raise InvalidInput(
                "the operations of a loop whose length depends on data cannot be counted before it runs; count those "
                "of its body"
            )
        if name == "scan":
            body, length = equation.params["jaxpr"], equation.params["length"]
            inner = _beyond_once(body.jaxpr)
            missing += length * inner
            if length > 1:
                missing += (length - 1) * (_counted(body) - inner)
            continue
        for inside in programs_inside(equation.params):
            missing += _beyond_once(inside)
    return missing


def work_of(counts: Any) -> CurvatureWork:
    """Counts as plain integers.

    Parameters
    ----------
    counts : sequence
        Linearizations, products, slopes.

    Returns
    -------
    CurvatureWork
        The same.
    """
    return CurvatureWork(*(int(np.asarray(count)) for count in counts))
