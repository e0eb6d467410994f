"""Images are found in folders and zips; an unsuitable zip is refused by name."""

import os
import random
import stat
import zipfile

import numpy as np
import pytest
from support.tiny_release import PLATES, PREFIX, write_release, zip_plates

from cellclr_jax.data.readers import find_files, read_planes
from cellclr_jax.data.readers.find_files import check_zip, find_tiffs, read_member
from cellclr_jax.data.sources import open_source
from cellclr_jax.data.sources.source import Request
from cellclr_jax.errors import BadData


@pytest.fixture
def release(tmp_path):
    return write_release(tmp_path / "release")


def zip_of(path, *entries, **settings):
    """Writes a zip of (name or ZipInfo, content) pairs."""
    with zipfile.ZipFile(path, "w", **settings) as archive:
        for name, content in entries:
            entry = name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name)
            archive.writestr(entry, content, settings.get("compression"))
    return path


def refused(path):
    """Why a zip is refused, when it is listed and when it is read in full."""
    with pytest.raises(BadData) as listed:
        list(find_tiffs(path))
    with pytest.raises(BadData) as checked:
        check_zip(path)
    assert str(listed.value) == str(checked.value)
    return str(listed.value)


@pytest.mark.parametrize(("folder", "prefix"), [(True, ""), (False, PREFIX)])
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
        np.testing.assert_array_equal(first.read(), second.read())


def test_a_member_that_has_changed_is_not_read(tmp_path):
    path = zip_of(tmp_path / "a.zip", ("P1/a.tif", b"pixels"))
    ((_, file),) = find_tiffs(path)
    zip_of(path, ("P1/a.tif", b"others"))
    with pytest.raises(zipfile.BadZipFile, match="changed since it was listed"):
        read_member(file)


def test_a_zip_written_on_windows_is_read(tmp_path):
    path = zip_of(tmp_path / "a.zip", ("P1\\a.tif", b"pixels"))
    ((plate, file),) = find_tiffs(path)
    assert (plate, file.name) == ("P1", "a.tif")
    assert read_member(file) == b"pixels"


@pytest.mark.parametrize(
    "name",
    [
        "../out.tif",
        "/etc/out.tif",
        "C:\\out.tif",
        "..\\out.tif",
        "\\\\host\\out.tif",
    ],
)
def test_an_entry_that_leads_out_is_refused(tmp_path, name):
    path = zip_of(tmp_path / "bad.zip", ("P1/a.tif", b""), (name, b""))
    assert refused(path) == f"{path}: entry {name!r} leads out of the zip: not a plate of images"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (stat.S_IFLNK, "is a link"),
        (stat.S_IFIFO, "is a special file"),
    ],
)
def test_links_and_special_files_are_refused(tmp_path, kind, reason):
    entry = zipfile.ZipInfo("P1/a.tif")
    entry.external_attr = (kind | 0o644) << 16
    path = zip_of(tmp_path / "bad.zip", (entry, b"/etc/passwd"))
    assert refused(path).startswith(f"{path}: entry 'P1/a.tif' {reason}")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["P1/a.tif", "P1\\a.tif"])
def test_a_repeated_entry_is_refused(tmp_path, second):
    path = zip_of(tmp_path / "bad.zip", ("P1/a.tif", b"1"), (second, b"2"))
    assert refused(path) == f"{path}: entry {second!r} occurs twice"


def test_overlapping_entries_are_refused(tmp_path):
    path = zip_of(tmp_path / "bad.zip", ("P1/a.tif", bytes(99)), ("P1/b.tif", bytes(99)))
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 42 : entry + 46] = bytes(4)  # the second entry's data is that of the first
    path.write_bytes(content)
    assert refused(path).startswith(f"{path}: entries 'P1/a.tif' and 'P1/b.tif' overlap")


def test_an_encrypted_entry_is_refused(tmp_path):
    path = zip_of(tmp_path / "bad.zip", ("P1/a.tif", b"pixels"))
    content = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + flags] |= 1
    path.write_bytes(content)
    assert refused(path).startswith(f"{path}: entry 'P1/a.tif' is encrypted")


@pytest.mark.parametrize("name", ["notes.tif/", "", "__MACOSX/P1/._a.tif"])
def test_entries_without_an_image_are_passed_over(tmp_path, name):
    path = zip_of(tmp_path / "a.zip", ("P1/a.tif", b"pixels"), (name, b""))
    assert [file.name for _, file in find_tiffs(path)] == ["a.tif"]
    check_zip(path)


def test_a_zip_without_an_image_is_not_a_plate(tmp_path):
    path = zip_of(
        tmp_path / "a.zip", ("P1/notes.txt", b"notes"), ("P1/.a.tif", b""), ("a.tif/", b"")
    )
    with pytest.raises(BadData, match=r"a\.zip: no TIFF in it: not a plate of images"):
        check_zip(path)
    # A folder of plates may hold other zips.
    assert list(find_tiffs(path)) == []


def test_a_named_pipe_is_refused_without_reading(tmp_path):
    os.mkfifo(tmp_path / "a.tif")
    ((_, file),) = find_tiffs(tmp_path)
    with pytest.raises(BadData, match=r"a\.tif: not a readable TIFF \(it is not a regular file\)"):
        read_planes((file,))
    os.mkfifo(tmp_path / "a.zip")
    for inspect in (check_zip, lambda path: list(find_tiffs(path.parent))):
        with pytest.raises(
            BadData, match=r"a\.zip: not a readable zip \(it is not a regular file\)"
        ):
            inspect(tmp_path / "a.zip")


def test_the_error_for_a_truncated_zip_suggests_a_download(tmp_path):
    path = zip_of(tmp_path / "half.zip", ("P1/a.tif", bytes(1000)))
    path.write_bytes(path.read_bytes()[:-30])
    assert refused(path) == (
        f"{path}: not a readable zip (File is not a zip file): truncated or damaged, download it "
        "again (--download)"
    )


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_other_content_is_not_a_zip(tmp_path, content):
    path = tmp_path / "page.zip"
    path.write_bytes(content)
    assert refused(path).startswith(f"{path}: not a readable zip (File is not a zip file)")


@pytest.mark.parametrize(
    ("compression", "reason"),
    [(zipfile.ZIP_STORED, "Bad CRC-32"), (zipfile.ZIP_DEFLATED, "")],
)
def test_damage_of_an_entry_is_found_by_reading_it(tmp_path, compression, reason):
    content = np.random.default_rng(0).integers(0, 99, 5_000_000, np.uint8).tobytes()
    path = zip_of(tmp_path / "a.zip", ("P1/a.tif", content), compression=compression)
    check_zip(path)
    wrong = bytearray(path.read_bytes())
    wrong[1_000_000:1_000_100] = bytes(100)
    path.write_bytes(wrong)
    assert len(list(find_tiffs(path))) == 1
    with pytest.raises(BadData, match=rf"a\.zip: entry 'P1/a\.tif' is damaged \(.*{reason}"):
        check_zip(path)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    zeros = ("P1/zeros.tif", bytes(1_000_000))
    noise = ("P1/noise.tif", np.random.default_rng(0).bytes(3_000))
    path = zip_of(tmp_path / "bomb.zip", noise, zeros, compression=zipfile.ZIP_DEFLATED)
    # One blank image is none.
    assert len(list(find_tiffs(path))) == 2
    monkeypatch.setattr(find_files, "_HARMLESS", 500_000)
    size = path.stat().st_size
    assert size * 200 < 1_003_000
    assert refused(path).startswith(
        f"{path}: its {size:,} bytes unpack to 1,003,000, more than images can (entry 'P1/z"
    )
    path = zip_of(tmp_path / "stored.zip", zeros)
    check_zip(path)
    monkeypatch.setattr(find_files, "_MOST_UNPACKED", 900_000)
    assert "unpack to 1,000,000" in refused(path)


def test_too_many_entries_are_refused(tmp_path, monkeypatch):
    path = zip_of(tmp_path / "many.zip", *((f"P1/{number}.tif", b"") for number in range(9)))
    monkeypatch.setattr(find_files, "_MOST_ENTRIES", 8)
    assert refused(path) == (
        f"{path}: 9 entries, at most 8 are allowed (entry 'P1/8.tif' is the first beyond)"
    )


def test_random_damage_is_accepted_or_raises_bad_data(tmp_path):
    rng = random.Random(0)
    entries = [(f"P1/{number}.tif", rng.randbytes(50) * 5) for number in range(4)]
    path = zip_of(tmp_path / "a.zip", *entries, compression=zipfile.ZIP_DEFLATED)
    good = path.read_bytes()
    refusals = 0
    for _ in range(300):
        wrong = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            wrong[rng.randrange(len(wrong))] = rng.choice((0, 1, 127, 255, rng.randrange(256)))
        path.write_bytes(wrong[: rng.choice((len(wrong), rng.randrange(len(wrong))))])
        try:
            check_zip(path)
        except BadData:
            refusals += 1
    assert refusals > 150


def test_a_link_back_ends_and_a_link_to_a_plate_counts(release):
    plate = release / "Week2" / PLATES[1]
    plate.rename(release / "a_store")
    plate.symlink_to(release / "a_store")
    (release / "Week1" / "back").symlink_to(release)
    listed = [file.path for _, file in find_tiffs(release)]
    # Each folder once by each of its names: the store has two.
    assert len(listed) == 3 * 12
    assert open_source("raw", Request((release,))).absent_plates == []
