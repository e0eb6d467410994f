"""The scores of real crops: planted effects are found, corrections are judged on other cells."""

import json
import sys
from pathlib import Path

import binaries
import crop_scores
import numpy as np
import pandas as pd
import pytest
from crop_scores import (
    control_auc,
    corrected,
    dose_told,
    doses_retrieved,
    is_control,
    means,
    plate_told,
    plate_told_of_sites,
    treatments_retrieved,
)

from cellclr_jax.cli import BadData
from cellclr_jax.profiling.correction import tvn, whiten
from cellclr_jax.profiling.measures.across_plates import retrieve
from cellclr_jax.profiling.probing.probes import probe

TESTS = Path(__file__).parent


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
    """Noise, and beside it what the values of a column add to every feature."""
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


def test_six_control_wells_are_too_few_to_correct_plates_and_too_few_to_whiten():
    """One a plate has no spread; six span five dimensions; one batch leaves tvn nothing to do."""
    cells = screen(plates=6)
    features = shifted(cells, "plate", 1.0, dims=16)
    values, rows = means(features, cells, "wells")
    control, plates = is_control(rows), rows["plate"].to_numpy(object)
    for way in ("plates", "tvn"):
        with pytest.raises(BadData, match="control wells"):
            corrected(values, control, plates, way)
    assert np.linalg.matrix_rank(values[control] - values[control].mean(axis=0)) == 5
    assert whiten(values, control, to_rank=True).shape[1] == 5
    one_week = np.full(len(rows), "Week4", object)
    np.testing.assert_allclose(tvn(values, control, one_week), whiten(values, control), atol=1e-9)


def test_a_planted_treatment_is_retrieved_and_a_planted_plate_is_not():
    cells = screen(plates=4)
    planted, of_plates = shifted(cells, "concentration", 2.0), shifted(cells, "plate", 5.0)
    for level, sites in (("wells", 1), ("sites", 4)):
        found = treatments_retrieved(planted, cells, level)
        assert found.means.tolist() == [1.0, 1.0]
        assert found.asks.sum() == (4 + 9) * sites
        of_doses = doses_retrieved(planted, cells, level)
        assert of_doses.means.tolist() == [1.0, 1.0]
        assert of_doses.asks.sum() == 9 * sites
        assert treatments_retrieved(of_plates, cells, level).means[0] < 0.7
        assert doses_retrieved(of_plates, cells, level).means[0] < 0.7


def test_profiles_in_units_of_controls_leave_controls_without_a_direction():
    """Why all treatments are retrieved in z-scores by all profiles."""
    cells = screen(plates=6)
    values, rows = means(shifted(cells, "concentration", 2.0), cells, "wells")
    control = is_control(rows)
    by_controls = corrected(values, control, rows["plate"].to_numpy(object), "controls")
    treatment = np.unique(rows["concentration"], return_inverse=True)[1]
    plate = np.unique(rows["plate"], return_inverse=True)[1]
    assert retrieve(values, treatment, plate).nearest[control].all()
    assert retrieve(by_controls, treatment, plate).nearest[control].mean() < 1.0


def test_a_planted_plate_is_told_from_control_cells_and_corrected():
    cells = screen(plates=4, cells=60)
    features = shifted(cells, "plate", 1.0)
    before, after = (plate_told(features, cells, way) for way in ("none", "plates"))
    assert min(before.values()) > 0.6
    assert max(after.values()) < min(before.values()) - 0.2
    assert plate_told_of_sites(features, cells)["knn"] > 0.9
    noise = shifted(cells, "plate", 0.0)
    assert max(plate_told(noise, cells).values()) < 0.33


def test_what_is_told_after_correction_does_not_depend_on_treated_cells():
    cells = screen()
    features = shifted(cells, "plate", 1.0)
    moved = features + 100 * ~is_control(cells)[:, None]
    for way in crop_scores.CORRECTIONS:
        assert plate_told(features, cells, way) == plate_told(moved, cells, way)


def test_doses_are_told_as_the_house_tells_classes():
    """Of three plates, where the house leaves one out at a time, too."""
    cells = screen()
    features = shifted(cells, "concentration", 0.4)
    labels = cells["concentration"].astype(str).to_numpy()
    wanted = probe(features, labels, cells["plate"].to_numpy(), classifiers=("knn", "logistic"))
    found = dose_told(features, cells, treated=False)
    for name, score in wanted.scores.items():
        np.testing.assert_allclose(found[name], score.balanced_accuracy, atol=1e-12)
    assert 0.3 < found["logistic"] < 0.95
    assert dose_told(shifted(cells, "concentration", 3.0), cells, treated=True)["knn"] > 0.98


def test_controls_are_told_from_the_rest_by_other_plates():
    cells = screen()
    features = shifted(cells, "compound", 1.0)
    assert control_auc(features, cells) > 0.9
    # What tells them apart on one plate alone, in opposite ways, helps on no other.
    sign = np.where(cells["plate"] == "P0", 1, -1) * np.where(is_control(cells), 1, -1)
    own = np.random.default_rng(0).normal(size=(len(cells), 3)) + 2 * sign[:, None]
    assert control_auc(own, cells) < 0.2


def test_the_driver_goes_from_crops_to_tables(shared, tmp_path, monkeypatch, capsys):
    """A tiny network, one epoch, all of the real crops."""
    monkeypatch.syspath_prepend(TESTS / "bench")
    import real_crops

    runs = []

    def run(binary, *flags):
        runs.append(binary)
        done = binaries.run(binary, *flags)
        assert done.returncode == 0, done.stderr

    monkeypatch.setattr(real_crops, "binary", run)
    monkeypatch.setattr(crop_scores, "PERMUTATIONS", 20)
    monkeypatch.setattr(real_crops, "TOLD", ("none", "plates"))
    command = ["real_crops", f"--out={tmp_path}", "--seeds=0", "--epochs=1"]
    command += [f"--source={shared / 'data' / 'bbbc021'}", f"--config={TESTS / 'tiny_run.py'}"]
    monkeypatch.setattr(sys, "argv", command)
    real_crops.main()
    assert runs == ["build", "main", "embed"]
    found = json.loads((tmp_path / "scores.json").read_text())
    assert list(found) == list(real_crops.KINDS)
    for (scores,) in found.values():
        asked = {what: scores[what]["asked"] for what in real_crops.RETRIEVED}
        assert list(asked.values()) == [14, 50, 8, 26]
        values = [v for s in scores.values() for k, v in s.items() if k not in ("asked", "correct")]
        assert np.isfinite(values).all()
        assert min(values) >= 0
        assert max(values) <= 1
        assert "doses, wells, plates" not in scores
    # By intensities alone, as is known of these crops.
    assert found["intensity"][0]["DMSO or not"]["auc"] > 0.97
    printed = capsys.readouterr().out
    assert printed.count("\n| intensity |") == 1 + len(real_crops.TOLD)
    real_crops.main()
    assert len(runs) == 3
    assert capsys.readouterr().out == printed
    assert not list(tmp_path.rglob("*.npy"))
