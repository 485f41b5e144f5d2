"""Small encoders in which every position attends to all: a vision transformer and a masked language model."""

import equinox as eqx
import jax
import jax.numpy as jnp

from eos_sde.bridge.networks import Network, network
from eos_sde.bridge.transformer import Block, LayerNorm, check_heads, random_matrix
from solvers.errors import InvalidInput


class Encoder(eqx.Module):
    """Blocks of attention in both directions, and a norm after the last.

    Initialised as `transformer.Transformer`: matrices of variance 1/fan_in, those that end a branch with this over
    twice the number of blocks.

    Attributes
    ----------
    blocks : list of Block
        In order.
    norm : LayerNorm
        After the last block.
    """

    blocks: list[Block]
    norm: LayerNorm

    def __init__(self, width: int, heads: int, blocks: int, activation: str, *, key: jax.Array) -> None:
        branch = (2 * blocks) ** -0.5
        keys = jax.random.split(key, blocks)
        self.blocks = [Block(width, heads, activation, branch, key=k, causal=False) for k in keys]
        self.norm = LayerNorm(width)

    def __call__(self, stream: jax.Array) -> jax.Array:
        """The stream after all blocks, normalised, (n, T, width) as before."""
        for block in self.blocks:
            stream = block(stream)
        return self.norm(stream)


class VisionTransformer(eqx.Module):
    """Patches of an image, embedded with their places, an encoder, the mean over the patches, a matrix.

    As Dosovitskiy et al., arXiv:2010.11929, with the mean over the patches in place of a token of its own (Beyer et
    al., arXiv:2205.01580) and without dropout, which would make the loss no function of the weights. The head starts
    at 0.8 of variance 1/fan_in, biases at zero.

    Attributes
    ----------
    patches : Array
        Embedding, shape (3 patch^2, width).
    places : Array
        Learned, shape ((side/patch)^2, width).
    encoder : Encoder
        See there.
    head, bias : Array
        Shapes (width, classes) and (classes,).
    side, patch : int
        Pixels along an edge of the image, and of a patch.
    """

    patches: jax.Array
    places: jax.Array
    encoder: Encoder
    head: jax.Array
    bias: jax.Array
    side: int = eqx.field(static=True)
    patch: int = eqx.field(static=True)

    def __init__(
        self, side: int, patch: int, classes: int, width: int, heads: int, blocks: int, activation: str, *,
        key: jax.Array,
    ) -> None:  # fmt: skip
        patch_key, place_key, head_key, key = jax.random.split(key, 4)
        self.patches = random_matrix(patch_key, 3 * patch**2, width) * 0.5**0.5
        self.places = jax.random.normal(place_key, ((side // patch) ** 2, width), jnp.float64) * 0.5**0.5
        self.encoder = Encoder(width, heads, blocks, activation, key=key)
        self.head = 0.8 * random_matrix(head_key, width, classes)
        self.bias = jnp.zeros(classes, jnp.float64)
        self.side, self.patch = side, patch

    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs for a batch of flattened images, shape (n, 3 side^2) -> (n, classes)."""
        n, along, patch = len(x), self.side // self.patch, self.patch
        squares = x.reshape(n, along, patch, along, patch, 3).transpose(0, 1, 3, 2, 4, 5)
        stream = squares.reshape(n, along**2, 3 * patch**2) @ self.patches + self.places
        return self.encoder(stream).mean(axis=1) @ self.head + self.bias


class MaskedLanguageModel(eqx.Module):
    """An encoder of tokens whose outputs are logits of what stood at the masked places, and at no others.

    As Devlin et al., arXiv:1810.04805, without the next-sentence task and its segment embeddings (Liu et al.,
    arXiv:1907.11692, find no use in them) and without dropout. An input is a window of tokens followed by its masked
    places, so that every example has outputs at as many places and the loss is a mean over examples. Embeddings have
    variance 1/2, the unembedding is 0.8 of variance 1/fan_in.

    Attributes
    ----------
    tokens : Array
        Embedding, shape (vocabulary, width).
    places : Array
        Learned, shape (context, width).
    encoder : Encoder
        See there.
    unembedding, bias : Array
        Shapes (width, vocabulary) and (vocabulary,).
    """

    tokens: jax.Array
    places: jax.Array
    encoder: Encoder
    unembedding: jax.Array
    bias: jax.Array

    def __init__(
        self, vocabulary: int, context: int, width: int, heads: int, blocks: int, activation: str, *,
        key: jax.Array,
    ) -> None:  # fmt: skip
        token_key, place_key, last_key, key = jax.random.split(key, 4)
        self.tokens = jax.random.normal(token_key, (vocabulary, width), jnp.float64) * 0.5**0.5
        self.places = jax.random.normal(place_key, (context, width), jnp.float64) * 0.5**0.5
        self.encoder = Encoder(width, heads, blocks, activation, key=key)
        self.unembedding = 0.8 * random_matrix(last_key, width, vocabulary)
        self.bias = jnp.zeros(vocabulary, jnp.float64)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits at the masked places.

        Parameters
        ----------
        x : Array
            Integers of shape (n, T + m): T tokens, and the m places of each that are asked for.

        Returns
        -------
        Array
            Shape (n, m, vocabulary).
        """
        context = len(self.places)
        window, asked = x[:, :context], x[:, context:]
        stream = self.encoder(self.tokens[window] + self.places)
        return jnp.take_along_axis(stream, asked[:, :, None], axis=1) @ self.unembedding + self.bias


def vision_transformer(
    *, side: int, patch: int, classes: int, width: int, heads: int, blocks: int, activation: str = "gelu"
) -> Network:
    """Classifier of square colour images, as `VisionTransformer` says.

    Parameters
    ----------
    side, patch : int
        Pixels along an edge of the image, and of a patch, a divisor.
    classes : int
        Outputs.
    width, heads, blocks : int
        Of the stream, of the attention (a divisor of the width), and in a row.
    activation : {"gelu", "tanh", "softplus", "relu"}
        Of the fully connected layers.

    Returns
    -------
    Network
        From flattened images (n, 3 side^2) to (n, classes).

    Raises
    ------
    InvalidInput
        If the patches do not tile the image, or the heads do not divide the width.
    """
    if side % patch:
        raise InvalidInput(f"patch={patch} must divide the image size {side}")
    check_heads(heads, width)
    words = f"{activation} vision transformer, {side}x{side} images in patches of {patch}x{patch}, "
    words += f"{blocks} blocks of width {width} and {heads} heads"
    return network(
        lambda key: VisionTransformer(side, patch, classes, width, heads, blocks, activation, key=key), words
    )


def masked_language_model(
    *, vocabulary: int, context: int, width: int, heads: int, blocks: int, activation: str = "gelu"
) -> Network:
    """Encoder of texts with some tokens hidden, as `MaskedLanguageModel` says.

    Parameters
    ----------
    vocabulary, context : int
        Number of tokens, and of positions.
    width, heads, blocks : int
        Of the stream, of the attention (a divisor of the width), and in a row.
    activation : {"gelu", "tanh", "softplus", "relu"}
        Of the fully connected layers.

    Returns
    -------
    Network
        From tokens and masked places (n, T + m) to logits (n, m, vocabulary).

    Raises
    ------
    InvalidInput
        If the heads do not divide the width.
    """
    check_heads(heads, width)
    words = f"{activation} masked language model, {blocks} blocks of width {width} and {heads} heads, context {context}"
    return network(
        lambda key: MaskedLanguageModel(vocabulary, context, width, heads, blocks, activation, key=key), words
    )
