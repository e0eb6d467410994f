"""Operations that change pixel values: jitter, colour, blur, noise."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp

from cellclr_jax.augment.resampling import gaussian_matrix, resample

Range = tuple[float, float]


def jitter_channels(
    image: jax.Array,
    key: jax.Array,
    *,
    brightness: float = 0.4,
    contrast: float = 0.4,
    offset: float = 0.0,
    probability: float = 0.8,
) -> jax.Array:
    """Changes brightness b and contrast c of each channel separately: ((x - mean) · c + mean) · b.

    Args:
      image: [H, W, C].
      key: PRNG key.
      brightness: the factor b is uniform in [max(0, 1 - brightness), 1 + brightness].
      contrast: the factor c likewise; about the channel's mean.
      offset: a uniform number in ±offset is added last, in units of the image.
      probability: of changing an image.

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
    """Changes all channels by the same factors and offset; settings as in `jitter_channels`."""
    return _jitter(image, key, (1, 1, 1), brightness, contrast, offset, probability)


def grayscale(
    image: jax.Array,
    key: jax.Array,
    *,
    probability: float = 0.2,
    weights: tuple[float, ...] = (),
) -> jax.Array:
    """Replaces every channel by the mean of all, or by their weighted sum.

    Args:
      image: [H, W, C].
      key: PRNG key.
      probability: of changing an image.
      weights: of the C channels; () takes the mean. (0.299, 0.587, 0.114) gives luma.

    Returns:
      [H, W, C].

    Raises:
      ValueError: a wrong number of weights.
    """
    channels = image.shape[2]
    if weights and len(weights) != channels:
        raise ValueError(f"grayscale has {len(weights)} weights for {channels} channels")
    if weights:
        grey = jnp.sum(image * jnp.array(weights)[None, None, :], axis=2, keepdims=True)
    else:
        grey = jnp.mean(image, axis=2, keepdims=True)
    return jnp.where(jax.random.bernoulli(key, probability), grey, image)


def gaussian_blur(
    image: jax.Array,
    key: jax.Array,
    *,
    sigma: Range = (0.1, 2.0),
    kernel: int = 9,
    probability: float = 0.5,
) -> jax.Array:
    """Blurs by a Gaussian of random width, mirrored at the border, like torchvision's GaussianBlur.

    Args:
      image: [H, W, C].
      key: PRNG key.
      sigma: range of the standard deviation in pixels, uniform; 0 is no blur.
      kernel: odd number of taps.
      probability: of blurring an image.

    Returns:
      [H, W, C].
    """
    if kernel % 2 != 1 or kernel // 2 >= min(image.shape[:2]):
        raise ValueError(
            f"kernel of gaussian_blur is {kernel}: an odd number below twice the image's side, "
            f"{min(image.shape[:2])}, was expected"
        )
    on_key, sigma_key = jax.random.split(key)
    width = jax.random.uniform(sigma_key, minval=sigma[0], maxval=sigma[1])
    width = jnp.where(jax.random.bernoulli(on_key, probability), width, 0.0)
    height, columns, _ = image.shape
    down, across = (gaussian_matrix(side, width, kernel) for side in (height, columns))
    return resample(image, down, across)


def add_noise(
    image: jax.Array, key: jax.Array, *, deviation: Range = (0.0, 0.1), probability: float = 1.0
) -> jax.Array:
    """Adds white Gaussian noise of a random standard deviation, in units of the image."""
    if not 0 <= deviation[0] <= deviation[1]:
        raise ValueError(f"deviation {deviation}: a rising range of at least 0 was expected")
    on_key, level_key, noise_key = jax.random.split(key, 3)
    level = jax.random.uniform(level_key, minval=deviation[0], maxval=deviation[1])
    level = level * jax.random.bernoulli(on_key, probability)
    return image + level * jax.random.normal(noise_key, image.shape)


def drop_channel(image: jax.Array, key: jax.Array, *, probability: float = 0.2) -> jax.Array:
    """Replaces one channel, each equally often, by its mean."""
    on_key, channel_key = jax.random.split(key)
    channel = jax.random.randint(channel_key, (), 0, image.shape[2])
    is_dropped = (jnp.arange(image.shape[2]) == channel)[None, None, :]
    mean = jnp.mean(image, axis=(0, 1), keepdims=True)
    return jnp.where(is_dropped & jax.random.bernoulli(on_key, probability), mean, image)


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


Planes = tuple[jax.Array, jax.Array, jax.Array]

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a pixel's luma (ITU-R BT.601)."""

# Numbers of the three factors. They move a pixel away from black, the image's mean luma, its luma.
_BRIGHTNESS, _CONTRAST, _SATURATION = range(3)
_ORDERS = tuple(itertools.permutations((_BRIGHTNESS, _CONTRAST, _SATURATION)))


def color_jitter(
    image: jax.Array,
    key: jax.Array,
    *,
    brightness: float = 0.2,
    contrast: float = 0.2,
    saturation: float = 0.2,
    hue: float = 0.2,
    probability: float = 0.8,
) -> jax.Array:
    """Changes brightness, contrast, saturation and hue in random order, like torchvision's.

    Args:
      image: [H, W, 3] float32 in [0, 1].
      key: PRNG key.
      brightness: its factor is uniform in [max(0, 1 - brightness), 1 + brightness].
      contrast: its factor likewise; about the image's mean luma.
      saturation: its factor likewise; about each pixel's luma.
      hue: its shift is uniform in ±hue, as a share of the circle, at most 0.5.
      probability: of changing an image.

    Returns:
      [H, W, 3]; a changed image is clipped to [0, 1] after each of the four steps.

    Raises:
      ValueError: other than 3 channels, or a setting out of its range.
    """
    if image.shape[2] != 3:
        raise ValueError(f"color_jitter needs 3 channels, got {image.shape[2]}")
    if min(brightness, contrast, saturation) < 0 or not 0 <= hue <= 0.5:
        raise ValueError(
            f"color_jitter's brightness {brightness}, contrast {contrast}, saturation {saturation} "
            f"and hue {hue}: numbers of at least 0 were expected, a hue of at most 0.5"
        )
    on_key, factor_key, hue_key, order_key, turn_key = jax.random.split(key, 5)
    strengths = jnp.array([brightness, contrast, saturation])
    low, high = jnp.maximum(0.0, 1.0 - strengths), 1.0 + strengths
    factors = jax.random.uniform(factor_key, (3,), minval=low, maxval=high)
    shift = jax.random.uniform(hue_key, minval=-hue, maxval=hue)
    order = jnp.array(_ORDERS)[jax.random.randint(order_key, (), 0, len(_ORDERS))]
    turn = jax.random.randint(turn_key, (), 0, 4)
    jittered = _in_order(image, factors, shift, order, turn)
    return jnp.where(jax.random.bernoulli(on_key, probability), jittered, image)


def shift_hue(planes: Planes, shift: jax.Array | float) -> Planes:
    """Shifts the hue of each pixel; its value and saturation (HSV) stay.

    Args:
      planes: red, green and blue [H, W] float32 in [0, 1].
      shift: as a share of the circle.

    Returns:
      Planes in [0, 1].
    """
    red, green, blue = planes
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    # Hue in sixths of the circle, from the largest channel; without chroma it is arbitrary.
    sector = jnp.where(value == red, 0.0, jnp.where(value == green, 2.0, 4.0))
    of_others = jnp.where(value == green, blue - red, red - green)
    ahead = jnp.where(value == red, green - blue, of_others) / jnp.where(chroma > 0, chroma, 1.0)
    turned = sector + ahead + 6.0 * shift

    def plane(offset: int) -> jax.Array:
        # A channel as a function of hue is a trapezium, with another offset for each channel.
        angle = offset + turned
        angle = angle - 6.0 * jnp.floor(angle / 6.0)  # `mod` takes twice as long
        return value - chroma * jnp.clip(jnp.minimum(angle, 4.0 - angle), 0.0, 1.0)

    return plane(5), plane(3), plane(1)


def _in_order(
    image: jax.Array, factors: jax.Array, shift: jax.Array, order: jax.Array, turn: jax.Array
) -> jax.Array:
    """Applies the three factors in their order, and the hue's shift before number `turn`.

    Under `vmap`, a choice among orders would compute all of them. Here all factors are applied both
    before and after the hue, as 1 in one of the two places, so that the slow hue is computed once.
    """

    def apply(number: jax.Array, planes: Planes, before: bool) -> Planes:
        kind = order[number]
        used = (number < turn) == before
        return _blend(planes, jnp.where(used, factors[kind], 1.0), kind)

    planes = (image[:, :, 0], image[:, :, 1], image[:, :, 2])
    # Loops: if they are unrolled, XLA computes each step again for every channel of the next.
    planes = jax.lax.fori_loop(0, 3, partial(apply, before=True), planes)
    planes = shift_hue(planes, shift)
    planes = jax.lax.fori_loop(0, 3, partial(apply, before=False), planes)
    return jnp.stack(planes, axis=2)


def _blend(planes: Planes, factor: jax.Array, kind: jax.Array) -> Planes:
    """Applies the factor of brightness, contrast or saturation, and clips to [0, 1]."""
    red, green, blue = planes
    luma = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    target = jnp.where(kind == _CONTRAST, jnp.mean(luma), luma)
    target = (1.0 - factor) * jnp.where(kind == _BRIGHTNESS, 0.0, target)

    def blended(plane: jax.Array) -> jax.Array:
        return jnp.clip(factor * plane + target, 0.0, 1.0)

    return blended(red), blended(green), blended(blue)
