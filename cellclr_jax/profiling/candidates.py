"""Who may answer for whom: the candidates of each treatment under NSC and NSCB."""

import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cellclr_jax.cli import BadUse
from cellclr_jax.profiling.nearest import Rule

BATCH_RULES = ("joined", "disjoint", "week1")
# Between the batches of a treatment that lies in several: 'Week1|Week2'.
BATCH_SEPARATOR = "|"
# Rows of which it is asked at once who may answer them.
_BLOCK = 1_000


@dataclass(frozen=True)
class Candidates:
    """Who is asked, and who may answer.

    Attributes:
      excluded: [N] why a treatment is no query, or ''.
      allowed: which treatments may answer which.
      kinds: [N] int; treatments of one kind have the same candidates and are alike as such.
      what: the candidates in words.
      undefined: why nothing can be asked, or ''.
    """

    excluded: np.ndarray
    allowed: Rule
    kinds: np.ndarray
    what: str
    undefined: str = ""


def other_compound(table: pd.DataFrame) -> Candidates:
    """Those of other compounds.

    Args:
      table: [N] treatments: compound, moa, batch.
    """
    compound = codes(table["compound"])

    def allowed(rows: np.ndarray) -> np.ndarray:
        return compound[rows, None] != compound

    return Candidates(np.full(len(table), "", object), allowed, compound, "another compound")


def other_batch(table: pd.DataFrame, rule: str, left_out: Sequence[str] | None) -> Candidates:
    """Those of other compounds in other batches.

    Args:
      table: [N] treatments: compound, moa, batch.
      rule: one of `BATCH_RULES` (see `moa.not_same_compound_or_batch`).
      left_out: MoAs that neither ask nor answer; None: those that lie in one batch alone.

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
    return Candidates(excluded, allowed, kinds, "another compound in another batch", undefined)


def reached(candidates: Candidates, moas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which treatments have a candidate, and which queries have one of their own MoA.

    Args:
      candidates: of N treatments.
      moas: [N] int.

    Returns:
      ([N] bool, [N] bool).
    """
    # Treatments of one kind and MoA have the same answer: one of each is asked.
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


def codes(labels: Iterable[Hashable]) -> np.ndarray:
    """[N] int32: equal labels have equal numbers, from 0 in the order of their first."""
    position: dict[Hashable, int] = {}
    return np.array([position.setdefault(label, len(position)) for label in labels], np.int32)


def _left_out(
    moas: pd.Series, sets: Sequence[set[str]], left_out: Sequence[str] | None
) -> np.ndarray:
    """[N] why a treatment is left out, or ''."""
    excluded = np.full(len(moas), "", object)
    if any(sets):
        # It may be any, the query's own among them.
        excluded[[not names for names in sets]] = "its batch is not known"
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
