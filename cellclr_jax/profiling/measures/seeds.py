"""The spread of a score over runs that differ in their seed alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Accuracies of several runs.

    Attributes:
      runs: how many.
      mean: their mean.
      deviation: their standard deviation (n - 1); None for one run.
      least: the smallest.
      greatest: the largest.
    """

    runs: int
    mean: float
    deviation: float | None
    least: float
    greatest: float


def spread(accuracies: Sequence[float]) -> Spread:
    """Mean, standard deviation, least and greatest.

    Args:
      accuracies: [R] of the runs, in [0, 1].

    Raises:
      ValueError: there are none.
    """
    values = np.asarray(accuracies, np.float64)
    if not len(values):
        raise ValueError("no accuracies were given")
    deviation = float(values.std(ddof=1)) if len(values) > 1 else None
    return Spread(
        len(values), float(values.mean()), deviation, float(values.min()), float(values.max())
    )
