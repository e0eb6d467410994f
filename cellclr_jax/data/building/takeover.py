"""The pieces of a finished dataset, for another one that has all of its plates and more."""

from pathlib import Path

import pandas as pd
import tensorflow_datasets as tfds

from cellclr_jax.cli import BadData
from cellclr_jax.data import index
from cellclr_jax.data.building.pieces import WrittenPiece

_NEEDED = ("field", "cells", "problem", "lost", "digest")
_REBUILD = "build it again with --overwrite"


def finished_pieces(dataset_dir: Path) -> dict[str, list[WrittenPiece]]:
    """Takes a finished dataset apart, without touching it.

    Returns:
      By plate its pieces in order.

    Raises:
      BadData: a part of it cannot be read.
    """
    manifest = index.read_manifest(dataset_dir)
    cells, fields = index.read_cells(dataset_dir), index.read_fields(dataset_dir)
    try:
        pieces = [(str(plate), int(held), int(taken)) for plate, held, taken in manifest["pieces"]]
        builder = tfds.builder_from_directory(str(dataset_dir))
        shards = [Path(path) for path in builder.info.splits["train"].filepaths]
        lengths = [_records(shard) for shard in shards]
    except Exception as error:  # of TFDS's parsers and of the reader's C++
        raise BadData(f"{dataset_dir}: it cannot be taken over ({error}); {_REBUILD}") from error
    sound = (
        lengths == [held for _, held, _ in pieces if held]
        and len(cells) == sum(lengths)
        and len(fields) == sum(taken for *_, taken in pieces)
        and set(_NEEDED) <= set(fields)
    )
    if not sound:
        raise BadData(f"{dataset_dir}: its shards and tables do not fit together; {_REBUILD}")
    found: dict[str, list[WrittenPiece]] = {}
    left = iter(shards)
    cell = field = 0
    for plate, held, taken in pieces:
        shard = next(left) if held else None
        table = cells.iloc[cell : cell + held] if held else pd.DataFrame()
        rows = fields.iloc[field : field + taken]
        found.setdefault(plate, []).append(WrittenPiece(plate, shard, table, rows))
        cell, field = cell + held, field + taken
    return found


def _records(shard: Path) -> int:
    """The number of records in a shard."""
    from array_record.python import array_record_module

    reader = array_record_module.ArrayRecordReader(str(shard))
    try:
        return int(reader.num_records())
    finally:
        reader.close()
