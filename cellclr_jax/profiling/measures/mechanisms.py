"""Mechanism by mechanism: precision, recall and F1 of the nearest neighbour, and confusions."""

import numpy as np
import pandas as pd

from cellclr_jax.profiling.measures.measured import CorrectedProfiles, Measured, undefined
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
