"""Mean average precision of wells of a treatment and of treatments of a mechanism, by copairs.

Kalinin et al. 2025, "A versatile information retrieval framework for evaluating profile strength
and similarity"; https://github.com/cytomining/copairs.
"""

import math
import tempfile
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from cellclr_jax.profiling.measures.measure import CorrectedProfiles, Measured, undefined
from cellclr_jax.profiling.moa import codes
from cellclr_jax.profiling.nearest import TIE_DIGITS, unit_vectors

NULL_SIZE = 10_000
"""Number of random rankings in the null distribution of a mean average precision."""
EXCHANGES = 2_000
"""Number of random sets of compounds that a mechanism is compared with."""
_FEWEST_EXCHANGES = 200
# Pairs of treatments over all random sets of one size; more take minutes.
_MOST_RANKED = 200_000_000
THRESHOLD = 0.05
"""Threshold of q: the accepted share of false discoveries."""
MOST_PAIRS = 10_000_000
"""Pairs of rows; copairs holds all of them in memory, which takes a gigabyte."""
_SEED = 0
# Pairs of treatments that are ranked at once: 16 MB.
_BLOCK_PAIRS = 2_000_000
# A few units in the last place of float32 below 1, the type of copairs' similarities.
_JITTER = 1e-6


def activity(profiles: CorrectedProfiles) -> Measured:
    """Mean average precision of retrieving a treatment's wells against control wells, by copairs.

    Each well ranks the treatment's other wells, of any plate, among the control wells of its plate
    by cosine, or among all control wells if its plate has none.

    p and q are copairs'. Its null is the average precision of one random ranking, which varies more
    than the mean over the treatment's wells: p is conservative (without any effect 0.7 % of
    treatments have p < 0.05). However, p counts only better random rankings, not equal ones: a
    perfect ranking is always significant, although two wells among six controls have one by chance
    once in thirteen times. Such treatments are counted as `too_few_controls`.

    Returns:
      Table: one row a treatment of two wells or more: compound, concentration, moa, batch, wells,
      mean_average_precision, normalized (0 for a random ranking), p, q (Benjamini-Hochberg),
      active (q < 0.05), perfect_by_chance (probability that a random ranking puts all pairs of its
      wells before all pairs with controls; above 0.05 it counts among `too_few_controls`).
      Undefined without controls or replicates, or with more than `MOST_PAIRS` pairs.
    """
    treatment, is_control = profiles.treatment_of_wells(), profiles.controls()
    wells = np.bincount(treatment[treatment >= 0], minlength=len(profiles.treatments))
    if not is_control.any():
        return undefined(f"no control wells ({profiles.protocol.control}): --control names them")
    if not (wells > 1).any():
        return undefined("no treatment has two wells")
    plate = codes(profiles.wells["Metadata_Plate"])
    reference = np.where(is_control, np.arange(len(treatment)), -1)
    labels = pd.DataFrame({"treatment": treatment, "reference": reference, "plate": plate})
    replicated = (treatment >= 0) & (wells[treatment] > 1)
    near = np.bincount(plate, weights=is_control)[plate].astype(np.int64)
    own = near > 0
    # If a well has no controls on its plate, all wells of its treatment meet all controls.
    elsewhere = np.isin(treatment, treatment[replicated & ~own]) & replicated
    against = near[replicated].sum() + is_control.sum() * elsewhere.sum()
    if (pairs := int(against + (wells * (wells - 1) // 2).sum())) > MOST_PAIRS:
        return undefined(f"{pairs} pairs of wells: at most {MOST_PAIRS}")
    vectors = _comparable(profiles.well_values())
    precisions = _precisions(labels, vectors, is_control, replicated, own)
    found = _mean_average_precisions(precisions, "treatment").join(_perfect_by_chance(precisions))
    table = profiles.named_treatments().assign(wells=wells).join(found, how="inner")
    table = table.reset_index(drop=True).rename(columns={"significant": "active"})
    lacking = len(set(plate[replicated & ~own]))
    summary: dict[str, object] = {"treatments": len(table), **_summarised(table, "active")}
    summary["without_replicates"] = int((wells == 1).sum())
    summary["too_few_controls"] = int((table["perfect_by_chance"] > THRESHOLD).sum())
    summary["plates_without_controls"] = lacking
    others = ", or all where it has none" if lacking else ""
    summary["negatives"] = f"control wells of the same plate{others}"
    return Measured(summary, table)


def _precisions(
    labels: pd.DataFrame,
    vectors: np.ndarray,
    is_control: np.ndarray,
    replicated: np.ndarray,
    own: np.ndarray,
) -> pd.DataFrame:
    """Average precision of the `replicated` wells; `own`: [W] whether their plate has controls."""
    found = []
    for queries, same in ((replicated & own, ["plate"]), (replicated & ~own, [])):
        if queries.any():
            positives = replicated & np.isin(labels["treatment"], labels["treatment"][queries])
            rows = np.flatnonzero(is_control | positives)
            precisions = _average_precisions(
                labels.iloc[rows].reset_index(drop=True),
                vectors[rows],
                # Each control has its own reference: controls are not replicates of each other.
                pos_sameby=["treatment", "reference"],
                neg_sameby=same,
                neg_diffby=["treatment", "reference"],
            )
            found.append(precisions[queries[rows]])
    return pd.concat(found, ignore_index=True)


def _perfect_by_chance(precisions: pd.DataFrame) -> pd.Series:
    """Probability that a random ranking of a treatment's pairs has all positive pairs first."""
    against = precisions["n_total_pairs"] - precisions["n_pos_pairs"]
    pairs = against.groupby(precisions["treatment"]).agg(["size", "sum"]).astype(int)
    chances = {
        treatment: 1 / math.comb(wells * (wells - 1) // 2 + others, others)
        for treatment, wells, others in pairs.itertuples()
    }
    return pd.Series(chances, name="perfect_by_chance", dtype=float)


def consistency(profiles: CorrectedProfiles) -> Measured:
    """Mean average precision of retrieving a mechanism's other compounds.

    Each treatment ranks those of its MoA and another compound among those of another MoA and
    another compound, by cosine. Doses of a compound resemble each other, so neither the ranks of a
    treatment's positives nor the average precisions of a compound's treatments are independent:
    without any effect, copairs' null of independent rankings rejects in 13 % of cases at 0.05.
    Here p comes from exchanging whole compounds: the share of random sets of as many compounds that
    have at least the mean normalized average precision of the mechanism's compounds (`EXCHANGES`
    sets; fewer, but at least 200, if these compounds have over 300 treatments).

    Returns:
      Table: one row a MoA of two compounds or more: moa, treatments, compounds,
      mean_average_precision, normalized (0 for a random ranking), p (the mechanism itself counts as
      a set), q (Benjamini-Hochberg), consistent (q < 0.05), and copairs' p and q (copairs_p,
      copairs_q). Undefined if no MoA has two compounds, all treatments have one MoA, or there are
      more than `MOST_PAIRS` pairs.
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
    vectors = _comparable(profiles.treatments[profiles.features].to_numpy(np.float64))
    precisions = _average_precisions(
        labels, vectors, pos_sameby=["moa"], pos_diffby=["compound"], neg_diffby=["moa", "compound"]
    )
    found = _mean_average_precisions(precisions, "moa").drop(columns="significant")
    found = found.rename(columns={"p": "copairs_p", "q": "copairs_q"})
    table = by_moa.reset_index().join(found, how="inner")
    table.insert(5, "p", _exchanged_compounds(labels, vectors, table.index.to_numpy()))
    table.insert(6, "q", false_discovery_control(table["p"]))
    table.insert(7, "consistent", table["q"] < THRESHOLD)
    table = table.reset_index(drop=True)
    summary: dict[str, object] = {"moas": len(table), **_summarised(table, "consistent")}
    summary["exchanges"] = EXCHANGES
    summary["of_a_single_compound"] = int((by_moa["compounds"] == 1).sum())
    return Measured(summary, table)


def _exchanged_compounds(labels: pd.DataFrame, vectors: np.ndarray, moas: np.ndarray) -> np.ndarray:
    """Computes p [M] of mechanisms `moas` with two compounds or more; see `consistency`."""
    compound = labels["compound"].to_numpy()
    ranks = _ranks(vectors, compound)
    own = [np.unique(compound[labels["moa"] == moa]) for moa in moas]
    sizes = np.array([len(names) for names in own])
    rng, p = np.random.default_rng(_SEED), np.empty(len(moas))
    for size in np.unique(sizes).tolist():
        pairs = (size * np.bincount(compound).max()) ** 2
        draws = min(EXCHANGES, max(_FEWEST_EXCHANGES, _MOST_RANKED // int(pairs)))
        order = rng.random((draws, compound.max() + 1))
        null = set_precisions(ranks, compound, np.argpartition(order, size - 1)[:, :size])
        same_size = np.flatnonzero(sizes == size)
        values = set_precisions(ranks, compound, np.array([own[index] for index in same_size]))
        as_good = (null[:, None] >= values - 10.0**-TIE_DIGITS).sum(axis=0)
        p[same_size] = (1 + as_good) / (1 + draws)
    return p


def _ranks(vectors: np.ndarray, compound: np.ndarray) -> np.ndarray:
    """Ranks each treatment (from 1) for each query, [N, N]; inf for the same compound."""
    wide = vectors[:, :-1].astype(np.float64)
    # Equals `_similarity` up to a constant of each row.
    similar = wide @ wide.T - 0.5 * np.square(wide).sum(axis=1) + vectors[:, -1]
    own = compound[:, None] == compound
    order = np.argsort(np.where(own, np.inf, -similar), axis=1, kind="stable")
    ranks = np.empty(own.shape)
    np.put_along_axis(ranks, order, np.arange(1.0, len(own) + 1), axis=1)
    return np.where(own, np.inf, ranks)


def set_precisions(ranks: np.ndarray, compound: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """Computes mean normalized average precisions of sets of compounds.

    Args:
      ranks: [N, N] rank, from 1, of each treatment for each query; inf for the same compound.
      compound: [N] int, from 0.
      sets: [S, k] compounds, k >= 2.

    Returns:
      [S] mean over the treatments of a set of (AP - E) / (1 - E), where E is AP's expectation in a
      random ranking.
    """
    count, sizes = len(compound), np.bincount(compound)
    # The treatments of each compound, padded with a treatment of infinite rank.
    treatments = np.full((len(sizes), sizes.max()), count)
    treatments[np.arange(sizes.max()) < sizes[:, None]] = np.argsort(compound, kind="stable")
    ranks = np.pad(ranks, (0, 1), constant_values=np.inf)
    candidates = np.append(count - sizes[compound], 1)
    harmonic = np.cumsum(1 / np.arange(1.0, count + 1))[candidates - 1]
    found = np.empty(len(sets))
    step = max(1, _BLOCK_PAIRS // (sets.shape[1] * sizes.max()) ** 2)
    for start in range(0, len(sets), step):
        members = treatments[sets[start : start + step]].reshape(-1, sets.shape[1] * sizes.max())
        ranked = np.sort(ranks[members[:, :, None], members[:, None, :]], axis=2)
        real, total = members < count, candidates[members]
        positives = np.isfinite(ranked).sum(axis=2)
        precision = (np.arange(1, members.shape[1] + 1) / ranked).sum(axis=2)
        precision /= np.maximum(positives, 1)
        share = (positives - 1) / np.maximum(total - 1, 1)
        expected = (share * (total - harmonic[members]) + harmonic[members]) / total
        # If all candidates are positives, all rankings are equally good.
        varied = real & (expected < 1)
        gain = np.where(varied, (precision - expected) / np.where(varied, 1 - expected, 1.0), 0.0)
        found[start : start + step] = gain.sum(axis=1) / real.sum(axis=1)
    return found


def _comparable(profiles: np.ndarray) -> np.ndarray:
    """Directions of profiles, and a last column that breaks ties, [N, D + 1] float32.

    1 - cosine is half the squared distance of unit vectors, which a shift of all of them does not
    change. After subtracting their mean and scaling, float32 separates nearly equal profiles.

    copairs ranks a positive before a negative of the same similarity, so an encoder that gives all
    wells one profile would retrieve perfectly. Random jitter of a millionth breaks such ties.
    """
    jitter = np.random.default_rng(_SEED).normal(scale=_JITTER, size=(len(profiles), 1))
    apart = unit_vectors(profiles)
    apart = apart - apart.mean(axis=0)
    longest = np.linalg.norm(apart, axis=1).max(initial=0.0)
    # Below this, profiles differ only by rounding.
    apart = apart / longest if longest > 10.0**-TIE_DIGITS else np.zeros_like(apart)
    return np.concatenate([apart, jitter], axis=1).astype(np.float32)


def _average_precisions(
    labels: pd.DataFrame,
    vectors: np.ndarray,
    *,
    pos_sameby: Sequence[str],
    neg_diffby: Sequence[str],
    pos_diffby: Sequence[str] = (),
    neg_sameby: Sequence[str] = (),
) -> pd.DataFrame:
    """`copairs.average_precision` by cosine: one row a label, NaN without positives."""
    from copairs import map as copairs

    return copairs.average_precision(
        labels,
        vectors,
        list(pos_sameby),
        list(pos_diffby),
        list(neg_sameby),
        list(neg_diffby),
        distance=_similarity,
        progress_bar=False,
    )


def _mean_average_precisions(precisions: pd.DataFrame, by: str) -> pd.DataFrame:
    """Mean average precision of each group in column `by`, with copairs' p and q.

    Returns:
      One row a group, its label as index, sorted: mean_average_precision, normalized, p, q
      (Benjamini and Hochberg 1995), significant (q < `THRESHOLD`). Rows without positives or
      without negatives are left out.
    """
    from copairs import map as copairs

    ranked = precisions["n_total_pairs"] > precisions["n_pos_pairs"]
    # copairs caches null distributions in the home folder by their size only, so a result would
    # depend on earlier ones.
    with tempfile.TemporaryDirectory() as folder:
        found = copairs.mean_average_precision(
            precisions[ranked & (precisions["n_pos_pairs"] > 0)],
            [by],
            null_size=NULL_SIZE,
            threshold=THRESHOLD,
            seed=_SEED,
            progress_bar=False,
            max_workers=1,
            cache_dir=folder,
        )
    names = {
        "mean_average_precision": "mean_average_precision",
        "mean_normalized_average_precision": "normalized",
        "p_value": "p",
        "corrected_p_value": "q",
        "below_corrected_p": "significant",
    }
    return found.set_index(by).sort_index()[list(names)].rename(columns=names)


def _summarised(table: pd.DataFrame, significant: str) -> dict[str, object]:
    """Common entries of metrics.json; `significant` names a bool column of `table`."""
    return {
        significant: int(table[significant].sum()),
        "share": float(table[significant].mean()),
        "mean_average_precision": float(table["mean_average_precision"].mean()),
        "threshold": THRESHOLD,
        "null_size": NULL_SIZE,
    }


def _similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Computes similarities [P] of row pairs of `_comparable`, which order them like cosines."""
    nearness = -0.5 * np.square(first[:, :-1] - second[:, :-1]).sum(axis=1)
    return np.asarray(nearness + (first[:, -1] + second[:, -1]))
