"""Dataset folders: one build at a time, replaced at once, extended by plates."""

import contextlib
import errno
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import tensorflow_datasets as tfds

from cellclr_jax import files
from cellclr_jax.data import dataset
from cellclr_jax.data.building.manifest import digest
from cellclr_jax.data.building.pieces import WrittenPiece, sweep
from cellclr_jax.errors import BadData

_REPLACED = "replaced."
_REBUILD = "incomplete.rebuild"
_PIECES = "pieces"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other builds out of a folder and sweeps away what a killed one left there.

    Where nothing can be written nobody builds: there is no lock.

    Raises:
      BadUse: another process builds in it.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.locked(folder, ".building", "building it"))
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
        else:
            _sweep(folder)
        yield


def _sweep(folder: Path) -> None:
    """Removes what is half built; a dataset that was moved aside and not replaced comes back."""
    for old in folder.glob(f"{_REPLACED}*"):
        version = folder / old.name.removeprefix(_REPLACED)
        if version.exists():
            shutil.rmtree(old)
        else:
            old.rename(version)
    for stale in [*folder.glob("incomplete.*"), *folder.glob("**/*.gone")]:
        shutil.rmtree(stale, ignore_errors=True)


@contextlib.contextmanager
def room_for_pieces(folder: Path, settings: Mapping[str, Any]) -> Iterator[Path]:
    """The folder for the pieces of a build, with what an earlier one of these settings left there.

    It stays when the build fails and is gone when it succeeds, as are those of other settings.

    Args:
      folder: of the dataset's versions; the caller is `alone` in it.
      settings: of the build.
    """
    place = _pieces_of(folder, settings)
    place.mkdir(parents=True, exist_ok=True)
    sweep(place)
    yield place
    _remove(folder / _PIECES)


def forget_pieces(folder: Path, settings: Mapping[str, Any]) -> None:
    """Removes the pieces of a build that is finished, which a kill at its very end has left."""
    if _pieces_of(folder, settings).exists():
        _remove(_pieces_of(folder, settings))


def _pieces_of(folder: Path, settings: Mapping[str, Any]) -> Path:
    return folder / _PIECES / digest(json.dumps(settings, sort_keys=True))


def _remove(place: Path) -> None:
    """Removes a folder; its name first, so that no half of it is ever taken for the whole."""
    gone = place.with_name(f"{place.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    place.rename(gone)
    shutil.rmtree(gone)


@contextlib.contextmanager
def room_for_rebuild(folder: Path, version: str, overwrite: bool) -> Iterator[Path | None]:
    """A folder of one's own to build a version again in; it is gone at the end.

    Args:
      folder: of the dataset's versions; the caller is `alone` in it.
      version: what is to be built.
      overwrite: whether it is built again where it is there.

    Yields:
      The folder, on the same disk; None where the version can be built in its place.
    """
    if not (overwrite and (folder / version).exists()):
        yield None
        return
    place = folder / _REBUILD
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def swap_in(new: Path, folder: Path) -> None:
    """Puts a finished version in the place of the old one, which is deleted last.

    Args:
      new: <anywhere on the same disk>/<version>.
      folder: of the dataset's versions; the caller is `alone` in it.
    """
    current, aside = folder / new.name, folder / f"{_REPLACED}{new.name}"
    current.rename(aside)
    try:
        new.rename(current)
    except OSError:
        aside.rename(current)
        raise
    shutil.rmtree(aside)


_NEEDED = ("field", "cells", "problem", "lost", "digest")
_BUILD_AGAIN = "build it again with --overwrite"


def finished_pieces(dataset_dir: Path) -> dict[str, list[WrittenPiece]]:
    """Takes a finished dataset apart, without touching it.

    Returns:
      By plate its pieces in order.

    Raises:
      BadData: a part of it cannot be read.
    """
    manifest = dataset.read_manifest(dataset_dir)
    cells, fields = dataset.read_cells(dataset_dir), dataset.read_fields(dataset_dir)
    try:
        pieces = [(str(plate), int(held), int(taken)) for plate, held, taken in manifest["pieces"]]
        builder = tfds.builder_from_directory(str(dataset_dir))
        shards = [Path(path) for path in builder.info.splits["train"].filepaths]
        lengths = [_records(shard) for shard in shards]
    except Exception as error:  # of TFDS's parsers and of the reader's C++
        raise BadData(
            f"{dataset_dir}: it cannot be taken over ({error}); {_BUILD_AGAIN}"
        ) from error
    sound = (
        lengths == [held for _, held, _ in pieces if held]
        and len(cells) == sum(lengths)
        and len(fields) == sum(taken for *_, taken in pieces)
        and set(_NEEDED) <= set(fields)
    )
    if not sound:
        raise BadData(f"{dataset_dir}: its shards and tables do not fit together; {_BUILD_AGAIN}")
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
