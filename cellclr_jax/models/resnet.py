"""ResNet-18, 50 and 101 with torchvision's layers, so that public weights map one to one.

Parameter names follow torchvision's (`layer1.0.conv1` is `layer1_0/conv1`), kernels are stored as
[height, width, in, out]. A bottleneck has its stride in the 3×3 convolution (ResNet v1.5).
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from cellclr_jax.models.batch_norm import BatchNorm
from cellclr_jax.models.cpu_kernels import convolution

STAGE_WIDTHS = (64, 128, 256, 512)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions around a shortcut: the block of ResNet-18."""

    width: int
    stride: int
    dtype: jnp.dtype
    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / stride, W / stride, width]."""
        conv, norm = convolution, BatchNorm
        y = conv(self.width, 3, stride=self.stride, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(norm(train=train, dtype=self.dtype, name="bn1")(y))
        y = conv(self.width, 3, dtype=self.dtype, name="conv2")(y)
        y = norm(train=train, dtype=self.dtype, name="bn2", zero_scale=True)(y)
        return nn.relu(y + shortcut(x, y.shape[-1], self.stride, self.dtype, train=train))


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions around a shortcut: the block of ResNet-50 and 101."""

    width: int
    stride: int
    dtype: jnp.dtype
    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / stride, W / stride, 4 * width]."""
        conv, norm = convolution, BatchNorm
        y = conv(self.width, 1, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(norm(train=train, dtype=self.dtype, name="bn1")(y))
        y = conv(self.width, 3, stride=self.stride, dtype=self.dtype, name="conv2")(y)
        y = nn.relu(norm(train=train, dtype=self.dtype, name="bn2")(y))
        widened = conv(self.width * self.expansion, 1, dtype=self.dtype, name="conv3")
        y = normalized(widened, norm(train=train, dtype=self.dtype, name="bn3", zero_scale=True), y)
        return nn.relu(y + shortcut(x, y.shape[-1], self.stride, self.dtype, train=train))


def shortcut(
    x: jax.Array, features: int, stride: int, dtype: jnp.dtype, *, train: bool
) -> jax.Array:
    """Applies the identity, or a strided 1×1 convolution if the shape changes.

    Called inside a block's compact method, so that the parameters belong to that block.
    """
    if stride == 1 and x.shape[-1] == features:
        return x
    resized = convolution(features, 1, stride=stride, dtype=dtype, name="downsample_conv")
    norm = BatchNorm(train=train, dtype=dtype, name="downsample_bn")
    return normalized(resized, norm, x) if stride == 1 else norm(resized(x))


def normalized(pointwise: nn.Module, norm: BatchNorm, x: jax.Array) -> jax.Array:
    """Applies a 1×1 convolution to several times as many channels, then the normalisation.

    Training in bfloat16 is limited by memory bandwidth, so the product is not stored there.
    """
    if not norm.train or norm.dtype != jnp.bfloat16 or pointwise.is_initializing():
        return norm(pointwise(x))
    return norm(x, pointwise.get_variable("params", "kernel")[0, 0])


class ResNet(nn.Module):
    """A residual network without its classification layer.

    Attributes:
      block: BasicBlock or Bottleneck.
      depths: blocks in each of the four stages.
      dtype: of the computation; parameters, statistics and the result stay float32.
      remat: computes blocks again in the backward pass instead of storing intermediate values.
    """

    block: type[BasicBlock] | type[Bottleneck]
    depths: Sequence[int]
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Embeds images.

        Args:
          images: [B, H, W, C] float, any number of channels, sides of at least 32 pixels.
          train: whether batch normalisation uses the minibatch's statistics.

        Returns:
          Embeddings [B, 512 * expansion] float32, the spatial mean of the last stage.
        """
        run = nn.remat(_run, static_argnums=(2,)) if self.remat else _run
        x = images.astype(self.dtype)
        x = convolution(64, 7, stride=2, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(BatchNorm(train=train, dtype=self.dtype, name="bn1")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, (width, depth) in enumerate(zip(STAGE_WIDTHS, self.depths, strict=True), 1):
            for i in range(depth):
                stride = 2 if stage > 1 and i == 0 else 1
                block = self.block(width, stride, self.dtype, name=f"layer{stage}_{i}")
                x = run(block, x, train)
        return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)


def _run(block: nn.Module, x: jax.Array, train: bool) -> jax.Array:
    return block(x, train=train)
