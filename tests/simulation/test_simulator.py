"""The simulated release: files, ground truth, reproducibility, resumption."""

import csv
import fcntl
import hashlib
import json
import shutil
from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from cellclr_jax.data.sources import open_source
from cellclr_jax.data.sources.source import Request
from cellclr_jax.errors import BadUse
from cellclr_jax.simulation import release as release_files
from cellclr_jax.simulation import simulate_release
from cellclr_jax.simulation.phenotypes import MOA_PHENOTYPES
from cellclr_jax.simulation.plate_layout import SimulatorSettings, plate_wells

IMAGE_COLUMNS = (
    "TableNumber,ImageNumber,Image_FileName_DAPI,Image_PathName_DAPI,Image_FileName_Tubulin,"
    "Image_PathName_Tubulin,Image_FileName_Actin,Image_PathName_Actin,Image_Metadata_Plate_DAPI,"
    "Image_Metadata_Well_DAPI,Replicate,Image_Metadata_Compound,Image_Metadata_Concentration"
)
SMALL = SimulatorSettings(weeks=2, plates_per_week=1, doses=1, dmso_wells=2, height=160, width=192)


def digest(folder: Path) -> dict[str, str]:
    """The hash of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated") / "release"
    cells = simulate_release(folder, SMALL, workers=1, progress=False)
    assert json.loads((folder / "simulation.json").read_text())["cells"] == cells > 0
    return folder


def rows_of(release: Path) -> list[dict[str, str]]:
    with (release / "BBBC021_v1_image.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_layout_and_columns_are_those_of_bbbc021(release: Path) -> None:
    header = (release / "BBBC021_v1_image.csv").read_text().splitlines()[0]
    assert header == IMAGE_COLUMNS
    rows = rows_of(release)
    assert len(rows) == 28
    for row in rows:
        for channel, code in (("DAPI", "w1"), ("Tubulin", "w2"), ("Actin", "w4")):
            name, folder = row[f"Image_FileName_{channel}"], row[f"Image_PathName_{channel}"]
            assert name.startswith(f"{row['Image_Metadata_Well_DAPI']}_s1_{code}")
            assert folder == f"{folder.split('/')[0]}/{row['Image_Metadata_Plate_DAPI']}"
            image = tifffile.imread(release / folder / name)
            assert image.shape == (160, 192)
            assert image.dtype == np.uint16
    names = [row[f"Image_FileName_{c}"] for row in rows for c in ("DAPI", "Tubulin", "Actin")]
    assert len(set(names)) == len(names)


def test_every_row_has_a_mechanism_and_every_plate_dmso(release: Path) -> None:
    with (release / "BBBC021_v1_moa.csv").open(newline="") as file:
        moa = {(r["compound"], float(r["concentration"])): r["moa"] for r in csv.DictReader(file)}
    assert set(moa.values()) == {"DMSO", *MOA_PHENOTYPES}
    dmso = defaultdict(int)
    for row in rows_of(release):
        key = row["Image_Metadata_Compound"], float(row["Image_Metadata_Concentration"])
        assert key in moa
        dmso[row["Image_Metadata_Plate_DAPI"]] += key == ("DMSO", 0.0)
    assert dict(dmso) == {"Week1_90001": 2, "Week2_90002": 2}


def test_a_field_depends_only_on_the_seed_not_on_other_fields(
    release: Path, tmp_path: Path
) -> None:
    for well in plate_wells(SMALL)[::-9]:
        release_files.plate_dir(tmp_path, well).mkdir(parents=True, exist_ok=True)
        release_files.truth_path(tmp_path, well, 1).parent.mkdir(parents=True, exist_ok=True)
        release_files._paint_job(tmp_path, SMALL, (well, 1))
    painted = digest(tmp_path)
    assert len(painted) == 4 * 4
    assert painted.items() <= digest(release).items()


def test_truth_lies_on_the_painted_nuclei(release: Path) -> None:
    contrast = []
    for row in rows_of(release)[::4]:
        image = tifffile.imread(release / row["Image_PathName_DAPI"] / row["Image_FileName_DAPI"])
        name = f"{row['Image_Metadata_Well_DAPI']}_s1.npz"
        truth = np.load(release / "ground_truth" / row["Image_Metadata_Plate_DAPI"] / name)
        labels, count = truth["labels"], len(truth["x"])
        assert labels.shape == image.shape
        assert set(np.unique(labels)) == set(range(count + 1))
        at = labels[np.rint(truth["y"]).astype(int), np.rint(truth["x"]).astype(int)]
        assert at.tolist() == list(range(1, count + 1))
        assert len(truth["state"]) == len(truth["responds"]) == len(truth["in_focus"]) == count
        if count:
            contrast.append(image[labels > 0].mean() / image[labels == 0].mean())
    assert min(contrast) > 1.3


def test_finished_release_is_reused_and_other_settings_refused(release: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in release.rglob("*.*")}
    simulate_release(release, SMALL, progress=False)
    assert {path: path.stat().st_mtime_ns for path in release.rglob("*.*")} == before
    other = replace(SMALL, seed=7, weeks=3)
    with pytest.raises(BadUse, match=r"seed: was 0, now 7; settings\.weeks: was 2, now 3\. Use"):
        simulate_release(release, other, progress=False)


def test_interrupted_release_is_unfinished_and_resumes(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    painted = []

    def fails_at_third(*job: Any) -> int:
        if len(painted) == 2:
            raise KeyboardInterrupt
        painted.append(job)
        return PAINT(*job)

    with monkeypatch.context() as patch:
        patch.setattr(release_files, "_paint_job", fails_at_third)
        with pytest.raises(KeyboardInterrupt):
            simulate_release(tmp_path / "cut", SMALL, workers=1, progress=False)
    assert "cells" not in json.loads((tmp_path / "cut" / "simulation.json").read_text())
    assert not (tmp_path / "cut" / "BBBC021_v1_image.csv").exists()
    with pytest.raises(BadUse, match=r"other settings: settings\.seed: was 0, now 7"):
        simulate_release(tmp_path / "cut", replace(SMALL, seed=7), progress=False)
    simulate_release(tmp_path / "cut", SMALL, workers=1, progress=False)
    assert digest(tmp_path / "cut") == digest(release)


PAINT = release_files._paint_job


def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadUse, match="no simulated release"):
        simulate_release(tmp_path, SMALL, progress=False)


@pytest.mark.parametrize("finished", [True, False])
def test_release_of_other_settings_is_overwritten_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    place = tmp_path / "release"
    other = replace(SMALL, weeks=3, height=64, width=64, seed=5)
    monkeypatch.setattr(release_files, "_paint_job", paint_little)
    simulate_release(place, other, workers=1, progress=False)
    if not finished:
        record = json.loads((place / "simulation.json").read_text())
        del record["cells"]
        (place / "simulation.json").write_text(json.dumps(record))
    (place / "notes.txt").write_text("mine")
    simulate_release(place, SMALL, workers=1, progress=False, overwrite=True)
    assert (place / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in place.iterdir()) == [
        *(
            ".simulating",
            "BBBC021_v1_image.csv",
            "BBBC021_v1_moa.csv",
            "Week1",
            "Week2",
            "ground_truth",
        ),
        *("notes.txt", "simulation.json"),
    ]
    assert len(list(place.glob("ground_truth/*/*.npz"))) == 28


def paint_little(out_dir: Path, settings: SimulatorSettings, job: tuple) -> int:
    """Marks a field as written without painting it."""
    release_files.truth_path(out_dir, *job).write_bytes(b"")
    return 1


def test_interrupted_removal_leaves_no_field_marked_as_written(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "release"
    shutil.copytree(release, place)
    removed = []

    def remove_one(path: Path) -> None:
        if removed:
            raise KeyboardInterrupt
        removed.append(path)
        REMOVE(path)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", remove_one)
        with pytest.raises(KeyboardInterrupt):
            simulate_release(place, replace(SMALL, seed=7), progress=False, overwrite=True)
    simulate_release(place, SMALL, workers=1, progress=False)
    assert digest(place) == digest(release)


REMOVE = shutil.rmtree


def test_second_simultaneous_run_is_refused(tmp_path: Path) -> None:
    with (tmp_path / ".simulating").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BadUse, match="another process is simulating into it"):
            simulate_release(tmp_path, SMALL, progress=False)
        assert [path.name for path in tmp_path.iterdir()] == [".simulating"]


@pytest.mark.parametrize(("compression", "tag"), [(None, 5), ("lzw", 5), ("none", 1), ("zlib", 8)])
def test_fields_are_compressed_as_requested_without_loss(
    tmp_path: Path, compression: str | None, tag: int
) -> None:
    settings = (
        SimulatorSettings() if compression is None else replace(SMALL, compression=compression)
    )
    well = plate_wells(settings)[0]
    digits = np.random.default_rng(0).integers(0, 4096, (3, 64, 70)).astype(np.uint16) * 16
    release_files.plate_dir(tmp_path, well).mkdir(parents=True)
    release_files.write_field(tmp_path, settings, well, 1, digits)
    for name, layer in zip(release_files.file_names(settings, well, 1), digits, strict=True):
        with tifffile.TiffFile(release_files.plate_dir(tmp_path, well) / name) as file:
            assert file.pages[0].tags["Compression"].value == tag
            np.testing.assert_array_equal(file.asarray(), layer)


def test_overwriting_build_simulates_again(tmp_path: Path) -> None:
    sources = []
    for seed in (0, 1):
        values = asdict(replace(SMALL, height=64, width=64, seed=seed))
        options = {"simulator": [f"{name}={value}" for name, value in values.items()]}
        request = Request((tmp_path / "release",), options=options, overwrite=seed == 1)
        sources.append(open_source("simulated", request))
    before, after = ({file for field in one.fields for file in field.files} for one in sources)
    assert len(after) == len(before) == 28 * 3
    assert not before & after
