"""Random views of a cell, on the device: one function per operation, image and key in, image out.

Every operation is pure and takes one image [H, W, C] float32 of any range and number of channels;
`make_views` maps them over a minibatch. Operations that move pixels are in `geometry`, those that
change their values in `intensity`.

To add an operation, write a function `(image, key, *, settings) -> image` with a default for every
setting and add it to `OPERATIONS` at its place in the order; one that crops to a `size` also has an
entry in `geometry.CROPS`.
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
"""Every operation by its name, in the order in which they are applied."""


def view_keys(key: jax.Array, cells: int, views: int = 2) -> jax.Array:
    """Splits one key into the keys [cells, views] of the views of a minibatch.

    Cells may then be augmented in parts: the views of a cell depend on its own keys only.
    """
    return jax.random.split(key, (cells, views))


def two_views(key: jax.Array, images: jax.Array, config: Settings) -> jax.Array:
    """Two independently augmented views of each image; see `make_views`.

    Args:
      key: a PRNG key; the same key gives the same views, however the images are sharded.
      images: [B, H, W, C] float32.
      config: settings of each operation by its name in `OPERATIONS`.

    Returns:
      [B, 2, H, W, C] float32; H and W are a crop's `size` where that is set.

    Raises:
      ValueError: for an unknown operation or setting, or an image that does not fit.
    """
    return make_views(view_keys(key, len(images)), images, config)


def make_views(
    keys: jax.Array, images: jax.Array, config: Settings, *, size: int | None = None
) -> jax.Array:
    """Independently augmented views of each image.

    Args:
      keys: [B, V] keys of the views, from `view_keys`.
      images: [B, H, W, C] float32.
      config: settings of each operation by its name in `OPERATIONS`. Operations that it does not
        name, or whose probability is 0, are left out. Whatever the order in config, operations
        run in the order of `OPERATIONS`, and each draws from its own stream of random numbers:
        adding one changes no other.
      size: side of the views in pixels: crops without a `size` of their own take it, and where no
        operation crops, images are resized first. None keeps the images' size.

    Returns:
      [B, V, H, W, C] float32, with H and W as `size` or a crop's own `size` says.

    Raises:
      ValueError: for an unknown operation or setting, or an image that does not fit.
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
    # One map over all views: a nested one leaves the matrix products with an awkward inner batch.
    views = jax.vmap(partial(augment, settings=settings))(
        jnp.repeat(images, keys.shape[1], axis=0), keys.reshape(-1)
    )
    return views.reshape(*keys.shape, *views.shape[1:])


def resize_all(images: jax.Array, size: int) -> jax.Array:
    """Resizes images [B, H, W, C] to [B, size, size, C]."""
    return jax.vmap(partial(resize, size=size))(images)


def augment(image: jax.Array, key: jax.Array, settings: Settings) -> jax.Array:
    """Applies operations in the order of `OPERATIONS`, each with a key folded in by its name.

    A crop and the flips and quarter turns that directly follow it, in this order, are one
    resampling.

    Args:
      image: [H, W, C] float32.
      key: of this view.
      settings: all settings of each operation by its name.
    """
    keys = {name: jax.random.fold_in(key, zlib.crc32(name.encode())) for name in settings}
    waiting = [name for name in OPERATIONS if name in settings]
    while waiting:
        name, turns = waiting.pop(0), []
        for turn in TURNS if name in CROPS else ():
            if waiting[:1] == [turn]:
                turns.append(waiting.pop(0))
        if turns:
            image = crop_and_turn(image, keys, {n: settings[n] for n in (name, *turns)})
        else:
            image = OPERATIONS[name](image, keys[name], **settings[name])
    return image


def defaults_of(name: str) -> dict[str, Any]:
    """The settings of an operation with their defaults."""
    return dict(inspect.getfullargspec(OPERATIONS[name]).kwonlydefaults or {})


def _complete(config: Settings) -> dict[str, dict[str, Any]]:
    """The operations that do something, by their name, with all of their settings."""
    if unknown := set(config) - set(OPERATIONS):
        known = ", ".join(OPERATIONS)
        raise ValueError(f"unknown augmentation {sorted(unknown)}: choose among {known}")
    complete: dict[str, dict[str, Any]] = {}
    for name, given in config.items():
        settings, defaults = dict(given or {}), defaults_of(name)
        if superfluous := set(settings) - set(defaults):
            known = ", ".join(defaults)
            raise ValueError(f"{name} has no setting {sorted(superfluous)}: it has {known}")
        complete[name] = {**defaults, **settings}
    return {name: kept for name, kept in complete.items() if kept.get("probability") != 0}
