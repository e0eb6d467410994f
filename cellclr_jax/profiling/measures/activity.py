"""Mean average precision by copairs: wells of a treatment, treatments of a mechanism."""

import math

import numpy as np
import pandas as pd

from cellclr_jax.profiling.measures.measure import CorrectedProfiles, Measured, undefined
from cellclr_jax.profiling.measures.retrieval import (
    MOST_PAIRS,
    THRESHOLD,
    Pairs,
    average_precisions,
    comparable,
    mean_average_precisions,
    summarised,
)
from cellclr_jax.profiling.moa import codes

# A control well shares its reference with no other: controls are never replicates of each other.
_REPLICATES = Pairs(same=("treatment", "reference"))


def activity(profiles: CorrectedProfiles) -> Measured:
    """Mean average precision of retrieving a treatment's wells against control wells, by copairs.

    Each well ranks the treatment's other wells, of whatever plate, among the control wells of its
    own plate by cosine; a well whose plate has no controls among all control wells.

    A p counts the random rankings that are better, as copairs does, and not those as good: a
    perfect one is always significant, even where two wells among six controls are so once in
    thirteen times. Such treatments are counted as `too_few_controls`.

    Args:
      profiles: of one correction.

    Returns:
      Table: one row a treatment of two wells or more: compound, concentration, moa, batch, wells,
      mean_average_precision, normalized (0 for a random ranking), p, q (Benjamini-Hochberg),
      active (q < 0.05), perfect_by_chance (how often all pairs of its wells come before all pairs
      of them and controls, where pairs are ranked at random; beyond 0.05 it counts among
      `too_few_controls`). Undefined without controls or replicates, or with more than `MOST_PAIRS`
      pairs.
    """
    treatment, is_control = profiles.treatment_of_wells(), profiles.controls()
    wells = np.bincount(treatment[treatment >= 0], minlength=len(profiles.treatments))
    if not is_control.any():
        return undefined(f"there are no control wells ({profiles.protocol.control})")
    if not (wells > 1).any():
        return undefined("no treatment has two wells")
    plate = codes(profiles.wells["Metadata_Plate"])
    reference = np.where(is_control, np.arange(len(treatment)), -1)
    labels = pd.DataFrame({"treatment": treatment, "reference": reference, "plate": plate})
    replicated = (treatment >= 0) & (wells[treatment] > 1)
    near = np.bincount(plate, weights=is_control)[plate].astype(np.int64)
    own = near > 0
    # Of a treatment that has a well without controls beside it, all wells meet all controls.
    elsewhere = np.isin(treatment, treatment[replicated & ~own]) & replicated
    against = near[replicated].sum() + is_control.sum() * elsewhere.sum()
    if (pairs := int(against + (wells * (wells - 1) // 2).sum())) > MOST_PAIRS:
        return undefined(f"{pairs} pairs of wells: at most {MOST_PAIRS}")
    vectors = comparable(profiles.well_values())
    precisions = _precisions(labels, vectors, is_control, replicated, own)
    table = _by_treatment(precisions, profiles.named_treatments().assign(wells=wells))
    lacking = len(set(plate[replicated & ~own]))
    negatives = "control wells of the same plate"
    summary: dict[str, object] = {
        "treatments": len(table),
        **summarised(table, "active"),
        "without_replicates": int((wells == 1).sum()),
        "too_few_controls": int((table["perfect_by_chance"] > THRESHOLD).sum()),
        "plates_without_controls": lacking,
        "negatives": f"{negatives}, or all where it has none" if lacking else negatives,
    }
    return Measured(summary, table)


def _by_treatment(precisions: pd.DataFrame, treatments: pd.DataFrame) -> pd.DataFrame:
    """What was found of each treatment that has wells with average precisions.

    Args:
      precisions: [W] of its wells.
      treatments: [N], whose row numbers are the labels' treatments.
    """
    found = mean_average_precisions(precisions, "treatment")
    found = found.join(_perfect_by_chance(precisions))
    table = treatments.join(found, how="inner").reset_index(drop=True)
    return table.rename(columns={"significant": "active"})


def _precisions(
    labels: pd.DataFrame,
    vectors: np.ndarray,
    is_control: np.ndarray,
    replicated: np.ndarray,
    own: np.ndarray,
) -> pd.DataFrame:
    """Average precision of the wells that have replicates.

    Args:
      labels: [W] treatment, reference, plate.
      vectors: [W, D].
      is_control: [W] bool.
      replicated: [W] bool, the wells that ask.
      own: [W] bool, whether there are controls on the well's plate.
    """
    found = []
    for asking, same in ((replicated & own, ("plate",)), (replicated & ~own, ())):
        if asking.any():
            sought = replicated & np.isin(labels["treatment"], labels["treatment"][asking])
            rows = np.flatnonzero(is_control | sought)
            controls = Pairs(same=same, differ=("treatment", "reference"))
            precisions = average_precisions(
                labels.iloc[rows].reset_index(drop=True), vectors[rows], _REPLICATES, controls
            )
            found.append(precisions[asking[rows]])
    return pd.concat(found, ignore_index=True)


def _perfect_by_chance(precisions: pd.DataFrame) -> pd.Series:
    """How often a random order of a treatment's pairs has all of its own before the others."""
    against = precisions["n_total_pairs"] - precisions["n_pos_pairs"]
    pairs = against.groupby(precisions["treatment"]).agg(["size", "sum"]).astype(int)
    chances = {
        treatment: 1 / math.comb(wells * (wells - 1) // 2 + others, others)
        for treatment, wells, others in pairs.itertuples()
    }
    return pd.Series(chances, name="perfect_by_chance", dtype=float)


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
