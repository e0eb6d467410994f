"""Batch normalisation as torchvision's layers have it, by name."""

import flax.linen as nn
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
