"""Selects cells for probes: usable classes, groups, folds and a stratified subset.

Cells of one plate resemble each other whatever their class, so a plate on both sides of a fold
makes any features look good: groups keep it together.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from cellclr_jax.console import plural

FOLDS = 5
# A class needs two cells in each fold: one may be the other's only neighbour.
FEWEST_CELLS = 2 * FOLDS
# A classifier's time and memory grow with the number of classes.
MOST_CLASSES = 100
# Of this many cells of a class a subset keeps all.
_KEPT_WHOLE = 50


def usable(
    labels: np.ndarray, groups: np.ndarray | None = None
) -> tuple[np.ndarray, dict[str, str]]:
    """Finds the cells of classes that have enough cells to be predicted.

    Args:
      labels: [N] str; '' is no class.
      groups: [N] as in `probe`.

    Returns:
      ([N] bool, why each other class is left out, by name).
    """
    names, codes = np.unique(np.asarray(labels).astype(str), return_inverse=True)
    counts = np.bincount(codes, minlength=len(names))
    left_out = {}
    ranked = np.argsort(-np.where(names == "", 0, counts), kind="stable")
    for rank, index in enumerate(ranked):
        if counts[index] < FEWEST_CELLS:
            left_out[index] = f"{plural(counts[index], 'cell')}: at least {FEWEST_CELLS} are needed"
        elif rank >= MOST_CLASSES:
            left_out[index] = (
                f"{plural(counts[index], 'cell')}: {MOST_CLASSES} classes have as many or more"
            )
        elif groups is not None and len(np.unique(np.asarray(groups)[codes == index])) < 2:
            left_out[index] = "all its cells are of one group"
    unlabelled = np.flatnonzero(names == "").tolist()
    kept = ~np.isin(codes, [*left_out, *unlabelled])
    named = {str(names[i]): left_out[i] for i in sorted(left_out) if names[i]}
    return kept, named


def choose_groups(
    candidates: Mapping[str, np.ndarray], labels: np.ndarray
) -> tuple[str, np.ndarray | None]:
    """Chooses the groups that folds keep whole: the first that leave two classes to tell apart.

    A group may hold a single class, as wells do if the compound is the class: then whole groups
    are held out, and what the cells of a well share besides their class does not help.

    Args:
      candidates: [N] group of each cell, by what it is ('plate', 'well'), the best first.
      labels: [N] str; '' is no class.

    Returns:
      The name and groups of the first candidate by which two classes or more lie in two groups or
      more; ('', None) where there is none.
    """
    for name, groups in candidates.items():
        kept, _ = usable(labels, groups)
        if len(set(np.asarray(labels)[kept])) >= 2:
            return name, np.asarray(groups)
    return "", None


def stratified_subset(labels: np.ndarray, size: int, *, seed: int) -> np.ndarray:
    """Draws cells so that each class keeps its share, and a rare one (50 cells or fewer) all.

    Args:
      labels: [N] str.
      size: how many to draw.
      seed: of the draw.

    Returns:
      min(N, size) row numbers, ascending.
    """
    codes = np.unique(np.asarray(labels).astype(str), return_inverse=True)[1]
    shuffled = np.random.default_rng(seed).permutation(len(codes))
    shuffled = shuffled[np.argsort(codes[shuffled], kind="stable")]
    counts = np.bincount(codes)
    starts = np.cumsum(counts) - counts
    rank = np.arange(len(codes)) - starts[codes[shuffled]]
    # The first of each class come first, in turn; then by the fraction of the class before them.
    share = (rank + 0.5) / counts[codes[shuffled]]
    order = np.argsort(np.where(rank < _KEPT_WHOLE, rank - _KEPT_WHOLE, share), kind="stable")
    return np.sort(shuffled[order[:size]])


def folds_of(
    codes: np.ndarray, groups: np.ndarray | None, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Divides cells into folds.

    Args:
      codes: [N] int, the class of each cell; every class has at least `FOLDS` cells.
      groups: [N] int, numbered from 0, of at least two groups; None where there are none.
      seed: of the division.

    Yields:
      (rows to fit on, held-out rows) of each fold; each row is held out once, and no group lies on
      both sides.
    """
    from sklearn import model_selection

    if groups is None:
        split = model_selection.StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    elif groups.max() < FOLDS:
        # One group at a time: a class in two of them is always fitted on the other.
        split = model_selection.LeaveOneGroupOut()
    else:
        split = model_selection.StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for fitted, asked in split.split(codes, codes, groups):
        if len(asked):  # a fold of large groups may have left nothing to another
            yield fitted, asked
