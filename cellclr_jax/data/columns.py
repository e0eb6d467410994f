"""Names of columns, and which compound is the control: one vocabulary for all tables."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from cellclr_jax.data.names import fold

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

# What a cell's columns are called in a profile table. A label belongs to a cell, not to its site.
NAMES = {name: METADATA[name] for name in COLUMNS if name != "label"}
CELL_ID = "Metadata_CellId"
# The same for a table with one row a cell.
CELL_NAMES = {"cell_id": CELL_ID, **NAMES, "label": "Metadata_Label"}

# What else tables call a column, the likelier first: a barcode is the same on no two plates, which
# a plate's number may be.
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
"""The names (`plain_name`) that a column goes by on input; the first one found is taken."""

_PREFIX = re.compile(r"(image_)?metadata_", re.IGNORECASE)
# BBBC021's image table ends its plate and well with the channel they were read from.
_CHANNEL = re.compile(r"_(dapi|dna)$", re.IGNORECASE)
_SEPARATORS = re.compile(r"[ _-]")


def has_prefix(column: str) -> bool:
    """Whether a column's name begins with `Metadata_` or `Image_Metadata_`, in any case."""
    return _PREFIX.match(column) is not None


def plain_name(column: str) -> str:
    """A column's name without what tables differ in: prefix, case, underscores and spaces.

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
    """[N] bool: which of these names, [N] str, is the controls', in any spelling."""
    import numpy as np
    import pandas as pd

    codes, distinct = pd.factorize(compounds)
    wanted = fold(control)
    same = [fold(str(name)) == wanted for name in distinct]
    return pd.Series(np.array([*same, False])[codes], compounds.index)


def control_spelling(compounds: "pd.Series", control: str = CONTROL) -> str:
    """How [N] compounds spell the controls', the commonest first; `control` if none is one."""
    spellings = Counter(compounds[is_control(compounds, control)])
    return str(spellings.most_common(1)[0][0]) if spellings else control


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


def set_controls(
    concentrations: Iterable[float], compounds: "pd.Series", control: str = CONTROL
) -> "np.ndarray":
    """Rounds concentrations, and sets those of controls that are unknown to 0.

    Args:
      concentrations: [N] floats in µM; NaN is unknown.
      compounds: [N] str.
      control: the controls' compound.

    Returns:
      [N] float64; NaN where a treatment's concentration is unknown.
    """
    import numpy as np

    rounded = round_concentrations(concentrations)
    rounded[np.isnan(rounded) & is_control(compounds, control).to_numpy()] = 0.0
    return rounded
