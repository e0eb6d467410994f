"""The folder of a dataset's versions: one build at a time, replaced at once, extended by plates."""

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
from cellclr_jax.data.building.pieces import ExtractedCells, sweep
from cellclr_jax.errors import BadData

_REPLACED = "replaced."
_NEW = "incomplete.new"
_PIECES = "pieces"
_FIELD_COLUMNS = {"plate", "field", "cells", "problem", "lost", "digest"}


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other builds out of a folder and removes what a killed one left there.

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
            _sweep(folder)
        yield


def _sweep(folder: Path) -> None:
    """Removes what is half built; restores a dataset that was set aside and not replaced."""
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
    """The folder for the pieces of a build, with those of an earlier build of these settings.

    It stays when the build fails; when it succeeds, the pieces of all settings are removed.

    Args:
      folder: of the dataset's versions, locked by the caller.
      settings: of the build.
    """
    place = _place_of(folder, settings)
    place.mkdir(parents=True, exist_ok=True)
    sweep(place)
    yield place
    remove_pieces(folder)


def _place_of(folder: Path, settings: Mapping[str, Any]) -> Path:
    return folder / _PIECES / files.digest(json.dumps(settings, sort_keys=True))


def remove_pieces(folder: Path, settings: Mapping[str, Any] | None = None) -> None:
    """Removes the pieces of all builds, or of one; first their name: no half passes for the whole.

    Args:
      folder: of the dataset's versions.
      settings: of the build; None for all builds.
    """
    place = folder / _PIECES if settings is None else _place_of(folder, settings)
    if place.exists():
        gone = place.with_name(f"{_PIECES}.gone")
        shutil.rmtree(gone, ignore_errors=True)
        place.rename(gone)
        shutil.rmtree(gone)


@contextlib.contextmanager
def new_version(folder: Path, version: str) -> Iterator[Path]:
    """Yields a folder to build in; what lies there as `version` afterwards becomes the version.

    An existing version stays until the new one is complete, and if the body raises.

    Args:
      folder: of the dataset's versions, locked by the caller.
      version: its name.
    """
    place = folder / _NEW
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        yield place
        swap_in(place / version, folder)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def swap_in(new: Path, folder: Path) -> None:
    """Moves a finished version into its folder; an existing one is removed last.

    Args:
      new: <anywhere on the same disk>/<version>.
      folder: of the dataset's versions, locked by the caller.
    """
    current, aside = folder / new.name, folder / f"{_REPLACED}{new.name}"
    replaces = current.exists()
    if replaces:
        current.rename(aside)
    try:
        new.rename(current)
    except OSError:
        if replaces:
            aside.rename(current)
        raise
    if replaces:
        shutil.rmtree(aside)


def finished_cells(dataset_dir: Path) -> dict[str, list[ExtractedCells]]:
    """The cells of a finished dataset by plate, in pieces, without touching it.

    Raises:
      BadData: a part of it cannot be read, or it has no plates.
    """
    cells, fields = dataset.read_cells(dataset_dir), dataset.read_fields(dataset_dir)
    images = dataset.open_images(dataset_dir)
    if not (set(fields) >= _FIELD_COLUMNS and len(cells) == len(images) == fields["cells"].sum()):
        raise BadData(
            f"{dataset_dir}: its shards and tables do not fit together; build it again with "
            "--overwrite"
        )
    found: dict[str, list[ExtractedCells]] = {}
    first = 0
    for plate, group in fields.groupby("plate", sort=False):
        # As a build divides them, so that extending gives the same shards as building at once.
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
    """Pixels of the cells [start, stop) of a plate whose first cell is in row `first`."""
    rows = np.arange(first + start, first + stop)
    masks = {"mask": images.masks(rows)} if images.has_masks else {}
    return {"image": images.read(rows), **masks}
