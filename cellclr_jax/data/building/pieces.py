"""The first stage of a build: fields become pieces, in parallel; a killed build resumes with them.

A piece is a folder with the crops and tables of up to 16 fields of one plate. It is written under
another name and renamed when it is whole, so that a piece that exists is finished. The name is a
digest of all that decides the content: files, metadata, settings and light.
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

# A killed build loses at most so many fields per worker (seconds); the 240 fields of a plate of
# BBBC021 make 15 pieces of some 30 MB.
FIELDS_OF_A_PIECE = 16

_TYPES = {str: "object", int: "int64", float: "float64"}
_PARTIAL = ".partial"
_IMAGES, _MASKS = "images.npy", "masks.npy"
# Cells of a finished dataset that are read at once: 14 MB of BBBC021's.
_CELLS_READ = 256


@dataclasses.dataclass(frozen=True)
class Piece:
    """Fields that are extracted together.

    Attributes:
      key: name of its folder.
      plate: of all its fields; '' if unknown.
      fields: in order.
      illumination: file of its plate's light; '': it is not corrected.
      light: digest of that.
    """

    key: str
    plate: str
    fields: tuple[Field | CellGroup, ...]
    illumination: str = ""
    light: str = ""


@dataclasses.dataclass(frozen=True)
class ExtractedCells:
    """Finished cells of one plate: of a piece, or of a dataset that is extended. Can be pickled.

    Attributes:
      cells: one row for each cell.
      fields: one row for each field.
      read: reads rows [start, stop) of the cells: 'image' [n, S, S, C], and 'mask' [n, S, S] uint8
        if masks are stored.
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
    """(field, reason) of the fields that gave none of their cells, or not all of them."""
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
      settings: how they are cut.
      illumination: file of each plate's light, where it is corrected.

    Raises:
      BadData: a light cannot be read.
    """
    pieces = []
    for plate, group in itertools.groupby(fields, key=lambda field: field.plate):
        light = str(illumination[plate]) if plate in illumination else ""
        corrected = Illumination.load(Path(light)).digest() if light else ""
        how = json.dumps([CUTTING_VERSION, dataclasses.asdict(settings), corrected])
        members = list(group)
        for start in range(0, len(members), FIELDS_OF_A_PIECE):
            part = tuple(members[start : start + FIELDS_OF_A_PIECE])
            key = files.digest(how, *(describe(field, [field.fingerprint()]) for field in part))
            pieces.append(Piece(key, plate, part, light, corrected))
    return pieces


def describe(field: ImageGroup, contents: Sequence[str]) -> str:
    """A line that differs where the cells of a field may: what it is, and `contents` of it."""
    cells = getattr(field, "cells", ())
    return json.dumps([field.name, dict(field.metadata), cells, field.centers, *contents])


def write_piece(piece: Piece, place: Path, settings: CropSettings) -> ExtractedCells:
    """Extracts a piece, unless it is finished, and returns its cells.

    Args:
      piece: what to extract.
      place: an existing folder.
      settings: how to cut.

    Raises:
      OSError: the disk is full.
      BadData: the memory is too small, or the plate's light cannot be read.
    """
    done = read_piece(piece, place, settings)
    if done is not None:
        return done
    light = _light(piece.illumination, piece.light) if piece.illumination else None
    cut = [extract_field(field, settings, light) for field in piece.fields]
    # With a name of its own: two machines of a cluster may make one piece.
    part = place / f"{piece.key}.{uuid.uuid4().hex}{_PARTIAL}"
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
            _typed(pd.DataFrame(rows)).to_parquet(part / name, index=False)
        for path in part.iterdir():
            # To the disk: a name may outlive a power cut that pixels do not.
            with path.open("rb") as file:
                os.fsync(file.fileno())
        try:
            part.rename(place / piece.key)
        except OSError:  # it exists: another machine has made it meanwhile, or it is damaged
            if read_piece(piece, place, settings) is None:
                shutil.rmtree(place / piece.key, ignore_errors=True)
                part.rename(place / piece.key)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    done = read_piece(piece, place, settings)
    if done is None:
        raise BadData(f"{place / piece.key}: the piece cannot be read again")
    return done


def _save(path: Path, arrays: Sequence[np.ndarray]) -> None:
    """Writes arrays one after the other as one .npy file, without joining them in memory."""
    header = np.lib.format.header_data_from_array_1_0(arrays[0])
    header["shape"] = (sum(map(len, arrays)), *arrays[0].shape[1:])
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for array in arrays:
            array.tofile(file)


def read_piece(piece: Piece, place: Path, settings: CropSettings) -> ExtractedCells | None:
    """Reads the tables of a finished piece; None if it is missing or damaged."""
    folder = place / piece.key
    try:
        cells = pd.read_parquet(folder / dataset.CELLS)
        fields = pd.read_parquet(folder / dataset.FIELDS)
        names = {"image": _IMAGES} | ({"mask": _MASKS} if settings.masks == "keep" else {})
        # Fails on a file that is shorter than its header says.
        if any(len(_mapped(folder / name)) != len(cells) for name in names.values()):
            return None
    except (OSError, ValueError):
        return None

    paths = {what: folder / name for what, name in names.items()}
    return ExtractedCells(cells, fields, functools.partial(_read_pixels, paths))


def sweep(place: Path) -> None:
    """Removes what killed processes have left half written; nobody else may be writing."""
    for stale in place.glob(f"*{_PARTIAL}"):
        shutil.rmtree(stale)


def _read_pixels(paths: Mapping[str, Path], start: int, stop: int) -> dict[str, np.ndarray]:
    return {what: _mapped(path)[start:stop] for what, path in paths.items()}


def _mapped(path: Path) -> np.ndarray:
    array: np.ndarray = np.lib.format.open_memmap(path, mode="r")
    return array


def _field_row(field: ImageGroup, cut: FieldCells) -> dict[str, Any]:
    """The row of a field in the table of fields."""
    return {
        "field": field.name,
        **field.metadata,
        "cells": len(cut.rows),
        "problem": cut.problem,
        "lost": cut.lost,
        "digest": cut.digest,
        **cut.quality,
    }


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    """The same type for a column in all pieces, whatever its values happen to be."""
    kinds = {name: _TYPES[COLUMNS[name]] for name in table if name in COLUMNS}
    return table.astype(kinds)


@functools.lru_cache(maxsize=2)
def _light(path: str, digest: str) -> Illumination:
    """The light of a plate, kept for its next piece; BadData if it is not that of the plan."""
    light = Illumination.load(Path(path))
    if light.digest() != digest:
        raise BadData(f"{path}: it was changed while it was used; build again")
    return light
