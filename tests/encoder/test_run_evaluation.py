"""Evaluation of a run: every cell is embedded once, whatever its minibatch; files and messages."""

import json
import shutil

import jax
import numpy as np
import pandas as pd
import pytest
from etils import epath
from support import tiny_run
from support.tiny_dataset import CELLS, name_channels, random_images, write_dataset

from cellclr_jax import devices
from cellclr_jax import eval as eval_binary
from cellclr_jax.data import dataset, minibatches
from cellclr_jax.encoder import apply, evaluate_run
from cellclr_jax.encoder.baselines import intensity_statistics
from cellclr_jax.encoder.load import make_cell_encoder
from cellclr_jax.encoder.preprocessing import normalized
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.profiling import report
from cellclr_jax.profiling.protocol import Options, Protocol
from cellclr_jax.profiling.report import figures
from cellclr_jax.run_folder import describe_dataset, write_config
from cellclr_jax.training.checkpoints import Checkpoints

STEP = 7


def treatments_of(count):
    """Columns of a dataset of two plates with controls and four compounds of two mechanisms."""
    well = np.arange(count) % 10
    compound = np.array(["DMSO", "DMSO", "a", "b", "c", "d", "a", "b", "c", "d"])[well]
    moas = {"DMSO": "DMSO", "a": "m", "b": "m", "c": "n", "d": "n"}
    return {
        "plate": np.where(np.arange(count) % 2, "P1", "P2"),
        "well": [f"B{number:02d}" for number in well],
        "site": np.ones(count, np.int32),
        "batch": np.where(np.arange(count) % 2, "W1", "W2"),
        "compound": compound,
        "concentration": np.where(compound == "DMSO", 0.0, 1.0),
        "moa": [moas[name] for name in compound],
    }


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A data folder with plates, wells and treatments."""
    folder = tmp_path_factory.mktemp("plates")
    name_channels(write_dataset(folder, random_images(), columns=treatments_of(CELLS)))
    return folder


@pytest.fixture
def config(data_dir):
    config = tiny_run.get_config()
    config.update(data_dir=str(data_dir), dataset="single_cells/all", image_size=12)
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Writes a run without training for each data folder; (folder, encoder, variables)."""
    made = {}

    def run(config):
        if config.data_dir not in made:
            folder, encoding = tmp_path_factory.mktemp("run"), make_cell_encoder(config)
            variables = jax.jit(encoding.init_variables)(jax.random.key(config.seed + 1))
            write_config(config, epath.Path(folder))
            with Checkpoints(folder / "checkpoints") as checkpoints:
                checkpoints.save(STEP, dict(variables), describe_dataset(encoding.cells))
            made[config.data_dir] = folder, encoding, variables
        return made[config.data_dir]

    return run


@pytest.fixture
def trained(config, runs):
    return runs(config)


@pytest.fixture(scope="module")
def own_images(tmp_path_factory):
    """A data folder with two-channel images and no metadata."""
    folder = tmp_path_factory.mktemp("own")
    images = random_images(np.uint8, channels=2)
    images[::3] //= 4  # every third cell is darker
    name_channels(write_dataset(folder, images), ["dna", "actin"])
    return folder


def own(config, data_dir):
    """A run on images without metadata."""
    config.data_dir = str(data_dir)
    return config


def changed(data_dir, out, change):
    """Copies a data folder and changes its table of cells."""
    shutil.copytree(data_dir, out)
    path = next(out.rglob("cells.parquet"))
    change(pd.read_parquet(path)).to_parquet(path)
    return out


def evaluated(workdir, data_dir, out, **settings):
    """Evaluates on another data folder without the slow figures and report; the metrics."""
    few = {"protocol": Protocol(), "options": Options(measures=())}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "place", lambda *args, **kwargs: {})
        patch.setattr(figures, "draw", lambda *args: iter(()))
        patch.setattr(report, "render_report", lambda *args, **kwargs: "not drawn")
        evaluate_run.evaluate_run(workdir, data_dir=data_dir, out=out, **(few | settings))
    return json.loads((out / "metrics.json").read_text())


def test_every_cell_is_embedded_once_whatever_the_minibatch(trained, monkeypatch):
    _, experiment, variables = trained
    mesh = devices.make_mesh()
    tables = []
    for size in (24, 56):
        monkeypatch.setattr(apply, "MINIBATCH", size)
        tables.append(apply.site_profiles(experiment, mesh, {"trained": variables})["trained"])
    cells = len(experiment.cells.table)
    assert cells % 24
    assert [table["Metadata_CellCount"].sum() for table in tables] == [cells, cells]
    features = [c for c in tables[0] if c.startswith("cellclr_")]
    assert len(features) == 8
    np.testing.assert_allclose(tables[0][features], tables[1][features], rtol=1e-4, atol=1e-5)


def test_site_profiles_are_means_of_single_embeddings(trained):
    _, experiment, weights = trained
    table = apply.site_profiles(experiment, devices.make_mesh(), {"trained": weights})["trained"]
    row = table.iloc[7]
    cells = experiment.cells.table
    here = (cells["plate"] == row["Metadata_Plate"]) & (cells["well"] == row["Metadata_Well"])
    members = np.flatnonzero(here & (cells["site"] == row["Metadata_Site"]))
    assert row["Metadata_CellCount"] == len(members)
    assert row["Metadata_Compound"] == cells["compound"][members[0]]
    mesh = devices.make_mesh(1)
    function = apply.compile_embedding(experiment, mesh)
    variables = {"trained": jax.device_put(weights, devices.replicated(mesh))}
    single = [
        function(variables, devices.to_global(mesh, experiment.cells.read(np.array([m]))))
        for m in members
    ]
    mean = np.mean([np.asarray(s["trained"][0]) for s in single], axis=0)
    features = [c for c in table if c.startswith("cellclr_")]
    np.testing.assert_allclose(row[features].to_numpy(float), mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_intensity_statistics_equal_numpy(dtype):
    most = np.iinfo(dtype).max
    images = np.random.default_rng(0).integers(0, most + 1, (3, 9, 9, 2)).astype(dtype)
    got = np.asarray(intensity_statistics(images))
    assert got.shape == (3, 14)
    for i in range(3):
        for c in range(2):
            x = images[i, :, :, c].astype(float)
            percentiles = np.percentile(x, (1, 25, 50, 75, 99), method="inverted_cdf")
            want = [x.mean(), x.std(), *percentiles]
            np.testing.assert_allclose(got[i, c::2], want, rtol=1e-5)


def test_cells_without_metadata_are_embedded_and_not_scored(
    config, own_images, runs, capsys, tmp_path
):
    workdir, experiment, weights = runs(own(config, own_images))
    metrics = evaluated(workdir, own_images, tmp_path)
    assert "nothing to score" in metrics["cells"]["undefined"]
    assert not {"scores", "protocol"} & set(metrics)
    assert metrics["run"]["channels"] == ["dna", "actin"]
    assert "nothing to score" in capsys.readouterr().out
    table = pd.read_parquet(tmp_path / "cells.parquet")
    assert table["Metadata_CellId"].tolist() == experiment.cells.table["cell_id"].tolist()
    mesh = devices.make_mesh(1)
    function = apply.compile_embedding(experiment, mesh)
    variables = {"trained": jax.device_put(weights, devices.replicated(mesh))}
    one = function(variables, devices.to_global(mesh, experiment.cells.read(np.array([11]))))
    features = [column for column in table if column.startswith("cellclr_")]
    np.testing.assert_allclose(table[features].loc[11], one["trained"][0], rtol=1e-3, atol=1e-4)


def test_cells_with_labels_are_scored_and_another_label_is_refused_before_embedding(
    config, own_images, runs, tmp_path, monkeypatch
):
    workdir, _, _ = runs(own(config, own_images))
    labels = np.where(np.arange(CELLS) % 3, "bright", "dark")
    names = {"label": labels, "moa": np.resize(["x", "y", "x"], CELLS)}
    data_dir = changed(own_images, tmp_path / "data", lambda table: table.assign(**names))
    metrics = evaluated(workdir, data_dir, tmp_path / "out")
    cells = metrics["cells"]
    assert (cells["label_column"], cells["grouped_by"], cells["folds"]) == ("label", None, 5)
    assert cells["classes"] == {"bright": 38, "dark": 19}
    assert set(cells["scores"]) == {"trained", "untrained", "intensity", "pixels"}
    assert cells["scores"]["intensity"]["logistic"]["balanced_accuracy"] == 1.0
    monkeypatch.setattr(evaluate_run, "visit", None)  # would be called
    with pytest.raises(BadUse, match="label_column: was 'label', now 'moa'"):
        evaluated(workdir, data_dir, tmp_path / "out", options=Options((), label="moa"))


def test_labels_are_scored_beside_treatments(trained, data_dir, tmp_path):
    labelled = changed(data_dir, tmp_path / "data", lambda t: t.assign(label=t["moa"]))
    metrics = evaluated(trained[0], labelled, tmp_path / "out")
    assert metrics["scores"]["none"]["nsc"]["total"] == 4
    assert metrics["cells"]["label_column"] == "label"
    assert metrics["cells"]["grouped_by"] == "plate"
    assert {"wells.parquet", "cells.parquet"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }


def test_treatments_without_batch_and_concentration_have_no_score_between_batches(
    trained, data_dir, tmp_path
):
    bare = changed(
        data_dir,
        tmp_path / "data",
        lambda table: table.drop(columns=["batch", "concentration", "site"]),
    )
    metrics = evaluated(trained[0], bare, tmp_path / "out")
    scores = metrics["scores"]
    assert scores["none"]["nsc"]["total"] == 4
    assert scores["none"]["nscb"]["undefined"] == "no batch is known"
    assert scores["none"]["drop"] is None
    assert scores["tvn"]["nsc"]["undefined"] == "no batch is known"
    treatments = pd.read_parquet(tmp_path / "out" / "treatments.parquet")
    assert treatments["Metadata_Concentration"].isna().all()
    assert "cells" not in metrics


def test_channels_are_compared_before_anything_is_restored(config, own_images, runs, tmp_path):
    workdir, _, _ = runs(own(config, own_images))
    for number, channels in enumerate((["actin", "dna"], ["dna", "tubulin"])):
        data_dir = shutil.copytree(own_images, tmp_path / str(number))
        name_channels(data_dir / "single_cells" / "all" / "1.0.0", channels)
        with pytest.raises(BadUse, match=r"channels dna, actin .* has " + ", ".join(channels)):
            evaluated(workdir, data_dir, tmp_path / "out")
    name_channels(write_dataset(tmp_path / "three", random_images()), ["dna", "actin", "er"])
    with pytest.raises(BadUse, match=r"dna, actin, er: .*--channels=dna,actin"):
        evaluated(workdir, tmp_path / "three", tmp_path / "out")
    # Wider pixels of the same channels are welcome.
    name_channels(write_dataset(tmp_path / "wide", random_images(channels=2)), ["dna", "actin"])
    evaluated(workdir, tmp_path / "wide", tmp_path / "out")


def test_a_run_is_scored_beside_its_baselines(trained, capsys):
    workdir, experiment, _ = trained
    evaluate_run.evaluate_run(workdir, protocol=Protocol())
    out = workdir / "eval" / str(STEP)
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["scores"]) == {"none", "whitening", "tvn"}
    assert set(metrics["baselines"]) == {"untrained", "intensity", "pixels", "cell_count"}
    assert metrics["scores"]["none"]["nsc"]["total"] == 4
    assert metrics["protocol"]["regularization"] == 1.0
    assert set(metrics["baseline_protocols"]) == {"intensity", "cell_count"}
    wells = pd.read_parquet(out / "wells.parquet")
    assert wells["Metadata_CellCount"].sum() == len(experiment.cells.table)
    assert "cellclr_0000" in wells
    assert {"treatments.parquet", "report.html"} <= {p.name for p in out.iterdir()}
    assert len(list(out.glob("*.png"))) >= 2
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("trained", "untrained", "intensity"))


def test_a_run_without_its_dataset_says_how_to_build_it(trained, tmp_path):
    with pytest.raises(BadUse, match=r"cellclr_jax\.build"):
        evaluate_run.evaluate_run(trained[0], data_dir=tmp_path, protocol=Protocol())


def test_percentile_normalisation_follows_the_plate(config):
    config.normalization.method = "percentile"
    experiment = make_cell_encoder(config)
    minibatch = experiment.cells.read(np.arange(4))
    assert {"image", "low", "high"} <= minibatch.keys()
    images = normalized(minibatch, experiment.preprocessing)
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    assert isinstance(experiment.cells, minibatches.Cells)


def test_a_well_with_two_compounds_is_reported_before_embedding(
    trained, data_dir, tmp_path, monkeypatch
):
    named = {}

    def mix(table):
        row = table.index[table["compound"] != "DMSO"][0]
        named.update(table.loc[row, ["plate", "well", "compound"]])
        return table.assign(compound=table["compound"].where(table.index != row, "other"))

    mixed = changed(data_dir, tmp_path / "data", mix)
    monkeypatch.setattr(evaluate_run, "visit", None)  # would be called
    with pytest.raises(BadData) as error:
        evaluated(trained[0], mixed, tmp_path / "out")
    words = (f"plate {named['plate']}, well {named['well']} ", repr(named["compound"]), "'other'")
    assert all(word in str(error.value) for word in words)


def test_a_dataset_that_replaced_the_runs_is_named(trained, tmp_path):
    workdir, experiment, _ = trained
    other = shutil.copytree(workdir, tmp_path / "run")
    progress = other / "checkpoints" / str(STEP) / "progress" / "metadata"
    progress.write_text(json.dumps({**json.loads(progress.read_text()), "dataset": "00"}))
    with pytest.raises(BadUse, match=f"{experiment.cells.directory} is not what .*--out=DIR"):
        evaluate_run.evaluate_run(other, protocol=Protocol())


def test_images_are_read_by_the_requested_access(config, own_images, runs, tmp_path):
    workdir, _, _ = runs(own(config, own_images))
    run = shutil.copytree(workdir, tmp_path / "run")
    settings = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(settings | {"data_access": "tape"}))
    data_dir = shutil.copytree(own_images, tmp_path / "data")
    wanted = evaluated(run, data_dir, tmp_path / "shards")
    assert not list(data_dir.rglob("images-*.npy"))
    assert evaluated(run, data_dir, tmp_path / "mapped", data_access="mapped") == wanted
    assert len(list(data_dir.rglob("images-*.npy"))) == 1
    with pytest.raises(BadUse, match="data access 'memory': one of shards, mapped"):
        evaluated(run, data_dir, tmp_path / "memory", data_access="memory")


def test_the_flag_offers_each_access():
    assert tuple(eval_binary.FLAGS["data_access"].parser.enum_values) == dataset.ACCESS


def test_baselines_that_are_the_same_in_all_wells_are_left_out(config, own_images, runs, tmp_path):
    workdir, _, _ = runs(own(config, own_images))
    black = np.zeros((CELLS, 12, 12, 2), np.uint8)
    name_channels(
        write_dataset(tmp_path / "data", black, columns=treatments_of(CELLS)), ["dna", "actin"]
    )
    metrics = evaluated(workdir, tmp_path / "data", tmp_path / "out")
    assert metrics["scores"]["none"]["nsc"]["total"] == 4
    assert set(metrics["baselines"]) == {"cell_count"}
    for name in ("untrained", "intensity", "pixels"):
        wanted = f"the baseline {name} is left out: all wells have the same features"
        assert wanted in metrics["notes"]
