"""Operations that move pixels: crops, flips, rotations, elastic deformation."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cellclr_jax.augment.resampling import (
    Span,
    interpolation,
    resample,
    resample_box,
    shift_along,
    smooth_field,
    warp_affine,
)

Range = tuple[float, float]

# Boxes that a random resized crop draws to find one that fits, as in torchvision.
_CROP_TRIES = 10

# A moved triangle with a smaller share of its area counts as a line: rounding errors of float32.
_FLAT = 1e-6


def random_resized_crop(
    image: jax.Array,
    key: jax.Array,
    *,
    area: Range = (0.08, 1.0),
    aspect: Range = (3 / 4, 4 / 3),
    size: int | None = None,
) -> jax.Array:
    """Cuts out a random box and resizes it to a square by antialiased linear interpolation.

    Like torchvision's RandomResizedCrop: boxes have whole pixels, and no pixel outside is read.

    Args:
      image: [H, W, C].
      key: PRNG key.
      area: range of the box's share of the image, uniform.
      aspect: range of width / height, uniform in its logarithm.
      size: side of the result in pixels; None keeps H and W.

    Returns:
      [size, size, C], or [H, W, C] without `size`.
    """
    rows, columns = random_box(image.shape, key, area=area, aspect=aspect)
    return resample_box(image, rows, columns, size or image.shape[0], size or image.shape[1])


def random_box(
    shape: tuple[int, ...], key: jax.Array, *, area: Range, aspect: Range
) -> tuple[Span, Span]:
    """Draws the rows and columns of the box of `random_resized_crop`, in whole pixels.

    Draws ten boxes and takes the first that fits. If none fits, takes the largest centred box with
    an aspect in the range.

    Args:
      shape: of the image, [H, W, ...].
      key: PRNG key.
      area: see `random_resized_crop`.
      aspect: see `random_resized_crop`.

    Raises:
      ValueError: a range is empty or out of bounds.
    """
    _require_share("area", area)
    if not 0 < aspect[0] <= aspect[1]:
        raise ValueError(f"aspect {aspect}: a rising range above 0 was expected")
    height, width = shape[:2]
    area_key, aspect_key, y_key, x_key = jax.random.split(key, 4)
    areas = jax.random.uniform(area_key, (_CROP_TRIES,), minval=area[0], maxval=area[1])
    low, high = jnp.log(aspect[0]), jnp.log(aspect[1])
    aspects = jnp.exp(jax.random.uniform(aspect_key, (_CROP_TRIES,), minval=low, maxval=high))
    widths = jnp.round(jnp.sqrt(areas * aspects * height * width))
    heights = jnp.round(jnp.sqrt(areas / aspects * height * width))
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first, any_fits = jnp.argmax(fits), jnp.any(fits)
    nearest = min(max(width / height, aspect[0]), aspect[1])
    fallback_h = max(1, min(height, round(width / nearest)))
    fallback_w = max(1, min(width, round(height * nearest)))
    box_h = jnp.where(any_fits, heights[first], fallback_h)
    box_w = jnp.where(any_fits, widths[first], fallback_w)
    top = jnp.floor(jax.random.uniform(y_key) * (height - box_h + 1))
    left = jnp.floor(jax.random.uniform(x_key) * (width - box_w + 1))
    top = jnp.where(any_fits, top, (height - fallback_h) // 2)
    left = jnp.where(any_fits, left, (width - fallback_w) // 2)
    return Span(top, box_h), Span(left, box_w)


def center_crop(
    image: jax.Array, key: jax.Array, *, fraction: Range = (0.5, 0.5), size: int | None = None
) -> jax.Array:
    """Cuts out a centred box with a random fraction of the image's side and resizes it to a square.

    Args:
      image: [H, W, C].
      key: PRNG key.
      fraction: range of the box's side as a share of the image's; equal ends make it fixed (0.5:
        the paper's 48 → 96).
      size: side of the result in pixels; None keeps H and W.

    Returns:
      [size, size, C], or [H, W, C] without `size`.
    """
    rows, columns = center_box(image.shape, key, fraction=fraction)
    return resample_box(image, rows, columns, size or image.shape[0], size or image.shape[1])


def center_box(shape: tuple[int, ...], key: jax.Array, *, fraction: Range) -> tuple[Span, Span]:
    """Draws the rows and columns of the box of `center_crop`, in whole pixels."""
    _require_share("fraction", fraction)
    share = jax.random.uniform(key, minval=fraction[0], maxval=fraction[1])

    def middle(side: int) -> Span:
        length = jnp.maximum(1.0, jnp.round(share * side))
        return Span(jnp.floor((side - length) / 2), length)

    return middle(shape[0]), middle(shape[1])


def resize(image: jax.Array, size: int) -> jax.Array:
    """Resamples an image [H, W, C] to [size, size, C] by antialiased linear interpolation."""
    height, width, _ = image.shape
    if (height, width) == (size, size):
        return image
    return resample_box(image, Span(0.0, height), Span(0.0, width), size, size)


def flip_horizontal(image: jax.Array, key: jax.Array, *, probability: float = 0.5) -> jax.Array:
    """Mirrors left and right."""
    return jnp.where(jax.random.bernoulli(key, probability), image[:, ::-1], image)


def flip_vertical(image: jax.Array, key: jax.Array, *, probability: float = 0.5) -> jax.Array:
    """Mirrors top and bottom."""
    return jnp.where(jax.random.bernoulli(key, probability), image[::-1], image)


def rotate_quarter(image: jax.Array, key: jax.Array, *, probability: float = 0.75) -> jax.Array:
    """Rotates a square image by 90°, 180° or 270°, each equally often.

    The default probability makes all four orientations equally frequent.
    """
    turns = _quarter_turns(image.shape, key, probability)
    image = jnp.where(turns % 2 == 1, jnp.swapaxes(image, 0, 1)[::-1], image)
    return jnp.where(turns >= 2, image[::-1, ::-1], image)


def _quarter_turns(shape: tuple[int, ...], key: jax.Array, probability: float) -> jax.Array:
    """Draws the number of quarter turns of `rotate_quarter`, 0 to 3."""
    if shape[0] != shape[1]:
        raise ValueError(f"rotate_quarter needs square images, got {shape[:2]}")
    on_key, turn_key = jax.random.split(key)
    return jax.random.randint(turn_key, (), 1, 4) * jax.random.bernoulli(on_key, probability)


def rotate(
    image: jax.Array, key: jax.Array, *, degrees: float = 180.0, probability: float = 1.0
) -> jax.Array:
    """Rotates about the centre by a uniform angle in ±degrees, bilinear, mirrored at the border.

    Except on TPUs it gathers single pixels, which is several times slower than other operations.
    """
    height, width, _ = image.shape
    on_key, angle_key = jax.random.split(key)
    angle = jnp.deg2rad(jax.random.uniform(angle_key, minval=-degrees, maxval=degrees))
    angle = jnp.where(jax.random.bernoulli(on_key, probability), angle, 0.0)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x, y = (width - 1) / 2, (height - 1) / 2
    matrix = [[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]]
    return warp_affine(image, jnp.array(matrix))


def elastic(
    image: jax.Array,
    key: jax.Array,
    *,
    displacement: float = 0.8,
    smoothness: float = 5.0,
    affine: float = 0.0,
    probability: float = 0.5,
) -> jax.Array:
    """Deforms by a smooth random field (Simard et al. 2003), one axis after the other.

    Args:
      image: [H, W, C].
      key: PRNG key.
      displacement: standard deviation of the shift along each axis, pixels; shifts are limited to
        three times this. The default is that of torchvision's ElasticTransform (alpha 50, sigma 5,
        with displacements in units of half the image's side).
      smoothness: standard deviation of the Gaussian that smooths the field, pixels.
      affine: reach of an `affine_map` that is applied before the field, pixels; 0 applies none.
      probability: of deforming an image, by both map and field.

    Returns:
      [H, W, C], bilinear; the border mirrored by the affine map, repeated by the field.

    Raises:
      ValueError: a negative displacement or affine, or a smoothness that is not positive.
    """
    if not (displacement >= 0 and smoothness > 0 and affine >= 0):
        raise ValueError(
            f"elastic's displacement {displacement}, smoothness {smoothness} and affine {affine}: "
            "at least 0, more than 0 and at least 0 were expected"
        )
    on_key, y_key, x_key = jax.random.split(key, 3)
    on = jax.random.bernoulli(on_key, probability)
    if affine:
        # A key of its own, so that the field does not depend on `affine`.
        matrix = affine_map(jax.random.fold_in(key, 3), image.shape, affine)
        image = jnp.where(on, warp_affine(image, matrix), image)
    return _displace(image, y_key, x_key, on, displacement, smoothness) if displacement else image


def affine_map(key: jax.Array, shape: tuple[int, ...], reach: float) -> jax.Array:
    """Draws an affine map that moves three corners of a centred square.

    As in the ElasticTransform of albumentations of 2021 (`alpha_affine`): the square's side is two
    thirds of the image's shorter side.

    Args:
      key: PRNG key.
      shape: of the image, [H, W, ...].
      reach: each coordinate of the three points moves by a uniform number of pixels in ±reach.

    Returns:
      [2, 3] float32, finite: from the result's (x, y, 1) to the image's (x, y). If the moved points
      are on one line, there is no such map, and all pixels come from (0, 0), as in OpenCV.
    """
    height, width = shape[:2]
    half, (x, y) = min(height, width) // 3, (width // 2, height // 2)
    points = jnp.array([(x + half, y + half), (x + half, y - half), (x - half, y - half)], float)
    moved = points + jax.random.uniform(key, (3, 2), minval=-reach, maxval=reach)
    (a, b), (c, d) = moved[0] - moved[2], moved[1] - moved[2]
    area = a * d - b * c
    on_line = jnp.abs(area) < _FLAT * 4 * half**2
    inverse = jnp.array([[d, -b], [-c, a]]) / jnp.where(on_line, 1.0, area)
    edges = jnp.stack([points[0] - points[2], points[1] - points[2]])
    # Rows are points here, so the map's matrix is the transpose of the solution.
    linear = jnp.matmul(inverse, edges, precision=jax.lax.Precision.HIGHEST).T
    offset = points[2] - jnp.sum(linear * moved[2][None, :], axis=1)
    return jnp.where(on_line, 0.0, jnp.concatenate([linear, offset[:, None]], axis=1))


def _displace(
    image: jax.Array,
    y_key: jax.Array,
    x_key: jax.Array,
    on: jax.Array,
    displacement: float,
    smoothness: float,
) -> jax.Array:
    """Moves pixels by a smooth field for each axis if `on`."""
    amplitude = displacement * on
    limit = 3 * displacement
    shape = (image.shape[0], image.shape[1])
    dx = jnp.clip(amplitude * smooth_field(x_key, shape, smoothness), -limit, limit)
    dy = jnp.clip(amplitude * smooth_field(y_key, shape, smoothness), -limit, limit)
    return shift_along(shift_along(image, dx, limit, axis=1), dy, limit, axis=0)


def _require_share(name: str, share: Range) -> None:
    if not 0 < share[0] <= share[1] <= 1:
        raise ValueError(f"{name} {share}: a rising range above 0, up to 1, was expected")


CROPS: Mapping[str, Callable[..., tuple[Span, Span]]] = {
    "random_resized_crop": random_box,
    "center_crop": center_box,
}
"""Operations that resize a box of the image to their setting `size`: the function of the box."""
TURNS = ("flip_horizontal", "flip_vertical", "rotate_quarter")
"""Operations that `crop_and_turn` can combine with a crop, in the order of their application."""


def crop_and_turn(
    image: jax.Array, keys: Mapping[str, jax.Array], settings: Mapping[str, Mapping[str, Any]]
) -> jax.Array:
    """Applies a crop, then flips and quarter turns, as one resampling with mirrored weights.

    Args:
      image: [H, W, C].
      keys: of each operation by its name.
      settings: all settings of each operation by its name: one of `CROPS` first, then any of
        `TURNS`, which are applied in the order of `TURNS`.

    Returns:
      [size, size, C], or [H, W, C] without a setting `size` of the crop.

    Raises:
      ValueError: a quarter turn of an image that is not square.
    """
    crop = next(iter(settings))
    box = dict(settings[crop])
    size = box.pop("size")
    height, width = size or image.shape[0], size or image.shape[1]
    rows, columns = CROPS[crop](image.shape, keys[crop], **box)
    down = interpolation(rows, height, image.shape[0])
    across = interpolation(columns, width, image.shape[1])

    def mirrored(weights: jax.Array, on: jax.Array) -> jax.Array:
        return jnp.where(on, weights[::-1], weights)

    def drawn(name: str) -> jax.Array:
        return jax.random.bernoulli(keys[name], settings[name]["probability"])

    if "flip_horizontal" in settings:
        across = mirrored(across, drawn("flip_horizontal"))
    if "flip_vertical" in settings:
        down = mirrored(down, drawn("flip_vertical"))
    if "rotate_quarter" not in settings:
        return resample(image, down, across)
    turns = _quarter_turns(
        (height, width), keys["rotate_quarter"], settings["rotate_quarter"]["probability"]
    )
    # A turn by 90° mirrors and transposes, one by 180° mirrors along both axes.
    odd, half = turns % 2 == 1, turns >= 2
    upright = resample(image, mirrored(down, half), mirrored(across, jnp.logical_xor(odd, half)))
    return jnp.where(odd, jnp.swapaxes(upright, 0, 1), upright)
