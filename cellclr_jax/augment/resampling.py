"""Resampling of images, shared by geometric augmentations.

Uses matrix products and sums of shifted copies where possible: gathering single pixels is many
times slower on CPUs and TPUs.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Smallest sigma in pixels: the Gaussian is the identity, and its exponent is still finite.
_SHARPEST = 1e-3
# On TPU the default product rounds to bfloat16, and pixels would differ from those of a CPU.
_EXACT = jax.lax.Precision.HIGHEST


class Span(NamedTuple):
    """Extent of a box along one axis of an image.

    Attributes:
      start: first pixel of the box, a whole number.
      length: pixels of the box, a whole number of at least 1.
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
    """Weights [size, source] of linear interpolation: triangles, widened if the span shrinks.

    Pixels outside the span have weight 0, as if the span were cut out first and resized then.
    """
    scale = span.length / size
    centers = (jnp.arange(size) + 0.5) * scale - 0.5
    pixels = jnp.arange(source) - span.start
    distance = jnp.abs(centers[:, None] - pixels[None, :])
    inside = (pixels >= 0) & (pixels < span.length)
    weights = jnp.where(inside, jnp.maximum(0.0, 1.0 - distance / jnp.maximum(scale, 1.0)), 0.0)
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def smooth_field(key: jax.Array, shape: tuple[int, int], smoothness: float) -> jax.Array:
    """White noise [H, W] smoothed by a Gaussian, with unit variance everywhere.

    The noise is drawn on a grid of one sigma: a finer grid gives the same field.
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
    """Bilinear interpolation at the positions of an affine map, mirrored at the border.

    Args:
      image: [H, W, C].
      matrix: [2, 3], from the result's (x, y, 1) to the image's (x, y), in pixels; finite.

    Returns:
      [H, W, C]. Positions far outside are mirrored repeatedly (x = -1 is x = 1).
    """
    height, width, _ = image.shape
    x, y = jnp.arange(width)[None, :], jnp.arange(height)[:, None]
    columns = _fold(matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2], width)
    rows = _fold(matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2], height)
    # The compiler chooses the branch of its platform.
    return jax.lax.platform_dependent(
        jnp.asarray(image), rows, columns, tpu=pixels_by_products, default=pixels_by_gathers
    )


def pixels_by_gathers(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Bilinear interpolation of [H, W, C] at positions [h, w] within it; [h, w, C]."""
    top, left = jnp.floor(rows), jnp.floor(columns)
    down, right = (rows - top)[:, :, None], (columns - left)[:, :, None]
    rows, columns = top.astype(jnp.int32), left.astype(jnp.int32)
    # At the last row or column the next one has weight 0.
    next_rows = jnp.minimum(rows + 1, image.shape[0] - 1)
    next_columns = jnp.minimum(columns + 1, image.shape[1] - 1)

    def pixels(rows: jax.Array, columns: jax.Array) -> jax.Array:
        return image.at[rows, columns].get(mode="promise_in_bounds")

    upper = (1.0 - right) * pixels(rows, columns) + right * pixels(rows, next_columns)
    lower = (1.0 - right) * pixels(next_rows, columns) + right * pixels(next_rows, next_columns)
    return (1.0 - down) * upper + down * lower


def pixels_by_products(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Interpolates like `pixels_by_gathers`, for TPUs: a column for each position, then along it.

    Needs H times as many operations, but in the matrix unit, which gathers leave idle.
    """
    down = _triangles(rows, image.shape[0])
    across = _triangles(columns, image.shape[1])
    lines = jnp.einsum("yxw,hwc->cyxh", across, image, precision=_EXACT)
    return jnp.moveaxis(jnp.sum(down[None] * lines, axis=-1), 0, -1)


def _triangles(positions: jax.Array, size: int) -> jax.Array:
    """Weights [h, w, size] of linear interpolation at positions [h, w] in [0, size - 1]."""
    pixels = jnp.arange(size)[None, None, :]
    return jnp.maximum(0.0, 1.0 - jnp.abs(positions[:, :, None] - pixels))


def _fold(position: jax.Array, side: int) -> jax.Array:
    """Position in [0, side - 1] after mirroring at both ends as often as necessary."""
    period = max(2 * (side - 1), 1)
    # float32 may round a position past the end.
    return jnp.clip(jnp.abs(position - period * jnp.round(position / period)), 0.0, side - 1.0)


def shift_along(image: jax.Array, shift: jax.Array, limit: float, axis: int) -> jax.Array:
    """Linear interpolation at position + shift along one axis; |shift| ≤ limit pixels, [H, W].

    A sum over whole-pixel shifts with triangular weights, without a gather. A shift that leaves the
    image ends at its border.
    """
    reach = math.ceil(limit)
    size = image.shape[axis]
    position = jax.lax.broadcasted_iota(shift.dtype, shift.shape, axis)
    shift = jnp.clip(shift, -position, size - 1 - position)
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
    """For CPUs a loop over stored arrays: fused with their computation it takes twice as long."""
    return jax.lax.optimization_barrier((padded, shift))


def _at_once(image: jax.Array, padded: jax.Array, shift: jax.Array) -> tuple[jax.Array, jax.Array]:
    """On accelerators memory bandwidth is the limit: padding and weights are fused into the loop.

    If the shift were the same for all channels, XLA would compute the weights of every copy once a
    pixel and write them to memory, more than the images need. So the shift depends on the image.
    """
    return padded, shift + 0.0 * image


def gaussian_matrix(side: int, sigma: jax.Array, kernel: int) -> jax.Array:
    """Matrix [side, side] that correlates with a Gaussian of `kernel` taps, mirrored at the border.

    On CPUs a product with it takes half the time of a sum of shifted copies.
    """
    taps = jnp.arange(kernel) - kernel // 2
    weights = jnp.exp(-0.5 * (taps / jnp.maximum(sigma, _SHARPEST)) ** 2)
    weights = weights / jnp.sum(weights)
    reached = jnp.abs(jnp.arange(side)[:, None] + taps[None, :])
    reached = jnp.where(reached > side - 1, 2 * (side - 1) - reached, reached)
    hits = reached[:, :, None] == jnp.arange(side)[None, None, :]
    return jnp.einsum("t,itj->ij", weights, hits.astype(jnp.float32), precision=_EXACT)
