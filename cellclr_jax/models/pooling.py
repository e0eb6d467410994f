"""Pooling with a gradient that is fast on each backend; of equal maxima the first gets it."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp


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

_pool_3x3_plainly = partial(
    nn.max_pool, window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1))
)


@jax.custom_vjp
def max_pool_3x3(x: jax.Array) -> jax.Array:
    """torchvision's stem pooling: 3×3 windows at stride 2 with one pixel of padding.

    Args:
      x: [B, H, W, C].

    Returns:
      [B, ceil(H / 2), ceil(W / 2), C]. On CPUs one axis is pooled after the other, which is several
      times faster than a window reduction, above all backwards.
    """
    return jax.lax.platform_dependent(x, cpu=_pool_by_axes, default=_pool_3x3_plainly)


def _pool_3x3_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return max_pool_3x3(x), x


def _pool_3x3_backward(x: jax.Array, slope: jax.Array) -> tuple[jax.Array]:
    def plainly(x: jax.Array, slope: jax.Array) -> jax.Array:
        return jax.vjp(_pool_3x3_plainly, x)[1](slope)[0]

    return (jax.lax.platform_dependent(x, slope, cpu=_spread_by_axes, default=plainly),)


max_pool_3x3.defvjp(_pool_3x3_forward, _pool_3x3_backward)


def _pool_by_axes(x: jax.Array) -> jax.Array:
    return _pool_axis(_pool_axis(x, 2), 1)


def _spread_by_axes(x: jax.Array, slope: jax.Array) -> jax.Array:
    return _spread_axis(x, _spread_axis(_pool_axis(x, 2), slope, 1), 2)


def _pool_axis(x: jax.Array, axis: int) -> jax.Array:
    """Maxima of three neighbours at stride 2 along one axis."""
    before, middle, after = _neighbours(x, axis)
    return jnp.maximum(jnp.maximum(before, middle), after)


def _spread_axis(x: jax.Array, slope: jax.Array, axis: int) -> jax.Array:
    """Takes the gradient by `_pool_axis(x, axis)` back to x."""
    before, middle, after = _neighbours(x, axis)
    is_before = (before >= middle) & (before >= after)
    is_middle = ~is_before & (middle >= after)
    zero = jnp.zeros((), slope.dtype)
    to_before = jnp.where(is_before, slope, zero)
    to_middle = jnp.where(is_middle, slope, zero)
    to_after = jnp.where(is_before | is_middle, zero, slope)
    # An odd pixel lies after the middle of its window and before that of the next one.
    end = [(0, 0)] * x.ndim
    end[axis] = (0, 1)
    to_odd = to_after + jnp.pad(jax.lax.slice_in_dim(to_before, 1, None, axis=axis), end)
    shape = list(x.shape)
    shape[axis] = 2 * slope.shape[axis]
    both = jnp.stack([to_middle, to_odd], axis=axis + 1).reshape(shape)
    return jax.lax.slice_in_dim(both, 0, x.shape[axis], axis=axis)


def _neighbours(x: jax.Array, axis: int) -> list[jax.Array]:
    """The pixels before, in and after the middle of each window along an axis."""
    windows = -(-x.shape[axis] // 2)
    around = [(0, 0)] * x.ndim
    around[axis] = (1, 2 * windows - x.shape[axis])
    x = jnp.pad(x, around, constant_values=-jnp.inf)
    return [jax.lax.slice_in_dim(x, i, i + 2 * windows - 1, 2, axis) for i in range(3)]
