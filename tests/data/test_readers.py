"""Fields are read from folders and zips; errors name the file."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from support.tiny_release import file_name, write_crops, write_release

from cellclr_jax.data import readers
from cellclr_jax.data.readers import read_cell, read_planes, tiff
from cellclr_jax.data.readers.find_files import find_tiffs
from cellclr_jax.data.sources import open_source
from cellclr_jax.data.sources.source import Request
from cellclr_jax.errors import BadData

MISSING = Path("Week1", "Week1_101", file_name("C03", 1, "w2", "Week1_101"))


@pytest.fixture
def release(tmp_path):
    return write_release(tmp_path / "release")


def test_a_decompression_bomb_is_refused_unread(release, monkeypatch):
    monkeypatch.setattr(readers, "_MOST_BYTES", 160 * 200 * 2)
    loose = open_source("raw", Request((release,))).fields[1]
    assert loose.read().shape == (160, 200, 3)
    tifffile.imwrite(release / MISSING, np.zeros((1000, 1000), np.uint16), compression="zlib")
    with pytest.raises(BadData, match=rf"{MISSING.name}: .* unpacks to 2,000,000 bytes"):
        loose.read()
    with zipfile.ZipFile(release / "odd.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.tif", bytes(100_000))
    ((_, file),) = find_tiffs(release / "odd.zip")
    monkeypatch.setattr(tiff, "read_member", lambda _: pytest.fail("it was unpacked"))
    with pytest.raises(BadData, match=r"odd\.zip\[a\.tif\]: .* unpacks to 100,000 bytes"):
        read_planes((file,))


def test_a_memory_error_is_not_reported_as_a_broken_image(release, monkeypatch):
    crops = write_crops(release, release / "crops")

    def fail(*_, **__):
        raise MemoryError

    field = open_source("raw", Request((release,))).fields[0]
    monkeypatch.setattr(tifffile.TiffPage, "asarray", fail)
    with pytest.raises(MemoryError):
        field.read()
    crop = open_source("crops", Request((crops,))).fields[0].files[0]
    monkeypatch.setattr(np, "load", fail)
    with pytest.raises(MemoryError):
        read_cell(crop, channels=3, layout="stacked", dtype="uint16")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable TIFF"),
        (b"II*\x00 broken", "no image in it"),
        ("truncated", "it is truncated: it ends before the last of its strips"),
        (np.zeros((160, 200), np.uint8), r"uint8 \(160, 200\), uint16 \(H, W\)"),
        (np.zeros((2, 160, 200), np.uint16), "2 pages of 160x200 .* a file of one plane"),
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
        field.read()
