"""Reads a built dataset: which one, its cells as a table, its images by index. No TensorFlow."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import pandas as pd

from cellclr_jax.cli import BadData, BadUse
from cellclr_jax.data.manifest import CELLS, MANIFEST

DATASET = "bbbc021"
# A dataset folder is complete when it holds all of these; TFDS's own come last in a build.
_FILES = ("dataset_info.json", "features.json", CELLS, MANIFEST)
_REBUILD = "build it again with --overwrite"
_VERSION = re.compile(r"\d+\.\d+\.\d+")
# A checksum (CRC) will not do here: similar ids have similar ones, and the share comes out wrong.
_HASH_BYTES = 4


class ImageSource:
    """Random access to the images of a dataset, for Grain or a loop; it can be pickled.

    `source[i]` is {'image': [S, S, C] uint16, read-only}, `i` the row in `cells.parquet`.
    Only the image of a record is decoded, which takes a fraction of the time of all of it.
    """

    def __init__(self, dataset_dir: str | Path) -> None:
        import tensorflow_datasets as tfds
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self._directory = str(dataset_dir)
        builder = tfds.builder_from_directory(self._directory)
        self._shape = builder.info.features["image"].shape
        shards = builder.info.splits["train"].file_instructions
        for shard in shards:
            # They are opened when first read, which may be hours into a training.
            if not Path(shard.filename).is_file():
                raise FileNotFoundError(f"no file {shard.filename}")
        self._records = ArrayRecordDataSource(shards)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> dict[str, np.ndarray]:
        return self.__getitems__([index.__index__()])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, np.ndarray]]:
        """Several at once, read in parallel.

        Raises:
          BadData: a shard cannot be read.
        """
        try:
            return [self._decode(record) for record in self._records.__getitems__(indices)]
        except (IndexError, MemoryError):
            raise
        except Exception as error:  # of the reader's C++ or of the record's parser
            raise BadData(f"{self._directory}: a shard is damaged ({error}); {_REBUILD}") from error

    def __repr__(self) -> str:
        # Grain compares it when an iterator's state is restored: paths may differ, data may not.
        return f"ImageSource(cells={len(self)}, shape={self._shape})"

    def _decode(self, record: bytes) -> dict[str, np.ndarray]:
        from tensorflow_datasets.proto import tf_example_pb2

        features = tf_example_pb2.Example.FromString(record).features.feature
        pixels = features["image"].bytes_list.value[0]
        return {"image": np.frombuffer(pixels, np.uint16).reshape(self._shape)}


def find_dataset(data_dir: str | Path, name: str = "annotated") -> Path:
    """Finds a finished dataset.

    Args:
      data_dir: what `--data_dir` was in the build.
      name: the build's `--config`.

    Returns:
      <data_dir>/bbbc021/<name>/<version>, the highest version.

    Raises:
      BadUse: there is none; the message says how to build it.
    """
    folder = Path(data_dir) / DATASET / name
    found = []
    for path in folder.glob("*.*.*"):
        if _VERSION.fullmatch(path.name) and all((path / file).is_file() for file in _FILES):
            found.append((tuple(map(int, path.name.split("."))), path))
    if not found:
        raise BadUse(
            f"no dataset {DATASET}/{name} in {data_dir}. Build it from BBBC021's plates: "
            f"python -m cellclr_jax.build --source=raw --input=PLATES --data_dir={data_dir} "
            f"--config={name} — or from simulated plates: python -m cellclr_jax.build "
            f"--source=simulated --data_dir={data_dir} --config={name} — or see everything run "
            "in minutes: bash launch/demo.sh"
        )
    return max(found)[1]


def read_cells(dataset_dir: str | Path) -> pd.DataFrame:
    """Reads the table of cells.

    Returns:
      One row a record, in the records' order: cell_id, plate, well, batch, compound, moa (str),
      site, replicate (int), concentration (float64, µM), x, y (float64, pixels of the field, NaN
      where unknown).

    Raises:
      BadData: the table is not there or cannot be read.
    """
    path = Path(dataset_dir) / CELLS
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise BadData(f"{path}: not a readable table of cells ({error}); {_REBUILD}") from error


def read_manifest(dataset_dir: str | Path) -> dict[str, Any]:
    """Reads `manifest.json`: settings, origin, counts, skipped, fingerprint, versions.

    Raises:
      BadData: it is not there or not JSON.
    """
    path = Path(dataset_dir) / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadData(f"{path}: not a readable manifest ({error}); {_REBUILD}") from error
    return manifest


def validation_mask(cell_ids: Iterable[str], fraction: float) -> np.ndarray:
    """Chooses cells for validation by a hash of their id.

    A cell's choice depends on neither the others nor their order, and a larger fraction holds a
    smaller one.

    Args:
      cell_ids: [N] strings.
      fraction: the expected share of True, in [0, 1].

    Returns:
      [N] bool.

    Raises:
      BadUse: the fraction is not in [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise BadUse(f"a validation fraction of {fraction}: a number from 0 to 1 was expected")
    digests = (
        hashlib.blake2b(cell.encode(), digest_size=_HASH_BYTES).digest() for cell in cell_ids
    )
    hashes = np.frombuffer(b"".join(digests), "<u4")
    return hashes < fraction * 256**_HASH_BYTES


def open_images(dataset_dir: str | Path) -> ImageSource:
    """Opens the images of a dataset for random access.

    Raises:
      BadData: a shard is missing, or the records are not as many as the table says.
    """
    try:
        source = ImageSource(dataset_dir)
    except Exception as error:  # the parser's own kinds among them
        raise BadData(
            f"{dataset_dir}: its shards or their description are damaged ({error}); {_REBUILD}"
        ) from error
    expected = read_manifest(dataset_dir)["counts"]["cells"]
    if len(source) != expected:
        raise BadData(f"{dataset_dir}: {len(source)} records, its manifest says {expected}")
    return source
