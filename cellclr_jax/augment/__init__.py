"""Random views of cells, computed on the device by operations that map an image to an image.

An operation is a pure function of one image [H, W, C] float32 of any range and number of channels;
`make_views` maps it over a minibatch. Operations that move pixels are in `geometry`, those that
change pixel values in `intensity`.

To add an operation, write a function `(image, key, *, settings) -> image` with a default for every
setting and add it to `OPERATIONS` at its place in the order; one that crops to a `size` also needs
an entry in `geometry.CROPS`.
"""

import inspect
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from cellclr_jax.augment.geometry import (
    CROPS,
    TURNS,
    center_crop,
    crop_and_turn,
    elastic,
    flip_horizontal,
    flip_vertical,
    random_resized_crop,
    resize,
    rotate,
    rotate_quarter,
)
from cellclr_jax.augment.intensity import (
    add_noise,
    color_jitter,
    drop_channel,
    gaussian_blur,
    grayscale,
    jitter_channels,
    jitter_joint,
)

__all__ = ["OPERATIONS", "augment", "make_views", "resize", "two_views", "view_keys"]

# Settings of each operation by its name.
Settings = Mapping[str, Mapping[str, Any]]

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
        color_jitter,
        grayscale,
        gaussian_blur,
        add_noise,
        drop_channel,
    )
}
"""Operations by name, in the order in which they are applied."""


def view_keys(key: jax.Array, cells: int, views: int = 2) -> jax.Array:
    """Splits one key into the keys [cells, views] of the views of a minibatch.

    The views of a cell depend only on its keys, so cells may be augmented in parts.
    """
    return jax.random.split(key, (cells, views))


def two_views(key: jax.Array, images: jax.Array, config: Settings) -> jax.Array:
    """Computes two independently augmented views of each image.

    Args:
      key: a PRNG key; views do not depend on how the images are sharded.
      images: [B, H, W, C] float32.
      config: see `make_views`.

    Returns:
      [B, 2, H, W, C] float32; H and W are a crop's `size` if that is set.

    Raises:
      ValueError: see `make_views`.
    """
    return make_views(view_keys(key, len(images)), images, config)


def make_views(
    keys: jax.Array, images: jax.Array, config: Settings, *, size: int | None = None
) -> jax.Array:
    """Computes independently augmented views of each image.

    Args:
      keys: [B, V] keys of the views, from `view_keys`.
      images: [B, H, W, C] float32.
      config: settings of each operation by its name in `OPERATIONS`. Operations that are missing
        here or have probability 0 are skipped. Operations run in the order of `OPERATIONS`, and
        each has a separate stream of random numbers: adding one does not change the others.
      size: side of the views in pixels, for crops without a setting `size`; without a crop, images
        are resized first. None keeps the images' size.

    Returns:
      [B, V, H, W, C] float32; H and W are the crop's setting `size`, or `size`.

    Raises:
      ValueError: an unknown operation or setting, or an image that does not fit.
    """
    if images.ndim != 4:
        raise ValueError(f"expected images [B, H, W, C], got shape {images.shape}")
    settings = _complete(config)
    if size is not None:
        crops = [name for name in settings if name in CROPS]
        settings |= {
            name: {**settings[name], "size": settings[name]["size"] or size} for name in crops
        }
        if not crops:
            images = resize_all(images, size)
    # One vmap over all views: matrix products with two batch axes are slower.
    views = jax.vmap(partial(augment, settings=settings))(
        jnp.repeat(images, keys.shape[1], axis=0), keys.reshape(-1)
    )
    return views.reshape(*keys.shape, *views.shape[1:])


def resize_all(images: jax.Array, size: int) -> jax.Array:
    """Resizes images [B, H, W, C] to [B, size, size, C]."""
    return jax.vmap(partial(resize, size=size))(images)


def augment(image: jax.Array, key: jax.Array, settings: Settings) -> jax.Array:
    """Applies operations in the order of `OPERATIONS`, each with a key derived from its name.

    A crop and the flips and quarter turns that directly follow it are done by one resampling.

    Args:
      image: [H, W, C] float32.
      key: of this view.
      settings: all settings of each operation by its name.
    """
    keys = {name: jax.random.fold_in(key, zlib.crc32(name.encode())) for name in settings}
    names = [name for name in OPERATIONS if name in settings]
    while names:
        name, *names = names
        if name not in CROPS:
            image = OPERATIONS[name](image, keys[name], **settings[name])
            continue
        together = {name: settings[name]}
        for turn in TURNS:
            if names[:1] == [turn]:
                together[turn] = settings[names.pop(0)]
        image = crop_and_turn(image, keys, together)
    return image


def defaults_of(name: str) -> dict[str, Any]:
    """Returns the default settings of an operation."""
    return dict(inspect.getfullargspec(OPERATIONS[name]).kwonlydefaults or {})


def _complete(config: Settings) -> dict[str, dict[str, Any]]:
    """Completes the settings of each operation with its defaults; skips those of probability 0."""
    if unknown := set(config) - set(OPERATIONS):
        raise ValueError(
            f"unknown augmentation {sorted(unknown)}: choose among {', '.join(OPERATIONS)}"
        )
    complete: dict[str, dict[str, Any]] = {}
    for name, settings in config.items():
        defaults = defaults_of(name)
        if unknown := set(settings or {}) - set(defaults):
            raise ValueError(
                f"{name} has no setting {sorted(unknown)}: it has {', '.join(defaults)}"
            )
        complete[name] = {**defaults, **(settings or {})}
    return {name: found for name, found in complete.items() if found.get("probability") != 0}
