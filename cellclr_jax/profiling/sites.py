"""Which of a dataset's cells make treatment profiles: their sites, and whether there are any."""

import numpy as np
import pandas as pd

from cellclr_jax.data.fields import COLUMNS
from cellclr_jax.data.tables.controls import is_control
from cellclr_jax.profiling.columns import METADATA

# What a cell's columns are called in a profile table. A label belongs to a cell, not to its site.
NAMES = {name: METADATA[name] for name in COLUMNS if name != "label"}
# Without these there is no treatment profile; what else is known goes with it.
_NEEDED = ("plate", "well", "compound", "moa")


def has_treatments(cells: pd.DataFrame, control: str) -> bool:
    """Whether there is a treatment to score: an annotated compound beside the controls.

    Args:
      cells: one row a cell, columns of `fields.COLUMNS`.
      control: the controls' compound, in any case.
    """
    if not set(_NEEDED) <= set(cells):
        return False
    treated = ~is_control(cells["compound"], control)
    return bool((_is_known(cells) & treated & (cells["moa"].fillna("") != "")).any())


def sites_of(cells: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """The sites (or wells, where no sites are told) of a dataset.

    A batch that is not told is '', so that nothing is computed between batches, and a
    concentration that is not told is 0.

    Args:
      cells: one row a cell: plate, well, compound, moa and other columns of `fields.COLUMNS`.

    Returns:
      (one row a site with `Metadata_*` columns, [N] int: the row of each cell's site; -1 for a
      cell without plate, well or compound).
    """
    known = _is_known(cells)
    # All columns make the groups: a site that holds two compounds becomes two, which
    # `profiles.check_wells` then refuses instead of one of them being lost.
    table = cells.loc[known, [name for name in NAMES if name in cells]]
    table = table.fillna({"batch": "", "moa": "", "concentration": 0.0})
    groups = table.groupby(list(table), sort=True, dropna=False)
    sites = groups.size().index.to_frame(index=False).rename(columns=NAMES)
    for column, value in (("Metadata_Batch", ""), ("Metadata_Concentration", 0.0)):
        if column not in sites:
            sites[column] = value
    index = np.full(len(cells), -1)
    index[known.to_numpy()] = groups.ngroup().to_numpy()
    return sites, index


def _is_known(cells: pd.DataFrame) -> pd.Series:
    """[N] bool: whether a cell has a plate, a well and a compound."""
    return (cells[["plate", "well", "compound"]].fillna("") != "").all(axis=1)
