"""Probes: how well classifiers predict the class of a cell from its features, cross-validated."""

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
# The weight of the data against the ridge. Strong, since features often outnumber a class's cells.
INVERSE_REGULARIZATION = 0.01
TREES = 100
# Of the cells that a forest is fitted on, each tree sees so many: enough for trees that differ.
CELLS_A_TREE = 2_000
# The solver stops long before, but for features that are no measurements.
_MOST_ITERATIONS = 1000
# A deviation below this fraction of the largest value is rounding of float32, not signal.
_CONSTANT = 1e-6
# In deviations. Fitted cells lie within the square root of their number; a cell that lies further
# away is clipped, since its square may be past the range of float32.
_FARTHEST = 1e6


@dataclass(frozen=True)
class ProbeScore:
    """Scores of one classifier, over the predictions of all folds.

    Attributes:
      balanced_accuracy: the mean of `recall`, in [0, 1].
      accuracy: the share of cells whose class is predicted.
      recall: the same share of each class's cells.
      by_fold: the balanced accuracy of each fold, over the classes that it holds.
    """

    balanced_accuracy: float
    accuracy: float
    recall: dict[str, float]
    by_fold: list[float]


@dataclass(frozen=True)
class Probe:
    """The result of `probe`.

    Attributes:
      scores: by classifier, of `CLASSIFIERS`; empty where there is no score.
      classes: cells of each class that was used.
      left_out: why each other class was not.
      cells: how many were used.
      folds: how many there were.
      chance: the balanced accuracy of guessing, 1 / classes.
      unanswerable: cells whose class was in no other fold; they count as wrong.
      undefined: why there is no score, or ''.
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
    """Predicts each cell's class by classifiers that were fitted on other folds.

    Classifiers of scikit-learn: the vote of the 20 nearest neighbours by cosine, logistic
    regression and a random forest, both with classes of equal weight. Features are standardised by
    the cells that a classifier is fitted on.

    Args:
      features: [N, D] any float type.
      labels: [N] str; '' is no class.
      groups: [N] anything that sorts; the cells of a group lie in one fold. None: each class is
        divided among the folds evenly.
      classifiers: which of `CLASSIFIERS`.
      seed: of the folds and the forest.

    Returns:
      The scores. Classes with fewer than ten cells, beyond the hundred most frequent or, with
      groups, in a single group are left out; with fewer than two left, there is no score.

    Raises:
      BadData: there are no features, or one is not finite or too large to compute with.
    """
    labels, features = np.asarray(labels, object), np.asarray(features)
    if not features.shape[1]:
        raise BadData("there are no features (0 columns): there is nothing to tell classes by")
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite)) + 1
        raise BadData(f"row {row} of the features holds NaN or an infinite value")
    kept, left_out = usable(labels, groups)
    names, codes = np.unique(labels[kept].astype(str), return_inverse=True)
    classes = dict(zip(names.tolist(), np.bincount(codes).tolist(), strict=True))
    if len(names) < 2:
        reason = f"{len(names) or 'no'} class{'' if len(names) == 1 else 'es'} with enough cells"
        undefined = f"{reason}: at least 2 are needed"
        return Probe({}, classes, left_out, len(codes), 0, None, undefined=undefined)
    inner = None if groups is None else np.unique(np.asarray(groups)[kept], return_inverse=True)[1]
    # Threads wait for each other on a busy machine, and one rounds alike on any machine.
    with threadpool_limits(limits=1):
        predicted, fold, unanswerable = _predicted(features[kept], codes, inner, classifiers, seed)
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
    """The class [N] that each classifier predicts, the fold [N], and `Probe.unanswerable`."""
    predicted = {name: np.empty_like(codes) for name in classifiers}
    fold, unanswerable = np.empty_like(codes), 0
    for number, (fitted, asked) in enumerate(folds_of(codes, groups, seed)):
        fold[asked] = number
        unanswerable += int((~np.isin(codes[asked], codes[fitted])).sum())
        known, unknown = _standardized(features[fitted], features[asked])
        for name in classifiers:
            if (codes[fitted] == codes[fitted][0]).all():  # which logistic regression refuses
                predicted[name][asked] = codes[fitted][0]
                continue
            model = classifier(name, len(fitted), seed).fit(known, codes[fitted])
            predicted[name][asked] = model.predict(unknown)
    return predicted, fold, unanswerable


def _standardized(fitted: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in deviations from the mean of the first, float32; a constant feature becomes 0.

    Raises:
      BadData: a feature's deviation is past the range of float64.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        mean = fitted.mean(axis=0, dtype=np.float64)
        deviation = fitted.std(axis=0, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(deviation))
    if len(bad):
        largest = np.abs(fitted[:, bad[0]]).max()
        raise BadData(f"feature {bad[0] + 1} holds {largest:.3g}: too large to compute with")
    varies = deviation > _CONSTANT * np.abs(fitted).max(axis=0)
    scale = np.where(varies, deviation, np.inf)
    with np.errstate(over="ignore"):
        scaled = [(rows - mean) / scale for rows in (fitted, asked)]
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
    """Scores one classifier's answers."""
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
    """[classes] share of right answers; NaN for a class without cells."""
    counts = np.bincount(codes, minlength=classes)
    shares = np.bincount(codes, weights=right, minlength=classes) / np.maximum(counts, 1)
    return np.where(counts > 0, shares, np.nan)
