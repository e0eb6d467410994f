"""Reads tables with one row for each cell: its image and metadata."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cellclr_jax.data.columns import COLUMNS, SYNONYMS, set_controls
from cellclr_jax.data.names import Names, is_missing
from cellclr_jax.data.tables.csv import (
    amount_or_nan,
    number_or_nan,
    parse,
    read_columns,
    some_names,
    stream_rows,
    whole,
)
from cellclr_jax.errors import BadUse

# Names of the column of images, the likelier first.
_FILE_NAMES = ("file", "filename", "path", "filepath", "image", "imagename", "imagepath")
CELL_COLUMNS: dict[str, tuple[str, ...]] = {"file": _FILE_NAMES, **SYNONYMS}
"""Names of each column of a table of cells, in the form of `columns.plain_name`."""


@dataclass(frozen=True)
class CellTable:
    """The content of a table of cells.

    Attributes:
      path: of the table.
      lines: of the rows in the file, from 1.
      files: the names of their images.
      columns: values by name: some of `columns.COLUMNS`, and x and y of a nucleus in its field.
    """

    path: str
    lines: Sequence[int]
    files: Sequence[str]
    columns: Mapping[str, Sequence[Any]]

    @property
    def metadata(self) -> dict[str, Sequence[Any]]:
        """The columns of `columns.COLUMNS`, in their order."""
        return {name: self.columns[name] for name in COLUMNS if name in self.columns}

    @property
    def centers(self) -> list[tuple[float, float]]:
        """(row, column) of nuclei in pixels of their fields, NaN if unknown; [] without columns."""
        if not {"x", "y"} <= self.columns.keys():
            return []
        return list(zip(self.columns["y"], self.columns["x"], strict=True))


def read_cell_table(
    path: str | Path,
    synonyms: Mapping[str, Sequence[str]] = CELL_COLUMNS,
    chosen: Mapping[str, str] | None = None,
    names: Names | None = None,
) -> CellTable:
    """Reads a table of cells.

    A column without a single value counts as missing. With compounds, an unknown concentration is
    0 for controls, otherwise NaN. An unknown site or replicate is 0.

    Args:
      path: a CSV file with a header.
      synonyms: possible names of each column.
      chosen: names of some columns in this file, in any case, instead of their synonyms.
      names: register of the tables that are read together; None: only this one.

    Raises:
      BadUse: there is no such file, or a chosen column is missing.
      BadData: unreadable, without images, two columns of one name differ, or a value is not of its
        column's type.
    """
    chosen = chosen or {}
    names = names or Names()
    if chosen:
        header = [name.strip() for name in next(stream_rows(path))[1]]
        for what, name in chosen.items():
            if name.lower() not in map(str.lower, header):
                raise BadUse(
                    f"--label_columns={what}={name}: {path} has no such column; it has "
                    f"{some_names(header)}"
                )
    wanted = {**synonyms, **{what: (name,) for what, name in chosen.items()}}
    table = read_columns(path, {"file": wanted.pop("file")}, wanted, exact=chosen)
    lines = table["row"].tolist()
    columns: dict[str, Sequence[Any]] = {}
    for what in wanted:
        texts = table[what]
        if COLUMNS.get(what) is str:
            values: Sequence[Any] = names.merge(what, texts).tolist()
            known = any(values)
        else:
            values = parse(texts, lines, partial(_number, what), path)
            known = not all(map(is_missing, set(texts)))
        if known:
            columns[what] = values
    if {"compound", "concentration"} & columns.keys():
        columns["concentration"] = _concentrations(columns, len(lines), names)
    return CellTable(str(path), lines, table["file"].tolist(), columns)


def _number(what: str, text: str) -> float:
    """Parses a number of a column; unknown sites and replicates are 0, other numbers NaN."""
    if what == "concentration":
        return amount_or_nan(what, text)
    if what in ("x", "y"):
        return number_or_nan(what, text)
    return 0 if is_missing(text) else whole(what, text)


def _concentrations(columns: Mapping[str, Sequence[Any]], count: int, names: Names) -> list[float]:
    """Rounds the concentrations and notes unknown ones."""
    compounds = pd.Series(columns.get("compound", [""] * count))
    found = set_controls(columns.get("concentration", [math.nan] * count), compounds)
    names.note_missing("concentration", np.isnan(found))
    # A single NaN object, because cells are grouped by their metadata in a dictionary.
    return [math.nan if np.isnan(dose) else dose for dose in found.tolist()]
