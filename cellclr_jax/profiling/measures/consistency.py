"""Consistency of mechanisms: whether compounds of one mechanism find each other."""

import numpy as np
import pandas as pd

from cellclr_jax.profiling.candidates import codes
from cellclr_jax.profiling.measures.measured import CorrectedProfiles, Measured, undefined
from cellclr_jax.profiling.measures.retrieval import (
    MOST_PAIRS,
    Pairs,
    average_precisions,
    comparable,
    mean_average_precisions,
    summarised,
)


def consistency(profiles: CorrectedProfiles) -> Measured:
    """Mean average precision of retrieving a mechanism's other compounds, by copairs.

    Each treatment ranks those of its MoA and another compound among those of another MoA and
    another compound, by cosine.

    Args:
      profiles: of one correction.

    Returns:
      Table: one row a MoA of two compounds or more: moa, treatments, compounds,
      mean_average_precision, normalized (0 for a random ranking), p, q (Benjamini-Hochberg),
      consistent (q < 0.05). Undefined where no MoA has two compounds, all have one MoA, or there
      are more than `MOST_PAIRS` pairs.
    """
    named = profiles.named_treatments()
    by_moa = named.groupby("moa", sort=True)["compound"].agg(treatments="size", compounds="nunique")
    if len(by_moa) < 2:
        return undefined("all treatments have one MoA: there are no others to rank them among")
    if not (by_moa["compounds"] > 1).any():
        return undefined("no MoA has two compounds")
    if (pairs := len(named) * (len(named) - 1) // 2) > MOST_PAIRS:
        return undefined(f"{pairs} pairs of treatments: at most {MOST_PAIRS}")
    number = {moa: index for index, moa in enumerate(by_moa.index)}
    labels = pd.DataFrame(
        {"moa": named["moa"].map(number).astype(np.int64), "compound": codes(named["compound"])}
    )
    precisions = average_precisions(
        labels,
        comparable(profiles.treatments[profiles.features].to_numpy(np.float64)),
        Pairs(same=("moa",), differ=("compound",)),
        Pairs(differ=("moa", "compound")),
    )
    found = mean_average_precisions(precisions, "moa")
    table = by_moa.reset_index().join(found, how="inner").reset_index(drop=True)
    table = table.rename(columns={"significant": "consistent"})
    summary: dict[str, object] = {"moas": len(table), **summarised(table, "consistent")}
    summary["of_a_single_compound"] = int((by_moa["compounds"] == 1).sum())
    return Measured(summary, table)
