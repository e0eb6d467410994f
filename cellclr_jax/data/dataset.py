"""Reads a built dataset: which one, its tables and manifest, its images by index. No TensorFlow."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cellclr_jax.data.image_store import ImageSource, ShardImages
from cellclr_jax.data.unpacked_images import map_images
from cellclr_jax.errors import BadData, BadUse

MANIFEST = "manifest.json"
CELLS = "cells.parquet"
FIELDS = "fields.parquet"
# The dataset that a configuration without a builder belongs to.
DATASET = "bbbc021"
# How images are read: unpacked one by one; or from a file of plain pixels, which the first use
# writes.
ACCESS = ("shards", "mapped")
# A dataset folder is complete when it holds all of these; TFDS's own come last in a build.
_FILES = ("dataset_info.json", "features.json", CELLS, MANIFEST)
_REBUILD = "build it again with --overwrite"
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_NAME = re.compile(r"\w[\w.-]*")
_DTYPES = (np.uint8, np.uint16)
_FINGERPRINT = re.compile(r"[0-9a-f]{8,128}")
# What every table has, whatever is known of its cells or fields.
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
      data_dir: what `--data_dir` was in the build.
      name: annotated or all (of BBBC021), or <builder>/<config>, such as single_cells/all.

    Returns:
      <data_dir>/<builder>/<config>/<version>, the highest version.

    Raises:
      BadUse: there is none; the message says which there are, and how to build it.
    """
    builder, config = _split_name(name)
    versions = _versions(Path(data_dir) / builder / config)
    if versions:
        return versions[-1]
    from cellclr_jax.data.sources import how_to_build  # what reads a dataset needs no source

    there = _datasets(Path(data_dir))
    listed = f"; there is {', '.join(there)}" if there else ""
    raise BadUse(
        f"no dataset {builder}/{config} in {data_dir}{listed}. "
        f"{how_to_build(builder, config, data_dir)}"
    )


def _split_name(name: str) -> tuple[str, str]:
    """The builder and configuration that a dataset's name tells; BadUse where it tells none."""
    parts = name.split("/") if "/" in name else [DATASET, name]
    if len(parts) != 2 or not all(map(_NAME.fullmatch, parts)):
        raise BadUse(
            f"dataset {name!r}: annotated, all or <builder>/<config> was expected, such as "
            "single_cells/all"
        )
    return parts[0], parts[1]


def _versions(folder: Path) -> list[Path]:
    """The finished versions of a dataset, the highest last."""
    found = [
        path
        for path in folder.glob("*.*.*")
        if _VERSION.fullmatch(path.name) and all((path / file).is_file() for file in _FILES)
    ]
    return sorted(found, key=lambda path: tuple(map(int, path.name.split("."))))


def _datasets(data_dir: Path) -> list[str]:
    """The finished datasets of a folder as <builder>/<config>."""
    found = (path for path in data_dir.glob("*/*") if path.is_dir() and _versions(path))
    return sorted(f"{path.parent.name}/{path.name}" for path in found)


def read_cells(dataset_dir: str | Path) -> pd.DataFrame:
    """Reads the table of cells.

    Returns:
      One row a record, in the records' order: cell_id (str), those columns of `columns.COLUMNS`
      that the source has, in their order, x, y (float, pixels of the field, NaN where unknown).

    Raises:
      BadData: the table is not there or cannot be read.
    """
    return _read_table(Path(dataset_dir) / CELLS, _CELL_COLUMNS)


def read_fields(dataset_dir: str | Path) -> pd.DataFrame:
    """Reads the table of fields.

    Returns:
      One row a field, in the order of the build: field (str), the columns of `read_cells` that the
      source has, cells (int64, how many it gave), problem (str, '' or why it could not be used),
      digest (str), and its quality: float64 columns <measure>_<channel>, NaN where there is a
      problem.

    Raises:
      BadData: the table is not there or cannot be read.
    """
    return _read_table(Path(dataset_dir) / FIELDS, _FIELD_COLUMNS)


def _read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Reads a parquet table that has at least these columns."""
    try:
        table = pd.read_parquet(path)
    except MemoryError:
        raise
    except Exception as error:  # the parser has many kinds
        raise BadData(f"{path}: not a readable table ({error}); {_REBUILD}") from error
    missing = [name for name in columns if name not in table]
    if missing:
        raise BadData(f"{path}: no column {', '.join(missing)}; {_REBUILD}")
    return table


def read_manifest(dataset_dir: str | Path) -> dict[str, Any]:
    """Reads `manifest.json`: settings, origin, image, counts, skipped, fingerprint, versions.

    Raises:
      BadData: it is not there, not JSON, or something is not in it.
    """
    path = Path(dataset_dir) / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for key, kind in _MANIFEST_KEYS.items():
            if not isinstance(manifest[key], kind):
                raise TypeError(f"{key!r} is no {kind.__name__}")
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise BadData(f"{path}: not a readable manifest ({error}); {_REBUILD}") from error
    return manifest


def open_images(
    dataset_dir: str | Path, access: str = "shards", *, progress: bool = True
) -> ImageSource:
    """Opens the images of a dataset for random access.

    Args:
      dataset_dir: see `find_dataset`.
      access: one of `ACCESS`; the images are the same. `shards` is ready at once and takes the
        least space; `mapped` writes all pixels into the dataset's folder the first time, and then
        reads many times as fast.
      progress: shows a bar (lines, where the console is a file) while all images are unpacked.

    Raises:
      BadUse: there is no such access, or not the disk for it.
      BadData: a shard is missing or damaged, or does not hold what the manifest says.
    """
    if access not in ACCESS:
        hint = "; mapped reads as fast as memory did" if access == "memory" else ""
        raise BadUse(f"data access {access!r}: one of {', '.join(ACCESS)} was expected{hint}")
    folder, manifest = Path(dataset_dir), read_manifest(dataset_dir)
    try:
        shards = ShardImages(folder)
    except Exception as error:  # the parser's own kinds among them
        raise BadData(
            f"{folder}: its shards or their description are damaged ({error}); {_REBUILD}"
        ) from error
    _check_images(folder, shards, manifest)
    if access == "mapped":
        return map_images(shards, folder, manifest["fingerprint"], show=progress)
    return shards


def _check_images(folder: Path, images: ImageSource, manifest: dict[str, Any]) -> None:
    """Raises BadData if the images are not those of the manifest."""
    cells = manifest["counts"].get("cells")
    if len(images) != cells:
        raise BadData(f"{folder}: {len(images)} records, its manifest says {cells}; {_REBUILD}")
    kind = (list(images.shape), images.dtype.name)
    expected = (manifest["image"].get("shape"), manifest["image"].get("dtype"))
    usable = len(images.shape) == 3 and all(images.shape) and images.dtype in _DTYPES
    if kind != expected or not usable:
        raise BadData(f"{folder}: images of {kind}, its manifest says {expected}; {_REBUILD}")
    # It becomes part of a file's name.
    if not _FINGERPRINT.fullmatch(manifest["fingerprint"]):
        raise BadData(f"{folder}: the fingerprint in its manifest is no hex digest; {_REBUILD}")
