"""The folder of a dataset's versions: locking, atomic replacement, reuse of finished cells."""

import contextlib
import errno
import functools
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cellclr_jax import files
from cellclr_jax.data import dataset
from cellclr_jax.data.building import pieces
from cellclr_jax.data.building.pieces import ExtractedCells
from cellclr_jax.errors import BadData

_REPLACED = "replaced."
_NEW = "incomplete.new"
_PIECES = "pieces"
_FIELD_COLUMNS = {"plate", "field", "cells", "problem", "lost", "digest"}


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other builds out of a folder, and cleans up after a killed build.

    A folder that cannot be written to needs no lock.

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
            _clean_up(folder)
        yield


def _clean_up(folder: Path) -> None:
    """Removes incomplete versions; restores a version that was moved aside but not replaced."""
    for old in folder.glob(f"{_REPLACED}*"):
        version = folder / old.name.removeprefix(_REPLACED)
        if version.exists():
            shutil.rmtree(old)
        else:
            old.rename(version)
    for stale in [*folder.glob("incomplete.*"), *folder.glob("**/*.gone")]:
        shutil.rmtree(stale, ignore_errors=True)


@contextlib.contextmanager
def pieces_folder(folder: Path, settings: Mapping[str, Any]) -> Iterator[Path]:
    """Yields the folder for a build's pieces, with those of an earlier build of these settings.

    If the body raises, the pieces stay; otherwise the pieces of all settings are removed.

    Args:
      folder: of the dataset's versions, locked by the caller.
      settings: of the build.
    """
    path = _pieces_path(folder, settings)
    path.mkdir(parents=True, exist_ok=True)
    pieces.remove_partial(path)
    yield path
    remove_pieces(folder)


def _pieces_path(folder: Path, settings: Mapping[str, Any]) -> Path:
    return folder / _PIECES / files.digest(json.dumps(settings, sort_keys=True))


def remove_pieces(folder: Path, settings: Mapping[str, Any] | None = None) -> None:
    """Removes the pieces of all builds, or of one.

    They are renamed first, so that a process killed here leaves no half-removed piece.

    Args:
      folder: of the dataset's versions.
      settings: of the build; None for all builds.
    """
    path = folder / _PIECES if settings is None else _pieces_path(folder, settings)
    if path.exists():
        gone = path.with_name(f"{_PIECES}.gone")
        shutil.rmtree(gone, ignore_errors=True)
        path.rename(gone)
        shutil.rmtree(gone)


@contextlib.contextmanager
def new_version(folder: Path, version: str) -> Iterator[Path]:
    """Yields a folder to build in, and then moves its content `version` into place.

    An existing version stays until the new one is complete, also if the body raises.

    Args:
      folder: of the dataset's versions, locked by the caller.
      version: its name.
    """
    new = folder / _NEW
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        swap_in(new / version, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def swap_in(new: Path, folder: Path) -> None:
    """Moves a finished version into the folder of versions, and then removes the replaced one.

    Args:
      new: <any folder on the same disk>/<version>.
      folder: of the dataset's versions, locked by the caller.
    """
    current, aside = folder / new.name, folder / f"{_REPLACED}{new.name}"
    if not current.exists():
        new.rename(current)
        return
    current.rename(aside)
    try:
        new.rename(current)
    except OSError:
        aside.rename(current)
        raise
    shutil.rmtree(aside)


def finished_cells(dataset_dir: Path) -> dict[str, list[ExtractedCells]]:
    """Returns the cells of a finished dataset by plate, divided into pieces as in a build.

    Raises:
      BadData: a part of it cannot be read, or it has no plates.
    """
    cells, fields = dataset.read_cells(dataset_dir), dataset.read_fields(dataset_dir)
    images = dataset.open_images(dataset_dir)
    if not (set(fields) >= _FIELD_COLUMNS and len(cells) == len(images) == fields["cells"].sum()):
        raise BadData(
            f"{dataset_dir}: its shards and tables do not agree; build it again with --overwrite"
        )
    found: dict[str, list[ExtractedCells]] = {}
    first = 0
    for plate, group in fields.groupby("plate", sort=False):
        # Divided as in a build, so that extending a dataset gives the same shards as one build.
        for start in range(0, len(group), pieces.FIELDS_OF_A_PIECE):
            part = group.iloc[start : start + pieces.FIELDS_OF_A_PIECE]
            count = int(part["cells"].sum())
            rows = cells.iloc[first : first + count]
            read = functools.partial(_read, images, first)
            found.setdefault(str(plate), []).append(ExtractedCells(rows, part, read))
            first += count
    return found


def _read(
    images: dataset.ImageSource, first: int, start: int, stop: int
) -> Mapping[str, np.ndarray]:
    """Pixels of cells [start, stop) of a piece; its first cell is in row `first`."""
    rows = np.arange(first + start, first + stop)
    masks = {"mask": images.masks(rows)} if images.has_masks else {}
    return {"image": images.read(rows), **masks}
