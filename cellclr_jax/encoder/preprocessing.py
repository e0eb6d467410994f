"""Raw crops to the encoder's input, and the percentiles of a plate that this may need."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from cellclr_jax.augment import resize_all
from cellclr_jax.data.minibatches import Cells

METHODS = ("zscore", "zscore_minmax", "percentile", "fixed")
IN_UNIT_RANGE = ("zscore_minmax", "percentile")
"""Methods whose images lie in [0, 1]."""

# Below this a crop's channel counts as constant and is left at zero instead of being blown up.
_SMALLEST_DEVIATION = 1e-6

_HIGHEST_LEVEL = 255.0


@dataclass(frozen=True)
class Preprocessing:
    """Settings of `preprocess`; `check` refuses those that contradict each other.

    Attributes:
      size: side of the encoder's input in pixels.
      method, bits, legacy_invert: see `normalize`.
      low, high: a number for each channel, of the method `fixed`.
      mean, deviation: see `standardize`.
    """

    size: int
    method: str = "zscore"
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    bits: int = 0
    legacy_invert: bool = False
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()

    def check(self, channels: int) -> None:
        """Raises ValueError for settings that do not exist or do not fit the channels."""
        check_method(self.method, self.bits, self.legacy_invert)
        if self.method == "fixed" and not len(self.low) == len(self.high) == channels:
            raise ValueError(f"low and high need {channels} numbers, one for each channel")
        if (self.mean or self.deviation) and not (
            len(self.mean) == len(self.deviation) == channels
        ):
            raise ValueError(
                f"mean and deviation need {channels} numbers, one for each channel, or none"
            )
        if self.method == "zscore" and self.mean:
            raise ValueError(
                "mean and deviation are of images in [0, 1]; after a zscore they are 0 and 1: "
                "leave them empty, --config.normalization.mean='()' and .deviation='()'"
            )
        if not all(math.isfinite(d) and d > 0 for d in self.deviation):
            raise ValueError(f"deviation {self.deviation}: numbers above 0 were expected")
        if not all(map(math.isfinite, self.mean)):
            raise ValueError(f"mean {self.mean}: finite numbers were expected")


def preprocess(
    minibatch: Mapping[str, jax.Array],
    settings: Preprocessing,
    augment: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Turns raw crops into the encoder's input, in training and inference alike.

    Args:
      minibatch: see `normalized`.
      settings: of all steps.
      augment: of normalised images [B, H, W, C], returns views [B, V, S, S, C]; None resizes the
        images to the encoder's side instead.

    Returns:
      [B, S, S, C] or [B, V, S, S, C] float32.
    """
    images = normalized(minibatch, settings)
    images = resize_all(images, settings.size) if augment is None else augment(images)
    return standardize(images, settings.mean, settings.deviation)


def normalized(minibatch: Mapping[str, jax.Array], settings: Preprocessing) -> jax.Array:
    """Normalises raw crops, each by itself, at their own size.

    Args:
      minibatch: "image" [B, H, W, C]; "low" and "high" [B, C] for the method `percentile`.
      settings: of the normalisation.

    Returns:
      [B, H, W, C] float32.
    """
    low, high = minibatch.get("low"), minibatch.get("high")
    if settings.method == "fixed":
        low, high = (jnp.asarray(v, jnp.float32) for v in (settings.low, settings.high))
    return normalize(
        minibatch["image"],
        settings.method,
        low=low,
        high=high,
        bits=settings.bits,
        legacy_invert=settings.legacy_invert,
    )


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
    # Relative to the first pixel: a constant channel is then exactly 0, whereas its mean in float32
    # is off by more than the smallest deviation.
    x = x - x[:, :1, :1]
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
