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

# Between the batches of a treatment that lies in several: 'Week1|Week2'.
BATCH_SEPARATOR = "|"
UNKNOWN_BATCH = "its batch is not known"
"""Why a treatment is no query of NSCB."""
# Rows whose candidates are computed at once.
_BLOCK = 1_000


@dataclass(frozen=True)
class Candidates:
    """Queries, and masks of the valid neighbours of each.

    Attributes:
      excluded: [N] why a treatment is no query, or ''.
      allowed: masks of the valid neighbours of some treatments.
      kinds: [N] int; treatments of one kind have the same valid neighbours and are valid neighbours
        of the same treatments.
      what: the valid neighbours in words.
      undefined: why there is no query at all, or ''.
      across_batches: whether neighbours come from other batches.
    """

    excluded: np.ndarray
    allowed: Rule
    kinds: np.ndarray
    what: str
    undefined: str = ""
    across_batches: bool = False


def other_compound(table: pd.DataFrame) -> Candidates:
    """Valid neighbours under NSC: treatments of other compounds.

    Args:
      table: [N] treatments: compound, moa, batch.
    """
    compound = codes(table["compound"])

    def allowed(rows: np.ndarray) -> np.ndarray:
        return compound[rows, None] != compound

    return Candidates(np.full(len(table), "", object), allowed, compound, "another compound")


def other_batch(table: pd.DataFrame, rule: str, left_out: Sequence[str] | None) -> Candidates:
    """Valid neighbours under NSCB: treatments of other compounds in other batches.

    Args:
      table: [N] treatments: compound, moa, batch.
      rule: one of `BATCH_RULES` (see `moa.not_same_compound_or_batch`).
      left_out: MoAs that are neither queries nor neighbours; None: those in a single batch.

    Raises:
      BadUse: an unknown rule, or a MoA to leave out that no treatment has.
    """
    if rule not in BATCH_RULES:
        raise BadUse(f"batches {rule!r}: one of {', '.join(BATCH_RULES)} was expected")
    sets = [batch_set(names, rule) for names in table["batch"]]
    excluded = _left_out(table["moa"], sets, left_out)
    compound, batch = codes(table["compound"]), codes([frozenset(names) for names in sets])
    disjoint = _disjoint(sets, batch) if rule == "disjoint" else None
    candidate = excluded == ""

    def allowed(rows: np.ndarray) -> np.ndarray:
        other = batch[rows, None] != batch if disjoint is None else disjoint[batch[rows]][:, batch]
        return other & (compound[rows, None] != compound) & candidate

    undefined = ""
    if len(names := set().union(*sets)) < 2:
        name = next(iter(names), "")
        undefined = f"all treatments lie in one batch ({name!r})" if name else "no batch is known"
    kinds = codes(zip(compound.tolist(), batch.tolist(), candidate.tolist(), strict=True))
    what = "another compound in another batch"
    return Candidates(excluded, allowed, kinds, what, undefined, across_batches=True)


def reached(candidates: Candidates, moas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds which treatments have a candidate, and which queries have one of their own MoA.

    Args:
      candidates: of N treatments.
      moas: [N] int.

    Returns:
      ([N] bool, [N] bool).
    """
    # Treatments of one kind and MoA have the same result: one of each is computed.
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
    """Lists the MoAs whose treatments all lie in one and the same batch, sorted.

    Args:
      moas: [N] the MoA of each treatment.
      batches: [N] the batches of each treatment.
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
    """[N] int32 codes of labels: equal labels have equal codes, from 0 in order of appearance."""
    position: dict[Hashable, int] = {}
    return np.array([position.setdefault(label, len(position)) for label in labels], np.int32)


def _left_out(
    moas: pd.Series, sets: Sequence[set[str]], left_out: Sequence[str] | None
) -> np.ndarray:
    """[N] why a treatment is left out, or ''."""
    excluded = np.full(len(moas), "", object)
    if any(sets):
        # It may be any batch, even that of the query.
        excluded[[not names for names in sets]] = UNKNOWN_BATCH
    if left_out is None:
        excluded[moas.isin(single_batch_moas(moas, sets)).to_numpy()] = (
            "its MoA lies in one batch alone"
        )
        return excluded
    if unknown := sorted(set(left_out) - set(moas)):
        known = ", ".join(sorted(set(moas)))
        raise BadUse(f"left_out: no treatment has the MoA {unknown[0]!r}; there are {known}")
    excluded[moas.isin(list(left_out)).to_numpy()] = "its MoA is left out as asked"
    return excluded


def _disjoint(sets: Sequence[set[str]], batch: np.ndarray) -> np.ndarray:
    """[K, K] bool: whether two sets of batches have none in common, by their numbers."""
    first = np.unique(batch, return_index=True)[1]
    names = sorted(set().union(*sets))
    member = np.array([[name in sets[row] for name in names] for row in first], np.int64)
    return np.asarray(member @ member.T == 0)


@dataclass(frozen=True)
class Score:
    """Number of treatments whose nearest neighbour has their own mechanism of action.

    Attributes:
      correct: queries whose neighbour has their MoA; None where the score is undefined.
      total: queries; 0 where the score is undefined.
      accuracy: correct / total in [0, 1]; None where the score is undefined.
      undefined: why there is no score, or ''.
      voters: how many neighbours vote.
      unanswerable: queries among `total` that cannot be right, because no candidate shares their
        MoA: the best possible score is (total - unanswerable) / total.
      neighbours: one row a query: compound, concentration, moa, batch, the same of its neighbour
        (neighbour_*; '' and NaN where it has none), similarity (cosine), predicted (the MoA that
        the neighbours vote for), correct.
      excluded: treatments that are no query: compound, concentration, moa, batch, reason.
      across_batches: whether neighbours come from other batches (NSCB).
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
    """Scores NSC: the neighbour is the nearest by cosine among treatments of other compounds.

    Controls and treatments without a MoA are neither queries nor candidates. A tie (cosines equal
    to twelve digits) goes to the first by compound, then concentration. A profile of zeros has no
    direction: it is no neighbour of any, and as a query it counts as wrong.

    Args:
      profiles: one row a treatment: Metadata_Compound, Metadata_Concentration, Metadata_MoA,
        Metadata_Batch, and features.
      neighbours: how many of the nearest vote; of MoAs with as many votes the nearest one's wins.
        Published scores are of one.
      features: the feature columns; by default those of `feature_columns.split_columns`.
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
    control: str = CONTROL,
) -> Score:
    """Scores NSCB: as NSC, and the neighbour also comes from another batch.

    Args:
      profiles: as for `not_same_compound`; the batches of a treatment that lies in several are
        joined by '|' in Metadata_Batch.
      batches: what another batch is. 'joined': the joined names differ; 'disjoint': no batch in
        common; 'week1': a treatment in several batches counts as in the first one (its profile
        should then come from the wells of that batch: `profiles.in_first_batch`).
      left_out: MoAs that are neither queries nor candidates; by default those that lie in a single
        batch, for which no right neighbour exists.
      neighbours: as for `not_same_compound`.
      features: the feature columns; by default those of `feature_columns.split_columns`.
      control: the controls' compound.

    Returns:
      The score; undefined where there is a single batch, or no query has a right candidate.

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
    control: str = CONTROL,
) -> dict[int, tuple[Score, Score]]:
    """Scores NSC and NSCB of the same profiles, by numbers of neighbours, from one search.

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
    """Annotated treatments in one fixed order, and their unit vectors (zeros stay zeros)."""
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
    """Finds each query's neighbours among its candidates and counts the right ones.

    Args:
      table: [N] treatments: compound, concentration, moa, batch.
      vectors: [N, D] unit vectors; zeros for a profile without direction.
      asked: the candidates under each rule.
      neighbours: how many vote; several numbers share one search.

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
    """The score of one rule; undefined where no neighbours were searched (`found` is None)."""
    reasons = table[["compound", "concentration", "moa", "batch"]]
    if found is None:
        reason = asked.undefined or f"no treatment has {asked.what} of its MoA"
        nobody = reasons.assign(reason=reason)
        return Score(
            correct=None,
            total=0,
            accuracy=None,
            undefined=reason,
            voters=voters,
            excluded=nobody,
            across_batches=asked.across_batches,
        )
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
        across_batches=asked.across_batches,
    )


def _voted(moas: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """[Q] the MoA of most neighbours, of ties the nearest neighbour's; '' without neighbours.

    Args:
      moas: [N] of the treatments.
      rows: [Q, k] of each query's neighbours, the nearest first; -1 for none.
    """
    votes = np.where(rows >= 0, moas[rows], "")
    counts = (votes[:, :, None] == votes[:, None, :]).sum(axis=2) * (rows >= 0)
    predicted: np.ndarray = votes[np.arange(len(votes)), np.argmax(counts, axis=1)]
    return predicted


def _side_by_side(asked: pd.DataFrame, answer: pd.DataFrame, found: np.ndarray) -> pd.DataFrame:
    """Queries with their neighbours; empty where none was found."""
    answer = answer.reset_index(drop=True).add_prefix("neighbour_")
    answer.loc[~found, ["neighbour_compound", "neighbour_moa", "neighbour_batch"]] = ""
    answer.loc[~found, "neighbour_concentration"] = np.nan
    return pd.concat([asked.reset_index(drop=True), answer], axis=1)
