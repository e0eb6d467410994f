"""Pooling with a gradient that is fast on each backend."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """Maximum of disjoint 2×2 windows; an odd last row or column is dropped, as in torch.

    Args:
      x: [B, H, W, C].

    Returns:
      [B, H // 2, W // 2, C]. By reshape and max, whose gradient is several times faster on CPUs
      than that of a window reduction.
    """
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return jnp.max(x, axis=(2, 4))


max_pool_3x3 = partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
"""torchvision's stem pooling: 3×3 windows at stride 2 with one pixel of padding."""
