"""Names of columns and of the controls in all tables."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from cellclr_jax.data.names import fold

if TYPE_CHECKING:  # flags need `CONTROL` before pandas is imported
    import numpy as np
    import pandas as pd

# All metadata of a cell and their types, in the order of every table. A source has some of them.
# `label` is a class of any kind.
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

# Canonical name by `plain_name`.
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

# Names of the metadata in a profile table. A label belongs to a cell, not to a well.
NAMES = {name: METADATA[name] for name in COLUMNS if name != "label"}
CELL_ID = "Metadata_CellId"
# The same for a table with one row for each cell.
CELL_NAMES = {"cell_id": CELL_ID, **NAMES, "label": "Metadata_Label"}

# Other names of columns, the likelier first: a barcode is unique, a plate's number may not be.
_ALIASES = {
    "plate": (
        "barcode",
        "platebarcode",
        "assayplatebarcode",
        "plateid",
        "platename",
        "assayplate",
        "platenumber",
    ),
    "well": ("wellid", "wellname", "wellposition"),
    "site": ("field",),
    "label": ("class", "classname"),
}
SYNONYMS: dict[str, tuple[str, ...]] = {name: (name, *_ALIASES.get(name, ())) for name in COLUMNS}
"""Names (`plain_name`) of a column on input; the first one found is used."""

_PREFIX = re.compile(r"(image_)?metadata_", re.IGNORECASE)
# BBBC021's image table appends a channel to the names of its columns of plates and wells.
_CHANNEL = re.compile(r"_(dapi|dna)$", re.IGNORECASE)
_SEPARATORS = re.compile(r"[ _-]")


def has_prefix(column: str) -> bool:
    """Whether a column's name begins with `Metadata_` or `Image_Metadata_`, in any case."""
    return _PREFIX.match(column) is not None


def plain_name(column: str) -> str:
    """Normalises a column's name: removes prefix, case, underscores, hyphens and spaces.

    Example:
      plain_name("Image_Metadata_Plate_DAPI") == plain_name("Metadata_plate") == "plate"
    """
    column = column.strip()
    if has_prefix(column):
        column = _CHANNEL.sub("", _PREFIX.sub("", column, count=1))
    return _SEPARATORS.sub("", column).lower()


CONTROL = "DMSO"
"""The controls' compound, unless a setting names another."""


def is_control(compounds: "pd.Series", control: str = CONTROL) -> "pd.Series":
    """Checks whether each compound [N] str is the control in any spelling; returns [N] bool."""
    import numpy as np
    import pandas as pd

    codes, distinct = pd.factorize(compounds)
    wanted = fold(control)
    same = [fold(str(name)) == wanted for name in distinct]
    return pd.Series(np.array([*same, False])[codes], compounds.index)


def control_spelling(compounds: "pd.Series", control: str = CONTROL) -> str:
    """Finds the commonest spelling of the control among compounds [N]; `control` if none is one."""
    spellings = Counter(compounds[is_control(compounds, control)])
    return str(spellings.most_common(1)[0][0]) if spellings else control


# Concentrations are equal if they agree to six significant digits: files may have 0.3 and its
# float32, 0.300000012, and no dilution series is finer.
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


def set_controls(
    concentrations: Iterable[float], compounds: "pd.Series", control: str = CONTROL
) -> "np.ndarray":
    """Rounds concentrations and sets unknown ones of controls to 0.

    Args:
      concentrations: [N] floats in µM; NaN: unknown.
      compounds: [N] str.
      control: their control.

    Returns:
      [N] float64; NaN for an unknown concentration of a treatment.
    """
    import numpy as np

    rounded = round_concentrations(concentrations)
    rounded[np.isnan(rounded) & is_control(compounds, control).to_numpy()] = 0.0
    return rounded
