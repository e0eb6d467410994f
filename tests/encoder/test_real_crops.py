"""The scores of real crops: planted effects are found, corrections are judged on other cells."""

import itertools
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support import binaries, crop_scores
from support.crop_scores import (
    doses_retrieved,
    is_control,
    means,
    plate_told,
    plate_told_of_sites,
    treatments_retrieved,
)
from threadpoolctl import threadpool_limits

from cellclr_jax.profiling.single_cells.probes import NEIGHBOURS

TESTS = Path(__file__).parents[1]
CONFIG = """
from cellclr_jax import default_config


def get_config():
    config = default_config.get_config()
    config.image_size = 16
    config.views = {"flip_horizontal": {"probability": 0.5}}
    config.model.encoder = "cnn"
    config.model.cnn.widths = (8,)
    config.model.cnn.norm = "batch"
    config.model.head.width = 8
    config.model.head.depth = 1
    return config
"""  # whose programs compile soonest


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


def test_a_planted_plate_is_told_from_control_cells_and_corrected():
    cells = screen(plates=4, cells=60)
    features = shifted(cells, "plate", 1.0)
    before, after = (plate_told(features, cells, way) for way in ("none", "plates"))
    assert min(before.values()) > 0.6
    assert max(after.values()) < min(before.values()) - 0.2
    assert plate_told_of_sites(features, cells)["knn"] > 0.9
    noise = shifted(cells, "plate", 0.0)
    assert max(plate_told(noise, cells).values()) < 0.33


def told_by_loops(values, plates, folds, neighbours, *, by_plate):
    """Balanced accuracy of k-NN: `folds` are (fitted, known, asked) of rows."""
    right, times = Counter(), Counter()
    for fitted, known, asked in folds:
        rows = values.copy()
        for plate in set(plates) if by_plate else ():
            own = fitted & (plates == plate)
            moved = (values - values[own].mean(axis=0)) / values[own].std(axis=0)
            rows[plates == plate] = moved[plates == plate]
        rows = (rows - rows[known].mean(axis=0)) / rows[known].std(axis=0)
        rows /= np.linalg.norm(rows, axis=1)[:, None]
        for row in np.flatnonzero(asked):
            nearest = np.argsort(-(rows[known] @ rows[row]), kind="stable")[:neighbours]
            votes = Counter(plates[known][nearest])
            answer = min(votes, key=lambda plate: (-votes[plate], plate))
            times[plates[row]] += 1
            right[plates[row]] += answer == plates[row]
    return np.mean([right[plate] / times[plate] for plate in times])


@pytest.mark.parametrize("way", ["none", "plates"])
def test_plates_of_cells_are_told_as_loops_tell_them(way):
    """Corrected by two sites, learnt from a third, asked about the fourth."""
    cells = screen(cells=10)
    features = shifted(cells, "plate", 0.7)
    control = is_control(cells)
    values, site = features[control], cells["site"].to_numpy()[control]
    plates = cells["plate"].to_numpy(str)[control]
    folds = [
        (~np.isin(site, [known, asked]), site == known, site == asked)
        for known, asked in itertools.permutations((1, 2, 3, 4), 2)
    ]
    wanted = told_by_loops(values, plates, folds, NEIGHBOURS, by_plate=way == "plates")
    np.testing.assert_allclose(plate_told(features, cells, way)["knn"], wanted, atol=1e-12)


@pytest.mark.parametrize("way", ["none", "plates"])
def test_plates_of_sites_are_told_as_loops_tell_them(way):
    """Corrected by three sites and learnt from them, asked about the fourth."""
    cells = screen(plates=6, cells=5)
    features = shifted(cells, "plate", 0.2)
    values, rows = means(features[is_control(cells)], cells[is_control(cells)], "sites")
    site, plates = rows["site"].to_numpy(), rows["plate"].to_numpy(str)
    folds = [(site != one, site != one, site == one) for one in (1, 2, 3, 4)]
    wanted = told_by_loops(values, plates, folds, 1, by_plate=way == "plates")
    np.testing.assert_allclose(plate_told_of_sites(features, cells, way)["knn"], wanted, atol=1e-12)


def test_what_is_told_after_correction_does_not_depend_on_treated_cells():
    cells = screen(cells=8)
    features = shifted(cells, "plate", 1.0)
    moved = features + 100 * ~is_control(cells)[:, None]
    for way in crop_scores.CORRECTIONS:
        assert plate_told(features, cells, way) == plate_told(moved, cells, way)


@pytest.fixture(scope="module")
def few_crops(shared, tmp_path_factory):
    """Five cells of each site of the real crops, and the release's tables."""
    folder = tmp_path_factory.mktemp("few")
    (folder / "crops").mkdir()
    cells = Counter()
    for path in sorted((shared / "data" / "bbbc021" / "crops").iterdir()):
        cells[site := path.name.rsplit("_", 1)[0]] += 1
        if cells[site] <= 5:
            (folder / "crops" / path.name).symlink_to(path)
    for path in (shared / "data" / "bbbc021").glob("*.csv"):
        (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture
def drive(few_crops, tmp_path, monkeypatch, capsys):
    """Runs the driver into OUT with some flags; returns (what it printed, programs it ran)."""
    monkeypatch.syspath_prepend(TESTS / "bench")
    import real_crops

    ran = []

    def binary(name, *flags):
        ran.append(name)
        done = binaries.run(name, *flags)
        assert done.returncode == 0, done.stderr

    def run(out, *flags):
        ran.clear()
        given = [f"--out={out}", "--seeds=0", "--epochs=2", f"--source={few_crops}"]
        given += [f"--config={tmp_path / 'config.py'}", *flags]
        monkeypatch.setattr(sys, "argv", ["real_crops", *given])
        with threadpool_limits(limits=1):
            real_crops.main()
        return capsys.readouterr().out, list(ran)

    (tmp_path / "config.py").write_text(CONFIG)
    monkeypatch.setattr(real_crops, "binary", binary)
    monkeypatch.setattr(crop_scores, "PERMUTATIONS", 20)
    monkeypatch.setattr(crop_scores, "CORRECTIONS", ("none", "controls", "plates"))
    for module in (real_crops, crop_scores):
        monkeypatch.setattr(module, "TOLD", ("none", "plates"))
    return run


@pytest.mark.slow
def test_the_driver_goes_from_crops_to_tables(drive, tmp_path):
    """A tiny network, two epochs, some of the real crops; then nothing is done twice."""
    out = tmp_path / "out"
    printed, ran = drive(out)
    assert ran == ["build", "main", "embed"]
    check_scores(json.loads((out / "scores.json").read_text()))
    assert printed.count("\n| intensity |") == 3
    assert "seed0: validation loss" in printed
    assert json.loads((out / "settings.json").read_text())["epochs"] == 2
    assert drive(out) == (printed, [])
    with pytest.raises(SystemExit, match="epochs: 2 there, 3 here"):
        drive(out, "--epochs=3")


def check_scores(found):
    """Of all kinds of features, in range, and of as many wells and sites as there are."""
    assert list(found) == ["trained", "untrained", "intensity", "pixels"]
    for (scores,) in found.values():
        retrieved = ("all, wells", "all, sites", "doses, wells", "doses, sites")
        assert [scores[what]["asked"] for what in retrieved] == [14, 50, 8, 26]
        values = [v for s in scores.values() for k, v in s.items() if k not in ("asked", "correct")]
        assert np.isfinite(values).all()
        assert min(values) >= 0
        assert max(values) <= 1
        assert "doses, wells, plates" not in scores
    # By intensities alone, as is known of these crops.
    assert found["intensity"][0]["DMSO or not"]["auc"] > 0.97
