"""Sums, means and medians of groups of rows, for each feature."""

import numpy as np

# Number of values sorted at once: 16 MB.
_BLOCK_VALUES = 2_000_000


def group_sums(values: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums the rows of each group.

    Args:
      values: [N, D] any float type.
      index: [N] int, the group of each row.

    Returns:
      (distinct groups, ascending [G] int, sums [G, D] float64).
    """
    # Sorting and `reduceat`: np.add.at adds row by row and is ten times slower.
    order = np.argsort(index, kind="stable")
    groups, starts = np.unique(index[order], return_index=True)
    if not len(groups):
        return groups.astype(np.int64), np.zeros((0, values.shape[1]))
    return groups, np.add.reduceat(values[order].astype(np.float64), starts, axis=0)


def group_means(
    values: np.ndarray, index: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Computes the weighted mean of each group.

    Args:
      values: [N, D] float64.
      index: [N] int, the group of each row, numbered from 0 without gaps; -1 for no group.
      weights: [N]; None gives all rows the same weight.

    Returns:
      [G, D] float64.
    """
    if (index < 0).any():
        weights = None if weights is None else weights[index >= 0]
        values, index = values[index >= 0], index[index >= 0]
    weighted = values if weights is None else values * weights[:, None]
    return group_sums(weighted, index)[1] / np.bincount(index, weights=weights)[:, None]


def group_medians(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Computes the median of each group.

    Groups of equal size are sorted together, with each feature contiguous in memory: a hundred
    thousand wells take seconds.

    Args:
      values: [N, D] float64.
      index: [N] int, the group of each row, numbered from 0 without gaps; -1 for no group.

    Returns:
      [G, D] float64.
    """
    order = np.argsort(index, kind="stable")[np.count_nonzero(index < 0) :]
    sizes = np.bincount(index[order])
    starts = np.cumsum(sizes) - sizes
    found = np.empty((len(sizes), values.shape[1]))
    for size in np.unique(sizes):
        groups = np.flatnonzero(sizes == size)
        block_size = max(1, _BLOCK_VALUES // (size * max(values.shape[1], 1)))
        for first in range(0, len(groups), block_size):
            block = groups[first : first + block_size]
            members = order[starts[block][:, None] + np.arange(size)]
            found[block] = medians(values[members])
    return found


def medians(sets: np.ndarray) -> np.ndarray:
    """Computes the median of each set of rows: [S, n, D] float64 -> [S, D] float64."""
    count = sets.shape[1]
    if count == 3:  # the usual number of replicates; without sorting three times as fast
        first, second, third = sets[:, 0], sets[:, 1], sets[:, 2]
        low, high = np.minimum(first, second), np.maximum(first, second)
        return np.asarray(np.maximum(low, np.minimum(high, third)))
    middle = [(count - 1) // 2, count // 2]
    # Partitioning takes half the time if the rows are contiguous in memory.
    parted = np.partition(sets.transpose(0, 2, 1).copy(), middle, axis=2)
    return np.asarray(parted[:, :, middle].mean(axis=2))
