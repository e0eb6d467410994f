"""What pixels hold: jitter, blur, noise, channels; image and key in, image out."""

import jax
import jax.numpy as jnp

from cellclr_jax.augment.resampling import gaussian_matrix

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
      probability: of changing an image at all.
      weights: of the channels, C of them; () takes the mean. (0.299, 0.587, 0.114) is luma.

    Returns:
      [H, W, C].

    Raises:
      ValueError: for another number of weights.
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
    down, across = (gaussian_matrix(side, width, kernel) for side in (height, columns))
    return jnp.einsum("yh,xw,hwc->yxc", down, across, image, precision=jax.lax.Precision.HIGHEST)


def add_noise(
    image: jax.Array, key: jax.Array, *, deviation: Range = (0.0, 0.1), probability: float = 1.0
) -> jax.Array:
    """Adds white Gaussian noise of a random standard deviation, in units of the image."""
    if not 0 <= deviation[0] <= deviation[1]:
        raise ValueError(f"deviation {deviation}: a rising range from 0 was expected")
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
