"""NSC and NSCB: the MoA of the nearest treatment of another compound, or also of another batch."""

import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from cellclr_jax.data.columns import CONTROL, is_control, round_concentrations
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.profiling.feature_columns import split_columns
from cellclr_jax.profiling.nearest import Neighbours, Rule, nearest, unit_vectors
from cellclr_jax.profiling.protocol import BATCH_RULES

# Joins the batches of a treatment in several batches: 'Week1|Week2'.
BATCH_SEPARATOR = "|"
UNKNOWN_BATCH = "its batch is not known"
"""Reason why a treatment is not a query of NSCB."""
# Rows whose candidates are computed at once.
_BLOCK = 1_000
_TREATMENT = ["compound", "concentration", "moa", "batch"]


@dataclass(frozen=True)
class Candidates:
    """Queries and valid neighbours under one rule.

    Attributes:
      excluded: [N] reason why a treatment is not a query, or ''.
      allowed: masks of the valid neighbours.
      kinds: [N] int; treatments of one kind have the same valid neighbours and are valid neighbours
        of the same treatments.
      description: of the valid neighbours, for messages.
      undefined: reason why there are no queries, or ''.
      across_batches: neighbours come from other batches.
    """

    excluded: np.ndarray
    allowed: Rule
    kinds: np.ndarray
    description: str
    undefined: str = ""
    across_batches: bool = False


def other_compound(table: pd.DataFrame) -> Candidates:
    """Valid neighbours under NSC: treatments of other compounds.

    Args:
      table: [N] treatments: compound, moa, batch.
    """
    compound = codes(table["compound"])
    return Candidates(
        excluded=np.full(len(table), "", object),
        allowed=lambda rows: compound[rows, None] != compound,
        kinds=compound,
        description="another compound",
    )


def other_batch(table: pd.DataFrame, rule: str, left_out: Sequence[str] | None) -> Candidates:
    """Valid neighbours under NSCB: treatments of other compounds in other batches.

    Args:
      table: [N] treatments: compound, moa, batch.
      rule: one of `BATCH_RULES` (see `moa.not_same_compound_or_batch`).
      left_out: MoAs that are neither queries nor neighbours; None: those in a single batch.

    Raises:
      BadUse: an unknown rule, or a MoA in `left_out` that no treatment has.
    """
    if rule not in BATCH_RULES:
        raise BadUse(f"batches {rule!r}: one of {', '.join(BATCH_RULES)} was expected")
    sets = [batch_set(names, rule) for names in table["batch"]]
    excluded = _left_out(table["moa"], sets, left_out)
    compound, batch = codes(table["compound"]), codes([frozenset(names) for names in sets])
    disjoint = _disjoint(sets, batch) if rule == "disjoint" else None
    candidate = excluded == ""

    def allowed(rows: np.ndarray) -> np.ndarray:
        """Masks of candidates of another compound and another batch."""
        other = batch[rows, None] != batch if disjoint is None else disjoint[batch[rows]][:, batch]
        return other & (compound[rows, None] != compound) & candidate

    undefined = ""
    if len(names := set().union(*sets)) < 2:
        name = next(iter(names), "")
        undefined = f"all treatments lie in one batch ({name!r})" if name else "no batch is known"
    kinds = codes(zip(compound.tolist(), batch.tolist(), candidate.tolist(), strict=True))
    description = "another compound in another batch"
    return Candidates(excluded, allowed, kinds, description, undefined, across_batches=True)


def reached(candidates: Candidates, moas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds the treatments with a candidate, and the queries with a candidate of their own MoA.

    Args:
      candidates: of N treatments.
      moas: [N] int.

    Returns:
      ([N] bool, [N] bool).
    """
    # Treatments of one kind and MoA have the same result, which is computed once.
    kinds = codes(zip(candidates.kinds.tolist(), moas.tolist(), strict=True))
    first = np.unique(kinds, return_index=True)[1]
    some, right = np.zeros(len(first), bool), np.zeros(len(first), bool)
    for start in range(0, len(first), _BLOCK):
        block = slice(start, start + _BLOCK)
        allowed = candidates.allowed(first[block])[:, first]
        some[block] = allowed.any(axis=1)
        right[block] = (allowed & (moas[first[block], None] == moas[first])).any(axis=1)
    return some[kinds], right[kinds] & (candidates.excluded == "")


def single_batch_moas(moas: Iterable[str], batches: Sequence[set[str]]) -> list[str]:
    """Lists the MoAs whose treatments all lie in one batch, sorted.

    Args:
      moas: [N] MoA of each treatment.
      batches: [N] batches of each treatment.
    """
    union: dict[str, set[str]] = {}
    for moa, names in zip(moas, batches, strict=True):
        union.setdefault(moa, set()).update(names)
    return sorted(moa for moa, names in union.items() if len(names) == 1)


def batch_order(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sorting key that puts Week2 before Week10."""
    parts = re.findall(r"\d+|\D+", name)
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in parts], name


def batch_set(joined: str, rule: str) -> set[str]:
    """Splits the joined batches of a treatment, 'Week1|Week2'; 'week1' keeps only the first."""
    names = sorted(filter(None, joined.split(BATCH_SEPARATOR)), key=batch_order)
    return set(names[:1] if rule == "week1" else names)


def codes(labels: Iterable[Hashable]) -> np.ndarray:
    """Encodes labels as [N] int32: equal labels have equal codes, from 0 in order of appearance."""
    position: dict[Hashable, int] = {}
    return np.array([position.setdefault(label, len(position)) for label in labels], np.int32)


def name_treatment(treatment: pd.Series) -> str:
    """Names a treatment in a message: "'taxol' at 0.3 µM" or "'taxol' at an unknown concentration".

    Args:
      treatment: with `compound` and `concentration` (NaN if unknown).
    """
    dose = treatment["concentration"]
    amount = "an unknown concentration" if np.isnan(dose) else f"{dose:g} µM"
    return f"{treatment['compound']!r} at {amount}"


def _left_out(
    moas: pd.Series, sets: Sequence[set[str]], left_out: Sequence[str] | None
) -> np.ndarray:
    """Returns the reason [N] why each treatment is left out of NSCB, or ''."""
    excluded = np.full(len(moas), "", object)
    if any(sets):
        # An unknown batch may be any batch, including the query's.
        excluded[[not names for names in sets]] = UNKNOWN_BATCH
    if left_out is None:
        single = moas.isin(single_batch_moas(moas, sets)).to_numpy()
        excluded[single] = "its MoA lies in one batch only"
        return excluded
    if unknown := sorted(set(left_out) - set(moas)):
        known = ", ".join(sorted(set(moas)))
        raise BadUse(f"left_out: no treatment has the MoA {unknown[0]!r}; there are {known}")
    excluded[moas.isin(list(left_out)).to_numpy()] = "its MoA is left out (--left_out)"
    return excluded


def _disjoint(sets: Sequence[set[str]], batch: np.ndarray) -> np.ndarray:
    """Checks which pairs of distinct sets of batches are disjoint; returns [K, K] bool by code."""
    first = np.unique(batch, return_index=True)[1]
    names = sorted(set().union(*sets))
    member = np.array([[name in sets[row] for name in names] for row in first], np.int64)
    return np.asarray(member @ member.T == 0)


@dataclass(frozen=True)
class Score:
    """Number of treatments whose nearest neighbour has the same MoA.

    Attributes:
      correct: queries whose neighbour has their MoA; None if the score is undefined.
      total: number of queries; 0 if the score is undefined.
      accuracy: correct / total in [0, 1]; None if the score is undefined.
      undefined: reason why there is no score, or ''.
      voters: number of neighbours that vote.
      unanswerable: queries among `total` without a candidate of their MoA, which cannot be correct:
        the best possible score is (total - unanswerable) / total.
      neighbours: one row a query: compound, concentration, moa, batch, the same columns of its
        neighbour (neighbour_*; '' and NaN if it has none), similarity (cosine), predicted (MoA by
        the vote of the neighbours), correct.
      excluded: treatments that are not queries: compound, concentration, moa, batch, reason.
      across_batches: neighbours come from other batches (NSCB).
    """

    correct: int | None
    total: int
    accuracy: float | None
    undefined: str = ""
    voters: int = 1
    unanswerable: int = 0
    neighbours: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False, compare=False)
    excluded: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False, compare=False)
    across_batches: bool = False


def not_same_compound(
    profiles: pd.DataFrame,
    *,
    neighbours: int = 1,
    features: Sequence[str] | None = None,
    control: str = CONTROL,
) -> Score:
    """Computes NSC: the neighbour is the nearest by cosine among treatments of other compounds.

    Controls and treatments without a MoA are neither queries nor candidates. A tie (cosines equal
    to twelve digits) goes to the first by compound, then concentration, unknown ones last. A
    profile of zeros has no direction: it is nobody's neighbour, and as a query it counts as wrong.

    Args:
      profiles: one row a treatment: Metadata_Compound, Metadata_Concentration, Metadata_MoA,
        Metadata_Batch, and features.
      neighbours: number of nearest neighbours that vote; a draw goes to the MoA of the nearest.
        Published scores use 1.
      features: feature columns; by default those of `feature_columns.split_columns`.
      control: compound name of the controls.

    Returns:
      The score; undefined if no treatment has another compound of its MoA.

    Raises:
      BadData: a metadata column is missing, a treatment is listed twice, a feature is not finite.
      BadUse: fewer than one neighbour.
    """
    table, vectors = _treatments(profiles, features, control)
    return _scores(table, vectors, [other_compound(table)], [neighbours])[0][neighbours]


def not_same_compound_or_batch(
    profiles: pd.DataFrame,
    *,
    batches: str = "joined",
    left_out: Sequence[str] | None = None,
    neighbours: int = 1,
    features: Sequence[str] | None = None,
    control: str = CONTROL,
) -> Score:
    """Computes NSCB: as NSC, and the neighbour also comes from another batch.

    Args:
      profiles: as for `not_same_compound`; Metadata_Batch joins several batches by '|'.
      batches: rule for another batch. 'joined': the joined names differ; 'disjoint': no batch in
        common; 'week1': a treatment in several batches belongs only to the first (its profile
        should then come from the wells of that batch: `profiles.in_first_batch`).
      left_out: MoAs that are neither queries nor candidates; by default those in a single batch,
        which have no right neighbour.
      neighbours: as for `not_same_compound`.
      features: as for `not_same_compound`.
      control: compound name of the controls.

    Returns:
      The score; undefined if there is a single batch, or no query has a right candidate.

    Raises:
      BadData: as `not_same_compound`.
      BadUse: an unknown rule for batches, a MoA in `left_out` that no treatment has, or fewer than
        one neighbour.
    """
    table, vectors = _treatments(profiles, features, control)
    candidates = [other_batch(table, batches, left_out)]
    return _scores(table, vectors, candidates, [neighbours])[0][neighbours]


def both_scores(
    profiles: pd.DataFrame,
    *,
    neighbours: Sequence[int] = (1,),
    batches: str = "joined",
    left_out: Sequence[str] | None = None,
    features: Sequence[str] | None = None,
    control: str = CONTROL,
) -> dict[int, tuple[Score, Score]]:
    """Computes NSC and NSCB of the same profiles from one search, by numbers of neighbours.

    For arguments and errors see `not_same_compound_or_batch`.

    Returns:
      {neighbours: (`not_same_compound`, `not_same_compound_or_batch`)}.
    """
    table, vectors = _treatments(profiles, features, control)
    candidates = [other_compound(table), other_batch(table, batches, left_out)]
    nsc, nscb = _scores(table, vectors, candidates, neighbours)
    return {count: (nsc[count], nscb[count]) for count in neighbours}


def drop(nsc: Score, nscb: Score) -> float | None:
    """NSC - NSCB in percentage points; None if either is undefined."""
    if nsc.accuracy is None or nscb.accuracy is None:
        return None
    return 100.0 * (nsc.accuracy - nscb.accuracy)


def _treatments(
    profiles: pd.DataFrame, features: Sequence[str] | None, control: str
) -> tuple[pd.DataFrame, np.ndarray]:
    """Annotated treatments sorted by compound and concentration, and their unit vectors."""
    names = ("Compound", "Concentration", "MoA", "Batch")
    missing = [f"Metadata_{name}" for name in names if f"Metadata_{name}" not in profiles]
    if missing:
        raise BadData(f"treatment profiles without column {', '.join(missing)}")
    if features is None:
        features = split_columns(profiles).features
    table = pd.DataFrame({name.lower(): profiles[f"Metadata_{name}"].to_numpy() for name in names})
    table[["moa", "batch"]] = table[["moa", "batch"]].fillna("")
    table["concentration"] = round_concentrations(table["concentration"])
    table = table[(table["moa"] != "") & ~is_control(table["compound"], control)]
    # The order of the input must decide neither ties nor the rounding of the product.
    table = table.sort_values(["compound", "concentration"])
    repeated = table.duplicated(["compound", "concentration"])
    if repeated.any():
        raise BadData(
            f"{name_treatment(table[repeated].iloc[0])} is listed twice: one row a treatment was "
            "expected"
        )
    vectors = profiles[list(features)].to_numpy(np.float64)[table.index.to_numpy()]
    if not np.isfinite(vectors).all():
        row = table.iloc[int(np.argmin(np.isfinite(vectors).all(axis=1)))]
        raise BadData(f"the profile of {row['compound']!r} holds NaN or an infinite value")
    return table.reset_index(drop=True), unit_vectors(vectors)


def _scores(
    table: pd.DataFrame,
    vectors: np.ndarray,
    rules: Sequence[Candidates],
    neighbours: Sequence[int],
) -> list[dict[int, Score]]:
    """Scores under each rule, by the number of neighbours, from one search."""
    if min(neighbours) < 1:
        raise BadUse(f"neighbours {min(neighbours)}: at least 1 was expected")
    reach = [reached(candidates, codes(table["moa"])) for candidates in rules]
    defined = [
        index
        for index, (candidates, (_, answerable)) in enumerate(zip(rules, reach, strict=True))
        if not candidates.undefined and answerable.any()
    ]
    found = nearest(vectors, [rules[index].allowed for index in defined], max(neighbours))
    by_rule = dict(zip(defined, found, strict=True))
    return [
        {
            count: _score(table, candidates, *reach[index], by_rule.get(index), count)
            for count in neighbours
        }
        for index, candidates in enumerate(rules)
    ]


def _score(
    table: pd.DataFrame,
    candidates: Candidates,
    has_candidate: np.ndarray,
    answerable: np.ndarray,
    found: Neighbours | None,
    voters: int,
) -> Score:
    """Score of one rule; undefined if `found` is None."""
    across = candidates.across_batches
    if found is None:
        reason = candidates.undefined or f"no treatment has {candidates.description} of its MoA"
        excluded = table[_TREATMENT].assign(reason=reason)
        return Score(None, 0, None, reason, voters, excluded=excluded, across_batches=across)
    reasons = np.where(
        (candidates.excluded == "") & ~has_candidate,
        f"no candidate: there is no treatment of {candidates.description}",
        candidates.excluded,
    )
    queries = np.flatnonzero(reasons == "")
    rows = found.rows[queries]
    moas = table["moa"].to_numpy(object)
    predicted = _voted(moas, rows[:, :voters])
    correct = predicted == moas[queries]
    pairs = _join_neighbours(table.iloc[queries], table.iloc[rows[:, 0]], rows[:, 0] >= 0)
    cosines = found.cosines[queries, 0]
    return Score(
        correct=int(correct.sum()),
        total=len(queries),
        accuracy=float(correct.sum() / len(queries)),
        voters=voters,
        unanswerable=int((~answerable[queries]).sum()),
        neighbours=pairs.assign(similarity=cosines, predicted=predicted, correct=correct),
        excluded=table[_TREATMENT].assign(reason=reasons)[reasons != ""].reset_index(drop=True),
        across_batches=across,
    )


def _voted(moas: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Finds the most frequent MoA [Q] of neighbours [Q, k] (-1: none); ties go to the nearest."""
    votes = np.where(rows >= 0, moas[rows], "")
    counts = (votes[:, :, None] == votes[:, None, :]).sum(axis=2) * (rows >= 0)
    predicted: np.ndarray = votes[np.arange(len(votes)), np.argmax(counts, axis=1)]
    return predicted


def _join_neighbours(
    queries: pd.DataFrame, neighbours: pd.DataFrame, found: np.ndarray
) -> pd.DataFrame:
    """Queries with the columns of their neighbours; '' and NaN if none was found."""
    neighbours = neighbours.reset_index(drop=True).add_prefix("neighbour_")
    neighbours.loc[~found, ["neighbour_compound", "neighbour_moa", "neighbour_batch"]] = ""
    neighbours.loc[~found, "neighbour_concentration"] = np.nan
    return pd.concat([queries.reset_index(drop=True), neighbours], axis=1)
