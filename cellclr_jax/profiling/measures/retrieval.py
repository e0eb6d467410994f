"""Mean average precision by copairs: pairs, precision, null distribution, p and q.

Kalinin et al. 2025, "A versatile information retrieval framework for evaluating profile strength
and similarity"; https://github.com/cytomining/copairs.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cellclr_jax.profiling.nearest import TIE_DIGITS, unit_vectors

NULL_SIZE = 10_000
"""Random rankings that a mean average precision is compared with."""
THRESHOLD = 0.05
"""Of q: the share of false ones that is accepted among those called significant."""
MOST_PAIRS = 10_000_000
"""Of rows; copairs holds all at once, which takes a gigabyte."""
_SEED = 0
# Some steps of float32 below 1, in which copairs holds similarities.
_JITTER = 1e-6


@dataclass(frozen=True)
class Pairs:
    """Which rows make a pair.

    Attributes:
      same: columns in which both rows agree.
      differ: columns in all of which they differ.
    """

    same: Sequence[str] = ()
    differ: Sequence[str] = ()


def comparable(profiles: np.ndarray) -> np.ndarray:
    """Directions of profiles, and beside them what decides between equal cosines.

    1 - cosine is half the squared distance of unit vectors, which does not change when all are
    moved: without what they have in common, and in units of what they have not, float32 tells
    apart profiles that are nearly the same.

    copairs ranks a positive before a negative of the same similarity, so an encoder that gives
    all wells one profile would retrieve perfectly. A millionth a row, added to its similarities,
    leaves such ties to chance.

    Args:
      profiles: [N, D] float64.

    Returns:
      [N, D + 1] float32.
    """
    jitter = np.random.default_rng(_SEED).normal(scale=_JITTER, size=(len(profiles), 1))
    apart = unit_vectors(profiles)
    apart = apart - apart.mean(axis=0)
    longest = np.linalg.norm(apart, axis=1).max(initial=0.0)
    # Below this, profiles differ by rounding alone.
    apart = apart / longest if longest > 10.0**-TIE_DIGITS else np.zeros_like(apart)
    return np.concatenate([apart, jitter], axis=1).astype(np.float32)


def average_precisions(
    labels: pd.DataFrame, vectors: np.ndarray, positive: Pairs, negative: Pairs
) -> pd.DataFrame:
    """The average precision of each row, its positives ranked among its negatives by cosine.

    Args:
      labels: [N] int columns by which pairs are made.
      vectors: [N, D + 1] of `comparable`.
      positive: the pairs to be found; at least one.
      negative: the pairs among which; at least one.

    Returns:
      The labels, `average_precision`, `normalized_average_precision` (0 for a random ranking),
      `n_pos_pairs` and `n_total_pairs`, [N]. NaN for a row without positives.
    """
    from copairs import map as copairs

    return copairs.average_precision(
        labels,
        vectors,
        pos_sameby=list(positive.same),
        pos_diffby=list(positive.differ),
        neg_sameby=list(negative.same),
        neg_diffby=list(negative.differ),
        distance=_similarity,
        progress_bar=False,
    )


def mean_average_precisions(precisions: pd.DataFrame, by: str) -> pd.DataFrame:
    """The mean over the rows of each group, and how often a random ranking has a larger one.

    Args:
      precisions: of `average_precisions`.
      by: the column whose values are the groups.

    Returns:
      One row a group, its label as index, sorted: mean_average_precision, normalized, p, and q
      (Benjamini and Hochberg 1995) float64, and significant (q < `THRESHOLD`). Rows without
      positives or without negatives have no part in it.
    """
    from copairs import map as copairs

    ranked = precisions["n_total_pairs"] > precisions["n_pos_pairs"]
    # copairs keeps null distributions in the home folder, by their size alone: a result would
    # depend on what was computed there before.
    with tempfile.TemporaryDirectory() as folder:
        found = copairs.mean_average_precision(
            precisions[ranked & (precisions["n_pos_pairs"] > 0)],
            [by],
            null_size=NULL_SIZE,
            threshold=THRESHOLD,
            seed=_SEED,
            progress_bar=False,
            max_workers=1,
            cache_dir=folder,
        )
    names = {
        "mean_average_precision": "mean_average_precision",
        "mean_normalized_average_precision": "normalized",
        "p_value": "p",
        "corrected_p_value": "q",
        "below_corrected_p": "significant",
    }
    return found.set_index(by).sort_index()[list(names)].rename(columns=names)


def summarised(table: pd.DataFrame, significant: str) -> dict[str, object]:
    """How many are significant, their share and the mean, as they go into `metrics.json`.

    Args:
      table: one row a group, with `mean_average_precision` and the bool column `significant`.
      significant: its name, and that of the count.
    """
    return {
        significant: int(table[significant].sum()),
        "share": float(table[significant].mean()),
        "mean_average_precision": float(table["mean_average_precision"].mean()),
        "threshold": THRESHOLD,
        "null_size": NULL_SIZE,
    }


def _similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[P] ranks pairs of rows of `comparable` [P, D + 1] as their cosines do."""
    nearness = -0.5 * np.square(first[:, :-1] - second[:, :-1]).sum(axis=1)
    return np.asarray(nearness + (first[:, -1] + second[:, -1]))
