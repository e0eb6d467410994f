"""Types that measures share: corrected profiles and the results of measures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from cellclr_jax.data.columns import is_control, round_concentrations
from cellclr_jax.profiling.measures import MEASURES, check_names
from cellclr_jax.profiling.moa import Score
from cellclr_jax.profiling.protocol import Protocol


@dataclass(frozen=True)
class CorrectedProfiles:
    """The wells and treatments of one correction, and their scores.

    Attributes:
      wells: `Metadata_*` and corrected features; controls and annotated wells, one row a well.
      treatments: `Metadata_*` and features; annotated treatments without controls, one row a
        treatment (`profiles.treatment_profiles` of the treated wells).
      features: the D feature columns of both tables.
      nsc: not-same-compound.
      nscb: not-same-compound-or-batch.
      protocol: settings of both scores.
    """

    wells: pd.DataFrame = field(repr=False)
    treatments: pd.DataFrame = field(repr=False)
    features: list[str] = field(repr=False)
    nsc: Score
    nscb: Score
    protocol: Protocol

    def well_values(self) -> np.ndarray:
        """Returns the features of the wells, [W, D] float64."""
        return self.wells[self.features].to_numpy(np.float64)

    def controls(self) -> np.ndarray:
        """Marks wells of the control, [W] bool."""
        return is_control(self.wells["Metadata_Compound"], self.protocol.control).to_numpy(bool)

    def treatment_of_wells(self) -> np.ndarray:
        """Returns the row of each well in `treatments`, [W] int; -1 for controls."""
        names, doses = "Metadata_Compound", "Metadata_Concentration"
        treatments, wells = (
            pd.MultiIndex.from_arrays([table[names], round_concentrations(table[doses])])
            for table in (self.treatments, self.wells)
        )
        return np.where(self.controls(), -1, treatments.get_indexer(wells))

    def named_treatments(self) -> pd.DataFrame:
        """Compound, concentration, moa and batch, one row a treatment."""
        names = ("Compound", "Concentration", "MoA", "Batch")
        columns = {name.lower(): self.treatments[f"Metadata_{name}"].to_numpy() for name in names}
        named = pd.DataFrame(columns)
        named[["moa", "batch"]] = named[["moa", "batch"]].fillna("")
        return named


@dataclass(frozen=True)
class Measured:
    """The result of a measure.

    Attributes:
      summary: values for JSON, without NaN; {"undefined": reason} if the measure is undefined.
      table: one row a treatment, mechanism or batch, with lower-case column names; or None.
    """

    summary: dict[str, object]
    table: pd.DataFrame | None = field(default=None, repr=False)


def undefined(reason: str) -> Measured:
    """Returns the result of an undefined measure."""
    return Measured({"undefined": reason})


def measure(
    profiles: CorrectedProfiles,
    names: Sequence[str] | None = None,
    *,
    after: Callable[[], None] = lambda: None,
) -> dict[str, Measured]:
    """Computes measures of one correction's profiles.

    Args:
      profiles: wells, treatments and scores of one correction.
      names: names in `MEASURES`; None computes all.
      after: called after each measure.

    Returns:
      Results by name, in the order of `names`.

    Raises:
      BadUse: an unknown measure.
    """
    names = tuple(MEASURES) if names is None else names
    check_names(names)
    # Folds and random draws must not depend on the order of the input.
    order = ["Metadata_Plate", "Metadata_Well"]
    if not pd.MultiIndex.from_frame(profiles.wells[order]).is_monotonic_increasing:
        wells = profiles.wells.sort_values(order, ignore_index=True)
        profiles = replace(profiles, wells=wells)
    found = {}
    for name in names:
        found[name] = MEASURES[name](profiles)
        after()
    return found
