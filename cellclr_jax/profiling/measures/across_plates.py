"""Retrieval across plates: is the nearest well on other plates one of the same treatment?"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from cellclr_jax.profiling.measures.activity import MOST_PAIRS
from cellclr_jax.profiling.measures.measure import CorrectedProfiles, Measured, undefined
from cellclr_jax.profiling.moa import codes
from cellclr_jax.profiling.nearest import TIE_DIGITS, unit_vectors

PERMUTATIONS = 100
"""Permutations of treatments: enough for two digits of p, in less than a tenth of a second."""
_SEED = 0
_MEANS = ("nearest_share", "mean_average_precision")


@dataclass(frozen=True)
class Retrieval:
    """The result of `retrieve`.

    Attributes:
      is_query: [N] bool: other plates hold both the row's treatment and another.
      nearest: [N] bool: the nearest row has the same treatment; False if not a query.
      precision: [N] float64 average precision of the treatment's rows; 0 if not a query.
      means: [2] float64 means of `nearest` and `precision` over the queries of each treatment, then
        over treatments; NaN without queries.
      by_chance: [R, 2] float64 means of each permutation.
    """

    is_query: np.ndarray = field(repr=False)
    nearest: np.ndarray = field(repr=False)
    precision: np.ndarray = field(repr=False)
    means: np.ndarray
    by_chance: np.ndarray = field(repr=False)

    def summary(self) -> dict[str, object]:
        """Returns counts, means, their chance levels and p for metrics.json.

        Returns:
          {"asked" (queries), "correct", "nearest_share", "mean_average_precision", "chance": {…},
          "p": {…} (share of permutations that do as well), "permutations"}; needs queries.
        """
        # Rounding must not make a permutation worse that does not change the treatments.
        as_good = (np.round(self.by_chance - self.means, TIE_DIGITS) >= 0).sum(axis=0)
        count = len(self.by_chance)
        return {
            "asked": int(self.is_query.sum()),
            "correct": int(self.nearest.sum()),
            **_named(self.means),
            "chance": _named(self.by_chance.mean(axis=0)),
            "p": _named((as_good + 1) / (count + 1)),
            "permutations": count,
        }


def across_plates(profiles: CorrectedProfiles) -> Measured:
    """Retrieves a treatment's wells among the treated wells of other plates by cosine.

    See `retrieve`. Controls are neither queries nor candidates. A treatment on a single plate is a
    candidate, but not a query.

    Returns:
      Table: one row a treatment with queries: compound, concentration, moa, batch, wells (queries),
      plates, nearest_share, mean_average_precision. Summary: see `Retrieval.summary`; also
      `treatments` (with queries) and `of_one_plate` (without queries). Undefined without queries,
      or with more than `MOST_PAIRS` pairs.
    """
    treated = ~profiles.controls()
    treatment = profiles.treatment_of_wells()[treated]
    plate = codes(profiles.wells.loc[treated, "Metadata_Plate"].fillna(""))
    if (pairs := len(plate) * (len(plate) - 1) // 2) > MOST_PAIRS:
        return undefined(f"{pairs} pairs of wells: at most {MOST_PAIRS}")
    found = retrieve(profiles.well_values()[treated], treatment, plate)
    if not found.is_query.any():
        return undefined("no treatment lies on two plates, with another treatment to compare with")
    rows = pd.DataFrame({"plate": plate, "near": found.nearest, "precision": found.precision})
    columns = (
        rows[found.is_query]
        .groupby(treatment[found.is_query])
        .agg(
            wells=("plate", "size"),
            plates=("plate", "nunique"),
            nearest_share=("near", "mean"),
            mean_average_precision=("precision", "mean"),
        )
    )
    table = profiles.named_treatments().join(columns, how="inner").reset_index(drop=True)
    others = len(profiles.treatments) - len(table)
    return Measured({"treatments": len(table), **found.summary(), "of_one_plate": others}, table)


def retrieve(
    values: np.ndarray,
    treatment: np.ndarray,
    plate: np.ndarray,
    *,
    well: np.ndarray | None = None,
    permutations: int = PERMUTATIONS,
) -> Retrieval:
    """Ranks, for each row, the rows of other plates by cosine.

    Rows of the same plate do not count. Cosines that agree to twelve digits are a tie, which goes
    to the lower row. A row is a query if other plates hold both its treatment and another. Means
    are over treatments, so that all treatments have the same weight.

    The chance level comes from permuting treatments among the wells of each plate, which changes
    neither the treatments of a plate nor the similarity of plates and batches.

    Args:
      values: [N, D] float, one row a well or a site.
      treatment: [N] int, from 0.
      plate: [N] int.
      well: [N] int, from 0, of one plate and treatment each; permutations of treatments keep its
        rows together. None: each row is a well.
      permutations: R, at least 1.

    Example:
      >>> one, other = [1.0, 0.0], [0.0, 1.0]
      >>> plates = np.array([0, 0, 1, 1])
      >>> retrieve(np.array([one, other, one, other]), np.array([0, 1, 0, 1]), plates).means
      array([1., 1.])
    """
    order, candidates = _rankings(np.asarray(values, np.float64), plate)
    well = np.arange(len(plate)) if well is None else well
    is_query, nearest, precision = _scored(order, candidates, treatment)
    means = _means(is_query, nearest, precision, treatment)
    rng = np.random.default_rng(_SEED)
    by_chance = np.empty((permutations, 2))
    for draw in by_chance:
        shuffled = _permuted(treatment, plate, well, rng)
        draw[:] = _means(*_scored(order, candidates, shuffled), shuffled)
    return Retrieval(is_query, nearest, precision, means, by_chance)


def _rankings(values: np.ndarray, plate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows, nearest first and the same plate last, [N, N]; number of rows of other plates, [N]."""
    vectors = unit_vectors(values)
    own = plate[:, None] == plate
    distance = np.where(own, np.inf, -np.round(vectors @ vectors.T, TIE_DIGITS))
    return np.argsort(distance, axis=1, kind="stable"), np.count_nonzero(~own, axis=1)


def _scored(
    order: np.ndarray, candidates: np.ndarray, treatment: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """is_query, nearest and precision of `Retrieval`, from the result of `_rankings`."""
    count = len(order)
    row, place = np.divmod(np.flatnonzero(treatment[order] == treatment[:, None]), max(count, 1))
    elsewhere = place < candidates[row]
    row, place = row[elsewhere], place[elsewhere]
    own = np.bincount(row, minlength=count)
    is_query = (own > 0) & (own < candidates)
    before = np.arange(len(row)) - (np.cumsum(own) - own)[row]
    precision = np.bincount(row, (before + 1) / (place + 1), count) / np.maximum(own, 1)
    nearest = np.bincount(row, place == 0, count) > 0
    return is_query, nearest & is_query, np.where(is_query, precision, 0.0)


def _means(
    is_query: np.ndarray, nearest: np.ndarray, precision: np.ndarray, treatment: np.ndarray
) -> np.ndarray:
    """Averages nearest and precision over each treatment's queries, then over treatments: [2]."""
    if not is_query.any():
        return np.full(2, np.nan)
    queries = np.bincount(treatment, is_query)
    used = queries > 0
    sums = (np.bincount(treatment, found * is_query)[used] for found in (nearest, precision))
    return np.array([(found / queries[used]).mean() for found in sums])


def _permuted(
    treatment: np.ndarray, plate: np.ndarray, well: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Permutes treatments [N] among the wells of each plate."""
    _, first = np.unique(well, return_index=True)
    plates, treatments = plate[first], treatment[first]
    permuted = np.empty_like(treatments)
    order = np.lexsort((rng.random(len(plates)), plates))
    permuted[np.argsort(plates, kind="stable")] = treatments[order]
    return permuted[well]


def _named(means: np.ndarray) -> dict[str, float]:
    return dict(zip(_MEANS, means.tolist(), strict=True))
