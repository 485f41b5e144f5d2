"""ResNet-50 of He et al. (arXiv:1512.03385), with the stride in the 3x3 convolution, equal blocks as scans."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from eos_sde.large_models.encoder import STACKED


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with batch norm, added to the input.

    Attributes
    ----------
    channels, stride : int
        Of the 3x3 convolution; the outputs have four times as many.
    project : bool
        Whether the input is brought to the shape of the outputs by a 1x1 convolution.
    dtype : dtype
        Of the arithmetic; weights are float32.
    """

    channels: int
    stride: int
    project: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Any, _: None = None) -> tuple[Any, None]:
        """Images (n, side, side, channels in), as a scan takes them."""

        def layer(x: Any, name: str, outputs: int, size: int, stride: int = 1) -> Any:
            kernel, strides = (size, size), (stride, stride)
            x = nn.Conv(outputs, kernel, strides, use_bias=False, dtype=self.dtype, name=name)(x)
            return nn.BatchNorm(False, dtype=self.dtype, name=f"{name}_norm")(x)

        inner = nn.relu(layer(x, "narrow", self.channels, 1))
        inner = nn.relu(layer(inner, "spatial", self.channels, 3, self.stride))
        inner = layer(inner, "widen", 4 * self.channels, 1)
        if self.project:
            x = layer(x, "project", 4 * self.channels, 1, self.stride)
        return nn.relu(inner + x), None


class ResNet(nn.Module):
    """Residual network of bottlenecks for images of 224 x 224 pixels, or of 32 x 32.

    Attributes
    ----------
    stages : tuple of int
        Blocks at each resolution.
    classes : int
        Outputs.
    dtype : dtype
        Of the arithmetic.
    small_images : bool
        Whether the first layer is a 3x3 convolution at full resolution, as for CIFAR (He et al., section 4.2),
        instead of 7x7 and pooling, each at every second pixel.
    """

    stages: tuple[int, ...]
    classes: int
    dtype: Any
    small_images: bool = False

    @nn.compact
    def __call__(self, images: Any) -> Any:
        """Images (n, side, side, 3) to logits (n, classes), float32; batch norm over the batch at hand."""
        size, stride = (3, 1) if self.small_images else (7, 2)
        kernel, strides = (size, size), (stride, stride)
        x = nn.Conv(64, kernel, strides, use_bias=False, dtype=self.dtype, name="stem")(images)
        x = nn.relu(nn.BatchNorm(False, dtype=self.dtype, name="stem_norm")(x))
        if not self.small_images:
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, blocks in enumerate(self.stages):
            channels = 64 * 2**stage
            first = Bottleneck(
                channels, 1 if stage == 0 else 2, True, self.dtype, name=f"stage_{stage}_first"
            )
            x, _ = first(x)
            scanned = nn.scan(
                nn.remat(Bottleneck, prevent_cse=False),
                variable_axes={"params": 0, "batch_stats": 0},
                split_rngs={"params": True},
                length=blocks - 1,
            )
            x, _ = scanned(channels, 1, False, self.dtype, name=f"stage_{stage}_{STACKED}")(x, None)
        return nn.Dense(self.classes, dtype=jnp.float32, name="head")(x.mean(axis=(1, 2)))
