"""Settings of an evaluation, with their choices and defaults.

Flags and the default config are made from these, so nothing heavy is imported here.
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
"""Corrections that look at treated wells, too."""
CORRECTIONS = ("none", "pca_whitening", "whitening", "tvn", *FITTED_ON_ALL)
STATISTICS = ("median", "mean")
BATCH_RULES = ("joined", "disjoint", "week1")
FORMATS = ("parquet", "csv", "h5ad")
"""Of tables; the names are the files' suffixes, too."""
AUTO, NOTHING = "auto", "nothing"
# Wells have the same names on every plate, sites in every well.
GROUPS = {
    "plate": ("plate",),
    "batch": ("batch",),
    "well": ("plate", "well"),
    "site": ("plate", "well", "site"),
    "compound": ("compound",),
}
"""Columns that identify the groups of cells that a fold may keep whole, the best groups first."""
HELD_OUT = (AUTO, *GROUPS, NOTHING)
"""'auto': the first of the groups, but compounds, that leaves two classes to tell apart."""


@dataclass(frozen=True)
class Protocol:
    """Every setting that decides a score.

    Attributes:
      aggregate: cells to wells: 'well' (mean of cells), 'site' (mean of the sites' means), or
        'given' where the table held wells already.
      standardize: 'none'; 'controls': z-scores by all control wells; 'plates': by those of the
        well's own plate.
      robust: whether z-scores are by median and median absolute deviation.
      corrections: which of `CORRECTIONS` are scored, 'none' among them: 'pca_whitening' keeps only
        the principal components that the controls span, and whitens them.
      regularization: λ of whitening, pca_whitening and tvn, >= 0, added to each eigenvalue.
      relative_regularization: whether λ is a fraction of the mean eigenvalue.
      statistic: wells to treatments: 'median' or 'mean'.
      batches: what counts as another batch: 'joined', 'disjoint' or 'week1' (see `moa`).
      left_out: MoAs left out of NSCB; None computes those that lie in a single batch.
      control: the controls' compound.
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
        """Raises BadUse for a setting that does not exist."""
        for name, allowed in {
            "aggregate": (*AGGREGATES, AS_GIVEN),
            "standardize": STANDARDIZE,
            "statistic": STATISTICS,
            "batches": BATCH_RULES,
        }.items():
            if getattr(self, name) not in allowed:
                raise BadUse(
                    f"{name} {getattr(self, name)!r}: one of {', '.join(allowed)} was expected"
                )
        if "none" not in self.corrections or not set(self.corrections) <= set(CORRECTIONS):
            raise BadUse(
                f"corrections {', '.join(self.corrections)}: none and others of "
                f"{', '.join(CORRECTIONS)} were expected"
            )
        if self.robust and self.standardize == "none":
            raise BadUse("robust says how to standardize, which is not asked for")
        if not (math.isfinite(self.regularization) and self.regularization >= 0):
            raise BadUse(f"regularization {self.regularization}: a number of at least 0")
        if not self.control:
            raise BadUse("control '': the name of the controls' compound was expected")


@dataclass(frozen=True)
class Options:
    """What an evaluation computes and writes in addition to the scores.

    Attributes:
      measures: of `MEASURES`; None for all, or none of many wells (see `evaluate`).
      formats: of the written tables, of `FORMATS`.
      umap: whether the report's map of treatments can also be laid out by UMAP.
      label: the column of the cells that holds their classes; None: see `draw_sample`.
      hold_out: what a fold keeps whole when classes of cells are predicted, of `HELD_OUT`.
    """

    measures: tuple[str, ...] | None = None
    formats: tuple[str, ...] = ("parquet",)
    umap: bool = False
    label: str | None = None
    hold_out: str = AUTO

    def __post_init__(self) -> None:
        """Raises BadUse for a measure that does not exist."""
        check_names(self.measures or ())
