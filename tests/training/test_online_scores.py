"""Scores during training equal those of the evaluation, on a fixed subset of the cells."""

from dataclasses import replace

import jax
import numpy as np
import pandas as pd
import pytest
from support.tiny_run import get_config

from cellclr_jax import devices
from cellclr_jax.encoder import apply
from cellclr_jax.profiling import evaluation, profiles
from cellclr_jax.profiling.feature_columns import own_features
from cellclr_jax.training import online_scores
from cellclr_jax.training.setup import make_experiment


@pytest.fixture(scope="module")
def mesh():
    return devices.make_mesh(2)


@pytest.fixture(scope="module")
def experiment(data_dir):
    config = get_config()
    config.data_dir = str(data_dir)
    return make_experiment(config)


@pytest.fixture(scope="module")
def weights(experiment, mesh):
    """Variables of an untrained encoder, on every device."""
    everywhere = devices.replicated(mesh)
    key = jax.jit(lambda: jax.random.key(3), out_shardings=everywhere)()
    return jax.jit(experiment.encoder.init_variables, out_shardings=everywhere)(key)


@pytest.fixture
def online_score(experiment, mesh):
    """Makes an OnlineScore, optionally with another table of the cells."""

    def make(table=None, mesh=mesh, every=2, cells=4000):
        config = experiment.config.copy_and_resolve_references()
        config.online.update(every_epochs=every, cells=cells)
        encoder = experiment.encoder
        if table is not None:
            encoder = replace(encoder, cells=replace(encoder.cells, table=table))
        return online_scores.OnlineScore(replace(experiment, config=config, encoder=encoder), mesh)

    return make


def answering(score, features):
    """Replaces the embeddings by features [N, D] of all cells of the dataset."""
    score._features = lambda variables: features[score._rows]
    return score


def plate(*, compounds=12, controls=8, cells=10):
    """A table of cells: two wells of each compound, in one of two batches."""
    wells = controls + 2 * compounds
    number = np.arange(wells) - controls  # number of a well, negative for controls
    per_well = pd.DataFrame(
        {
            "well": [f"w{i:03d}" for i in range(wells)],
            "batch": np.where(number < 0, number % 2, number // 4 % 2).astype(str),
            "compound": np.where(number < 0, "DMSO", [f"c{i // 2}" for i in number]),
            "concentration": 1.0,
            "moa": [f"moa {i // 2 % 2}" for i in number],
        }
    )
    per_well["plate"] = per_well["batch"] + "_" + (number % 2).astype(str)
    table = per_well.loc[np.repeat(np.arange(wells), cells)].reset_index(drop=True)
    return table.assign(cell_id=[f"cell {i}" for i in range(len(table))])


def test_all_cells_give_the_scores_of_the_evaluation(experiment, mesh, weights, online_score):
    found = online_score(cells=10**6).score(weights)
    sites = apply.site_profiles(experiment.encoder, mesh, {"trained": weights})["trained"]
    features = own_features(sites)
    wells = profiles.aggregate_wells(sites, features=features)
    protocol = evaluation.Protocol(standardize="controls")
    scores = evaluation.evaluate(wells, protocol, features=features).scores
    for correction, ending in (("none", ""), ("whitening", "_whitening"), ("tvn", "_tvn")):
        assert found[f"nsc{ending}"] == scores[correction].nsc.accuracy
        assert found[f"nscb{ending}"] == scores[correction].nscb.accuracy
    assert 0 <= found["knn_moa"] <= 1


def test_scores_are_reproducible_without_implicit_transfers(online_score, weights):
    scores = online_score(cells=100)
    with jax.transfer_guard("disallow"):  # as in the training loop
        assert scores.score(weights) == scores.score(weights)


def test_any_number_of_devices_embeds_the_same(weights, online_score):
    embedded = []
    for mesh in (devices.make_mesh(1), devices.make_mesh(8)):
        everywhere = jax.device_put(jax.device_get(weights), devices.replicated(mesh))
        embedded.append(online_score(mesh=mesh, cells=100)._features(everywhere))
    assert len(embedded[0]) == 100
    np.testing.assert_allclose(embedded[0], embedded[1], rtol=1e-4, atol=1e-5)


def test_scores_are_due_every_n_epochs_and_at_the_end(experiment, online_score):
    last = experiment.config.epochs
    due = [epoch for epoch in range(1, last + 1) if online_score(every=2).due(epoch)]
    assert due == sorted({*range(2, last + 1, 2), last})
    assert not online_score(every=0).due(last)


def test_good_features_score_well_and_bad_ones_do_not(online_score):
    table = plate()
    moas = np.where(table["compound"] == "DMSO", "", table["moa"])
    rng = np.random.default_rng(0)
    good = np.stack([moas == name for name in ("moa 0", "moa 1", "")], axis=1).astype(np.float32)
    good += 0.01 * rng.normal(size=good.shape).astype(np.float32)
    scores = answering(online_score(table), good)
    found = scores.score({})
    assert found["nsc"] == found["nscb"] == found["knn_moa"] == 1
    noise = rng.normal(size=good.shape).astype(np.float32)
    assert answering(scores, noise).score({})["knn_moa"] < 0.7


def test_features_of_the_plate_do_not_score(online_score):
    """Features that identify only the plate, in which almost all cells have the same label."""
    table = plate()
    plates = np.unique(table["plate"], return_inverse=True)[1]
    odd = np.arange(len(table)) % 5 == 0
    table["label"] = np.where((plates % 2 == 1) ^ odd, "big", "small")
    features = np.eye(4, dtype=np.float32)[plates]
    found = answering(online_score(table), features).score({})
    assert "knn_moa" not in found
    assert found["knn_label"] <= 0.6


def test_cells_without_treatments_are_scored_by_their_labels(experiment, online_score, capsys):
    table = experiment.encoder.cells.table
    labels = np.where(np.arange(len(table)) % 3, "big", "small")
    table = pd.DataFrame({"cell_id": table["cell_id"], "label": labels})
    scores = online_score(table, cells=150)
    noise = np.random.default_rng(0).normal(size=(len(table), 3))
    features = noise + 3 * (labels == "big")[:, None]
    assert len(scores._rows) == 150
    found = answering(scores, features).score({})
    assert list(found) == ["knn_label"]
    assert found["knn_label"] > 0.7
    assert capsys.readouterr().err == ""


def test_without_labels_and_treatments_there_is_no_score(experiment, online_score, capsys):
    scores = online_score(experiment.encoder.cells.table[["cell_id"]])
    assert not any(scores.due(epoch) for epoch in range(10))
    assert "neither labels nor treatments" in capsys.readouterr().err


def test_an_undefined_score_is_left_out_and_noted_once(online_score, capsys):
    table = plate().assign(batch="Week1")
    features = np.random.default_rng(0).normal(size=(len(table), 3)).astype(np.float32)
    scores = answering(online_score(table), features)
    found = scores.score({})
    assert "nsc" in found
    assert not {name for name in found if name.startswith("nscb")}
    assert scores.score({}) == found
    assert capsys.readouterr().err.count("no online nscb: all treatments lie in one batch") == 1


def test_a_score_that_fails_does_not_end_the_training(online_score, capsys):
    table = plate()
    features = np.full((len(table), 3), np.nan, np.float32)
    assert answering(online_score(table), features).score({}) == {}
    assert "NaN" in capsys.readouterr().err


def test_the_subset_fits_into_memory(experiment, online_score, monkeypatch, capsys):
    height, width, channels = experiment.encoder.cells.image_shape
    monkeypatch.setattr(online_scores, "_MOST_BYTES", 50 * 2 * height * width * channels)
    assert len(online_score()._rows) == 50
    assert "50 fill" in capsys.readouterr().err


def test_cells_are_spread_evenly_over_wells():
    table = plate(compounds=6, controls=8, cells=7)
    table = table.drop(index=table.index[table["well"] == "w003"][2:])  # two cells remain
    table.loc[table["well"].isin(["w010", "w011"]), "moa"] = ""  # not scored
    table.loc[table.index[-1], "well"] = ""  # a cell without a well
    table = table.reset_index(drop=True)
    rows = online_scores.spread_over_wells(table, 60, control="dmso")
    assert len(rows) == 60
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, online_scores.spread_over_wells(table, 60, control="DMSO"))
    counts = table.iloc[rows].groupby("well").size()
    assert counts.pop("w003") == 2
    assert set(counts.index) == {f"w{i:03d}" for i in range(20)} - {"w003", "w010", "w011"}
    assert set(counts) == {3, 4}
    everything = online_scores.spread_over_wells(table, 10**6, control="DMSO")
    assert len(everything) == 7 * 17 + 2 - 1


def test_with_many_wells_each_treatment_gives_one_cell_first():
    table = plate(compounds=10, controls=40, cells=3)
    drawn = table.iloc[online_scores.spread_over_wells(table, 12, control="DMSO")]
    # Ten compounds, and the controls of two batches.
    assert len(drawn[["compound", "batch"]].drop_duplicates()) == 12
