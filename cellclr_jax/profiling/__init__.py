"""From profiles to scores, as a library: data frames in, data frames out, no JAX.

from cellclr_jax.profiling import Protocol, evaluate
found = evaluate(wells, Protocol(standardize="controls"))
print(found.summary())

A name is imported when it is first used, so that `eval --help` does not wait for pandas.
"""

import importlib
from typing import TYPE_CHECKING, Any

# ruff: noqa: F401
if TYPE_CHECKING:
    from cellclr_jax.profiling.comparison import compare, mcnemar
    from cellclr_jax.profiling.correction import standardize, tvn, whiten
    from cellclr_jax.profiling.evaluation import Evaluation, evaluate
    from cellclr_jax.profiling.measures import MEASURES
    from cellclr_jax.profiling.measures.uncertainty import uncertainty
    from cellclr_jax.profiling.moa import Score, not_same_compound, not_same_compound_or_batch
    from cellclr_jax.profiling.profiles import aggregate_wells, treatment_profiles
    from cellclr_jax.profiling.protocol import Protocol
    from cellclr_jax.profiling.tables import read_profiles

_MODULES = {
    "comparison": ["compare", "mcnemar"],
    "correction": ["standardize", "tvn", "whiten"],
    "evaluation": ["Evaluation", "evaluate"],
    "measures": ["MEASURES"],
    "measures.uncertainty": ["uncertainty"],
    "moa": ["Score", "not_same_compound", "not_same_compound_or_batch"],
    "profiles": ["aggregate_wells", "treatment_profiles"],
    "protocol": ["Protocol"],
    "tables": ["read_profiles"],
}
__all__ = [name for names in _MODULES.values() for name in names]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
