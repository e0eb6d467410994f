"""Which cells and wells are controls, however their compound is spelled."""

import pandas as pd

from cellclr_jax.data.tables.release_names import CONTROL


def is_control(compounds: pd.Series, control: str = CONTROL) -> pd.Series:
    """[N] bool: which of these names, [N] str, is the controls', in any case."""
    return compounds.str.strip().str.lower() == control.strip().lower()
