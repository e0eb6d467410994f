"""Mechanism of action by the nearest neighbour: NSC, NSCB and the drop between them.

Ljosa et al. 2013, "Comparison of Methods for Image-Based Profiling of Cellular Morphological
Responses to Small-Molecule Treatment", and Ando et al. 2017 for the batch-aware score.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from cellclr_jax.cli import BadData, BadUse
from cellclr_jax.data.tables.metadata import round_concentrations
from cellclr_jax.profiling.columns import is_control, split_columns

BATCH_RULES = ("joined", "disjoint", "week1")
# Between the batches of a treatment that lies in several: 'Week1|Week2'.
BATCH_SEPARATOR = "|"
# Cosines that agree to this many digits are a tie: matrix products round in the sixteenth.
_TIE_DIGITS = 12
# A profile this much shorter than the longest one is rounding and has no direction.
_NO_LENGTH = 1e-14


@dataclass(frozen=True)
class Score:
    """How many treatments have a nearest neighbour of their own mechanism of action.

    Attributes:
      correct: queries whose neighbour has their MoA; None where the score is undefined.
      total: queries; 0 where the score is undefined.
      accuracy: correct / total in [0, 1]; None where the score is undefined.
      undefined: why there is no score, or ''.
      unanswerable: queries among `total` that no neighbour could answer rightly, because no
        candidate shares their MoA: the best possible score is (total - unanswerable) / total.
      neighbours: one row a query: compound, concentration, moa, batch, the same of its neighbour
        (neighbour_*; '' and NaN where it has none), similarity (cosine), correct.
      excluded: treatments that are no query: compound, concentration, moa, reason.
    """

    correct: int | None
    total: int
    accuracy: float | None
    undefined: str = ""
    unanswerable: int = 0
    neighbours: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False, compare=False)
    excluded: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False, compare=False)


def not_same_compound(
    profiles: pd.DataFrame, *, features: Sequence[str] | None = None, control: str = "DMSO"
) -> Score:
    """NSC: the neighbour is the nearest by cosine among the treatments of other compounds.

    Controls and treatments without a MoA are neither queries nor candidates. A tie (cosines equal
    to twelve digits) goes to the first by compound, then concentration. A profile of zeros has no
    direction: it is nobody's neighbour, and as a query it is counted as wrong.

    Args:
      profiles: one row a treatment: Metadata_Compound, Metadata_Concentration, Metadata_MoA,
        Metadata_Batch, and features.
      features: the feature columns; by default those of `columns.split_columns`.
      control: the controls' compound.

    Returns:
      The score; undefined where no treatment has another compound of its MoA.

    Raises:
      BadData: a metadata column is missing, a treatment is listed twice, a feature is not finite.
    """
    table, vectors = _treatments(profiles, features, control)
    allowed = _differs(table["compound"])
    return _score(table, vectors, allowed, _nothing_excluded(table), "another compound")


def not_same_compound_or_batch(
    profiles: pd.DataFrame,
    *,
    batches: str = "joined",
    left_out: Sequence[str] | None = None,
    features: Sequence[str] | None = None,
    control: str = "DMSO",
) -> Score:
    """NSCB: as NSC, and the neighbour also comes from another batch.

    Args:
      profiles: as for `not_same_compound`; the batches of a treatment that lies in several are
        joined by '|' in Metadata_Batch.
      batches: what another batch is. 'joined': the joined names differ; 'disjoint': no batch in
        common; 'week1': a treatment in several batches counts as in the first one (its profile
        should then come from the wells of that batch: `profiles.first_batch_wells`).
      left_out: MoAs that are neither queries nor candidates; by default those that lie in one
        batch alone, for which no right answer exists.
      features: the feature columns; by default those of `columns.split_columns`.
      control: the controls' compound.

    Returns:
      The score; undefined where there is one batch alone, or no query has a right answer.

    Raises:
      BadData: as `not_same_compound`.
      BadUse: an unknown rule for batches, or a MoA to leave out that no treatment has.
    """
    if batches not in BATCH_RULES:
        raise BadUse(f"batches {batches!r}: one of {', '.join(BATCH_RULES)} was expected")
    table, vectors = _treatments(profiles, features, control)
    sets = [batch_set(names, batches) for names in table["batch"]]
    if len(set().union(*sets)) < 2:
        name = next(iter(set().union(*sets)), "")
        reason = f"all treatments lie in one batch ({name!r})" if name else "no batch is known"
        return _undefined(reason, table)
    excluded = _nothing_excluded(table)
    if left_out is None:
        alone = table["moa"].isin(single_batch_moas(table["moa"], sets))
        excluded[alone.to_numpy()] = "its MoA lies in one batch alone"
    else:
        if unknown := sorted(set(left_out) - set(table["moa"])):
            known = ", ".join(sorted(set(table["moa"])))
            raise BadUse(f"left_out: no treatment has the MoA {unknown[0]!r}; there are {known}")
        excluded[table["moa"].isin(list(left_out)).to_numpy()] = "its MoA is left out as asked"
    other = _other_batch(sets, batches)
    allowed = _differs(table["compound"]) & other & (excluded == "")[None, :]
    return _score(table, vectors, allowed, excluded, "another compound in another batch")


def drop(nsc: Score, nscb: Score) -> float | None:
    """NSC - NSCB in percentage points; None where either is undefined."""
    if nsc.accuracy is None or nscb.accuracy is None:
        return None
    return 100.0 * (nsc.accuracy - nscb.accuracy)


def single_batch_moas(moas: Iterable[str], batches: Sequence[set[str]]) -> list[str]:
    """The MoAs all of whose treatments lie in one and the same batch, sorted.

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
    """The batches of a treatment, 'Week1|Week2' apart; under 'week1' the first one alone."""
    names = sorted(filter(None, joined.split(BATCH_SEPARATOR)), key=batch_order)
    return set(names[:1] if rule == "week1" else names)


def _other_batch(sets: list[set[str]], rule: str) -> np.ndarray:
    """[N, N] bool: whether the column's treatment is of another batch than the row's."""
    if rule == "disjoint":
        names = sorted(set().union(*sets))
        member = np.array([[name in batches for name in names] for batches in sets], np.int64)
        return member @ member.T == 0
    return _differs([frozenset(batches) for batches in sets])


def _differs(labels: Sequence[object] | pd.Series | np.ndarray) -> np.ndarray:
    """[N, N] bool: whether two rows' labels differ."""
    position = {label: index for index, label in enumerate(dict.fromkeys(labels))}
    codes = np.array([position[label] for label in labels], np.int64)
    return codes[:, None] != codes[None, :]


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
    return kept.reset_index(drop=True), _unit(vectors)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; rows without length become zeros."""
    # Divided by the largest value first, so that squares neither overflow nor vanish.
    largest = np.abs(vectors).max(initial=0.0)
    vectors = vectors / largest if largest > 0 else vectors
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    kept = length > _NO_LENGTH * length.max(initial=0.0)
    return np.where(kept, vectors / np.where(kept, length, 1.0), 0.0)


def _nothing_excluded(table: pd.DataFrame) -> np.ndarray:
    """[N] reasons, all ''."""
    return np.full(len(table), "", object)


def _undefined(reason: str, table: pd.DataFrame) -> Score:
    """A score that does not exist, and why."""
    excluded = table[["compound", "concentration", "moa"]].assign(reason=reason)
    return Score(None, 0, None, undefined=reason, excluded=excluded)


def _score(
    table: pd.DataFrame,
    vectors: np.ndarray,
    allowed: np.ndarray,
    excluded: np.ndarray,
    what: str,
) -> Score:
    """Finds each query's neighbour among its allowed candidates and counts the right ones.

    Args:
      table: [N] treatments: compound, concentration, moa, batch.
      vectors: [N, D] unit vectors; zeros for a profile without direction.
      allowed: [N, N] bool: whether the column is a candidate of the row.
      excluded: [N] why a treatment is no query, or ''.
      what: the candidates in words.
    """
    moas = np.asarray(table["moa"], object)
    alone = (excluded == "") & ~allowed.any(axis=1)
    excluded = np.where(alone, f"no candidate: there is no treatment of {what}", excluded)
    queries = np.flatnonzero(excluded == "")
    answerable = (allowed & ~_differs(moas)).any(axis=1)[queries]
    if not answerable.any():
        return _undefined(f"no treatment has {what} of its MoA", table)
    directed = np.any(vectors != 0, axis=1)
    similarity = np.round(vectors @ vectors.T, _TIE_DIGITS)
    similarity[~(allowed & directed[None, :])] = -np.inf
    nearest = np.argmax(similarity, axis=1)[queries]
    best = similarity[queries, nearest]
    found = directed[queries] & np.isfinite(best)
    correct = found & (moas[nearest] == moas[queries])
    neighbours = _neighbours(table.iloc[queries], table.iloc[nearest], found)
    reasons = table[["compound", "concentration", "moa"]].assign(reason=excluded)
    return Score(
        correct=int(correct.sum()),
        total=len(queries),
        accuracy=float(correct.sum() / len(queries)),
        unanswerable=int((~answerable).sum()),
        neighbours=neighbours.assign(similarity=np.where(found, best, np.nan), correct=correct),
        excluded=reasons[excluded != ""].reset_index(drop=True),
    )


def _neighbours(asked: pd.DataFrame, answer: pd.DataFrame, found: np.ndarray) -> pd.DataFrame:
    """Queries and their neighbours side by side; no neighbour where none was found."""
    answer = answer.reset_index(drop=True).add_prefix("neighbour_")
    answer.loc[~found, ["neighbour_compound", "neighbour_moa", "neighbour_batch"]] = ""
    answer.loc[~found, "neighbour_concentration"] = np.nan
    return pd.concat([asked.reset_index(drop=True), answer], axis=1)
