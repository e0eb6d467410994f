"""Reads a built dataset: finds it, reads its tables and manifest, opens its images.

Does not import TensorFlow.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cellclr_jax.data.image_store import ImageSource, ShardImages, map_images
from cellclr_jax.errors import BadData, BadUse

MANIFEST = "manifest.json"
CELLS = "cells.parquet"
FIELDS = "fields.parquet"
# The builder of a dataset name without a builder, such as `annotated`.
DATASET = "bbbc021"
ACCESS = ("shards", "mapped")
"""Ways to read images: decompressed one by one, or from a file of uncompressed pixels."""
# A dataset folder is complete when it holds all of these; a build writes TFDS's own files last.
_FILES = ("dataset_info.json", "features.json", CELLS, MANIFEST)
_REBUILD = "build it again with --overwrite"
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_NAME = re.compile(r"\w[\w.-]*")
_DTYPES = (np.uint8, np.uint16)
_FINGERPRINT = re.compile(r"[0-9a-f]{8,128}")
# Columns of every table, whatever its source knows about the cells or fields.
_CELL_COLUMNS = ("cell_id", "x", "y")
_FIELD_COLUMNS = ("field", "cells", "problem", "digest")
_MANIFEST_KEYS = {
    "settings": dict,
    "origin": dict,
    "image": dict,
    "counts": dict,
    "skipped": list,
    "fingerprint": str,
}


def find_dataset(data_dir: str | Path, name: str = "annotated") -> Path:
    """Finds a finished dataset.

    Args:
      data_dir: value of `--data_dir` in the build.
      name: annotated or all (of BBBC021), or <builder>/<config>, such as single_cells/all.

    Returns:
      <data_dir>/<builder>/<config>/<version>, the highest version.

    Raises:
      BadUse: there is none; the message lists the existing datasets and how to build this one.
    """
    parts = name.split("/") if "/" in name else [DATASET, name]
    if len(parts) != 2 or not all(map(_NAME.fullmatch, parts)):
        raise BadUse(
            f"dataset {name!r}: annotated, all or <builder>/<config> was expected, such as "
            "single_cells/all"
        )
    builder, config = parts
    versions = _versions(Path(data_dir) / builder / config)
    if versions:
        return versions[-1]
    from cellclr_jax.data.sources import how_to_build  # not needed to read a dataset

    found = (path for path in Path(data_dir).glob("*/*") if path.is_dir() and _versions(path))
    existing = sorted(f"{path.parent.name}/{path.name}" for path in found)
    others = f"; existing datasets: {', '.join(existing)}" if existing else ""
    raise BadUse(
        f"no dataset {builder}/{config} in {data_dir}{others}. "
        f"{how_to_build(builder, config, data_dir)}"
    )


def _versions(folder: Path) -> list[Path]:
    """Lists the finished versions of a dataset in ascending order."""
    found = [
        path
        for path in folder.glob("*.*.*")
        if _VERSION.fullmatch(path.name) and all((path / file).is_file() for file in _FILES)
    ]
    return sorted(found, key=lambda path: tuple(map(int, path.name.split("."))))


def read_cells(dataset_dir: str | Path) -> pd.DataFrame:
    """Reads the table of cells.

    Returns:
      One row per record, in the order of the records: cell_id (str), the columns of
      `columns.COLUMNS` that the source has, x, y (float, pixels of the field, NaN if unknown).

    Raises:
      BadData: the table is missing or cannot be read.
    """
    return _read_table(Path(dataset_dir) / CELLS, _CELL_COLUMNS)


def read_fields(dataset_dir: str | Path) -> pd.DataFrame:
    """Reads the table of fields.

    Returns:
      One row per field, in the order of the build: field (str), the columns of `read_cells` that
      the source has, cells (int64, number of its cells), problem (str, why cells are lost, or ''),
      digest (str), and float64 quality measures <measure>_<channel>, NaN if the field could not be
      used.

    Raises:
      BadData: the table is missing or cannot be read.
    """
    return _read_table(Path(dataset_dir) / FIELDS, _FIELD_COLUMNS)


def _read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Reads a parquet table and checks that it has these columns."""
    try:
        table = pd.read_parquet(path)
    except MemoryError:
        raise
    except Exception as error:  # the parser raises errors of many types
        raise BadData(f"{path}: not a readable table ({error}); {_REBUILD}") from error
    missing = [name for name in columns if name not in table]
    if missing:
        raise BadData(f"{path}: no column {', '.join(missing)}; {_REBUILD}")
    return table


def read_manifest(dataset_dir: str | Path) -> dict[str, Any]:
    """Reads `manifest.json`: settings, origin, image, counts, skipped, fingerprint, versions.

    Raises:
      BadData: it is missing, not JSON, or incomplete.
    """
    path = Path(dataset_dir) / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for key, kind in _MANIFEST_KEYS.items():
            if not isinstance(manifest[key], kind):
                raise TypeError(f"{key!r} is not a {kind.__name__}")
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise BadData(f"{path}: not a readable manifest ({error}); {_REBUILD}") from error
    return manifest


def open_images(
    dataset_dir: str | Path, access: str = "shards", *, progress: bool = True
) -> ImageSource:
    """Opens the images of a dataset for random access.

    Args:
      dataset_dir: see `find_dataset`.
      access: one of `ACCESS`; both give the same images. `shards` needs no preparation and no
        space; `mapped` writes all pixels into the dataset's folder on first use, and then reads
        many times faster.
      progress: shows progress while all images are unpacked.

    Raises:
      BadUse: unknown access, or not enough disk space for it.
      BadData: a shard is missing or damaged, or does not agree with the manifest.
    """
    if access not in ACCESS:
        hint = "; mapped reads as fast as memory did" if access == "memory" else ""
        raise BadUse(f"data access {access!r}: one of {', '.join(ACCESS)} was expected{hint}")
    folder, manifest = Path(dataset_dir), read_manifest(dataset_dir)
    try:
        shards = ShardImages(folder)
    except Exception as error:  # the parser raises errors of many types
        raise BadData(
            f"{folder}: its shards or their description are damaged ({error}); {_REBUILD}"
        ) from error
    _check_images(folder, shards, manifest)
    if access == "mapped":
        return map_images(shards, folder, manifest["fingerprint"], show=progress)
    return shards


def _check_images(folder: Path, images: ImageSource, manifest: dict[str, Any]) -> None:
    """Raises BadData if the images do not agree with the manifest."""
    cells = manifest["counts"].get("cells")
    if len(images) != cells:
        raise BadData(f"{folder}: {len(images)} records, its manifest says {cells}; {_REBUILD}")
    kind = (list(images.shape), images.dtype.name)
    expected = (manifest["image"].get("shape"), manifest["image"].get("dtype"))
    usable = len(images.shape) == 3 and all(images.shape) and images.dtype in _DTYPES
    if kind != expected or not usable:
        raise BadData(f"{folder}: images of {kind}, its manifest says {expected}; {_REBUILD}")
    # Becomes part of a file name.
    if not _FINGERPRINT.fullmatch(manifest["fingerprint"]):
        raise BadData(f"{folder}: the fingerprint in its manifest is not a hex digest; {_REBUILD}")
