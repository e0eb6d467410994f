"""Scores of each mechanism, and scores by the vote of k neighbours."""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from cellclr_jax.profiling import moa, profiles
from cellclr_jax.profiling.measures.measure import CorrectedProfiles, Measured, undefined
from cellclr_jax.profiling.moa import Score

NEIGHBOURS = (1, 3, 5, 10)
"""Numbers of neighbours in `k_nearest`; 1 gives the score itself."""


def mechanisms(profiles: CorrectedProfiles) -> Measured:
    """Computes precision, recall and F1 of each MoA under NSC and NSCB, and confusion matrices.

    Returns:
      Summary, for nsc and nscb: moas [M], counts [M][M] (rows: MoA of the query, columns: predicted
      MoA, and a last column if some query has no neighbour), macro_recall and macro_f1 over the
      MoAs with queries; {"undefined": reason} if the score is undefined.
      Table: one row a score and MoA: score, moa, queries, predicted, precision (NaN if never
      predicted), recall (NaN without queries), f1. Undefined if both scores are.
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
        with_queries = table[table["queries"] > 0]
        summary[name] = {
            "moas": moas,
            "counts": counts.tolist(),
            "macro_recall": float(with_queries["recall"].mean()),
            "macro_f1": float(with_queries["f1"].mean()),
        }
        table.insert(0, "score", name)
        tables.append(table)
    return Measured(summary, pd.concat(tables, ignore_index=True))


def confusion(score: Score) -> tuple[list[str], np.ndarray]:
    """Computes the confusion matrix of a defined score.

    Returns:
      (M names of MoAs, sorted without regard to case, 'type 2' before 'type 10'; [M, M] int counts,
      row: MoA of the query, column: predicted MoA; [M, M + 1] if some query has no neighbour).
    """
    true, predicted = (score.neighbours[name].astype(str) for name in ("moa", "predicted"))
    moas = sorted({*true, *predicted} - {""}, key=lambda name: moa.batch_order(name.lower()))
    columns = [*moas, *({""} & set(predicted))]
    counts = pd.crosstab(true, predicted).reindex(index=moas, columns=columns, fill_value=0)
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


def k_nearest(corrected: CorrectedProfiles) -> Measured:
    """Computes scores by the vote of several neighbours (see `moa.not_same_compound`).

    Returns:
      {"nsc": {"1": {"correct", "total", "accuracy"}, "3": …}, "nscb": {…}}; {"undefined": reason}
      instead of the counts of an undefined score. Table: the same, one row a score and number.
    """
    protocol, features = corrected.protocol, corrected.features
    search = partial(
        moa.both_scores,
        neighbours=NEIGHBOURS,
        batches=protocol.batches,
        left_out=protocol.left_out,
        features=features,
        control=protocol.control,
    )
    of_all = of_first = search(corrected.treatments)
    if protocol.batches == "week1":
        wells = corrected.wells[~corrected.controls()]
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
