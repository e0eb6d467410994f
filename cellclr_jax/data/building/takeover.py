"""The pieces of a finished dataset, for another one that has all of its plates and more."""

from pathlib import Path

import pandas as pd
import tensorflow_datasets as tfds

from cellclr_jax.data import index
from cellclr_jax.data.building.pieces import WrittenPiece


def finished_pieces(dataset_dir: Path) -> dict[str, list[WrittenPiece]]:
    """Takes a finished dataset apart, without touching it.

    Returns:
      By plate its pieces in order.

    Raises:
      BadData: a part of it cannot be read.
    """
    manifest = index.read_manifest(dataset_dir)
    cells, fields = index.read_cells(dataset_dir), index.read_fields(dataset_dir)
    builder = tfds.builder_from_directory(str(dataset_dir))
    shards = iter(builder.info.splits["train"].filepaths)
    found: dict[str, list[WrittenPiece]] = {}
    cell = field = 0
    for plate, held, photographed in manifest["pieces"]:
        shard = Path(next(shards)) if held else None
        table = cells.iloc[cell : cell + held] if held else pd.DataFrame()
        rows = fields.iloc[field : field + photographed]
        found.setdefault(plate, []).append(WrittenPiece(plate, shard, table, rows))
        cell, field = cell + held, field + photographed
    return found
