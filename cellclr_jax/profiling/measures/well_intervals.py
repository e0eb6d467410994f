"""How far a score moves with the wells that happened to be imaged: a bootstrap over wells."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from cellclr_jax.profiling.candidates import Candidates, codes, other_batch, other_compound
from cellclr_jax.profiling.groups import medians
from cellclr_jax.profiling.measures.measured import CorrectedProfiles, Measured, undefined
from cellclr_jax.profiling.measures.uncertainty import LEVEL
from cellclr_jax.profiling.moa import Score
from cellclr_jax.profiling.nearest import TIE_DIGITS, unit_vectors
from cellclr_jax.profiling.profiles import in_first_batch

RESAMPLES = 300
"""How often wells are drawn anew."""
MOST_TREATMENTS = 3_000
"""300 matrices of cosines between so many take over a minute; ten times as many two hours."""
_SEED = 0


class Replicates:
    """The wells of each treatment, and its profile from as many of them drawn with replacement."""

    def __init__(self, values: np.ndarray, treatment: np.ndarray, statistic: str) -> None:
        """Groups treatments by their number of wells.

        Args:
          values: [W, D] float64.
          treatment: [W] int, the treatment of each well, each of 0..N-1 at least once.
          statistic: 'median' or 'mean'.
        """
        counts = np.bincount(treatment)
        order, starts = np.argsort(treatment, kind="stable"), np.cumsum(counts) - counts
        self._shape = (len(counts), values.shape[1])
        self._mean = statistic == "mean"
        self._groups = []
        for count in np.unique(counts).tolist():
            treatments = np.flatnonzero(counts == count)
            rows = order[starts[treatments, None] + np.arange(count)]
            self._groups.append((treatments, values[rows]))

    def profiles(self, rng: np.random.Generator | None) -> np.ndarray:
        """[N, D] float64 profiles of wells that are drawn anew, or of each well once for None."""
        found = np.empty(self._shape)
        for treatments, wells in self._groups:
            if rng is not None:
                drawn = rng.integers(wells.shape[1], size=wells.shape[:2])
                wells = wells[np.arange(len(wells))[:, None], drawn]
            found[treatments] = wells.mean(axis=1) if self._mean else medians(wells)
        return found


@dataclass(frozen=True)
class Rule:
    """What it takes to score profiles again and again by one rule.

    Attributes:
      queries: [Q] int, the treatments that ask.
      barred: [Q, N] float64: -inf where a treatment may not answer, else 0.
      right: [Q, N] bool: whether an answer has the query's MoA.
    """

    queries: np.ndarray
    barred: np.ndarray
    right: np.ndarray


def rule(candidates: Candidates, moas: pd.Series) -> Rule:
    """The rule by which `moa` finds neighbours, for all treatments at once.

    Args:
      candidates: of N treatments.
      moas: [N] of the same treatments.
    """
    allowed = candidates.allowed(np.arange(len(moas)))
    queries = np.flatnonzero((candidates.excluded == "") & allowed.any(axis=1))
    number = codes(moas)
    return Rule(
        queries,
        np.where(allowed[queries], 0.0, -np.inf),
        number[queries, None] == number,
    )


def accuracies(profiles: np.ndarray, rules: list[Rule]) -> list[float]:
    """The accuracy of the nearest neighbour under each rule, as `moa` scores it.

    Args:
      profiles: [N, D] float64, sorted by compound and concentration, which decides ties.
      rules: see `rule`.
    """
    vectors = unit_vectors(profiles)
    directed = np.any(vectors != 0, axis=1)
    similar = np.round(vectors @ vectors.T, TIE_DIGITS)
    similar[:, ~directed] = -np.inf
    found = []
    for one in rules:
        near = similar[one.queries] + one.barred
        nearest = near.argmax(axis=1)[:, None]
        correct = np.take_along_axis(one.right, nearest, axis=1)[:, 0]
        correct &= directed[one.queries]
        correct &= np.isfinite(np.take_along_axis(near, nearest, axis=1)[:, 0])
        found.append(float(correct.mean()))
    return found


def well_intervals(profiles: CorrectedProfiles) -> Measured:
    """95 % percentile intervals of NSC and NSCB over wells that are drawn anew.

    Within each treatment as many wells as it has are drawn with replacement, and its profile and
    neighbour found again; the correction stays as it was fitted (Efron 1979). A treatment of one
    well never changes. A draw repeats some wells and misses others, so its profiles are noisier
    than those of all wells and score less on average: the interval is moved up by that, and ends
    at 0 and 1.

    Args:
      profiles: of one correction.

    Returns:
      Summary: nsc and nscb ([low, high]; None where the score is undefined), mean (of the
      resamples, the same way), resamples, single_wells (treatments of one well). Undefined beyond
      `MOST_TREATMENTS`, where both scores are, or where no treatment has two wells.
    """
    scores = {"nsc": profiles.nsc, "nscb": profiles.nscb}
    if len(profiles.treatments) > MOST_TREATMENTS:
        return undefined(f"{len(profiles.treatments)} treatments: at most {MOST_TREATMENTS}")
    if all(score.undefined for score in scores.values()):
        return undefined(profiles.nsc.undefined)
    treatment = profiles.treatment_of_wells()
    wells = np.bincount(treatment[treatment >= 0])
    if wells.max() < 2:
        return undefined("no treatment has two wells")
    drawn = _resampled(profiles, scores)
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    summary: dict[str, object] = dict.fromkeys(scores)
    for name, values in drawn.items():
        lost = (scores[name].accuracy or 0.0) - values.mean()
        summary[name] = np.clip(np.quantile(values, ends) + lost, 0.0, 1.0).tolist()
    means = {name: float(values.mean()) for name, values in drawn.items()}
    summary["mean"] = dict.fromkeys(scores) | means
    summary |= {"resamples": RESAMPLES, "single_wells": int((wells == 1).sum())}
    return Measured(summary)


def _resampled(profiles: CorrectedProfiles, scores: dict[str, Score]) -> dict[str, np.ndarray]:
    """[RESAMPLES] accuracies of each score that is defined."""
    protocol, named = profiles.protocol, profiles.named_treatments()
    order = named.sort_values(["compound", "concentration"]).index.to_numpy()
    named = named.iloc[order].reset_index(drop=True)
    asked = {
        "nsc": rule(other_compound(named), named["moa"]),
        "nscb": rule(other_batch(named, protocol.batches, protocol.left_out), named["moa"]),
    }
    row = profiles.treatment_of_wells()
    treatment = np.where(row < 0, -1, np.argsort(order)[row])
    everything = treatment >= 0
    together = [(list(asked), everything)]
    if protocol.batches == "week1":
        first = everything & in_first_batch(profiles.wells)
        together = [(["nsc"], everything), (["nscb"], first)]
    values = profiles.well_values()
    found: dict[str, np.ndarray] = {}
    for names, kept in together:
        defined = [name for name in names if not scores[name].undefined]
        if defined:
            replicates = Replicates(values[kept], treatment[kept], protocol.statistic)
            rng, rules = np.random.default_rng(_SEED), [asked[name] for name in defined]
            drawn = [accuracies(replicates.profiles(rng), rules) for _ in range(RESAMPLES)]
            found |= dict(zip(defined, np.array(drawn).T, strict=True))
    return found
