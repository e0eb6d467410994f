"""Scores images of single cells from a folder of PNGs, only with the binaries."""

import json

import imagecodecs
import numpy as np
import pandas as pd
import pytest
from support.binaries import run

SIDE = 24
IMAGES = 36
# Radius and brightness of the disc that represents a cell of each class.
CLASSES = {"large": (9, 120), "small": (4, 120), "dim": (9, 40)}
SETTINGS = (
    "--config.dataset=single_cells/all",
    f"--config.image_size={SIDE}",
    "--config.minibatch_size=32",
    "--config.epochs=2",
    "--config.model.cnn.widths=(8,8)",
    "--config.model.head.width=16",
)
CONFIG = """
from configs.simclr_demo import get_config as demo

def get_config():
    config = demo()
    del config.views.elastic  # its unrolled sums take longest to compile
    return config
"""


def succeed(binary, *flags):
    done = run(binary, *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_images(folder):
    """Discs on a noisy background, three channels, a subfolder for each class."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for name, (radius, level) in CLASSES.items():
        (folder / name).mkdir(parents=True)
        for number in range(IMAGES):
            row, column = SIDE / 2 + rng.normal(size=2)
            disc = np.hypot(rows - row, columns - column) < radius * rng.uniform(0.9, 1.1)
            image = 30 + level * disc[:, :, None] + rng.normal(0, 6, (SIDE, SIDE, 3))
            pixels = np.clip(image, 0, 255).astype(np.uint8)
            (folder / name / f"{number}.png").write_bytes(imagecodecs.png_encode(pixels))


@pytest.mark.slow
def test_labels_of_subfolders_are_scored(tmp_path):
    images, data_dir, workdir = (tmp_path / name for name in ("images", "data", "work"))
    write_images(images)
    succeed(
        "build", "--source=folder", f"--input={images}", f"--data_dir={data_dir}",
        f"--crop_size={SIDE}", "--workers=1",
    )  # fmt: skip
    config = tmp_path / "own.py"
    config.write_text(CONFIG)
    succeed(
        "main", f"--config={config}", *SETTINGS, f"--workdir={workdir}",
        f"--config.data_dir={data_dir}",
    )  # fmt: skip
    printed = succeed("eval", f"--workdir={workdir}")
    out = next((workdir / "eval").iterdir())
    metrics = json.loads((out / "metrics.json").read_text())
    cells = metrics["cells"]
    assert not {"scores", "protocol"} & set(metrics)
    assert cells["classes"] == dict.fromkeys(sorted(CLASSES), IMAGES)
    assert (cells["label_column"], cells["grouped_by"], cells["folds"]) == ("label", None, 5)
    assert cells["chance"] == pytest.approx(1 / 3)
    scores = {name: entry["logistic"] for name, entry in cells["scores"].items()}
    assert set(scores) == {"trained", "untrained", "intensity", "pixels"}
    assert scores["intensity"]["balanced_accuracy"] > 0.9
    assert scores["trained"]["balanced_accuracy"] > 0.5
    assert all(name in printed for name in scores)
    table = pd.read_parquet(out / "cells.parquet")
    assert len(table) == 3 * IMAGES
    assert sorted(set(table["Metadata_Label"])) == sorted(CLASSES)
    assert "cellclr_0000" in table
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Classes of cells" in page
    assert f"{100 * scores['trained']['balanced_accuracy']:.1f} %" in page
