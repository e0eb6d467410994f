"""Tables with a row a cell: its image, and what is known of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellclr_jax.data.columns import COLUMNS, SYNONYMS, round_concentrations
from cellclr_jax.data.tables.csv import (
    amount,
    number_or_none,
    parse,
    read_columns,
    some_names,
    stream_rows,
    whole,
)
from cellclr_jax.errors import BadUse

# The names that the column of the images goes by, in lower case, the likelier first.
_FILE_NAMES: tuple[str, ...] = (
    "file",
    "filename",
    "file_name",
    "path",
    "file_path",
    "filepath",
    "image",
)
_FILE_NAMES += ("image_name", "image_path")
CELL_COLUMNS: dict[str, tuple[str, ...]] = {"file": _FILE_NAMES, **SYNONYMS}
"""The names of the columns of a table of cells."""


@dataclass(frozen=True)
class CellTable:
    """The content of a table of cells.

    Attributes:
      path: of the table.
      lines: of the rows in the file, from 1.
      files: what they call their images.
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
    names: Mapping[str, Sequence[str]] = CELL_COLUMNS,
    chosen: Mapping[str, str] | None = None,
) -> CellTable:
    """Reads a table of cells.

    A column without a single value counts as missing. Where there are compounds and no
    concentrations, those are 0, and so is a single one that is empty. A site or replicate that is
    empty is 0 as well: unknown.

    Args:
      path: a CSV file with a header.
      names: the names that each column goes by, in lower case.
      chosen: the name of some columns in this file; they go by no other. Case never matters.

    Raises:
      BadUse: there is no such file, or it has not a chosen column.
      BadData: it cannot be read, names no images, two of its columns have one name, or a value is
        not of its column's type.
    """
    chosen = chosen or {}
    if chosen:
        header = [name.strip() for name in next(stream_rows(path))[1]]
        for what, name in chosen.items():
            if name.lower() not in map(str.lower, header):
                raise BadUse(
                    f"--label_columns={what}={name}: {path} has no such column, but "
                    f"{some_names(header)}"
                )
    wanted = {**names, **{what: (name.lower(),) for what, name in chosen.items()}}
    table = read_columns(path, {"file": wanted.pop("file")}, wanted)
    lines = table["row"].tolist()
    texts = {what: table[what].tolist() for what in wanted}
    columns: dict[str, Sequence[Any]] = {
        what: _values(what, column, lines, path) for what, column in texts.items() if any(column)
    }
    if "compound" in columns and "concentration" not in columns:
        columns["concentration"] = [0.0] * len(lines)
    return CellTable(str(path), lines, table["file"].tolist(), columns)


def _values(
    what: str, texts: Sequence[str], lines: Sequence[int], path: str | Path
) -> Sequence[Any]:
    """A column's values, of their type."""
    if COLUMNS.get(what) is str:
        return texts
    parsers: dict[str, Callable[[str, str], Any]] = {
        "concentration": _or_zero(amount),
        "x": number_or_none,
        "y": number_or_none,
    }
    parse_text = parsers.get(what, _or_zero(whole))
    values = parse(texts, lines, lambda text: parse_text(what, text), path)
    # Rounded as those of a release are: cells of one concentration belong together.
    return round_concentrations(values).tolist() if what == "concentration" else values


def _or_zero(parse_text: Callable[[str, str], float]) -> Callable[[str, str], float]:
    """Wraps a parser to return 0 for an empty text."""
    return lambda what, text: parse_text(what, text) if text else 0
