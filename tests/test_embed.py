"""Evaluation of a run: every cell embedded once, alike in any minibatch, and the promised files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

from cellclr_jax import embed, sharding, train
from cellclr_jax.cli import BadUse
from cellclr_jax.data import pipeline
from cellclr_jax.experiment import make_experiment
from cellclr_jax.profiling.evaluation import Protocol

ROOT = Path(__file__).parents[1]


@pytest.fixture
def trained(config, tmp_path):
    state = train.train(config, tmp_path / "run")
    return tmp_path / "run", make_experiment(config), state


def test_every_cell_is_embedded_once_whatever_the_minibatch(trained, monkeypatch):
    _, experiment, state = trained
    mesh = sharding.make_mesh()
    tables = []
    for size in (24, 56):
        monkeypatch.setattr(embed, "MINIBATCH", size)
        tables.append(
            embed.site_profiles(experiment, mesh, {"trained": state.variables})["trained"]
        )
    cells = len(experiment.cells.table)
    assert cells % 24
    assert [table["Metadata_CellCount"].sum() for table in tables] == [cells, cells]
    features = [c for c in tables[0] if c.startswith("cellclr_")]
    assert len(features) == 8
    np.testing.assert_allclose(tables[0][features], tables[1][features], rtol=1e-4, atol=1e-5)


def test_site_profiles_are_means_of_single_embeddings(trained):
    _, experiment, state = trained
    table = embed.site_profiles(experiment, sharding.make_mesh(), {"trained": state.variables})[
        "trained"
    ]
    row = table.iloc[7]
    cells = experiment.cells.table
    here = (cells["plate"] == row["Metadata_Plate"]) & (cells["well"] == row["Metadata_Well"])
    members = np.flatnonzero(here & (cells["site"] == row["Metadata_Site"]))
    assert row["Metadata_CellCount"] == len(members)
    assert row["Metadata_Compound"] == cells["compound"][members[0]]
    mesh = sharding.make_mesh(1)
    function = embed.compile_embedding(experiment, mesh)
    variables = {"trained": jax.device_put(state.variables, sharding.replicated(mesh))}
    single = [
        function(variables, sharding.to_global(mesh, experiment.cells.read(np.array([m]))))
        for m in members
    ]
    mean = np.mean([np.asarray(s["trained"][0]) for s in single], axis=0)
    features = [c for c in table if c.startswith("cellclr_")]
    np.testing.assert_allclose(row[features].to_numpy(float), mean, rtol=1e-4, atol=1e-5)


def test_intensity_statistics_equal_numpy():
    images = np.random.default_rng(0).integers(0, 65_536, (3, 9, 9, 2)).astype(np.uint16)
    got = np.asarray(embed.intensity_statistics(images))
    assert got.shape == (3, 14)
    for i in range(3):
        for c in range(2):
            x = images[i, :, :, c].astype(float)
            percentiles = np.percentile(x, (1, 25, 50, 75, 99), method="inverted_cdf")
            want = [x.mean(), x.std(), *percentiles]
            np.testing.assert_allclose(got[i, c::2], want, rtol=1e-5)


def test_a_run_is_scored_beside_its_baselines(trained, capsys):
    workdir, experiment, state = trained
    embed.evaluate_run(workdir, protocol=Protocol())
    out = workdir / "eval" / str(int(state.step))
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["scores"]) == {"none", "whitening", "tvn"}
    assert set(metrics["baselines"]) == {"untrained", "intensity"}
    assert metrics["scores"]["none"]["nsc"]["total"] > 20
    assert metrics["protocol"]["regularization"] == 1.0
    assert set(metrics["baseline_protocols"]) == {"intensity"}
    wells = pd.read_parquet(out / "wells.parquet")
    assert wells["Metadata_CellCount"].sum() == len(experiment.cells.table)
    assert "cellclr_0000" in wells
    assert {"treatments.parquet", "report.html"} <= {p.name for p in out.iterdir()}
    assert len(list(out.glob("*.png"))) >= 2
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("trained", "untrained", "intensity"))


def test_the_binary_names_what_is_missing(trained, tmp_path):
    workdir, _, state = trained

    def run(*flags):
        return subprocess.run(
            [sys.executable, "-m", "cellclr_jax.eval", *flags],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )

    missing = run(f"--workdir={workdir}", "--step=7777")
    assert missing.returncode == 2
    assert "there are" in missing.stderr
    assert str(int(state.step)) in missing.stderr
    nothing = run(f"--workdir={tmp_path / 'nowhere'}")
    assert nothing.returncode == 2
    assert "no run in" in nothing.stderr
    assert "Traceback" not in missing.stderr + nothing.stderr


def test_a_run_without_its_dataset_says_how_to_build_it(trained, tmp_path):
    with pytest.raises(BadUse, match=r"cellclr_jax\.build"):
        embed.evaluate_run(trained[0], data_dir=tmp_path, protocol=Protocol())


def test_percentile_normalisation_follows_the_plate(config):
    config.normalization.method = "percentile"
    experiment = make_experiment(config)
    minibatch = experiment.cells.read(np.arange(4))
    assert {"image", "low", "high"} <= minibatch.keys()
    images = experiment.images(minibatch)
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    assert isinstance(experiment.cells, pipeline.Cells)
