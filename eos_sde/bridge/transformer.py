"""A small decoder-only transformer on batches of token sequences, and the block that it shares with the encoders."""

import equinox as eqx
import jax
import jax.numpy as jnp

from eos_sde.bridge.networks import ACTIVATIONS, Network, network
from solvers.errors import InvalidInput

_VARIANCE_FLOOR = 1e-5


class LayerNorm(eqx.Module):
    """Normalises the last axis of each position by itself, then scales and shifts it.

    Attributes
    ----------
    scale, shift : Array
        Shape (width,); start at one and zero.
    """

    scale: jax.Array
    shift: jax.Array

    def __init__(self, width: int) -> None:
        self.scale = jnp.ones(width, jnp.float64)
        self.shift = jnp.zeros(width, jnp.float64)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The same shape as x, (..., width)."""
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = jnp.mean(centred**2, axis=-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + _VARIANCE_FLOOR) * self.scale + self.shift


class Block(eqx.Module):
    """Attention, then two fully connected layers, each on normalised input and added to the stream.

    Attributes
    ----------
    attention_norm, mlp_norm : LayerNorm
        Before either.
    mixing : Array
        Queries, keys and values of all heads, shape (width, 3 width).
    output : Array
        Of the attention, shape (width, width).
    expand, contract : Array
        Shapes (width, 4 width) and (4 width, width).
    expand_bias, contract_bias : Array
        Start at zero.
    heads : int
        Of the attention.
    activation : str
        Between the two layers.
    causal : bool
        Whether a position attends to itself and those before alone.
    """

    attention_norm: LayerNorm
    mlp_norm: LayerNorm
    mixing: jax.Array
    output: jax.Array
    expand: jax.Array
    expand_bias: jax.Array
    contract: jax.Array
    contract_bias: jax.Array
    heads: int = eqx.field(static=True)
    activation: str = eqx.field(static=True)
    causal: bool = eqx.field(static=True)

    def __init__(
        self, width: int, heads: int, activation: str, branch: float, *, key: jax.Array, causal: bool = True
    ) -> None:
        keys = jax.random.split(key, 4)
        self.attention_norm, self.mlp_norm = LayerNorm(width), LayerNorm(width)
        self.mixing = random_matrix(keys[0], width, 3 * width)
        self.output = branch * random_matrix(keys[1], width, width)
        self.expand = random_matrix(keys[2], width, 4 * width)
        self.expand_bias = jnp.zeros(4 * width, jnp.float64)
        self.contract = branch * random_matrix(keys[3], 4 * width, width)
        self.contract_bias = jnp.zeros(width, jnp.float64)
        self.heads, self.activation, self.causal = heads, activation, causal

    def __call__(self, x: jax.Array) -> jax.Array:
        """The stream after the block, (n, T, width) as before."""
        x = x + self._attend(self.attention_norm(x)) @ self.output
        inner = ACTIVATIONS[self.activation](self.mlp_norm(x) @ self.expand + self.expand_bias)
        return x + inner @ self.contract + self.contract_bias

    def _attend(self, x: jax.Array) -> jax.Array:
        n, length, width = x.shape
        parts = (x @ self.mixing).reshape(n, length, 3, self.heads, width // self.heads)
        query, key, value = parts.transpose(2, 0, 3, 1, 4)  # each (n, heads, T, width / heads)
        scores = query @ jnp.swapaxes(key, -1, -2) / query.shape[-1] ** 0.5
        if self.causal:
            scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1)
        return (weights @ value).transpose(0, 2, 1, 3).reshape(n, length, width)


class Transformer(eqx.Module):
    """Decoder-only transformer: the outputs at a position are logits of the next token, from it and those before.

    Layers are normalised before each branch (Xiong et al., arXiv:2002.04745); matrices are drawn from a normal
    distribution of variance 1/fan_in, those that end a branch with this over twice the number of blocks, embeddings of
    tokens and of positions with variance 1/2, so that the stream starts at unit variance. The unembedding is 0.8 of
    that.

    Attributes
    ----------
    tokens : Array
        Embedding, shape (vocabulary, width).
    positions : Array
        Learned, shape (context, width).
    blocks : list of Block
        In order.
    norm : LayerNorm
        After the last block.
    unembedding : Array
        Shape (width, vocabulary).
    """

    tokens: jax.Array
    positions: jax.Array
    blocks: list[Block]
    norm: LayerNorm
    unembedding: jax.Array

    def __init__(
        self, vocabulary: int, context: int, width: int, heads: int, blocks: int, activation: str, *, key
    ) -> None:
        token_key, position_key, last_key, *keys = jax.random.split(key, 3 + blocks)
        self.tokens = jax.random.normal(token_key, (vocabulary, width), jnp.float64) * 0.5**0.5
        self.positions = jax.random.normal(position_key, (context, width), jnp.float64) * 0.5**0.5
        branch = (2 * blocks) ** -0.5
        self.blocks = [Block(width, heads, activation, branch, key=k) for k in keys]
        self.norm = LayerNorm(width)
        self.unembedding = 0.8 * random_matrix(last_key, width, vocabulary)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits for a batch of sequences.

        Parameters
        ----------
        x : Array
            Token numbers, integers of shape (n, T) with T at most the context.

        Returns
        -------
        Array
            Shape (n, T, vocabulary).
        """
        stream = self.tokens[x] + self.positions[: x.shape[1]]
        for block in self.blocks:
            stream = block(stream)
        return self.norm(stream) @ self.unembedding


def random_matrix(key: jax.Array, rows: int, columns: int) -> jax.Array:
    """Normal numbers of variance 1/rows, shape (rows, columns)."""
    return jax.random.normal(key, (rows, columns), jnp.float64) / rows**0.5


def check_heads(heads: int, width: int) -> None:
    """Refuse heads that do not share the width evenly.

    Raises
    ------
    InvalidInput
        If they do not divide it.
    """
    if width % heads:
        raise InvalidInput(f"heads={heads} must divide width={width}")


def causal_transformer(
    *, vocabulary: int, context: int, width: int, heads: int, blocks: int, activation: str = "gelu"
) -> Network:
    """Decoder-only transformer, initialised as `Transformer` says.

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
        From tokens (n, T) to logits (n, T, vocabulary).

    Raises
    ------
    InvalidInput
        If the heads do not divide the width.
    """
    check_heads(heads, width)
    description = (
        f"{activation} transformer, {blocks} blocks of width {width} and {heads} heads, context {context}"
    )
    return network(
        lambda key: Transformer(vocabulary, context, width, heads, blocks, activation, key=key), description
    )
