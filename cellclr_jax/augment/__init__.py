"""Random views of a cell, on the device: one function an operation, image and key in, image out.

Every operation is pure and takes one image [H, W, C] float32 of any range and number of channels;
`two_views` maps them over a minibatch. Operations that move pixels lie in `geometry`, those that
change their values in `intensity` and `colour`.
"""

import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from cellclr_jax.augment.framing import frame, framing
from cellclr_jax.augment.geometry import (
    center_crop,
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

__all__ = ["OPERATIONS", "augment", "resize", "two_views", "view_keys"]

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
"""Every operation by its name, in the order in which `two_views` applies them."""


def view_keys(key: jax.Array, cells: int) -> jax.Array:
    """The keys [cells, 2] of the views that `two_views` makes from one key.

    Cells may then be viewed in parts: each meets its own two keys, whichever others are beside it.
    """
    return jax.random.split(key, (cells, 2))


def two_views(
    key: jax.Array, images: jax.Array, config: Mapping[str, Mapping[str, Any]]
) -> jax.Array:
    """Two independently augmented views of each image.

    Args:
      key: a PRNG key; the same key gives the same views, however the images are sharded. Or the
        keys [B, 2] of these very views, from `view_keys`.
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
    view = partial(augment, settings=_complete(config))
    keys = (key if key.ndim else view_keys(key, images.shape[0])).reshape(-1)
    # One map over all views: a nested one leaves the matrix products with an awkward inner batch.
    views = jax.vmap(view)(jnp.repeat(images, 2, axis=0), keys)
    return views.reshape(images.shape[0], 2, *views.shape[1:])


def augment(
    image: jax.Array, key: jax.Array, settings: Mapping[str, Mapping[str, Any]]
) -> jax.Array:
    """Applies operations in the order of `OPERATIONS`, each with a key folded in by its name.

    Args:
      image: [H, W, C] float32.
      key: of this view.
      settings: all settings of each operation by its name.
    """
    keys = {name: jax.random.fold_in(key, zlib.crc32(name.encode())) for name in settings}
    at_once = framing(settings)
    if at_once:
        image = frame(image, keys, {name: settings[name] for name in at_once})
    for name, operation in OPERATIONS.items():
        if name in settings and name not in at_once:
            image = operation(image, keys[name], **settings[name])
    return image


def _complete(config: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The operations that do something, by their name, with all of their settings."""
    if unknown := set(config) - set(OPERATIONS):
        known = ", ".join(OPERATIONS)
        raise ValueError(f"unknown augmentation {sorted(unknown)}: choose among {known}")
    complete: dict[str, dict[str, Any]] = {}
    for name, given in config.items():
        settings, defaults = dict(given or {}), OPERATIONS[name].__kwdefaults__ or {}
        if superfluous := set(settings) - set(defaults):
            known = ", ".join(defaults)
            raise ValueError(f"{name} has no setting {sorted(superfluous)}: it has {known}")
        if settings.get("probability") != 0:
            complete[name] = {**defaults, **settings}
    return complete
