"""Measures of the profiles of one correction, each with a summary and a table.

To add one, write a function in a file of this folder and add a line to `MEASURES`. Its name is then
a choice of `eval --measures`, a key of metrics.json and the name of a CSV file. Functions are
imported on their first call, so that flags can list the names at once.
"""

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cellclr_jax.errors import BadUse

if TYPE_CHECKING:
    from cellclr_jax.profiling.measures.measure import CorrectedProfiles, Measured


@dataclass(frozen=True)
class Measure:
    """One measure.

    Attributes:
      function: "module:name" of a function `CorrectedProfiles -> Measured`; a leading dot means
        this folder.
      shares: numbers in [0, 1] that the report compares between corrections: titles by the key in
        the summary, with dots between nested keys.
    """

    function: str
    shares: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, profiles: "CorrectedProfiles") -> "Measured":
        """Measures the profiles of one correction."""
        module, _, name = self.function.partition(":")
        found: Measured = getattr(importlib.import_module(module, __name__), name)(profiles)
        return found


MEASURES: dict[str, Measure] = {
    "activity": Measure(
        ".activity:activity",
        {"share": "Active treatments", "mean_average_precision": "Activity, mean AP"},
    ),
    "consistency": Measure(
        ".activity:consistency",
        {"share": "Consistent mechanisms", "mean_average_precision": "Consistency, mean AP"},
    ),
    "reproducibility": Measure(
        ".reproducibility:reproducibility", {"share": "Replicating treatments"}
    ),
    "across_plates": Measure(
        ".across_plates:across_plates",
        {
            "nearest_share": "Same treatment nearest on another plate",
            "chance.nearest_share": "The same by chance",
        },
    ),
    "batch_effect": Measure(
        ".batch_effect:batch_effect",
        {
            "balanced_accuracy.logistic": "Batch predicted, logistic",
            "balanced_accuracy.knn": "Batch predicted, 1-NN",
            "chance": "Batch predicted, chance",
        },
    ),
    "well_intervals": Measure(".uncertainty:well_intervals"),
    "mechanisms": Measure(".mechanisms:mechanisms"),
    "k_nearest": Measure(".mechanisms:k_nearest"),
}
"""Measures by their name in `metrics.json`."""


def check_names(names: Iterable[str]) -> None:
    """Raises BadUse for a name that is not in `MEASURES`."""
    for name in names:
        if name not in MEASURES:
            raise BadUse(f"measure {name!r}: one of {', '.join(MEASURES)} was expected")
