"""A dataset is found by name; damage is reported."""

import json
import shutil

import pytest
from support.tiny_dataset import random_images, write_dataset

from cellclr_jax.data import dataset as datasets
from cellclr_jax.errors import BadData, BadUse

IMAGES = random_images()


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(tmp_path, IMAGES)


def change_manifest(dataset, **changes):
    path = dataset / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_name_is_a_configuration_of_bbbc021_or_of_a_builder(tmp_path):
    paths = {
        name: write_dataset(tmp_path, IMAGES, name=name)
        for name in ("bbbc021/annotated", "bbbc021/all", "single_cells/all")
    }
    assert datasets.find_dataset(tmp_path) == paths["bbbc021/annotated"]
    assert datasets.find_dataset(tmp_path, "all") == paths["bbbc021/all"]
    for name, path in paths.items():
        assert datasets.find_dataset(tmp_path, name) == path


def test_the_highest_version_is_found(dataset):
    for version in ("1.9.0", "1.10.0", "1.10", "2.0.0rc1"):
        shutil.copytree(dataset, dataset.with_name(version))
    found = datasets.find_dataset(dataset.parents[2], "single_cells/all")
    assert found == dataset.with_name("1.10.0")


def test_a_message_lists_the_existing_datasets(tmp_path):
    with pytest.raises(BadUse, match=r"no dataset bbbc021/annotated in [^;]*\. Build it from BBBC"):
        datasets.find_dataset(tmp_path)
    for name in ("single_cells/all", "bbbc021/all", "bbbc021/annotated"):
        path = write_dataset(tmp_path, IMAGES, name=name)
    (path / "dataset_info.json").unlink()
    listed = "; existing datasets: bbbc021/all, single_cells/all. Build"
    for name, build in (("annotated", "--source=raw"), ("others/all", "--source=folder")):
        with pytest.raises(BadUse, match=rf"{listed}.* -m cellclr_jax\.build .*{build}"):
            datasets.find_dataset(tmp_path, name)


@pytest.mark.parametrize("name", ["", "/", "..", "../all", "a/../b", "a/b/c", "/etc", "*/all"])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path, name):
    with pytest.raises(BadUse, match="<builder>/<config> was expected"):
        datasets.find_dataset(tmp_path, name)


@pytest.mark.parametrize("name", ["cells", "fields"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "changed", "column"])
def test_damaged_tables_are_named(dataset, name, damage):
    path = dataset / f"{name}.parquet"
    read = {"cells": datasets.read_cells, "fields": datasets.read_fields}[name]
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "column":
        read(dataset).drop(columns=["cell_id", "digest"], errors="ignore").to_parquet(path)
    else:
        content[-8:-4] = b"\xff" * 4  # the length of its description
        path.write_bytes({"empty": b"", "truncated": content[:-30]}.get(damage, content))
    with pytest.raises(BadData, match=rf"(?s){name}\.parquet: .*--overwrite"):
        read(dataset)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", "{}", '{"settings": 1}', "[" * 100_000, "\0", '"\ud800"']
)
def test_damaged_manifests_are_named(dataset, text):
    (dataset / "manifest.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(BadData, match=r"manifest\.json: not a readable manifest .*--overwrite"):
        datasets.read_manifest(dataset)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": {"cells": 7}}, "57 records, its manifest says 7"),
        ({"counts": {}}, "57 records, its manifest says None"),
        ({"image": {"shape": [12, 12, 2], "dtype": "uint16"}}, r"12, 3.* says \(\[12, 12, 2"),
        ({"image": {"shape": [12, 12, 3], "dtype": "uint8"}}, "uint16.* says .*uint8"),
        ({"image": {}}, "its manifest says"),
        ({"fingerprint": "../../../etc/0"}, "not a hex digest"),
        ({"fingerprint": ""}, "not a hex digest"),
    ],
)
def test_images_that_differ_from_the_manifest_are_refused(dataset, changes, message):
    change_manifest(dataset, **changes)
    with pytest.raises(BadData, match=message):
        datasets.open_images(dataset)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"featuresDict": 3}', "\0"])
@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
def test_damaged_descriptions_are_reported(dataset, name, text):
    (dataset / name).write_text(text)
    with pytest.raises(BadData, match=r"(?s)shards or their description are damaged .*--overwrite"):
        datasets.open_images(dataset)


def test_a_missing_shard_is_reported(dataset):
    next(dataset.glob("*array_record-00001*")).unlink()
    with pytest.raises(BadData, match=r"no file .*array_record-00001"):
        datasets.open_images(dataset)
