"""Convolutions with torch's padding and torchvision's initialisation, by name."""

import flax.linen as nn
import jax.numpy as jnp

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
