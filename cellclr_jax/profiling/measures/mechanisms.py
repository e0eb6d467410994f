"""Scores of each mechanism, and the vote of k neighbours."""

from functools import partial

import numpy as np
import pandas as pd

from cellclr_jax.profiling import moa, profiles
from cellclr_jax.profiling.measures.measure import CorrectedProfiles, Measured, undefined
from cellclr_jax.profiling.moa import Score


def mechanisms(profiles: CorrectedProfiles) -> Measured:
    """Precision, recall and F1 of each MoA under NSC and NSCB, and who is taken for whom.

    Args:
      profiles: of one correction.

    Returns:
      Summary, for nsc and nscb: moas [M], counts [M][M] (rows: the query's MoA, columns: what its
      neighbours say, and one more column, '', for no neighbour where that occurs), macro_recall
      and macro_f1 over the MoAs that have queries; {"undefined": reason} where the score is.
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
    """The MoAs that ask or answer, sorted, and how often which is taken for which.

    Args:
      score: a defined one.

    Returns:
      (M names, [M, M] int counts, or [M, M + 1] where some query has no neighbour).
    """
    asked, told = (score.neighbours[name].astype(str).tolist() for name in ("moa", "predicted"))
    moas = sorted({*asked, *told} - {""})
    answers = [*moas, *([""] if "" in told else [])]
    counts = np.zeros((len(moas), len(answers)), np.int64)
    for query, answer in zip(asked, told, strict=True):
        counts[moas.index(query), answers.index(answer)] += 1
    return moas, counts


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


NEIGHBOURS = (3, 5, 10)
"""How many; one is the score itself."""


def k_nearest(seen: CorrectedProfiles) -> Measured:
    """Scores the vote of more than one neighbour (see `moa.not_same_compound`).

    Returns:
      {"nsc": {"1": {"correct", "total", "accuracy"}, "3": …}, "nscb": {…}}; a score that is
      undefined with one neighbour has "undefined" with the reason.
    """
    protocol, features = seen.protocol, seen.features
    scores = {"nsc": {"1": seen.nsc}, "nscb": {"1": seen.nscb}}
    for_nscb = seen.treatments
    if protocol.batches == "week1":
        wells = seen.wells[~seen.controls()]
        first = wells[profiles.in_first_batch(wells)]
        for_nscb = profiles.treatment_profiles(
            first, statistic=protocol.statistic, features=features
        )
    search = partial(
        moa.both_scores,
        neighbours=NEIGHBOURS,
        batches=protocol.batches,
        left_out=protocol.left_out,
        features=features,
        control=protocol.control,
    )
    of_all = search(seen.treatments)
    of_first = of_all if for_nscb is seen.treatments else search(for_nscb)
    for count in NEIGHBOURS:
        scores["nsc"][str(count)], scores["nscb"][str(count)] = of_all[count][0], of_first[count][1]
    described = {
        kind: {count: _describe(score) for count, score in found.items()}
        for kind, found in scores.items()
    }
    rows = [
        {"score": kind, "neighbours": int(count), **score}
        for kind, found in described.items()
        for count, score in found.items()
    ]
    return Measured(dict(described), pd.DataFrame(rows))


def _describe(score: moa.Score) -> dict[str, object]:
    """As JSON."""
    if score.undefined:
        return {"undefined": score.undefined}
    return {"correct": score.correct, "total": score.total, "accuracy": score.accuracy}
