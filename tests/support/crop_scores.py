"""Scores of features of real crops: treatments across plates, and plates of control cells.

Each plate has one well of each treatment, always at the same position: the effects of plate and
well, and of treatment and position, cannot be distinguished by these scores.
"""

import contextlib
import itertools
from collections.abc import Iterable

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from cellclr_jax.errors import BadData
from cellclr_jax.profiling.correction import standardize, tvn, whiten
from cellclr_jax.profiling.measures.across_plates import Retrieval, retrieve
from cellclr_jax.profiling.single_cells import probes

Fold = tuple[
    np.ndarray, np.ndarray, np.ndarray
]  # features [N, D], training rows [N] bool, test rows [N] bool
Scores = dict[str, dict[str, float]]  # of one kind of features: {score: {name: value}}

CONTROL = "DMSO"
PERMUTATIONS = 1000
LEVELS = {"wells": ["plate", "well"], "sites": ["plate", "well", "site"]}
CORRECTIONS = ("none", "controls", "plates", "whitening", "tvn")
"""`controls`: z-scores by all controls; `plates`: by the controls of the plate; `whitening` and
`tvn` follow `controls`, with λ = 1. TVN uses plates as batches: all crops are of one week, and
with weeks as batches TVN would equal whitening."""
PLATE_CORRECTIONS = ("none", "plates", "whitening", "tvn")
"""Corrections under which plates are predicted. `controls` is left out, since the classifiers
standardise features anyway."""
_MOST_ITERATIONS = 1000  # the solver converges long before


def is_control(cells: pd.DataFrame) -> np.ndarray:
    """Returns a mask [N] bool of control cells."""
    return (cells["compound"] == CONTROL).to_numpy()


def means(features: np.ndarray, cells: pd.DataFrame, level: str) -> tuple[np.ndarray, pd.DataFrame]:
    """Computes mean features [P, D] of each well or site, and their metadata [P].

    Args:
      features: [N, D].
      cells: [N] plate, well, site, compound, concentration.
      level: a key of `LEVELS`.
    """
    groups = cells.groupby(LEVELS[level], sort=True)
    index = groups.ngroup().to_numpy()
    sums = np.zeros((index.max() + 1, features.shape[1]))
    np.add.at(sums, index, features.astype(np.float64))
    return sums / np.bincount(index)[:, None], groups.first().reset_index()


def corrected(
    values: np.ndarray, fitted: np.ndarray, plates: np.ndarray, correction: str
) -> np.ndarray:
    """Corrects rows; returns them as [N, K] float64.

    Args:
      values: [N, D] float.
      fitted: [N] bool, the control rows that the correction is fitted on.
      plates: [N] names.
      correction: one of `CORRECTIONS`.

    Raises:
      BadData: the correction cannot be fitted, such as `plates` with one control row per plate.
    """
    values = np.asarray(values, np.float64)
    if correction == "none":
        return values
    values, _ = standardize(values, fitted, plates=plates if correction == "plates" else None)
    if correction == "whitening":
        return whiten(values, fitted)
    return tvn(values, fitted, plates) if correction == "tvn" else values


def treatments_retrieved(features: np.ndarray, cells: pd.DataFrame, level: str) -> Retrieval:
    """Retrieves treatments, including DMSO, across plates; profiles are z-scored by all profiles.

    Z-scored by the controls, control profiles would be noise of random directions, and none could
    be retrieved by another.

    Args:
      features: [N, D].
      cells: [N], see `means`.
      level: a key of `LEVELS`.
    """
    values, rows = means(features, cells, level)
    everything = np.ones(len(rows), bool)
    return _retrieve(
        corrected(values, everything, rows["plate"].to_numpy(object), "controls"), rows
    )


def doses_retrieved(
    features: np.ndarray, cells: pd.DataFrame, level: str, correction: str = "controls"
) -> Retrieval:
    """Retrieves doses of the compound across plates, without controls.

    Args:
      features: [N, D].
      cells: [N], see `means`.
      level: a key of `LEVELS`.
      correction: one of `CORRECTIONS`, fitted on all controls of the level.
    """
    values, rows = means(features, cells, level)
    treated = ~is_control(rows)
    values = corrected(values, ~treated, rows["plate"].to_numpy(object), correction)
    return _retrieve(values[treated], rows[treated])


def _retrieve(values: np.ndarray, rows: pd.DataFrame) -> Retrieval:
    """Scores profiles [P, K]; permutations of treatments keep the sites of a well together."""
    return retrieve(
        values,
        rows.groupby(["compound", "concentration"]).ngroup().to_numpy(),
        rows.groupby("plate").ngroup().to_numpy(),
        well=rows.groupby(["plate", "well"]).ngroup().to_numpy(),
        permutations=PERMUTATIONS,
    )


def balanced_accuracy(
    labels: np.ndarray, folds: Iterable[Fold], neighbours: int
) -> dict[str, float]:
    """Computes the balanced accuracy of predicted classes over all folds.

    Args:
      labels: [N] str.
      folds: features, training rows and test rows of each fold.
      neighbours: the number that vote in k-NN.

    Returns:
      Balanced accuracy by classifier, `knn` and `logistic`, with the settings of `probes`; features
      are standardised by the training rows.
    """
    right = {name: np.zeros(len(labels)) for name in ("knn", "logistic")}
    times = np.zeros(len(labels))
    for values, train, test in folds:
        scaler = StandardScaler().fit(values[train])
        models = {
            "knn": KNeighborsClassifier(neighbours, metric="cosine", algorithm="brute"),
            "logistic": _logistic(),
        }
        times += test
        with threadpool_limits(limits=1):
            for name, model in models.items():
                model.fit(scaler.transform(values[train]), labels[train])
                predicted = model.predict(scaler.transform(values[test]))
                right[name][test] += predicted == labels[test]
    return {
        name: float(
            np.mean(
                [found[labels == one].sum() / times[labels == one].sum() for one in set(labels)]
            )
        )
        for name, found in right.items()
    }


def plate_accuracy(
    features: np.ndarray, cells: pd.DataFrame, correction: str = "none"
) -> dict[str, float]:
    """Predicts the plate of control cells after a correction fitted on other cells.

    For all twelve ordered pairs of sites, the classifier is trained on one site of every plate and
    tested on the other; the correction is fitted on the remaining two. A correction fitted on the
    training cells would make all plates equal there, and nothing could be learnt. The random error
    of the means of the two sites is the same for training and test cells, so after a correction by
    plates, plates are predicted somewhat above chance from pure noise. A plate has one control
    well, which all its sites share.

    Args:
      features: [N, D].
      cells: [N], see `means`; every plate has control cells in at least three sites.
      correction: one of `CORRECTIONS`.
    """
    control = is_control(cells)
    values, rows = features[control], cells[control]
    plates, site = rows["plate"].to_numpy(object), rows["site"].to_numpy()
    folds = []
    for train, test in itertools.permutations(np.unique(site), 2):
        fitted = (site != train) & (site != test)
        folds.append((corrected(values, fitted, plates, correction), site == train, site == test))
    return balanced_accuracy(plates.astype(str), folds, probes.NEIGHBOURS)


def site_plate_accuracy(
    features: np.ndarray, cells: pd.DataFrame, correction: str = "none"
) -> dict[str, float]:
    """Predicts the plate of the mean of a control site; one site per plate is held out.

    Correction and classifier are fitted on the same sites: there are too few to separate them.
    """
    control = is_control(cells)
    values, rows = means(features[control], cells[control], "sites")
    plates, site = rows["plate"].to_numpy(object), rows["site"].to_numpy()
    folds = [
        (corrected(values, site != one, plates, correction), site != one, site == one)
        for one in np.unique(site)
    ]
    return balanced_accuracy(plates.astype(str), folds, 1)


def dose_accuracy(features: np.ndarray, cells: pd.DataFrame, *, treated: bool) -> dict[str, float]:
    """Predicts the treatment of a cell from cells of other plates: 4 classes, or 3 doses.

    Args:
      features: [N, D].
      cells: [N], see `means`.
      treated: leaves controls out.
    """
    kept = ~is_control(cells) if treated else np.ones(len(cells), bool)
    rows, values = cells[kept], features[kept]
    plates = rows["plate"].to_numpy(str)
    folds = [(values, plates != plate, plates == plate) for plate in np.unique(plates)]
    return balanced_accuracy(
        rows["concentration"].astype(str).to_numpy(str), folds, probes.NEIGHBOURS
    )


def control_auc(features: np.ndarray, cells: pd.DataFrame) -> float:
    """Computes the area under the ROC curve of treated cells against controls of the same plate.

    Logistic regression is fitted on the other plates; areas are averaged over plates with both.
    """
    control, plates = is_control(cells), cells["plate"].to_numpy(str)
    areas = []
    for plate in np.unique(plates):
        test = plates == plate
        if len(np.unique(control[test])) < 2:
            continue
        scaler = StandardScaler().fit(features[~test])
        with threadpool_limits(limits=1):
            model = _logistic().fit(scaler.transform(features[~test]), control[~test])
        scores = model.decision_function(scaler.transform(features[test]))
        areas.append(roc_auc_score(control[test], scores))
    return float(np.mean(areas))


def _logistic() -> LogisticRegression:
    return LogisticRegression(
        C=probes.INVERSE_REGULARIZATION, class_weight="balanced", max_iter=_MOST_ITERATIONS
    )


def scores_of(features: np.ndarray, cells: pd.DataFrame) -> Scores:
    """Computes all scores of features [N, D] of cells [N], see `means`."""
    found: Scores = {}
    for level in LEVELS:
        found[f"all, {level}"] = numbers(treatments_retrieved(features, cells, level))
        for correction in CORRECTIONS:
            # With one control well per plate, corrections by plate cannot be fitted on wells.
            with contextlib.suppress(BadData):
                retrieved = doses_retrieved(features, cells, level, correction)
                found[f"doses, {level}, {correction}"] = numbers(retrieved)
        found[f"doses, {level}"] = found[f"doses, {level}, controls"]
    for correction in PLATE_CORRECTIONS:
        found[f"plate, cells, {correction}"] = plate_accuracy(features, cells, correction)
        found[f"plate, sites, {correction}"] = site_plate_accuracy(features, cells, correction)
    found["4 treatments"] = dose_accuracy(features, cells, treated=False)
    found["3 doses"] = dose_accuracy(features, cells, treated=True)
    found["DMSO or not"] = {"auc": control_auc(features, cells)}
    return found


def numbers(found: Retrieval) -> dict[str, float]:
    """Flattens `Retrieval.summary`: counts, means over treatments, values by chance, and p."""
    summary = found.summary()
    flat = {"asked": summary["asked"], "correct": summary["correct"]}
    for name, long in (("nearest", "nearest_share"), ("precision", "mean_average_precision")):
        flat |= {name: summary[long], f"{name} by chance": summary["chance"][long]}
        flat[f"{name}, p"] = summary["p"][long]
    return flat
