"""Names of columns, and which compound is the control: one vocabulary for all tables."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # flags take the controls' name from here, and must not wait for pandas
    import numpy as np
    import pandas as pd

# What may be known of a cell besides its image, and its type, in this order in every table. Sources
# have some of them; no other column exists. `label` is a class of any kind.
COLUMNS: dict[str, type] = {
    "plate": str,
    "well": str,
    "site": int,
    "batch": str,
    "compound": str,
    "concentration": float,
    "moa": str,
    "replicate": int,
    "label": str,
}

# Canonical name by the column's name in lower case without prefix, underscores and spaces.
METADATA = {
    "plate": "Metadata_Plate",
    "well": "Metadata_Well",
    "site": "Metadata_Site",
    "batch": "Metadata_Batch",
    "compound": "Metadata_Compound",
    "concentration": "Metadata_Concentration",
    "moa": "Metadata_MoA",
    "replicate": "Metadata_Replicate",
    "cellcount": "Metadata_CellCount",
    "wellcount": "Metadata_WellCount",
}

# What a cell's columns are called in a profile table. A label belongs to a cell, not to its site.
NAMES = {name: METADATA[name] for name in COLUMNS if name != "label"}
CELL_ID = "Metadata_CellId"
# The same for a table with one row a cell.
CELL_NAMES = {"cell_id": CELL_ID, **NAMES, "label": "Metadata_Label"}

# What else tables call a column, in lower case: BBBC021's own table and CellProfiler's exports have
# prefixes, and the former an ending.
_OTHER_NAMES = {
    "plate": ("image_metadata_plate_dapi",),
    "well": ("image_metadata_well_dapi",),
    "site": ("metadata_field", "image_metadata_field"),
    "label": ("class", "class_name", "metadata_class"),
}
SYNONYMS: dict[str, tuple[str, ...]] = {
    name: (
        name,
        f"metadata_{name}",
        f"image_metadata_{name}",
        *_OTHER_NAMES.get(name, ()),
    )
    for name in COLUMNS
}
"""The names that a column goes by on input, in lower case; the first one found is taken."""

CONTROL = "DMSO"
"""The controls' compound, unless a setting names another."""


def is_control(compounds: "pd.Series", control: str = CONTROL) -> "pd.Series":
    """[N] bool: which of these names, [N] str, is the controls', in any case."""
    return compounds.str.strip().str.lower() == control.strip().lower()


# Concentrations are equal when they agree to six significant digits: a file may hold 0.3, another
# 0.300000012 (a float32 written out), and no dilution series is finer than that.
SIGNIFICANT_DIGITS = 6


def round_concentrations(concentrations: Iterable[float]) -> "np.ndarray":
    """Rounds to six significant digits, so that concentrations can be compared and grouped.

    Args:
      concentrations: [N] floats of any scale; NaN stays NaN.

    Returns:
      [N] float64.
    """
    import numpy as np

    values, index = np.unique(np.asarray(concentrations, np.float64), return_inverse=True)
    rounded = [float(f"{value:.{SIGNIFICANT_DIGITS - 1}e}") for value in values]
    return np.asarray(rounded, np.float64)[index.reshape(-1)]
