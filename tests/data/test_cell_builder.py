"""A build goes on where it was killed, takes finished plates over, and is the same on a cluster."""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from support.tiny_release import CENTERS, PLATES, WELLS, file_name, write_release

from cellclr_jax.data import dataset
from cellclr_jax.data.building import builder, pieces, plate_light
from cellclr_jax.data.building.builder import Bbbc021, CellConfig, Plan
from cellclr_jax.data.building.extraction import CropSettings
from cellclr_jax.data.building.manifest import describe_contents
from cellclr_jax.data.building.versions import locked
from cellclr_jax.data.illumination import Illumination
from cellclr_jax.data.sources import RAW_CHANNELS, Request, open_source
from cellclr_jax.data.sources.plates import RELEASE_COLUMNS
from cellclr_jax.errors import BadData, BadUse

CROPS = CropSettings(32, RAW_CHANNELS, RELEASE_COLUMNS, min_area=60)
BROKEN = Path("Week1", PLATES[0], file_name("C03", 1, "w2", PLATES[0]))


@pytest.fixture
def release(tmp_path):
    return write_release(tmp_path / "release", sites=2)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(pieces, "FIELDS_OF_A_PIECE", 4)
    monkeypatch.setattr(plate_light, "FEWEST_FIELDS", 5)


def build(release, data_dir, *, crops=CROPS, plates=(), overwrite=False, extend=False, **plan):
    source = open_source(
        "raw", Request((release,), plates=plates, centers=plan.pop("centers", None))
    )
    origin = {"contents": describe_contents(source)}
    plan = Plan(source, dataclasses.asdict(crops), origin, show=False, **plan)
    config = CellConfig(name="annotated", crops=crops)
    with locked(builder.dataset_folder_of(Bbbc021, data_dir, "annotated")):
        return builder.build(Bbbc021, data_dir, config, plan, replace=overwrite, extend=extend)


def contents(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


def content_but_origin(folder):
    """The same, without what the manifest tells about the plates that were asked for."""
    digests = contents(folder)
    manifest = dataset.read_manifest(folder)
    del manifest["origin"], manifest["versions"]
    return {**digests, "manifest.json": json.dumps(manifest)}


class Dies(Exception):
    pass


def dying(after, monkeypatch, read=None):
    """Lets the build die at a field."""
    original = pieces.extract_field
    names = [] if read is None else read

    def extract(field, *rest):
        if len(names) == after:
            raise Dies
        names.append(field.name)
        return original(field, *rest)

    monkeypatch.setattr(pieces, "extract_field", extract)
    return names


def test_a_killed_build_goes_on_and_ends_the_same(release, tmp_path, monkeypatch, capsys):
    undisturbed = build(release, tmp_path / "undisturbed")
    names = []
    for after in (5, 9):
        with monkeypatch.context() as patch:
            dying(after, patch, names)
            with pytest.raises(Dies):
                build(release, tmp_path / "killed")
    # Plates have pieces of 4 and 2 fields: one field of a piece was lost, then two of another.
    with monkeypatch.context() as patch:
        dying(10**9, patch, names)
        killed = build(release, tmp_path / "killed")
    assert contents(killed) == contents(undisturbed)
    lost = 1 + 2
    assert len(names) == 12 + lost
    assert not (killed.parent / "pieces").exists()


def test_a_piece_is_made_again_when_its_files_change(release, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        dying(5, patch)
        with pytest.raises(Dies):
            build(release, tmp_path / "killed")
    path = release / BROKEN
    image = tifffile.imread(path)
    image[40, 40] += 1
    tifffile.imwrite(path, image)
    names = dying(10**9, monkeypatch)
    built = build(release, tmp_path / "killed")
    assert len(names) == 12
    assert contents(built) == contents(build(release, tmp_path / "fresh"))


@pytest.mark.parametrize("damage", ["truncated", "gone", "table"])
def test_a_damaged_piece_is_made_again(release, tmp_path, monkeypatch, damage):
    with monkeypatch.context() as patch:
        dying(5, patch)
        with pytest.raises(Dies):
            build(release, tmp_path / "killed")
    (shard,) = (tmp_path / "killed").rglob("*.array_record")
    if damage == "gone":
        shard.unlink()
    elif damage == "table":
        shard.with_suffix(".cells.parquet").unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-100])
    built = build(release, tmp_path / "killed")
    assert contents(built) == contents(build(release, tmp_path / "fresh"))


def test_half_written_pieces_are_swept(release, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        dying(5, patch)
        with pytest.raises(Dies):
            build(release, tmp_path)
    (place,) = (tmp_path / "bbbc021" / "annotated" / "pieces").iterdir()
    (place / "abc.array_record.123.partial").write_bytes(b"half")
    build(release, tmp_path)
    assert not list(tmp_path.rglob("*.partial"))


def test_added_plates_leave_the_old_ones_alone(release, tmp_path, monkeypatch):
    (release / BROKEN).write_bytes(b"II*\0")
    at_once = build(release, tmp_path / "at_once", max_skipped=1)
    first = build(release, tmp_path / "grown", plates=PLATES[:1], max_skipped=1)
    old = {path.stat().st_ino for path in first.glob("*.array_record-*")}
    names = dying(10**9, monkeypatch)
    grown = build(release, tmp_path / "grown", extend=True, max_skipped=1)
    assert {name.split("/")[0] for name in names} == {PLATES[1]}
    assert content_but_origin(grown) == content_but_origin(at_once)
    assert old < {path.stat().st_ino for path in grown.glob("*.array_record-*")}
    assert [one["field"] for one in dataset.read_manifest(grown)["skipped"]] == [
        f"{PLATES[0]}/C03/s1"
    ]


def test_an_extension_that_dies_leaves_the_old_dataset(release, tmp_path, monkeypatch):
    first = build(release, tmp_path, plates=PLATES[1:])
    before = contents(first)
    with monkeypatch.context() as patch:
        dying(5, patch)
        with pytest.raises(Dies):
            build(release, tmp_path, extend=True)
    assert contents(first) == before
    grown = build(release, tmp_path, extend=True)
    assert content_but_origin(grown) == content_but_origin(build(release, tmp_path / "new"))


def test_a_cluster_gives_the_same_dataset(release, tmp_path):
    pytest.importorskip("apache_beam")
    (release / BROKEN).write_bytes(b"II*\0")
    here = build(release, tmp_path / "here", max_skipped=1, illumination="regression")
    there = build(
        release,
        tmp_path / "there",
        max_skipped=1,
        illumination="regression",
        beam_runner="DirectRunner",
    )
    assert contents(here) == contents(there)
    with pytest.raises(BadUse, match="NoSuchRunner"):
        build(release, tmp_path / "wrong", beam_runner="NoSuchRunner")


def test_the_light_is_fitted_once_and_corrected(release, tmp_path):
    plain = build(release, tmp_path / "plain")
    corrected = build(release, tmp_path / "corrected", illumination="regression")
    lights = sorted((tmp_path / "corrected" / "illumination").iterdir())
    assert [path.name.split("-")[0] for path in lights] == list(PLATES)
    before = [path.stat().st_mtime_ns for path in lights]
    again = build(
        release, tmp_path / "corrected", illumination="regression", overwrite=True,
        crops=dataclasses.replace(CROPS, size=24),
    )  # fmt: skip
    assert [path.stat().st_mtime_ns for path in lights] == before
    assert dataset.open_images(again)[0]["image"].shape == (24, 24, 3)
    one, other = (dataset.open_images(path)[0]["image"] for path in (plain, corrected))
    assert not np.array_equal(one, other)


def test_the_light_follows_the_pixels(release, tmp_path):
    build(release, tmp_path, illumination="median")
    first = {path.name for path in (tmp_path / "illumination").iterdir()}
    for path in release.rglob("*.tif"):
        image = tifffile.imread(path)
        ramp = np.linspace(0.5, 1.5, image.shape[1])
        tifffile.imwrite(path, (image * ramp).astype(np.uint16))
    build(release, tmp_path, illumination="median", overwrite=True)
    assert not first & {path.name for path in (tmp_path / "illumination").iterdir()} - first
    assert len(list((tmp_path / "illumination").iterdir())) == 4


def test_a_piece_is_made_again_when_its_light_is_another(release, tmp_path, monkeypatch):
    fresh = build(release, tmp_path / "fresh", illumination="median")
    with monkeypatch.context() as patch:
        dying(5, patch)
        with pytest.raises(Dies):
            build(release, tmp_path / "killed", illumination="median")
    for path in (tmp_path / "killed" / "illumination").iterdir():
        light = Illumination.load(path)
        dataclasses.replace(light, gain=1.5 * light.gain).save(path)
    turned = build(release, tmp_path / "killed", illumination="median")
    shards = [sorted(path.glob("*.array_record-*")) for path in (fresh, turned)]
    for one, other in zip(*shards, strict=True):
        assert one.read_bytes() != other.read_bytes()


def test_too_few_fields_leave_the_light_alone(release, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plate_light, "FEWEST_FIELDS", 7)
    plain = build(release, tmp_path / "plain")
    asked = build(release, tmp_path / "asked", illumination="regression")
    assert dataset.read_manifest(asked)["origin"]["illumination"] == {}
    assert "6 fields tell too little about it, at least 7" in capsys.readouterr().out
    assert (
        dataset.read_manifest(plain)["fingerprint"] == dataset.read_manifest(asked)["fingerprint"]
    )


@pytest.mark.parametrize("damage", ["cells", "shard", "pieces", "info"])
def test_a_damaged_dataset_is_not_extended(release, tmp_path, damage):
    path = build(release, tmp_path, plates=PLATES[:1])
    if damage == "cells":
        pd.read_parquet(path / "cells.parquet").iloc[:-1].to_parquet(path / "cells.parquet")
    elif damage == "shard":
        shard = next(path.glob("*.array_record-*"))
        shard.write_bytes(shard.read_bytes()[:-2000])
    elif damage == "info":
        (path / "dataset_info.json").write_text("{}")
    else:
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["pieces"] = [["x"]]
        (path / "manifest.json").write_text(json.dumps(manifest))
    before = contents(path)
    with pytest.raises(BadData, match="--overwrite"):
        build(release, tmp_path, extend=True)
    assert contents(path) == before


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


def test_centres_from_elsewhere_replace_the_segmentation(release, tmp_path):
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


def test_masks_are_kept_or_zero_what_is_not_the_cell(release, tmp_path):
    plain = dataset.open_images(build(release, tmp_path / "plain"))
    kept = dataset.open_images(
        build(release, tmp_path / "kept", crops=dataclasses.replace(CROPS, masks="keep"))
    )
    zeroed = dataset.open_images(
        build(release, tmp_path / "zero", crops=dataclasses.replace(CROPS, masks="zero"))
    )
    masks = kept.masks([0, 1])
    assert masks.dtype == np.uint8
    assert masks[0][16, 16] == 2
    for i in (0, 1):
        np.testing.assert_array_equal(kept[i]["image"], plain[i]["image"])
        expected = np.where(masks[i][:, :, None] > 0, plain[i]["image"], 0)
        np.testing.assert_array_equal(zeroed[i]["image"], expected)


def test_every_field_has_a_row_with_its_quality(release, tmp_path):
    (release / BROKEN).write_bytes(b"II*\0")
    built = build(release, tmp_path, max_skipped=1)
    fields, cells = dataset.read_fields(built), dataset.read_cells(built)
    assert len(fields) == 12
    assert fields["cells"].sum() == len(cells)
    bad = fields[fields["problem"] != ""]
    assert bad["field"].tolist() == [f"{PLATES[0]}/C03/s1"]
    for channel in RAW_CHANNELS:
        for measure in ("mean", "p50", "p99", "saturated", "focus"):
            values = fields[f"{measure}_{channel}"]
            assert values.isna().equals(fields["problem"] != "")


def test_work_on_a_cluster_that_fails_is_bad_data():
    pytest.importorskip("apache_beam")
    from cellclr_jax.data.building.workers import (
        map_on_beam,
        pipeline_options,
    )

    run = functools.partial(map_on_beam, runner="DirectRunner", options=pipeline_options(()))
    with pytest.raises(BadData, match="by zero"):
        list(run(functools.partial(divmod, 1), [0]))
