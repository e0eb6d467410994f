"""Convolution and pooling that are fast on CPUs; on accelerators they are XLA's own."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

# He et al. 2015, fan out, as torchvision initialises its convolutions.
_KERNEL_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_LAYOUT = ("NHWC", "HWIO", "NHWC")
# XLA's CPU backend hands a convolution to its fast library where either side has more channels.
_FEW_CHANNELS = 16


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
        conv_general_dilated=_as_flax_calls_it,
        name=name,
    )


def _as_flax_calls_it(
    images: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding: Any, **_: Any
) -> jax.Array:
    """`convolve` in the place of `lax.conv_general_dilated`; what else is passed is the default."""
    return convolve(images, kernel, strides[0])


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(images: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolution with `size // 2` pixels of zeros around the images.

    Args:
      images: [B, H, W, C].
      kernel: [size, size, C, F] of the same dtype, size odd.
      stride: in both directions.

    Returns:
      [B, ceil(H / stride), ceil(W / stride), F].
    """
    if _packable(images, kernel, stride):
        return jax.lax.platform_dependent(images, kernel, cpu=_packed, default=_plain)
    return _plain(images, kernel, stride)


def _forward(
    images: jax.Array, kernel: jax.Array, stride: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve(images, kernel, stride), (images, kernel)


def _backward(
    stride: int, residuals: tuple[jax.Array, jax.Array], slope: jax.Array
) -> tuple[jax.Array, jax.Array]:
    plainly, on_cpu = partial(_backward_plainly, stride), partial(_backward_on_cpu, stride)
    return jax.lax.platform_dependent(*residuals, slope, cpu=on_cpu, default=plainly)


convolve.defvjp(_forward, _backward)


def _plain(images: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """The convolution as XLA has it."""
    around = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        images, kernel, (stride, stride), [(around, around)] * 2, dimension_numbers=_LAYOUT
    )


def _backward_plainly(
    stride: int, images: jax.Array, kernel: jax.Array, slope: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The gradients by images and kernel as XLA has them."""
    return jax.vjp(partial(_plain, stride=stride), images, kernel)[1](slope)


def _backward_on_cpu(
    stride: int, images: jax.Array, kernel: jax.Array, slope: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The same; what comes in is computed once, and not again in each loop that moves it about."""
    images, slope = jax.lax.optimization_barrier((images, slope))
    by_images = jax.linear_transpose(lambda x: _plain(x, kernel, stride), images)
    return by_images(slope)[0], _kernel_slope(images, slope, kernel.shape[0], stride)


def _kernel_slope(images: jax.Array, slope: jax.Array, size: int, stride: int) -> jax.Array:
    """A kernel's gradient [size, size, C, F]: channels as images, images as channels.

    It is written in the order of axes that the CPU backend has a fast program for. Of itself it
    would change to that order only outside of loops, and be a hundred times slower inside.
    """
    around = [
        (size // 2, size - size // 2 - length + (steps - 1) * stride)
        for length, steps in zip(images.shape[1:3], slope.shape[1:3], strict=True)
    ]
    result = jax.lax.conv_general_dilated(
        images.transpose(3, 1, 2, 0),
        slope.transpose(1, 2, 0, 3),
        (1, 1),
        around,
        rhs_dilation=(stride, stride),
        dimension_numbers=_LAYOUT,
    )
    return result.transpose(1, 2, 0, 3)


def _packable(images: jax.Array, kernel: jax.Array, stride: int) -> bool:
    few = max(kernel.shape[2:]) <= _FEW_CHANNELS
    return few and stride == 1 and kernel.shape[0] == 3 and images.shape[2] % 2 == 0


def _packed(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """The 3×3 convolution at stride 1 with two neighbouring pixels of a row as one of 2C channels.

    Half of the larger kernel is zeros, and still it is four times faster for 3 channels to 16.
    """
    batch, height, width, channels = images.shape
    features = kernel.shape[-1]
    pairs = images.reshape(batch, height, width // 2, 2 * channels)
    wide = jnp.einsum("dsqt,htcf->hdscqf", jnp.asarray(_PAIRS, kernel.dtype), kernel)
    result = _plain(pairs, wide.reshape(3, 3, 2 * channels, 2 * features))
    return result.reshape(batch, height, width, features)


def _pair_taps() -> np.ndarray:
    """[3, 2, 2, 3]: 1 where pixel s of pair d − 1 meets pixel q of a pair under that tap."""
    taps = np.zeros((3, 2, 2, 3), np.float32)
    for d, s, q in np.ndindex(3, 2, 2):
        tap = 2 * (d - 1) + s - q + 1
        if 0 <= tap < 3:
            taps[d, s, q, tap] = 1
    return taps


_PAIRS = _pair_taps()


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """Maximum of disjoint 2×2 windows; an odd last row or column is dropped, as in torch.

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
    # A reduction over one axis at the end: XLA's CPU backend would compute anything elementwise
    # again wherever the result is used, in one place with the worst of strides.
    return jnp.max(jnp.maximum(windows[:, :, 0], windows[:, :, 1]), axis=3)


def _windows(x: jax.Array) -> jax.Array:
    """[B, H, W, C] to [B, H / 2, 2, W / 2, 2, C]."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels)


def _pool_2x2_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The maxima, and which of its window's four pixels each is, uint8."""
    windows = _windows(x)
    best, place = windows[:, :, 0, :, 0], jnp.uint8(0)
    for number in (1, 2, 3):
        other = windows[:, :, number // 2, :, number % 2]
        place = jnp.where(other > best, jnp.uint8(number), place)
        best = jnp.maximum(other, best)
    return _pool_2x2(x), place


def _pool_2x2_backward(place: jax.Array, slope: jax.Array) -> tuple[jax.Array]:
    batch, rows, columns, channels = slope.shape
    numbers = jnp.arange(4, dtype=jnp.uint8).reshape(1, 1, 2, 1, 2, 1)
    here = place[:, :, None, :, None] == numbers
    spread = jnp.where(here, slope[:, :, None, :, None], jnp.zeros((), slope.dtype))
    return (spread.reshape(batch, 2 * rows, 2 * columns, channels),)


_pool_2x2.defvjp(_pool_2x2_forward, _pool_2x2_backward)
