"""Sums, means and medians of groups of rows, feature by feature."""

import numpy as np

# Numbers that are sorted at once: 16 MB.
_AT_ONCE = 2_000_000


def group_sums(values: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct indices, ascending, and the float64 sum of each one's rows.

    Args:
      values: [N, D] any float type.
      index: [N] int.

    Returns:
      ([G] int, [G, D] float64).
    """
    # Sorted runs and `reduceat`: np.add.at adds cell by cell and is ten times slower.
    order = np.argsort(index, kind="stable")
    rows, starts = np.unique(index[order], return_index=True)
    if not len(rows):
        return rows.astype(np.int64), np.zeros((0, values.shape[1]))
    return rows, np.add.reduceat(values[order].astype(np.float64), starts, axis=0)


def group_means(
    values: np.ndarray, index: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """The weighted mean of each group's rows.

    Args:
      values: [N, D] float64.
      index: [N] int, the group of each row, numbered from 0 without a gap; -1 for no group.
      weights: [N]; None weighs all alike.

    Returns:
      [G, D] float64.
    """
    if (index < 0).any():
        weights = None if weights is None else weights[index >= 0]
        values, index = values[index >= 0], index[index >= 0]
    weighted = values if weights is None else values * weights[:, None]
    return group_sums(weighted, index)[1] / np.bincount(index, weights=weights)[:, None]


def group_medians(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Feature by feature, the median of each group's rows.

    Groups of one size are sorted together, a feature along the last axis of memory: a hundred
    thousand wells take seconds.

    Args:
      values: [N, D] float64.
      index: [N] int, the group of each row, numbered from 0 without a gap; -1 for no group.

    Returns:
      [G, D] float64.
    """
    order = np.argsort(index, kind="stable")[np.count_nonzero(index < 0) :]
    sizes = np.bincount(index[order])
    starts = np.cumsum(sizes) - sizes
    found = np.empty((len(sizes), values.shape[1]))
    for size in np.unique(sizes):
        groups = np.flatnonzero(sizes == size)
        at_once = max(1, _AT_ONCE // (size * max(values.shape[1], 1)))
        for first in range(0, len(groups), at_once):
            some = groups[first : first + at_once]
            members = order[starts[some][:, None] + np.arange(size)]
            found[some] = medians(values[members])
    return found


def medians(sets: np.ndarray) -> np.ndarray:
    """Feature by feature, the median of each set of rows.

    Args:
      sets: [S, n, D] float64.

    Returns:
      [S, D] float64.
    """
    count = sets.shape[1]
    if count == 3:  # triplicates are the rule, and thrice as fast without sorting
        first, second, third = sets[:, 0], sets[:, 1], sets[:, 2]
        low, high = np.minimum(first, second), np.maximum(first, second)
        return np.asarray(np.maximum(low, np.minimum(high, third)))
    middle = [(count - 1) // 2, count // 2]
    # With the rows contiguous in memory, partitioning takes half the time.
    parted = np.partition(sets.transpose(0, 2, 1).copy(), middle, axis=2)
    return np.asarray(parted[:, :, middle].mean(axis=2))
