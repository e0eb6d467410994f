"""Images are found and read wherever they lie, and what cannot be read is named."""

import errno
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from tiny_release import PLATES, PREFIX, file_name, write_crops, write_release, zip_plates

from cellclr_jax.cli import BadData
from cellclr_jax.data import image_files
from cellclr_jax.data.image_files import ImageFile, read_crop, read_field
from cellclr_jax.data.sources import Request, open_source

MISSING = Path("Week1", "Week1_101", file_name("C03", 1, "w2", "Week1_101"))


@pytest.fixture
def release(tmp_path):
    return write_release(tmp_path / "release")


@pytest.mark.parametrize("folder", [True, False])
@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_a_zip_is_read_as_the_folder_it_holds(tmp_path, folder, prefix):
    release = write_release(tmp_path / "release", prefix=prefix)
    zips = zip_plates(release, tmp_path / "zips", folder=folder)
    loose = open_source("raw", Request((release,))).fields
    zipped = open_source("raw", Request((zips,))).fields
    one = open_source("raw", Request((zips / f"BBBC021_v1_images_{PLATES[1]}.zip",)))
    assert [field.name for field in zipped] == [field.name for field in loose]
    assert one.absent_plates == [PLATES[0]]
    assert len(loose) == 6
    assert loose[0].files[0].name.startswith(f"{prefix}B02_s1_w1")
    for first, second in zip(loose, zipped, strict=True):
        np.testing.assert_array_equal(read_field(first.files), read_field(second.files))


@pytest.mark.parametrize("name", ["../out.tif", "/etc/out.tif", "a/../../out.tif", "C:\\out.tif"])
def test_a_zip_entry_that_leads_out_is_refused(release, name):
    with zipfile.ZipFile(release / "bad.zip", "w") as archive:
        archive.writestr(name, b"")
    with pytest.raises(BadData, match=r"bad\.zip: entry .* leads out"):
        open_source("raw", Request((release,)))


def test_a_broken_zip_is_named(release):
    (release / "half.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(BadData, match=r"half\.zip: not a readable zip"):
        open_source("raw", Request((release,)))


def zip_of(folder, name, content=b"", **settings):
    with zipfile.ZipFile(folder / "odd.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), content, **settings)
    return folder / "odd.zip"


@pytest.mark.parametrize("name", ["./", "Week1_101/", "notes.tif/", "./._a.tif"])
def test_zip_entries_without_an_image_are_passed_over(release, name):
    zip_of(release, name)
    assert len(open_source("raw", Request((release,))).fields) == 6


# Offsets in an entry of a zip's directory: the version needed to unpack it, and its flags, of which
# bit 11 says that the name is UTF-8.
@pytest.mark.parametrize(
    ("offset", "value"), [(6, 255), (8, 1 << 11)], ids=["newer version", "name not UTF-8"]
)
def test_a_zip_of_an_unknown_kind_is_named(release, offset, value):
    path = zip_of(release, "a__b.tif")
    content = bytearray(path.read_bytes().replace(b"__", b"\xff\xfe"))
    entry = content.index(b"PK\x01\x02") + offset
    content[entry : entry + 2] = value.to_bytes(2, "little")
    path.write_bytes(content)
    with pytest.raises(BadData, match=r"odd\.zip: not a readable zip"):
        open_source("raw", Request((release,)))


def test_what_unpacks_to_more_than_any_image_is_refused_unread(release, monkeypatch):
    monkeypatch.setattr(image_files, "_MOST_BYTES", 160 * 200 * 2)
    loose = open_source("raw", Request((release,))).fields[1]
    assert read_field(loose.files).shape == (160, 200, 3)
    tifffile.imwrite(release / MISSING, np.zeros((1000, 1000), np.uint16), compression="zlib")
    with pytest.raises(BadData, match=rf"{MISSING.name}: .* unpacks to 2,000,000 bytes"):
        read_field(loose.files)
    bomb = zip_of(release, "a.tif", bytes(100_000), compress_type=zipfile.ZIP_DEFLATED)
    ((_, file),) = image_files.find_tiffs(bomb)
    monkeypatch.setattr(image_files, "_zip", lambda _: pytest.fail("it was unpacked"))
    with pytest.raises(BadData, match=r"odd\.zip\[a\.tif\]: .* unpacks to 100,000 bytes"):
        read_field((file,))


def test_want_of_memory_is_no_broken_image(release, monkeypatch):
    crops = write_crops(release, release / "crops")

    def fail(*_, **__):
        raise MemoryError

    field = open_source("raw", Request((release,))).fields[0]
    monkeypatch.setattr(tifffile.TiffFile, "asarray", fail)
    with pytest.raises(MemoryError):
        read_field(field.files)
    crop = open_source("crops", Request((crops,))).fields[0].files[0]
    monkeypatch.setattr(np, "load", fail)
    with pytest.raises(MemoryError):
        read_crop(crop)


def test_a_folder_that_cannot_be_read_is_named(release, monkeypatch):
    closed = release / "Week2" / PLATES[1]
    scandir = os.scandir

    def refuse(path):
        if Path(path) == closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(BadData, match=rf"{PLATES[1]}: the folder cannot be read \(Permission"):
        open_source("raw", Request((release,)))


def test_a_link_back_ends_and_a_link_to_a_plate_counts(release):
    plate = release / "Week2" / PLATES[1]
    plate.rename(release / "a_store")
    plate.symlink_to(release / "a_store")
    (release / "Week1" / "back").symlink_to(release)
    listed = [file.path for _, file in image_files.find_tiffs(release)]
    # Each folder once by each of its names: the store has two.
    assert len(listed) == 3 * 12
    assert open_source("raw", Request((release,))).absent_plates == []


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((24, 24, 3), np.float32), r"float32 \(24, 24, 3\), uint16 \(S, S, C\)"),
        (np.zeros((24, 20, 3), np.uint16), r"uint16 \(24, 20, 3\)"),
        (np.zeros((24, 24), np.uint16), r"uint16 \(24, 24\)"),
        (np.array([{"a": 1}], object), r"object \(1,\), uint16"),
    ],
)
def test_a_crop_of_another_kind_is_refused(tmp_path, array, message):
    np.save(tmp_path / "a_1.npy", array)
    with pytest.raises(BadData, match=message):
        read_crop(ImageFile("a_1.npy", str(tmp_path / "a_1.npy")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable TIFF"),
        (b"II*\x00 broken", "not a readable TIFF"),
        ("truncated", "not a readable TIFF"),
        (np.zeros((160, 200), np.uint8), r"uint8 \(160, 200\), uint16 \(H, W\)"),
        (np.zeros((2, 160, 200), np.uint16), r"uint16 \(2, 160, 200\)"),
        (np.zeros((160, 100), np.uint16), r"\(160, 100\) pixels, .* has \(160, 200\)"),
    ],
)
def test_a_broken_image_is_named(release, content, message):
    path = release / MISSING
    if isinstance(content, str):
        content = path.read_bytes()[:20000]
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        tifffile.imwrite(path, content)
    field = open_source("raw", Request((release,))).fields[1]
    with pytest.raises(BadData, match=rf"{MISSING.name}: {message}"):
        read_field(field.files)
