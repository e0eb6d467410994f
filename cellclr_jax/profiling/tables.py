"""Reads profile tables of different origins into one form.

CSV, gzipped CSV or Parquet; column names of CellProfiler, pycytominer or plain ones in any case;
joined with BBBC021's image and MoA tables if the table lacks compounds or MoAs.
"""

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cellclr_jax.console import listed
from cellclr_jax.data.columns import (
    CONTROL,
    METADATA,
    NAMES,
    SYNONYMS,
    control_spelling,
    is_control,
    set_controls,
)
from cellclr_jax.data.names import Names, fold
from cellclr_jax.data.tables import bbbc021
from cellclr_jax.data.tables.csv import amount_or_nan, reject_other_separator, whole
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.profiling.feature_columns import (
    Columns,
    canonical_metadata,
    metadata_names,
    split_columns,
    with_features,
)

_FORMATS = (".csv", ".csv.gz", ".parquet")
# Words for a missing measurement; `data.names` has those for missing metadata.
_MISSING = ["", "NaN", "nan", "-nan", "NA", "N/A", "n/a", "#N/A", "<NA>", "NULL", "null", "None"]
# The default parser of pandas 2 is wrong by some units in the last place.
_EXACT: dict[str, Any] = (
    {"float_precision": "round_trip"} if pd.__version__.startswith("2.") else {}
)
_COUNTS = {"Metadata_CellCount", "Metadata_WellCount"}
_AMOUNT = partial(amount_or_nan, "concentration")
# pandas renames a second column 'x' to 'x.1'.
_REPEATED = re.compile(r"\.\d+$")


@dataclass(frozen=True)
class ProfileTable:
    """A profile table in canonical form.

    Attributes:
      table: `Metadata_*` columns, then float64 features; rows in the order of the file.
      features: the D feature columns.
      left_out: other columns of the file, with the reason.
      values: [N, D] float64 features, sharing the table's memory.
      control: compound name of the controls, as spelt in the table.
      notes: merged spellings and missing values.
    """

    table: pd.DataFrame
    features: list[str]
    left_out: dict[str, str]
    values: np.ndarray = field(repr=False)
    control: str = CONTROL
    notes: list[str] = field(default_factory=list)


def read_profiles(
    path: str | Path,
    *,
    image_csv: str | Path | None = None,
    moa_csv: str | Path | None = None,
    control: str = CONTROL,
    exact_names: bool = False,
) -> ProfileTable:
    """Reads a profile table and joins the metadata tables.

    Args:
      path: .csv, .csv.gz or .parquet; one row a well, site or cell.
      image_csv: table with compound, concentration, batch and replicate of each (plate, well).
      moa_csv: table with the MoA of each (compound, concentration).
      control: compound name of the controls, in any spelling; they need neither concentration nor
        MoA.
      exact_names: does not merge spellings; words such as 'NA' are names (see `data.names`).

    Returns:
      The table, with Metadata_Plate, _Well, _Batch, _Compound, _Concentration (float, µM; NaN if
      unknown) and _MoA; unknown text is ''. Without a column of wells, each row is a well; without
      a column of batches, the plate's name up to the first underscore is the batch, or ''.

    Raises:
      BadUse: no such file, or an unknown format.
      BadData: the file cannot be read, lacks a column, has one twice, repeats wells without naming
        plates, contradicts the joined tables, or has a feature value that is missing or not finite.
    """
    raw = _read(Path(path))
    if not len(raw):
        raise BadData(f"{path}: the table has no rows")
    names = Names(exact=exact_names, known=[control])
    return _canonical(raw, str(path), names, control, image_csv=image_csv, moa_csv=moa_csv)


def canonical_table(
    table: pd.DataFrame,
    *,
    control: str = CONTROL,
    features: Sequence[str] | None = None,
    exact_names: bool = False,
) -> ProfileTable:
    """Brings a table in memory into canonical form; see `read_profiles`.

    Args:
      table: columns as in a file; metadata may be in the index.
      control: compound name of the controls.
      features: feature columns; by default those of `feature_columns.split_columns`.
      exact_names: see `read_profiles`.
    """
    names = Names(exact=exact_names, known=[control])
    return _canonical(_with_index(table), "profile table", names, control, features)


def _canonical(
    raw: pd.DataFrame,
    source: str,
    names: Names,
    control: str,
    features: Sequence[str] | None = None,
    image_csv: str | Path | None = None,
    moa_csv: str | Path | None = None,
) -> ProfileTable:
    """Renames, joins, checks and orders columns; `source` is the start of every message."""
    try:
        _reject_repeated(raw.columns, source)
        # Features are copied only once, at the end, to save memory.
        table = _with_wells(canonical_metadata(raw), names)
        if image_csv is not None:
            table = _join_images(table, bbbc021.read_image_csv(image_csv, names), image_csv, names)
        table, control = _with_treatments(table, control, names)
        if moa_csv is not None:
            table = _join_moa(table, bbbc021.read_moa_csv(moa_csv, names), names)
        if "Metadata_MoA" not in table:
            raise BadData("no column 'moa' (any case, with or without Metadata_): give --moa_csv")
        table["Metadata_MoA"] = names.merge("moa", table["Metadata_MoA"])
        for column in _COUNTS & set(table):
            table[column] = _parsed(table[column], partial(whole, column)).astype(np.int64)
        split = split_columns(raw, table) if features is None else Columns(list(features), {})
        if not split.features:
            reasons = (f"{name} ({reason})" for name, reason in split.left_out.items())
            raise BadData(f"no feature columns; left out were {listed(reasons, 6) or 'none'}")
        values = _numbers(raw, split.features)
        _check_values(values, split.features)
    except BadData as error:
        message = str(error)
        raise BadData(message if message.startswith(source) else f"{source}: {message}") from error
    first = [name for name in NAMES.values() if name in table]
    others = [c for c in table if str(c).startswith("Metadata_") and c not in first]
    table = with_features(table[[*first, *others]], values, split.features)
    notes = [*names.notes]
    if split.published:
        notes.append(
            f"all features of {split.published} are used as published, including numbers and "
            "locations of objects"
        )
    return ProfileTable(table, split.features, split.left_out, values, control, notes)


def _read(path: Path) -> pd.DataFrame:
    """Reads the file, with metadata as text: a compound 'NA' and a plate '007' do not change."""
    if not path.is_file():
        raise BadUse(f"{path}: no such file")
    if not path.name.lower().endswith(_FORMATS):
        raise BadUse(f"{path}: one of {', '.join(_FORMATS)} was expected")
    try:
        if path.suffix.lower() == ".parquet":
            return _with_index(pd.read_parquet(path))
        return _read_csv(path)
    except (EOFError, zlib.error, OSError, UnicodeDecodeError, ValueError) as error:
        # Errors of pandas and pyarrow are ValueErrors; a truncated gzip file is an EOFError.
        raise BadData(f"{path}: cannot be read ({error}); is it complete?") from error


def _read_csv(path: Path) -> pd.DataFrame:
    """Reads a CSV file without the blank rows and columns that spreadsheets append."""
    options: dict[str, Any] = {"keep_default_na": False, "encoding": "utf-8-sig"}
    first = pd.read_csv(path, header=None, nrows=1, dtype=str, **options).iloc[0]
    written = [str(name).strip() for name in first]
    reject_other_separator(written, path)
    _reject_repeated(pd.Index(name for name in written if name), str(path))
    header = [name or f"Unnamed: {place}" for place, name in enumerate(written)]
    known = set(METADATA.values())
    text = [name for name, canonical in metadata_names(header).items() if canonical in known]
    table = pd.read_csv(
        path,
        header=0,
        names=header,
        dtype=dict.fromkeys(text, str),
        na_values={column: _MISSING for column in header if column not in text},
        low_memory=False,
        **options,
        **_EXACT,
    )
    nameless = [name for name, own in zip(header, written, strict=True) if not own]
    table = table.drop(columns=[name for name in nameless if table[name].isna().all()])
    blank = np.ones(len(table), bool)
    for column in table:
        blank &= (table[column].isna() | (table[column] == "")).to_numpy()
        if not blank.any():
            return table
    return table[~blank].reset_index(drop=True)


def _with_index(table: pd.DataFrame) -> pd.DataFrame:
    """Turns metadata in the index into columns, and drops all other index levels."""
    known = metadata_names(name for name in table.index.names if name is not None)
    if levels := [name for name in known if name not in table]:
        table = table.reset_index(levels)
    return table.reset_index(drop=True)


def _reject_repeated(columns: pd.Index, source: str) -> None:
    """Raises BadData where two columns have one name."""
    if len(twice := columns[columns.duplicated()]):
        raise BadData(f"{source}: there are two columns {str(twice[0])!r}: delete or rename one")


def _with_wells(table: pd.DataFrame, names: Names) -> pd.DataFrame:
    """Merges spellings of plates and wells, and adds missing columns."""
    table = table.copy()
    for name in ("plate", "well"):
        column = NAMES[name]
        if column in table:
            table[column] = names.merge(name, table[column])
            empty = table[column] == ""
            if empty.all():
                del table[column]
            elif empty.any():
                raise BadData(f"row {_first(empty)}: the {name} is empty")
    if "Metadata_Well" not in table:
        table["Metadata_Well"] = [f"row {index + 1}" for index in range(len(table))]
    if "Metadata_Plate" not in table:
        repeated = table["Metadata_Well"].duplicated()
        if repeated.any():
            well = table["Metadata_Well"].iloc[_first(repeated) - 1]
            raise BadData(
                f"row {_first(repeated)}: well {well!r} is repeated, and no column names plates: "
                f"Metadata_Plate (or {', '.join(SYNONYMS['plate'][1:])}) was expected"
            )
        table["Metadata_Plate"] = ""
    return table


def _with_treatments(table: pd.DataFrame, control: str, names: Names) -> tuple[pd.DataFrame, str]:
    """Merges compounds, parses concentrations, adds batches; also returns the controls' name."""
    for name in ("Compound", "Concentration"):
        if f"Metadata_{name}" not in table:
            raise BadData(
                f"no column {name.lower()!r} (any case, with or without Metadata_): give "
                "--image_csv"
            )
    compounds = pd.Series(names.merge("compound", table["Metadata_Compound"]))
    # Controls have one spelling even with exact names: later code compares it exactly.
    control = control_spelling(compounds, control)
    compounds = compounds.mask(is_control(compounds, control), control)
    doses = set_controls(_parsed(table["Metadata_Concentration"], _AMOUNT), compounds, control)
    table["Metadata_Compound"] = compounds.to_numpy()
    table["Metadata_Concentration"] = doses
    names.note_missing("compound", (compounds == "").to_numpy())
    names.note_missing("concentration", np.isnan(doses))
    if "Metadata_Batch" not in table:
        plates = table["Metadata_Plate"]
        named = plates.str.contains("_", regex=False).all()
        table["Metadata_Batch"] = plates.str.partition("_")[0] if named else ""
    table["Metadata_Batch"] = names.merge("batch", table["Metadata_Batch"])
    return table, control


def _parsed(values: pd.Series, parse_text: Callable[[str], float]) -> np.ndarray:
    """Parses values to [N] float64, each distinct one once; BadData names the row of an error."""
    codes, distinct = pd.factorize(values.astype(object), use_na_sentinel=False)
    numbers = np.empty(len(distinct))
    for place, value in enumerate(distinct):
        try:
            numbers[place] = parse_text("" if pd.isna(value) else str(value).strip())
        except ValueError as error:
            raise BadData(f"row {_first(codes == place)}: {error}") from error
    return numbers[codes]


def _join_images(
    table: pd.DataFrame, images: pd.DataFrame, path: str | Path, names: Names
) -> pd.DataFrame:
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
            f"row {row}: well {well!r} of plate {plate!r} is not in {path} (nor are the wells of "
            f"{int(missing.sum()) - 1} other rows)"
        )
    for name in ("compound", "concentration", "batch"):
        _reject_contradiction(table, name, joined[name], names)
        table[NAMES[name]] = joined[name].to_numpy()
    if "Metadata_Replicate" not in table:
        table["Metadata_Replicate"] = joined["replicate"].to_numpy(np.int64)
    return table


def _join_moa(table: pd.DataFrame, moa: pd.DataFrame, names: Names) -> pd.DataFrame:
    """Takes the MoA from the MoA table."""
    keys = table[["Metadata_Compound", "Metadata_Concentration"]]
    annotated = bbbc021.annotate(keys.set_axis(["compound", "concentration"], axis=1), moa)
    _reject_contradiction(table, "moa", annotated["moa"], names)
    table["Metadata_MoA"] = annotated["moa"].to_numpy()
    return table


def _reject_contradiction(table: pd.DataFrame, name: str, joined: pd.Series, names: Names) -> None:
    """Raises BadData if the table contradicts the joined file."""
    column = NAMES[name]
    if column not in table:
        return
    other = joined.to_numpy()
    if name == "concentration":
        own = set_controls(_parsed(table[column], _AMOUNT), table["Metadata_Compound"])
        wrong = ~np.isnan(own) & (own != other)
    else:
        own = names.merge(name, table[column])
        wrong = (own != "") & (own != other)
    if wrong.any():
        row = _first(wrong)
        # tolist: the repr of NumPy's numbers names their type.
        first, second = (values[wrong].tolist()[0] for values in (own, other))
        raise BadData(f"row {row}: {column} is {first!r}, but {second!r} in the joined file")


def _numbers(raw: pd.DataFrame, features: list[str]) -> np.ndarray:
    """Copies features to [N, D] float64; missing values of any type become NaN."""
    table = raw[features]
    if all(isinstance(kind, np.dtype) for kind in table.dtypes):
        return np.array(table, np.float64)
    return table.to_numpy(np.float64, na_value=np.nan, copy=True)


def _check_values(values: np.ndarray, features: list[str]) -> None:
    """Raises BadData for missing, NaN or infinite values, and for a repeated feature."""
    bad = ~np.isfinite(values)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise BadData(
            f"feature {features[column]!r} is missing or not finite in row {row + 1} "
            f"(line {row + 2} of a CSV file); {bad.sum()} such values in {bad.any(axis=1).sum()} "
            f"rows and {bad.any(axis=0).sum()} features"
        )
    first: dict[str, int] = {}
    for place, name in enumerate(features):
        column = values[:, place]
        other = first.setdefault(_REPEATED.sub("", fold(name)), place)
        if other != place and np.array_equal(values[:, other], column) and np.ptp(column) > 0:
            raise BadData(
                f"features {features[other]!r} and {name!r} are the same column: delete one"
            )


def _first(condition: pd.Series | np.ndarray) -> int:
    """Number, from 1, of the first row for which the condition is true."""
    return int(np.argmax(np.asarray(condition))) + 1
