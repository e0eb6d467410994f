"""Finds the nearest profiles by cosine similarity, in blocks of rows."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

TIE_DIGITS = 12
"""Cosines that agree to this many digits are ties: matrix products differ in the 16th digit."""
# A profile shorter than this fraction of the longest one is rounding error and has no direction.
_NO_LENGTH = 1e-14
# Bytes of a block of float32 cosines.
_BLOCK_BYTES = 64 * 2**20
# Up to this many profiles, one float64 product is as fast as a float32 product and a second pass.
_FEW = 2_000
# Mean number of pairs a row, in multiples of k, above which the whole block is computed in float64.
_MOST_PAIRS = 8
_PAIRS_AT_ONCE = 4_096

Rule = Callable[[np.ndarray], np.ndarray]
"""Maps row numbers [b] to masks of their candidates, [b, N] bool."""


class Neighbours(NamedTuple):
    """The k nearest neighbours of each row, nearest first.

    Attributes:
      rows: [N, k] int; -1 if there are fewer candidates.
      cosines: [N, k] float64; NaN if there are fewer candidates.
    """

    rows: np.ndarray
    cosines: np.ndarray


def unit_vectors(profiles: np.ndarray) -> np.ndarray:
    """Scales rows [N, D] to length 1, as float64; rows without length become zeros."""
    # Dividing by the largest value first prevents overflow and underflow of the squares.
    largest = np.abs(profiles).max(initial=0.0)
    vectors = profiles / (largest if largest > 0 else 1.0)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    has_direction = length > _NO_LENGTH * length.max(initial=0.0)
    vectors /= np.where(has_direction, length, 1.0)
    vectors[~has_direction[:, 0]] = 0.0
    return vectors


def nearest(vectors: np.ndarray, rules: Sequence[Rule], k: int = 1) -> list[Neighbours]:
    """Finds the k nearest candidates of each row by cosine similarity.

    Cosines that agree to twelve digits are a tie, which goes to the lower row. A row of zeros has
    no direction: it has no neighbours and is nobody's neighbour. With many rows, float32 products
    select the pairs that can be among the nearest, and float64 products decide between them.

    Args:
      vectors: [N, D] float64, rows of length 1 or 0.
      rules: masks of candidates; all rules share the matrix products.
      k: number of neighbours, at least 1.

    Returns:
      The neighbours under each rule.
    """
    count = len(vectors)
    found = [Neighbours(np.full((count, k), -1), np.full((count, k), np.nan)) for _ in rules]
    has_direction = np.any(vectors != 0, axis=1)
    coarse = vectors.astype(np.float32) if count > _FEW else vectors
    step = max(1, _BLOCK_BYTES // (4 * max(count, 1)))
    for start in range(0, count, step):
        rows = np.arange(start, min(start + step, count))
        similar = coarse[rows] @ coarse.T
        for rule, (neighbours, cosines) in zip(rules, found, strict=True):
            allowed = rule(rows) & has_direction & has_direction[rows, None]
            pairs = _pairs(vectors, rows, np.where(allowed, similar, -np.inf), k)
            neighbours[rows], cosines[rows] = _k_largest(*pairs, len(rows), k)
    return found


def _pairs(
    vectors: np.ndarray, rows: np.ndarray, similar: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Selects all pairs that can be among the k nearest: (position in block, row, cosine), [P].

    `similar` [b, N] holds float64 or float32 cosines of the block's `rows`, -inf for no candidate.
    """
    exact = similar.dtype == np.float64
    # Upper bound of the error of a sum of D products of numbers rounded to float32.
    error = 0.0 if exact else (vectors.shape[1] + 4) * 2.0**-24
    chosen = _near_kth_largest(similar, k, 2 * error + 10.0**-TIE_DIGITS)
    if not exact and np.count_nonzero(chosen) > _MOST_PAIRS * k * len(rows):
        return _pairs(
            vectors, rows, np.where(np.isfinite(similar), vectors[rows] @ vectors.T, -np.inf), k
        )
    first, second = np.nonzero(chosen)
    if exact:
        return first, second, np.round(similar[first, second], TIE_DIGITS)
    cosines = np.empty(len(first))
    for start in range(0, len(first), _PAIRS_AT_ONCE):  # the rows of each pair are copied
        some = slice(start, start + _PAIRS_AT_ONCE)
        cosines[some] = np.einsum("pd,pd->p", vectors[rows[first[some]]], vectors[second[some]])
    return first, second, np.round(cosines, TIE_DIGITS)


def _near_kth_largest(similar: np.ndarray, k: int, margin: float) -> np.ndarray:
    """Marks finite values at most `margin` below the k-th largest of their row, [b, N] bool."""
    count = similar.shape[1]
    if k == 1:
        kth = similar.max(axis=1)
    elif k < count:
        kth = np.partition(similar, count - k, axis=1)[:, count - k]
    else:
        kth = np.full(len(similar), -np.inf)
    # The limit has the dtype of the cosines, rounded down: otherwise all cosines are converted.
    limit = np.nextafter((kth.astype(np.float64) - margin).astype(similar.dtype), -np.inf)
    above = similar >= limit[:, None]
    return above if np.isfinite(limit).all() else above & (similar > -np.inf)


def _k_largest(
    first: np.ndarray, second: np.ndarray, cosines: np.ndarray, count: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Selects rows and cosines [count, k]: the k largest per position, ties to the lower row."""
    order = np.lexsort((second, -cosines, first))
    first, second, cosines = first[order], second[order], cosines[order]
    rank = np.arange(len(first)) - np.searchsorted(first, first)
    chosen = rank < k
    rows, values = np.full((count, k), -1), np.full((count, k), np.nan)
    rows[first[chosen], rank[chosen]] = second[chosen]
    values[first[chosen], rank[chosen]] = cosines[chosen]
    return rows, values
