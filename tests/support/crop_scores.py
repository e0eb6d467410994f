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

Fold = tuple[np.ndarray, np.ndarray, np.ndarray]  # features [N, D], known [N], asked [N]
Scores = dict[str, dict[str, float]]  # of one kind of features: {what: {name: value}}

CONTROL = "DMSO"
PERMUTATIONS = 1000
LEVELS = {"wells": ["plate", "well"], "sites": ["plate", "well", "site"]}
CORRECTIONS = ("none", "controls", "plates", "whitening", "tvn")
"""`controls`: z-scores by all controls; `plates`: by those of the plate; `whitening` and `tvn` come
after `controls` with λ = 1, and tvn takes each plate for a batch: with the week for a batch, there
is one, and it is whitening."""
TOLD = ("none", "plates", "whitening", "tvn")
"""Corrections before plates are predicted: z-scores by all controls would change nothing."""
_MOST_ITERATIONS = 1000  # of a solver that stops long before


def is_control(cells: pd.DataFrame) -> np.ndarray:
    """[N] bool."""
    return (cells["compound"] == CONTROL).to_numpy()


def means(features: np.ndarray, cells: pd.DataFrame, level: str) -> tuple[np.ndarray, pd.DataFrame]:
    """Mean features [P, D] of each well or site, and what each is.

    Args:
      features: [N, D].
      cells: [N] plate, well, site, compound, concentration.
      level: of `LEVELS`.
    """
    groups = cells.groupby(LEVELS[level], sort=True)
    index = groups.ngroup().to_numpy()
    sums = np.zeros((index.max() + 1, features.shape[1]))
    np.add.at(sums, index, features.astype(np.float64))
    return sums / np.bincount(index)[:, None], groups.first().reset_index()


def corrected(values: np.ndarray, fitted: np.ndarray, plates: np.ndarray, way: str) -> np.ndarray:
    """[N, K] rows under one of `CORRECTIONS`, fitted on some of them.

    Args:
      values: [N, D] float.
      fitted: [N] bool, control rows.
      plates: [N] names.
      way: which.

    Raises:
      BadData: it cannot be fitted, such as `plates` on one well each.
    """
    values = np.asarray(values, np.float64)
    if way == "none":
        return values
    values, _ = standardize(values, fitted, plates=plates if way == "plates" else None)
    if way == "whitening":
        return whiten(values, fitted)
    return tvn(values, fitted, plates) if way == "tvn" else values


def treatments_retrieved(features: np.ndarray, cells: pd.DataFrame, level: str) -> Retrieval:
    """Treatments across plates, DMSO one of them, of profiles in z-scores by all profiles.

    Measured from the controls' mean, a control profile would be noise of any direction, and none
    could find another.

    Args:
      features: [N, D].
      cells: [N], see `means`.
      level: of `LEVELS`.
    """
    values, rows = means(features, cells, level)
    everything = np.ones(len(rows), bool)
    return _retrieved(
        corrected(values, everything, rows["plate"].to_numpy(object), "controls"), rows
    )


def doses_retrieved(
    features: np.ndarray, cells: pd.DataFrame, level: str, way: str = "controls"
) -> Retrieval:
    """Doses of the compound across plates; controls neither ask nor answer.

    Args:
      features: [N, D].
      cells: [N], see `means`.
      level: of `LEVELS`.
      way: of `CORRECTIONS`, fitted on all controls of the level.
    """
    values, rows = means(features, cells, level)
    treated = ~is_control(rows)
    values = corrected(values, ~treated, rows["plate"].to_numpy(object), way)
    return _retrieved(values[treated], rows[treated])


def _retrieved(values: np.ndarray, rows: pd.DataFrame) -> Retrieval:
    """Of profiles [P, K]; sites of a well stay together when treatments are permuted."""
    return retrieve(
        values,
        rows.groupby(["compound", "concentration"]).ngroup().to_numpy(),
        rows.groupby("plate").ngroup().to_numpy(),
        well=rows.groupby(["plate", "well"]).ngroup().to_numpy(),
        permutations=PERMUTATIONS,
    )


def told(labels: np.ndarray, folds: Iterable[Fold], neighbours: int) -> dict[str, float]:
    """Balanced accuracy of predicted classes, over all folds.

    Args:
      labels: [N] str.
      folds: features, rows to learn from, rows to ask about.
      neighbours: how many vote.

    Returns:
      By classifier, `knn` and `logistic`, of the settings of `probes`; features are standardised by
      the rows that are learnt from.
    """
    right = {name: np.zeros(len(labels)) for name in ("knn", "logistic")}
    times = np.zeros(len(labels))
    for values, known, asked in folds:
        scaler = StandardScaler().fit(values[known])
        models = {
            "knn": KNeighborsClassifier(neighbours, metric="cosine", algorithm="brute"),
            "logistic": _logistic(),
        }
        times += asked
        with threadpool_limits(limits=1):
            for name, model in models.items():
                model.fit(scaler.transform(values[known]), labels[known])
                answers = model.predict(scaler.transform(values[asked]))
                right[name][asked] += answers == labels[asked]
    return {
        name: float(
            np.mean(
                [found[labels == one].sum() / times[labels == one].sum() for one in set(labels)]
            )
        )
        for name, found in right.items()
    }


def plate_told(features: np.ndarray, cells: pd.DataFrame, way: str = "none") -> dict[str, float]:
    """Predicts the plate of control cells after a correction fitted on other cells.

    The correction is fitted on two sites of every plate, the classifier learns from a third and is
    asked about the fourth, in all twelve ways: a correction that is fitted on the very cells that
    are learnt from makes all plates equal there, and nothing can be learnt by construction. How far
    the mean of those two sites is off by chance is shared by both sides: after a correction by
    plates, pure noise predicts plates somewhat above chance. A plate has one control well: all
    sites of a plate share it.

    Args:
      features: [N, D].
      cells: [N], see `means`; every plate has control cells in at least three sites.
      way: of `CORRECTIONS`.
    """
    control = is_control(cells)
    values, rows = features[control], cells[control]
    plates, site = rows["plate"].to_numpy(object), rows["site"].to_numpy()
    folds = []
    for known, asked in itertools.permutations(np.unique(site), 2):
        fitted = (site != known) & (site != asked)
        folds.append((corrected(values, fitted, plates, way), site == known, site == asked))
    return told(plates.astype(str), folds, probes.NEIGHBOURS)


def plate_told_of_sites(
    features: np.ndarray, cells: pd.DataFrame, way: str = "none"
) -> dict[str, float]:
    """The same of means of control sites: one is held out on every plate, all others are known.

    There are too few to fit a correction on others than those that are learnt from.
    """
    control = is_control(cells)
    values, rows = means(features[control], cells[control], "sites")
    plates, site = rows["plate"].to_numpy(object), rows["site"].to_numpy()
    folds = [
        (corrected(values, site != one, plates, way), site != one, site == one)
        for one in np.unique(site)
    ]
    return told(plates.astype(str), folds, 1)


def dose_told(features: np.ndarray, cells: pd.DataFrame, *, treated: bool) -> dict[str, float]:
    """Balanced accuracy of a cell's treatment from cells of other plates: 4 classes, or 3 doses.

    Args:
      features: [N, D].
      cells: [N], see `means`.
      treated: whether controls are left out.
    """
    kept = ~is_control(cells) if treated else np.ones(len(cells), bool)
    rows, values = cells[kept], features[kept]
    plates = rows["plate"].to_numpy(str)
    folds = [(values, plates != plate, plates == plate) for plate in np.unique(plates)]
    return told(rows["concentration"].astype(str).to_numpy(str), folds, probes.NEIGHBOURS)


def control_auc(features: np.ndarray, cells: pd.DataFrame) -> float:
    """Area under the ROC curve of treated cells against controls of the same plate.

    Logistic regression fitted on the other plates; the mean over plates that hold both.
    """
    control, plates = is_control(cells), cells["plate"].to_numpy(str)
    areas = []
    for plate in np.unique(plates):
        asked = plates == plate
        if len(np.unique(control[asked])) < 2:
            continue
        scaler = StandardScaler().fit(features[~asked])
        with threadpool_limits(limits=1):
            model = _logistic().fit(scaler.transform(features[~asked]), control[~asked])
        scores = model.decision_function(scaler.transform(features[asked]))
        areas.append(roc_auc_score(control[asked], scores))
    return float(np.mean(areas))


def _logistic() -> LogisticRegression:
    return LogisticRegression(
        C=probes.INVERSE_REGULARIZATION, class_weight="balanced", max_iter=_MOST_ITERATIONS
    )


def scores_of(features: np.ndarray, cells: pd.DataFrame) -> Scores:
    """All scores of features [N, D] of cells [N], see `means`."""
    found: Scores = {}
    for level in LEVELS:
        found[f"all, {level}"] = numbers(treatments_retrieved(features, cells, level))
        for way in CORRECTIONS:
            # Of six wells, corrections plate by plate cannot be fitted.
            with contextlib.suppress(BadData):
                retrieved = doses_retrieved(features, cells, level, way)
                found[f"doses, {level}, {way}"] = numbers(retrieved)
        found[f"doses, {level}"] = found[f"doses, {level}, controls"]
    for way in TOLD:
        found[f"plate, cells, {way}"] = plate_told(features, cells, way)
        found[f"plate, sites, {way}"] = plate_told_of_sites(features, cells, way)
    found["4 treatments"] = dose_told(features, cells, treated=False)
    found["3 doses"] = dose_told(features, cells, treated=True)
    found["DMSO or not"] = {"auc": control_auc(features, cells)}
    return found


def numbers(found: Retrieval) -> dict[str, float]:
    """Counts, means over treatments, the same by chance, and p: `Retrieval.summary`, flat."""
    summary = found.summary()
    flat = {"asked": summary["asked"], "correct": summary["correct"]}
    for name, long in (("nearest", "nearest_share"), ("precision", "mean_average_precision")):
        flat |= {name: summary[long], f"{name} by chance": summary["chance"][long]}
        flat[f"{name}, p"] = summary["p"][long]
    return flat
