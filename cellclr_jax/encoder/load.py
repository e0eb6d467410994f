"""What embeds cells, made from a config: the dataset, the model, and how crops become images.

Training and evaluation build the same things from the same config here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from cellclr_jax.augment import resize
from cellclr_jax.data import minibatches
from cellclr_jax.encoder.normalization import (
    check_method,
    normalize,
    plate_percentiles,
    standardize,
)
from cellclr_jax.errors import BadUse
from cellclr_jax.models import (
    ContrastiveModel,
    make_model,
)
from cellclr_jax.training.step import (
    Variables,
    init_variables,
)


@dataclass(frozen=True)
class Encoding:
    """What embeds cells.

    Attributes:
      config: the settings.
      cells: the dataset, with what its normalisation needs per cell.
      model: encoder and head.
    """

    config: ml_collections.ConfigDict
    cells: minibatches.Cells
    model: ContrastiveModel

    def images(self, minibatch: Mapping[str, jax.Array]) -> jax.Array:
        """Normalised images [B, H, W, C] of a minibatch, of the crops' own size."""
        settings = self.config.normalization
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

    def resized(self, images: jax.Array) -> jax.Array:
        """Images [B, H, W, C] at the side that the encoder sees."""
        return jax.vmap(partial(resize, size=self.config.image_size))(images)

    def standardized(self, images: jax.Array) -> jax.Array:
        """Images or views [..., C] as the encoder takes them."""
        return standardize(
            images, self.config.normalization.mean, self.config.normalization.deviation
        )

    @property
    def view_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of what the encoder sees."""
        return self.config.image_size, self.config.image_size, self.cells.image_shape[-1]

    def init_variables(self, key: jax.Array) -> Variables:
        """Parameters and statistics as a run with this root key starts from."""
        return init_variables(self.model, key, self.view_shape)


def make_encoding(config: ml_collections.ConfigDict) -> Encoding:
    """Opens the dataset and builds the model that the config names.

    Raises:
      BadUse: for a setting that does not exist or does not fit the dataset.
      BadData: where the dataset cannot be read.
    """
    # A run that was made before there was a choice has none written down; so `remat` below.
    access, first = config.get("data_access", "shards"), jax.process_index() == 0
    cells = minibatches.open_cells(config.data_dir, config.dataset, access, progress=first)
    settings = config.model
    try:
        model = make_model(
            settings.encoder,
            dtype=settings.dtype,
            remat=settings.get("remat", False),
            encoder_settings=plain(settings.get(settings.encoder) or {}),
            head_settings=plain(settings.head),
        )
    except ValueError as error:
        raise BadUse(f"config.model: {error}") from error
    return Encoding(config, _with_scale(cells, config.normalization), model)


def _with_scale(cells: minibatches.Cells, settings: ml_collections.ConfigDict) -> minibatches.Cells:
    """Adds the percentiles of its plate to each cell where the normalisation asks for them."""
    _check_normalization(settings, cells.image_shape[-1])
    if settings.method != "percentile":
        return cells
    low, high = settings.percentiles
    lows, highs = plate_percentiles(cells, low=low, high=high)
    return replace(cells, per_cell={"low": lows, "high": highs})


def _check_normalization(settings: ml_collections.ConfigDict, channels: int) -> None:
    """Raises BadUse for settings that do not exist or do not fit the channels."""
    try:
        check_method(settings.method, settings.bits, settings.legacy_invert)
    except ValueError as error:
        raise BadUse(f"config.normalization: {error}") from error
    if settings.method == "fixed" and not len(settings.low) == len(settings.high) == channels:
        raise BadUse(f"normalization.low and .high need {channels} numbers, one for each channel")
    low, high = settings.percentiles
    if settings.method == "percentile" and not 0 <= low < high <= 100:
        raise BadUse(f"normalization.percentiles {low}, {high}: rising, from 0 to 100, expected")
    mean, deviation = settings.mean, settings.deviation
    if (mean or deviation) and not len(mean) == len(deviation) == channels:
        raise BadUse(
            f"normalization.mean and .deviation need {channels} numbers, one for each channel, or "
            "none"
        )
    if settings.method == "zscore" and len(mean):
        raise BadUse(
            "normalization.mean and .deviation are of images in [0, 1]; after a zscore they are 0 "
            "and 1: leave them empty, --config.normalization.mean='()' and .deviation='()'"
        )
    if not all(math.isfinite(d) and d > 0 for d in deviation):
        raise BadUse(f"normalization.deviation {tuple(deviation)}: numbers above 0 were expected")
    if not all(map(math.isfinite, mean)):
        raise BadUse(f"normalization.mean {tuple(mean)}: finite numbers were expected")


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as keyword arguments: lists, which JSON makes of tuples, are tuples again."""
    return {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}
