"""How many there are of what, in numbers and in words."""

import pandas as pd

from cellclr_jax.data.tables.controls import is_control

# What is counted of cells, by the columns that tell it apart.
_COUNTED = {
    "plate": ["plate"],
    "well": ["plate", "well"],
    "treatment": ["compound", "concentration"],
    "label": ["label"],
}


def plural(count: int, what: str) -> str:
    """Such as '1 cell', '2,000 cells'."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def count_kinds(cells: pd.DataFrame) -> dict[str, int]:
    """How many plates, wells, treatments and labels a table of cells has.

    Args:
      cells: one row a cell.

    Returns:
      By the singular of what is counted, in that order; what the table has no columns for is left
      out. Controls are no treatment.
    """
    found = {}
    for what, names in _COUNTED.items():
        if set(names) <= set(cells):
            counted = cells[~is_control(cells["compound"])] if what == "treatment" else cells
            found[what] = int(counted.groupby(names, dropna=False).ngroups)
    return found
