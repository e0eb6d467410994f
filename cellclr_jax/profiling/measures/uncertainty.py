"""Confidence intervals of scores over compounds and over wells, and permutation tests."""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pandas as pd

from cellclr_jax.profiling.group_statistics import medians
from cellclr_jax.profiling.measures.measure import CorrectedProfiles, Measured, undefined
from cellclr_jax.profiling.moa import Candidates, Score, codes, other_batch, other_compound
from cellclr_jax.profiling.nearest import nearest, unit_vectors
from cellclr_jax.profiling.profiles import in_first_batch

LEVEL = 0.95
"""Confidence level of the intervals."""
_ENDS = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
_Z = NormalDist().inv_cdf(_ENDS[1])
_OF_TREATMENTS = ["compound", "moa", "batch"]
RESAMPLES = 300
"""Number of bootstrap samples of wells."""
MOST_TREATMENTS = 3_000
"""300 matrices of cosines of so many treatments take over a minute; of ten times as many two
hours."""
PERMUTATIONS = 10_000
"""Permutations of mechanisms for up to 500 compounds; fewer for more compounds."""
_FEWEST_PERMUTATIONS, _MOST_EXCHANGED = 1_000, 5_000_000
# Permutations in memory: 8 MB for a thousand compounds.
_BLOCK = 1_000
_SEED = 0


@dataclass(frozen=True)
class Uncertainty:
    """Confidence interval and chance level of an accuracy.

    Attributes:
      low: lower end of the 95 % interval, in [0, 1].
      high: its upper end.
      chance: mean accuracy with mechanisms shuffled among compounds (under NSCB among those of the
        same batches), in [0, 1].
      p: share of shuffles that score at least as well, counting the true mechanisms as one.
    """

    low: float
    high: float
    chance: float
    p: float


def uncertainty(score: Score, *, resamples: int | None = None) -> Uncertainty:
    """Computes interval and chance level of a defined score, both by compounds.

    Treatments of one compound are not independent: if one of its concentrations is right, the
    others mostly are. So the interval is based on the effective number of independent queries (see
    `effective_interval`), and the permutation test exchanges mechanisms between whole compounds
    while the neighbours stay.

    Under NSCB, mechanisms are exchanged only between compounds whose treatments lie in the same
    batches. By default NSCB leaves out the mechanisms of a single batch; such exchanges change
    neither the batches of a mechanism nor the queries and candidates. Exchanges between any two
    compounds would, and p would be too small. A compound that shares its batches with no other
    keeps its mechanism, so p is conservative if most do.

    Args:
      score: of `moa.not_same_compound` or `moa.not_same_compound_or_batch`.
      resamples: number of permutations; None takes `PERMUTATIONS`, or fewer for more than 500
        compounds, but at least 1,000.

    Raises:
      ValueError: the score is undefined, or from the vote of several neighbours.
    """
    if score.accuracy is None:
        raise ValueError(f"an undefined score has no interval: {score.undefined}")
    if score.voters != 1:
        raise ValueError(f"the vote of {score.voters} neighbours has no chance level")
    queries, neighbours = (_named(score.neighbours, prefix) for prefix in ("", "neighbour_"))
    index, found = pd.MultiIndex.from_frame(pd.concat([queries, neighbours])).factorize()
    names: list[tuple[str, str]] = list(found)
    own, other = index[: len(queries)], index[len(queries) :]
    low, high = effective_interval(
        codes(score.neighbours["compound"]), score.neighbours["correct"].to_numpy(bool)
    )
    if resamples is None:
        affordable = max(_FEWEST_PERMUTATIONS, _MOST_EXCHANGED // len(names))
        resamples = min(PERMUTATIONS, affordable)
    strata = _strata(score, names) if score.across_batches else np.zeros(len(names), np.int32)
    rng = np.random.default_rng(_SEED)  # the same score has the same p
    shuffled = _shuffled(names, strata, own, other, resamples, rng)
    beaten = int((shuffled >= score.correct).sum())
    return Uncertainty(
        low=low,
        high=high,
        chance=float(shuffled.mean() / score.total),
        p=(1 + beaten) / (1 + resamples),
    )


def _named(table: pd.DataFrame, prefix: str = "") -> pd.DataFrame:
    """Returns compound and mechanism of each treatment [Q]; both are '' for no neighbour."""
    return pd.DataFrame(
        {name: table[f"{prefix}{name}"].astype(str) for name in ("compound", "moa")}
    )


def _strata(score: Score, names: list[tuple[str, str]]) -> np.ndarray:
    """Groups (compound, mechanism) pairs with treatments in the same batches; returns codes [C]."""
    table = pd.concat([score.neighbours[_OF_TREATMENTS], score.excluded[_OF_TREATMENTS]])
    batches = table["batch"].groupby([column for _, column in _named(table).items()]).agg(frozenset)
    return codes(batches.get(name) for name in names)


def effective_interval(compounds: np.ndarray, correct: np.ndarray) -> tuple[float, float]:
    """Computes Wilson's 95 % interval of an accuracy whose queries are clustered by compound.

    The effective number of queries is N / (1 + (m - 1) r) (Kish 1965): m is the mean number of
    queries of a query's compound, r the correlation of queries within compounds by one-way analysis
    of variance, clipped to [0, 1], and 1 if all queries are right or all are wrong. According to
    Franco et al. 2019, "Comparative study of confidence intervals for proportions in complex sample
    surveys", Wilson's interval with an effective number is the one that is valid near 0 and 1. In
    simulations of 12 to 100 compounds with 1 to 5 treatments, accuracies of 0.5 to 0.98 and
    correlations of 0 to 1 it covers the true accuracy in 0.93 to 0.98 of cases.

    Args:
      compounds: [N] int from 0, of each query.
      correct: [N] bool.

    Returns:
      Lower and upper end in [0, 1].
    """
    sizes = np.bincount(compounds)
    right = np.bincount(compounds, weights=correct)
    queries, groups, accuracy = len(correct), len(sizes), float(correct.mean())
    mean_size = (sizes**2).sum() / queries
    correlation = 1.0
    if queries > groups > 1 and 0 < accuracy < 1:
        shares = right / sizes
        between = (sizes * (shares - accuracy) ** 2).sum() / (groups - 1)
        within = (right * (1 - shares)).sum() / (queries - groups)
        usual_size = (queries - mean_size) / (groups - 1)
        correlation = (between - within) / (between + (usual_size - 1) * within)
    effective = queries / (1 + (mean_size - 1) * min(max(correlation, 0.0), 1.0))
    middle = accuracy + _Z**2 / (2 * effective)
    half = _Z * np.sqrt(accuracy * (1 - accuracy) / effective + (_Z / (2 * effective)) ** 2)
    low, high = np.array([middle - half, middle + half]) / (1 + _Z**2 / effective)
    return max(float(low), 0.0), min(float(high), 1.0)


def _shuffled(
    names: list[tuple[str, str]],
    strata: np.ndarray,
    queries: np.ndarray,
    neighbours: np.ndarray,
    permutations: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Counts correct queries [R] with mechanisms shuffled among the compounds of each stratum.

    `names` [C] are (compound, mechanism); `queries` and `neighbours` [Q] are indices into them.
    """
    real = np.array([bool(compound) for compound, _ in names])
    # A query without a neighbour stays wrong in all shuffles.
    moas = codes(moa for _, moa in names)
    moas[~real] = -1
    groups = [np.flatnonzero(real & (strata == number)) for number in np.unique(strata[real])]
    counts = []
    for start in range(0, permutations, _BLOCK):
        shuffled = np.tile(moas, (min(_BLOCK, permutations - start), 1))
        for group in groups:
            shuffled[:, group] = rng.permuted(shuffled[:, group], axis=1)
        counts.append((shuffled[:, queries] == shuffled[:, neighbours]).sum(axis=1))
    return np.concatenate(counts)


class Replicates:
    """Computes treatment profiles of resampled wells.

    Args:
      values: [W, D] float64.
      treatment: [W] int, treatment of each well; each of 0..N-1 occurs.
      statistic: 'median' or 'mean'.
    """

    def __init__(self, values: np.ndarray, treatment: np.ndarray, statistic: str) -> None:
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
        """Computes profiles [N, D] float64 of wells drawn with replacement; None: each once."""
        found = np.empty(self._shape)
        for treatments, wells in self._groups:
            if rng is not None:
                drawn = rng.integers(wells.shape[1], size=wells.shape[:2])
                wells = wells[np.arange(len(wells))[:, None], drawn]
            found[treatments] = wells.mean(axis=1) if self._mean else medians(wells)
        return found


def well_intervals(profiles: CorrectedProfiles) -> Measured:
    """Computes 95 % percentile intervals of NSC and NSCB over resampled wells.

    As many wells as a treatment has are drawn with replacement, and its profile and neighbour are
    computed again; the correction is not fitted again (Efron 1979). A treatment of one well never
    changes. A sample repeats some wells and misses others, so its profiles are noisier than those
    of all wells and score lower on average: the interval is shifted up by that difference, and
    clipped to [0, 1].

    Returns:
      Summary: nsc and nscb ([low, high]; None if the score is undefined), mean (of the samples, in
      the same form), resamples, single_wells (treatments of one well). Undefined with more than
      `MOST_TREATMENTS` treatments, if both scores are undefined, or if no treatment has two wells.
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
    summary: dict[str, object] = dict.fromkeys(scores)
    for name, values in drawn.items():
        lost = (scores[name].accuracy or 0.0) - values.mean()
        summary[name] = np.clip(np.quantile(values, _ENDS) + lost, 0.0, 1.0).tolist()
    means = {name: float(values.mean()) for name, values in drawn.items()}
    summary["mean"] = dict.fromkeys(scores) | means
    summary |= {"resamples": RESAMPLES, "single_wells": int((wells == 1).sum())}
    return Measured(summary)


def _resampled(profiles: CorrectedProfiles, scores: dict[str, Score]) -> dict[str, np.ndarray]:
    """Computes resampled accuracies [RESAMPLES] of each defined score."""
    protocol, named = profiles.protocol, profiles.named_treatments()
    # Ties go to the first by compound and concentration, as in `moa`.
    order = named.sort_values(["compound", "concentration"]).index.to_numpy()
    named = named.iloc[order].reset_index(drop=True)
    candidates = {
        "nsc": other_compound(named),
        "nscb": other_batch(named, protocol.batches, protocol.left_out),
    }
    row = profiles.treatment_of_wells()
    treatment = np.where(row < 0, -1, np.argsort(order)[row])
    treated = treatment >= 0
    samples = [(list(scores), treated)]
    if protocol.batches == "week1":
        first = treated & in_first_batch(profiles.wells)
        samples = [(["nsc"], treated), (["nscb"], first)]
    values, moas = profiles.well_values(), codes(named["moa"])
    found: dict[str, np.ndarray] = {}
    for names, used in samples:
        defined = [name for name in names if not scores[name].undefined]
        if defined:
            replicates = Replicates(values[used], treatment[used], protocol.statistic)
            drawn = _accuracies(replicates, [candidates[name] for name in defined], moas)
            found |= dict(zip(defined, drawn.T, strict=True))
    return found


def _accuracies(
    replicates: Replicates, candidates: list[Candidates], moas: np.ndarray
) -> np.ndarray:
    """Computes accuracies [RESAMPLES, rules] of the nearest neighbour under each rule."""
    masks = [one.allowed(np.arange(len(moas))) for one in candidates]
    queries = [
        np.flatnonzero((one.excluded == "") & mask.any(axis=1))
        for one, mask in zip(candidates, masks, strict=True)
    ]
    rng, rules = np.random.default_rng(_SEED), [mask.__getitem__ for mask in masks]
    found = np.empty((RESAMPLES, len(rules)))
    for draw in range(RESAMPLES):
        neighbours = nearest(unit_vectors(replicates.profiles(rng)), rules)
        for number, rows in enumerate(queries):
            other = neighbours[number].rows[rows, 0]
            found[draw, number] = ((other >= 0) & (moas[other] == moas[rows])).mean()
    return found
