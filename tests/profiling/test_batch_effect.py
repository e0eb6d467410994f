"""The batch effect: a planted one is found, and whole plates are held out."""

import json

import numpy as np
import pandas as pd
import pytest
from support.corrected_wells import corrected, table

from cellclr_jax.profiling.correction import whiten
from cellclr_jax.profiling.measures.batch_effect import batch_effect, folds


def controls(seed=0, *, batches=4, plates=2, wells=8, dims=10, of_batch=0.0, of_plate=0.0):
    """Control wells whose mean depends on the batch and on the plate, and two treatments."""
    rng = np.random.default_rng(seed)
    rows, values = [], []
    for batch in range(batches):
        shift = of_batch * rng.normal(size=dims)
        for plate in range(plates):
            own = shift + of_plate * rng.normal(size=dims)
            for _ in range(wells):
                rows.append((f"Week{batch}_{plate}", f"Week{batch}", "DMSO", 0.0, "DMSO"))
                values.append(own + rng.normal(size=dims))
    rows += [("Week0_0", "Week0", "a", 1.0, "m"), ("Week0_0", "Week0", "b", 1.0, "m")]
    return table(rows, [*values, *rng.normal(size=(2, dims))])


def scores(wells):
    found = batch_effect(corrected(wells))
    json.dumps(found.summary, allow_nan=False)
    return found.summary["balanced_accuracy"]


def test_a_planted_effect_is_found_by_both_classifiers():
    found = scores(controls(of_batch=3.0))
    assert found["logistic"] > 0.95
    assert found["knn"] > 0.9


def test_without_an_effect_both_guess():
    found = [scores(controls(seed)) for seed in range(4)]
    for name in ("logistic", "knn"):
        assert 0.17 < np.mean([one[name] for one in found]) < 0.32


def test_whole_plates_are_held_out():
    """Plates differ and batches do not: training wells of the same plate would reveal the batch."""
    found = [batch_effect(corrected(controls(seed, of_plate=3.0))) for seed in range(4)]
    assert {one.summary["held_out"] for one in found} == {"plates"}
    for name in ("logistic", "knn"):
        assert np.mean([one.summary["balanced_accuracy"][name] for one in found]) < 0.4
    one_plate = batch_effect(corrected(controls(plates=1, of_plate=3.0)))
    assert one_plate.summary["held_out"] == "wells"
    assert one_plate.summary["balanced_accuracy"]["knn"] > 0.9


@pytest.mark.parametrize("plates", [[2, 2], [2, 3, 7], [6, 9]])
def test_folds_keep_groups_together_and_leave_some_of_each_batch(plates):
    groups = np.repeat(np.arange(sum(plates)), 3)
    batch = np.repeat(np.arange(len(plates)), 3 * np.array(plates))
    test_masks = list(folds(batch, groups))
    np.testing.assert_array_equal(np.sum(test_masks, axis=0), np.ones(len(batch)))
    for rows in test_masks:
        assert not set(groups[rows]) & set(groups[~rows])
        assert set(batch[rows]) == set(batch[~rows]) == set(range(len(plates)))


def test_the_nearest_neighbour_and_the_recall_are_those_of_a_loop():
    wells = controls(of_batch=0.7, plates=3).sample(frac=1, random_state=0)
    found = batch_effect(corrected(wells))
    used = wells[wells["Metadata_Compound"] == "DMSO"]
    values = used.filter(regex="^f").to_numpy()
    names = sorted(set(used["Metadata_Batch"]))
    batch = np.array([names.index(name) for name in used["Metadata_Batch"]])
    plates = list(dict.fromkeys(used["Metadata_Plate"]))
    plate = np.array([plates.index(name) for name in used["Metadata_Plate"]])
    right = np.zeros(len(batch))
    for test in folds(batch, plate):
        mean, deviation = values[~test].mean(axis=0), values[~test].std(axis=0)
        scaled = (values - mean) / deviation
        for row in np.flatnonzero(test):
            known = [
                (scaled[i] @ scaled[row] / np.linalg.norm(scaled[i]), batch[i])
                for i in np.flatnonzero(~test)
            ]
            right[row] = max(known)[1] == batch[row]
    recall = [right[batch == index].mean() for index in range(len(names))]
    np.testing.assert_allclose(found.table["recall_knn"], recall)
    np.testing.assert_allclose(found.summary["balanced_accuracy"]["knn"], np.mean(recall))
    assert found.table["batch"].tolist() == names
    assert found.table["wells"].tolist() == [24] * 4
    assert found.table["plates"].tolist() == [3] * 4


def test_treated_wells_do_not_matter():
    wells = controls(of_batch=1.0)
    wanted = scores(wells)
    wells.loc[wells["Metadata_Compound"] != "DMSO", "f0":] = 1e6
    assert scores(wells) == wanted


def test_batches_of_few_controls_are_left_out_and_counted():
    wells = controls(of_batch=1.0)
    few = (wells["Metadata_Batch"] == "Week3") & (wells["Metadata_Compound"] == "DMSO")
    kept = wells[~few | (few.cumsum() <= 3)]
    found = batch_effect(corrected(kept))
    assert found.table["batch"].tolist() == ["Week0", "Week1", "Week2"]
    assert found.summary["batches_left_out"] == 1
    assert found.summary["chance"] == 1 / 3
    assert found.summary["wells"] == 48


def test_one_batch_or_no_controls_have_no_effect():
    assert "1 batch with" in batch_effect(corrected(controls(batches=1))).summary["undefined"]
    wells = controls()
    treated = wells[wells["Metadata_Compound"] != "DMSO"]
    assert "no batches" in batch_effect(corrected(treated)).summary["undefined"]
    nameless = wells.assign(Metadata_Batch="")
    assert "no batches" in batch_effect(corrected(nameless)).summary["undefined"]


def test_controls_that_a_correction_levelled_carry_a_caution():
    """Where each batch's mean is 0, its known plate lies opposite to the one that is held out."""
    wells = controls(of_plate=3.0)
    values = wells.loc[:, "f0":]
    levelled = values - values.groupby(wells["Metadata_Batch"]).transform("mean")
    found = batch_effect(corrected(pd.concat([wells.filter(like="Metadata_"), levelled], axis=1)))
    assert found.summary["balanced_accuracy"]["knn"] < 0.05
    assert "far below chance" in found.summary["caution"]
    assert "caution" not in batch_effect(corrected(wells)).summary


def test_rounding_that_whitening_leaves_is_no_feature():
    """Of more features than controls, both ways of whitening have the same batch effect."""
    wells = controls(batches=2, wells=4, dims=40, of_batch=1.0)
    is_control = (wells["Metadata_Compound"] == "DMSO").to_numpy()
    features = [name for name in wells if not name.startswith("Metadata_")]
    values = wells[features].to_numpy()
    found = []
    for to_rank in (False, True):
        white = whiten(values, is_control, to_rank=to_rank)
        frame = pd.DataFrame(white, columns=[f"f{i}" for i in range(white.shape[1])])
        metadata = wells.drop(columns=features)
        found.append(scores(pd.concat([metadata, frame], axis=1)))
    assert found[0] == pytest.approx(found[1])


def test_equal_control_wells_have_no_batch_effect():
    wells = controls()
    features = [name for name in wells if not name.startswith("Metadata_")]
    wells.loc[wells["Metadata_Compound"] == "DMSO", features] = 2.0
    assert batch_effect(corrected(wells)).summary == {
        "undefined": "the control wells are all the same"
    }
