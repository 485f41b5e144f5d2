"""The Gram matrix of a network's curvature factors by Jacobian products, for mean-square thresholds at real sizes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from eos_sde.bridge.losses import LOSSES
from eos_sde.bridge.precision import double_precision
from eos_sde.thresholds.gram import GramOperator
from solvers.errors import InvalidInput

_COLUMNS = 16  # vectors carried through the network at once


@double_precision
def curvature_gram(
    model: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    x: jax.Array,
    y: jax.Array | None = None,
    *,
    loss: str | Callable[[jax.Array, jax.Array], jax.Array] = "half-squared-error",
) -> GramOperator:
    """Products with G = A A^T / n, A_i = (output curvature of example i)^1/2 times its Jacobian, in double precision.

    Parameters
    ----------
    model : callable
        (params, x of shape (m, ...)) -> outputs, shape (m, c) or (m,); examples do not see one another.
    params : pytree
        Weights; its floating-point leaves are what is trained.
    x, y : array
        Training inputs and targets, n examples along the first axis. Targets may be left out for the half squared
        error, whose curvature in the outputs is the identity.
    loss : str or callable
        "half-squared-error", "cross-entropy", or a function of (outputs (m, c), targets) -> losses (m,), convex in
        the outputs.

    Returns
    -------
    GramOperator
        For `thresholds.sgd_mean_square`.

    Raises
    ------
    InvalidInput
        If shapes do not fit, outputs are not finite, the loss is unknown, or it is not convex in the outputs.
    """
    x = jnp.asarray(x)
    flat, unravel = ravel_pytree(params)
    flat = flat.astype(jnp.float64)

    def outputs(theta: jax.Array, inputs: jax.Array) -> jax.Array:
        out = model(unravel(theta), inputs)
        return out[:, None] if out.ndim == 1 else out

    out = outputs(flat, x)
    if out.ndim != 2 or len(out) != len(x):
        raise InvalidInput(
            f"model returns the shape {out.shape} for {len(x)} examples; make it return ({len(x)}, c)"
        )
    if not bool(jnp.all(jnp.isfinite(out))):
        raise InvalidInput("params give outputs that are not finite; take them before the divergence")
    roots = _output_roots(out, y, loss)
    return GramOperator(*out.shape, _products(outputs, flat, x, roots), _blocks(outputs, flat, x, roots))


def _output_roots(out: jax.Array, y: jax.Array | None, loss: Any) -> jax.Array | None:
    """Square roots of the output curvatures, (n, c, c); None for the identity."""
    if loss == "half-squared-error":
        return None
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise InvalidInput(f"loss={loss!r} is not known; choose one of {', '.join(LOSSES)} or give a function")
        loss = LOSSES[loss]
    if y is None or len(y) != len(out):
        raise InvalidInput(f"y is missing or not of length {len(out)}; give the targets of all examples")

    def one(output: jax.Array, target: jax.Array) -> jax.Array:
        return loss(output[None], target[None])[0]

    values, vectors = jnp.linalg.eigh(jax.vmap(jax.hessian(one))(out, jnp.asarray(y)))
    if not bool(jnp.min(values) >= -1e-10 * jnp.max(jnp.abs(values))):
        raise InvalidInput(
            f"loss has the output curvature {float(jnp.min(values)):.3g}; give a loss convex in the outputs"
        )
    return jnp.sqrt(jnp.maximum(values, 0.0))[:, :, None] * vectors.transpose(0, 2, 1)


def _products(outputs: Any, flat: jax.Array, x: jax.Array, roots: jax.Array | None) -> Any:
    """G times columns: back to the weights and forward again, a few columns at a time."""

    @jax.jit
    def product(theta: jax.Array, x: jax.Array, roots: jax.Array | None, columns: jax.Array) -> jax.Array:
        out, push = jax.linearize(lambda t: outputs(t, x), theta)
        pull = jax.linear_transpose(push, theta)
        n = len(x)

        def one(z: jax.Array) -> jax.Array:
            z = z.reshape(out.shape)
            if roots is not None:
                z = jnp.einsum("nab,na->nb", roots, z)
            image = push(pull(z)[0])
            if roots is not None:
                image = jnp.einsum("nab,nb->na", roots, image)
            return image.reshape(-1) / n

        return jax.lax.map(one, columns, batch_size=_COLUMNS)

    @double_precision
    def apply(z: np.ndarray) -> np.ndarray:
        return np.array(product(flat, x, roots, jnp.asarray(z.T))).T

    return apply


def _blocks(outputs: Any, flat: jax.Array, x: jax.Array, roots: jax.Array | None) -> np.ndarray:
    """Diagonal blocks of G, an example at a time: its c gradients never leave the cache."""
    n, c = len(x), outputs(flat, x[:1]).shape[1]
    eye = jnp.broadcast_to(jnp.eye(c), (n, c, c)) if roots is None else roots

    @jax.jit
    def blocks(theta: jax.Array, x: jax.Array, roots: jax.Array) -> jax.Array:
        def one(example: tuple[jax.Array, jax.Array]) -> jax.Array:
            inputs, root = example
            _, push = jax.linearize(lambda t: outputs(t, inputs[None])[0], theta)
            pull = jax.linear_transpose(push, theta)
            return root @ jax.vmap(lambda row: push(pull(row)[0]))(root).T / n

        return jax.lax.map(one, (x, roots))

    return np.asarray(blocks(flat, x, eye))
