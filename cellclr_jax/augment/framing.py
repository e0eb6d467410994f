"""A crop with its flips and quarter turns as one resampling: these cost no pass over pixels."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cellclr_jax.augment.geometry import (
    center_box,
    is_flipped,
    quarter_turns,
    random_box,
    require_square,
)
from cellclr_jax.augment.resampling import Span, resample_box

_BOXES: Mapping[str, Callable[..., tuple[Span, Span]]] = {
    "random_resized_crop": random_box,
    "center_crop": center_box,
}
_TURNS = ("flip_horizontal", "flip_vertical", "rotate_quarter")


def framing(settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of the configured operations that `frame` does at once, in their order; or none."""
    boxes = [name for name in _BOXES if name in settings]
    turns = [name for name in _TURNS if name in settings]
    return boxes + turns if len(boxes) == 1 and turns else []


def frame(
    image: jax.Array, keys: Mapping[str, jax.Array], settings: Mapping[str, Mapping[str, Any]]
) -> jax.Array:
    """One crop, then the flips and the quarter turn that are named, as these would do it in turn.

    Args:
      image: [H, W, C].
      keys: of each operation by its name.
      settings: all settings of each operation by its name.

    Returns:
      [size, size, C], or [H, W, C].

    Raises:
      ValueError: for a quarter turn of what is not square.
    """
    (name,) = (name for name in settings if name in _BOXES)
    box = dict(settings[name])
    size = box.pop("size")
    height, width = size or image.shape[0], size or image.shape[1]
    rows, columns = _BOXES[name](image.shape, keys[name], **box)
    if flip := settings.get("flip_horizontal"):
        columns = columns.mirror(is_flipped(keys["flip_horizontal"], **flip))
    if flip := settings.get("flip_vertical"):
        rows = rows.mirror(is_flipped(keys["flip_vertical"], **flip))
    if "rotate_quarter" not in settings:
        return resample_box(image, rows, columns, height, width)
    require_square((height, width))
    turns = quarter_turns(keys["rotate_quarter"], **settings["rotate_quarter"])
    # A turn by 90° mirrors the columns, one by 270° the rows, before it swaps them.
    rows, columns = rows.mirror(turns >= 2), columns.mirror((turns == 1) | (turns == 2))
    upright = resample_box(image, rows, columns, height, width)
    return jnp.where(turns % 2 == 1, jnp.swapaxes(upright, 0, 1), upright)
