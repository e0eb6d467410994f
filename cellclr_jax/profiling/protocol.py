"""Settings that decide a score, and options that do not."""

from dataclasses import dataclass

import numpy as np

from cellclr_jax.errors import BadUse
from cellclr_jax.profiling import (
    moa,
    profiles,
)

STANDARDIZE = ("none", "controls", "plates")
CORRECTIONS = ("none", "pca_whitening", "whitening", "tvn", "harmony", "combat")
AS_GIVEN = "given"


@dataclass(frozen=True)
class Protocol:
    """Every setting that decides a score.

    Attributes:
      aggregate: cells to wells: 'well' (mean of cells), 'site' (mean of the sites' means), or
        'given' where the table held wells already.
      standardize: 'none'; 'controls': z-scores by all control wells; 'plates': by those of the
        well's own plate.
      robust: whether z-scores are by median and median absolute deviation.
      corrections: which of `CORRECTIONS` are scored, 'none' among them: 'pca_whitening' whitens the
        principal components of the controls alone, as many as they span.
      regularization: λ of whitening, pca_whitening and tvn, >= 0.
      relative_regularization: whether λ is a fraction of the mean eigenvalue.
      statistic: wells to treatments: 'median' or 'mean'.
      batches: what another batch is: 'joined', 'disjoint' or 'week1' (see `moa`).
      left_out: MoAs left out of NSCB; None computes those that lie in one batch alone.
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
    control: str = "DMSO"

    def __post_init__(self) -> None:
        """Raises BadUse for a setting that does not exist."""
        for name, allowed in {
            "aggregate": (*profiles.AGGREGATES, AS_GIVEN),
            "standardize": STANDARDIZE,
            "statistic": profiles.STATISTICS,
            "batches": moa.BATCH_RULES,
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
        if not (np.isfinite(self.regularization) and self.regularization >= 0):
            raise BadUse(f"regularization {self.regularization}: a number of at least 0")
        if not self.control:
            raise BadUse("control '': the name of the controls' compound was expected")
