"""From plates of images to scores in five steps: the first file to read.

The commands are those of the README, on simulated plates so small that all steps together take less
than a minute. Each test is one step, and uses what the steps before it wrote.
"""

import json
import math

import pandas as pd
import pytest
from support import binaries

from cellclr_jax.profiling import Protocol, evaluate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all steps write: data/ holds the dataset, run/ the training run."""
    return tmp_path_factory.mktemp("walkthrough")


def cellclr(binary, *flags):
    """Runs `python -m cellclr_jax.<binary> <flags>` and returns what it prints."""
    done = binaries.run(binary, *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_step_1_build_a_dataset_of_single_cells(folder):
    # Draws plates of fluorescence images after BBBC021, finds the nuclei in each field, and cuts a
    # crop of 48×48 pixels around each. --source=raw does the same with the real plates.
    cellclr(
        "build", "--source=simulated", f"--data_dir={folder}/data", "--crop_size=48", "--workers=1",
        "--weeks=2", "--plates_per_week=1", "--simulator=height=300,width=360,dmso_wells=3",
    )  # fmt: skip
    # A TFDS dataset: shards of crops, and a table with one row per cell.
    dataset = folder / "data" / "bbbc021" / "annotated" / "1.0.0"
    assert list(dataset.glob("bbbc021-train.array_record-*"))
    cells = pd.read_parquet(dataset / "cells.parquet")
    assert len(cells) > 200
    assert {"plate", "well", "batch", "compound", "concentration", "moa"} <= set(cells)
    assert "DMSO" in set(cells["compound"])  # the control wells
    # A quality page to check before training: plate maps, focus, outliers, example crops.
    assert (dataset / "qc.html").exists()


def test_step_2_train_an_encoder_without_labels(folder):
    # SimCLR: two augmented views of a cell attract, those of other cells repel. Every setting of
    # the config can be changed on the command line.
    cellclr(
        "main", "--config=tests/support/tiny_run.py", f"--workdir={folder}/run",
        f"--config.data_dir={folder}/data", "--config.epochs=2",
    )  # fmt: skip
    # One line, a JSON object, per logged step.
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [row for row in map(json.loads, lines) if "loss" in row]
    assert steps[-1]["epoch"] == 2
    assert all(math.isfinite(row["loss"]) for row in steps)
    assert steps[-1]["loss"] < steps[0]["loss"]
    # The settings, and Orbax checkpoints; the same command would resume from the newest.
    assert (folder / "run" / "config.json").exists()
    assert (folder / "run" / "checkpoints").is_dir()


def test_step_3_evaluate_the_run(folder):
    # Embeds every cell, averages embeddings into well profiles, corrects them by the control wells,
    # and takes the median of each treatment's wells (a treatment is a compound at a concentration).
    printed = cellclr(
        "eval", f"--workdir={folder}/run", "--standardize=controls", "--measures=mechanisms"
    )
    assert "NSCB" in printed
    (out,) = (folder / "run" / "eval").iterdir()  # named after the checkpoint's step
    files = {path.name for path in out.iterdir()}
    assert {"metrics.json", "report.html", "wells.parquet", "treatments.parquet"} <= files
    assert {"neighbours.csv", "mechanisms.csv"} <= files
    # Profile tables have pycytominer's column names, then the features of the encoder.
    treatments = pd.read_parquet(out / "treatments.parquet")
    assert {"Metadata_Compound", "Metadata_MoA", "cellclr_0000"} <= set(treatments)


def test_step_4_read_the_scores(folder):
    (path,) = (folder / "run" / "eval").glob("*/metrics.json")
    metrics = json.loads(path.read_text())
    # Scores by correction of the profiles: none, whitening, and typical variation normalisation.
    assert set(metrics["scores"]) == {"none", "whitening", "tvn"}
    scores = metrics["scores"]["tvn"]
    # NSC: does the nearest treatment of another compound have the same mechanism of action?
    # NSCB: the nearest one of another compound in another batch, here another week.
    for name in ("nsc", "nscb"):
        score = scores[name]
        assert score["accuracy"] == score["correct"] / score["total"]
        # A 95 % interval over compounds; the score of shuffled mechanisms, and its probability to
        # be at least as good. Two epochs on some hundred cells need not be better.
        low, high = score["interval"]
        assert low <= score["accuracy"] <= high
        assert 0 < score["chance"] < 0.5
        assert 0 < score["p"] <= 1
    # The loss of accuracy across batches, in percentage points.
    assert scores["drop"] == pytest.approx(
        100 * (scores["nsc"]["accuracy"] - scores["nscb"]["accuracy"])
    )
    # The same scores of baselines.
    assert set(metrics["baselines"]) == {"untrained", "intensity", "pixels", "cell_count"}


def test_step_5_score_profiles_as_a_library(folder):
    # Scoring needs neither JAX nor a run, only a table of well profiles.
    (path,) = (folder / "run" / "eval").glob("*/wells.parquet")
    found = evaluate(pd.read_parquet(path), Protocol(standardize="controls"))
    written = json.loads((path.parent / "metrics.json").read_text())["scores"]
    for row in found.summary().itertuples():
        assert row.nsc_correct == written[row.correction]["nsc"]["correct"]
        assert row.nscb_correct == written[row.correction]["nscb"]["correct"]
