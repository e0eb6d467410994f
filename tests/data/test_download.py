"""A release is downloaded completely and verified, resumes, and reports each failed file."""

import io
import re
import resource
import shutil
import threading
import time
import zipfile

import numpy as np
import pytest
from support.misbehaving_server import Served, serve
from support.tiny_release import PLATES, write_release, zip_plates
from urllib3.util import Retry

from cellclr_jax.data.download import RETRY, download_release
from cellclr_jax.data.sources import open_source
from cellclr_jax.data.sources.source import Request
from cellclr_jax.data.tables.bbbc021 import IMAGE_CSV, MOA_CSV
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.files import locked

ZIPS = [f"BBBC021_v1_images_{plate}.zip" for plate in PLATES]
FILES = [IMAGE_CSV, MOA_CSV, *ZIPS]
HASTY: Retry = RETRY.new(total=2, backoff_factor=0)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A small release and the folder of its zips."""
    folder = tmp_path_factory.mktemp("download")
    plates = write_release(folder / "release")
    return plates, zip_plates(plates, folder / "zips")


@pytest.fixture
def server(release):
    """A server that has it."""
    with serve() as running:
        for path in release[1].iterdir():
            running.files[path.name] = Served(path.read_bytes())
        yield running


def download(server, folder, **settings):
    return download_release(folder, url=server.url, **{"show": False, "retry": HASTY, **settings})


def found(folder):
    """Names of the files in a folder except the lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".downloading")


def wait_until(condition):
    """Waits for another thread."""
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_downloaded_release_is_read_like_its_folder(server, release, tmp_path):
    assert download(server, tmp_path / "new") == FILES
    assert found(tmp_path / "new") == sorted(FILES)
    loose = open_source("raw", Request((release[0],))).fields
    fetched = open_source("raw", Request((tmp_path / "new",))).fields
    assert [field.name for field in fetched] == [field.name for field in loose]
    for first, second in zip(loose, fetched, strict=True):
        np.testing.assert_array_equal(first.read(), second.read())


def test_existing_files_are_kept_without_a_server(server, tmp_path):
    download(server, tmp_path)
    with serve() as gone:
        pass
    assert download(gone, tmp_path) == []
    (tmp_path / ZIPS[0]).unlink()
    message = rf"{ZIPS[0]}: no connection to the server \(.*refused\); run the same command"
    with pytest.raises(BadData, match=message):
        download(gone, tmp_path)


def test_only_requested_plates_are_downloaded(server, tmp_path):
    assert download(server, tmp_path, plates=[PLATES[1], PLATES[1]]) == [*FILES[:2], ZIPS[1]]
    assert found(tmp_path) == sorted([IMAGE_CSV, MOA_CSV, ZIPS[1]])
    message = rf"--plates=Week9_9: not in .*{IMAGE_CSV}, which has 2 plates: {', '.join(PLATES)}"
    with pytest.raises(BadUse, match=message):
        download(server, tmp_path, plates=[PLATES[0], "Week9_9"])
    assert ("GET", ZIPS[0]) not in server.requests


@pytest.mark.parametrize("plate", ["../Week1_1", "Week1_1/1", ".Week1_1", "Week1_ 1"])
def test_a_plate_cannot_lead_out_of_the_folder(server, tmp_path, plate):
    text = server.files[IMAGE_CSV].content.decode().replace(PLATES[0], plate)
    server.files[IMAGE_CSV] = Served(text.encode())
    with pytest.raises(BadData, match="cannot be part of a file's name"):
        download(server, tmp_path)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://example.org/a", "http://… or https://… was expected"),
        ("example.org/a", "http://… or https://… was expected"),
        ("https://example.org/a?b=c", "http://… or https://… was expected"),
        ("http://[bad", "http://… or https://… was expected"),
        ("https://me:secret@example.org/", r"^https://…@example\.org: write user and pass"),
    ],
)
def test_a_wrong_address_is_refused(tmp_path, url, message):
    with pytest.raises(BadUse, match=message):
        download_release(tmp_path, url=url)


def test_files_are_downloaded_in_parallel(server, tmp_path):
    gate = threading.Event()
    for name in ZIPS:
        server.files[name].gate = gate
    opener = threading.Thread(target=lambda: (wait_until(lambda: server.at_once == 2), gate.set()))
    opener.start()
    download(server, tmp_path / "two", parallel=2)
    opener.join()
    server.most_at_once = 0
    download(server, tmp_path / "one", parallel=1)
    assert server.most_at_once == 1
    with pytest.raises(BadUse, match="0 files at once"):
        download(server, tmp_path, parallel=0)


def test_a_second_download_into_a_folder_is_refused(server, tmp_path):
    with (
        locked(tmp_path, ".downloading", "downloading into it"),
        pytest.raises(BadUse, match="another process is downloading into it"),
    ):
        download(server, tmp_path)


def test_a_failed_file_stops_no_other_and_is_resumed(server, tmp_path):
    good = dict(server.files)
    server.files[ZIPS[0]] = Served(good[ZIPS[0]].content, cuts=[50_000], cut_always=0)
    size = len(good[ZIPS[0]].content)
    with pytest.raises(BadData) as failed:
        download(server, tmp_path, parallel=1)
    assert str(failed.value) == (
        f"1 of 2 files could not be downloaded: {ZIPS[0]}: {server.url}/{ZIPS[0]}: the "
        f"connection broke off at 50,000 of {size:,} bytes (3 times without a new byte); run "
        "the same command again to resume"
    )
    assert (tmp_path / ZIPS[1]).exists()
    del server.files[ZIPS[0]]
    message = rf"{ZIPS[0]}: {server.url}/{ZIPS[0]}: the server answers 404 Not Found"
    with pytest.raises(BadData, match=message):
        download(server, tmp_path)
    server.files |= good
    server.sent.clear()
    assert download(server, tmp_path) == ZIPS[:1]
    assert server.sent == {ZIPS[0]: size - 50_000}
    assert found(tmp_path) == sorted(FILES)


def test_busy_servers_and_broken_connections_are_retried(server, tmp_path):
    served = server.files[ZIPS[0]]
    served.statuses, served.cuts = [503, 429, 500], [70_000] * 5
    server.files[IMAGE_CSV].statuses = [503]
    assert download(server, tmp_path, retry=HASTY.new(total=3)) == FILES
    assert server.sent[ZIPS[0]] == len(served.content)
    served.status = 503
    (tmp_path / ZIPS[0]).unlink()
    with pytest.raises(BadData, match=r"1 of 2 .* the server answers 503 Service Unavailable"):
        download(server, tmp_path)


def test_a_server_without_ranges_sends_all_again(server, tmp_path):
    served = server.files[ZIPS[0]]
    served.ranges, served.cuts = False, [50_000]
    download(server, tmp_path)
    assert server.sent[ZIPS[0]] == len(served.content) + 50_000


def test_a_part_of_another_version_is_replaced(server, tmp_path):
    size = len(server.files[ZIPS[0]].content)
    (tmp_path / f"{ZIPS[0]}.part").write_bytes(bytes(size + 1))
    (tmp_path / f"{ZIPS[1]}.part").write_bytes(bytes(1000))  # found by the checksums
    download(server, tmp_path)
    for name in ZIPS:
        assert (tmp_path / name).read_bytes() == server.files[name].content


def zip_of_notes():
    """A sound zip without an image."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("Week1_101/notes.txt", b"notes" * 100)
    return buffer.getvalue()


def damaged(content):
    """A zip with one wrong byte in an image."""
    wrong = bytearray(content)
    wrong[1000] ^= 1
    return bytes(wrong)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (damaged, r"entry 'Week1_101/.*' is damaged \(Bad CRC-32"),
        (lambda content: content[:-5000], r"not a readable zip \(.*truncated or damaged"),
        (lambda content: b"<html>" + bytes(5000), r"zip \(File is not a zip file\)"),
        (lambda content: zip_of_notes(), r"no TIFF in it: not a plate of images"),
    ],
)
def test_a_damaged_zip_is_fetched_twice_and_never_gets_its_name(server, tmp_path, spoil, message):
    server.files[ZIPS[0]] = Served(spoil(server.files[ZIPS[0]].content))
    with pytest.raises(
        BadData, match=f"downloaded twice, both times damaged: .*{message}"
    ) as failed:
        download(server, tmp_path)
    assert "; deleted; run the same command again" in str(failed.value)
    assert server.requests.count(("GET", ZIPS[0])) == 2
    assert not [name for name in found(tmp_path) if name.startswith(ZIPS[0])]


@pytest.mark.parametrize("claims", [5, -5])
def test_a_wrong_length_is_an_error(server, tmp_path, claims):
    server.files[ZIPS[0]].claims = claims
    with pytest.raises(BadData, match=f"1 of 2 files could not be downloaded: {ZIPS[0]}: "):
        download(server, tmp_path)
    assert found(tmp_path) == sorted([*FILES[:2], ZIPS[1], f"{ZIPS[0]}.part"]) or claims < 0
    assert not (tmp_path / ZIPS[0]).exists()


@pytest.mark.parametrize("name", [IMAGE_CSV, MOA_CSV])
@pytest.mark.parametrize("content", [b"<html><body>Not found</body></html>", b"", b"\xff\xfe\0"])
def test_a_page_that_is_no_table_never_gets_its_name(server, tmp_path, name, content):
    server.files[name] = Served(content)
    message = rf"1 of 2 .*{name}: .*downloaded twice, both times damaged: .*{name}"
    with pytest.raises(BadData, match=message):
        download(server, tmp_path)
    assert not [path for path in found(tmp_path) if path.startswith(name)]


def test_missing_space_is_reported_before_the_download(server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**9))
    with pytest.raises(BadData, match=r"1\.1 GB are needed, with 1 GB to spare, and 1\.0 GB are"):
        download(server, tmp_path)
    assert server.sent == {}


def test_a_full_disk_keeps_the_part(server, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(BadData, match=rf"{ZIPS[0]}\.part cannot be written \(File too large\)"):
            download(server, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    kept = (tmp_path / f"{ZIPS[0]}.part").stat().st_size
    assert kept >= 65_536
    server.sent.clear()
    download(server, tmp_path)
    assert server.sent[ZIPS[0]] == len(server.files[ZIPS[0]].content) - kept


def test_progress_in_a_log_is_lines(server, tmp_path, capsys):
    download(server, tmp_path, show=True)
    shown = capsys.readouterr().err
    assert "\r" not in shown
    last = shown.splitlines()[-1]
    assert re.fullmatch(r"1\.55M/1\.55M bytes downloaded, .* bytes/s, 00:00 left", last)


def test_received_bytes_are_on_the_disk_and_are_resumed(server, tmp_path):
    served, part = server.files[ZIPS[0]], tmp_path / f"{ZIPS[0]}.part"
    served.gate, served.gate_after = threading.Event(), 131_072
    thread = threading.Thread(target=lambda: download(server, tmp_path, parallel=1))
    thread.start()
    # In the middle of a file, a kill would leave what any other process sees of it.
    wait_until(lambda: part.exists() and part.stat().st_size == served.gate_after)
    killed = tmp_path / "killed"
    killed.mkdir()
    shutil.copy(part, killed)
    served.gate.set()
    thread.join()
    server.sent.clear()
    assert download(server, killed) == FILES
    assert server.sent[ZIPS[0]] == len(served.content) - served.gate_after
    assert (killed / ZIPS[0]).read_bytes() == served.content
