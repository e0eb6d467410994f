"""Whether one run is better than another: McNemar's test on the treatments that both answer."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from cellclr_jax.cli import BadData
from cellclr_jax.data.tables.metadata import round_concentrations


@dataclass(frozen=True)
class Agreement:
    """How two runs' answers agree.

    Attributes:
      both: treatments that both have right.
      first_only: that the first alone has right.
      second_only: that the second alone has right.
      neither: that both have wrong.
      p: of McNemar's exact test, two-sided: how often a fair coin divides `first_only` and
        `second_only` at least as unevenly; 1 where both are 0.
      not_in_second: treatments that are queries of the first run alone, and count nowhere else.
      not_in_first: of the second alone.
    """

    both: int
    first_only: int
    second_only: int
    neither: int
    p: float
    not_in_second: int = 0
    not_in_first: int = 0


def mcnemar(first: pd.DataFrame, second: pd.DataFrame) -> Agreement:
    """Compares the answers of two runs, treatment by treatment.

    McNemar 1947, "Note on the sampling error of the difference between correlated proportions or
    percentages", exact: only treatments on which the runs differ say which is better. Treatments
    of one compound are taken for independent, which they are not quite: p is too
    small, if anything.

    Args:
      first: one row a query: compound, concentration, correct (bool); `Score.neighbours`.
      second: the same of the other run, in any order.

    Returns:
      See `Agreement`.

    Raises:
      BadData: a column is missing, or a treatment is listed twice.
    """
    from scipy.stats import binomtest

    answers = [_answers(table, name) for table, name in ((first, "first"), (second, "second"))]
    joined = answers[0].merge(answers[1], on=["compound", "concentration"], suffixes=("_1", "_2"))
    one, other = joined["correct_1"].to_numpy(bool), joined["correct_2"].to_numpy(bool)
    first_only, second_only = int((one & ~other).sum()), int((~one & other).sum())
    differing = first_only + second_only
    return Agreement(
        both=int((one & other).sum()),
        first_only=first_only,
        second_only=second_only,
        neither=int((~one & ~other).sum()),
        p=float(binomtest(first_only, differing).pvalue) if differing else 1.0,
        not_in_second=len(answers[0]) - len(joined),
        not_in_first=len(answers[1]) - len(joined),
    )


def _answers(neighbours: pd.DataFrame, which: str) -> pd.DataFrame:
    """compound, concentration (rounded) and correct, one row a query."""
    names = ["compound", "concentration", "correct"]
    if missing := [name for name in names if name not in neighbours]:
        raise BadData(f"the answers of the {which} run have no column {', '.join(missing)}")
    table = neighbours[names].copy()
    table["concentration"] = round_concentrations(np.asarray(table["concentration"], np.float64))
    repeated = table.duplicated(names[:2])
    if repeated.any():
        row = table[repeated].iloc[0]
        raise BadData(
            f"{row['compound']!r} at {row['concentration']:g} is listed twice in the answers of "
            f"the {which} run: one row a query was expected"
        )
    return table
