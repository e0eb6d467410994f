"""How sure a score is: an interval over compounds, and what shuffled mechanisms would score."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from cellclr_jax.profiling.moa import Score

LEVEL = 0.95
"""Of an interval: the share of resamples that it holds."""
_RESAMPLES = 10_000
# Permutations that are held at once: a thousand compounds of them take 8 MB.
_AT_ONCE = 1_000
_SEED = 0


@dataclass(frozen=True)
class Uncertainty:
    """What surrounds an accuracy.

    Attributes:
      low: lower end of the interval, in [0, 1].
      high: its upper end.
      chance: mean accuracy where mechanisms are shuffled among compounds, in [0, 1].
      p: how often shuffled mechanisms score at least as well, counting the true ones once.
    """

    low: float
    high: float
    chance: float
    p: float


def uncertainty(score: Score, *, resamples: int = _RESAMPLES, seed: int = _SEED) -> Uncertainty:
    """The interval and the chance level of a defined score, both by compounds.

    Treatments of one compound are not independent: whoever gets one of its concentrations right
    mostly gets the others. So whole compounds are drawn anew (Efron's percentile bootstrap of the
    queries; each keeps the neighbour that it has), and whole compounds exchange their mechanisms
    (a permutation test; neighbours, which know no mechanism, stay). Where all queries are right, or
    none, resamples are all the same: the interval is then Clopper and Pearson's over compounds.

    Args:
      score: of `moa.not_same_compound` or `moa.not_same_compound_or_batch`.
      resamples: of either kind.
      seed: of the random numbers: the same score has the same interval.

    Returns:
      See `Uncertainty`.

    Raises:
      ValueError: the score is undefined, or of more than one neighbour.
    """
    if score.accuracy is None:
        raise ValueError(f"an undefined score has no interval: {score.undefined}")
    if score.voters != 1:
        raise ValueError(f"of {score.voters} neighbours that vote the nearest tells no chance")
    rng = np.random.default_rng(seed)
    asked, answers = (_named(score.neighbours, prefix) for prefix in ("", "neighbour_"))
    index, names = pd.MultiIndex.from_frame(pd.concat([asked, answers])).factorize()
    own, other = index[: len(asked)], index[len(asked) :]
    low, high = _interval(own, score.neighbours["correct"].to_numpy(bool), resamples, rng)
    shuffled = _shuffled(list(names), own, other, resamples, rng)
    beaten = int((shuffled >= score.correct).sum())
    return Uncertainty(
        low=low,
        high=high,
        chance=float(shuffled.mean() / score.total),
        p=(1 + beaten) / (1 + resamples),
    )


def _named(neighbours: pd.DataFrame, prefix: str) -> pd.DataFrame:
    """[Q] compound and mechanism of each query or neighbour; both '' where there is none."""
    return pd.DataFrame(
        {name: neighbours[f"{prefix}{name}"].astype(str) for name in ("compound", "moa")}
    )


def _interval(
    compounds: np.ndarray, correct: np.ndarray, resamples: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Ends of the percentile interval of the accuracy over compounds that are drawn anew."""
    _, group = np.unique(compounds, return_inverse=True)
    queries = np.bincount(group)
    right = np.bincount(group, weights=correct)
    if correct.all() or not correct.any():
        least = ((1 - LEVEL) / 2) ** (1 / len(queries))
        return (least, 1.0) if correct.all() else (0.0, 1 - least)
    drawn = rng.multinomial(len(queries), np.full(len(queries), 1 / len(queries)), resamples)
    accuracies = (drawn @ right) / (drawn @ queries)
    low, high = np.quantile(accuracies, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _shuffled(
    names: list[tuple[str, str]],
    asked: np.ndarray,
    answers: np.ndarray,
    resamples: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """[R] right answers where the mechanisms have been shuffled among the compounds.

    Args:
      names: [C] compound and mechanism.
      asked: [Q] the number of each query's compound.
      answers: [Q] that of its neighbour.
      resamples: R.
      rng: draws them.
    """
    real = np.array([bool(compound) for compound, _ in names])
    # Where a query has no neighbour, its answer matches nothing, however mechanisms are shuffled.
    moas = np.unique([moa for _, moa in names], return_inverse=True)[1]
    moas[~real] = -1
    counts = []
    for start in range(0, resamples, _AT_ONCE):
        shuffled = np.tile(moas, (min(_AT_ONCE, resamples - start), 1))
        shuffled[:, real] = rng.permuted(shuffled[:, real], axis=1)
        counts.append((shuffled[:, asked] == shuffled[:, answers]).sum(axis=1))
    return np.concatenate(counts)
