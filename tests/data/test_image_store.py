"""Images are the same from shards and from a mapped file, and damage of either is reported."""

import errno
import fcntl
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from support.tiny_dataset import CELLS, random_images, write_dataset

from cellclr_jax.data import dataset as datasets
from cellclr_jax.data import image_store
from cellclr_jax.errors import BadData, BadUse

each_access = pytest.mark.parametrize("access", datasets.ACCESS)


@pytest.fixture
def images():
    return random_images()


@pytest.fixture
def dataset(tmp_path, images):
    return write_dataset(tmp_path, images)


def open_images(dataset, access="shards"):
    return datasets.open_images(dataset, access, progress=False)


def copies(dataset):
    return sorted(path.name for path in dataset.glob("*.npy*"))


@each_access
@pytest.mark.parametrize(("dtype", "channels"), [(np.uint16, 3), (np.uint8, 1), (np.uint16, 5)])
def test_rows_are_read_in_any_order_from_any_shard(tmp_path, access, dtype, channels):
    images = random_images(dtype, channels)
    source = open_images(write_dataset(tmp_path, images), access)
    assert len(source) == CELLS
    rng = np.random.default_rng(1)
    for rows in (np.arange(CELLS), rng.integers(0, CELLS, 200), [56, 0, 30, 0], np.uint8([9])):
        found = source.read(rows)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, images[rows])


@each_access
def test_images_are_read_into_part_of_an_array(dataset, images, access):
    out = np.zeros((6, *images.shape[1:]), np.uint16)
    source = open_images(dataset, access)
    source.read_into([5, 50, 1], out[1::2])
    np.testing.assert_array_equal(out[1::2], images[[5, 50, 1]])
    assert not out[::2].any()


@each_access
@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ([0, CELLS], IndexError),
        ([-1], IndexError),
        ([0.0], TypeError),
        (np.ones(CELLS, bool), TypeError),
        ([[1]], TypeError),
    ],
)
def test_invalid_rows_are_refused(dataset, access, rows, error):
    with pytest.raises(error):
        open_images(dataset, access).read(rows)


@each_access
def test_threads_read_at_the_same_time(dataset, images, access):
    source = open_images(dataset, access)
    orders = [np.random.default_rng(seed).permutation(CELLS) for seed in range(40)]
    with ThreadPoolExecutor(8) as pool:
        for order, found in zip(orders, pool.map(source.read, orders), strict=True):
            np.testing.assert_array_equal(found, images[order])


def test_a_pickled_source_reads_the_same_images(dataset, images):
    source = open_images(dataset)
    source.read(range(CELLS))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).read([50, 2]), images[[50, 2]])


@each_access
def test_masks_are_read_if_the_dataset_has_masks(tmp_path, images, access):
    with pytest.raises(BadUse, match="no masks"):
        open_images(write_dataset(tmp_path / "without", images), access).masks([0])
    masks = np.random.default_rng(0).integers(0, 3, images.shape[:3], np.uint8)
    source = open_images(write_dataset(tmp_path / "with", images, masks=masks), access)
    rows = np.random.default_rng(1).permutation(CELLS)
    np.testing.assert_array_equal(source.masks(rows), masks[rows])
    np.testing.assert_array_equal(source.read(rows), images[rows])
    with pytest.raises(IndexError):
        source.masks([CELLS])


def shard(dataset, number=1):
    return dataset / f"single_cells-train.array_record-{number:05d}-of-00003"


@each_access
@pytest.mark.parametrize("damage", ["changed", "truncated", "empty", "other"])
def test_a_damaged_shard_is_reported(dataset, access, damage):
    path = shard(dataset)
    content = bytearray(path.read_bytes())
    if damage == "changed":
        content[len(content) // 2] ^= 0xFF
    path.write_bytes(
        {"truncated": content[:-5000], "empty": b"", "other": b"text " * 5000}.get(damage, content)
    )
    with pytest.raises(BadData, match=rf"{dataset}: .*shard.*--overwrite"):
        open_images(dataset, access).read(range(CELLS))
    assert not copies(dataset)


def test_the_mapped_file_is_written_once(dataset, images, monkeypatch):
    monkeypatch.setattr(image_store, "_BLOCK_BYTES", 10 * images[0].nbytes)
    open_images(dataset, "mapped")
    (name,) = copies(dataset)
    np.testing.assert_array_equal(np.load(dataset / name, allow_pickle=False), images)
    before = (dataset / name).stat()
    shard(dataset).write_bytes(b"")
    np.testing.assert_array_equal(open_images(dataset, "mapped").read([33]), images[[33]])
    assert (dataset / name).stat().st_ino == before.st_ino


@pytest.mark.parametrize("damage", ["stale", "truncated", "shape", "order", "pickle"])
def test_a_mapped_file_of_other_images_is_written_again(dataset, images, damage):
    open_images(dataset, "mapped")
    (name,) = copies(dataset)
    path = dataset / name
    (dataset / "images-mine.npy").touch()
    if damage == "stale":
        path.rename(dataset / f"images-{'0' * 32}.npy")
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "pickle":  # must not be loaded
        np.save(path, np.array([{"an": "object"}], object), allow_pickle=True)
    else:
        other = {
            "shape": images[1:],
            "order": np.asfortranarray(images),
        }
        np.save(path, other[damage])
    np.testing.assert_array_equal(open_images(dataset, "mapped").read(range(CELLS)), images)
    assert copies(dataset) == [name, "images-mine.npy"]


def test_the_incomplete_file_of_a_killed_process_is_removed(dataset, images):
    (dataset / "images-0123abcd.npy.unfinished").write_bytes(b"half")
    np.testing.assert_array_equal(open_images(dataset, "mapped").read(range(CELLS)), images)
    (name,) = copies(dataset)
    assert not name.endswith(".unfinished")


@contextmanager
def locked(dataset):
    with (dataset / ".unpacking").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_a_process_waits_for_another_that_writes_the_file(dataset, images, capfd):
    opened = []
    waiting = threading.Thread(target=lambda: opened.append(open_images(dataset, "mapped")))
    with locked(dataset):
        waiting.start()
        while "which another process writes" not in (printed := capfd.readouterr().err):
            assert waiting.is_alive(), printed
            time.sleep(0.01)
        assert not copies(dataset)
    waiting.join(600)
    np.testing.assert_array_equal(opened[0].read(range(CELLS)), images)


def test_too_little_disk_space_is_reported_before_writing(dataset, monkeypatch):
    monkeypatch.setattr(image_store.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(BadUse, match=r"images-\w+\.npy needs 0\.0 GB, 0\.0 GB are free"):
        open_images(dataset, "mapped")
    assert not copies(dataset)


def test_a_disk_that_becomes_full_leaves_nothing(dataset, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(image_store.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        open_images(dataset, "mapped")
    assert not copies(dataset)


def test_a_read_only_folder_is_reported(dataset, images, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as context:
        context.setattr(image_store.fcntl, "flock", refuse)
        with pytest.raises(BadUse, match=r"npy cannot be written \(Read-only file system\)"):
            open_images(dataset, "mapped")
    open_images(dataset, "mapped")
    monkeypatch.setattr(image_store.fcntl, "flock", refuse)
    np.testing.assert_array_equal(open_images(dataset, "mapped").read([8]), images[[8]])


def test_a_link_with_the_name_of_the_unfinished_file_is_not_followed(dataset, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("keep")
    fingerprint = datasets.read_manifest(dataset)["fingerprint"]
    (dataset / f"images-{fingerprint}.npy.unfinished").symlink_to(victim)
    open_images(dataset, "mapped")
    assert victim.read_text() == "keep"
