"""Resampling: what geometric augmentations share.

By matrix products and sums of shifted copies wherever that can be: gathering single pixels is many
times slower on CPUs and on TPUs alike.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Pixels; a Gaussian this narrow is the identity, and its exponent still finite.
_SHARPEST = 1e-3


# On TPU the default product rounds to bfloat16, and pixels would differ from those of a CPU.
_EXACT = jax.lax.Precision.HIGHEST


class Span(NamedTuple):
    """Where a box lies along one axis of an image.

    Attributes:
      start: first pixel of the box, a whole number.
      length: of the box in pixels, a whole number from 1 on.
    """

    start: jax.Array | float
    length: jax.Array | float


def resample_box(image: jax.Array, rows: Span, columns: Span, height: int, width: int) -> jax.Array:
    """Cuts a box out of an image [H, W, C] and resizes it to [height, width, C]."""
    down = interpolation(rows, height, image.shape[0])
    return resample(image, down, interpolation(columns, width, image.shape[1]))


def resample(image: jax.Array, down: jax.Array, across: jax.Array) -> jax.Array:
    """Weights the rows of an image [H, W, C] by down [h, H] and its columns by across [w, W]."""
    return jnp.einsum("yh,xw,hwc->yxc", down, across, image, precision=_EXACT)


def interpolation(span: Span, size: int, source: int) -> jax.Array:
    """Weights [size, source] of linear interpolation, a triangle widened where it shrinks.

    Pixels outside the span have none, so that the result is that of a crop resized afterwards.
    """
    scale = span.length / size
    centers = (jnp.arange(size) + 0.5) * scale - 0.5
    pixels = jnp.arange(source) - span.start
    distance = jnp.abs(centers[:, None] - pixels[None, :])
    inside = (pixels >= 0) & (pixels < span.length)
    weights = jnp.where(inside, jnp.maximum(0.0, 1.0 - distance / jnp.maximum(scale, 1.0)), 0.0)
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def smooth_field(key: jax.Array, shape: tuple[int, int], smoothness: float) -> jax.Array:
    """White noise smoothed by a Gaussian of this width, of unit variance everywhere; [H, W].

    The noise lives on a grid of one sigma, finer noise would be the same after the Gaussian.
    """
    bases = []
    for side in shape:
        count = int(side / smoothness) + 9
        knots = (jnp.arange(count) - (count - 1) / 2) * smoothness + (side - 1) / 2
        basis = jnp.exp(-0.5 * ((jnp.arange(side)[:, None] - knots[None, :]) / smoothness) ** 2)
        bases.append(basis / jnp.linalg.norm(basis, axis=1, keepdims=True))
    noise = jax.random.normal(key, (bases[0].shape[1], bases[1].shape[1]))
    return jnp.einsum("yi,ij,xj->yx", bases[0], noise, bases[1], precision=_EXACT)


def warp_affine(image: jax.Array, matrix: jax.Array) -> jax.Array:
    """Bilinear interpolation at the places that an affine map gives, mirrored at the border.

    Args:
      image: [H, W, C].
      matrix: [2, 3], from the result's (x, y, 1) to the image's (x, y), in pixels; finite.

    Returns:
      [H, W, C]. Far outside, the border is mirrored again and again (x = -1 is x = 1).
    """
    height, width, _ = image.shape
    x, y = jnp.arange(width)[None, :], jnp.arange(height)[:, None]
    columns = _fold(matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2], width)
    rows = _fold(matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2], height)
    # A branch for each platform is chosen when the program is compiled for one.
    return jax.lax.platform_dependent(
        jnp.asarray(image), rows, columns, tpu=pixels_by_products, default=pixels_by_gathers
    )


def pixels_by_gathers(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Bilinear interpolation of [H, W, C] at places [h, w] within it; [h, w, C]."""
    top, left = jnp.floor(rows), jnp.floor(columns)
    down, right = (rows - top)[:, :, None], (columns - left)[:, :, None]
    rows, columns = top.astype(jnp.int32), left.astype(jnp.int32)
    # At the far border the weight of what would lie beyond is 0.
    below = jnp.minimum(rows + 1, image.shape[0] - 1)
    beside = jnp.minimum(columns + 1, image.shape[1] - 1)

    def pixels(rows: jax.Array, columns: jax.Array) -> jax.Array:
        return image.at[rows, columns].get(mode="promise_in_bounds")

    upper = (1.0 - right) * pixels(rows, columns) + right * pixels(rows, beside)
    lower = (1.0 - right) * pixels(below, columns) + right * pixels(below, beside)
    return (1.0 - down) * upper + down * lower


def pixels_by_products(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """The same for TPUs: a whole column of the image for each place, of which one row is taken.

    H times as many operations, all of them in the matrix unit, which single pixels keep waiting.
    """
    down = _triangles(rows, image.shape[0])
    across = _triangles(columns, image.shape[1])
    lines = jnp.einsum("yxw,hwc->cyxh", across, image, precision=_EXACT)
    return jnp.moveaxis(jnp.sum(down[None] * lines, axis=-1), 0, -1)


def _triangles(places: jax.Array, size: int) -> jax.Array:
    """Weights [h, w, size] of linear interpolation at places [h, w] within [0, size - 1]."""
    return jnp.maximum(0.0, 1.0 - jnp.abs(places[:, :, None] - jnp.arange(size)[None, None, :]))


def _fold(place: jax.Array, side: int) -> jax.Array:
    """Where a place lies once all mirrors at a side's ends are undone; in [0, side - 1]."""
    period = max(2 * (side - 1), 1)
    # A place that float32 cannot distinguish from the next pixel is rounded past the end.
    return jnp.clip(jnp.abs(place - period * jnp.round(place / period)), 0.0, side - 1.0)


def shift_along(image: jax.Array, shift: jax.Array, limit: float, axis: int) -> jax.Array:
    """Linear interpolation at position + shift along one axis; |shift| ≤ limit pixels, [H, W].

    A sum over whole-pixel shifts, each weighted by its triangle: no gather. A shift that leaves the
    image ends at its border, so that what lies beyond has no weight.
    """
    reach = math.ceil(limit)
    size = image.shape[axis]
    place = jax.lax.broadcasted_iota(shift.dtype, shift.shape, axis)
    shift = jnp.clip(shift, -place, size - 1 - place)
    padding = [(reach, reach, 0) if a == axis else (0, 0, 0) for a in range(3)]
    padded, shift = jax.lax.platform_dependent(
        image,
        jax.lax.pad(image, jnp.zeros((), image.dtype), padding),
        jnp.broadcast_to(shift[:, :, None], image.shape),
        cpu=_contiguous,
        default=_at_once,
    )
    total = jnp.zeros_like(image)
    for i in range(2 * reach + 1):
        weight = jnp.maximum(0.0, 1.0 - jnp.abs(shift - (i - reach)))
        total += weight * jax.lax.slice_in_dim(padded, i, i + size, axis=axis)
    return total


def _contiguous(
    image: jax.Array, padded: jax.Array, shift: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """For CPUs a loop over contiguous arrays: fused with what made them it takes twice as long."""
    return jax.lax.optimization_barrier((padded, shift))


def _at_once(image: jax.Array, padded: jax.Array, shift: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Elsewhere memory is the limit, and padding and weights are made within the loop.

    Were the shift the same for all channels, XLA would write the weights of every copy to memory
    beforehand, to compute them once a pixel: more than the images hold. So it depends on them.
    """
    return padded, shift + 0.0 * image


def gaussian_matrix(side: int, sigma: jax.Array, kernel: int) -> jax.Array:
    """Matrix [side, side] that correlates with a Gaussian of `kernel` taps, mirrored at the border.

    A product with it is half the cost of a sum of shifted copies on CPUs.
    """
    taps = jnp.arange(kernel) - kernel // 2
    weights = jnp.exp(-0.5 * (taps / jnp.maximum(sigma, _SHARPEST)) ** 2)
    weights = weights / jnp.sum(weights)
    reached = jnp.abs(jnp.arange(side)[:, None] + taps[None, :])
    reached = jnp.where(reached > side - 1, 2 * (side - 1) - reached, reached)
    hits = reached[:, :, None] == jnp.arange(side)[None, None, :]
    return jnp.einsum("t,itj->ij", weights, hits.astype(jnp.float32), precision=_EXACT)
