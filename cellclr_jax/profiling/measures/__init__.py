"""Measures around a score: one correction's profiles in, a summary and a table of each out."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pandas as pd

from cellclr_jax.errors import BadUse
from cellclr_jax.profiling.measures.across_plates import across_plates
from cellclr_jax.profiling.measures.activity import activity, consistency
from cellclr_jax.profiling.measures.batch_effect import batch_effect
from cellclr_jax.profiling.measures.measured import CorrectedProfiles, Measured
from cellclr_jax.profiling.measures.mechanisms import k_nearest, mechanisms
from cellclr_jax.profiling.measures.reproducibility import reproducibility
from cellclr_jax.profiling.measures.uncertainty import well_intervals

MEASURES: dict[str, Callable[[CorrectedProfiles], Measured]] = {
    "activity": activity,
    "consistency": consistency,
    "reproducibility": reproducibility,
    "batch_effect": batch_effect,
    "well_intervals": well_intervals,
    "mechanisms": mechanisms,
    "k_nearest": k_nearest,
    "across_plates": across_plates,
}
"""By the name under which `metrics.json` holds them."""


def measure(
    profiles: CorrectedProfiles, names: Sequence[str] = tuple(MEASURES)
) -> dict[str, Measured]:
    """Computes measures of one correction's profiles.

    Args:
      profiles: the wells, treatments and scores of one correction.
      names: which of `MEASURES`; all by default.

    Returns:
      What was found, by name in the order of `names`.

    Raises:
      BadUse: there is no such measure.
    """
    if unknown := [name for name in names if name not in MEASURES]:
        raise BadUse(f"measure {unknown[0]!r}: one of {', '.join(MEASURES)} was expected")
    # The caller's row order must decide neither folds nor draws.
    order = ["Metadata_Plate", "Metadata_Well"]
    if not pd.MultiIndex.from_frame(profiles.wells[order]).is_monotonic_increasing:
        wells = profiles.wells.sort_values(order, ignore_index=True)
        profiles = replace(profiles, wells=wells)
    return {name: MEASURES[name](profiles) for name in names}
