"""Settings of an evaluation: their choices and defaults.

Flags and the default config are made from these, so this module imports nothing heavy.
"""

import math
from dataclasses import dataclass

from cellclr_jax.data.columns import CONTROL
from cellclr_jax.errors import BadUse
from cellclr_jax.profiling.measures import check_names

AGGREGATES = ("well", "site")
AS_GIVEN = "given"
STANDARDIZE = ("none", "controls", "plates")
FITTED_ON_ALL = ("harmony", "combat")
"""Corrections that are fitted on treated wells, too."""
CORRECTIONS = ("none", "pca_whitening", "whitening", "tvn", *FITTED_ON_ALL)
STATISTICS = ("median", "mean")
BATCH_RULES = ("joined", "disjoint", "week1")
FORMATS = ("parquet", "csv", "h5ad")
"""File formats of tables; also the suffixes of the files."""
AUTO, NOTHING = "auto", "nothing"
# The same well names occur on every plate, and the same site numbers in every well.
GROUPS = {
    "plate": ("plate",),
    "batch": ("batch",),
    "well": ("plate", "well"),
    "site": ("plate", "well", "site"),
    "compound": ("compound",),
}
"""Groups of cells that a fold can keep whole, and the columns that identify them; in the order of
preference."""
HELD_OUT = (AUTO, *GROUPS, NOTHING)
"""'auto': the first of the groups, except compounds, that leaves at least two classes."""


@dataclass(frozen=True)
class Protocol:
    """All settings that affect the scores.

    Attributes:
      aggregate: cells to wells: 'well' (mean of cells), 'site' (mean of the sites' means), or
        'given' if the table has one row a well.
      standardize: 'none'; 'controls': z-scores by all control wells; 'plates': z-scores by the
        control wells of the same plate.
      robust: z-scores by median and median absolute deviation.
      corrections: the scored ones of `CORRECTIONS`, including 'none'; 'pca_whitening' keeps only
        the principal components that the controls span, and whitens them.
      regularization: λ of whitening, pca_whitening and tvn, >= 0, added to each eigenvalue.
      relative_regularization: λ is a fraction of the mean eigenvalue.
      statistic: wells to treatments: 'median' or 'mean'.
      batches: rule for another batch: 'joined', 'disjoint' or 'week1' (see `moa`).
      left_out: MoAs left out of NSCB; None leaves out those in a single batch.
      control: compound name of the controls.
    """

    aggregate: str = "well"
    standardize: str = "none"
    robust: bool = False
    corrections: tuple[str, ...] = ("none", "whitening", "tvn")
    regularization: float = 1.0
    relative_regularization: bool = False
    statistic: str = "median"
    batches: str = "joined"
    left_out: tuple[str, ...] | None = None
    control: str = CONTROL

    def __post_init__(self) -> None:
        """Raises BadUse for an invalid setting."""
        for name, allowed in {
            "aggregate": (*AGGREGATES, AS_GIVEN),
            "standardize": STANDARDIZE,
            "statistic": STATISTICS,
            "batches": BATCH_RULES,
        }.items():
            if (value := getattr(self, name)) not in allowed:
                raise BadUse(f"{name} {value!r}: one of {', '.join(allowed)} was expected")
        if "none" not in self.corrections or not set(self.corrections) <= set(CORRECTIONS):
            raise BadUse(
                f"corrections {', '.join(self.corrections)}: none and others of "
                f"{', '.join(CORRECTIONS)} were expected"
            )
        if self.robust and self.standardize == "none":
            raise BadUse("robust needs standardize=controls or standardize=plates")
        if not (math.isfinite(self.regularization) and self.regularization >= 0):
            raise BadUse(f"regularization {self.regularization}: a number >= 0 was expected")
        if not self.control:
            raise BadUse("control '': the compound name of the controls was expected")


@dataclass(frozen=True)
class Options:
    """Settings that do not affect the scores of profiles.

    Attributes:
      measures: names in `MEASURES`; None computes all, or none for many wells (see `evaluate`).
      formats: file formats of the tables, of `FORMATS`.
      umap: adds a UMAP layout to the report's map of treatments.
      label: column with the classes of single cells; None: see `draw_sample`.
      hold_out: groups of `HELD_OUT` that a fold keeps whole when classes of cells are predicted.
    """

    measures: tuple[str, ...] | None = None
    formats: tuple[str, ...] = ("parquet",)
    umap: bool = False
    label: str | None = None
    hold_out: str = AUTO

    def __post_init__(self) -> None:
        """Raises BadUse for an unknown measure."""
        check_names(self.measures or ())
