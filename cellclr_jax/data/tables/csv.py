"""Reads CSV files, with file and line in each error."""

import csv
import math
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from cellclr_jax.data.columns import plain_name
from cellclr_jax.data.names import is_missing
from cellclr_jax.errors import BadData, BadUse

# Headers of CellProfiler have hundreds of names; an error shows these many.
_NAMES_SHOWN = 15

_T = TypeVar("_T")


def stream_rows(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """Reads a CSV file with any line ends as text, one row at a time.

    Yields:
      (line of the file, from 1; values) of each line that is not blank, first the header. All have
      the same number of values. A line of only commas, as spreadsheets append, is blank.

    Raises:
      BadUse: there is no such file.
      BadData: the file is empty, not UTF-8, separated by semicolons or tabs, a value holds a line
        break or a NUL character, or a row has too many or too few values.
    """
    path = Path(path)
    if not path.is_file():
        raise BadUse(f"{path}: no such file")
    header: list[str] | None = None
    try:
        # Universal newlines: CRLF and bare CR arrive as LF, whatever the platform.
        with path.open(encoding="utf-8-sig") as lines:
            for line, values in _records(lines, path):
                if header is None:
                    header = values
                    reject_other_separator(header, path)
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
            # Names of files, wells and compounds have no line breaks: a quote is missing.
            if reader.line_num > before + 1:
                raise BadData(
                    f"{path}, line {before + 1}: a line break inside quotes; each row was expected "
                    "on a line of its own"
                )
            before = reader.line_num
            if any(map(str.strip, values)):
                yield reader.line_num, values
    except csv.Error as error:
        raise BadData(f"{path}, line {before + 1}: {error}") from error


def _checked(lines: Iterable[str], path: Path) -> Iterator[str]:
    """Yields the lines; BadData for a NUL character, at which C libraries end a string."""
    for number, line in enumerate(lines, 1):
        if "\0" in line:
            raise BadData(f"{path}, line {number}: a NUL character; a table as text was expected")
        yield line


def reject_other_separator(header: Sequence[str], path: str | Path) -> None:
    """Raises BadData if a header, split at its commas, has more semicolons or tabs."""
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if sum(column.count(separator) for column in header) >= len(header):
            raise BadData(
                f"{path}, line 1: the columns are separated by {name}; commas were expected, and "
                "points in numbers: save it as CSV UTF-8, comma delimited"
            )


def find_columns(header: Sequence[str], names: Sequence[str], *, exact: bool = False) -> list[int]:
    """Finds a column by the first of some names that the header has.

    Args:
      header: the names in the file.
      names: possible names of the column.
      exact: ignores only case; otherwise compares `columns.plain_name`.

    Returns:
      Its indices: empty if it is missing, several if columns have the same name.
    """
    form = str.lower if exact else plain_name
    forms = [form(name) for name in header]
    places = ([n for n, other in enumerate(forms) if other == form(name)] for name in names)
    return next(filter(None, places), [])


def some_names(header: Sequence[str]) -> str:
    """Lists the first names of a header, for messages."""
    return ", ".join([name for name in header if name.strip()][:_NAMES_SHOWN])


def read_columns(
    path: str | Path,
    required: Mapping[str, Sequence[str]],
    optional: Mapping[str, Sequence[str]],
    *,
    exact: Collection[str] = (),
) -> pd.DataFrame:
    """Reads named columns of a CSV file as text.

    Args:
      path: the file.
      required: possible names in the file of each column of the result (see `find_columns`).
      optional: the same; a missing column is ''.
      exact: those of these columns whose names ignore only case.

    Returns:
      The columns, and `row`, the line of the file, from 1.

    Raises:
      BadUse, BadData: see `stream_rows`; also BadData if a required column is missing, two columns
        of one name differ, or there are no rows.
    """
    rows = stream_rows(path)
    header = [name.strip() for name in next(rows)[1]]
    places = {}
    for column, names in {**required, **optional}.items():
        places[column] = find_columns(header, names, exact=column in exact)
        if not places[column] and column in required:
            raise BadData(
                f"{path}, line 1: no column {names[0]!r} (any case); the header has "
                f"{some_names(header)}"
            )
    repeated = {column: found for column, found in places.items() if len(found) > 1}
    lines: list[int] = []
    table: dict[str, list[str]] = {column: [] for column in places}
    for line, values in rows:
        lines.append(line)
        for column, found in places.items():
            # Millions of rows repeat a few plates and labels: each is stored once.
            table[column].append(sys.intern(values[found[0]].strip()) if found else "")
        for found in repeated.values():
            if len({values[place].strip() for place in found}) > 1:
                names = ", ".join(header[place] for place in found)
                raise BadData(
                    f"{path}, line {line}: columns {names} mean the same and differ: keep one"
                )
    if not lines:
        raise BadData(f"{path}: a header and no rows")
    return pd.DataFrame({**table, "row": lines})


def require_text(table: pd.DataFrame, column: str, path: str | Path) -> None:
    """Raises BadData, with file and line, if a value of a column is empty."""
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
      parse_text: converts a text; raises ValueError for a wrong one.
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
    """Raises BadData, with file and both lines, if two rows agree in all `columns`."""
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
    """Parses a number of at least 0; ValueError with `what` for any other text."""
    value = _number(text)
    if not 0 <= value <= _MOST_NUMBER:
        raise ValueError(f"{what} {text!r}: a number of at least 0 was expected")
    return value


def amount_or_nan(what: str, text: str) -> float:
    """`amount`; NaN if the text means 'missing'."""
    return math.nan if is_missing(text) else amount(what, text)


def number_or_nan(what: str, text: str) -> float:
    """Parses a number; NaN if the text means 'missing'; ValueError for any other text."""
    value = _number(text)
    if not (abs(value) <= _MOST_NUMBER or is_missing(text)):
        raise ValueError(f"{what} {text!r}: a number was expected")
    return value


def whole(what: str, text: str) -> int:
    """Parses a whole number of at least 0, also `3.0`; ValueError for any other text."""
    value = _number(text)
    if not (0 <= value <= _MOST_WHOLE and value == int(value)):
        raise ValueError(f"{what} {text!r}: a whole number from 0 to {_MOST_WHOLE} was expected")
    return int(value)


def _number(text: str) -> float:
    """Parses a number; NaN for any other text."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def read_text_table(path: Path) -> pd.DataFrame:
    """Reads all columns of a table as text.

    Args:
      path: a CSV or TSV file, also with `.gz`, or Parquet.

    Returns:
      The columns under the names of the header, missing values as '', and `row`, the line of the
      file, from 1.

    Raises:
      BadUse: there is no such file.
      BadData: it is empty or cannot be read, or two columns have one name.
    """
    if not path.is_file():
        raise BadUse(f"{path}: no such file")
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if kind == "csv" and not path.name.lower().endswith(".gz"):
        rows = list(stream_rows(path))
        lines = [line for line, _ in rows[1:]]
        table = pd.DataFrame([values for _, values in rows[1:]], columns=rows[0][1])
    else:
        try:
            if kind == "parquet":
                table = pd.read_parquet(path).reset_index()
            else:
                separator = "," if kind == "csv" else "\t"
                table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
        except Exception as error:  # readers of a damaged file raise exceptions of many types
            raise BadData(f"{path}: not a readable table ({error})") from error
        table = table.drop(columns="index", errors="ignore")
        lines = list(range(2, len(table) + 2))
    table.columns = [str(name).strip() for name in table]
    repeated = table.columns[table.columns.duplicated()]
    if len(repeated):
        raise BadData(f"{path}: two columns are called {repeated[0]!r}; keep one")
    if not len(table):
        raise BadData(f"{path}: a header and no rows")
    texts = {name: [_as_text(value) for value in table[name]] for name in table}
    return pd.DataFrame({**texts, "row": lines})


def _as_text(value: object) -> str:
    """Formats a value as in a CSV file; '' if it is missing."""
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()
