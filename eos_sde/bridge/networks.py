"""Small networks as functions of one flat parameter vector.

Spectra, projections and flows want the weights as a vector; `Network` keeps the pytree on the inside. A new
architecture is an Equinox module that maps a batch to a batch, and a line that builds it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from eos_sde.bridge.precision import double_precision
from solvers.errors import InvalidInput

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "relu": jax.nn.relu,
    "softplus": jax.nn.softplus,
}

_GAIN = 0.8


class PlainLayers:
    """Layers that compute, and tell nothing: what `optimizers.curvature.layers.Layers` is to an estimator."""

    @staticmethod
    def dense(name: str, x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:  # noqa: ARG004
        """``x w + b``."""
        return x @ w + b


class MLP(eqx.Module):
    """Fully connected network on batches.

    Weights are drawn from a normal distribution of variance 0.64/fan_in, biases start at zero; the last
    layer is linear. The gain of 0.8 (LeCun's is 1) starts the tasks beyond the edge 2/eta, and mostly below
    4/eta, from where gradient descent catapults back instead of diverging.

    Attributes
    ----------
    weights : list of Array
        One per layer, shape (fan_in, fan_out).
    biases : list of Array
        One per layer, shape (fan_out,).
    activation : str
        Name of the nonlinearity between layers.
    """

    weights: list[jax.Array]
    biases: list[jax.Array]
    activation: str = eqx.field(static=True)

    def __init__(self, layers: Sequence[int], activation: str, *, key: jax.Array) -> None:
        keys = jax.random.split(key, len(layers) - 1)
        sizes = list(pairwise(layers))
        self.weights = [
            _GAIN * jax.random.normal(k, (m, n), jnp.float64) / m**0.5
            for k, (m, n) in zip(keys, sizes, strict=True)
        ]
        self.biases = [jnp.zeros(n, jnp.float64) for _, n in sizes]
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs for a batch.

        Parameters
        ----------
        x : Array
            Shape (n, fan_in of the first layer).

        Returns
        -------
        Array
            Shape (n, fan_out of the last layer).
        """
        return self.layered(x, PlainLayers())

    def layered(self, x: jax.Array, layers: Any) -> jax.Array:
        """The same by layers that tell their inputs and derivatives: see `optimizers.curvature.layers.Layers`."""
        act, last = ACTIVATIONS[self.activation], len(self.weights) - 1
        for number, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = layers.dense(f"dense_{number}", x, w, b)
            x = x if number == last else act(x)
        return x


class ConvNet(eqx.Module):
    """A 3x3 convolution of square grey images, means over 2x2 squares of its activations, then an `MLP`.

    The convolution is a product with the patches of the image, which stays fast when each of many replicas has
    weights of its own.

    Attributes
    ----------
    kernel : Array
        Shape (9, channels).
    bias : Array
        Shape (channels,).
    head : MLP
        From the pooled activations to the outputs.
    side : int
        Pixels along an edge of the image, at least 4 and even.
    """

    kernel: jax.Array
    bias: jax.Array
    head: MLP
    side: int = eqx.field(static=True)

    def __init__(self, side: int, channels: int, layers: Sequence[int], activation: str, *, key: jax.Array):
        kernel_key, head_key = jax.random.split(key)
        self.side = side
        self.kernel = _GAIN * jax.random.normal(kernel_key, (9, channels), jnp.float64) / 3
        self.bias = jnp.zeros(channels, jnp.float64)
        self.head = MLP((((side - 2) // 2) ** 2 * channels, *layers), activation, key=head_key)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs for a batch of flattened images, shape (n, side^2) -> (n, c)."""
        return self.layered(x, PlainLayers())

    def layered(self, x: jax.Array, layers: Any) -> jax.Array:
        """As `MLP.layered`; the convolution is a dense layer whose positions are pixels."""
        inner = self.side - 2
        images = x.reshape(len(x), self.side, self.side)
        shifts = [images[:, i : i + inner, j : j + inner] for i in range(3) for j in range(3)]
        maps = layers.dense("convolution", jnp.stack(shifts, axis=-1), self.kernel, self.bias)
        maps = ACTIVATIONS[self.head.activation](maps)
        pooled = maps.reshape(len(x), inner // 2, 2, inner // 2, 2, -1).mean(axis=(2, 4))
        return self.head.layered(pooled.reshape(len(x), -1), layers)


@dataclass(frozen=True, eq=False)
class Network:
    """A network as apply(theta, x) with theta a flat float64 vector.

    Attributes
    ----------
    apply : callable
        (theta of shape (size,), x of shape (n, inputs)) -> outputs of shape (n, c), in the precision of theta;
        pure JAX.
    init : callable
        Integer seed -> theta.
    size : int
        Number of weights.
    unravel : callable
        theta -> the arrays of the Equinox module, as a pytree.
    apply_arrays : callable
        (that pytree, x) -> outputs: `apply` without the copies that unravelling costs in an inner loop.
    description : str
        For people, e.g. "tanh 64-32-32-10".
    layered, layered_arrays : callable or None
        `apply` and `apply_arrays` with a third argument, the layers of a curvature estimator; None where the network
        does not tell its layers.
    """

    apply: Callable[[jax.Array, jax.Array], jax.Array]
    init: Callable[[int], jax.Array]
    size: int
    unravel: Callable[[jax.Array], Any]
    apply_arrays: Callable[[Any, jax.Array], jax.Array]
    description: str
    layered: Callable[[Any, jax.Array, Any], jax.Array] | None = None
    layered_arrays: Callable[[Any, jax.Array, Any], jax.Array] | None = None


@double_precision
def network(build: Callable[[jax.Array], eqx.Module], description: str) -> Network:
    """Flatten an Equinox module that maps batches to batches.

    Parameters
    ----------
    build : callable
        PRNG key -> module.
    description : str
        Shown to people.

    Returns
    -------
    Network
        Its functions of the flat vector.
    """
    shapes = eqx.filter_eval_shape(build, jax.random.key(0))  # draws nothing: that is for `init`
    arrays, static = eqx.partition(shapes, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    flat, unravel = ravel_pytree(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), arrays))

    def apply_arrays(weights: Any, x: jax.Array) -> jax.Array:
        return eqx.combine(weights, static)(x)

    def apply(theta: jax.Array, x: jax.Array) -> jax.Array:
        weights = unravel(theta.astype(flat.dtype))
        if theta.dtype != flat.dtype:  # a caller that wants speed
            weights = jax.tree.map(lambda leaf: leaf.astype(theta.dtype), weights)
        return apply_arrays(weights, x)

    @double_precision
    def init(seed: int) -> jax.Array:
        module = build(jax.random.key(seed))
        return ravel_pytree(eqx.filter(module, eqx.is_inexact_array))[0]

    if not hasattr(static, "layered"):
        return Network(apply, init, flat.size, unravel, apply_arrays, description)

    def layered_arrays(weights: Any, x: jax.Array, layers: Any) -> jax.Array:
        return eqx.combine(weights, static).layered(x, layers)

    def layered(theta: jax.Array, x: jax.Array, layers: Any) -> jax.Array:
        return layered_arrays(unravel(theta), x, layers)

    return Network(apply, init, flat.size, unravel, apply_arrays, description, layered, layered_arrays)


def mlp(layers: Sequence[int], activation: str = "tanh") -> Network:
    """Multilayer perceptron, initialised as `MLP` says.

    Parameters
    ----------
    layers : sequence of int
        Widths from input to output, e.g. (64, 32, 32, 10).
    activation : {"tanh", "gelu", "relu", "softplus"}
        Between layers. The theory needs derivatives: relu is for comparison only.

    Returns
    -------
    Network
        The network.

    Raises
    ------
    InvalidInput
        For an unknown activation or a width below 1.
    """
    if activation not in ACTIVATIONS:
        raise InvalidInput(f"activation={activation!r} is not known: choose one of {', '.join(ACTIVATIONS)}")
    if any(not isinstance(width, int) or width < 1 for width in layers):
        raise InvalidInput(f"layer widths {tuple(layers)} must be positive integers")
    description = f"{activation} {'-'.join(map(str, layers))}"
    return network(lambda key: MLP(layers, activation, key=key), description)


def convolutional(side: int, channels: int, layers: Sequence[int], activation: str = "tanh") -> Network:
    """Small convolutional network of square grey images, as `ConvNet` says.

    Parameters
    ----------
    side : int
        Pixels along an edge, even and at least 4.
    channels : int
        Of the convolution.
    layers : sequence of int
        Widths after the pooling, hidden ones and the outputs.
    activation : {"tanh", "gelu", "relu", "softplus"}
        After the convolution and between layers.

    Returns
    -------
    Network
        The network.

    Raises
    ------
    InvalidInput
        For a size of image that cannot be pooled.
    """
    if side < 4 or side % 2:
        raise InvalidInput(
            f"images of {side} x {side} pixels do not suit channels: choose pool so that side is even"
        )
    description = f"{activation} convolution 3x3x{channels}, then {'-'.join(map(str, layers))}"
    return network(lambda key: ConvNet(side, channels, layers, activation, key=key), description)
