"""Puts finished pieces together: tables, manifest, shards under TFDS's names."""

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cellclr_jax.cli import BadData
from cellclr_jax.data.building.manifest import make_manifest, write_manifest
from cellclr_jax.data.building.pieces import WrittenPiece
from cellclr_jax.data.extraction import CropSettings

_FINGERPRINT_BYTES = 16


def write_tables(
    directory: Path,
    written: Sequence[WrittenPiece],
    crops: CropSettings,
    *,
    settings: dict[str, Any],
    origin: dict[str, Any],
    problems: Sequence[tuple[str, str]],
) -> None:
    """Writes the tables of cells and fields, and the manifest.

    Args:
      directory: of the dataset.
      written: all its pieces, in order.
      crops: how they were cut.
      settings, origin: for the manifest.
      problems: (what, reason) of files that belong to no field.

    Raises:
      BadData: there is no cell, or two have one id.
    """
    fields = pd.concat([piece.fields for piece in written], ignore_index=True)
    cells = _cell_table([piece.cells for piece in written if piece.shard is not None])
    fingerprint = hashlib.blake2b(digest_size=_FINGERPRINT_BYTES)
    for text in fields["digest"]:
        fingerprint.update(bytes.fromhex(text))
    manifest = make_manifest(
        settings=settings,
        origin=origin,
        image={
            "shape": [crops.size, crops.size, len(crops.channels)],
            "dtype": crops.dtype,
            "channels": list(crops.channels),
        },
        columns=list(crops.columns),
        cells=cells,
        fields=fields,
        skipped=[*problems, *problems_of(fields)],
        fingerprint=fingerprint.hexdigest(),
        pieces=[(piece.plate, len(piece.cells), len(piece.fields)) for piece in written],
    )
    write_manifest(directory, manifest, cells, fields)


def name_shards(written: Sequence[WrittenPiece], template: Any) -> tuple[list[int], int]:
    """Gives the shards of pieces TFDS's names; they keep their own as well.

    Args:
      written: pieces in order.
      template: of TFDS, for names of shards.

    Returns:
      The numbers of records of the shards, and their bytes together.
    """
    shards = [(piece.shard, len(piece.cells)) for piece in written if piece.shard is not None]
    size = 0
    for number, (shard, _) in enumerate(shards):
        _link(shard, template.sharded_filepath(shard_index=number, num_shards=len(shards)))
        size += shard.stat().st_size
    return [length for _, length in shards], size


def problems_of(fields: pd.DataFrame) -> list[tuple[str, str]]:
    """(field, reason) of the fields that gave none of their cells, or not all of them."""
    bad = fields[fields["problem"] != ""]
    return list(zip(bad["field"], bad["problem"], strict=True))


def _cell_table(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """One row a record; BadData where there is none, or two have one id."""
    if not tables:
        raise BadData(
            "no cells were found: are the images what the channels say, the nuclei larger than "
            "--min_area and the fields larger than --crop_size?"
        )
    table = pd.concat(tables, ignore_index=True)
    twice = table["cell_id"][table["cell_id"].duplicated()]
    if len(twice):
        raise BadData(f"two cells are called {twice.iloc[0]}: a field is listed twice")
    return table


def _link(source: Path, target: Any) -> None:
    """A second name for a file, or a copy where the file system knows no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
