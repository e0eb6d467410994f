"""Builds: cells of all fields, resuming, extending, replacing, locally and on a cluster."""

import dataclasses
import functools
import hashlib
import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tensorflow_datasets as tfds
import tifffile
from support.tiny_release import (
    CENTERS,
    PLATES,
    WELLS,
    WIDTH,
    disc_field,
    file_name,
    write_release,
)

from cellclr_jax.data import dataset
from cellclr_jax.data.building import builder, pieces, plate_light
from cellclr_jax.data.building.extraction import CropSettings
from cellclr_jax.data.building.manifest import describe_contents
from cellclr_jax.data.building.versions import locked, swap_in
from cellclr_jax.data.sources import open_source
from cellclr_jax.data.sources.bbbc021_plates import RELEASE_COLUMNS
from cellclr_jax.data.sources.source import Request
from cellclr_jax.data.tables.bbbc021 import CHANNELS
from cellclr_jax.errors import BadData, BadUse

# The crop of the disc near a corner would extend beyond the field.
CELLS_A_FIELD, FIELDS = 4, 12
CROPS = CropSettings(32, CHANNELS, RELEASE_COLUMNS, nuclei="dna", min_area=60)
BROKEN = Path("Week1", PLATES[0], file_name("C03", 1, "w2", PLATES[0]))


@pytest.fixture
def release(tmp_path):
    return write_release(tmp_path / "release", sites=2)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    # Each plate has pieces of 4 and 2 fields.
    monkeypatch.setattr(pieces, "FIELDS_OF_A_PIECE", 4)
    monkeypatch.setattr(plate_light, "FEWEST_FIELDS", 5)


def build(
    release, data_dir, crops=CROPS, *, source=None, overwrite=False, extend=False, **settings
):
    request = {name: settings.pop(name) for name in ("plates", "centers") if name in settings}
    source = source or open_source("raw", Request((release,), **request))
    plan = builder.Plan(
        source,
        dataset="bbbc021",
        config="annotated",
        crops=crops,
        settings={"source": "raw", **dataclasses.asdict(crops)},
        origin={"contents": describe_contents(source)},
        show=False,
        **settings,
    )
    with locked(data_dir / "bbbc021" / "annotated"):
        return builder.build(plan, data_dir, replace=overwrite, extend=extend)


def contents(folder):
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def contents_but_origin(folder):
    """`contents`, without the part of the manifest about the input."""
    manifest = dataset.read_manifest(folder)
    del manifest["origin"]
    return contents(folder) | {"manifest.json": json.dumps(manifest)}


class Dies(Exception):
    pass


def dying(after, monkeypatch, read=None):
    """Makes the build die at a field; returns the names of the fields read."""
    original = pieces.extract_field
    names = [] if read is None else read

    def extract(field, *rest):
        if len(names) == after:
            raise Dies
        names.append(field.name)
        return original(field, *rest)

    monkeypatch.setattr(pieces, "extract_field", extract)
    return names


def kill_a_build(release, data_dir, monkeypatch, **settings):
    with monkeypatch.context() as patch:
        dying(5, patch)
        with pytest.raises(Dies):
            build(release, data_dir, **settings)


def assert_nothing_looks_finished(data_dir):
    with pytest.raises(BadUse, match="Build it"):
        dataset.find_dataset(data_dir)
    assert not list(Path(data_dir).rglob("*.array_record-*"))
    assert not list(Path(data_dir).rglob("incomplete.*"))


def test_row_i_of_the_table_is_record_i_with_the_pixels_around_its_nucleus(release, tmp_path):
    path = build(release, tmp_path)
    fields = {field.name: field for field in open_source("raw", Request((release,))).fields}
    cells, images = dataset.read_cells(path), dataset.open_images(path)
    # One shard for each piece.
    assert len(list(path.glob("*.array_record-*-of-00004"))) == 4
    records = tfds.builder_from_directory(str(path)).as_data_source(split="train")
    assert len(cells) == len(images) == len(records) == FIELDS * CELLS_A_FIELD
    for i, record in enumerate(records):
        row = cells.iloc[i]
        assert set(record) == {"image", *cells.columns}
        for column in cells.columns:
            value = record[column]
            if isinstance(value, bytes):
                assert value.decode() == row[column]
            else:
                # Records hold 32 bits, the table the 64 of the image table.
                assert np.float32(value) == np.float32(row[column])
        np.testing.assert_array_equal(images.read([i])[0], record["image"])
        field = fields[str(row["cell_id"]).rpartition("/")[0]].read()
        top, left = int(row["y"] + 0.5) - 16, int(row["x"] + 0.5) - 16
        np.testing.assert_array_equal(record["image"], field[top : top + 32, left : left + 32])


def test_an_unusable_field_is_named_and_skipped(release, tmp_path):
    path = release / BROKEN
    path.write_bytes(path.read_bytes()[:1000])
    built = build(release, tmp_path, max_skipped=0.1)
    (skipped,) = dataset.read_manifest(built)["skipped"]
    assert skipped["field"] == f"{PLATES[0]}/C03/s1"
    assert BROKEN.name in skipped["reason"]
    fields, cells = dataset.read_fields(built), dataset.read_cells(built)
    assert len(fields) == FIELDS
    assert fields["cells"].sum() == len(cells) == (FIELDS - 1) * CELLS_A_FIELD
    bad = fields["problem"] != ""
    assert fields["field"][bad].tolist() == [skipped["field"]]
    for measure in ("mean", "p50", "p99", "saturated", "focus"):
        assert fields[f"{measure}_tubulin"].isna().equals(bad)
    with pytest.raises(BadData, match=rf"1 of 12 fields .* --max_skipped=0\.05 .*{BROKEN.name}"):
        build(release, tmp_path / "strict", max_skipped=0.05)
    assert_nothing_looks_finished(tmp_path / "strict")


def test_too_many_unusable_fields_stop_the_build_early(release, tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "FIELDS_OF_A_PIECE", 1)
    read = dying(10**9, monkeypatch)
    (release / "Week1" / PLATES[0] / file_name("B02", 1, "w1", PLATES[0])).write_bytes(b"II*\0")
    with pytest.raises(BadData, match=r"1 of 12 fields cannot be used"):
        build(release, tmp_path)
    assert len(read) == 1
    # Missing files are known before any field is read.
    (release / BROKEN).unlink()
    with pytest.raises(BadData, match=BROKEN.name):
        build(release, tmp_path)
    assert len(read) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_is_reported():
    writer = builder._RecordWriter("array_record")
    with pytest.raises(OSError, match=r"cannot write to .* GB free\): .*No space left"):
        writer.write("/dev/full", [(0, b"")] * 1_000_000)


def test_a_field_without_cells_is_not_skipped(release, tmp_path):
    empty = disc_field(np.random.default_rng(0), [])
    tifffile.imwrite(release / str(BROKEN).replace("_w2", "_w1"), empty)
    counts = dataset.read_manifest(build(release, tmp_path))["counts"]
    assert (counts["fields_without_cells"], counts["fields_skipped"]) == (1, 0)
    with pytest.raises(BadData, match="no cells were found"):
        build(release, tmp_path / "none", dataclasses.replace(CROPS, size=180))
    assert_nothing_looks_finished(tmp_path / "none")


def test_settings_change_the_cells(release, tmp_path):
    two = ("actin", "dna")
    source = open_source("raw", Request((release,), channels=two, annotated=False))
    crops = dataclasses.replace(CROPS, size=24, channels=two, border="pad")
    path = build(release, tmp_path, crops, source=source)
    assert dataset.open_images(path).read([0])[0].shape == (24, 24, 2)
    cells = dataset.read_cells(path)
    assert len(cells) == len(source.fields) * (CELLS_A_FIELD + 1)
    assert set(cells["compound"]) == {"DMSO", "taxol", "PP-2", "other"}


def test_masks_are_stored_or_zero_pixels_outside_the_cell(release, tmp_path):
    plain, kept, zeroed = (
        dataset.open_images(
            build(release, tmp_path / masks, dataclasses.replace(CROPS, masks=masks))
        )
        for masks in ("none", "keep", "zero")
    )
    masks = kept.masks([0, 1])
    assert masks.dtype == np.uint8
    assert masks[0][16, 16] == 2
    for i in (0, 1):
        np.testing.assert_array_equal(kept.read([i])[0], plain.read([i])[0])
        expected = np.where(masks[i][:, :, None] > 0, plain.read([i])[0], 0)
        np.testing.assert_array_equal(zeroed.read([i])[0], expected)


def location_files(folder, centers):
    for plate in PLATES:
        (folder / plate).mkdir(parents=True)
        for well, *_ in WELLS:
            for site in (1, 2):
                lines = ["Nuclei_Location_Center_X,Nuclei_Location_Center_Y"]
                lines += [f"{column},{row}" for row, column in centers]
                path = folder / plate / f"{well}-{site}-Nuclei.csv"
                path.write_text("\n".join(lines) + "\n")
    return folder


def test_centres_from_a_table_replace_the_segmentation(release, tmp_path):
    folder = location_files(tmp_path / "locations", CENTERS[:2])
    (folder / PLATES[1] / "D04-2-Nuclei.csv").unlink()
    built = build(release, tmp_path, centers=folder, max_skipped=0.2)
    cells = dataset.read_cells(built)
    assert len(cells) == 11 * 2
    assert set(zip(cells["y"], cells["x"], strict=True)) == {
        tuple(map(float, c)) for c in CENTERS[:2]
    }
    (skipped,) = dataset.read_manifest(built)["skipped"]
    assert skipped["field"] == f"{PLATES[1]}/D04/s2"
    outside = location_files(tmp_path / "outside", [(10, 4000)])
    with pytest.raises(BadData, match=r"row 10, column 4000 lies outside its 160x200 pixels"):
        build(release, tmp_path / "other", centers=outside)


def test_a_killed_build_resumes_and_gives_the_same_dataset(release, tmp_path, monkeypatch):
    undisturbed = build(release, tmp_path / "undisturbed")
    names = []
    for after in (5, 9):
        with monkeypatch.context() as patch:
            dying(after, patch, names)
            with pytest.raises(Dies):
                build(release, tmp_path / "killed")
    (place,) = (tmp_path / "killed" / "bbbc021" / "annotated" / "pieces").iterdir()
    (place / "abc.123.partial").mkdir()
    with monkeypatch.context() as patch:
        dying(10**9, patch, names)
        killed = build(release, tmp_path / "killed")
    assert contents(killed) == contents(undisturbed)
    # One field of a piece was lost, then three of another.
    assert len(names) == FIELDS + 1 + 2
    assert not (killed.parent / "pieces").exists()


def test_a_piece_is_extracted_again_if_its_files_change(release, tmp_path, monkeypatch):
    before = dataset.read_manifest(build(release, tmp_path / "before"))
    kill_a_build(release, tmp_path / "killed", monkeypatch)
    image = tifffile.imread(release / BROKEN)
    image[40, 40] += 1
    tifffile.imwrite(release / BROKEN, image)
    built = build(release, tmp_path / "killed")
    assert contents(built) == contents(build(release, tmp_path / "fresh"))
    manifest = dataset.read_manifest(built)
    assert manifest["fingerprint"] != before["fingerprint"]
    assert manifest["counts"] == before["counts"] == {
        "cells": 48, "fields": 12, "fields_without_cells": 0, "fields_skipped": 0,
        "plates": 2, "wells": 6, "treatments": 2,
    }  # fmt: skip


def test_two_processes_that_extract_one_piece_leave_one(release, tmp_path, monkeypatch):
    (piece,) = pieces.plan_pieces(open_source("raw", Request((release,))).fields[:2], CROPS, {})
    original = pieces.extract_field
    others = []

    def extract(*args):
        if not others:  # another process finishes first
            others.append(None)
            others[0] = pieces.write_piece(piece, tmp_path, CROPS)
            (made,) = tmp_path.glob(piece.key)
            assert made.is_dir()
        return original(*args)

    monkeypatch.setattr(pieces, "extract_field", extract)
    written = pieces.write_piece(piece, tmp_path, CROPS)
    pd.testing.assert_frame_equal(written.cells, others[0].cells)
    assert [one.name for one in tmp_path.glob("*.partial")] == []
    assert len(list(written.examples())) == len(written.cells) == 2 * CELLS_A_FIELD


def test_crops_of_a_piece_are_written_without_a_copy_in_memory(tmp_path):
    crops = [np.full((4 * number, 64, 64, 3), number, np.uint16) for number in range(4)]
    tracemalloc.start()
    pieces._save(tmp_path / "images.npy", crops)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < sum(one.nbytes for one in crops) / 4
    np.testing.assert_array_equal(np.load(tmp_path / "images.npy"), np.concatenate(crops))


@pytest.mark.parametrize(("damaged", "gone"), [("images.npy", False), ("cells.parquet", True)])
def test_a_damaged_piece_is_extracted_again(release, tmp_path, monkeypatch, damaged, gone):
    kill_a_build(release, tmp_path / "killed", monkeypatch)
    (file,) = (tmp_path / "killed").rglob(damaged)
    if gone:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-100])
    built = build(release, tmp_path / "killed")
    assert contents(built) == contents(build(release, tmp_path / "fresh"))


def test_extending_reuses_the_cells_of_finished_plates(release, tmp_path, monkeypatch):
    crops = dataclasses.replace(CROPS, masks="keep")
    (release / BROKEN).write_bytes(b"II*\0")
    at_once = build(release, tmp_path / "at_once", crops, max_skipped=1)
    build(release, tmp_path / "grown", crops, plates=PLATES[:1], max_skipped=1)
    names = dying(10**9, monkeypatch)
    grown = build(release, tmp_path / "grown", crops, extend=True, max_skipped=1)
    assert {name.split("/")[0] for name in names} == {PLATES[1]}
    assert contents_but_origin(grown) == contents_but_origin(at_once)
    (skipped,) = dataset.read_manifest(grown)["skipped"]
    assert skipped["field"] == f"{PLATES[0]}/C03/s1"


def test_a_killed_extension_keeps_the_old_dataset(release, tmp_path, monkeypatch):
    first = build(release, tmp_path, plates=PLATES[1:])
    before = contents(first)
    kill_a_build(release, tmp_path, monkeypatch, extend=True)
    assert contents(first) == before
    grown = build(release, tmp_path, extend=True)
    assert contents_but_origin(grown) == contents_but_origin(build(release, tmp_path / "new"))
    with pytest.raises(BadUse, match=f"the input lacks {PLATES[1]} of"):
        build(release, tmp_path, plates=PLATES[:1], extend=True)


@pytest.mark.parametrize("damage", ["cells", "shard"])
def test_a_damaged_dataset_is_not_extended(release, tmp_path, damage):
    path = build(release, tmp_path, plates=PLATES[:1])
    if damage == "cells":
        pd.read_parquet(path / "cells.parquet").iloc[:-1].to_parquet(path / "cells.parquet")
    else:
        shard = next(path.glob("*.array_record-*"))
        shard.write_bytes(shard.read_bytes()[:-2000])
    before = contents(path)
    with pytest.raises(BadData, match="--overwrite"):
        build(release, tmp_path, extend=True)
    assert contents(path) == before


def test_a_cluster_gives_the_same_dataset(release, tmp_path):
    pytest.importorskip("apache_beam")
    (release / BROKEN).write_bytes(b"II*\0")
    settings = {"max_skipped": 1, "illumination": "regression"}
    here = build(release, tmp_path / "here", **settings)
    there = build(release, tmp_path / "there", **settings, beam_runner="DirectRunner")
    made = contents(there)
    made.pop("bbbc021-train.shard_infos.json")  # of TFDS on Beam
    assert made == contents(here)
    with pytest.raises(BadUse, match="NoSuchRunner"):
        build(release, tmp_path / "wrong", beam_runner="NoSuchRunner")


def test_failing_work_on_a_cluster_is_bad_data():
    pytest.importorskip("apache_beam")
    from cellclr_jax.data.building.workers import map_on_beam, pipeline_options

    run = functools.partial(map_on_beam, runner="DirectRunner", options=pipeline_options(()))
    with pytest.raises(BadData, match="by zero"):
        list(run(functools.partial(divmod, 1), [0]))


def test_illumination_is_fitted_once_for_the_same_pixels(release, tmp_path):
    build(release, tmp_path / "corrected", illumination="regression")
    folder = tmp_path / "corrected" / "illumination"
    lights = {path: path.stat().st_mtime_ns for path in sorted(folder.iterdir())}
    assert [path.name.split("-")[0] for path in lights] == list(PLATES)
    smaller = dataclasses.replace(CROPS, size=24)
    build(release, tmp_path / "corrected", smaller, illumination="regression", overwrite=True)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == lights
    for path in release.rglob("*.tif"):
        ramp = np.linspace(0.5, 1.5, WIDTH)
        tifffile.imwrite(path, (tifffile.imread(path) * ramp).astype(np.uint16))
    build(release, tmp_path / "corrected", illumination="regression", overwrite=True)
    assert len(list(folder.iterdir())) == 4


def test_too_few_fields_are_not_corrected(release, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plate_light, "FEWEST_FIELDS", 7)
    plain = dataset.read_manifest(build(release, tmp_path / "plain"))
    corrected = dataset.read_manifest(
        build(release, tmp_path / "corrected", illumination="regression")
    )
    assert corrected["origin"]["illumination"] == {}
    assert "6 fields are too few to estimate it, at least 7" in capsys.readouterr().out
    assert plain["fingerprint"] == corrected["fingerprint"]


def test_files_of_a_killed_build_are_removed(release, tmp_path):
    left = tmp_path / "bbbc021" / "annotated" / "incomplete.ABC123_1.0.0"
    left.mkdir(parents=True)
    (left / "bbbc021-train.array_record-00000-of-00001").write_bytes(b"half")
    with pytest.raises(BadUse):
        dataset.find_dataset(tmp_path)
    with (
        locked(left.parent),
        pytest.raises(BadUse, match="another process is building it"),
    ):
        build(release, tmp_path)
    path = build(release, tmp_path)
    assert path == dataset.find_dataset(tmp_path)
    assert [one.name for one in path.parent.iterdir() if one.is_dir()] == [path.name]


def test_a_finished_dataset_is_replaced_only_on_request_by_a_complete_one(release, tmp_path):
    path = build(release, tmp_path)
    first = contents(path)
    (release / BROKEN).write_bytes(b"")
    with pytest.raises(BadUse, match="exists already"):
        build(release, tmp_path)
    with pytest.raises(BadData, match="--max_skipped"):
        build(release, tmp_path, overwrite=True)
    assert contents(path) == first
    assert {one.name for one in path.parent.iterdir() if one.is_dir()} == {path.name, "pieces"}
    assert build(release, tmp_path, overwrite=True, max_skipped=1) == path
    assert contents(path) != first
    assert [one.name for one in path.parent.iterdir() if one.is_dir()] == [path.name]


@pytest.mark.parametrize("arrived", [True, False])
def test_an_interrupted_replacement_is_repaired(release, tmp_path, arrived):
    path = build(release, tmp_path)
    before = contents(path)
    aside = path.with_name(f"replaced.{path.name}")
    if arrived:
        shutil.copytree(path, aside)
    else:
        path.rename(aside)
    with locked(path.parent):
        assert contents(path) == before
    assert not aside.exists()
    with pytest.raises(FileNotFoundError):
        swap_in(tmp_path / "new" / path.name, path.parent)
    assert contents(path) == before
