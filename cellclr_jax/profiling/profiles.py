"""Averages cells into wells and treatments: profile tables with pycytominer's column names.

A profile table has `Metadata_*` columns (Plate, Well, Batch, Compound, Concentration, MoA,
CellCount, and where known Site, Replicate), then features.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellclr_jax.data.columns import NAMES, is_control, round_concentrations
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.profiling.feature_columns import split_columns, with_features
from cellclr_jax.profiling.group_statistics import group_means, group_medians, group_sums
from cellclr_jax.profiling.moa import BATCH_SEPARATOR, batch_order, name_treatment
from cellclr_jax.profiling.protocol import AGGREGATES, STATISTICS

if TYPE_CHECKING:
    from pandas.core.groupby import DataFrameGroupBy

_WELL = ["Metadata_Plate", "Metadata_Well"]
_SITE = [*_WELL, "Metadata_Site"]
# Metadata of which a well has a single value.
_PER_WELL = ("Batch", "Compound", "Concentration", "MoA")


class WellAccumulator:
    """Accumulates means of embeddings over wells (or sites), minibatch by minibatch.

    Holds one float64 sum a well, so that not all cells need to be in memory. `aggregate_wells` can
    aggregate a table of one row a site either way.

    Attributes:
      features: the D feature names.

    Example:
      accumulator = WellAccumulator(sites, feature_names(2048))
      accumulator.add(embeddings, site_index)   # [N, 2048], [N]
      wells = aggregate_wells(accumulator.table(), through="well", features=accumulator.features)
    """

    def __init__(self, rows: pd.DataFrame, features: Sequence[str]) -> None:
        """Creates an accumulator without cells.

        Args:
          rows: `Metadata_*` columns, one row a well (or site); row i is index i in `add`.
          features: the D feature names.
        """
        self._rows = rows.reset_index(drop=True).drop(columns="Metadata_CellCount", errors="ignore")
        self.features = list(features)
        self._sums = np.zeros((len(rows), len(self.features)), np.float64)
        self._counts = np.zeros(len(rows), np.int64)

    def add(self, embeddings: np.ndarray, index: np.ndarray) -> None:
        """Adds N cells.

        Args:
          embeddings: [N, D] any float type.
          index: [N] int, row of each cell; negative for padding, which is ignored.
        """
        real = index >= 0
        rows, sums = group_sums(embeddings[real], index[real])
        self._sums[rows] += sums
        self._counts += np.bincount(index[real], minlength=len(self._counts))

    def table(self) -> pd.DataFrame:
        """Returns the profile table: metadata, Metadata_CellCount and means of rows with cells.

        Raises:
          BadData: there are no cells, or a mean is not finite.
        """
        used = self._counts > 0
        if not used.any():
            raise BadData("no cells were added: there is no profile")
        means = self._sums[used] / self._counts[used, None]
        rows = self._rows[used].reset_index(drop=True)
        if not np.isfinite(means).all():
            bad = rows.iloc[int(np.argmin(np.isfinite(means).all(axis=1)))]
            raise BadData(f"the embeddings of {_name(bad)} hold NaN or an infinite value")
        rows = rows.assign(Metadata_CellCount=self._counts[used])
        return pd.concat([rows, pd.DataFrame(means, columns=self.features)], axis=1)


def feature_names(dims: int, prefix: str = "cellclr") -> list[str]:
    """Names of `dims` features: 'cellclr_0000' …"""
    return [f"{prefix}_{index:04d}" for index in range(dims)]


def check_wells(table: pd.DataFrame) -> None:
    """Checks that each well has one compound, concentration, MoA and batch.

    Args:
      table: one row a well, site or cell: Metadata_Plate, Metadata_Well and further metadata.

    Raises:
      BadData: a well has two; the message names the well and both values.
    """
    _groups(table, _WELL)


def aggregate_wells(
    cells: pd.DataFrame, *, through: str = "well", features: Sequence[str] | None = None
) -> pd.DataFrame:
    """Averages cells (or sites) into wells.

    Args:
      cells: one row a cell, or a group of Metadata_CellCount cells (a site); Metadata_Plate,
        Metadata_Well, further metadata and features.
      through: 'well' is the mean of the well's cells; 'site' the mean of its sites' means, which
        needs Metadata_Site.
      features: the feature columns; by default those of `feature_columns.split_columns`.

    Returns:
      One row a well, sorted by plate and well; Metadata_CellCount is the number of cells.

    Raises:
      BadUse: an unknown `through`.
      BadData: a column is missing, or a well holds two compounds, concentrations, MoAs or batches.
    """
    if through not in AGGREGATES:
        raise BadUse(f"aggregate {through!r}: one of {', '.join(AGGREGATES)} was expected")
    for column in _SITE if through == "site" else _WELL:
        if column not in cells:
            raise BadData(f"aggregating by {through} needs column {column}")
        if cells[column].isna().any():
            row = int(np.argmax(cells[column].isna().to_numpy()))
            raise BadData(f"row {row + 1}: {column} is missing")
    features = split_columns(cells).features if features is None else list(features)
    if "Metadata_CellCount" in cells and (cells["Metadata_CellCount"] == 0).any():
        cells = cells[cells["Metadata_CellCount"] > 0].reset_index(drop=True)  # no profile
    counts = cells.get("Metadata_CellCount", pd.Series(1, cells.index)).to_numpy()
    values = cells[features].to_numpy(np.float64)
    if through == "site":
        sites, site_index = _groups(cells, _SITE)
        values = group_means(values, site_index, counts)
        counts = np.bincount(site_index, weights=counts)
        cells = sites
    wells, index = _groups(cells, _WELL)
    weights = counts if through == "well" else np.ones(len(cells))
    means = pd.DataFrame(group_means(values, index, weights), columns=features)
    wells["Metadata_CellCount"] = np.bincount(index, weights=counts).round().astype(np.int64)
    wells = wells.drop(columns="Metadata_Site", errors="ignore")
    return pd.concat([wells, means], axis=1)


def treatment_profiles(
    wells: pd.DataFrame, *, statistic: str = "median", features: Sequence[str] | None = None
) -> pd.DataFrame:
    """Computes treatment profiles (compound and concentration): the median or mean of wells.

    Args:
      wells: one row a well; Metadata_Compound, Metadata_Concentration (NaN if unknown),
        Metadata_MoA, Metadata_Batch and features. Controls are treated like other compounds.
      statistic: 'median' or 'mean', feature by feature.
      features: the feature columns; by default those of `feature_columns.split_columns`.

    Returns:
      One row a treatment, sorted by compound and concentration, an unknown one last. Metadata_Batch
      joins its batches by '|' (Week2 before Week10); Metadata_WellCount and Metadata_CellCount are
      sums over its wells.

    Raises:
      BadUse: an unknown statistic.
      BadData: a treatment has two MoAs, or a well no compound.
    """
    features = split_columns(wells).features if features is None else list(features)
    return treatments_of(wells, wells[features].to_numpy(np.float64), features, statistic=statistic)


def treatments_of(
    wells: pd.DataFrame,
    values: np.ndarray,
    features: Sequence[str],
    *,
    statistic: str = "median",
    used: np.ndarray | None = None,
) -> pd.DataFrame:
    """Computes `treatment_profiles` of features in a separate array.

    Args:
      wells: [N] rows of metadata.
      values: [N, D] float64.
      features: the D names.
      statistic: 'median' or 'mean'.
      used: [N] bool, wells to use; None uses all.
    """
    if statistic not in STATISTICS:
        raise BadUse(f"statistic {statistic!r}: one of {', '.join(STATISTICS)} was expected")
    used = np.ones(len(wells), bool) if used is None else used
    nameless = used & (wells["Metadata_Compound"].fillna("") == "").to_numpy()
    if nameless.any():
        raise BadData(f"row {int(np.argmax(nameless)) + 1} has no compound: one was expected")
    grouped = _by_treatment(wells[used].fillna({"Metadata_Batch": "", "Metadata_MoA": ""}))
    index = np.full(len(wells), -1)
    index[used] = grouped.ngroup().to_numpy()
    of_groups = group_medians if statistic == "median" else group_means
    return with_features(_of_treatments(grouped), of_groups(values, index), features)


def in_first_batch(wells: pd.DataFrame) -> np.ndarray:
    """Marks wells of each treatment's first batch (Week2 before Week10), for 'week1'; [N] bool."""
    batches = _by_treatment(wells)["Metadata_Batch"]
    first = batches.transform(lambda names: min(names.unique(), key=batch_order))
    return (wells["Metadata_Batch"] == first).to_numpy()


def _by_treatment(wells: pd.DataFrame) -> "DataFrameGroupBy[Any, Any]":
    """Groups the wells' metadata by treatment; an unknown concentration (NaN) is a group, too."""
    columns = [f"Metadata_{name}" for name in (*_PER_WELL, "CellCount")]
    rounded = round_concentrations(wells["Metadata_Concentration"])
    metadata = wells[[column for column in columns if column in wells]]
    keys = [wells["Metadata_Compound"].to_numpy(), rounded]
    return metadata.groupby(keys, sort=True, dropna=False)


def _of_treatments(grouped: "DataFrameGroupBy[Any, Any]") -> pd.DataFrame:
    """Metadata of each treatment."""
    mixed = grouped["Metadata_MoA"].nunique() > 1
    if mixed.any():
        key, group = next(
            (key, moas.unique()) for key, moas in grouped["Metadata_MoA"] if moas.nunique() > 1
        )
        name = name_treatment(pd.Series(key, ["compound", "concentration"]))
        raise BadData(
            f"{name} has two MoAs, {group[0]!r} and {group[1]!r}: one MoA a treatment was expected"
        )
    table = pd.DataFrame(
        {
            "Metadata_MoA": grouped["Metadata_MoA"].first(),
            "Metadata_Batch": grouped["Metadata_Batch"].agg(_joined),
            "Metadata_WellCount": grouped.size(),
        }
    )
    if "Metadata_CellCount" in grouped.obj.columns:
        table["Metadata_CellCount"] = grouped["Metadata_CellCount"].sum()
    table.index.names = ["Metadata_Compound", "Metadata_Concentration"]
    return table.reset_index()


def _joined(batches: pd.Series) -> str:
    """Distinct batches in order, joined."""
    return BATCH_SEPARATOR.join(sorted(batches.unique(), key=batch_order))


def _groups(table: pd.DataFrame, keys: list[str]) -> tuple[pd.DataFrame, np.ndarray]:
    """Metadata of each group, sorted by `keys`, and the group of each row.

    Leaves out columns that vary within a group; BadData if it is one of `_PER_WELL`.
    """
    grouped = table.groupby(keys, sort=True)
    index = grouped.ngroup().to_numpy()
    columns = [str(c) for c in table if str(c).startswith("Metadata_")]
    columns = [c for c in columns if c != "Metadata_CellCount"]
    first = np.unique(index, return_index=True)[1]
    metadata = table[columns].iloc[first].reset_index(drop=True)
    for column in (column for column in columns if column not in keys):
        codes = pd.factorize(table[column], use_na_sentinel=False)[0]
        differing = np.flatnonzero(codes != codes[first][index])
        if not len(differing):
            continue
        if column.removeprefix("Metadata_") in _PER_WELL:
            row = differing[0]
            # tolist: the repr of NumPy's numbers names their type.
            values = table[column].iloc[[first[index[row]], row]].tolist()
            raise BadData(
                f"{_name(table.iloc[row], keys)} has two values of {column}, {values[0]!r} and "
                f"{values[1]!r}: one value was expected"
            )
        metadata = metadata.drop(columns=column)
    return metadata, index


def _name(row: pd.Series, columns: Sequence[str] = _SITE) -> str:
    """'plate P, well W' (and site) for a message."""
    parts = [(c.removeprefix("Metadata_").lower(), row[c]) for c in columns if c in row]
    return ", ".join(f"{name} {value}" for name, value in parts) or "a row"


def has_treatments(cells: pd.DataFrame, control: str) -> bool:
    """Whether there is a treatment to score: a compound with a MoA that is not the control.

    Args:
      cells: one row a cell, columns of `data.columns.COLUMNS`.
      control: the controls' compound, in any case.
    """
    if not {"plate", "well", "compound", "moa"} <= set(cells):
        return False
    treated = ~is_control(cells["compound"], control)
    return bool((_is_known(cells) & treated & (cells["moa"].fillna("") != "")).any())


def sites_of(cells: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """Lists the sites of a dataset, or its wells if there are no sites.

    An unknown batch becomes ''; an unknown concentration is NaN.

    Args:
      cells: one row a cell: plate, well, compound, moa and other columns of `data.columns.COLUMNS`.

    Returns:
      (one row a site with `Metadata_*` columns, [N] int: the row of each cell's site; -1 for a
      cell without plate, well or compound).
    """
    known = _is_known(cells)
    # Grouping by all columns turns a site with two compounds into two sites, which `check_wells`
    # reports; otherwise one of the compounds would be lost.
    table = cells.loc[known, [name for name in NAMES if name in cells]]
    table = table.fillna({"batch": "", "moa": ""})
    groups = table.groupby(list(table), sort=True, dropna=False)
    sites = groups.size().index.to_frame(index=False).rename(columns=NAMES)
    for column, value in (("Metadata_Batch", ""), ("Metadata_Concentration", np.nan)):
        if column not in sites:
            sites[column] = value
    index = np.full(len(cells), -1)
    index[known.to_numpy()] = groups.ngroup().to_numpy()
    return sites, index


def _is_known(cells: pd.DataFrame) -> pd.Series:
    """Marks cells with a plate, a well and a compound, [N] bool."""
    return (cells[["plate", "well", "compound"]].fillna("") != "").all(axis=1)
