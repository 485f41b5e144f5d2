"""Transformer encoders of equal blocks, compiled once for all: a scan over stacked weights, each block recomputed."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

STACKED = "blocks"
"""Key of the weights whose first axis counts the blocks."""


class Block(nn.Module):
    """Attention and two fully connected layers, each added to its input.

    Attributes
    ----------
    heads, inner : int
        Of the attention, and width between the two layers.
    norm_first : bool
        Whether layers are normalised before each branch (ViT) or after its sum (BERT).
    epsilon : float
        Of the normalisation.
    dtype : dtype
        Of the arithmetic; weights are float32.
    """

    heads: int
    inner: int
    norm_first: bool
    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Any, _: None) -> tuple[Any, None]:
        """The stream (n, T, width) after the block, as a scan takes it."""
        width = x.shape[-1]
        attention = nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype, name="attention")
        expand = nn.Dense(self.inner, dtype=self.dtype, name="expand")
        contract = nn.Dense(width, dtype=self.dtype, name="contract")
        first, second = (
            nn.LayerNorm(self.epsilon, dtype=self.dtype, name=name) for name in ("norm_1", "norm_2")
        )

        def layers(inputs: Any) -> Any:
            return contract(nn.gelu(expand(inputs), approximate=False))

        if self.norm_first:
            x = x + attention(first(x))
            return x + layers(second(x)), None
        x = first(x + attention(x))
        return second(x + layers(x)), None


class Encoder(nn.Module):
    """Blocks in a row.

    Attributes
    ----------
    blocks : int
        How many.
    heads, inner, norm_first, epsilon, dtype
        Of each; see `Block`.
    """

    blocks: int
    heads: int
    inner: int
    norm_first: bool
    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """The stream (n, T, width) after all blocks."""
        block = nn.remat(Block, prevent_cse=False)  # a scan keeps what is recomputed apart by itself
        scanned = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.blocks)
        one = scanned(self.heads, self.inner, self.norm_first, self.epsilon, self.dtype, name=STACKED)
        return one(x, None)[0]


class VisionTransformer(nn.Module):
    """Image classifier of Dosovitskiy et al. (arXiv:2010.11929): patches, a class token, learned positions.

    Attributes
    ----------
    width, blocks, heads, inner : int
        Of the encoder.
    patch, classes : int
        Pixels along an edge of a patch, and outputs.
    dtype : dtype
        Of the arithmetic.
    """

    width: int
    blocks: int
    heads: int
    inner: int
    patch: int
    classes: int
    dtype: Any

    @nn.compact
    def __call__(self, images: Any) -> Any:
        """Images (n, side, side, 3) to logits (n, classes), float32."""
        edge = (self.patch, self.patch)
        x = nn.Conv(self.width, edge, edge, "VALID", dtype=self.dtype, name="patches")(images)
        x = x.reshape(len(x), -1, self.width)
        token = self.param("class_token", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token.astype(x.dtype), (len(x), 1, self.width)), x], axis=1)
        positions = self.param("positions", nn.initializers.normal(0.02), (1, x.shape[1], self.width))
        x = x + positions.astype(x.dtype)
        x = Encoder(self.blocks, self.heads, self.inner, True, 1e-6, self.dtype, name="encoder")(x)
        x = nn.LayerNorm(1e-6, dtype=self.dtype, name="norm")(x[:, 0])
        return nn.Dense(self.classes, dtype=jnp.float32, name="head")(x)


class Bert(nn.Module):
    """Masked language model of Devlin et al. (arXiv:1810.04805), without the prediction of the next sentence.

    Attributes
    ----------
    width, blocks, heads, inner : int
        Of the encoder.
    vocabulary, context : int
        Tokens, and positions.
    dtype : dtype
        Of the arithmetic.
    """

    width: int
    blocks: int
    heads: int
    inner: int
    vocabulary: int
    context: int
    dtype: Any

    @nn.compact
    def __call__(self, tokens: Any, masked: Any) -> Any:
        """Tokens (n, T) and masked positions (n, m), int32, to logits at these (n, m, vocabulary), float32."""
        embed = nn.Embed(self.vocabulary, self.width, dtype=self.dtype, name="tokens")
        places = self.param("positions", nn.initializers.normal(0.02), (self.context, self.width))
        kinds = self.param("kinds", nn.initializers.normal(0.02), (2, self.width))
        x = embed(tokens) + (places[: tokens.shape[1]] + kinds[0]).astype(self.dtype)
        x = nn.LayerNorm(1e-12, dtype=self.dtype, name="embedding_norm")(x)
        x = Encoder(self.blocks, self.heads, self.inner, False, 1e-12, self.dtype, name="encoder")(x)
        x = jnp.take_along_axis(x, masked[:, :, None], axis=1)
        x = nn.gelu(nn.Dense(self.width, dtype=self.dtype, name="transform")(x), approximate=False)
        x = nn.LayerNorm(1e-12, dtype=self.dtype, name="transform_norm")(x)
        bias = self.param("bias", nn.initializers.zeros, (self.vocabulary,))
        return embed.attend(x).astype(jnp.float32) + bias
