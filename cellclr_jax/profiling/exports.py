"""Writes profile tables atomically: Parquet and CSV, and h5ad (AnnData) for scanpy."""

from collections import Counter
from collections.abc import Callable, Sequence
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cellclr_jax.data.columns import CELL_ID
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.files import atomic_write
from cellclr_jax.profiling.protocol import FORMATS

_METADATA = "Metadata_"


def write_table(
    table: pd.DataFrame, path_without_suffix: str | Path, formats: Sequence[str] = ("parquet",)
) -> list[Path]:
    """Writes a table atomically in each format.

    Args:
      table: `Metadata_*` columns and numeric features, distinct names; the index is not written.
      path_without_suffix: in an existing folder; the suffix is the name of the format.
      formats: of `FORMATS`. `parquet` keeps types and values; a metadata column of several types
        becomes text. `csv` writes the fewest digits that identify a number of its type
        (`pandas.read_csv` restores it exactly, with pandas 2 if float_precision="round_trip");
        missing text becomes ''. `h5ad` stores features as X (float32 if all are, else float64) and
        metadata as obs, text as categories.

    Returns:
      The files, in the order of the formats. Columns keep their order, with metadata first.

    Raises:
      BadUse: an unknown format, or its package is not installed.
      BadData: two columns of one name, or a feature that is not numeric.
      OSError: the disk is full, or the folder cannot be written to; an existing file stays.
    """
    check_formats(formats)
    table = _in_order(table)
    metadata = [name for name in table.columns if name.startswith(_METADATA)]
    written = []
    for kind in formats:
        path = Path(f"{path_without_suffix}.{kind}")
        with atomic_write(path) as part:
            _WRITERS[kind](table, metadata, part)
        written.append(path)
    return written


def check_formats(formats: Sequence[str]) -> None:
    """Raises BadUse without formats, for an unknown one, or if its package is not installed."""
    unknown = [kind for kind in formats if kind not in FORMATS]
    if unknown or not formats:
        raise BadUse(f"formats {', '.join(formats)!r}: some of {', '.join(FORMATS)} were expected")
    if "h5ad" in formats and util.find_spec("anndata") is None:
        raise BadUse(
            "the format h5ad needs the package anndata: pip install 'cellclr_jax[anndata]'"
        )


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Puts metadata before features, without a copy if possible; BadData: see `write_table`."""
    names = [str(column) for column in table.columns]
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise BadData(f"the table has two columns {repeated[0]!r}: delete or rename one")
    if names != list(table.columns):
        table = table.set_axis(names, axis=1)
    for name, dtype in table.dtypes.items():
        if not str(name).startswith(_METADATA) and not pd.api.types.is_numeric_dtype(dtype):
            raise BadData(f"column {name!r} is neither numeric nor named {_METADATA}…: rename it")
    ordered = sorted(names, key=lambda name: not name.startswith(_METADATA))
    return table if ordered == names else table[ordered]


def _write_parquet(table: pd.DataFrame, metadata: list[str], path: Path) -> None:
    mixed = [name for name in metadata if pd.api.types.infer_dtype(table[name]).startswith("mixed")]
    if mixed:
        table = table.assign(**{name: _texts(table[name]) for name in mixed})
    # Feature values hardly repeat: dictionary encoding would be slower and larger.
    table.to_parquet(path, index=False, use_dictionary=metadata)


def _write_csv(table: pd.DataFrame, metadata: list[str], path: Path) -> None:
    table.to_csv(path, index=False, encoding="utf-8", lineterminator="\n")


def _write_h5ad(table: pd.DataFrame, metadata: list[str], path: Path) -> None:
    import anndata

    features = [name for name in table.columns if name not in set(metadata)]
    narrow = bool(features) and all(table[name].dtype == np.float32 for name in features)
    values = table[features].to_numpy(np.float32 if narrow else np.float64)
    obs = pd.DataFrame(
        {name: _observed(table[name]) for name in metadata}, index=_names_of_rows(table)
    )
    var = pd.DataFrame(index=pd.Index(features, dtype=object))
    anndata.AnnData(X=values, obs=obs, var=var).write_h5ad(path)


def _names_of_rows(table: pd.DataFrame) -> pd.Index:
    """Names of AnnData's observations: cell ids if they are distinct, else row numbers."""
    ids = table.get(CELL_ID)
    if ids is not None and ids.notna().all() and ids.is_unique:
        return pd.Index([str(value) for value in ids], dtype=object)
    return pd.Index([str(number) for number in range(len(table))], dtype=object)


def _observed(values: pd.Series) -> Any:
    """Converts metadata to types that AnnData can write: numbers, bools or categories of text."""
    if pd.api.types.is_bool_dtype(values.dtype) or pd.api.types.is_numeric_dtype(values.dtype):
        return values.to_numpy() if isinstance(values.dtype, np.dtype) else values.array
    texts = _texts(values)
    known = pd.Index(sorted(set(texts.dropna())), dtype=object)
    return pd.Categorical.from_codes(known.get_indexer(texts), categories=known)


def _texts(values: pd.Series) -> pd.Series:
    """Converts values [N] of any dtype, including pandas 3's str, to str or None as objects."""
    missing = values.isna()
    texts = [None if gone else str(v) for v, gone in zip(values, missing, strict=True)]
    return pd.Series(texts, values.index, dtype=object)


_WRITERS: dict[str, Callable[[pd.DataFrame, list[str], Path], None]] = dict(
    zip(FORMATS, (_write_parquet, _write_csv, _write_h5ad), strict=True)
)
