"""Finds nearest profiles by cosine in blocks, as exactly as from the whole matrix."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

TIE_DIGITS = 12
"""Cosines that agree to this many digits are a tie: matrix products round in the sixteenth."""
# A profile this much shorter than the longest one is rounding and has no direction.
_NO_LENGTH = 1e-14
# Bytes of a block of float32 cosines.
_BLOCK_BYTES = 64 * 2**20
# Up to this many profiles, float64 takes no longer than float32 first and float64 for some.
_FEW = 2_000
# Pairs of a row that are computed again; if a block has more, all of it is.
_TWICE = 8
_PAIRS_AT_ONCE = 4_096

Rule = Callable[[np.ndarray], np.ndarray]
"""Takes row numbers [b] and returns masks of their candidates, [b, N] bool."""


class Neighbours(NamedTuple):
    """The k nearest of each row, the nearest first.

    Attributes:
      rows: [N, k] int; -1 where there are fewer candidates.
      cosines: [N, k] float64; NaN there.
    """

    rows: np.ndarray
    cosines: np.ndarray


def unit_vectors(profiles: np.ndarray) -> np.ndarray:
    """Rows of length 1, float64 [N, D]; rows without length become zeros."""
    # Divided by the largest value first, so that squares neither overflow nor vanish.
    largest = np.abs(profiles).max(initial=0.0)
    vectors = profiles / (largest if largest > 0 else 1.0)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    kept = length > _NO_LENGTH * length.max(initial=0.0)
    vectors /= np.where(kept, length, 1.0)
    vectors[~kept[:, 0]] = 0.0
    return vectors


def nearest(vectors: np.ndarray, rules: Sequence[Rule], k: int = 1) -> list[Neighbours]:
    """Finds the k nearest candidates of each row by cosine.

    Cosines equal to twelve digits are a tie, which goes to the lower row. A row of zeros has no
    direction: it has no neighbour and is none. Of many rows, float32 selects the pairs that can be
    among the nearest, and float64 decides between them.

    Args:
      vectors: [N, D] float64, rows of length 1 or 0.
      rules: masks of candidates; all rules share the matrix products.
      k: how many neighbours, at least 1.

    Returns:
      The neighbours under each rule.
    """
    count = len(vectors)
    found = [Neighbours(np.full((count, k), -1), np.full((count, k), np.nan)) for _ in rules]
    directed = np.any(vectors != 0, axis=1)
    coarse = vectors.astype(np.float32) if count > _FEW else vectors
    step = max(1, _BLOCK_BYTES // (4 * max(count, 1)))
    for start in range(0, count, step):
        rows = np.arange(start, min(start + step, count))
        similar = coarse[rows] @ coarse.T
        for rule, (index, cosines) in zip(rules, found, strict=True):
            allowed = rule(rows) & directed & directed[rows, None]
            pairs = _pairs(vectors, rows, np.where(allowed, similar, -np.inf), k)
            index[rows], cosines[rows] = _first_of_each(*pairs, len(rows), k)
    return found


def _pairs(
    vectors: np.ndarray, rows: np.ndarray, similar: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Selects pairs that include all that can be among the k nearest.

    Args:
      vectors: [N, D] float64.
      rows: [b] of the block.
      similar: [b, N] cosines, float64 or float32; -inf for what is no candidate.
      k: how many neighbours.

    Returns:
      (positions in the block [P], rows [P], cosines [P] float64 rounded to `TIE_DIGITS`).
    """
    exact = similar.dtype == np.float64
    # A sum of D products of numbers that are rounded to float32 is off by this at most.
    error = 0.0 if exact else (vectors.shape[1] + 4) * 2.0**-24
    chosen = _not_below_the_kth(similar, k, 2 * error + 10.0**-TIE_DIGITS)
    if not exact and np.count_nonzero(chosen) > _TWICE * k * len(rows):
        again = np.where(np.isfinite(similar), vectors[rows] @ vectors.T, -np.inf)
        return _pairs(vectors, rows, again, k)
    here, there = np.nonzero(chosen)
    cosines = similar[here, there] if exact else _cosines(vectors, rows[here], there)
    return here, there, np.round(cosines, TIE_DIGITS)


def _cosines(vectors: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[P] products of rows, some thousands at a time: each is copied to be multiplied."""
    cosines = np.empty(len(first))
    for start in range(0, len(first), _PAIRS_AT_ONCE):
        some = slice(start, start + _PAIRS_AT_ONCE)
        cosines[some] = np.einsum("pd,pd->p", vectors[first[some]], vectors[second[some]])
    return cosines


def _not_below_the_kth(similar: np.ndarray, k: int, margin: float) -> np.ndarray:
    """[b, N] bool: finite, and less than `margin` below the row's kth largest."""
    count = similar.shape[1]
    if k == 1:
        kth = similar.max(axis=1)
    elif k < count:
        kth = np.partition(similar, count - k, axis=1)[:, count - k]
    else:
        kth = np.full(len(similar), -np.inf)
    # In the type of the cosines, rounded down: another one would have all of them converted.
    limit = np.nextafter((kth.astype(np.float64) - margin).astype(similar.dtype), -np.inf)
    above = similar >= limit[:, None]
    return above if np.isfinite(limit).all() else above & (similar > -np.inf)


def _first_of_each(
    here: np.ndarray, there: np.ndarray, cosines: np.ndarray, count: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """[count, k] rows and cosines: the k largest of each position, a tie to the lower row."""
    order = np.lexsort((there, -cosines, here))
    here, there, cosines = here[order], there[order], cosines[order]
    rank = np.arange(len(here)) - np.searchsorted(here, here)
    kept = rank < k
    rows, values = np.full((count, k), -1), np.full((count, k), np.nan)
    rows[here[kept], rank[kept]] = there[kept]
    values[here[kept], rank[kept]] = cosines[kept]
    return rows, values
