"""Pieces of 16 fields: one shard and its tables each."""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cellclr_jax.data.building.extraction import (
    CUTTING_VERSION,
    CropSettings,
    FieldCells,
    extract_field,
)
from cellclr_jax.data.building.manifest import (
    digest,
    stamp_field,
)
from cellclr_jax.data.columns import COLUMNS
from cellclr_jax.data.illumination import Illumination
from cellclr_jax.data.sources.source import Field
from cellclr_jax.errors import BadData

# A killed build loses so many fields a worker (seconds), and the 240 fields of a plate make 15
# shards: some hundred shards of about 25 MB for all of BBBC021.
FIELDS_OF_A_PIECE = 16

_TYPES = {str: "object", int: "int64", float: "float64"}
_PARTIAL = ".partial"


@dataclasses.dataclass(frozen=True)
class Piece:
    """Fields that become one shard.

    Attributes:
      key: its files' name.
      plate: of all its fields; '' where none is known.
      fields: in order.
      illumination: file of its plate's light; '': it is not corrected.
      light: digest of that.
    """

    key: str
    plate: str
    fields: tuple[Field, ...]
    illumination: str = ""
    light: str = ""


@dataclasses.dataclass(frozen=True)
class PieceSummary:
    """What came of a piece: its numbers of fields and cells, and what went wrong.

    `problems` are (field, reason), `lost` is how many fields' worth of cells they cost.
    """

    fields: int
    cells: int
    problems: tuple[tuple[str, str], ...]
    lost: float


@dataclasses.dataclass(frozen=True)
class WrittenPiece:
    """A finished piece: its shard (None: no cell), one row a record, one row a field."""

    plate: str
    shard: Path | None
    cells: pd.DataFrame
    fields: pd.DataFrame


def plan_pieces(
    fields: Sequence[Field], settings: CropSettings, illumination: Mapping[str, Path]
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
        members = list(group)
        for start in range(0, len(members), FIELDS_OF_A_PIECE):
            part = tuple(members[start : start + FIELDS_OF_A_PIECE])
            pieces.append(Piece(_key(part, settings, corrected), plate, part, light, corrected))
    return pieces


def write_piece(piece: Piece, place: Path, settings: CropSettings) -> PieceSummary:
    """Cuts a piece, unless it is there.

    Args:
      piece: what to cut.
      place: an existing folder.
      settings: how to cut.

    Raises:
      OSError: the disk is full.
      BadData: the memory is too small, or the plate's light cannot be read.
    """
    done = read_summary(piece, place)
    if done is not None:
        return done
    light = _light(piece.illumination, piece.light) if piece.illumination else None
    parts = {suffix: _part(piece, place, suffix) for suffix in _SUFFIXES}
    cells: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    try:
        with ShardWriter(parts[".array_record"]) as shard:
            for field in piece.fields:
                cut = extract_field(field, settings, light)
                shard.write(cut.records)
                cells += cut.rows
                found.append(_field_row(field, cut))
        if cells:
            _typed(pd.DataFrame(cells)).to_parquet(parts[".cells.parquet"], index=False)
        _typed(pd.DataFrame(found)).to_parquet(parts[".fields.parquet"], index=False)
        summary = _summary(found, {suffix: part for suffix, part in parts.items() if part.exists()})
        parts[".json"].write_text(json.dumps(summary), encoding="utf-8")
        for suffix, part in parts.items():
            if part.exists():
                _sync(part)
                part.replace(_file(piece, place, suffix))
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
    return _parsed(summary)


# In the order in which a finished piece's files get their names.
_SUFFIXES = (".array_record", ".cells.parquet", ".fields.parquet", ".json")


def read_summary(piece: Piece, place: Path) -> PieceSummary | None:
    """What came of a piece; None where it is not there, or not whole."""
    try:
        summary = json.loads(_file(piece, place, ".json").read_text(encoding="utf-8"))
        for suffix, size in summary["bytes"].items():
            if _file(piece, place, suffix).stat().st_size != size:
                return None
        return _parsed(summary)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def read_piece(piece: Piece, place: Path) -> WrittenPiece:
    """Reads the tables of a finished piece.

    Raises:
      BadData: one cannot be read.
    """
    shard = _file(piece, place, ".array_record")
    try:
        fields = pd.read_parquet(_file(piece, place, ".fields.parquet"))
        if not shard.exists():
            return WrittenPiece(piece.plate, None, pd.DataFrame(), fields)
        cells = pd.read_parquet(_file(piece, place, ".cells.parquet"))
    except (OSError, ValueError) as error:
        raise BadData(f"{shard}: a piece of this build is damaged ({error}); delete it") from error
    return WrittenPiece(piece.plate, shard, cells, fields)


def sweep(place: Path) -> None:
    """Removes what killed processes have left half written; nobody else may be writing."""
    for stale in place.glob(f"*{_PARTIAL}"):
        stale.unlink()


def _key(fields: Sequence[Field], settings: CropSettings, illumination: str) -> str:
    """Stands for all that decides a piece's content; `illumination` is the digest of the light."""
    stamped = [stamp_field(field) for field in fields]
    how = [CUTTING_VERSION, dataclasses.asdict(settings), illumination]
    return digest("\n".join([json.dumps(how), *stamped]))


def _file(piece: Piece, place: Path, suffix: str) -> Path:
    return place / f"{piece.key}{suffix}"


def _part(piece: Piece, place: Path, suffix: str) -> Path:
    """Where a file is written before it gets its name: two machines may make one piece."""
    return place / f"{piece.key}{suffix}.{uuid.uuid4().hex}{_PARTIAL}"


def _field_row(field: Field, cut: FieldCells) -> dict[str, Any]:
    """A field's row in the table of fields."""
    return {
        "field": field.name,
        **field.metadata,
        "cells": len(cut.rows),
        "problem": cut.problem,
        "lost": cut.lost,
        "digest": cut.digest.hex(),
        **cut.quality,
    }


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    """The same type for a column in all pieces, whatever its values happen to be."""
    kinds = {name: _TYPES[COLUMNS[name]] for name in table if name in COLUMNS}
    return table.astype(kinds)


def _summary(fields: list[dict[str, Any]], parts: Mapping[str, Path]) -> dict[str, Any]:
    """What the last file of a piece says; of the others it tells the sizes."""
    return {
        "fields": len(fields),
        "cells": sum(row["cells"] for row in fields),
        "problems": [[row["field"], row["problem"]] for row in fields if row["problem"]],
        "lost": sum(row["lost"] for row in fields),
        "bytes": {suffix: part.stat().st_size for suffix, part in parts.items()},
    }


def _sync(path: Path) -> None:
    """Writes a file through to the disk: its name may outlive a power cut that pixels do not."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _parsed(summary: dict[str, Any]) -> PieceSummary:
    problems = tuple((str(field), str(reason)) for field, reason in summary["problems"])
    return PieceSummary(
        int(summary["fields"]), int(summary["cells"]), problems, float(summary["lost"])
    )


@functools.lru_cache(maxsize=2)
def _light(path: str, digest: str) -> Illumination:
    """The light of a plate, kept for its next piece; BadData where it is not that of the plan."""
    light = Illumination.load(Path(path))
    if light.digest() != digest:
        raise BadData(f"{path}: it was changed while it was used; build again")
    return light


# One record a chunk: random access reads no neighbour. The lowest level of zstd packs noisy
# 16-bit pixels as small as the higher ones (and as zlib), in a third of the time.
_SHARD_OPTIONS = "group_size:1,zstd:1"


class ShardWriter:
    """Writes an array_record file, which is made with its first record.

    Use it as a context: the file is complete after it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: Any = None

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with _disk_errors(self._path):
                writer.close()

    def write(self, records: Sequence[bytes]) -> None:
        """Appends records; OSError where the disk is full."""
        from array_record.python import array_record_module

        with _disk_errors(self._path):
            if self._writer is None and records:
                self._writer = array_record_module.ArrayRecordWriter(
                    str(self._path), _SHARD_OPTIONS
                )
            for record in records:
                self._writer.write(record)


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """array_record reports a full disk as a RuntimeError or a ValueError."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        free = shutil.disk_usage(path.parent).free / 1e9
        raise OSError(f"cannot write to {path.parent} ({free:.1f} GB free): {error}") from error
