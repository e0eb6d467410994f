"""The first stage of a build: extracts fields into pieces, from which a killed build resumes.

A piece is a folder with the crops and tables of up to 16 fields of one plate. It is written under
a temporary name and renamed when it is complete. Its name is a digest of everything that decides
its content: files, metadata, settings and illumination.
"""

import dataclasses
import functools
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cellclr_jax import files
from cellclr_jax.data import dataset
from cellclr_jax.data.building.extraction import (
    CUTTING_VERSION,
    CropSettings,
    FieldCells,
    extract_field,
)
from cellclr_jax.data.columns import COLUMNS
from cellclr_jax.data.illumination import Illumination
from cellclr_jax.data.sources.source import CellGroup, Field, ImageGroup
from cellclr_jax.errors import BadData

# A killed build loses at most this many fields per worker (seconds of work); the 240 fields of a
# plate of BBBC021 make 15 pieces of about 30 MB.
FIELDS_OF_A_PIECE = 16

_TYPES = {str: "object", int: "int64", float: "float64"}
_PARTIAL = ".partial"
_IMAGES, _MASKS = "images.npy", "masks.npy"
# Cells to read at once: 14 MB of BBBC021.
_CELLS_READ = 256


@dataclasses.dataclass(frozen=True)
class Piece:
    """Fields to extract together.

    Attributes:
      key: name of its folder.
      plate: of all its fields; '' if unknown.
      fields: in order.
      illumination: file of its plate's illumination; '': no correction.
      light: digest of the illumination.
    """

    key: str
    plate: str
    fields: tuple[Field | CellGroup, ...]
    illumination: str = ""
    light: str = ""


@dataclasses.dataclass(frozen=True)
class ExtractedCells:
    """Extracted cells of one plate: of a piece, or of a dataset to extend. Can be pickled.

    Attributes:
      cells: one row per cell.
      fields: one row per field.
      read: reads the pixels of cells [start, stop): 'image' [n, S, S, C], and 'mask' [n, S, S]
        uint8 if masks are stored.
    """

    cells: pd.DataFrame
    fields: pd.DataFrame
    read: Callable[[int, int], Mapping[str, np.ndarray]]

    def examples(self) -> Iterator[dict[str, Any]]:
        """Yields the features of each cell by name, in order."""
        for start in range(0, len(self.cells), _CELLS_READ):
            rows = self.cells.iloc[start : start + _CELLS_READ].to_dict("records")
            pixels = self.read(start, start + len(rows))
            for number, row in enumerate(rows):
                example = {name: images[number] for name, images in pixels.items()}
                yield example | {str(name): value for name, value in row.items()}


def problems_of(fields: pd.DataFrame) -> list[tuple[str, str]]:
    """(field, reason) of the fields that lost some or all of their cells."""
    bad = fields[fields["problem"] != ""]
    return list(zip(bad["field"], bad["problem"], strict=True))


def plan_pieces(
    fields: Sequence[Field | CellGroup],
    settings: CropSettings,
    illumination: Mapping[str, Path],
) -> list[Piece]:
    """Divides fields into pieces, each of one plate.

    Args:
      fields: sorted by plate.
      settings: how to extract cells.
      illumination: file of each corrected plate's illumination.

    Raises:
      BadData: an illumination file cannot be read.
    """
    pieces = []
    for plate, group in itertools.groupby(fields, key=lambda field: field.plate):
        light = str(illumination[plate]) if plate in illumination else ""
        corrected = Illumination.load(Path(light)).digest() if light else ""
        version = json.dumps([CUTTING_VERSION, dataclasses.asdict(settings), corrected])
        members = list(group)
        for start in range(0, len(members), FIELDS_OF_A_PIECE):
            part = tuple(members[start : start + FIELDS_OF_A_PIECE])
            key = files.digest(version, *(describe(field, [field.fingerprint()]) for field in part))
            pieces.append(Piece(key, plate, part, light, corrected))
    return pieces


def describe(field: ImageGroup, contents: Sequence[str]) -> str:
    """Joins metadata and `contents` of a field into a line that changes if its cells may change."""
    cells = getattr(field, "cells", ())
    return json.dumps([field.name, dict(field.metadata), cells, field.centers, *contents])


def write_piece(piece: Piece, folder: Path, settings: CropSettings) -> ExtractedCells:
    """Extracts a piece, unless it is finished, and returns its cells.

    Args:
      piece: what to extract.
      folder: of the pieces; exists.
      settings: how to extract cells.

    Raises:
      OSError: the disk is full.
      BadData: the memory is too small, or the plate's illumination cannot be read.
    """
    finished = read_piece(piece, folder, settings)
    if finished is not None:
        return finished
    light = _light(piece.illumination, piece.light) if piece.illumination else None
    cut = [extract_field(field, settings, light) for field in piece.fields]
    # A unique name, since two machines of a cluster may extract the same piece.
    part = folder / f"{piece.key}.{uuid.uuid4().hex}{_PARTIAL}"
    part.mkdir()
    try:
        _save(part / _IMAGES, [one.images for one in cut])
        if settings.masks == "keep":
            _save(part / _MASKS, [one.masks for one in cut if one.masks is not None])
        tables = (
            (dataset.CELLS, [row for one in cut for row in one.rows]),
            (dataset.FIELDS, [_field_row(*pair) for pair in zip(piece.fields, cut, strict=True)]),
        )
        for name, rows in tables:
            table = pd.DataFrame(rows)
            # A column has the same type in all pieces, whatever its values are.
            types = {column: _TYPES[COLUMNS[column]] for column in table if column in COLUMNS}
            table.astype(types).to_parquet(part / name, index=False)
        for path in part.iterdir():
            # Without it a power failure may keep the renamed folder but lose its content.
            with path.open("rb") as file:
                os.fsync(file.fileno())
        try:
            part.rename(folder / piece.key)
        except OSError:  # it exists: extracted by another machine meanwhile, or damaged
            if read_piece(piece, folder, settings) is None:
                shutil.rmtree(folder / piece.key, ignore_errors=True)
                part.rename(folder / piece.key)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    finished = read_piece(piece, folder, settings)
    if finished is None:
        raise BadData(f"{folder / piece.key}: the piece cannot be read after it was written")
    return finished


def _save(path: Path, arrays: Sequence[np.ndarray]) -> None:
    """Writes the concatenation of arrays as one .npy file, without building it in memory."""
    header = np.lib.format.header_data_from_array_1_0(arrays[0])
    header["shape"] = (sum(map(len, arrays)), *arrays[0].shape[1:])
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for array in arrays:
            array.tofile(file)


def read_piece(piece: Piece, folder: Path, settings: CropSettings) -> ExtractedCells | None:
    """Reads the tables of a finished piece; None if it is missing or damaged."""
    path = folder / piece.key
    try:
        cells = pd.read_parquet(path / dataset.CELLS)
        fields = pd.read_parquet(path / dataset.FIELDS)
        names = {"image": _IMAGES} | ({"mask": _MASKS} if settings.masks == "keep" else {})
        # Raises an error for a file that is shorter than its header says.
        if any(len(np.load(path / name, mmap_mode="r")) != len(cells) for name in names.values()):
            return None
    except (OSError, ValueError):
        return None
    paths = {feature: path / name for feature, name in names.items()}
    return ExtractedCells(cells, fields, functools.partial(_read_pixels, paths))


def remove_partial(folder: Path) -> None:
    """Removes incomplete pieces of killed processes; no other process may be writing."""
    for stale in folder.glob(f"*{_PARTIAL}"):
        shutil.rmtree(stale)


def _read_pixels(paths: Mapping[str, Path], start: int, stop: int) -> dict[str, np.ndarray]:
    """Pixels of the cells [start, stop), by feature, mapped from the files of a piece."""
    return {feature: np.load(path, mmap_mode="r")[start:stop] for feature, path in paths.items()}


def _field_row(field: ImageGroup, cut: FieldCells) -> dict[str, Any]:
    """Returns the row of a field in the table of fields."""
    return {
        "field": field.name,
        **field.metadata,
        "cells": len(cut.rows),
        "problem": cut.problem,
        "lost": cut.lost,
        "digest": cut.digest,
        **cut.quality,
    }


@functools.lru_cache(maxsize=2)
def _light(path: str, digest: str) -> Illumination:
    """Illumination of a plate, cached for its next piece; BadData if its file has changed."""
    light = Illumination.load(Path(path))
    if light.digest() != digest:
        raise BadData(f"{path}: it was changed during the build; build again")
    return light
