"""Types that measures share: the profiles that they take and what they return."""

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
      protocol: the settings under which both were scored.
    """

    wells: pd.DataFrame = field(repr=False)
    treatments: pd.DataFrame = field(repr=False)
    features: list[str] = field(repr=False)
    nsc: Score
    nscb: Score
    protocol: Protocol

    def well_values(self) -> np.ndarray:
        """[W, D] float64 features of the wells."""
        return self.wells[self.features].to_numpy(np.float64)

    def controls(self) -> np.ndarray:
        """[W] bool: which wells are controls."""
        return is_control(self.wells["Metadata_Compound"], self.protocol.control).to_numpy(bool)

    def treatment_of_wells(self) -> np.ndarray:
        """[W] int: each well's row in `treatments`; -1 for controls."""
        treatments, wells = (
            pd.MultiIndex.from_arrays(
                [
                    table["Metadata_Compound"],
                    round_concentrations(table["Metadata_Concentration"]),
                ]
            )
            for table in (self.treatments, self.wells)
        )
        return np.where(self.controls(), -1, treatments.get_indexer(wells))

    def named_treatments(self) -> pd.DataFrame:
        """The treatments' compound, concentration, moa and batch, one row a treatment."""
        names = ("Compound", "Concentration", "MoA", "Batch")
        columns = {name.lower(): self.treatments[f"Metadata_{name}"].to_numpy() for name in names}
        named = pd.DataFrame(columns)
        named[["moa", "batch"]] = named[["moa", "batch"]].fillna("")
        return named


@dataclass(frozen=True)
class Measured:
    """The result of a measure.

    Attributes:
      summary: plain Python that JSON can hold, without NaN; {"undefined": reason} where the
        measure does not exist.
      table: one row a treatment, mechanism or batch, with columns in lower case; None for none.
    """

    summary: dict[str, object]
    table: pd.DataFrame | None = field(default=None, repr=False)


def undefined(reason: str) -> Measured:
    """Returns the result of a measure that does not exist, with the reason."""
    return Measured({"undefined": reason})


def measure(
    profiles: CorrectedProfiles,
    names: Sequence[str] | None = None,
    *,
    after: Callable[[], None] = lambda: None,
) -> dict[str, Measured]:
    """Computes measures of one correction's profiles.

    Args:
      profiles: the wells, treatments and scores of one correction.
      names: which of `MEASURES`; None for all.
      after: is called after each measure.

    Returns:
      What was found, by name in the order of `names`.

    Raises:
      BadUse: there is no such measure.
    """
    names = tuple(MEASURES) if names is None else names
    check_names(names)
    # The caller's row order must decide neither folds nor draws.
    order = ["Metadata_Plate", "Metadata_Well"]
    if not pd.MultiIndex.from_frame(profiles.wells[order]).is_monotonic_increasing:
        wells = profiles.wells.sort_values(order, ignore_index=True)
        profiles = replace(profiles, wells=wells)
    found = {}
    for name in names:
        found[name] = MEASURES[name](profiles)
        after()
    return found
