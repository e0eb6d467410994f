"""The paper's small encoder: 3×3 convolutions with 2×2 max-pooling."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from cellclr_jax.models.batch_norm import BatchNorm
from cellclr_jax.models.cpu_kernels import convolution, max_pool_2x2


class CNN(nn.Module):
    """Convolution, normalisation, ReLU and 2×2 max-pooling for each width, then the spatial mean.

    Attributes:
      widths: output channels of the layers; the last one is the embedding's width D.
      norm: `none` (as published: convolutions with a bias) or `batch`.
      dtype: of the computation; parameters and the result stay float32.
      remat: computes layers again in the backward pass instead of storing intermediate values.
    """

    widths: Sequence[int] = (16, 32, 64, 64)
    norm: str = "none"
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Embeds images.

        Args:
          images: [B, H, W, C] float; sides of at least 2 ** len(widths) pixels.
          train: whether batch normalisation uses the minibatch's statistics.

        Returns:
          Embeddings [B, D] float32.

        Raises:
          ValueError: an unknown norm, no widths, or images too small for the poolings.
        """
        if self.norm not in ("none", "batch"):
            raise ValueError(f"norm of the CNN must be 'none' or 'batch', got {self.norm!r}")
        if min(self.widths, default=0) < 1:
            raise ValueError(f"widths of the CNN {self.widths}: one or more above 0 were expected")
        if min(images.shape[1:3]) < 2 ** len(self.widths):
            raise ValueError(
                f"images of {images.shape[1]}×{images.shape[2]} pixels are too small for "
                f"{len(self.widths)} poolings: {2 ** len(self.widths)} are needed"
            )
        layer = nn.remat(_layer, static_argnums=(2, 3)) if self.remat else _layer
        x = images.astype(self.dtype)
        for i in range(len(self.widths)):
            x = layer(self, x, i, train)
        return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)


def _layer(cnn: CNN, x: jax.Array, i: int, train: bool) -> jax.Array:
    """Applies layer i; called inside the network's compact method, it has the parameters there."""
    with_bias, dtype = cnn.norm == "none", cnn.dtype
    x = convolution(cnn.widths[i], 3, dtype=dtype, name=f"conv{i + 1}", bias=with_bias)(x)
    if cnn.norm == "batch":
        x = BatchNorm(train=train, dtype=dtype, name=f"bn{i + 1}")(x)
    return max_pool_2x2(nn.relu(x))
