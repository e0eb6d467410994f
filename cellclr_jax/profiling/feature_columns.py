"""Classifies the columns of a profile table: metadata, features, or neither.

A compound number among the features would leak the class, so only numeric columns that look like
measurements are features. Columns that are left out are reported with the reason.
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
# CellProfiler's numbers of objects and related objects, and their locations in the image.
_NO_MEASUREMENT = re.compile(
    r"(^|_)((first|second)?closest)?(object_?number|image_?number|number_object|parent|children"
    r"|location|trackobjects|areashape_center|areashape_boundingbox(minimum|maximum))(_|$)",
    re.IGNORECASE,
)
# CellProfiler's compartments: all other columns of these are measurements, whatever their name.
_COMPARTMENT = re.compile(r"^(cells?|cytoplasm|nuclei|nucleus)_", re.IGNORECASE)
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
# A column with one of these words in its name identifies rows and does not measure cells.
_IDENTIFYING = re.compile(
    r"id|ids|uid|index|idx|number|num|count|counts|code|label|class|cluster|unnamed|metadata"
    r"|compound|drug|treatment|concentration|dose|moa|mechanism|target|barcode|smiles|inchi|broad"
    r"|plate|well|site|batch|week|replicate|row|rows|column|columns|col|cols|table|image|object"
    r"|field|center|centre|location|timestamp|date|run"
)

# Tables with published scores, by the SHA-256 of their sorted columns of compartments: these keep
# numbers and locations of objects as features, so that the scores can be compared.
_PUBLISHED = {
    "55c6568e0d3635f1cc10eced0fb1dca56609964544ed5aa3bde13d4dc69dc701": "Ljosa et al. 2013",
}

# Rows that are compared first.
_FIRST = 100


@dataclass(frozen=True)
class Columns:
    """The columns of a profile table.

    Attributes:
      features: numeric columns that are measurements, in the order of the table.
      left_out: columns that are neither features nor metadata, with the reason.
      published: authors of a published table, of which all features are used; else ''.
    """

    features: list[str]
    left_out: dict[str, str]
    published: str = ""


def metadata_names(columns: Iterable[object]) -> dict[str, str]:
    """Finds metadata columns by their names.

    Returns:
      `Metadata_*` names by column, in the order of the table. Of several synonyms
      (`columns.SYNONYMS`), only the most likely one is renamed.
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
    """Selects the metadata columns and renames them to `Metadata_*`.

    Raises:
      BadData: two columns have the same meaning and different values.
    """
    renamed = metadata_names(table.columns)
    table = table[list(renamed)]
    names = list(renamed.values())
    for name in sorted({name for name in names if names.count(name) > 1}):
        sources = [column for column, other in renamed.items() if other == name]
        values = table[sources].astype(str).to_numpy()
        if (values != values[:, :1]).any():
            columns = ", ".join(sources)
            raise BadData(f"columns {columns} have the same meaning and differ: delete one")
    table = table.set_axis(names, axis=1)
    return table.loc[:, ~table.columns.duplicated()]


def own_features(table: pd.DataFrame) -> list[str]:
    """Lists the features of a table written by this package: all columns except `Metadata_*`.

    Feature names contain names of channels, which may be any word: `split_columns` would not take a
    feature of a channel `target` for a measurement.
    """
    return [str(column) for column in table if not str(column).startswith("Metadata_")]


def split_columns(table: pd.DataFrame, known: pd.DataFrame | None = None) -> Columns:
    """Separates features from all other columns.

    1. `Metadata_*`, `Image_Metadata_*` and the names of `METADATA` are metadata.
    2. If there are `cellclr_<n>` columns, only they are features.
    3. CellProfiler's numbers of objects, of their parents and children, and locations in the image
       are left out, except in published tables (`_PUBLISHED`). All other columns of a compartment
       (Cells_, Cytoplasm_, Nuclei_) are features.
    4. A column is left out if its name contains an identifying word (id, number, count, dose …), it
       is text, it equals the concentration, or its whole numbers encode compound, MoA, plate or
       batch.
    5. All other numeric columns are features.

    Args:
      table: any profile table.
      known: `Metadata_*` of its rows; None uses the metadata in the table.

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
    """Reason why a column is not a feature, or ''."""
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
    """Raises BadData if a feature column contains text."""
    values = table[name]
    if pd.api.types.is_numeric_dtype(values):
        return
    numbers = pd.to_numeric(values, errors="coerce")
    wrong = np.flatnonzero((numbers.isna() & values.notna()).to_numpy())
    row = int(wrong[0]) if len(wrong) else 0
    raise BadData(f"feature {name!r}: row {row + 1} holds {values.iloc[row]!r}, not a number")


def _keys(known: pd.DataFrame) -> dict[str, np.ndarray]:
    """Returns integer codes [N] of metadata that a feature could encode, and the concentrations."""
    keys = {}
    for name in ("Compound", "MoA", "Plate", "Batch"):
        if f"Metadata_{name}" in known:
            keys[name.lower()] = pd.factorize(known[f"Metadata_{name}"])[0]
    if "Metadata_Concentration" in known:
        numbers = pd.to_numeric(known["Metadata_Concentration"], errors="coerce")
        keys["concentration"] = numbers.to_numpy(np.float64)
    return keys


def _equals(values: np.ndarray, others: np.ndarray) -> bool:
    """Whether a column that is not constant equals another; most differ in the first rows."""
    for rows in (slice(_FIRST), slice(None)):
        same = np.isclose(values[rows], others[rows], rtol=1e-6, atol=0, equal_nan=True)
        if not same.all():
            return False
    return len(np.unique(values)) > 1


def _stands_for(values: np.ndarray, keys: dict[str, np.ndarray]) -> str:
    """Reason if a numeric column encodes metadata, or ''.

    Means over cells are hardly ever whole numbers, and never equal in all wells of a compound.
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
        # With one row a group, any column of distinct numbers would match.
        if 2 < groups < len(key) and pairs == groups == len(np.unique(codes)):
            return f"stands one to one for the {name}"
    return ""
