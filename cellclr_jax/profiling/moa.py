"""Mechanism of action by the nearest neighbour: NSC, NSCB and the drop between them.

Ljosa et al. 2013, "Comparison of Methods for Image-Based Profiling of Cellular Morphological
Responses to Small-Molecule Treatment", and Ando et al. 2017 for the batch-aware score.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from cellclr_jax.cli import BadData, BadUse
from cellclr_jax.data.tables.controls import is_control
from cellclr_jax.data.tables.metadata import round_concentrations
from cellclr_jax.profiling.candidates import (
    Candidates,
    codes,
    other_batch,
    other_compound,
    reached,
)
from cellclr_jax.profiling.columns import split_columns
from cellclr_jax.profiling.nearest import Neighbours, nearest, unit_vectors


@dataclass(frozen=True)
class Score:
    """How many treatments have a nearest neighbour of their own mechanism of action.

    Attributes:
      correct: queries whose neighbour has their MoA; None where the score is undefined.
      total: queries; 0 where the score is undefined.
      accuracy: correct / total in [0, 1]; None where the score is undefined.
      undefined: why there is no score, or ''.
      voters: how many neighbours answer together.
      unanswerable: queries among `total` that no neighbour could answer rightly, because no
        candidate shares their MoA: the best possible score is (total - unanswerable) / total.
      neighbours: one row a query: compound, concentration, moa, batch, the same of its neighbour
        (neighbour_*; '' and NaN where it has none), similarity (cosine), predicted (the MoA that
        the neighbours vote for), correct.
      excluded: treatments that are no query: compound, concentration, moa, reason.
    """

    correct: int | None
    total: int
    accuracy: float | None
    undefined: str = ""
    voters: int = 1
    unanswerable: int = 0
    neighbours: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False, compare=False)
    excluded: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False, compare=False)


def not_same_compound(
    profiles: pd.DataFrame,
    *,
    neighbours: int = 1,
    features: Sequence[str] | None = None,
    control: str = "DMSO",
) -> Score:
    """NSC: the neighbour is the nearest by cosine among the treatments of other compounds.

    Controls and treatments without a MoA are neither queries nor candidates. A tie (cosines equal
    to twelve digits) goes to the first by compound, then concentration. A profile of zeros has no
    direction: it is nobody's neighbour, and as a query it is counted as wrong.

    Args:
      profiles: one row a treatment: Metadata_Compound, Metadata_Concentration, Metadata_MoA,
        Metadata_Batch, and features.
      neighbours: how many of the nearest vote; of MoAs with as many votes the nearest one's wins.
        Published scores are of one.
      features: the feature columns; by default those of `columns.split_columns`.
      control: the controls' compound.

    Returns:
      The score; undefined where no treatment has another compound of its MoA.

    Raises:
      BadData: a metadata column is missing, a treatment is listed twice, a feature is not finite.
      BadUse: fewer than one neighbour.
    """
    table, vectors = _treatments(profiles, features, control)
    return _answer(table, vectors, [other_compound(table)], [neighbours])[0][neighbours]


def not_same_compound_or_batch(
    profiles: pd.DataFrame,
    *,
    batches: str = "joined",
    left_out: Sequence[str] | None = None,
    neighbours: int = 1,
    features: Sequence[str] | None = None,
    control: str = "DMSO",
) -> Score:
    """NSCB: as NSC, and the neighbour also comes from another batch.

    Args:
      profiles: as for `not_same_compound`; the batches of a treatment that lies in several are
        joined by '|' in Metadata_Batch.
      batches: what another batch is. 'joined': the joined names differ; 'disjoint': no batch in
        common; 'week1': a treatment in several batches counts as in the first one (its profile
        should then come from the wells of that batch: `profiles.in_first_batch`).
      left_out: MoAs that are neither queries nor candidates; by default those that lie in one
        batch alone, for which no right answer exists.
      neighbours: as for `not_same_compound`.
      features: the feature columns; by default those of `columns.split_columns`.
      control: the controls' compound.

    Returns:
      The score; undefined where there is one batch alone, or no query has a right answer.

    Raises:
      BadData: as `not_same_compound`.
      BadUse: an unknown rule for batches, a MoA to leave out that no treatment has, or fewer than
        one neighbour.
    """
    table, vectors = _treatments(profiles, features, control)
    asked = [other_batch(table, batches, left_out)]
    return _answer(table, vectors, asked, [neighbours])[0][neighbours]


def both_scores(
    profiles: pd.DataFrame,
    *,
    neighbours: Sequence[int] = (1,),
    batches: str = "joined",
    left_out: Sequence[str] | None = None,
    features: Sequence[str] | None = None,
    control: str = "DMSO",
) -> dict[int, tuple[Score, Score]]:
    """NSC and NSCB of the same profiles, by numbers of neighbours, from one search.

    For arguments and errors see `not_same_compound_or_batch`.

    Returns:
      {neighbours: (`not_same_compound`, `not_same_compound_or_batch`)}.
    """
    table, vectors = _treatments(profiles, features, control)
    asked = [other_compound(table), other_batch(table, batches, left_out)]
    nsc, nscb = _answer(table, vectors, asked, neighbours)
    return {count: (nsc[count], nscb[count]) for count in neighbours}


def drop(nsc: Score, nscb: Score) -> float | None:
    """NSC - NSCB in percentage points; None where either is undefined."""
    if nsc.accuracy is None or nscb.accuracy is None:
        return None
    return 100.0 * (nsc.accuracy - nscb.accuracy)


def _treatments(
    profiles: pd.DataFrame, features: Sequence[str] | None, control: str
) -> tuple[pd.DataFrame, np.ndarray]:
    """The annotated treatments in one fixed order, and their unit vectors (zeros stay zeros)."""
    names = ("Compound", "Concentration", "MoA", "Batch")
    missing = [f"Metadata_{name}" for name in names if f"Metadata_{name}" not in profiles]
    if missing:
        raise BadData(f"treatment profiles without column {', '.join(missing)}")
    if features is None:
        features = split_columns(profiles).features
    table = pd.DataFrame({name.lower(): profiles[f"Metadata_{name}"].to_numpy() for name in names})
    table[["moa", "batch"]] = table[["moa", "batch"]].fillna("")
    table["concentration"] = round_concentrations(table["concentration"])
    kept = table[(table["moa"] != "") & ~is_control(table["compound"], control)]
    # The caller's row order must not decide a tie, nor the rounding of the product.
    kept = kept.sort_values(["compound", "concentration"])
    if kept.duplicated(["compound", "concentration"]).any():
        twice = kept[kept.duplicated(["compound", "concentration"])].iloc[0]
        raise BadData(
            f"{twice['compound']!r} at {twice['concentration']:g} is listed twice: treatment "
            "profiles have one row a treatment"
        )
    vectors = profiles[list(features)].to_numpy(np.float64)[kept.index.to_numpy()]
    if not np.isfinite(vectors).all():
        row = kept.iloc[int(np.argmin(np.isfinite(vectors).all(axis=1)))]
        raise BadData(f"the profile of {row['compound']!r} holds NaN or an infinite value")
    return kept.reset_index(drop=True), unit_vectors(vectors)


def _answer(
    table: pd.DataFrame,
    vectors: np.ndarray,
    asked: Sequence[Candidates],
    neighbours: Sequence[int],
) -> list[dict[int, Score]]:
    """Finds each query's neighbours among its candidates and counts the right answers.

    Args:
      table: [N] treatments: compound, concentration, moa, batch.
      vectors: [N, D] unit vectors; zeros for a profile without direction.
      asked: the candidates under each rule.
      neighbours: how many answer together; several numbers are of one search.

    Returns:
      The scores under each rule, by the number of neighbours.
    """
    if min(neighbours) < 1:
        raise BadUse(f"neighbours {min(neighbours)}: at least 1 was expected")
    reach = [reached(candidates, codes(table["moa"])) for candidates in asked]
    defined = [
        index
        for index, (candidates, (_, answerable)) in enumerate(zip(asked, reach, strict=True))
        if not candidates.undefined and answerable.any()
    ]
    found = nearest(vectors, [asked[index].allowed for index in defined], max(neighbours))
    by_rule = dict(zip(defined, found, strict=True))
    return [
        {
            count: _score(table, candidates, *reach[index], by_rule.get(index), count)
            for count in neighbours
        }
        for index, candidates in enumerate(asked)
    ]


def _score(
    table: pd.DataFrame,
    asked: Candidates,
    has_candidate: np.ndarray,
    answerable: np.ndarray,
    found: Neighbours | None,
    voters: int,
) -> Score:
    """The score of what was asked; undefined where no neighbours were looked for."""
    reasons = table[["compound", "concentration", "moa"]]
    if found is None:
        reason = asked.undefined or f"no treatment has {asked.what} of its MoA"
        nobody = reasons.assign(reason=reason)
        return Score(None, 0, None, undefined=reason, voters=voters, excluded=nobody)
    alone = (asked.excluded == "") & ~has_candidate
    no_candidate = f"no candidate: there is no treatment of {asked.what}"
    excluded = np.where(alone, no_candidate, asked.excluded)
    queries = np.flatnonzero(excluded == "")
    rows, cosines = found.rows[queries], found.cosines[queries]
    moas = table["moa"].to_numpy(object)
    predicted = _voted(moas, rows[:, :voters])
    correct = predicted == moas[queries]
    pairs = _side_by_side(table.iloc[queries], table.iloc[rows[:, 0]], rows[:, 0] >= 0)
    return Score(
        correct=int(correct.sum()),
        total=len(queries),
        accuracy=float(correct.sum() / len(queries)),
        voters=voters,
        unanswerable=int((~answerable[queries]).sum()),
        neighbours=pairs.assign(similarity=cosines[:, 0], predicted=predicted, correct=correct),
        excluded=reasons.assign(reason=excluded)[excluded != ""].reset_index(drop=True),
    )


def _voted(moas: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """[Q] the MoA that most neighbours have, of equally many the nearest one's; '' without any.

    Args:
      moas: [N] of the treatments.
      rows: [Q, k] of each query's neighbours, the nearest first; -1 for none.
    """
    votes = np.where(rows >= 0, moas[rows], "")
    counts = (votes[:, :, None] == votes[:, None, :]).sum(axis=2) * (rows >= 0)
    predicted: np.ndarray = votes[np.arange(len(votes)), np.argmax(counts, axis=1)]
    return predicted


def _side_by_side(asked: pd.DataFrame, answer: pd.DataFrame, found: np.ndarray) -> pd.DataFrame:
    """Queries and their neighbours; no neighbour where none was found."""
    answer = answer.reset_index(drop=True).add_prefix("neighbour_")
    answer.loc[~found, ["neighbour_compound", "neighbour_moa", "neighbour_batch"]] = ""
    answer.loc[~found, "neighbour_concentration"] = np.nan
    return pd.concat([asked.reset_index(drop=True), answer], axis=1)
