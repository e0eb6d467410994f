"""Raw intensities to the encoder's input, and the percentiles of a plate that this may need."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from cellclr_jax.data.minibatches import Cells

METHODS = ("zscore", "zscore_minmax", "percentile", "fixed")
IN_UNIT_RANGE = ("zscore_minmax", "percentile")
"""Methods whose images lie in [0, 1]."""

# Below this a crop's channel counts as constant and is left at zero instead of being blown up.
_SMALLEST_DEVIATION = 1e-6

_HIGHEST_LEVEL = 255.0


def normalize(
    images: jax.Array,
    method: str,
    *,
    low: jax.Array | None = None,
    high: jax.Array | None = None,
    bits: int = 0,
    legacy_invert: bool = False,
) -> jax.Array:
    """Normalises crops.

    Args:
      images: [B, H, W, C] of any unsigned or float dtype, raw intensities.
      method: `zscore`: each channel of each crop to mean 0, deviation 1; `zscore_minmax`: the same,
        then one joint scaling of the crop's channels to [0, 1] (the paper's); `percentile`: from
        [low, high] to [0, 1], clipped, where low and high are percentiles of the crop's plate;
        `fixed`: (x - low) / (high - low) with the same numbers for every crop, not clipped.
      low: [B, C] or [C] float32, for `percentile` and `fixed`.
      high: likewise, > low.
      bits: 8 rounds images in [0, 1] to 256 levels, as crops were stored that were published; 0
        does not.
      legacy_invert: turns level x of 256 into (256 - x) mod 256, as the published code did by
        accident: images are inverted, but what was 0 stays 0.

    Returns:
      [B, H, W, C] float32; a constant channel becomes 0 under `zscore`.

    Raises:
      ValueError: for an unknown method, low and high missing, other bits, or levels asked of
        images that are not in [0, 1].
    """
    check_method(method, bits, legacy_invert)
    x = images.astype(jnp.float32)
    if method in ("zscore", "zscore_minmax"):
        x = _zscore(x)
        x = _minmax(x) if method == "zscore_minmax" else x
    else:
        x = _scaled(x, method, low, high)
        x = jnp.clip(x, 0.0, 1.0) if method == "percentile" else x
    return _levels(x, legacy_invert) if bits else x


def standardize(images: jax.Array, mean: Sequence[float], deviation: Sequence[float]) -> jax.Array:
    """(x - mean) / deviation of each channel, the last thing before the encoder.

    Args:
      images: [..., C] float32.
      mean: C numbers; none leave images as they are.
      deviation: C numbers above 0, or none.
    """
    if not len(mean):
        return images
    shape = (1,) * (images.ndim - 1) + (-1,)
    center, scale = (jnp.asarray(v, jnp.float32).reshape(shape) for v in (mean, deviation))
    return (images - center) / scale


def check_method(method: str, bits: int = 0, legacy_invert: bool = False) -> None:
    """Raises ValueError for settings of `normalize` that do not exist or contradict each other."""
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    if bits not in (0, 8):
        raise ValueError(f"bits is {bits}: 0 or 8 was expected")
    if legacy_invert and not bits:
        raise ValueError("legacy_invert is defined on 256 levels: it needs bits 8")
    if bits and method not in IN_UNIT_RANGE:
        raise ValueError(f"bits needs images in [0, 1]: a method of {', '.join(IN_UNIT_RANGE)}")


def _levels(x: jax.Array, legacy_invert: bool) -> jax.Array:
    """Images in [0, 1] rounded to 256 levels."""
    level = jnp.round(x * _HIGHEST_LEVEL)
    if legacy_invert:
        level = jnp.mod(_HIGHEST_LEVEL + 1 - level, _HIGHEST_LEVEL + 1)
    return level / _HIGHEST_LEVEL


def _scaled(x: jax.Array, method: str, low: jax.Array | None, high: jax.Array | None) -> jax.Array:
    """(x - low) / (high - low)."""
    if low is None or high is None:
        raise ValueError(f"normalisation {method!r} needs low and high")
    low, high = (jnp.reshape(v, (-1, 1, 1, x.shape[-1])).astype(jnp.float32) for v in (low, high))
    return (x - low) / jnp.maximum(high - low, _SMALLEST_DEVIATION)


def _zscore(x: jax.Array) -> jax.Array:
    mean = jnp.mean(x, axis=(1, 2), keepdims=True)
    deviation = jnp.std(x, axis=(1, 2), keepdims=True)
    return (x - mean) / jnp.where(deviation > _SMALLEST_DEVIATION, deviation, jnp.inf)


def _minmax(x: jax.Array) -> jax.Array:
    low = jnp.min(x, axis=(1, 2, 3), keepdims=True)
    span = jnp.max(x, axis=(1, 2, 3), keepdims=True) - low
    return (x - low) / jnp.where(span > _SMALLEST_DEVIATION, span, jnp.inf)


def plate_percentiles(
    cells: Cells, *, low: float = 1.0, high: float = 99.9, per_plate: int = 256, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Percentiles of each channel over a random sample of each plate's cells.

    Where no plates are told, all cells are of one.

    Args:
      cells: the dataset.
      low: the lower percentile, 0 to 100.
      high: the upper one.
      per_plate: cells to read of each plate.
      seed: of the sample.

    Returns:
      (low, high), each [N, C] float32: every cell has its plate's.
    """
    rng = np.random.default_rng(seed)
    names = cells.table.get("plate", pd.Series("", cells.table.index))
    plates, codes = np.unique(names.to_numpy(str), return_inverse=True)
    table = np.empty((2, len(plates), cells.image_shape[-1]), np.float32)
    for i in range(len(plates)):
        members = np.flatnonzero(codes == i)
        sample = rng.choice(members, min(per_plate, len(members)), replace=False)
        images = cells.read(np.sort(sample))["image"]
        table[:, i] = np.percentile(images, (low, high), axis=(0, 1, 2))
    return table[0][codes], table[1][codes]
