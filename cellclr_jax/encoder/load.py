"""Builds dataset, model and preprocessing from a config; shared by training and inference."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from cellclr_jax.data import minibatches
from cellclr_jax.devices import stream
from cellclr_jax.encoder.preprocessing import Preprocessing, plate_percentiles
from cellclr_jax.errors import BadUse
from cellclr_jax.models import ContrastiveModel, make_model
from cellclr_jax.objectives import OBJECTIVES, SHARED_SETTINGS, Objective

# {"params": ..., "batch_stats": ...} of a Flax model.
Variables = dict[str, Any]


@dataclass(frozen=True)
class CellEncoder:
    """Dataset, model and preprocessing of a run, without weights.

    Attributes:
      config: the settings of the run.
      cells: the dataset, including percentiles if the preprocessing needs them.
      model: encoder and head.
      preprocessing: of raw crops.
    """

    config: ml_collections.ConfigDict
    cells: minibatches.Cells
    model: ContrastiveModel
    preprocessing: Preprocessing

    def init_variables(self, key: jax.Array) -> Variables:
        """Returns the initial parameters and statistics of a run with this root key."""
        side = self.preprocessing.size
        return init_variables(self.model, key, (side, side, self.cells.image_shape[-1]))


def init_variables(
    model: ContrastiveModel, key: jax.Array, image_shape: tuple[int, int, int]
) -> Variables:
    """Draws the initial parameters and statistics from a stream of the root key.

    Args:
      model: encoder and head.
      key: the run's root key.
      image_shape: (H, W, C) of the encoder's input.
    """
    variables = model.init(stream(key, "init"), jnp.zeros((2, *image_shape)), train=False)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def make_cell_encoder(config: ml_collections.ConfigDict) -> CellEncoder:
    """Opens the dataset and builds the model that the config names.

    Raises:
      BadUse: a setting is unknown or does not fit the dataset.
      BadData: the dataset cannot be read.
    """
    # Settings read with `get` are missing in the configs of older runs.
    access, first = config.get("data_access", "shards"), jax.process_index() == 0
    cells = minibatches.open_cells(config.data_dir, config.dataset, access, progress=first)
    preprocessing = _preprocessing(config, cells.image_shape[-1])
    settings = config.model
    try:
        model = make_model(
            settings.encoder,
            dtype=settings.dtype,
            remat=settings.get("remat", False),
            encoder_settings=plain(settings.get(settings.encoder) or {}),
            head_settings=plain(settings.head),
            make_head=make_objective(config).head,
        )
    except ValueError as error:
        raise BadUse(f"config.model: {error}") from error
    if preprocessing.method == "percentile":
        cells = _with_percentiles(cells, config.normalization.percentiles)
    return CellEncoder(config, cells, model, preprocessing)


def make_objective(config: ml_collections.ConfigDict) -> Objective:
    """Builds the objective that the config names.

    Its settings are those of `config.<name>`, and the `SHARED_SETTINGS` at the top level.

    Raises:
      BadUse: an unknown objective, or an unknown or invalid setting.
    """
    name = config.get("objective", "nt_xent")
    if name not in OBJECTIVES:
        raise BadUse(f"config.objective is {name!r}: choose one of {', '.join(OBJECTIVES)}")
    fields = {field.name for field in dataclasses.fields(OBJECTIVES[name])}
    shared = {setting: config[setting] for setting in SHARED_SETTINGS if setting in fields}
    try:
        return OBJECTIVES[name](**shared, **plain(config.get(name) or {}))
    except (TypeError, ValueError) as error:
        raise BadUse(f"config.objective {name}: {error}") from error


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings as keyword arguments, with the lists of JSON as tuples."""
    return {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}


def _preprocessing(config: ml_collections.ConfigDict, channels: int) -> Preprocessing:
    """Reads the settings of preprocessing; BadUse if they are invalid."""
    settings = plain(config.normalization)
    low, high = settings.pop("percentiles")
    if settings["method"] == "percentile" and not 0 <= low < high <= 100:
        raise BadUse(
            f"config.normalization.percentiles {low}, {high}: rising numbers from 0 to 100 were "
            "expected"
        )
    try:
        preprocessing = Preprocessing(size=config.image_size, **settings)
        preprocessing.check(channels)
    except (TypeError, ValueError) as error:
        raise BadUse(f"config.normalization: {error}") from error
    return preprocessing


def _with_percentiles(cells: minibatches.Cells, percentiles: tuple[float, float]) -> Any:
    """Adds the percentiles of its plate to each cell."""
    lows, highs = plate_percentiles(cells, low=percentiles[0], high=percentiles[1])
    return dataclasses.replace(cells, per_cell={**cells.per_cell, "low": lows, "high": highs})
