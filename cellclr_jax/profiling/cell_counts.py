"""Profiles of nothing but the number of cells: what toxicity alone tells of a mechanism."""

import numpy as np
import pandas as pd

from cellclr_jax.data.tables.controls import is_control
from cellclr_jax.profiling.columns import own_features

FEATURES = ["CellCount_Cosine", "CellCount_Sine"]


def count_profiles(wells: pd.DataFrame, control: str) -> pd.DataFrame:
    """Turns numbers of cells into profiles whose cosine ranks wells by how near the numbers are.

    A single number has no direction. Its logarithm, laid out as an angle between 0 and 90°, has
    one, and the nearest by cosine is the nearest by ratio. Numbers are divided by the mean of the
    plate's controls first, where every plate has some.

    Args:
      wells: one row a well: Metadata_Plate, Metadata_Compound, Metadata_CellCount (at least 1).
      control: the controls' compound.

    Returns:
      The wells' metadata and `FEATURES`.
    """
    counts = wells["Metadata_CellCount"].to_numpy(np.float64)
    controls = is_control(wells["Metadata_Compound"], control)
    usual = wells["Metadata_CellCount"].where(controls).groupby(wells["Metadata_Plate"])
    by_plate = usual.transform("mean").to_numpy(np.float64)
    if np.isfinite(by_plate).all():
        counts = counts / by_plate
    logarithm = np.log(counts)
    span = np.ptp(logarithm)
    angle = np.pi / 2 * (logarithm - logarithm.min()) / (span if span > 0 else 1.0)
    features = dict(zip(FEATURES, (np.cos(angle), np.sin(angle)), strict=True))
    return wells.drop(columns=own_features(wells)).assign(**features)
