"""Selects cells for probes: usable classes, groups, folds and a stratified subset.

Cells of one plate resemble each other, whatever their class: a plate in both the training and the
test cells would raise the scores of all features. Groups keep its cells in one fold.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from cellclr_jax.console import plural

FOLDS = 5
# Two cells a fold, so that a cell can have a neighbour of its class.
FEWEST_CELLS = 2 * FOLDS
# A classifier's time and memory grow with the number of classes.
MOST_CLASSES = 100
# A subset keeps all cells of classes up to this size.
_KEPT_WHOLE = 50


def usable(
    labels: np.ndarray, groups: np.ndarray | None = None
) -> tuple[np.ndarray, dict[str, str]]:
    """Finds the cells of classes with enough cells.

    Args:
      labels: [N] str; '' is no class.
      groups: [N] as in `probe`.

    Returns:
      ([N] bool, reason for each class that is left out).
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
    """Chooses the groups that are held out together: the first with two usable classes.

    A group may hold a single class, as wells do if the compound is the class: then the similarity
    of the cells of a well does not help to predict their class.

    Args:
      candidates: [N] group of each cell, by name ('plate', 'well'), in the order of preference.
      labels: [N] str; '' is no class.

    Returns:
      Name and groups of the first candidate with at least two classes that lie in at least two
      groups each; ('', None) if there is none.
    """
    for name, groups in candidates.items():
        is_usable, _ = usable(labels, groups)
        if len(set(np.asarray(labels)[is_usable])) >= 2:
            return name, np.asarray(groups)
    return "", None


def stratified_subset(labels: np.ndarray, size: int, *, seed: int) -> np.ndarray:
    """Draws cells in proportion to the classes; rare classes (up to 50 cells) are kept entirely.

    Args:
      labels: [N] str.
      size: number of cells.
      seed: of the random generator.

    Returns:
      min(N, size) row numbers, ascending.
    """
    codes = np.unique(np.asarray(labels).astype(str), return_inverse=True)[1]
    shuffled = np.random.default_rng(seed).permutation(len(codes))
    shuffled = shuffled[np.argsort(codes[shuffled], kind="stable")]
    counts = np.bincount(codes)
    starts = np.cumsum(counts) - counts
    rank = np.arange(len(codes)) - starts[codes[shuffled]]
    # First the first 50 cells of each class in turn, then by the fraction of the class drawn.
    share = (rank + 0.5) / counts[codes[shuffled]]
    order = np.argsort(np.where(rank < _KEPT_WHOLE, rank - _KEPT_WHOLE, share), kind="stable")
    return np.sort(shuffled[order[:size]])


def folds_of(
    codes: np.ndarray, groups: np.ndarray | None, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Divides cells into folds.

    Args:
      codes: [N] int, the class of each cell; every class has at least `FOLDS` cells.
      groups: [N] int, numbered from 0, of at least two groups; None without groups.
      seed: of the random generator.

    Yields:
      (training rows, test rows) of each fold; each row is a test row once, and no group has both.
    """
    from sklearn import model_selection

    if groups is None:
        split = model_selection.StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    elif groups.max() < FOLDS:
        # Leaves out one group at a time: a class in two groups always has training cells.
        split = model_selection.LeaveOneGroupOut()
    else:
        split = model_selection.StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for train, test in split.split(codes, codes, groups):
        if len(test):  # with large groups, a fold may be empty
            yield train, test
