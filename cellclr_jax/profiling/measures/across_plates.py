"""Retrieval across plates: whether a treatment's nearest wells on other plates are its own."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from cellclr_jax.profiling.measures.activity import MOST_PAIRS
from cellclr_jax.profiling.measures.measure import CorrectedProfiles, Measured, undefined
from cellclr_jax.profiling.moa import codes
from cellclr_jax.profiling.nearest import TIE_DIGITS, unit_vectors

PERMUTATIONS = 100
"""Of treatments: enough for two digits of p, in less than a tenth of a second."""
_SEED = 0
_MEANS = ("nearest_share", "mean_average_precision")


@dataclass(frozen=True)
class Retrieval:
    """The result of `retrieve`.

    Attributes:
      asks: [N] bool, queries: rows with both their own treatment and another on other plates.
      nearest: [N] bool, whether the nearest row has the treatment; False for rows that are no
        queries.
      precision: [N] float64, average precision of the treatment's rows; 0 likewise.
      means: [2] float64 of `nearest` and `precision`, over the queries of each treatment, then over
        treatments; NaN without queries.
      by_chance: [R, 2] float64, the same of each permutation.
    """

    asks: np.ndarray = field(repr=False)
    nearest: np.ndarray = field(repr=False)
    precision: np.ndarray = field(repr=False)
    means: np.ndarray
    by_chance: np.ndarray = field(repr=False)

    def summary(self) -> dict[str, object]:
        """Counts, means, the same by chance, and how often a permutation does as well.

        Returns:
          {"asked", "correct", "nearest_share", "mean_average_precision", "chance": {…}, "p": {…},
          "permutations"}, as JSON; undefined without queries.
        """
        # A permutation that leaves treatments as they are must not lose by rounding.
        as_good = (np.round(self.by_chance - self.means, TIE_DIGITS) >= 0).sum(axis=0)
        count = len(self.by_chance)
        return {
            "asked": int(self.asks.sum()),
            "correct": int(self.nearest.sum()),
            **_named(self.means),
            "chance": _named(self.by_chance.mean(axis=0)),
            "p": _named((as_good + 1) / (count + 1)),
            "permutations": count,
        }


def across_plates(profiles: CorrectedProfiles) -> Measured:
    """Retrieval of a treatment's wells among the treated wells of other plates, by cosine.

    See `retrieve`. Controls are neither queries nor candidates. A treatment on a single plate is a
    candidate, but no query.

    Args:
      profiles: of one correction.

    Returns:
      Table: one row a treatment with queries: compound, concentration, moa, batch, wells (queries),
      plates, nearest_share, mean_average_precision. Summary: see `Retrieval.summary`, and
      `treatments`, and `of_one_plate`, those without queries. Undefined without queries, or with
      more than `MOST_PAIRS` pairs.
    """
    treated = ~profiles.controls()
    treatment = profiles.treatment_of_wells()[treated]
    plate = codes(profiles.wells.loc[treated, "Metadata_Plate"].fillna(""))
    if (pairs := len(plate) * (len(plate) - 1) // 2) > MOST_PAIRS:
        return undefined(f"{pairs} pairs of wells: at most {MOST_PAIRS}")
    found = retrieve(profiles.well_values()[treated], treatment, plate)
    if not found.asks.any():
        return undefined("no treatment lies on two plates, with another to tell it from")
    asked = pd.DataFrame({"plate": plate, "near": found.nearest, "precision": found.precision})
    by_treatment = asked[found.asks].groupby(treatment[found.asks])
    columns = by_treatment.agg(
        wells=("plate", "size"),
        plates=("plate", "nunique"),
        nearest_share=("near", "mean"),
        mean_average_precision=("precision", "mean"),
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
    """Ranks, for each row, the rows of other plates by cosine: is its treatment among the first?

    Rows of the own plate do not count. Cosines that agree to twelve digits are a tie, which goes to
    the lower row. A row is a query if other plates hold its own treatment and another. Means are
    over treatments, so that one with many wells counts as much as any.

    The level of chance comes from permuting treatments among the wells of each plate: the layouts
    of plates, and how plates and batches resemble each other, stay as they are.

    Args:
      values: [N, D] float, a row a well, or a site.
      treatment: [N] int, from 0.
      plate: [N] int.
      well: [N] int, from 0, of one plate and treatment each; its rows stay together when
        treatments are permuted. None: each row is one.
      permutations: R, at least 1.

    Example:
      >>> one, other = [1.0, 0.0], [0.0, 1.0]
      >>> plates = np.array([0, 0, 1, 1])
      >>> retrieve(np.array([one, other, one, other]), np.array([0, 1, 0, 1]), plates).means
      array([1., 1.])
    """
    order, candidates = _rankings(np.asarray(values, np.float64), plate)
    well = np.arange(len(plate)) if well is None else well
    asks, nearest, precision = _scored(order, candidates, treatment)
    means = _means(asks, nearest, precision, treatment)
    rng = np.random.default_rng(_SEED)
    by_chance = np.empty((permutations, 2))
    for draw in by_chance:
        shuffled = _permuted(treatment, plate, well, rng)
        draw[:] = _means(*_scored(order, candidates, shuffled), shuffled)
    return Retrieval(asks, nearest, precision, means, by_chance)


def _rankings(values: np.ndarray, plate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All rows, nearest first, those of the own plate last [N, N]; how many are of others [N]."""
    vectors = unit_vectors(values)
    own = plate[:, None] == plate
    distance = np.where(own, np.inf, -np.round(vectors @ vectors.T, TIE_DIGITS))
    return np.argsort(distance, axis=1, kind="stable"), np.count_nonzero(~own, axis=1)


def _scored(
    order: np.ndarray, candidates: np.ndarray, treatment: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """asks, nearest and precision of `Retrieval`.

    Args:
      order: [N, N] of `_rankings`.
      candidates: [N], how many of a row's are of other plates.
      treatment: [N].
    """
    count = len(order)
    row, place = np.divmod(np.flatnonzero(treatment[order] == treatment[:, None]), max(count, 1))
    elsewhere = place < candidates[row]
    row, place = row[elsewhere], place[elsewhere]
    own = np.bincount(row, minlength=count)
    asks = (own > 0) & (own < candidates)
    before = np.arange(len(row)) - (np.cumsum(own) - own)[row]
    precision = np.bincount(row, (before + 1) / (place + 1), count) / np.maximum(own, 1)
    nearest = np.bincount(row, place == 0, count) > 0
    return asks, nearest & asks, np.where(asks, precision, 0.0)


def _means(
    asks: np.ndarray, nearest: np.ndarray, precision: np.ndarray, treatment: np.ndarray
) -> np.ndarray:
    """[2] means of nearest and precision over the rows of each treatment, then over treatments."""
    if not asks.any():
        return np.full(2, np.nan)
    rows = np.bincount(treatment, asks)
    asked = rows > 0
    sums = (np.bincount(treatment, found * asks)[asked] for found in (nearest, precision))
    return np.array([(found / rows[asked]).mean() for found in sums])


def _permuted(
    treatment: np.ndarray, plate: np.ndarray, well: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """[N] treatments, permuted among the wells of each plate."""
    _, first = np.unique(well, return_index=True)
    plates, treatments = plate[first], treatment[first]
    dealt = np.empty_like(treatments)
    dealt[np.argsort(plates, kind="stable")] = treatments[
        np.lexsort((rng.random(len(plates)), plates))
    ]
    return dealt[well]


def _named(means: np.ndarray) -> dict[str, float]:
    return dict(zip(_MEANS, means.tolist(), strict=True))
