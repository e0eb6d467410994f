"""What measures are computed from, and what they give."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from cellclr_jax.data.columns import is_control, round_concentrations
from cellclr_jax.profiling.moa import Score
from cellclr_jax.profiling.protocol import Protocol

_KEYS = ["Metadata_Compound", "Metadata_Concentration"]


@dataclass(frozen=True)
class CorrectedProfiles:
    """What measures are computed from: one correction's wells and treatments, and their scores.

    Attributes:
      wells: `Metadata_*` and corrected features; controls and annotated wells, one row a well.
      treatments: `Metadata_*` and features; annotated treatments alone, one row a treatment
        (`profiles.treatment_profiles` of the wells that are no controls).
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
        treatments, wells = (_keys(table) for table in (self.treatments, self.wells))
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
    """What a measure found.

    Attributes:
      summary: plain Python that JSON can hold, without NaN; {"undefined": reason} where the
        measure does not exist.
      table: one row a treatment, mechanism or batch; None where there is none to show.
    """

    summary: dict[str, object]
    table: pd.DataFrame | None = field(default=None, repr=False)


def undefined(reason: str) -> Measured:
    """A measure that does not exist, and why."""
    return Measured({"undefined": reason})


def _keys(table: pd.DataFrame) -> pd.MultiIndex:
    """[N] compound and rounded concentration."""
    compounds, concentrations = (table[name] for name in _KEYS)
    return pd.MultiIndex.from_arrays([compounds, round_concentrations(concentrations)])
