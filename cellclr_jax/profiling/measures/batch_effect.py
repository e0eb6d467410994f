"""Batch effect: how well classifiers predict the batch of control wells.

All controls have the same treatment: after a good correction the accuracy is at chance.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from cellclr_jax.profiling.measures.measure import CorrectedProfiles, Measured, undefined
from cellclr_jax.profiling.moa import batch_order, codes
from cellclr_jax.profiling.nearest import unit_vectors
from cellclr_jax.profiling.single_cells.folds import FOLDS
from cellclr_jax.profiling.single_cells.probes import classifier

FEWEST_WELLS = 4
"""Control wells that a batch needs: two in each of two folds."""
_CAUTION = "far below chance: a correction fitted on these wells levels them more than other wells"
_SEED = 0
# A range below this fraction of the largest value is rounding error.
_CONSTANT = 1e-9


def batch_effect(profiles: CorrectedProfiles) -> Measured:
    """Balanced accuracy of predicting the batch of control wells, cross-validated.

    Logistic regression of scikit-learn (batches of equal weight) and the nearest neighbour by
    cosine, both on features standardised by the training wells. Whole plates are held out if every
    batch has controls on two plates or more, otherwise wells: then common effects of a plate help
    to predict the batch. A correction has been fitted on all these wells, including held-out ones:
    if they are few compared with the features, it levels them more than other wells, even to below
    chance, and the measure is less informative about treated wells.

    Returns:
      Table: one row a batch: batch, wells, plates, recall_logistic, recall_knn. Batches of fewer
      than `FEWEST_WELLS` control wells are left out and counted. Undefined with fewer than two.
      The summary has a `caution` if a balanced accuracy is below half of chance.
    """
    controls = profiles.controls()
    table = profiles.wells.loc[controls, ["Metadata_Batch", "Metadata_Plate"]]
    table = table.set_axis(["batch", "plate"], axis=1).fillna("")
    sizes = table["batch"][table["batch"] != ""].value_counts()
    names = sorted(sizes.index[sizes >= FEWEST_WELLS], key=batch_order)
    if len(names) < 2:
        few = f"{len(names) or 'no'} batch{'' if len(names) == 1 else 'es'}"
        return undefined(f"{few} with {FEWEST_WELLS} control wells or more: 2 are needed")
    used = table["batch"].isin(names).to_numpy()
    values = profiles.well_values()
    table, values = table[used], _varying(values[controls][used], values)
    if not values.shape[1]:
        return undefined("the control wells are all the same")
    plates = table.groupby("batch")["plate"].nunique()[names].to_numpy()
    by_plate = bool((plates > 1).all())
    batch = table["batch"].map({name: index for index, name in enumerate(names)}).to_numpy(np.int64)
    groups = codes(table["plate"]) if by_plate else np.arange(len(table))
    wells = np.bincount(batch)
    recall = {
        name: np.bincount(batch, weights=predicted == batch) / wells
        for name, predicted in _predicted(values, batch, groups).items()
    }
    columns = {f"recall_{name}": values for name, values in recall.items()}
    found = pd.DataFrame({"batch": names, "wells": wells, "plates": plates, **columns})
    return Measured(
        {
            **_balanced(recall),
            "held_out": "plates" if by_plate else "wells",
            "batches": len(names),
            "wells": len(table),
            "batches_left_out": int((sizes < FEWEST_WELLS).sum()),
        },
        found,
    )


def _varying(controls: np.ndarray, wells: np.ndarray) -> np.ndarray:
    """Columns in which control wells [C, D] vary by more than rounding of all wells [W, D].

    Whitening leaves rounding errors in directions that the controls do not span, and scaling would
    make them as large as any other column.
    """
    return controls[:, np.ptp(controls, axis=0) > _CONSTANT * np.abs(wells).max(axis=0)]


def _balanced(recall: dict[str, np.ndarray]) -> dict[str, object]:
    """Balanced accuracy of each classifier, and that of guessing."""
    means = {name: float(values.mean()) for name, values in recall.items()}
    chance = 1 / len(recall["knn"])
    caution = {"caution": _CAUTION} if min(means.values()) < 0.5 * chance else {}
    return {"balanced_accuracy": means, "chance": chance, **caution}


def folds(batch: np.ndarray, groups: np.ndarray) -> Iterator[np.ndarray]:
    """Distributes the groups of each batch over folds, so that no fold holds out a whole batch.

    Args:
      batch: [N] int, numbered from 0, each of two groups or more.
      groups: [N] int; rows of one batch and group stay together.

    Yields:
      [N] bool, held-out rows; each row is held out once.
    """
    rng = np.random.default_rng(_SEED)
    own = [np.unique(groups[batch == index]) for index in range(batch.max() + 1)]
    count = min(FOLDS, *(len(names) for names in own))
    fold = np.empty(len(batch), np.int64)
    for index, names in enumerate(own):
        rows = batch == index
        fold_of_group = rng.permutation(len(names)) % count
        fold[rows] = fold_of_group[np.searchsorted(names, groups[rows])]
    for index in range(count):
        yield fold == index


def _predicted(values: np.ndarray, batch: np.ndarray, groups: np.ndarray) -> dict[str, np.ndarray]:
    """Predicts the batches [N] of held-out wells by each classifier."""
    from sklearn.preprocessing import StandardScaler

    predicted = {name: np.empty_like(batch) for name in ("logistic", "knn")}
    for test in folds(batch, groups):
        scaler = StandardScaler().fit(values[~test])
        known, unknown = scaler.transform(values[~test]), scaler.transform(values[test])
        model = classifier("logistic", len(known)).fit(known, batch[~test])
        predicted["logistic"][test] = model.predict(unknown)
        similar = unit_vectors(unknown) @ unit_vectors(known).T
        predicted["knn"][test] = batch[~test][similar.argmax(axis=1)]
    return predicted
