"""A small residual network of images, without coupling between the examples of a batch."""

import equinox as eqx
import jax
import jax.numpy as jnp

from eos_sde.bridge.networks import ACTIVATIONS, Network, network
from solvers.errors import InvalidInput

_VARIANCE_FLOOR = 1e-5
_GROUP = 4  # channels that are normalised together


class Convolution(eqx.Module):
    """A 3x3 convolution with zeros around the image, as a product with its patches.

    Products stay fast in double precision and where each of many replicas has weights of its own.

    Attributes
    ----------
    kernel : Array
        Shape (9 channels in, channels out).
    """

    kernel: jax.Array

    def __init__(self, inputs: int, outputs: int, gain: float, *, key: jax.Array) -> None:
        draw = jax.random.normal(key, (9 * inputs, outputs), jnp.float64)
        self.kernel = gain * draw / (9 * inputs) ** 0.5

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images (n, side, side, channels in) to (n, side, side, channels out)."""
        side = x.shape[1]
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        shifts = [padded[:, i : i + side, j : j + side] for i in range(3) for j in range(3)]
        return jnp.concatenate(shifts, axis=-1) @ self.kernel


class GroupNorm(eqx.Module):
    """Normalises groups of four channels of each image over its pixels, then scales and shifts every channel.

    Batch norm would take its mean and variance over the batch: an example's loss would depend on which others are drawn
    with it, and the training loss would be no mean over the examples, which all theory of batch noise here assumes (Wu
    and He, arXiv:1803.08494).

    Attributes
    ----------
    scale, shift : Array
        Shape (channels,); start at one and zero.
    """

    scale: jax.Array
    shift: jax.Array

    def __init__(self, channels: int) -> None:
        self.scale = jnp.ones(channels, jnp.float64)
        self.shift = jnp.zeros(channels, jnp.float64)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The same shape as x, (n, side, side, channels)."""
        n, height, width, channels = x.shape
        groups = x.reshape(n, height * width, channels // _GROUP, _GROUP)
        centred = groups - groups.mean(axis=(1, 3), keepdims=True)
        variance = jnp.mean(centred**2, axis=(1, 3), keepdims=True)
        return (centred * jax.lax.rsqrt(variance + _VARIANCE_FLOOR)).reshape(
            x.shape
        ) * self.scale + self.shift


class ResidualBlock(eqx.Module):
    """Norm, activation, convolution, twice; added to its input ("pre-activation", He et al., arXiv:1603.05027).

    Attributes
    ----------
    norms : list of GroupNorm
        Before either convolution.
    convolutions : list of Convolution
        Two.
    project : Array or None
        Shape (channels in, channels out), for the input where the channels change.
    activation : str
        Name of the nonlinearity.
    """

    norms: list[GroupNorm]
    convolutions: list[Convolution]
    project: jax.Array | None
    activation: str = eqx.field(static=True)

    def __init__(self, inputs: int, outputs: int, branch: float, activation: str, *, key: jax.Array) -> None:
        first, second, across = jax.random.split(key, 3)
        self.norms = [GroupNorm(inputs), GroupNorm(outputs)]
        self.convolutions = [
            Convolution(inputs, outputs, 1.0, key=first),
            Convolution(outputs, outputs, branch, key=second),
        ]
        draw = jax.random.normal(across, (inputs, outputs), jnp.float64) / inputs**0.5
        self.project = None if inputs == outputs else draw
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images (n, side, side, channels in) to (n, side, side, channels out)."""
        inner = x
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            inner = convolution(ACTIVATIONS[self.activation](norm(inner)))
        return inner + (x if self.project is None else x @ self.project)


class ResidualNetwork(eqx.Module):
    """A convolution, stages of residual blocks at half the resolution and twice the channels each, a mean, a matrix.

    Between stages the image is averaged over 2x2 squares, which unlike a stride or a maximum keeps every pixel and
    every derivative. Weights are drawn from a normal distribution of variance 1/fan_in, those that end a branch with
    this over the number of blocks; biases start at zero.

    Attributes
    ----------
    stem : Convolution
        From colours to channels.
    stages : list of list of ResidualBlock
        By resolution.
    norm : GroupNorm
        After the last block.
    head : Array
        Shape (channels, classes).
    bias : Array
        Shape (classes,).
    side : int
        Pixels along an edge.
    """

    stem: Convolution
    stages: list[list[ResidualBlock]]
    norm: GroupNorm
    head: jax.Array
    bias: jax.Array
    side: int = eqx.field(static=True)

    def __init__(
        self,
        side: int,
        classes: int,
        channels: int,
        stages: int,
        blocks: int,
        activation: str,
        *,
        key: jax.Array,
    ) -> None:
        stem_key, head_key, *keys = jax.random.split(key, 2 + stages * blocks)
        branch = (stages * blocks) ** -0.5
        self.stem = Convolution(3, channels, 1.0, key=stem_key)
        self.stages, inputs, remaining = [], channels, iter(keys)
        for stage in range(stages):
            outputs, row = channels * 2**stage, []
            for _ in range(blocks):
                row.append(ResidualBlock(inputs, outputs, branch, activation, key=next(remaining)))
                inputs = outputs
            self.stages.append(row)
        self.norm = GroupNorm(inputs)
        self.head = jax.random.normal(head_key, (inputs, classes), jnp.float64) / inputs**0.5
        self.bias = jnp.zeros(classes, jnp.float64)
        self.side = side

    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs for a batch of flattened images, shape (n, 3 side^2) -> (n, classes)."""
        images = self.stem(x.reshape(len(x), self.side, self.side, 3))
        for index, row in enumerate(self.stages):
            if index:
                n, side, _, channels = images.shape
                images = images.reshape(n, side // 2, 2, side // 2, 2, channels).mean(axis=(2, 4))
            for block in row:
                images = block(images)
        act = ACTIVATIONS[self.stages[0][0].activation]
        return act(self.norm(images)).mean(axis=(1, 2)) @ self.head + self.bias


def preactivation_network(
    *, side: int, classes: int, channels: int, stages: int, blocks: int, activation: str = "gelu"
) -> Network:
    """Residual network of square colour images, as `ResidualNetwork` says.

    Parameters
    ----------
    side, classes : int
        Pixels along an edge, and outputs.
    channels : int
        Of the first stage, a multiple of 4.
    stages, blocks : int
        Resolutions, and blocks in each.
    activation : {"gelu", "tanh", "softplus", "relu"}
        After each norm.

    Returns
    -------
    Network
        From flattened images (n, 3 side^2) to (n, classes).

    Raises
    ------
    InvalidInput
        If the channels do not fall into groups of 4 or the side cannot be halved between the stages.
    """
    if channels % _GROUP:
        raise InvalidInput(
            f"channels={channels} must be a multiple of {_GROUP}, the channels normalised together"
        )
    if side % 2 ** (stages - 1):
        raise InvalidInput(
            f"stages={stages} halve the image {stages - 1} times and its side is {side}: choose fewer, or another pool"
        )
    widths = "-".join(str(channels * 2**stage) for stage in range(stages))
    blocks_of = f"{stages} x {blocks} blocks of {widths} channels"
    description = f"{activation} residual network, {side}x{side} images, {blocks_of}"
    return network(
        lambda key: ResidualNetwork(side, classes, channels, stages, blocks, activation, key=key), description
    )
