"""Layers that tell their inputs and the derivatives in their outputs: what Kronecker factors are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from eos_sde.optimizers.curvature.interface import Params
from solvers.errors import InvalidInput


class Layers:
    """The layers of a network, written as ``model(params, layers)``; each adds a probe of zeros to its outputs.

    Call ``layers.dense(name, x, w, b)`` and ``layers.convolution(name, x, w, b)`` with a name of its own for every
    layer, on whole batches: under ``vmap``, ``scan`` or ``jit`` inside the model the records would not come out.
    Outside an estimator, ``Layers()`` computes the plain network.

    Parameters
    ----------
    probes : dict, optional
        Name -> what is added to the outputs of a layer.
    """

    def __init__(self, probes: dict[str, jax.Array] | None = None) -> None:
        self._probes = probes
        self.inputs: dict[str, jax.Array] = {}
        self.weights: dict[str, jax.Array] = {}
        self.outputs: dict[str, jax.Array] = {}

    def dense(self, name: str, x: jax.Array, w: jax.Array, b: jax.Array | None = None) -> jax.Array:
        """``x w + b``: also for the projections of attention, with the positions of a sequence among the axes.

        Parameters
        ----------
        name : str
            Of its own for every layer.
        x : Array
            Shape (..., in).
        w : Array
            Shape (in, out).
        b : Array, optional
            Shape (out,).

        Returns
        -------
        Array
            Shape (..., out).
        """
        outputs = x @ w
        return self._record(name, x, w, b, outputs)

    def convolution(
        self,
        name: str,
        x: jax.Array,
        w: jax.Array,
        b: jax.Array | None = None,
        *,
        strides: Sequence[int] = (1, 1),
        padding: str = "SAME",
    ) -> jax.Array:
        """Two-dimensional convolution.

        Parameters
        ----------
        name : str
            Of its own for every layer.
        x : Array
            Images, shape (n, height, width, in).
        w : Array
            Kernel, shape (height, width, in, out).
        b : Array, optional
            Shape (out,).
        strides : (int, int)
            Between the positions.
        padding : str
            "SAME" or "VALID".

        Returns
        -------
        Array
            Shape (n, height, width, out).
        """
        settings = {"window_strides": tuple(strides), "padding": padding}
        numbers = jax.lax.conv_dimension_numbers(x.shape, w.shape, ("NHWC", "HWIO", "NHWC"))
        outputs = jax.lax.conv_general_dilated(x, w, dimension_numbers=numbers, **settings)
        patches = jax.lax.conv_general_dilated_patches(
            x, w.shape[:2], dimension_numbers=("NHWC", "HWIO", "NHWC"), **settings
        )
        # patches come as (in, height, width); the kernel as a matrix likewise
        matrix = jnp.moveaxis(w, 2, 0).reshape(-1, w.shape[-1])
        return self._record(name, patches, matrix, b, outputs)

    def _record(
        self, name: str, x: jax.Array, matrix: jax.Array, b: jax.Array | None, outputs: jax.Array
    ) -> jax.Array:
        if name in self.inputs:
            raise InvalidInput(f"name={name!r} is used by two layers; give each one of its own.")
        if b is not None:
            outputs = outputs + b
            x = jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], axis=-1)
            matrix = jnp.concatenate([matrix, b[None]])
        if self._probes is not None:
            outputs = outputs + self._probes[name]
        self.inputs[name], self.weights[name], self.outputs[name] = x, matrix, outputs
        return outputs


Model = Callable[[Params, Layers], jax.Array]


class Factors(NamedTuple):
    """The Kronecker factors of a layer.

    Attributes
    ----------
    inputs : Array
        Mean of a a' over examples and positions, a the input with a 1 for the bias; shape (in, in).
    outputs : Array
        Sum of g g' over them, g the columns of the output's Gauss-Newton root; shape (out, out).
    """

    inputs: jax.Array
    outputs: jax.Array


def kronecker_factors(
    model: Model,
    loss: Callable[[jax.Array], jax.Array],
    params: Params,
    key: jax.Array | None = None,
    *,
    samples: int | None = None,
) -> dict[str, Factors]:
    r"""The factors A and G of every layer, whose product approximates its block of the Gauss-Newton matrix.

    The block is :math:`\sum_n a_n a_n' \otimes g_n g_n'` over examples and positions n, where :math:`g_n` are the
    columns of :math:`J_n' R`, with R the root of the Hessian of the loss in the outputs of the network.
    :math:`A \otimes G` replaces the mean of products by the product of means, as if a and g were independent
    (Martens and Grosse 2015), and positions too (Grosse and Martens 2016): exact for one example and position.

    Parameters
    ----------
    model : callable
        ``model(params, layers)`` -> outputs, shape (..., c).
    loss : callable
        Of the outputs, a scalar, a sum over their leading axes, and convex.
    params : pytree
        Where they are taken.
    key : jax.Array, optional
        A JAX random key for `samples`.
    samples : int, optional
        Random signs in place of the c columns of R, an unbiased estimate of G; by default all c.

    Returns
    -------
    dict
        Name -> Factors.

    Raises
    ------
    InvalidInput
        If the model has no layers.

    References
    ----------
    J. Martens and R. Grosse, ICML 2015 (arXiv 1503.05671). R. Grosse and J. Martens, ICML 2016 (1602.01407).
    """
    return _factors(model, loss, params, key, samples)[0]


def layer_matrices(model: Model, params: Params) -> dict[str, jax.Array]:
    """Every layer's weights as a matrix, the bias as its last row, by name: shapes (in, out).

    Parameters
    ----------
    model : callable
        ``model(params, layers)``.
    params : pytree
        The weights.

    Returns
    -------
    dict
        Name -> matrix.
    """
    layers = Layers()
    model(params, layers)
    return layers.weights


def _factors(
    model: Model, loss: Callable, params: Params, key: jax.Array | None, samples: int | None
) -> tuple[dict[str, Factors], int]:
    def run(probes: Any) -> tuple[jax.Array, tuple[dict, dict]]:
        layers = Layers(probes)
        return model(params, layers), (layers.inputs, layers.outputs)

    shapes = jax.eval_shape(run, None)[1][1]
    if not shapes:
        raise InvalidInput(
            "model has no layers: call layers.dense or layers.convolution in model(params, layers)."
        )
    probes = {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in shapes.items()}
    outputs, pull, (inputs, _) = jax.vjp(run, probes, has_aux=True)
    columns = _curvature_root(loss, outputs)  # (c, ..., c)
    if samples is not None:
        if key is None:
            raise InvalidInput("key must be given with samples, got None.")
        signs = jax.random.rademacher(key, (samples, *outputs.shape), outputs.dtype)
        columns = jnp.einsum("j...i,s...j->s...i", columns, signs) / jnp.sqrt(samples)
    slopes = jax.lax.map(lambda column: pull(column)[0], columns)
    return {
        name: Factors(_gram(inputs[name]) / inputs[name][..., 0].size, _gram(slopes[name])) for name in inputs
    }, columns.shape[0]


def _curvature_root(loss: Callable, outputs: jax.Array) -> jax.Array:
    """Symmetric root of the loss Hessian at every position: its columns j, shape (c, ..., c)."""
    c = outputs.shape[-1]
    product = jax.linearize(jax.grad(loss), outputs)[1]
    units = jnp.broadcast_to(
        jnp.eye(c, dtype=outputs.dtype)[:, *[None] * (outputs.ndim - 1)], (c, *outputs.shape)
    )
    blocks = jnp.moveaxis(jax.vmap(product)(units), 0, -1)
    values, vectors = jnp.linalg.eigh(blocks)
    root = jnp.einsum("...ik,...k,...jk->...ij", vectors, jnp.sqrt(jnp.maximum(values, 0.0)), vectors)
    return jnp.moveaxis(root, -1, 0)


def _gram(rows: jax.Array) -> jax.Array:
    flat = rows.reshape(-1, rows.shape[-1])
    return flat.T @ flat
