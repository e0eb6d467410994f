"""Probes: cross-validated classifiers that predict the class of a cell from its features."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from cellclr_jax.errors import BadData
from cellclr_jax.profiling.single_cells.folds import folds_of, usable

TITLES = {"knn": "k-NN", "logistic": "logistic regression", "forest": "random forest"}
"""Names of the classifiers in tables."""
CLASSIFIERS = tuple(TITLES)
NEIGHBOURS = 20
# Strong regularisation, since classes often have fewer cells than features.
INVERSE_REGULARIZATION = 0.01
TREES = 100
# Cells drawn for each tree of a forest.
CELLS_A_TREE = 2_000
# The solver converges long before, except for degenerate features.
_MOST_ITERATIONS = 1000
# A deviation below this fraction of the largest value is rounding error of float32.
_CONSTANT = 1e-6
# In deviations. Training cells lie within the square root of their number; test cells are clipped,
# since larger squares may overflow float32.
_FARTHEST = 1e6


@dataclass(frozen=True)
class ProbeScore:
    """Scores of one classifier over all folds.

    Attributes:
      balanced_accuracy: mean of `recall`, in [0, 1].
      accuracy: share of correct cells.
      recall: share of correct cells in each class.
      by_fold: balanced accuracy of each fold, over its classes.
    """

    balanced_accuracy: float
    accuracy: float
    recall: dict[str, float]
    by_fold: list[float]


@dataclass(frozen=True)
class Probe:
    """The result of `probe`.

    Attributes:
      scores: by classifier, of `CLASSIFIERS`; empty if there is no score.
      classes: number of cells of each class.
      left_out: reason for each class that is left out.
      cells: number of cells.
      folds: number of folds.
      chance: balanced accuracy of guessing, 1 / classes.
      unanswerable: cells without training cells of their class; they count as wrong.
      undefined: reason why there is no score, or ''.
    """

    scores: dict[str, ProbeScore]
    classes: dict[str, int]
    left_out: dict[str, str]
    cells: int
    folds: int
    chance: float | None
    unanswerable: int = 0
    undefined: str = ""


def probe(
    features: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    classifiers: Sequence[str] = CLASSIFIERS,
    seed: int = 0,
) -> Probe:
    """Predicts the class of each cell by classifiers fitted on the other folds.

    The 20 nearest neighbours by cosine, logistic regression and a random forest of scikit-learn,
    the last two with equal weights of classes; features are standardised by the training cells.

    Args:
      features: [N, D] any float type.
      labels: [N] str; '' is no class. Classes with fewer than ten cells, beyond the hundred most
        frequent or, with groups, in a single group are left out.
      groups: [N] sortable; the cells of a group lie in one fold. None: folds are stratified.
      classifiers: names in `CLASSIFIERS`.
      seed: of the folds and the forest.

    Raises:
      BadData: there are no features, or one is not finite or too large to compute with.
    """
    labels, features = np.asarray(labels, object), np.asarray(features)
    if not features.shape[1]:
        raise BadData("there are no features (0 columns) to predict classes from")
    if not (finite := np.isfinite(features).all(axis=1)).all():
        row = int(np.argmin(finite)) + 1
        raise BadData(f"row {row} of the features holds NaN or an infinite value")
    used, left_out = usable(labels, groups)
    names, codes = np.unique(labels[used].astype(str), return_inverse=True)
    classes = dict(zip(names.tolist(), np.bincount(codes).tolist(), strict=True))
    if len(names) < 2:
        few = "1 class" if len(names) else "no classes"
        undefined = f"{few} with enough cells: at least 2 are needed"
        return Probe({}, classes, left_out, len(codes), 0, None, undefined=undefined)
    inner = None if groups is None else np.unique(np.asarray(groups)[used], return_inverse=True)[1]
    # Several threads are slow on a busy machine, and one thread rounds equally on all machines.
    with threadpool_limits(limits=1):
        predicted, fold, unanswerable = _predicted(features[used], codes, inner, classifiers, seed)
    return Probe(
        scores={name: _score(names, codes, answers, fold) for name, answers in predicted.items()},
        classes=classes,
        left_out=left_out,
        cells=len(codes),
        folds=int(fold.max()) + 1,
        chance=1 / len(names),
        unanswerable=unanswerable,
    )


def _predicted(
    features: np.ndarray,
    codes: np.ndarray,
    groups: np.ndarray | None,
    classifiers: Sequence[str],
    seed: int,
) -> tuple[dict[str, np.ndarray], np.ndarray, int]:
    """Predicted classes [N] by classifier, fold of each cell [N], and `Probe.unanswerable`."""
    predicted = {name: np.empty_like(codes) for name in classifiers}
    fold, unanswerable = np.empty_like(codes), 0
    for number, (train, test) in enumerate(folds_of(codes, groups, seed)):
        fold[test] = number
        unanswerable += int((~np.isin(codes[test], codes[train])).sum())
        known, unknown = _standardized(features[train], features[test])
        for name in classifiers:
            if (codes[train] == codes[train][0]).all():  # an error in logistic regression
                predicted[name][test] = codes[train][0]
                continue
            model = classifier(name, len(train), seed).fit(known, codes[train])
            predicted[name][test] = model.predict(unknown)
    return predicted, fold, unanswerable


def _standardized(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """z-scores of both by the first, float32; constant features become 0."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean = train.mean(axis=0, dtype=np.float64)
        deviation = train.std(axis=0, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(deviation))
    if len(bad):
        largest = np.abs(train[:, bad[0]]).max()
        raise BadData(f"feature {bad[0] + 1} holds {largest:.3g}: too large to compute with")
    varies = deviation > _CONSTANT * np.abs(train).max(axis=0)
    scale = np.where(varies, deviation, np.inf)
    with np.errstate(over="ignore"):
        scaled = [(rows - mean) / scale for rows in (train, test)]
    first, second = (np.clip(x, -_FARTHEST, _FARTHEST).astype(np.float32) for x in scaled)
    return first, second


def classifier(kind: str, cells: int, seed: int = 0) -> Any:
    """Returns an untrained classifier of scikit-learn.

    Args:
      kind: of `CLASSIFIERS`.
      cells: number of rows that it will be fitted on.
      seed: of the forest.
    """
    if kind == "knn":
        from sklearn.neighbors import KNeighborsClassifier

        return KNeighborsClassifier(min(NEIGHBOURS, cells), metric="cosine", algorithm="brute")
    if kind == "logistic":
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(
            C=INVERSE_REGULARIZATION, class_weight="balanced", max_iter=_MOST_ITERATIONS
        )
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(
        TREES,
        max_samples=min(CELLS_A_TREE, cells),
        class_weight="balanced",
        random_state=seed,
        n_jobs=1,
    )


def _score(
    names: np.ndarray, codes: np.ndarray, predicted: np.ndarray, fold: np.ndarray
) -> ProbeScore:
    """Scores the predictions of one classifier."""
    right = predicted == codes
    recall = _recall(codes, right, len(names))
    return ProbeScore(
        balanced_accuracy=float(recall.mean()),
        accuracy=float(right.mean()),
        recall=dict(zip(names.tolist(), recall.tolist(), strict=True)),
        by_fold=[
            float(np.nanmean(_recall(codes[fold == i], right[fold == i], len(names))))
            for i in range(fold.max() + 1)
        ],
    )


def _recall(codes: np.ndarray, right: np.ndarray, classes: int) -> np.ndarray:
    """Computes the share of correct cells, [classes]; NaN for a class without cells."""
    counts = np.bincount(codes, minlength=classes)
    shares = np.bincount(codes, weights=right, minlength=classes) / np.maximum(counts, 1)
    return np.where(counts > 0, shares, np.nan)
