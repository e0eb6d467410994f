"""From profiles to scores, as a library: data frames in, data frames out, no JAX.

from cellclr_jax.profiling import Protocol, evaluate
found = evaluate(wells, Protocol(standardize="controls"))
print(found.summary())
"""

from cellclr_jax.profiling.comparison import compare, mcnemar
from cellclr_jax.profiling.correction import standardize, tvn, whiten
from cellclr_jax.profiling.evaluation import Evaluation, evaluate
from cellclr_jax.profiling.measures import MEASURES
from cellclr_jax.profiling.measures.uncertainty import uncertainty
from cellclr_jax.profiling.moa import Score, not_same_compound, not_same_compound_or_batch
from cellclr_jax.profiling.profiles import aggregate_wells, treatment_profiles
from cellclr_jax.profiling.protocol import Protocol
from cellclr_jax.profiling.tables import read_profiles

__all__ = [
    "MEASURES",
    "Evaluation",
    "Protocol",
    "Score",
    "aggregate_wells",
    "compare",
    "evaluate",
    "mcnemar",
    "not_same_compound",
    "not_same_compound_or_batch",
    "read_profiles",
    "standardize",
    "treatment_profiles",
    "tvn",
    "uncertainty",
    "whiten",
]
