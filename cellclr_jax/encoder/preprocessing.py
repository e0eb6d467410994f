"""Turns raw crops into the encoder's input; computes percentiles of plates."""

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
"""Methods that give images in [0, 1]."""

# A channel of a crop with a smaller deviation counts as constant and becomes 0.
_SMALLEST_DEVIATION = 1e-6
_HIGHEST_LEVEL = 255.0


@dataclass(frozen=True)
class Preprocessing:
    """Settings of `preprocess`; `check` refuses invalid ones.

    Attributes:
      size: side of the encoder's input in pixels.
      method: `zscore`: each channel of each crop to mean 0, deviation 1; `zscore_minmax`: the same,
        then one joint scaling of the crop's channels to [0, 1] (the paper's); `percentile`: from
        [low, high] to [0, 1], clipped, with percentiles of the crop's plate as low and high;
        `fixed`: (x - low) / (high - low) with the same numbers for all crops, not clipped.
      low, high: a number for each channel, for the method `fixed`.
      bits: 8 rounds images in [0, 1] to 256 levels, as in published crops; 0 does not round.
      legacy_invert: turns level x of 256 into (256 - x) mod 256, as the published code did by
        mistake: images are inverted, but 0 stays 0.
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
        """Raises ValueError for unknown, contradictory or missing settings."""
        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}: choose one of {', '.join(METHODS)}")
        if self.bits not in (0, 8):
            raise ValueError(f"bits is {self.bits}: 0 or 8 was expected")
        if self.legacy_invert and not self.bits:
            raise ValueError("legacy_invert is defined on 256 levels: it needs bits 8")
        if self.bits and self.method not in IN_UNIT_RANGE:
            methods = ", ".join(IN_UNIT_RANGE)
            raise ValueError(f"bits needs images in [0, 1]: a method of {methods}")
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
    """Turns raw crops into the encoder's input, in training and inference.

    Args:
      minibatch: see `normalized`.
      settings: of all steps.
      augment: maps normalised images [B, H, W, C] to views [B, V, S, S, C]; None resizes the images
        to the encoder's side instead.

    Returns:
      [B, S, S, C] or [B, V, S, S, C] float32.
    """
    images = normalized(minibatch, settings)
    images = resize_all(images, settings.size) if augment is None else augment(images)
    return standardize(images, settings.mean, settings.deviation)


def normalized(minibatch: Mapping[str, jax.Array], settings: Preprocessing) -> jax.Array:
    """Normalises raw crops, each separately, at their original size.

    Args:
      minibatch: "image" [B, H, W, C] raw intensities of any unsigned or float dtype; "low" and
        "high" [B, C] for the method `percentile`.
      settings: see `Preprocessing`, which explains the methods.

    Returns:
      [B, H, W, C] float32; a constant channel becomes 0 under `zscore`.
    """
    x = minibatch["image"].astype(jnp.float32)
    if settings.method in ("zscore", "zscore_minmax"):
        x = _zscore(x)
        x = _minmax(x) if settings.method == "zscore_minmax" else x
    elif settings.method == "percentile":
        x = jnp.clip(_scaled(x, minibatch["low"], minibatch["high"]), 0.0, 1.0)
    else:
        x = _scaled(x, jnp.asarray(settings.low), jnp.asarray(settings.high))
    return _levels(x, settings.legacy_invert) if settings.bits else x


def standardize(images: jax.Array, mean: Sequence[float], deviation: Sequence[float]) -> jax.Array:
    """Computes (x - mean) / deviation of each channel, the last step before the encoder.

    Args:
      images: [..., C] float32.
      mean: C numbers; () returns the images unchanged.
      deviation: C numbers above 0, or ().
    """
    if not len(mean):
        return images
    shape = (1,) * (images.ndim - 1) + (-1,)
    center, scale = (jnp.asarray(v, jnp.float32).reshape(shape) for v in (mean, deviation))
    return (images - center) / scale


def _levels(x: jax.Array, legacy_invert: bool) -> jax.Array:
    """Rounds images in [0, 1] to 256 levels."""
    level = jnp.round(x * _HIGHEST_LEVEL)
    if legacy_invert:
        level = jnp.mod(_HIGHEST_LEVEL + 1 - level, _HIGHEST_LEVEL + 1)
    return level / _HIGHEST_LEVEL


def _scaled(x: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """(x - low) / (high - low), with low and high [B, C] or [C]."""
    low, high = (jnp.reshape(v, (-1, 1, 1, x.shape[-1])).astype(jnp.float32) for v in (low, high))
    return (x - low) / jnp.maximum(high - low, _SMALLEST_DEVIATION)


def _zscore(x: jax.Array) -> jax.Array:
    # Without the first pixel's value a constant channel is exactly 0; the error of its mean in
    # float32 may be larger than the smallest deviation.
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
    """Computes percentiles of each channel over a random sample of each plate's cells.

    Without a column of plates, all cells count as one plate.

    Args:
      cells: the dataset.
      low: the lower percentile, 0 to 100.
      high: the upper percentile.
      per_plate: cells to read of each plate.
      seed: of the sample.

    Returns:
      (low, high), each [N, C] float32: for every cell the percentiles of its plate.
    """
    rng = np.random.default_rng(seed)
    names = cells.table.get("plate", pd.Series("", cells.table.index))
    plates, codes = np.unique(names.to_numpy(str), return_inverse=True)
    table = np.empty((2, len(plates), cells.image_shape[-1]), np.float32)
    for i in range(len(plates)):
        rows = np.flatnonzero(codes == i)
        sample = rng.choice(rows, min(per_plate, len(rows)), replace=False)
        images = cells.read(np.sort(sample))["image"]
        table[:, i] = np.percentile(images, (low, high), axis=(0, 1, 2))
    return table[0][codes], table[1][codes]
