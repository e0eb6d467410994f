"""Convolution and pooling that are fast on CPUs; on accelerators they are XLA's."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

# He et al. 2015, fan out, as torchvision initialises its convolutions.
_KERNEL_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_LAYOUT = ("NHWC", "HWIO", "NHWC")
# With more channels on either side, XLA's CPU backend calls a fast library for the convolution.
_FEW_CHANNELS = 16


def convolution(
    features: int, size: int, *, stride: int = 1, dtype: jnp.dtype, name: str, bias: bool = False
) -> nn.Module:
    """Builds a convolution with PyTorch's symmetric padding (Flax's SAME is uneven at stride 2).

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
        conv_general_dilated=_called_by_flax,
        name=name,
    )


def _called_by_flax(
    images: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding: Any, **_: Any
) -> jax.Array:
    """Replaces `lax.conv_general_dilated`; the other arguments have their defaults."""
    return convolve(images, kernel, strides[0])


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(images: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolves images padded with `size // 2` pixels of zeros.

    Args:
      images: [B, H, W, C].
      kernel: [size, size, C, F] of the same dtype, size odd.
      stride: in both directions.

    Returns:
      [B, ceil(H / stride), ceil(W / stride), F].
    """
    few = max(kernel.shape[2:]) <= _FEW_CHANNELS
    if few and stride == 1 and kernel.shape[0] == 3 and images.shape[2] % 2 == 0:
        return jax.lax.platform_dependent(images, kernel, cpu=_packed, default=_plain)
    return _plain(images, kernel, stride)


def _forward(
    images: jax.Array, kernel: jax.Array, stride: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve(images, kernel, stride), (images, kernel)


def _backward(
    stride: int, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    plain, on_cpu = partial(_plain_backward, stride), partial(_cpu_backward, stride)
    return jax.lax.platform_dependent(*residuals, gradient, cpu=on_cpu, default=plain)


convolve.defvjp(_forward, _backward)


def _plain(images: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """XLA's convolution."""
    padding = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        images, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=_LAYOUT
    )


def _plain_backward(
    stride: int, images: jax.Array, kernel: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """XLA's gradients by images and kernel."""
    return jax.vjp(partial(_plain, stride=stride), images, kernel)[1](gradient)


def _cpu_backward(
    stride: int, images: jax.Array, kernel: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Computes the gradients on CPUs; without the barrier, copying loops recompute the inputs."""
    images, gradient = jax.lax.optimization_barrier((images, gradient))
    by_images = jax.linear_transpose(lambda x: _plain(x, kernel, stride), images)
    return by_images(gradient)[0], _kernel_gradient(images, gradient, kernel.shape[0], stride)


def _kernel_gradient(images: jax.Array, gradient: jax.Array, size: int, stride: int) -> jax.Array:
    """Computes a kernel's gradient [size, size, C, F]: channels as images, images as channels.

    Written in the order of axes that the CPU backend has a fast program for. The backend changes to
    that order by itself only outside of loops, and would be a hundred times slower inside.
    """
    padding = [
        (size // 2, size - size // 2 - length + (steps - 1) * stride)
        for length, steps in zip(images.shape[1:3], gradient.shape[1:3], strict=True)
    ]
    result = jax.lax.conv_general_dilated(
        images.transpose(3, 1, 2, 0),
        gradient.transpose(1, 2, 0, 3),
        (1, 1),
        padding,
        rhs_dilation=(stride, stride),
        dimension_numbers=_LAYOUT,
    )
    return result.transpose(1, 2, 0, 3)


def _packed(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """3×3 convolution at stride 1 with two neighbouring pixels of a row packed into 2C channels.

    Half of the larger kernel is zero, but it is four times faster for 3 channels to 16.
    """
    batch, height, width, channels = images.shape
    features = kernel.shape[-1]
    pairs = images.reshape(batch, height, width // 2, 2 * channels)
    wide = jnp.einsum("dsqt,htcf->hdscqf", jnp.asarray(_PAIRS, kernel.dtype), kernel)
    result = _plain(pairs, wide.reshape(3, 3, 2 * channels, 2 * features))
    return result.reshape(batch, height, width, features)


def _pair_taps() -> np.ndarray:
    """Makes [3, 2, 2, 3]: 1 if pixel s of pair d − 1 contributes to pixel q of a pair by a tap."""
    taps = np.zeros((3, 2, 2, 3), np.float32)
    for d, s, q in np.ndindex(3, 2, 2):
        tap = 2 * (d - 1) + s - q + 1
        if 0 <= tap < 3:
            taps[d, s, q, tap] = 1
    return taps


_PAIRS = _pair_taps()


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """Maximum of disjoint 2×2 windows; drops an odd last row or column, as PyTorch does.

    Args:
      x: [B, H, W, C].

    Returns:
      [B, H // 2, W // 2, C].
    """
    height, width = x.shape[1:3]
    return _pool_2x2(x[:, : height // 2 * 2, : width // 2 * 2])


@jax.custom_vjp
def _pool_2x2(x: jax.Array) -> jax.Array:
    """`max_pool_2x2` of even sides."""
    windows = _windows(x)
    # A reduction over one axis at the end: XLA's CPU backend computes elementwise operations again
    # in each use of the result, once with a slow memory order.
    return jnp.max(jnp.maximum(windows[:, :, 0], windows[:, :, 1]), axis=3)


def _windows(x: jax.Array) -> jax.Array:
    """Divides images [B, H, W, C] into windows [B, H / 2, 2, W / 2, 2, C]."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels)


def _pool_2x2_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes maxima, and the number uint8 of each maximum's pixel in its window of four."""
    windows = _windows(x)
    best, place = windows[:, :, 0, :, 0], jnp.uint8(0)
    for number in (1, 2, 3):
        other = windows[:, :, number // 2, :, number % 2]
        place = jnp.where(other > best, jnp.uint8(number), place)
        best = jnp.maximum(other, best)
    return _pool_2x2(x), place


def _pool_2x2_backward(place: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    batch, rows, columns, channels = gradient.shape
    numbers = jnp.arange(4, dtype=jnp.uint8).reshape(1, 1, 2, 1, 2, 1)
    is_maximum = place[:, :, None, :, None] == numbers
    zero = jnp.zeros((), gradient.dtype)
    by_pixel = jnp.where(is_maximum, gradient[:, :, None, :, None], zero)
    return (by_pixel.reshape(batch, 2 * rows, 2 * columns, channels),)


_pool_2x2.defvjp(_pool_2x2_forward, _pool_2x2_backward)
