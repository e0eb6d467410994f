import dataclasses
import fcntl
import hashlib
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tifffile
from array_record.python import array_record_module
from support.tiny_release import HEIGHT, PLATES, WIDTH, disc_field, file_name, write_release

from cellclr_jax.data import dataset
from cellclr_jax.data.building import builder, pieces
from cellclr_jax.data.building.builder import Bbbc021, CellConfig, Plan
from cellclr_jax.data.building.extraction import CropSettings
from cellclr_jax.data.building.versions import (
    locked,
    swap_in,
)
from cellclr_jax.data.readers import read_field
from cellclr_jax.data.sources import RAW_CHANNELS, Request, open_source
from cellclr_jax.data.sources.plates import RELEASE_COLUMNS
from cellclr_jax.errors import BadData, BadUse

# The disc nearest to a corner has no room for a crop.
CELLS_A_FIELD, FIELDS = 4, 6
CROPS = CropSettings(32, RAW_CHANNELS, RELEASE_COLUMNS, min_area=60)
PROVENANCE = {"settings": {"crop_size": 32}, "origin": {"inputs": ["here"]}}
BROKEN = Path("Week1", PLATES[0], file_name("C03", 1, "w2", PLATES[0]))


@pytest.fixture
def release(tmp_path):
    return write_release(tmp_path / "release")


def build(release, data_dir, crops=CROPS, *, source=None, overwrite=False, **settings):
    source = source or open_source("raw", Request((release,)))
    plan = Plan(source, **PROVENANCE, show=False, **settings)
    config = CellConfig(name="annotated", crops=crops)
    with locked(builder.dataset_folder_of(Bbbc021, data_dir, "annotated")):
        return builder.build(Bbbc021, data_dir, config, plan, replace=overwrite)


def contents(folder):
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def assert_nothing_looks_finished(data_dir):
    with pytest.raises(BadUse, match="Build it"):
        dataset.find_dataset(data_dir)
    assert not list(Path(data_dir).rglob("*.array_record-*"))
    assert not list(Path(data_dir).rglob("incomplete.*"))


def test_row_i_of_the_table_is_record_i(release, tmp_path, monkeypatch):
    # Several shards a plate.
    monkeypatch.setattr(pieces, "FIELDS_OF_A_PIECE", 2)
    path = build(release, tmp_path)
    cells = dataset.read_cells(path)
    images = dataset.open_images(path)
    records = tfds.builder_from_directory(str(path)).as_data_source(split="train")
    assert len(list(path.glob("*.array_record-*-of-00004"))) == 4
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
        np.testing.assert_array_equal(images[i]["image"], record["image"])


def test_images_are_the_pixels_around_the_nuclei(release, tmp_path):
    path = build(release, tmp_path)
    cells = dataset.read_cells(path)
    images = dataset.open_images(path)
    fields = {field.name: field for field in open_source("raw", Request((release,))).fields}
    for i, cell in enumerate(cells.itertuples()):
        field = read_field(fields[str(cell.cell_id).rpartition("/")[0]].files)
        row, column = int(cell.y + 0.5) - 16, int(cell.x + 0.5) - 16
        expected = field[row : row + 32, column : column + 32]
        np.testing.assert_array_equal(images[i]["image"], expected)
        assert images[i]["image"].dtype == np.uint16


def test_images_are_read_by_index_in_batches_and_after_pickling(release, tmp_path):
    images = dataset.open_images(build(release, tmp_path))
    copy = pickle.loads(pickle.dumps(images))
    assert repr(copy) == repr(images)
    some = [5, 0, 17]
    for i, batched in zip(some, images.__getitems__(some), strict=True):
        np.testing.assert_array_equal(batched["image"], images[i]["image"])
        np.testing.assert_array_equal(copy[i]["image"], images[i]["image"])


def test_the_number_of_workers_does_not_change_a_byte(release, tmp_path):
    one = build(release, tmp_path / "one", workers=1)
    two = build(release, tmp_path / "two", workers=2)
    assert contents(one) == contents(two)


def test_the_fingerprint_follows_the_content(release, tmp_path):
    first = dataset.read_manifest(build(release, tmp_path / "first"))
    again = dataset.read_manifest(build(release, tmp_path / "again"))
    assert first == again
    path = release / BROKEN
    image = tifffile.imread(path)
    image[40, 40] += 1
    tifffile.imwrite(path, image)
    changed = dataset.read_manifest(build(release, tmp_path / "changed"))
    assert changed["fingerprint"] != first["fingerprint"]
    assert changed["counts"] == first["counts"]


def test_the_manifest_tells_what_was_built(release, tmp_path):
    manifest = dataset.read_manifest(build(release, tmp_path))
    assert manifest["settings"] == PROVENANCE["settings"]
    assert manifest["origin"] == {**PROVENANCE["origin"], "illumination": {}}
    assert manifest["image"]["shape"] == [32, 32, 3]
    assert manifest["image"]["channels"] == ["dna", "tubulin", "actin"]
    counts = manifest["counts"]
    assert counts == {
        "cells": 24, "fields": 6, "fields_without_cells": 0, "fields_skipped": 0,
        "plates": 2, "wells": 6, "treatments": 2,
    }  # fmt: skip


@pytest.mark.parametrize("damage", ["broken", "missing", "shape"])
def test_an_unusable_field_is_named_and_skipped(release, tmp_path, damage):
    path = release / BROKEN
    if damage == "missing":
        path.unlink()
    elif damage == "broken":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        tifffile.imwrite(path, np.zeros((HEIGHT, WIDTH + 1), np.uint16))
    built = build(release, tmp_path, max_skipped=0.2)
    (skipped,) = dataset.read_manifest(built)["skipped"]
    assert skipped["field"] == f"{PLATES[0]}/C03/s1"
    assert BROKEN.name in skipped["reason"]
    assert len(dataset.open_images(built)) == (FIELDS - 1) * CELLS_A_FIELD
    with pytest.raises(BadData, match=rf"1 of 6 fields .* --max_skipped=0\.1 .*{BROKEN.name}"):
        build(release, tmp_path / "strict", max_skipped=0.1)
    assert_nothing_looks_finished(tmp_path / "strict")


def test_missing_files_end_the_build_before_any_work(release, tmp_path, monkeypatch):
    (release / BROKEN).unlink()
    monkeypatch.setattr(pieces, "extract_field", lambda *_: pytest.fail("a field was read"))
    with pytest.raises(BadData, match=BROKEN.name):
        build(release, tmp_path)


def test_too_many_unusable_fields_end_the_build_at_once(release, tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "FIELDS_OF_A_PIECE", 1)
    (release / "Week1" / PLATES[0] / file_name("B02", 1, "w1", PLATES[0])).write_bytes(b"II*\0")
    read = []
    original = pieces.extract_field
    monkeypatch.setattr(
        pieces, "extract_field", lambda field, *rest: read.append(field) or original(field, *rest)
    )
    with pytest.raises(BadData, match=r"1 of 6 fields cannot be used"):
        build(release, tmp_path)
    assert len(read) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_is_told(tmp_path):
    with (
        pytest.raises(OSError, match=r"cannot write to .* GB free\): .*No space left"),
        pieces.ShardWriter(Path("/dev/full")) as shard,
    ):
        shard.write([bytes(1 << 20)] * 8)


def test_a_shard_that_cannot_be_opened_is_told(release, tmp_path, monkeypatch):
    def refuse(*_):
        raise RuntimeError("No space left")

    monkeypatch.setattr(array_record_module, "ArrayRecordWriter", refuse)
    with pytest.raises(OSError, match=r"cannot write to .* GB free\): No space left"):
        build(release, tmp_path)
    assert_nothing_looks_finished(tmp_path)
    assert not list(tmp_path.rglob("*.partial"))
    monkeypatch.undo()
    assert len(dataset.read_cells(build(release, tmp_path))) == FIELDS * CELLS_A_FIELD


def test_a_field_without_cells_is_no_failure(release, tmp_path):
    empty = disc_field(np.random.default_rng(0), [])
    tifffile.imwrite(release / str(BROKEN).replace("_w2", "_w1"), empty)
    counts = dataset.read_manifest(build(release, tmp_path))["counts"]
    assert counts["fields_without_cells"] == 1
    assert counts["fields_skipped"] == 0


def test_no_cells_at_all_is_bad_data(release, tmp_path):
    with pytest.raises(BadData, match="no cells were found"):
        build(release, tmp_path, dataclasses.replace(CROPS, size=180))
    assert_nothing_looks_finished(tmp_path)


def test_two_cells_of_one_name_are_refused(release, tmp_path):
    source = open_source("raw", Request((release,)))
    source.fields.append(source.fields[0])
    with pytest.raises(BadData, match=r"two cells are called Week1_101/B02/s1/1"):
        build(release, tmp_path, source=source)


def test_settings_change_the_cells(release, tmp_path):
    padded = build(release, tmp_path / "pad", dataclasses.replace(CROPS, border="pad"))
    assert len(dataset.read_cells(padded)) == FIELDS * (CELLS_A_FIELD + 1)
    two = ("dna", "actin")
    source = open_source("raw", Request((release,), channels=two, annotated=False))
    crops = dataclasses.replace(CROPS, size=24, channels=two)
    path = build(release, tmp_path / "two", crops, source=source)
    assert dataset.open_images(path)[0]["image"].shape == (24, 24, 2)
    assert set(dataset.read_cells(path)["compound"]) == {"DMSO", "taxol", "PP-2", "unknown"}


def test_leftovers_of_a_killed_build_are_swept(release, tmp_path):
    left = tmp_path / "bbbc021" / "annotated" / "incomplete.ABC123_1.0.0"
    left.mkdir(parents=True)
    (left / "bbbc021-train.array_record-00000-of-00001").write_bytes(b"half")
    with pytest.raises(BadUse):
        dataset.find_dataset(tmp_path)
    assert build(release, tmp_path) == dataset.find_dataset(tmp_path)
    assert not left.exists()


def test_two_builds_of_one_dataset_do_not_meet(release, tmp_path):
    folder = tmp_path / "bbbc021" / "annotated"
    folder.mkdir(parents=True)
    with (folder / ".building").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BadUse, match="another process is building it"):
            build(release, tmp_path)
    build(release, tmp_path)


def test_a_finished_dataset_is_replaced_only_when_asked(release, tmp_path):
    path = build(release, tmp_path)
    first = contents(path)
    (release / BROKEN).write_bytes(b"")
    with pytest.raises(BadUse, match="is there already"):
        build(release, tmp_path)
    assert contents(path) == first
    assert contents(build(release, tmp_path, overwrite=True, max_skipped=1)) != first


def test_a_rebuild_that_fails_leaves_the_old_dataset(release, tmp_path):
    path = build(release, tmp_path)
    before = contents(path)
    (release / BROKEN).write_bytes(b"II*\0 broken")
    with pytest.raises(BadData, match="--max_skipped"):
        build(release, tmp_path, overwrite=True)
    assert contents(path) == before
    assert len(dataset.open_images(dataset.find_dataset(tmp_path))) == FIELDS * CELLS_A_FIELD
    assert {one.name for one in path.parent.iterdir() if one.is_dir()} == {path.name, "pieces"}


def test_the_old_dataset_is_there_until_the_new_one_is(release, tmp_path, monkeypatch):
    path = build(release, tmp_path)
    before = contents(path)
    seen = []

    def watch(new, folder):
        seen.append(contents(path) == before)
        seen.append(contents(new) == before)
        swap_in(new, folder)

    monkeypatch.setattr(builder, "swap_in", watch)
    rebuilt = build(release, tmp_path, dataclasses.replace(CROPS, size=24), overwrite=True)
    assert seen == [True, False]
    assert rebuilt == path
    assert dataset.open_images(path)[0]["image"].shape == (24, 24, 3)
    assert [one.name for one in path.parent.iterdir() if one.is_dir()] == [path.name]


@pytest.mark.parametrize("arrived", [True, False])
def test_a_swap_that_was_killed_is_put_right(release, tmp_path, arrived):
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


def test_a_swap_that_fails_puts_the_old_dataset_back(tmp_path):
    (tmp_path / "1.0.0").mkdir()
    with pytest.raises(FileNotFoundError):
        swap_in(tmp_path / "new" / "1.0.0", tmp_path)
    assert (tmp_path / "1.0.0").exists()


def test_a_builder_without_a_source_says_how_to_build(tmp_path):
    builder = Bbbc021(data_dir=str(tmp_path), config="annotated")
    with pytest.raises(BadUse, match=r"python -m cellclr_jax\.build"):
        builder.download_and_prepare(download_dir=str(tmp_path / "downloads"))


def test_one_dose_is_one_treatment_however_it_was_written(release, tmp_path):
    path = release / "BBBC021_v1_image.csv"
    head, _, tail = path.read_text().partition("taxol,0.3")
    path.write_text(f"{head}taxol,0.300000012{tail}")
    built = build(release, tmp_path)
    assert dataset.read_manifest(built)["counts"]["treatments"] == 2
    cells = dataset.read_cells(built)
    assert set(cells["concentration"][cells["compound"] == "taxol"]) == {0.3}


@pytest.mark.parametrize("file", ["cells.parquet", "manifest.json", "dataset_info.json"])
def test_a_dataset_without_one_of_its_files_is_not_found(release, tmp_path, file):
    (build(release, tmp_path) / file).unlink()
    with pytest.raises(BadUse, match=r"cellclr_jax\.build .*launch/demo\.sh"):
        dataset.find_dataset(tmp_path)


def test_damaged_datasets_are_named(release, tmp_path):
    path = build(release, tmp_path)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["counts"]["cells"] = 7
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BadData, match="24 records, its manifest says 7"):
        dataset.open_images(path)
    next(path.glob("*.array_record-*")).unlink()
    with pytest.raises(BadData, match=r"shards or their description are damaged .*array_record"):
        dataset.open_images(path)
    (path / "manifest.json").write_text("{")
    with pytest.raises(BadData, match=r"manifest\.json: not a readable manifest"):
        dataset.read_manifest(path)
    (path / "cells.parquet").write_bytes(b"")
    with pytest.raises(BadData, match=r"cells\.parquet: not a readable table"):
        dataset.read_cells(path)


def test_real_crops_arrive_with_their_metadata(shared, tmp_path):
    folder = shared / "data" / "bbbc021" / "crops"
    source = open_source("crops", Request((folder,)))
    crops = CropSettings(source.crop_size, source.channels, source.columns)
    path = build(None, tmp_path, crops, source=source)
    cells = dataset.read_cells(path)
    assert len(cells) == 1500
    assert cells["plate"].nunique() == 6
    assert set(cells["compound"]) == {"DMSO", "cyclohexamide"}
    assert cells["batch"].unique().tolist() == ["Week4"]
    images = dataset.open_images(path)
    for field in source.fields[::10]:
        rows = cells.index[cells["cell_id"].str.startswith(f"{field.name}/")]
        assert tuple(cells["cell_id"][rows]) == field.cells
        for i, file in zip(rows, field.files, strict=True):
            np.testing.assert_array_equal(images[i]["image"], np.load(file.path))
