"""Reads profile tables of any origin into one form.

CSV, gzipped CSV or Parquet; CellProfiler's, pycytominer's or plain column names in any case; joined
with BBBC021's image and MoA tables if the table does not say what was in a well.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cellclr_jax.data.columns import CONTROL, NAMES, is_control
from cellclr_jax.data.tables import bbbc021
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.profiling.feature_columns import (
    Columns,
    canonical_metadata,
    canonical_name,
    metadata_columns,
    split_columns,
    with_features,
)

_FORMATS = (".csv", ".csv.gz", ".parquet")
# Missing measurements; in a metadata column these are names like any other.
_MISSING = ["", "NaN", "nan", "-nan", "NA", "N/A", "n/a", "#N/A", "<NA>", "NULL", "null", "None"]
# By default, pandas 2 reads numbers fast and is off by some units in the last place.
_EXACT: dict[str, Any] = (
    {"float_precision": "round_trip"} if pd.__version__.startswith("2.") else {}
)
_COUNTS = ("Metadata_CellCount", "Metadata_WellCount")


@dataclass(frozen=True)
class ProfileTable:
    """A profile table in canonical form.

    Attributes:
      table: `Metadata_*` columns, then float64 features; rows in the file's order.
      features: the feature columns.
      left_out: columns of the file that are neither, and why.
      values: [N, D] float64, the features again; the table shares their memory.
    """

    table: pd.DataFrame
    features: list[str]
    left_out: dict[str, str]
    values: np.ndarray = field(repr=False)


def read_profiles(
    path: str | Path,
    *,
    image_csv: str | Path | None = None,
    moa_csv: str | Path | None = None,
    control: str = CONTROL,
) -> ProfileTable:
    """Reads a profile table and joins the metadata tables.

    Args:
      path: .csv, .csv.gz or .parquet; one row a well, site or cell.
      image_csv: gives compound, concentration, batch and replicate of each (plate, well).
      moa_csv: gives the MoA of each (compound, concentration).
      control: the controls' compound; it needs neither concentration nor MoA.

    Returns:
      The table, with Metadata_Plate, _Well, _Batch, _Compound, _Concentration (float, µM) and
      _MoA ('' where not annotated). Without plate and well each row is a well of its own; without
      a batch the plate's name up to the first underscore is one, or '' where it has none.

    Raises:
      BadUse: no such file, or an unknown format.
      BadData: the file cannot be read, lacks a column, contradicts the tables it is joined with,
        or holds a feature value that is missing or not finite.
    """
    raw = _read(Path(path))
    if not len(raw):
        raise BadData(f"{path}: the table has no rows")
    return _canonical(raw, str(path), image_csv, moa_csv, control)


def canonical_table(
    table: pd.DataFrame, *, control: str = CONTROL, features: Sequence[str] | None = None
) -> ProfileTable:
    """Brings a table in memory into canonical form; see `read_profiles`.

    Args:
      table: as a file's.
      control: the controls' compound.
      features: the feature columns; by default those of `feature_columns.split_columns`.
    """
    table = table.reset_index(drop=True)
    return _canonical(table, "profile table", None, None, control, features)


def _canonical(
    raw: pd.DataFrame,
    source: str,
    image_csv: str | Path | None,
    moa_csv: str | Path | None,
    control: str,
    features: Sequence[str] | None = None,
) -> ProfileTable:
    """Names, joins, checks and orders; `source` begins every message."""
    try:
        if len(twice := raw.columns[raw.columns.duplicated()].difference(metadata_columns(raw))):
            raise BadData(f"feature {str(twice[0])!r} is there twice")
        # Features are copied once, at the end: there is room for few copies of a large table.
        table = _with_wells(canonical_metadata(raw[metadata_columns(raw)]))
        if image_csv is not None:
            table = _join_images(table, bbbc021.read_image_csv(image_csv), image_csv)
        table = _with_treatments(table, control)
        if moa_csv is not None:
            table = _join_moa(table, bbbc021.read_moa_csv(moa_csv))
        if "Metadata_MoA" not in table:
            raise BadData("no column 'moa' (any case, with or without Metadata_): give --moa_csv")
        table["Metadata_MoA"] = _text(table["Metadata_MoA"])
        table = _with_counts(table)
        split = split_columns(raw, table) if features is None else Columns(list(features), {})
    except BadData as error:
        message = str(error)
        raise BadData(message if message.startswith(source) else f"{source}: {message}") from error
    if not split.features:
        raise BadData(f"{source}: no feature columns; left out were {_listed(split.left_out)}")
    values = _numbers(raw, split.features)
    _require_finite(values, split.features, source)
    first = [name for name in NAMES.values() if name in table]
    others = [c for c in table if str(c).startswith("Metadata_") and c not in first]
    table = with_features(table[[*first, *others]], values, split.features)
    return ProfileTable(table, split.features, split.left_out, values)


def _read(path: Path) -> pd.DataFrame:
    """Reads the file; metadata as text, so that a compound 'NA' or a plate '007' stays as it is."""
    if not path.is_file():
        raise BadUse(f"{path}: no such file")
    if not path.name.lower().endswith(_FORMATS):
        raise BadUse(f"{path}: one of {', '.join(_FORMATS)} was expected")
    try:
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(path)
        header = [str(column) for column in pd.read_csv(path, nrows=0).columns]
        return pd.read_csv(
            path,
            dtype={column: str for column in header if canonical_name(column)},
            keep_default_na=False,
            na_values={column: _MISSING for column in header if not canonical_name(column)},
            low_memory=False,
            encoding="utf-8-sig",
            **_EXACT,
        )
    except (EOFError, zlib.error, OSError, UnicodeDecodeError, ValueError) as error:
        # pandas' and pyarrow's own errors are ValueErrors; a truncated gzip file is an EOFError.
        raise BadData(f"{path}: cannot be read ({error}); is it complete?") from error


def _with_counts(table: pd.DataFrame) -> pd.DataFrame:
    """Numbers of cells and wells as integers; a CSV's come as text."""
    for column in _COUNTS:
        if column not in table:
            continue
        numbers = pd.to_numeric(table[column], errors="coerce")
        wrong = ~(np.isfinite(numbers) & (numbers >= 0) & (numbers == np.floor(numbers)))
        if wrong.any():
            row = _first(wrong)
            raise BadData(
                f"row {row + 1}: {column} {table[column].iloc[row]!r} is no whole number of at "
                "least 0"
            )
        table = table.assign(**{column: numbers.astype(np.int64)})
    return table


def _with_wells(table: pd.DataFrame) -> pd.DataFrame:
    """Adds missing columns of plate and well, and strips both."""
    table = table.copy()
    if "Metadata_Plate" not in table:
        table["Metadata_Plate"] = ""
    if "Metadata_Well" not in table:
        table["Metadata_Well"] = [f"row {index + 1}" for index in range(len(table))]
    for name in ("Plate", "Well"):
        table[f"Metadata_{name}"] = _text(table[f"Metadata_{name}"])
    return table


def _with_treatments(table: pd.DataFrame, control: str) -> pd.DataFrame:
    """Checks compound and concentration, and adds the batch where it is missing."""
    for name in ("Compound", "Concentration"):
        if f"Metadata_{name}" not in table:
            raise BadData(
                f"no column {name.lower()!r} (any case, with or without Metadata_): give "
                "--image_csv"
            )
    compounds = _text(table["Metadata_Compound"])
    if (compounds == "").any():
        raise BadData(f"row {_first(compounds == '')}: the compound is empty")
    numbers = pd.to_numeric(table["Metadata_Concentration"], errors="coerce")
    controls = is_control(compounds, control)
    numbers = numbers.mask(controls & numbers.isna(), 0.0)
    wrong = ~(np.isfinite(numbers) & (numbers >= 0))
    if wrong.any():
        row = _first(wrong)
        value = table["Metadata_Concentration"].iloc[row - 1]
        raise BadData(f"row {row}: concentration {value!r}: a number of at least 0 was expected")
    # One spelling for the controls: all later code compares names as they are.
    table["Metadata_Compound"] = compounds.mask(controls, control)
    table["Metadata_Concentration"] = numbers.astype(np.float64)
    if "Metadata_Batch" not in table:
        plates = table["Metadata_Plate"]
        named = plates.str.contains("_", regex=False).all()
        table["Metadata_Batch"] = plates.str.partition("_")[0] if named else ""
    table["Metadata_Batch"] = _text(table["Metadata_Batch"])
    return table


def _join_images(table: pd.DataFrame, images: pd.DataFrame, path: str | Path) -> pd.DataFrame:
    """Takes compound, concentration, batch and replicate from the image table."""
    columns = ["plate", "well", "compound", "concentration", "batch", "replicate"]
    wells = images.drop_duplicates(["plate", "well"])[columns]
    joined = table[["Metadata_Plate", "Metadata_Well"]].merge(
        wells, "left", left_on=["Metadata_Plate", "Metadata_Well"], right_on=["plate", "well"]
    )
    missing = joined["compound"].isna()
    if missing.any():
        row = _first(missing)
        plate, well = table[["Metadata_Plate", "Metadata_Well"]].iloc[row - 1]
        raise BadData(
            f"row {row}: well {well!r} of plate {plate!r} is not in {path} (nor are "
            f"{int(missing.sum()) - 1} other rows)"
        )
    names = {"compound": "Compound", "concentration": "Concentration", "batch": "Batch"}
    for column, name in names.items():
        _reject_contradiction(table, f"Metadata_{name}", joined[column])
        table[f"Metadata_{name}"] = joined[column].to_numpy()
    if "Metadata_Replicate" not in table:
        table["Metadata_Replicate"] = joined["replicate"].to_numpy(np.int64)
    return table


def _join_moa(table: pd.DataFrame, moa: pd.DataFrame) -> pd.DataFrame:
    """Takes the MoA from the MoA table."""
    keys = table[["Metadata_Compound", "Metadata_Concentration"]]
    annotated = bbbc021.annotate(keys.set_axis(["compound", "concentration"], axis=1), moa)
    _reject_contradiction(table, "Metadata_MoA", annotated["moa"])
    table["Metadata_MoA"] = annotated["moa"].to_numpy()
    return table


def _reject_contradiction(table: pd.DataFrame, column: str, joined: pd.Series) -> None:
    """Raises BadData where the table contradicts the file joined to it."""
    if column not in table:
        return
    if pd.api.types.is_numeric_dtype(joined):
        own = pd.to_numeric(table[column], errors="coerce")
        said = own.notna()
        differs = bbbc021.round_concentrations(own) != bbbc021.round_concentrations(joined)
    else:
        own = _text(table[column])
        said = own != ""
        differs = own.to_numpy() != joined.to_numpy()
    wrong = said.to_numpy() & differs
    if wrong.any():
        row = _first(wrong)
        raise BadData(
            f"row {row}: {column} is {own.iloc[row - 1]!r} here and {joined.iloc[row - 1]!r} in "
            "the file joined to it"
        )


def _numbers(raw: pd.DataFrame, features: list[str]) -> np.ndarray:
    """[N, D] float64 of their own memory; a missing value of any type is NaN."""
    table = raw[features]
    if all(isinstance(kind, np.dtype) for kind in table.dtypes):
        return np.array(table, np.float64)
    return table.to_numpy(np.float64, na_value=np.nan, copy=True)


def _require_finite(values: np.ndarray, features: list[str], source: str) -> None:
    """Raises BadData where a feature is missing, NaN or infinite."""
    bad = ~np.isfinite(values)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise BadData(
            f"{source}: feature {features[column]!r} is missing or not finite in row {row + 1} "
            f"(line {row + 2} of a CSV file); {bad.sum()} such values in {bad.any(axis=1).sum()} "
            f"rows and {bad.any(axis=0).sum()} features"
        )


def _text(values: pd.Series) -> pd.Series:
    """Stripped text, '' for a missing value."""
    text = values.astype(object).where(values.notna(), "")
    return text.map(lambda value: str(value).strip()).astype(object)


def _first(condition: pd.Series | np.ndarray) -> int:
    """The number, from 1, of the first row for which it holds."""
    return int(np.argmax(np.asarray(condition))) + 1


def _listed(left_out: dict[str, str]) -> str:
    """'a (text), b (its name says id)', shortened."""
    names = [f"{name} ({reason})" for name, reason in left_out.items()]
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more if names else "none"
