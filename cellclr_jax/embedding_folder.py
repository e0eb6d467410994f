"""The tables of an embedding: cells in parts, and what wells and treatments have in common.

A part holds a chunk of cells and appears whole, so that who is stopped goes on after the last one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from pyarrow import parquet

from cellclr_jax.cli import BadData
from cellclr_jax.data.fields import COLUMNS
from cellclr_jax.profiling import profiles
from cellclr_jax.profiling.columns import own_features
from cellclr_jax.profiling.exports import CELL_ID, write_table
from cellclr_jax.profiling.sites import NAMES

PARTS = "cells"
WELLS, TREATMENTS = "wells", "treatments"
# What is told of a cell beside `fields.COLUMNS`: its name and where it lies in its field.
_CELL = {"cell_id": CELL_ID, **NAMES, "label": "Metadata_Label"}
_PLACE = {"x": "Metadata_X", "y": "Metadata_Y"}
# Cells that are read back together.
_BLOCK = 4096
_AGAIN = "remove it and run the same command again"
_WELL = ["Metadata_Plate", "Metadata_Well"]
# As `sites.sites_of` fills them: a batch that is not told is none, and so on.
_UNTOLD: dict[str, str | float] = {
    "Metadata_Batch": "",
    "Metadata_MoA": "",
    "Metadata_Concentration": 0.0,
}


def cell_metadata(cells: pd.DataFrame) -> pd.DataFrame:
    """What is known of each cell as `Metadata_*` columns.

    Args:
      cells: [N] rows of a dataset (see `index.read_cells`).

    Returns:
      [N] rows in their order: Metadata_CellId, the columns of `fields.COLUMNS` that there are, text
      that is missing as '', and Metadata_X, Metadata_Y (pixels of the field) where one is known.
    """
    texts = [name for name, kind in COLUMNS.items() if kind is str and name in cells]
    table = cells.assign(**{name: cells[name].fillna("").astype(str) for name in texts})
    names = {name: new for name, new in _CELL.items() if name in table}
    if table[list(_PLACE)].notna().any(axis=None):
        names |= _PLACE
    return table[list(names)].rename(columns=names).reset_index(drop=True)


@dataclass(frozen=True)
class Parts:
    """The cells of an embedding in parts: `cells/part-00000.parquet` and so on.

    Attributes:
      out: the folder of the embedding.
      metadata: [N] rows, one a cell (see `cell_metadata`).
      chunk_cells: cells of a part; the last may have fewer.
      formats: of `exports.FORMATS`; `parquet`, which others are read back from, is the last.
    """

    out: Path
    metadata: pd.DataFrame = field(repr=False)
    chunk_cells: int
    formats: Sequence[str]

    @property
    def chunks(self) -> list[np.ndarray]:
        """The rows of each part."""
        rows = np.arange(len(self.metadata))
        return [rows[i : i + self.chunk_cells] for i in range(0, len(rows), self.chunk_cells)]

    def path(self, number: int) -> Path:
        """Of a part, without the suffix."""
        return self.out / PARTS / f"part-{number:05d}"

    def missing(self) -> list[int]:
        """The numbers of the parts that are not there, or not with all their cells."""
        numbers = enumerate(self.chunks)
        return [number for number, rows in numbers if not self._is_whole(number, rows)]

    def write(self, number: int, features: np.ndarray) -> None:
        """Writes a part: features [n, D] float32 of its cells."""
        rows = self.metadata.iloc[self.chunks[number]].reset_index(drop=True)
        columns = pd.DataFrame(features, columns=profiles.feature_names(features.shape[1]))
        write_table(pd.concat([rows, columns], axis=1), self.path(number), self.formats)

    def read(self, number: int) -> Iterator[pd.DataFrame]:
        """The features of a part, some cells after the other: [b, D] float32 each.

        Raises:
          BadData: it cannot be read.
        """
        path = f"{self.path(number)}.parquet"
        try:
            file = parquet.ParquetFile(path)
            names = [name for name in file.schema_arrow.names if not name.startswith("Metadata_")]
            for cells in file.iter_batches(batch_size=_BLOCK, columns=names):
                yield cells.to_pandas()
        except (OSError, ValueError) as error:  # pyarrow's own are of these kinds
            raise BadData(f"{path}: cannot be read ({error}); {_AGAIN}") from error

    def _is_whole(self, number: int, rows: np.ndarray) -> bool:
        """Whether all files of a part are there and tell the cells that they should."""
        if not all(Path(f"{self.path(number)}.{kind}").is_file() for kind in self.formats):
            return False
        try:
            told = pd.read_parquet(f"{self.path(number)}.parquet", columns=[CELL_ID])
        except (OSError, ValueError, KeyError):
            return False
        return told[CELL_ID].tolist() == self.metadata[CELL_ID].iloc[rows].tolist()


class PartWriter:
    """Collects the features of cells as they come, and writes each part when it is complete.

    Args:
      parts: of the embedding.
      numbers: of the parts whose cells come, in this order.
      feature: the name of the features that are kept.
      writes: whether this process is the one that writes.
    """

    def __init__(
        self, parts: Parts, numbers: Sequence[int], feature: str, *, writes: bool = True
    ) -> None:
        self._parts, self._feature, self._writes = parts, feature, writes
        self._chunks = parts.chunks
        self._rest = list(numbers)
        self._filled = 0
        self._values = np.empty((0, 0), np.float32)

    def add(self, rows: np.ndarray, features: Mapping[str, np.ndarray]) -> None:
        """Takes a minibatch of one part: rows [b], features [b, D] by name.

        Raises:
          BadData: a feature is not finite; the message names the cell.
          OSError: the part cannot be written.
        """
        values = features[self._feature]
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            cell = self._parts.metadata[CELL_ID].iloc[rows[int(np.argmin(finite))]]
            raise BadData(
                f"the embedding of cell {cell!r} holds NaN or an infinite value: look at its image "
                "and its plate's intensities"
            )
        number = self._rest[0]
        if not self._filled:
            # Column by column, as tables and files hold it.
            shape = (values.shape[1], len(self._chunks[number]))
            self._values = np.empty(shape, np.float32).T
        self._values[self._filled : self._filled + len(rows)] = values
        self._filled += len(rows)
        if self._filled == len(self._values):
            if self._writes:
                self._parts.write(number, self._values)
            self._rest, self._filled = self._rest[1:], 0


def wells_of(metadata: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray] | None:
    """The wells of a dataset; a compound, where one is known, makes them part of a treatment.

    Args:
      metadata: [N] rows, one a cell (see `cell_metadata`).

    Returns:
      (one row a well, sorted by plate and well, with what its cells have in common and
      Metadata_CellCount; [N] int: the row of each cell's well, -1 where it is in none). None where
      no cell has a plate and a well.

    Raises:
      BadData: a well has two compounds, concentrations, MoAs or batches, or a treatment two MoAs.
    """
    if not set(_WELL) <= set(metadata):
        return None
    known = (metadata[_WELL] != "").all(axis=1).to_numpy()
    if not known.any():
        return None
    own = [CELL_ID, *_PLACE.values()]
    cells = metadata[known].drop(columns=own, errors="ignore")
    if "Metadata_Compound" in cells:
        for name, value in _UNTOLD.items():
            cells[name] = cells[name].fillna(value) if name in cells else value
    wells = profiles.aggregate_wells(cells, features=[])
    treatments_of(wells, [])
    index = np.full(len(metadata), -1)
    index[known] = cells.groupby(_WELL, sort=True).ngroup().to_numpy()
    return wells, index


def treatments_of(wells: pd.DataFrame, features: Sequence[str]) -> pd.DataFrame | None:
    """Medians of the wells of each treatment; None where no well has a compound.

    Raises:
      BadData: a treatment has two MoAs.
    """
    if "Metadata_Compound" not in wells or not (wells["Metadata_Compound"] != "").any():
        return None
    treated = wells[wells["Metadata_Compound"] != ""]
    return profiles.treatment_profiles(treated, features=features)


def write_profiles(parts: Parts, wells: tuple[pd.DataFrame, np.ndarray] | None) -> dict[str, int]:
    """Writes well profiles (means of cells) and treatment profiles (medians of wells).

    Sums are float64 and are taken part by part, as the parts are read from disk: they are the same
    wherever the embedding was interrupted.

    Args:
      parts: all of them are there.
      wells: see `wells_of`; None writes nothing.

    Returns:
      How many rows each table has, by its name.

    Raises:
      BadData: a part cannot be read.
    """
    if wells is None:
        return {}
    rows_of_wells, index = wells
    accumulator, first = None, 0
    for number in range(len(parts.chunks)):
        for features in parts.read(number):
            if accumulator is None:
                accumulator = profiles.WellAccumulator(rows_of_wells, own_features(features))
            if list(features) != accumulator.features:
                raise BadData(f"{parts.path(number)}.parquet has other features; {_AGAIN}")
            accumulator.add(features.to_numpy(), index[first : first + len(features)])
            first += len(features)
    assert accumulator is not None
    tables = {WELLS: accumulator.table()}
    treatments = treatments_of(tables[WELLS], accumulator.features)
    if treatments is not None:
        tables[TREATMENTS] = treatments
    for name, table in tables.items():
        write_table(table, parts.out / name, parts.formats)
    return {name: len(table) for name, table in tables.items()}
