"""Reads CSV files, with file and line in each error."""

import csv
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from cellclr_jax.errors import BadData, BadUse

# A header of CellProfiler's has hundreds of names; an error shows as many.
_NAMES_SHOWN = 15

_T = TypeVar("_T")


def stream_rows(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """Reads a CSV file with any line ends as text, one row at a time.

    Yields:
      (line of the file, from 1; values) of each line that is not blank, the header's first. All
      have as many values.

    Raises:
      BadUse: there is no such file.
      BadData: the file is empty, not UTF-8, a value holds a line break or a NUL character, or a
        row has too many or too few values.
    """
    path = Path(path)
    if not path.is_file():
        raise BadUse(f"{path}: no such file")
    header: list[str] | None = None
    try:
        # Universal newlines: CRLF and bare CR arrive as LF, whatever the platform.
        with path.open(encoding="utf-8-sig") as lines:
            for line, values in _records(lines, path):
                header = header or values
                if len(values) != len(header):
                    raise BadData(
                        f"{path}, line {line}: {len(values)} values, the header has {len(header)}"
                    )
                yield line, values
    except UnicodeDecodeError as error:
        raise BadData(f"{path}: not a UTF-8 text file ({error.reason})") from error
    if header is None:
        raise BadData(f"{path}: the file is empty; a header and rows were expected")


def _records(lines: Iterable[str], path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, values) of each line that is not blank."""
    reader = csv.reader(_checked(lines, path), strict=True)
    before = 0
    try:
        for values in reader:
            # No name of a file, well or compound has one: a quote is missing or one too many.
            if reader.line_num > before + 1:
                raise BadData(
                    f"{path}, line {before + 1}: a line break inside quotes; each row was expected "
                    "on a line of its own"
                )
            before = reader.line_num
            if values:
                yield reader.line_num, values
    except csv.Error as error:
        raise BadData(f"{path}, line {before + 1}: {error}") from error


def _checked(lines: Iterable[str], path: Path) -> Iterator[str]:
    """The lines, none of which holds a NUL: no name has one, and what is read in C ends there."""
    for number, line in enumerate(lines, 1):
        if "\0" in line:
            raise BadData(f"{path}, line {number}: a NUL character; a table as text was expected")
        yield line


def find_column(header: Sequence[str], names: Sequence[str], path: str | Path) -> int | None:
    """Finds a column by its name, whatever its case.

    Args:
      header: the names in the file.
      names: those that the column goes by, in lower case; the first one found is taken.
      path: the file.

    Returns:
      Its place from 0; None where it is not there.

    Raises:
      BadData: two columns have that name.
    """
    lower = [name.lower() for name in header]
    for name in names:
        places = [place for place, other in enumerate(lower) if other == name]
        if len(places) > 1:
            first, second = places[:2]
            raise BadData(
                f"{path}, line 1: columns {first + 1} and {second + 1} are called "
                f"{header[first]!r} and {header[second]!r}: which of them is meant?"
            )
        if places:
            return places[0]
    return None


def some_names(header: Sequence[str]) -> str:
    """The first names of a header, for messages."""
    return ", ".join(header[:_NAMES_SHOWN])


def read_columns(
    path: str | Path,
    required: Mapping[str, Sequence[str]],
    optional: Mapping[str, Sequence[str]],
) -> pd.DataFrame:
    """Reads named columns of a CSV file as text.

    Args:
      path: the file.
      required: what each column is called in the result -> the names (in lower case) that it goes
        by in the file, whatever their case; the first one found is taken.
      optional: the same; where none is found the column is ''.

    Returns:
      The columns, and `row`, the line of the file, from 1.

    Raises:
      BadUse, BadData: see `stream_rows`; also BadData where a required column is missing, a column
        is there twice, or there are no rows.
    """
    rows = stream_rows(path)
    header = [name.strip() for name in next(rows)[1]]
    places = {}
    for column, names in {**required, **optional}.items():
        places[column] = find_column(header, names, path)
        if places[column] is None and column in required:
            raise BadData(
                f"{path}, line 1: no column {names[0]!r} (any case); the header has "
                f"{some_names(header)}"
            )
    lines: list[int] = []
    table: dict[str, list[str]] = {column: [] for column in places}
    for line, values in rows:
        lines.append(line)
        for column, place in places.items():
            # Millions of rows repeat a few plates and labels: one string of each is kept.
            table[column].append("" if place is None else sys.intern(values[place].strip()))
    if not lines:
        raise BadData(f"{path}: a header and no rows")
    return pd.DataFrame({**table, "row": lines})


def require_text(table: pd.DataFrame, column: str, path: str | Path) -> None:
    """Raises BadData, with file and line, where a value of a column is empty."""
    empty = table["row"][table[column] == ""]
    if len(empty):
        raise BadData(f"{path}, line {empty.iloc[0]}: the {column.replace('_', ' ')} is empty")


def parse(
    texts: Iterable[str], rows: Sequence[int], parse_text: Callable[[str], _T], path: str | Path
) -> list[_T]:
    """Parses each distinct text once.

    Args:
      texts: [N] values of a column.
      rows: [N] their lines in the file.
      parse_text: makes a value of a text; ValueError where it cannot.
      path: the file.

    Returns:
      [N] values.

    Raises:
      BadData: the ValueError's message after the file and the line of the first such text.
    """
    parsed: dict[str, _T] = {}
    for text, row in zip(texts, rows, strict=True):
        if text not in parsed:
            try:
                parsed[text] = parse_text(text)
            except ValueError as error:
                raise BadData(f"{path}, line {row}: {error}") from error
    return [parsed[text] for text in texts]


def reject_duplicates(table: pd.DataFrame, columns: list[str], path: str | Path) -> None:
    """Raises BadData, with file and both lines, where two rows agree in all `columns`."""
    repeated = table.duplicated(columns)
    if repeated.any():
        row = table[repeated].iloc[0]
        first = table[(table[columns] == row[columns]).all(axis=1)].iloc[0]
        what = ", ".join(f"{column.replace('_', ' ')} {row[column]}" for column in columns)
        raise BadData(f"{path}, line {row['row']}: {what} is also on line {first['row']}")


# Sites and replicates are stored as 32 bits, concentrations and centres as 32-bit floats.
_MOST_WHOLE = 2**31 - 1
_MOST_NUMBER = float(np.finfo(np.float32).max)


def amount(what: str, text: str) -> float:
    """A number of at least 0; ValueError for anything else, naming it as `what`."""
    value = _number(text)
    if not 0 <= value <= _MOST_NUMBER:
        raise ValueError(f"{what} {text!r}: a number of at least 0 was expected")
    return value


def number_or_none(what: str, text: str) -> float:
    """A number, NaN for an empty text; ValueError for anything else, naming it as `what`."""
    value = _number(text)
    if text and not abs(value) <= _MOST_NUMBER:
        raise ValueError(f"{what} {text!r}: a number was expected")
    return value


def whole(what: str, text: str) -> int:
    """A whole number of at least 0, also when written `3.0`; ValueError for anything else."""
    value = _number(text)
    if not (0 <= value <= _MOST_WHOLE and value == int(value)):
        raise ValueError(f"{what} {text!r}: a whole number from 0 to {_MOST_WHOLE} was expected")
    return int(value)


def _number(text: str) -> float:
    """A number; NaN for any other text."""
    try:
        return float(text)
    except ValueError:
        return math.nan
