"""BBBC021's image and MoA tables: which file is which field, what was on it, what it does.

The tables exist with LF, CRLF and bare CR line ends, quoted and unquoted, and with a concentration
written `3`, `3.0` or `3.000000`; all of them read alike. Errors name the file and the line.
"""

import csv
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from cellclr_jax.cli import BadData, BadUse

# Concentrations are equal when they agree to six significant digits: a file may hold 0.3, another
# 0.300000012 (a float32 written out), and no dilution series is finer than that.
SIGNIFICANT_DIGITS = 6

# The names a column goes by, in lower case; the first one is BBBC021's own.
_IMAGE_COLUMNS = {
    "dna_name": ("image_filename_dapi", "image_filename_dna"),
    "dna_path": ("image_pathname_dapi", "image_pathname_dna"),
    "tubulin_name": ("image_filename_tubulin",),
    "tubulin_path": ("image_pathname_tubulin",),
    "actin_name": ("image_filename_actin",),
    "actin_path": ("image_pathname_actin",),
    "plate": ("image_metadata_plate_dapi", "image_metadata_plate", "metadata_plate", "plate"),
    "well": ("image_metadata_well_dapi", "image_metadata_well", "metadata_well", "well"),
    "compound": ("image_metadata_compound", "metadata_compound", "compound"),
    "concentration": (
        "image_metadata_concentration",
        "metadata_concentration",
        "concentration",
    ),
}
_OPTIONAL_IMAGE_COLUMNS = {
    "replicate": ("replicate", "metadata_replicate"),
    "site": ("image_metadata_site", "metadata_site", "site"),
    "batch": ("image_metadata_batch", "metadata_batch", "batch"),
}
_MOA_COLUMNS = {
    "compound": ("compound", "metadata_compound", "image_metadata_compound"),
    "concentration": ("concentration", "metadata_concentration", "image_metadata_concentration"),
    "moa": ("moa", "metadata_moa", "image_metadata_moa"),
}
_SITE = re.compile(r"_s(\d+)_", re.IGNORECASE)
_CHANNELS = ("dna", "tubulin", "actin")

_T = TypeVar("_T")


def read_image_csv(path: str | Path) -> pd.DataFrame:
    """Reads the image table: one row a field of view.

    Args:
      path: BBBC021_v1_image.csv or a file with its columns (names match whatever their case;
        `Replicate`, `Metadata_Site` and `Metadata_Batch` may be missing).

    Returns:
      Columns plate, well, batch, compound (str), site, replicate (int), concentration (float, µM,
      >= 0), dna_file, tubulin_file, actin_file ('<PathName>/<FileName>') and row (the line of the
      file, from 1). The batch is the plate's name up to its first underscore; the site is the
      number in `_s<n>_` of the DNA file's name; a column of their own comes before either.

    Raises:
      BadUse: there is no such file.
      BadData: a column or value is missing or unparsable, or a field is listed twice.
    """
    table = _read(path, _IMAGE_COLUMNS, _OPTIONAL_IMAGE_COLUMNS)
    for column in ("plate", "well", "compound", "dna_name"):
        _require_text(table, column, path)
    rows = table["row"].tolist()
    images = pd.DataFrame(
        {
            "plate": table["plate"],
            "well": table["well"],
            "site": _sites(table, path),
            "batch": _batches(table, path),
            "compound": table["compound"],
            "concentration": _parse(table["concentration"], rows, _concentration, path),
            "replicate": _parse(table["replicate"], rows, _replicate, path),
            **{f"{channel}_file": _files(table, channel) for channel in _CHANNELS},
            "row": rows,
        }
    )
    _reject_duplicates(images, ["plate", "well", "site"], path)
    _reject_mixed_wells(images, path)
    return images


def read_moa_csv(path: str | Path) -> pd.DataFrame:
    """Reads the MoA table: one row a treatment (compound and concentration).

    Args:
      path: BBBC021_v1_moa.csv or a file with columns compound, concentration, moa.

    Returns:
      Columns compound, moa (str), concentration (float, µM, >= 0) and row (the file's line).

    Raises:
      BadUse: there is no such file.
      BadData: a column or value is missing or unparsable, or a treatment is listed twice.
    """
    table = _read(path, _MOA_COLUMNS, {})
    _require_text(table, "compound", path)
    _require_text(table, "moa", path)
    rows = table["row"].tolist()
    moa = pd.DataFrame(
        {
            "compound": table["compound"],
            "concentration": _parse(table["concentration"], rows, _concentration, path),
            "moa": table["moa"],
            "row": rows,
        }
    )
    keys = moa.assign(concentration=round_concentrations(moa["concentration"]))
    _reject_duplicates(keys, ["compound", "concentration"], path)
    return moa


def annotate(images: pd.DataFrame, moa: pd.DataFrame) -> pd.DataFrame:
    """Adds the mechanism of action to each row by compound and concentration.

    Args:
      images: any table with columns compound (str) and concentration (float).
      moa: `read_moa_csv`'s table.

    Returns:
      A copy of `images`, rows in the same order, with column moa ('' where not annotated).

    Raises:
      BadData: not one row's treatment is in the MoA table (two files that do not belong together).
    """
    names = dict(zip(_treatments(moa), moa["moa"], strict=True))
    found = [names.get(treatment, "") for treatment in _treatments(images)]
    if len(images) and not any(found):
        first = images.iloc[0]
        raise BadData(
            f"none of the {len(images)} rows has a treatment of the MoA table: the first is "
            f"{first['compound']!r} at {first['concentration']:g}, the MoA table begins with "
            f"{moa['compound'].iloc[0]!r} at {moa['concentration'].iloc[0]:g}"
            if len(moa)
            else "the MoA table is empty"
        )
    return images.assign(moa=found)


def round_concentrations(concentrations: Iterable[float]) -> np.ndarray:
    """Rounds to six significant digits, so that concentrations can be compared and grouped.

    Args:
      concentrations: [N] floats of any scale; NaN stays NaN.

    Returns:
      [N] float64.
    """
    values, index = np.unique(np.asarray(concentrations, np.float64), return_inverse=True)
    rounded = [float(f"{value:.{SIGNIFICANT_DIGITS - 1}e}") for value in values]
    return np.asarray(rounded, np.float64)[index.reshape(-1)]


def read_rows(path: str | Path) -> tuple[list[str], list[list[str]], list[int]]:
    """Reads a CSV file with any line ends as text.

    Returns:
      The header's names, the rows (as many values as the header; blank lines left out) and the
      line number of each row in the file, from 1.

    Raises:
      BadUse: there is no such file.
      BadData: the file is empty, not UTF-8, or a row has too many or too few values.
    """
    path = Path(path)
    if not path.is_file():
        raise BadUse(f"{path}: no such file")
    try:
        # Universal newlines: CRLF and bare CR arrive as LF, whatever the platform.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
        reader = csv.reader(lines, strict=True)
        records = [(reader.line_num, [v.strip() for v in values]) for values in reader if values]
    except UnicodeDecodeError as error:
        raise BadData(f"{path}: not a UTF-8 text file ({error.reason})") from error
    except csv.Error as error:
        raise BadData(f"{path}, line {reader.line_num}: {error}") from error
    if not records:
        raise BadData(f"{path}: the file is empty; a header and rows were expected")
    header = records[0][1]
    for line, values in records[1:]:
        if len(values) != len(header):
            raise BadData(
                f"{path}, line {line}: {len(values)} values, the header has {len(header)}"
            )
    return header, [values for _, values in records[1:]], [line for line, _ in records[1:]]


def _read(
    path: str | Path,
    required: Mapping[str, Sequence[str]],
    optional: Mapping[str, Sequence[str]],
) -> pd.DataFrame:
    """Reads the named columns as text, plus `row`; an optional column that is missing is ''."""
    header, rows, lines = read_rows(path)
    position = {name.lower(): index for index, name in reversed(list(enumerate(header)))}
    table = {}
    for column, names in {**required, **optional}.items():
        index = next((position[name] for name in names if name in position), None)
        if index is None and column in required:
            raise BadData(
                f"{path}, line 1: no column {names[0]!r} (any case); the header has "
                f"{', '.join(header[:15])}"
            )
        table[column] = ["" if index is None else values[index] for values in rows]
    if not rows:
        raise BadData(f"{path}: a header and no rows")
    return pd.DataFrame({**table, "row": lines})


def _require_text(table: pd.DataFrame, column: str, path: str | Path) -> None:
    """Raises BadData where a value is empty."""
    empty = table["row"][table[column] == ""]
    if len(empty):
        raise BadData(f"{path}, line {empty.iloc[0]}: the {column.replace('_', ' ')} is empty")


def _parse(
    texts: pd.Series, rows: Sequence[int], parse: Callable[[str], _T], path: str | Path
) -> list[_T]:
    """Parses each distinct text once; an error gets the file and the line of the first such row."""
    parsed: dict[str, _T] = {}
    for text, row in zip(texts, rows, strict=True):
        if text not in parsed:
            try:
                parsed[text] = parse(text)
            except ValueError as error:
                raise BadData(f"{path}, line {row}: {error}") from error
    return [parsed[text] for text in texts]


def _concentration(text: str) -> float:
    """A finite number >= 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"concentration {text!r}: a number of at least 0 was expected")
    return value


def _replicate(text: str) -> int:
    """A whole number; 1 where the table has none."""
    return _whole("replicate", text) if text else 1


def _whole(what: str, text: str) -> int:
    """A whole number of at least 0, also when written `3.0`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0 and value == int(value)):
        raise ValueError(f"{what} {text!r}: a whole number was expected")
    return int(value)


def _sites(table: pd.DataFrame, path: str | Path) -> list[int]:
    """The site column, or the `_s<n>_` of the DNA file's name."""

    def from_name(name: str) -> int:
        match = _SITE.search(name)
        if match is None:
            raise ValueError(
                f"no site in the file name {name!r}: '_s<number>_' or a column Metadata_Site "
                "was expected"
            )
        return int(match.group(1))

    if (table["site"] == "").all():
        return _parse(table["dna_name"], table["row"].tolist(), from_name, path)
    return _parse(table["site"], table["row"].tolist(), lambda text: _whole("site", text), path)


def _batches(table: pd.DataFrame, path: str | Path) -> list[str]:
    """The batch column, or the plate's name up to its first underscore."""

    def from_plate(plate: str) -> str:
        batch, underscore, _ = plate.partition("_")
        if not (batch and underscore):
            raise ValueError(
                f"plate {plate!r} names no batch: '<batch>_<plate>' or a column Metadata_Batch "
                "was expected"
            )
        return batch

    if (table["batch"] == "").all():
        return _parse(table["plate"], table["row"].tolist(), from_plate, path)
    _require_text(table, "batch", path)
    return table["batch"].tolist()


def _files(table: pd.DataFrame, channel: str) -> list[str]:
    """'<PathName>/<FileName>' with forward slashes."""
    paths = (path.replace("\\", "/").rstrip("/") for path in table[f"{channel}_path"])
    names = table[f"{channel}_name"]
    return [f"{path}/{name}" if path else name for path, name in zip(paths, names, strict=True)]


def _treatments(table: pd.DataFrame) -> Iterable[tuple[str, float]]:
    """(compound, rounded concentration) of each row."""
    return zip(table["compound"], round_concentrations(table["concentration"]), strict=True)


def _reject_duplicates(table: pd.DataFrame, columns: list[str], path: str | Path) -> None:
    """Raises BadData where two rows agree in all `columns`."""
    repeated = table.duplicated(columns)
    if repeated.any():
        row = table[repeated].iloc[0]
        first = table[(table[columns] == row[columns]).all(axis=1)].iloc[0]
        what = ", ".join(f"{column} {row[column]}" for column in columns)
        raise BadData(f"{path}, line {row['row']}: {what} is also on line {first['row']}")


def _reject_mixed_wells(images: pd.DataFrame, path: str | Path) -> None:
    """Raises BadData where two fields of one well disagree on what was put on it."""
    treatment = pd.DataFrame(
        {
            "plate": images["plate"],
            "well": images["well"],
            "compound": images["compound"],
            "concentration": round_concentrations(images["concentration"]),
            "row": images["row"],
        }
    ).drop_duplicates(["plate", "well", "compound", "concentration"])
    mixed = treatment[treatment.duplicated(["plate", "well"])]
    if len(mixed):
        row = mixed.iloc[0]
        raise BadData(
            f"{path}, line {row['row']}: well {row['well']} of plate {row['plate']} has "
            f"{row['compound']!r} at {row['concentration']:g}, an earlier line something else"
        )
