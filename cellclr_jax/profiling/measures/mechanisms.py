"""Scores of each mechanism, and the vote of k neighbours."""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from cellclr_jax.profiling import moa, profiles
from cellclr_jax.profiling.measures.measure import CorrectedProfiles, Measured, undefined
from cellclr_jax.profiling.moa import Score

NEIGHBOURS = (1, 3, 5, 10)
"""How many vote in `k_nearest`; one is the score itself."""


def mechanisms(profiles: CorrectedProfiles) -> Measured:
    """Precision, recall and F1 of each MoA under NSC and NSCB, and the confusion matrix.

    Args:
      profiles: of one correction.

    Returns:
      Summary, for nsc and nscb: moas [M], counts [M][M] (rows: the query's MoA, columns: the
      predicted one, and a last column, '', where a query has no neighbour), macro_recall and
      macro_f1 over the MoAs that have queries; {"undefined": reason} where the score is.
      Table: one row a score and MoA: score, moa, queries, predicted, precision (NaN where it is
      never predicted), recall (NaN where it has no query), f1. Undefined where both scores are.
    """
    scores = {"nsc": profiles.nsc, "nscb": profiles.nscb}
    if all(score.undefined for score in scores.values()):
        return undefined(profiles.nsc.undefined)
    summary: dict[str, object] = {}
    tables = []
    for name, score in scores.items():
        if score.undefined:
            summary[name] = {"undefined": score.undefined}
            continue
        moas, counts = confusion(score)
        table = _by_moa(moas, counts)
        asked = table[table["queries"] > 0]
        summary[name] = {
            "moas": moas,
            "counts": counts.tolist(),
            "macro_recall": float(asked["recall"].mean()),
            "macro_f1": float(asked["f1"].mean()),
        }
        table.insert(0, "score", name)
        tables.append(table)
    return Measured(summary, pd.concat(tables, ignore_index=True))


def confusion(score: Score) -> tuple[list[str], np.ndarray]:
    """Counts how often each MoA is taken for each other.

    Args:
      score: a defined one.

    Returns:
      (M names of queries and neighbours, sorted without regard to capitals, 'type 2' before
      'type 10'; [M, M] int, row: the query's, column: the predicted one; [M, M + 1] where some
      query has no neighbour).
    """
    asked, told = (score.neighbours[name].astype(str) for name in ("moa", "predicted"))
    moas = sorted({*asked, *told} - {""}, key=lambda name: moa.batch_order(name.lower()))
    answers = [*moas, *({""} & set(told))]
    counts = pd.crosstab(asked, told).reindex(index=moas, columns=answers, fill_value=0)
    return moas, counts.to_numpy(np.int64)


def _by_moa(moas: list[str], counts: np.ndarray) -> pd.DataFrame:
    """Precision, recall and F1 of each MoA."""
    right = np.diag(counts).astype(np.float64)
    queries, predicted = counts.sum(axis=1), counts.sum(axis=0)[: len(moas)]
    with np.errstate(invalid="ignore"):
        precision, recall = right / predicted, right / queries
    return pd.DataFrame(
        {
            "moa": moas,
            "queries": queries,
            "predicted": predicted,
            "precision": precision,
            "recall": recall,
            "f1": 2 * right / (queries + predicted),
        }
    )


def k_nearest(seen: CorrectedProfiles) -> Measured:
    """Scores the vote of more than one neighbour (see `moa.not_same_compound`).

    Returns:
      {"nsc": {"1": {"correct", "total", "accuracy"}, "3": …}, "nscb": {…}}; a score that is
      undefined with one neighbour has "undefined" with the reason. Table: the same by rows.
    """
    protocol, features = seen.protocol, seen.features
    search = partial(
        moa.both_scores,
        neighbours=NEIGHBOURS,
        batches=protocol.batches,
        left_out=protocol.left_out,
        features=features,
        control=protocol.control,
    )
    of_all = of_first = search(seen.treatments)
    if protocol.batches == "week1":
        wells = seen.wells[~seen.controls()]
        first = wells[profiles.in_first_batch(wells)]
        of_first = search(
            profiles.treatment_profiles(first, statistic=protocol.statistic, features=features)
        )
    summary: dict[str, Any] = {"nsc": {}, "nscb": {}}
    for count in NEIGHBOURS:
        for kind, score in (("nsc", of_all[count][0]), ("nscb", of_first[count][1])):
            counts = {"correct": score.correct, "total": score.total, "accuracy": score.accuracy}
            undefined = {"undefined": score.undefined}
            summary[kind][str(count)] = undefined if score.undefined else counts
    rows = [
        {"score": kind, "neighbours": int(count), **score}
        for kind, found in summary.items()
        for count, score in found.items()
    ]
    return Measured(summary, pd.DataFrame(rows))
