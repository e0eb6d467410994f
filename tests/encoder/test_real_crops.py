"""Scores of real crops find planted effects, and judge corrections on held-out cells."""

import itertools
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from support import crop_scores
from support.crop_scores import (
    doses_retrieved,
    is_control,
    means,
    plate_accuracy,
    site_plate_accuracy,
    treatments_retrieved,
)

from cellclr_jax.profiling.single_cells.probes import NEIGHBOURS


def screen(plates=3, cells=25, doses=(5.0, 15.0, 50.0)):
    """A control well on every plate, and one of each dose on all but the last."""
    rows = [
        (f"P{plate}", f"B{well:02d}", site, "a" if dose else "DMSO", dose)
        for plate in range(plates)
        for well, dose in enumerate((0.0, *(doses if plate < plates - 1 else ())))
        for site in (1, 2, 3, 4)
        for _ in range(cells)
    ]
    return pd.DataFrame(rows, columns=["plate", "well", "site", "compound", "concentration"])


def shifted(cells, column, size, dims=8, seed=0):
    """Noise, plus a random vector for each value of a column."""
    rng = np.random.default_rng(seed)
    _, index = np.unique(cells[column], return_inverse=True)
    return rng.normal(size=(len(cells), dims)) + size * rng.normal(size=(20, dims))[index]


def test_means_are_those_of_a_loop():
    cells = screen().sample(frac=1, random_state=0).reset_index(drop=True)
    features = np.random.default_rng(0).normal(size=(len(cells), 3)).astype(np.float32)
    for level, keys in crop_scores.LEVELS.items():
        values, rows = means(features, cells, level)
        assert len(rows) == len(cells[keys].drop_duplicates())
        for value, row in zip(values, rows[keys].itertuples(index=False), strict=True):
            own = (cells[keys] == list(row)).all(axis=1).to_numpy()
            np.testing.assert_allclose(value, features[own].mean(axis=0), atol=1e-6)


def test_a_planted_treatment_is_retrieved_and_a_planted_plate_is_not():
    cells = screen(plates=4)
    planted, of_plates = shifted(cells, "concentration", 2.0), shifted(cells, "plate", 5.0)
    for level, sites in (("wells", 1), ("sites", 4)):
        found = treatments_retrieved(planted, cells, level)
        assert found.means.tolist() == [1.0, 1.0]
        assert found.is_query.sum() == (4 + 9) * sites
        of_doses = doses_retrieved(planted, cells, level)
        assert of_doses.means.tolist() == [1.0, 1.0]
        assert of_doses.is_query.sum() == 9 * sites
        assert treatments_retrieved(of_plates, cells, level).means[0] < 0.7
        assert doses_retrieved(of_plates, cells, level).means[0] < 0.7


def test_a_planted_plate_is_predicted_from_control_cells_and_corrected():
    cells = screen(plates=4, cells=60)
    features = shifted(cells, "plate", 1.0)
    before, after = (
        plate_accuracy(features, cells, correction) for correction in ("none", "plates")
    )
    assert min(before.values()) > 0.6
    assert max(after.values()) < min(before.values()) - 0.2
    assert site_plate_accuracy(features, cells)["knn"] > 0.9
    noise = shifted(cells, "plate", 0.0)
    assert max(plate_accuracy(noise, cells).values()) < 0.33


def accuracy_by_loops(values, plates, folds, neighbours, *, by_plate):
    """Balanced accuracy of k-NN: `folds` are (fitted, train, test) masks of rows."""
    right, times = Counter(), Counter()
    for fitted, train, test in folds:
        rows = values.copy()
        for plate in set(plates) if by_plate else ():
            own = fitted & (plates == plate)
            moved = (values - values[own].mean(axis=0)) / values[own].std(axis=0)
            rows[plates == plate] = moved[plates == plate]
        rows = (rows - rows[train].mean(axis=0)) / rows[train].std(axis=0)
        rows /= np.linalg.norm(rows, axis=1)[:, None]
        for row in np.flatnonzero(test):
            nearest = np.argsort(-(rows[train] @ rows[row]), kind="stable")[:neighbours]
            votes = Counter(plates[train][nearest])
            predicted = min(votes, key=lambda plate: (-votes[plate], plate))
            times[plates[row]] += 1
            right[plates[row]] += predicted == plates[row]
    return np.mean([right[plate] / times[plate] for plate in times])


@pytest.mark.parametrize("correction", ["none", "plates"])
def test_predictions_of_plates_from_cells_equal_loops(correction):
    """Correction fitted on two sites, classifier on a third, tested on the fourth."""
    cells = screen(cells=10)
    features = shifted(cells, "plate", 0.7)
    control = is_control(cells)
    values, site = features[control], cells["site"].to_numpy()[control]
    plates = cells["plate"].to_numpy(str)[control]
    folds = [
        (~np.isin(site, [train, test]), site == train, site == test)
        for train, test in itertools.permutations((1, 2, 3, 4), 2)
    ]
    wanted = accuracy_by_loops(values, plates, folds, NEIGHBOURS, by_plate=correction == "plates")
    np.testing.assert_allclose(
        plate_accuracy(features, cells, correction)["knn"], wanted, atol=1e-12
    )


@pytest.mark.parametrize("correction", ["none", "plates"])
def test_predictions_of_plates_from_sites_equal_loops(correction):
    """Correction and classifier fitted on three sites, tested on the fourth."""
    cells = screen(plates=6, cells=5)
    features = shifted(cells, "plate", 0.2)
    values, rows = means(features[is_control(cells)], cells[is_control(cells)], "sites")
    site, plates = rows["site"].to_numpy(), rows["plate"].to_numpy(str)
    folds = [(site != one, site != one, site == one) for one in (1, 2, 3, 4)]
    wanted = accuracy_by_loops(values, plates, folds, 1, by_plate=correction == "plates")
    np.testing.assert_allclose(
        site_plate_accuracy(features, cells, correction)["knn"], wanted, atol=1e-12
    )


def test_corrected_predictions_do_not_depend_on_treated_cells():
    cells = screen(cells=8)
    features = shifted(cells, "plate", 1.0)
    moved = features + 100 * ~is_control(cells)[:, None]
    for correction in crop_scores.CORRECTIONS:
        assert plate_accuracy(features, cells, correction) == plate_accuracy(
            moved, cells, correction
        )
