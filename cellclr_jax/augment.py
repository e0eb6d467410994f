"""Random views of a cell, on the device: one function an operation, image and key in, image out.

Every operation is pure and takes one image [H, W, C] float32 of any range and number of channels;
`two_views` maps them over a minibatch. Resampling is done by matrix products and by sums of shifted
copies, since gathering single pixels is many times slower on CPUs and on TPUs alike.
"""

import math
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

Range = tuple[float, float]

# How many boxes a random resized crop draws before it takes the whole image, as in torchvision.
_CROP_TRIES = 10

# Pixels; a Gaussian this narrow is the identity, and its exponent still finite.
_SHARPEST = 1e-3


def two_views(
    key: jax.Array, images: jax.Array, config: Mapping[str, Mapping[str, Any]]
) -> jax.Array:
    """Two independently augmented views of each image.

    Args:
      key: a PRNG key; the same key gives the same views, however the images are sharded.
      images: [B, H, W, C] float32.
      config: settings of each operation by its name in `OPERATIONS`; one that is not named, or
        whose probability is 0, is left out. Whatever the order in config, operations run in the
        order of `OPERATIONS`, and each draws from its own stream: adding one changes no other.

    Returns:
      [B, 2, H, W, C] float32; H and W are a crop's `size` where that is set.

    Raises:
      ValueError: for an unknown operation or setting, or an image that does not fit.
    """
    if images.ndim != 4:
        raise ValueError(f"expected images [B, H, W, C], got shape {images.shape}")
    view = partial(augment, operations=_chain(config))
    keys = jax.random.split(key, images.shape[0] * 2)
    # One map over all views: a nested one leaves the matrix products with an awkward inner batch.
    views = jax.vmap(view)(jnp.repeat(images, 2, axis=0), keys)
    return views.reshape(images.shape[0], 2, *views.shape[1:])


def augment(image: jax.Array, key: jax.Array, operations: Mapping[str, Callable]) -> jax.Array:
    """Applies operations in their order, each with a key of its own folded in by its name."""
    for name, operation in operations.items():
        image = operation(image, jax.random.fold_in(key, zlib.crc32(name.encode())))
    return image


def random_resized_crop(
    image: jax.Array,
    key: jax.Array,
    *,
    area: Range = (0.08, 1.0),
    aspect: Range = (3 / 4, 4 / 3),
    size: int | None = None,
) -> jax.Array:
    """A random box resized to a square, as torchvision's RandomResizedCrop with antialiasing.

    Args:
      image: [H, W, C].
      key: PRNG key.
      area: range of the box's share of the image, uniform.
      aspect: range of width / height, uniform in its logarithm.
      size: side of the result in pixels; None keeps H and W.

    Returns:
      [size, size, C], or [H, W, C].
    """
    height, width, _ = image.shape
    area_key, aspect_key, y_key, x_key = jax.random.split(key, 4)
    areas = jax.random.uniform(area_key, (_CROP_TRIES,), minval=area[0], maxval=area[1])
    low, high = jnp.log(aspect[0]), jnp.log(aspect[1])
    aspects = jnp.exp(jax.random.uniform(aspect_key, (_CROP_TRIES,), minval=low, maxval=high))
    widths = jnp.sqrt(areas * aspects * height * width)
    heights = jnp.sqrt(areas / aspects * height * width)
    fits = (widths <= width) & (heights <= height)
    first = jnp.argmax(fits)
    box_h = jnp.where(fits[first], heights[first], height)
    box_w = jnp.where(fits[first], widths[first], width)
    top = jax.random.uniform(y_key) * (height - box_h)
    left = jax.random.uniform(x_key) * (width - box_w)
    return _resample(image, (top, box_h), (left, box_w), size or height, size or width)


def center_crop(
    image: jax.Array, key: jax.Array, *, fraction: Range = (0.5, 0.5), size: int | None = None
) -> jax.Array:
    """A centred box, its side a random fraction of the image's, resized to a square.

    Args:
      image: [H, W, C].
      key: PRNG key.
      fraction: range of the box's side as a share of the image's; equal ends make it fixed (0.5:
        the paper's 48 → 96).
      size: side of the result in pixels; None keeps H and W.

    Returns:
      [size, size, C], or [H, W, C].
    """
    height, width, _ = image.shape
    share = jax.random.uniform(key, minval=fraction[0], maxval=fraction[1])
    rows = (0.5 * (1 - share) * height, share * height)
    columns = (0.5 * (1 - share) * width, share * width)
    return _resample(image, rows, columns, size or height, size or width)


def resize(image: jax.Array, size: int) -> jax.Array:
    """Resamples an image [H, W, C] to [size, size, C] by antialiased linear interpolation."""
    height, width, _ = image.shape
    if (height, width) == (size, size):
        return image
    return _resample(image, (0.0, height), (0.0, width), size, size)


def flip_horizontal(image: jax.Array, key: jax.Array, *, probability: float = 0.5) -> jax.Array:
    """Mirrors left and right."""
    return jnp.where(jax.random.bernoulli(key, probability), image[:, ::-1], image)


def flip_vertical(image: jax.Array, key: jax.Array, *, probability: float = 0.5) -> jax.Array:
    """Mirrors top and bottom."""
    return jnp.where(jax.random.bernoulli(key, probability), image[::-1], image)


def rotate_quarter(image: jax.Array, key: jax.Array, *, probability: float = 0.75) -> jax.Array:
    """Rotates a square image by 90°, 180° or 270°, each equally often, else not at all.

    The default probability makes all four orientations equally frequent.
    """
    _require_square(image)
    on_key, turn_key = jax.random.split(key)
    turns = jax.random.randint(turn_key, (), 1, 4) * jax.random.bernoulli(on_key, probability)
    image = jnp.where(turns % 2 == 1, jnp.swapaxes(image, 0, 1)[::-1], image)
    return jnp.where(turns >= 2, image[::-1, ::-1], image)


def rotate(
    image: jax.Array, key: jax.Array, *, degrees: float = 180.0, probability: float = 1.0
) -> jax.Array:
    """Rotates about the centre by a uniform angle in ±degrees, bilinear, mirrored at the border.

    The one operation that gathers single pixels: several times the cost of the others.
    """
    height, width, _ = image.shape
    on_key, angle_key = jax.random.split(key)
    angle = jnp.deg2rad(jax.random.uniform(angle_key, minval=-degrees, maxval=degrees))
    angle = jnp.where(jax.random.bernoulli(on_key, probability), angle, 0.0)
    y = jnp.arange(height)[:, None] - (height - 1) / 2
    x = jnp.arange(width)[None, :] - (width - 1) / 2
    rows = jnp.cos(angle) * y + jnp.sin(angle) * x + (height - 1) / 2
    columns = -jnp.sin(angle) * y + jnp.cos(angle) * x + (width - 1) / 2
    take = partial(jax.scipy.ndimage.map_coordinates, order=1, mode="mirror")
    return jax.vmap(lambda c: take(c, [rows, columns]), in_axes=2, out_axes=2)(image)


def elastic(
    image: jax.Array,
    key: jax.Array,
    *,
    displacement: float = 1.6,
    smoothness: float = 5.0,
    probability: float = 0.5,
) -> jax.Array:
    """Elastic deformation by a smooth random field (Simard et al. 2003), one axis after the other.

    Args:
      image: [H, W, C].
      key: PRNG key.
      displacement: standard deviation of the shift along each axis, pixels; shifts are limited to
        three of it. The default is that of torchvision's ElasticTransform (alpha 50, sigma 5).
      smoothness: standard deviation of the Gaussian that smooths the field, pixels.
      probability: of deforming an image at all.

    Returns:
      [H, W, C], bilinear, the border repeated.
    """
    if displacement == 0:
        return image
    on_key, y_key, x_key = jax.random.split(key, 3)
    amplitude = displacement * jax.random.bernoulli(on_key, probability)
    limit = 3 * displacement
    shape = image.shape[:2]
    dx = jnp.clip(amplitude * _smooth_field(x_key, shape, smoothness), -limit, limit)
    dy = jnp.clip(amplitude * _smooth_field(y_key, shape, smoothness), -limit, limit)
    return _shift(_shift(image, dx, limit, axis=1), dy, limit, axis=0)


def jitter_channels(
    image: jax.Array,
    key: jax.Array,
    *,
    brightness: float = 0.4,
    contrast: float = 0.4,
    offset: float = 0.0,
    probability: float = 0.8,
) -> jax.Array:
    """Changes brightness and contrast of each channel on its own: (x - mean) · c + mean, then · b.

    Args:
      image: [H, W, C].
      key: PRNG key.
      brightness: the factor b is uniform in [max(0, 1 - brightness), 1 + brightness].
      contrast: the factor c likewise; about the channel's mean.
      offset: what is added at last is uniform in ±offset, in units of the image.
      probability: of changing an image at all.

    Returns:
      [H, W, C].
    """
    channels = (1, 1, image.shape[2])
    return _jitter(image, key, channels, brightness, contrast, offset, probability)


def jitter_joint(
    image: jax.Array,
    key: jax.Array,
    *,
    brightness: float = 0.4,
    contrast: float = 0.4,
    offset: float = 0.0,
    probability: float = 0.8,
) -> jax.Array:
    """Changes brightness and contrast of all channels by one draw, set as `jitter_channels`."""
    return _jitter(image, key, (1, 1, 1), brightness, contrast, offset, probability)


def grayscale(image: jax.Array, key: jax.Array, *, probability: float = 0.2) -> jax.Array:
    """Replaces every channel by the mean of all."""
    mean = jnp.mean(image, axis=2, keepdims=True)
    return jnp.where(jax.random.bernoulli(key, probability), mean, image)


def gaussian_blur(
    image: jax.Array,
    key: jax.Array,
    *,
    sigma: Range = (0.1, 2.0),
    kernel: int = 9,
    probability: float = 0.5,
) -> jax.Array:
    """Blurs by a Gaussian of random width, mirrored at the border, as torchvision's GaussianBlur.

    Args:
      image: [H, W, C].
      key: PRNG key.
      sigma: range of the standard deviation in pixels, uniform; 0 is no blur.
      kernel: odd number of taps.
      probability: of blurring an image at all.

    Returns:
      [H, W, C].
    """
    if kernel % 2 != 1 or kernel // 2 >= min(image.shape[:2]):
        raise ValueError(f"kernel of gaussian_blur must be odd and fit the image, got {kernel}")
    on_key, sigma_key = jax.random.split(key)
    width = jax.random.uniform(sigma_key, minval=sigma[0], maxval=sigma[1])
    width = jnp.where(jax.random.bernoulli(on_key, probability), width, 0.0)
    height, columns, _ = image.shape
    down, across = (_gaussian_matrix(side, width, kernel) for side in (height, columns))
    return jnp.einsum("yh,xw,hwc->yxc", down, across, image)


def add_noise(
    image: jax.Array, key: jax.Array, *, deviation: Range = (0.0, 0.1), probability: float = 1.0
) -> jax.Array:
    """Adds white Gaussian noise of a random standard deviation, in units of the image."""
    on_key, level_key, noise_key = jax.random.split(key, 3)
    level = jax.random.uniform(level_key, minval=deviation[0], maxval=deviation[1])
    level = level * jax.random.bernoulli(on_key, probability)
    return image + level * jax.random.normal(noise_key, image.shape)


def drop_channel(image: jax.Array, key: jax.Array, *, probability: float = 0.2) -> jax.Array:
    """Replaces one channel, each equally often, by its mean."""
    on_key, channel_key = jax.random.split(key)
    dropped = jax.random.randint(channel_key, (), 0, image.shape[2])
    here = (jnp.arange(image.shape[2]) == dropped)[None, None, :]
    mean = jnp.mean(image, axis=(0, 1), keepdims=True)
    return jnp.where(here & jax.random.bernoulli(on_key, probability), mean, image)


OPERATIONS: Mapping[str, Callable[..., jax.Array]] = {
    operation.__name__: operation
    for operation in (
        random_resized_crop,
        center_crop,
        flip_horizontal,
        flip_vertical,
        rotate_quarter,
        rotate,
        elastic,
        jitter_channels,
        jitter_joint,
        grayscale,
        gaussian_blur,
        add_noise,
        drop_channel,
    )
}
"""Every operation by its name, in the order in which `two_views` applies them."""


def _chain(config: Mapping[str, Mapping[str, Any]]) -> dict[str, Callable[..., jax.Array]]:
    """The configured operations with their settings, in the order of `OPERATIONS`."""
    if unknown := set(config) - set(OPERATIONS):
        known = ", ".join(OPERATIONS)
        raise ValueError(f"unknown augmentation {sorted(unknown)}: choose among {known}")
    chain = {}
    for name, operation in OPERATIONS.items():
        settings = dict(config.get(name) or {})
        if name not in config or settings.get("probability") == 0:
            continue
        if superfluous := set(settings) - set(operation.__kwdefaults__ or {}):
            known = ", ".join(operation.__kwdefaults__ or {})
            raise ValueError(f"{name} has no setting {sorted(superfluous)}: it has {known}")
        chain[name] = partial(operation, **settings)
    return chain


def _require_square(image: jax.Array) -> None:
    if image.shape[0] != image.shape[1]:
        raise ValueError(f"rotate_quarter needs square images, got {image.shape[:2]}")


def _resample(
    image: jax.Array,
    rows: tuple[jax.Array | float, jax.Array | float],
    columns: tuple[jax.Array | float, jax.Array | float],
    height: int,
    width: int,
) -> jax.Array:
    """Resizes the box (start, length) by (start, length) of [H, W, C] to [height, width, C]."""
    down = _interpolation(*rows, height, image.shape[0])
    across = _interpolation(*columns, width, image.shape[1])
    return jnp.einsum("yh,xw,hwc->yxc", down, across, image)


def _interpolation(
    start: jax.Array | float, length: jax.Array | float, size: int, source: int
) -> jax.Array:
    """Weights [size, source] of linear interpolation, a triangle widened where it shrinks."""
    scale = length / size
    centers = start + (jnp.arange(size) + 0.5) * scale - 0.5
    distance = jnp.abs(centers[:, None] - jnp.arange(source)[None, :])
    weights = jnp.maximum(0.0, 1.0 - distance / jnp.maximum(scale, 1.0))
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def _smooth_field(key: jax.Array, shape: tuple[int, int], smoothness: float) -> jax.Array:
    """White noise smoothed by a Gaussian of this width, of unit variance everywhere; [H, W].

    The noise lives on a grid of one sigma, which the Gaussian cannot tell from a finer one.
    """
    bases = []
    for side in shape:
        count = int(side / smoothness) + 9
        knots = (jnp.arange(count) - (count - 1) / 2) * smoothness + (side - 1) / 2
        basis = jnp.exp(-0.5 * ((jnp.arange(side)[:, None] - knots[None, :]) / smoothness) ** 2)
        bases.append(basis / jnp.linalg.norm(basis, axis=1, keepdims=True))
    noise = jax.random.normal(key, (bases[0].shape[1], bases[1].shape[1]))
    return bases[0] @ noise @ bases[1].T


def _shift(image: jax.Array, shift: jax.Array, limit: float, axis: int) -> jax.Array:
    """Linear interpolation at position + shift along one axis; |shift| ≤ limit pixels, [H, W].

    A sum over whole-pixel shifts, each weighted by its triangle: no gather. The barrier keeps the
    sum a loop over contiguous arrays; fused with what made them it takes twice as long on CPUs.
    """
    reach = math.ceil(limit)
    size = image.shape[axis]
    padding = [(reach, reach) if a == axis else (0, 0) for a in range(3)]
    padded, shift = jax.lax.optimization_barrier(
        (jnp.pad(image, padding, mode="edge"), jnp.broadcast_to(shift[:, :, None], image.shape))
    )
    total = jnp.zeros_like(image)
    for i in range(2 * reach + 1):
        weight = jnp.maximum(0.0, 1.0 - jnp.abs(shift - (i - reach)))
        total += weight * jax.lax.slice_in_dim(padded, i, i + size, axis=axis)
    return total


def _gaussian_matrix(side: int, sigma: jax.Array, kernel: int) -> jax.Array:
    """Matrix [side, side] that correlates with a Gaussian of `kernel` taps, mirrored at the border.

    A product with it is half the cost of a sum of shifted copies on CPUs.
    """
    taps = jnp.arange(kernel) - kernel // 2
    weights = jnp.exp(-0.5 * (taps / jnp.maximum(sigma, _SHARPEST)) ** 2)
    weights = weights / jnp.sum(weights)
    reached = jnp.abs(jnp.arange(side)[:, None] + taps[None, :])
    reached = jnp.where(reached > side - 1, 2 * (side - 1) - reached, reached)
    hits = reached[:, :, None] == jnp.arange(side)[None, None, :]
    return jnp.einsum("t,itj->ij", weights, hits.astype(jnp.float32))


def _jitter(
    image: jax.Array,
    key: jax.Array,
    shape: tuple[int, int, int],
    brightness: float,
    contrast: float,
    offset: float,
    probability: float,
) -> jax.Array:
    on_key, b_key, c_key, o_key = jax.random.split(key, 4)
    on = jax.random.bernoulli(on_key, probability)

    def factor(key: jax.Array, strength: float) -> jax.Array:
        low = max(0.0, 1.0 - strength)
        drawn = jax.random.uniform(key, shape, minval=low, maxval=1.0 + strength)
        return jnp.where(on, drawn, 1.0)

    axes = (0, 1) if shape[2] > 1 else (0, 1, 2)
    mean = jnp.mean(image, axis=axes, keepdims=True)
    shift = on * jax.random.uniform(o_key, shape, minval=-offset, maxval=offset)
    return ((image - mean) * factor(c_key, contrast) + mean) * factor(b_key, brightness) + shift
