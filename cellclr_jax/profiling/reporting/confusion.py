"""Which mechanisms are taken for which: counts of both scores, and how well each is told."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from cellclr_jax.profiling.candidates import batch_order
from cellclr_jax.profiling.evaluation import Evaluation
from cellclr_jax.profiling.moa import Score
from cellclr_jax.profiling.reporting.escaping import label
from cellclr_jax.profiling.reporting.neighbourhoods import KINDS

_NOBODY = "no neighbour"


def confusion_data(evaluation: Evaluation) -> dict[str, dict[str, object]]:
    """Counts of every correction and score as JSON values; names are escaped for Plotly.

    Returns:
      {correction: {'nsc': {'moas', 'answers', 'counts', 'table'}, 'nscb': …}}; {'undefined':
      reason} in the place of an undefined score. A row of 'table': mechanism (as text), queries,
      right, recall, precision.
    """
    return {
        correction: {
            kind: _describe(score)
            for kind, score in zip(KINDS, (scores.nsc, scores.nscb), strict=True)
        }
        for correction, scores in evaluation.scores.items()
    }


def count_answers(neighbours: pd.DataFrame) -> tuple[list[str], list[str], np.ndarray]:
    """Counts true mechanisms (rows) and those that were answered (columns).

    Args:
      neighbours: of a score: moa, and `predicted` where several vote, else neighbour_moa.

    Returns:
      (mechanisms [M], answers [M or M + 1], counts int [M, M or M + 1]). '' comes last, where a
      query has no neighbour.
    """
    answered = neighbours["predicted" if "predicted" in neighbours else "neighbour_moa"]
    moas = sorted(set(neighbours["moa"]) | set(answered) - {""}, key=_order)
    answers = [*moas, ""] if (answered == "").any() else moas
    row, column = ({name: i for i, name in enumerate(names)} for names in (moas, answers))
    counts = np.zeros((len(moas), len(answers)), int)
    rows, columns = neighbours["moa"].map(row), answered.map(column)
    np.add.at(counts, (rows.to_numpy(int), columns.to_numpy(int)), 1)
    return moas, answers, counts


def _describe(score: Score) -> Mapping[str, object]:
    """One score's counts, or why there are none."""
    if score.undefined:
        return {"undefined": score.undefined}
    moas, answers, counts = count_answers(score.neighbours)
    right = np.diagonal(counts)
    asked, answered = counts.sum(axis=1), counts.sum(axis=0)[: len(moas)]
    table = [
        [moa, int(a), int(r), _share(r, a), _share(r, told)]
        for moa, a, r, told in zip(moas, asked, right, answered, strict=True)
        if a
    ]
    return {
        "moas": [label(moa) for moa in moas],
        "answers": [label(moa or _NOBODY) for moa in answers],
        "counts": counts,
        "table": table,
    }


def _order(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sorting key: without regard to capitals, 'type 2' before 'type 10'."""
    return batch_order(name.lower())


def _share(part: int, whole: int) -> float | None:
    """part / whole, None where there is no whole."""
    return float(part / whole) if whole else None
