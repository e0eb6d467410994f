"""Layers that several encoders share: normalisation by name, pooling with a fast gradient."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

# What torchvision's layers use: PyTorch's momentum 0.1 is Flax's 0.9.
BATCH_NORM_MOMENTUM = 0.9
BATCH_NORM_EPSILON = 1e-5


def batch_norm(*, train: bool, dtype: jnp.dtype, name: str, zero_scale: bool = False) -> nn.Module:
    """Batch normalisation over the whole (global) minibatch, statistics in float32.

    Args:
      train: uses the minibatch's statistics and updates the running ones; else the running ones.
      dtype: of the computation; parameters and statistics stay float32.
      name: of the parameters.
      zero_scale: starts the scale at 0, so that a residual block starts as the identity.
    """
    scale_init = nn.initializers.zeros if zero_scale else nn.initializers.ones
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=BATCH_NORM_MOMENTUM,
        epsilon=BATCH_NORM_EPSILON,
        dtype=dtype,
        scale_init=scale_init,
        name=name,
    )


# He et al. 2015, fan out, as torchvision initialises its convolutions.
_KERNEL_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def convolution(
    features: int, size: int, *, stride: int = 1, dtype: jnp.dtype, name: str, bias: bool = False
) -> nn.Module:
    """Convolution with torch's symmetric padding (Flax's SAME pads unevenly at stride 2).

    Args:
      features: output channels.
      size: side of the kernel, odd.
      stride: in both directions.
      dtype: of the computation; parameters stay float32.
      name: of the parameters.
      bias: adds one per channel.
    """
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=bias,
        dtype=dtype,
        kernel_init=_KERNEL_INIT,
        name=name,
    )


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
