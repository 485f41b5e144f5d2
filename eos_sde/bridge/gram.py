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
from eos_sde.thresholds.mean_square_factored import DENSE_SIDE
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
    precision: str | None = None,
) -> GramOperator:
    """Products with G = A A^T / n, A_i = (output curvature of example i)^1/2 times its Jacobian.

    Parameters
    ----------
    model : callable
        (params, x of shape (m, ...)) -> outputs, shape (m, c) or (m,); examples do not see one another.
    params : pytree
        Weights, arrays of floating point.
    x, y : array
        Training inputs and targets, n examples along the first axis. Targets may be left out for the half squared
        error, whose curvature in the outputs is the identity.
    loss : str or callable
        "half-squared-error", "cross-entropy", or a function of (outputs (m, c), targets) -> losses (m,), convex in
        the outputs.
    precision : {"single", "double"}, optional
        Of the products. If left out double up to n c = 3000, where the threshold is exact, and beyond that single,
        whose rounding of 1e-6 of the largest eigenvalue is far below what is left unresolved, at half the time.

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
    flat, outputs = _flattened(model, params, jnp.float64)
    out = _evaluated(outputs, flat, x)
    if out.ndim != 2 or len(out) != len(x):
        raise InvalidInput(
            f"model returns the shape {out.shape} for {len(x)} examples; make it return ({len(x)}, c)"
        )
    if not bool(jnp.all(jnp.isfinite(out))):
        raise InvalidInput("params give outputs that are not finite; take them before the divergence")
    if precision not in {None, "single", "double"}:
        raise InvalidInput(f"precision={precision!r} is not known; choose 'single' or 'double'")
    roots = _output_roots(out, y, loss)
    n, c = out.shape
    blocks = _blocks(outputs, flat, x, roots)
    if precision is None:
        precision = "single" if n * c > DENSE_SIDE and _takes_single(model, params, x[:1]) else "double"
    if precision == "single":
        flat, outputs = _flattened(model, params, jnp.float32)
        x, roots = _single(x), None if roots is None else _single(roots)
    return GramOperator(n, c, _products(outputs, flat, x, roots), blocks)


def _flattened(model: Any, params: Any, dtype: Any) -> tuple[jax.Array, Any]:
    """Weights as a vector of the given type, and (vector, inputs) -> outputs of shape (m, c)."""
    flat, unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(dtype), params))

    def outputs(theta: jax.Array, inputs: jax.Array) -> jax.Array:
        out = model(unravel(theta), inputs)
        return out[:, None] if out.ndim == 1 else out

    return flat, outputs


def _evaluated(outputs: Any, flat: jax.Array, x: jax.Array) -> jax.Array:
    """The outputs of all examples; refuses what is not called as a model is."""
    try:
        jax.eval_shape(outputs, flat, x)
    except (
        TypeError,
        AttributeError,
    ) as error:  # of the call, of shapes that do not fit, of what is returned
        reason = str(error).strip().splitlines()[0]
        raise InvalidInput(
            f"model cannot be evaluated on params and x ({reason}); give model(params, x) -> outputs, not the loss, "
            "and params and x that fit it"
        ) from error
    return outputs(flat, x)


def _takes_single(model: Any, params: Any, x: jax.Array) -> bool:
    """Whether the model computes in single precision when its weights and inputs are; some check their type."""
    flat, outputs = _flattened(model, params, jnp.float32)
    try:
        return jax.eval_shape(outputs, flat, _single(x)).dtype == jnp.float32
    except TypeError:
        return False


def _single(array: jax.Array) -> jax.Array:
    """In single precision where it is of floating point."""
    return array.astype(jnp.float32) if jnp.issubdtype(array.dtype, jnp.floating) else array


def _output_roots(out: jax.Array, y: jax.Array | None, loss: Any) -> jax.Array | None:
    """Square roots of the output curvatures, (n, c, c); None for the identity."""
    if loss == "half-squared-error":
        return None
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise InvalidInput(
                f"loss={loss!r} is not known; choose one of {', '.join(LOSSES)} or give a function"
            )
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
            z = z.reshape(out.shape).astype(out.dtype)
            if roots is not None:
                z = jnp.einsum("nab,na->nb", roots, z)
            image = push(*pull(z))
            if roots is not None:
                image = jnp.einsum("nab,nb->na", roots, image)
            return image.reshape(-1) / n

        return jax.lax.map(one, columns, batch_size=_COLUMNS)

    @double_precision
    def apply(z: np.ndarray) -> np.ndarray:
        return np.array(product(flat, x, roots, jnp.asarray(z.T)), dtype=float).T

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
            return root @ jax.vmap(lambda row: push(*pull(row)))(root).T / n

        return jax.lax.map(one, (x, roots))

    return np.asarray(blocks(flat, x, eye))
