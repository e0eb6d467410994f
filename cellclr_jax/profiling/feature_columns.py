"""Classifies the columns of a profile table: metadata, features, or neither.

A compound's number among the features would leak the answer, so a numeric column has to look like
a measurement to count as one. Columns that are left out are reported with the reason.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cellclr_jax.data.columns import METADATA, SYNONYMS, has_prefix, plain_name
from cellclr_jax.errors import BadData

_OWN_FEATURE = re.compile(r"^cellclr_\d+$")
# CellProfiler's numbers of objects and their relatives, and where they lie in the image.
_NO_MEASUREMENT = re.compile(
    r"(^|_)((first|second)?closest)?(object_?number|image_?number|number_object|parent|children"
    r"|location|trackobjects|areashape_center|areashape_boundingbox(minimum|maximum))(_|$)",
    re.IGNORECASE,
)
# CellProfiler's compartments: any other such column is a measurement, whatever its name says.
_COMPARTMENT = re.compile(r"^(cells?|cytoplasm|nuclei|nucleus)_", re.IGNORECASE)
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
# A column with one of these words in its name identifies a row and does not describe its cells.
_IDENTIFYING = re.compile(
    r"id|ids|uid|index|idx|number|num|count|counts|code|label|class|cluster|unnamed|metadata"
    r"|compound|drug|treatment|concentration|dose|moa|mechanism|target|barcode|smiles|inchi|broad"
    r"|plate|well|site|batch|week|replicate|row|rows|column|columns|col|cols|table|image|object"
    r"|field|center|centre|location|timestamp|date|run"
)

# Tables with published scores, by the SHA-256 of their sorted columns of compartments: numbers and
# places of objects are kept in these, or the scores could not be compared.
_PUBLISHED = {
    "55c6568e0d3635f1cc10eced0fb1dca56609964544ed5aa3bde13d4dc69dc701": "Ljosa et al. 2013",
}

# Rows that are compared before all others.
_FIRST = 100


@dataclass(frozen=True)
class Columns:
    """The columns of a profile table.

    Attributes:
      features: the numeric columns that are measurements, in the table's order.
      left_out: the columns that are neither features nor metadata, and why.
      published: whose table it is, if it is one whose features are kept as published.
    """

    features: list[str]
    left_out: dict[str, str]
    published: str = ""


def metadata_names(columns: Iterable[object]) -> dict[str, str]:
    """Finds the columns that are metadata by their names.

    Args:
      columns: names of all columns of a table.

    Returns:
      The `Metadata_*` name of each, in the table's order. Of several names for one thing
      (`columns.SYNONYMS`), only the likeliest is renamed.
    """
    plain: dict[str, list[str]] = {}
    names = [str(column) for column in columns]
    for name in names:
        plain.setdefault(plain_name(name), []).append(name)
    renamed: dict[str, str] = {}
    for key, canonical in METADATA.items():
        found = (plain[alias] for alias in SYNONYMS.get(key, (key,)) if alias in plain)
        renamed |= dict.fromkeys(next(found, ()), canonical)
    return {n: renamed.get(n, n) for n in names if n in renamed or has_prefix(n)}


def canonical_metadata(table: pd.DataFrame) -> pd.DataFrame:
    """Renames the metadata columns of a table to `Metadata_*`, and keeps only these.

    Raises:
      BadData: two columns mean the same and differ.
    """
    renamed = metadata_names(table.columns)
    table = table[list(renamed)]
    names = list(renamed.values())
    for name in sorted({name for name in names if names.count(name) > 1}):
        sources = [column for column, other in renamed.items() if other == name]
        values = table[sources].astype(str).to_numpy()
        if (values != values[:, :1]).any():
            raise BadData(f"columns {', '.join(sources)} mean the same and differ: keep one")
    table = table.set_axis(names, axis=1)
    return table.loc[:, ~table.columns.duplicated()]


def own_features(table: pd.DataFrame) -> list[str]:
    """Lists the features of a table that this package made: every column but `Metadata_*`.

    Their names contain those of channels, which may be any word: `split_columns` would take a
    channel `target` for metadata of a compound.
    """
    return [str(column) for column in table if not str(column).startswith("Metadata_")]


def split_columns(table: pd.DataFrame, known: pd.DataFrame | None = None) -> Columns:
    """Separates features from all other columns.

    1. `Metadata_*`, `Image_Metadata_*` and the names of `METADATA` are metadata.
    2. If there are `cellclr_<n>` columns, only they are features.
    3. CellProfiler's numbers of objects, of their parents and children, and places in the image
       are left out, but of published tables (`_PUBLISHED`). Any other column of a compartment
       (Cells_, Cytoplasm_, Nuclei_) is a feature.
    4. A column is left out if its name contains an identifying word (id, number, count, dose …), it
       is text, or its whole numbers stand one to one for a compound, MoA, plate, batch or
       concentration.
    5. Every other numeric column is a feature.

    Args:
      table: any profile table.
      known: what is known of its rows, `Metadata_*`; None takes the table's own metadata.

    Returns:
      The features, and what was left out with the reason.

    Raises:
      BadData: a feature column is text, or most but not all of a column are numbers.
    """
    metadata = metadata_names(table.columns)
    names = [str(column) for column in table if str(column) not in metadata]
    own = [name for name in names if _OWN_FEATURE.match(name)]
    if own:
        left = {name: "not a cellclr_ column" for name in names if name not in set(own)}
        for name in own:
            _require_numeric(table, name)
        return Columns(own, left)
    keys = _keys(canonical_metadata(table) if known is None else known)
    compartments = "\n".join(sorted(filter(_COMPARTMENT.match, names)))
    published = _PUBLISHED.get(hashlib.sha256(compartments.encode()).hexdigest(), "")
    features, left_out = [], {}
    for name in names:
        reason = "a number or place of objects, not a measurement"
        if published or not _NO_MEASUREMENT.search(name):
            reason = _why_not_a_feature(name, table[name], keys)
        if reason:
            left_out[name] = reason
        else:
            features.append(name)
    return Columns(features, left_out, published)


def with_features(table: pd.DataFrame, values: np.ndarray, features: Sequence[str]) -> pd.DataFrame:
    """Joins metadata and features; the table shares the memory of the features.

    Args:
      table: [N] rows of metadata.
      values: [N, D] float64.
      features: the D names.
    """
    joined = pd.DataFrame(values, columns=list(features), copy=False)
    for place, column in enumerate(table):
        joined.insert(place, str(column), table[column].to_numpy())
    return joined


def _why_not_a_feature(name: str, values: pd.Series, keys: dict[str, np.ndarray]) -> str:
    """'' for a feature, else the reason."""
    if _COMPARTMENT.match(name):
        _require_numeric(values.to_frame(name), name)
        return ""
    words = [word for word in _WORDS.findall(name) if _IDENTIFYING.fullmatch(word.lower())]
    if words:
        return f"its name says {' and '.join(words)}"
    if name.lower().startswith("image_"):
        return "describes an image, not cells"
    if pd.api.types.is_bool_dtype(values):
        return "true or false"
    if not pd.api.types.is_numeric_dtype(values):
        if pd.to_numeric(values, errors="coerce").notna().mean() > 0.5:
            _require_numeric(values.to_frame(name), name)
        return "text"
    return _stands_for(values.to_numpy(), keys)


def _require_numeric(table: pd.DataFrame, name: str) -> None:
    """Raises BadData where a feature column holds text."""
    values = table[name]
    if pd.api.types.is_numeric_dtype(values):
        return
    numbers = pd.to_numeric(values, errors="coerce")
    wrong = np.flatnonzero((numbers.isna() & values.notna()).to_numpy())
    row = int(wrong[0]) if len(wrong) else 0
    raise BadData(f"feature {name!r}: row {row + 1} holds {values.iloc[row]!r}, not a number")


def _keys(known: pd.DataFrame) -> dict[str, np.ndarray]:
    """Integer codes of what a column of whole numbers could stand for, and the concentrations."""
    keys = {}
    for name in ("Compound", "MoA", "Plate", "Batch"):
        if f"Metadata_{name}" in known:
            keys[name.lower()] = pd.factorize(known[f"Metadata_{name}"])[0]
    if "Metadata_Concentration" in known:
        numbers = pd.to_numeric(known["Metadata_Concentration"], errors="coerce")
        keys["concentration"] = numbers.to_numpy(np.float64)
    return keys


def _equals(values: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether a column that is not constant equals these numbers; most differ in the first rows."""
    for rows in (slice(_FIRST), slice(None)):
        same = np.isclose(values[rows], wanted[rows], rtol=1e-6, atol=0, equal_nan=True)
        if not same.all():
            return False
    return len(np.unique(values)) > 1


def _stands_for(values: np.ndarray, keys: dict[str, np.ndarray]) -> str:
    """Returns what a numeric column stands for, or ''.

    Measurements averaged over cells are hardly ever whole numbers, and never one and the same for
    all wells of a compound.
    """
    if "concentration" in keys and _equals(values, keys["concentration"]):
        return "equals the concentration"
    if not np.array_equal(values[:_FIRST], np.rint(values[:_FIRST])):
        return ""
    if not np.array_equal(values, np.rint(values)):
        return ""
    codes = pd.factorize(values)[0]
    for name, key in keys.items():
        groups = len(np.unique(key))
        pairs = len(np.unique(np.stack([codes, pd.factorize(key)[0]]), axis=1).T)
        # One row a group proves nothing: any column of distinct numbers would match.
        if 2 < groups < len(key) and pairs == groups == len(np.unique(codes)):
            return f"stands one to one for the {name}"
    return ""
