"""Large models: their definitions, batches as shapes, losses, and the recipes of real runs with their sources.

The definitions are put together from the layers of Flax, since a scan over equal blocks keeps the time of compilation
that of one block; their numbers of weights are those published.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from eos_sde.bridge.losses import cross_entropy
from solvers.errors import InvalidInput

PRECISIONS = ("bf16", "fp32")


@dataclass(frozen=True)
class LargeModel:
    """A model and the run that it is planned for.

    Attributes
    ----------
    name, description : str
        For people.
    build : callable
        Dtype of the arithmetic to a Flax module.
    batch : callable
        Number of examples to shapes: the module's inputs, then the labels.
    weights : int
        Published number of weights.
    examples : float
        In an epoch.
    epochs : float
        Of the recipe.
    data, source : str
        What the examples are, and where numbers come from.
    stacked : tuple of str
        Keys of weights whose first axis counts layers of a scan.
    """

    name: str
    description: str
    build: Callable[[Any], Any]
    batch: Callable[[int], tuple[jax.ShapeDtypeStruct, ...]]
    weights: int
    examples: float
    epochs: float
    data: str
    source: str
    stacked: tuple[str, ...]

    def shapes(self, precision: str) -> tuple[Any, Any]:
        """Shapes of the weights, and of what batch norm keeps beside them.

        Parameters
        ----------
        precision : {"bf16", "fp32"}
            Of the arithmetic.

        Returns
        -------
        (pytree, pytree)
            Of ShapeDtypeStruct.
        """
        module = self.build(_dtype(precision))
        inputs = self.batch(1)[:-1]
        variables = jax.eval_shape(module.init, jax.random.key(0), *inputs)
        return variables["params"], variables.get("batch_stats", {})

    def loss(self, precision: str) -> Callable[..., jax.Array]:
        """Mean loss as a function of the weights and a batch.

        Parameters
        ----------
        precision : {"bf16", "fp32"}
            Of the arithmetic.

        Returns
        -------
        callable
            (weights, *batch) to a scalar.
        """
        module, (_, kept) = self.build(_dtype(precision)), self.shapes(precision)

        def loss(weights: Any, *batch: jax.Array) -> jax.Array:
            *inputs, labels = batch
            averages = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), kept)
            outputs, _ = module.apply(
                {"params": weights, "batch_stats": averages}, *inputs, mutable=["batch_stats"]
            )
            return jnp.mean(cross_entropy(outputs, labels))

        return loss


def _dtype(precision: str) -> Any:
    if precision not in PRECISIONS:
        raise InvalidInput(f"precision={precision!r} is not known: choose one of {', '.join(PRECISIONS)}")
    return jnp.bfloat16 if precision == "bf16" else jnp.float32


def count_weights(weights: Any) -> int:
    """Numbers in all arrays of a pytree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(weights))


def _images(side: int) -> Callable[[int], tuple[jax.ShapeDtypeStruct, ...]]:
    def batch(examples: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        pixels = jax.ShapeDtypeStruct((examples, side, side, 3), jnp.float32)
        return pixels, jax.ShapeDtypeStruct((examples,), jnp.int32)

    return batch


def _text(length: int, masked: int) -> Callable[[int], tuple[jax.ShapeDtypeStruct, ...]]:
    def batch(examples: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        counts = (length, masked, masked)  # tokens, masked positions, what was there
        return tuple(jax.ShapeDtypeStruct((examples, count), jnp.int32) for count in counts)

    return batch


def _vit(width: int, blocks: int, heads: int, patch: int, classes: int) -> Callable[[Any], Any]:
    def build(dtype: Any) -> Any:
        from eos_sde.large_models.encoder import VisionTransformer

        return VisionTransformer(width, blocks, heads, 4 * width, patch, classes, dtype)

    return build


def _bert(width: int, blocks: int, heads: int, vocabulary: int, context: int) -> Callable[[Any], Any]:
    def build(dtype: Any) -> Any:
        from eos_sde.large_models.encoder import Bert

        return Bert(width, blocks, heads, 4 * width, vocabulary, context, dtype)

    return build


def _resnet(stages: tuple[int, ...], classes: int, *, small_images: bool = False) -> Callable[[Any], Any]:
    def build(dtype: Any) -> Any:
        from eos_sde.large_models.residual import ResNet

        return ResNet(stages, classes, dtype, small_images)

    return build


_IMAGENET = 1_281_167
_PUBMED = round(3.1e9 * 1.3 / 512)  # sequences: words, tokens of a word (an assumption), tokens of a sequence
_PUBMED_DATA = "PubMed abstracts, 3.1e9 words (arXiv:2007.15779) of 1.3 tokens, in sequences of 512"
_MEGATRON = "48 blocks of width 2560 and 40 heads, as the 3.9e9 weights of Megatron-LM's BERT"
_PASSES = "about 40 epochs, as Devlin et al., arXiv:1810.04805"

MODELS: dict[str, LargeModel] = {
    model.name: model
    for model in (
        LargeModel(
            "resnet-50", "ResNet-50, 224 x 224", _resnet((3, 4, 6, 3), 1000), _images(224), 25_557_032,
            _IMAGENET, 90, "ImageNet-1k", "He et al., arXiv:1512.03385; 90 epochs of Goyal et al., arXiv:1706.02677",
            tuple(f"stage_{stage}_blocks" for stage in range(4)),
        ),
        LargeModel(
            "resnet-50-cifar", "ResNet-50 for CIFAR-100, 32 x 32", _resnet((3, 4, 6, 3), 100, small_images=True),
            _images(32), 23_705_252, 50_000, 200, "CIFAR-100",
            "He et al., arXiv:1512.03385, with its first layer for CIFAR; 200 epochs of Zagoruyko and Komodakis, "
            "arXiv:1605.07146", tuple(f"stage_{stage}_blocks" for stage in range(4)),
        ),
        LargeModel(
            "vit-h-14", "ViT-H/14, 224 x 224", _vit(1280, 32, 16, 14, 1000), _images(224), 632_045_800,
            _IMAGENET, 200, "ImageNet-1k",
            "Dosovitskiy et al., arXiv:2010.11929; 200 epochs from scratch of He et al., arXiv:2111.06377",
            ("blocks",),
        ),
        LargeModel(
            "bert-large", "BERT-large, 512 tokens, 76 masked", _bert(1024, 24, 16, 30_522, 512), _text(512, 76),
            335_174_458, _PUBMED, 40, _PUBMED_DATA, _PASSES, ("blocks",),
        ),
        LargeModel(
            "bert-xxl", f"BERT-XXL, 512 tokens, 76 masked: {_MEGATRON}", _bert(2560, 48, 40, 30_522, 512),
            _text(512, 76), 3_862_520_122, _PUBMED, 40, _PUBMED_DATA,
            f"Shoeybi et al., arXiv:1909.08053; {_PASSES}", ("blocks",),
        ),
    )
}  # fmt: skip
"""By name."""
