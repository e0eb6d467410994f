"""A release comes whole and sound, goes on after any end, and says what did not come and why."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile

import numpy as np
import pytest
from support.misbehaving_server import Served, serve
from support.tiny_release import MOA, PLATES, write_csv, write_release, zip_plates

from cellclr_jax.data.download.http_answers import Patience
from cellclr_jax.data.download.release import download_release
from cellclr_jax.data.sources import open_source
from cellclr_jax.data.sources.source import Request
from cellclr_jax.data.tables.bbbc021 import IMAGE_CSV, MOA_CSV
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.files import locked

ZIPS = tuple(f"BBBC021_v1_images_{plate}.zip" for plate in PLATES)
FILES = (IMAGE_CSV, MOA_CSV, *ZIPS)
HASTY = Patience(connect=5.0, read=5.0, wait=0.001, longest_wait=0.01, tries=3)
# A process of its own that downloads as a person's would, into its first argument.
PROGRAM = """
import signal
import sys
from pathlib import Path
from absl import flags
from cellclr_jax import cli
from cellclr_jax.data.download.release import download_release

# A shell that starts the tests in the background has them ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
url, folder = sys.argv.pop(), Path(sys.argv.pop())
cli.run(lambda: print(download_release(folder, url=url, parallel=1)), "doc")
"""


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
    settings = {"show": False, "patience": HASTY, **settings}
    return download_release(folder, url=server.url, **settings)


def there(folder):
    """Names of what is in a folder beside the lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".downloading")


def wait_until(condition, process=None):
    """Waits for something that another thread or process brings about."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.01)


def test_a_release_comes_and_is_read_as_the_folder_it_holds(server, release, tmp_path):
    result = download(server, tmp_path / "new")
    assert there(tmp_path / "new") == sorted([*FILES, "download.json"])
    assert result.plates == PLATES
    assert result.fetched == FILES
    assert result.kept == ()
    loose = open_source("raw", Request((release[0],))).fields
    fetched = open_source("raw", Request((tmp_path / "new",))).fields
    assert [field.name for field in fetched] == [field.name for field in loose]
    for first, second in zip(loose, fetched, strict=True):
        np.testing.assert_array_equal(first.read(), second.read())


def test_nothing_comes_twice(server, tmp_path):
    download(server, tmp_path)
    sent = dict(server.sent)
    result = download(server, tmp_path)
    assert (result.fetched, result.kept) == ((), FILES)
    assert server.sent == sent


def test_the_plates_asked_for_come_alone(server, tmp_path):
    result = download(server, tmp_path, plates=[PLATES[1], PLATES[1]])
    assert result.plates == PLATES[1:]
    assert there(tmp_path) == sorted([IMAGE_CSV, MOA_CSV, ZIPS[1], "download.json"])


def test_a_plate_that_is_none_is_named_before_any_comes(server, tmp_path):
    message = rf"--plates=Week9_9: not in .*{IMAGE_CSV}, which has 2 plates: {', '.join(PLATES)}"
    with pytest.raises(BadUse, match=message):
        download(server, tmp_path, plates=[PLATES[0], "Week9_9"])
    assert not any(asked.path.endswith(".zip") for asked in server.asked)


@pytest.mark.parametrize("plate", ["../Week1_1", "Week1_1/1", ".Week1_1", "Week1_\\1", "Week1_ 1"])
def test_a_plate_leads_nowhere_else(server, tmp_path, plate):
    text = server.files[IMAGE_CSV].content.decode().replace(PLATES[0], plate)
    server.files[IMAGE_CSV] = Served(text.encode())
    with pytest.raises(BadData, match="cannot be part of a file's name"):
        download(server, tmp_path)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://example.org/a", "http://… or https://… was expected"),
        ("file:///etc", "http://… or https://… was expected"),
        ("example.org/a", "http://… or https://… was expected"),
        ("https://example.org/a?b=c", "http://… or https://… was expected"),
        ("http://[bad", "http://… or https://… was expected"),
        ("https://me:secret@example.org/", r"^https://…@example\.org: write user and pass"),
    ],
)
def test_an_address_that_is_none_is_refused(tmp_path, url, message):
    with pytest.raises(BadUse, match=message):
        download_release(tmp_path, url=url)


def test_as_many_files_come_at_once_as_asked_for(server, tmp_path):
    gate = threading.Event()
    for name in ZIPS:
        server.files[name].gate = gate
    opener = threading.Thread(target=lambda: (wait_until(lambda: server.at_once == 2), gate.set()))
    opener.start()
    download(server, tmp_path / "two", parallel=2)
    opener.join()
    assert server.most_at_once == 2
    server.most_at_once = 0
    download(server, tmp_path / "one", parallel=1)
    assert server.most_at_once == 1
    with pytest.raises(BadUse, match="0 files at once"):
        download(server, tmp_path, parallel=0)


def test_a_second_download_into_a_folder_is_refused(server, tmp_path):
    message = "another process is downloading into it"
    with (
        locked(tmp_path, ".downloading", "downloading into it"),
        pytest.raises(BadUse, match=message),
    ):
        download(server, tmp_path)


def test_others_come_where_some_do_not_and_the_next_call_goes_on(server, tmp_path):
    good = dict(server.files)
    server.files[ZIPS[0]] = Served(good[ZIPS[0]].content, cuts=[50_000], cut_always=0)
    with pytest.raises(BadData) as failed:
        download(server, tmp_path, parallel=1)
    assert str(failed.value) == (
        f"1 of 2 files did not come: {ZIPS[0]}: {server.url}/{ZIPS[0]}: the connection broke off "
        "(3 tries); the same command tries again, and goes on where a part has come"
    )
    assert (tmp_path / ZIPS[1]).exists()
    del server.files[ZIPS[0]]
    with pytest.raises(
        BadData, match=rf"{ZIPS[0]}: {server.url}/{ZIPS[0]}: the server answers 404"
    ):
        download(server, tmp_path)
    server.files |= good
    server.sent.clear()
    assert download(server, tmp_path).fetched == ZIPS[:1]
    assert server.sent == {ZIPS[0]: len(good[ZIPS[0]].content) - 50_000}
    assert there(tmp_path) == sorted([*FILES, "download.json"])


def test_each_file_that_did_not_come_is_named(server, tmp_path):
    server.files[ZIPS[0]] = Served(b"", always=403)
    server.files[ZIPS[1]] = Served(b"", always=500)
    with pytest.raises(BadData, match=rf"2 of 2 .*{ZIPS[0]}: .* 403 .*{ZIPS[1]}: .* 500 .*3 tries"):
        download(server, tmp_path)


@pytest.mark.parametrize("name", [IMAGE_CSV, MOA_CSV])
@pytest.mark.parametrize("content", [b"<html><body>Not found</body></html>", b"", b"\xff\xfe\0"])
def test_a_page_that_is_no_table_never_takes_its_name(server, tmp_path, name, content):
    server.files[name] = Served(content, head=405)
    with pytest.raises(
        BadData, match=rf"1 of 2 .*{name}: .* what comes is damaged, twice: .*{name}"
    ):
        download(server, tmp_path)
    assert not [found for found in there(tmp_path) if found.startswith(name)]


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
        (lambda content: content[:-5000], r"not a readable zip \(.*cut short or damaged"),
        (lambda content: b"<html>" + bytes(5000), r"zip \(File is not a zip file\);"),
        (lambda content: zip_of_notes(), r"no TIFF in it: not a plate of images"),
    ],
)
def test_a_damaged_zip_comes_anew_once(server, tmp_path, spoil, message):
    good = server.files[ZIPS[0]].content
    server.files[ZIPS[0]] = Served(spoil(good), etag='"bad"')
    with pytest.raises(BadData, match=f"what comes is damaged, twice: .*{message}") as failed:
        download(server, tmp_path)
    assert "; nothing of it is kept; the same command tries again" in str(failed.value)
    # Nothing is left that a download could continue.
    assert "--download" not in str(failed.value)
    assert len(server.gets(ZIPS[0])) == 2
    assert not [found for found in there(tmp_path) if found.startswith(ZIPS[0])]
    server.files[ZIPS[0]] = Served(spoil(good), etag='"bad"', then=Served(good))
    assert download(server, tmp_path).fetched == ZIPS[:1]


def test_a_file_that_is_there_is_read_before_it_is_kept(server, tmp_path):
    good = server.files[ZIPS[0]].content
    (tmp_path / ZIPS[0]).write_bytes(damaged(good))
    (tmp_path / ZIPS[1]).write_bytes(server.files[ZIPS[1]].content)
    result = download(server, tmp_path)
    assert result.kept == ZIPS[1:]
    assert (tmp_path / ZIPS[0]).read_bytes() == good


def other_moas(content):
    """Another table of as many bytes."""
    changed = content.replace(MOA[1][2].encode(), MOA[1][2].swapcase().encode())
    assert changed != content
    assert len(changed) == len(content)
    return changed


@pytest.mark.parametrize(
    "told",
    [
        {"etag": '"two"'},
        {"etag": "", "modified": "Tue, 04 Jun 2013 10:00:00 GMT"},
    ],
)
def test_what_has_changed_on_the_server_comes_anew(server, tmp_path, told):
    download(server, tmp_path)
    served = server.files[MOA_CSV]
    server.files[MOA_CSV] = Served(other_moas(served.content), **told)
    assert download(server, tmp_path).fetched == (MOA_CSV,)
    assert (tmp_path / MOA_CSV).read_bytes() == server.files[MOA_CSV].content
    assert download(server, tmp_path).fetched == ()


def test_an_older_version_stays_until_the_newer_one_is_there(server, tmp_path):
    download(server, tmp_path)
    good = server.files[ZIPS[0]].content
    with zipfile.ZipFile(tmp_path / ZIPS[0], "a") as archive:
        archive.writestr("notes.txt", b"corrected")
    newer = (tmp_path / ZIPS[0]).read_bytes()
    (tmp_path / ZIPS[0]).unlink()
    download(server, tmp_path)
    server.files[ZIPS[0]] = Served(newer, etag='"two"', cuts=[50_000], cut_always=0)
    with pytest.raises(BadData, match="the connection broke off"):
        download(server, tmp_path)
    assert (tmp_path / ZIPS[0]).read_bytes() == good
    server.files[ZIPS[0]] = Served(newer, etag='"two"')
    server.sent.clear()
    assert download(server, tmp_path).fetched == ZIPS[:1]
    assert server.sent[ZIPS[0]] == len(newer) - 50_000
    assert (tmp_path / ZIPS[0]).read_bytes() == newer


def rewrite(path, content):
    """Writes a file anew, surely at another time."""
    before = path.stat().st_mtime_ns
    path.write_bytes(content)
    os.utime(path, ns=(before + 10**9, before + 10**9))


def test_what_was_written_to_since_is_read_again(server, tmp_path):
    download(server, tmp_path)
    good = (tmp_path / ZIPS[0]).read_bytes()
    rewrite(tmp_path / ZIPS[0], damaged(good))
    rewrite(tmp_path / ZIPS[1], (tmp_path / ZIPS[1]).read_bytes())
    result = download(server, tmp_path)
    assert (result.fetched, result.kept) == (ZIPS[:1], (IMAGE_CSV, MOA_CSV, ZIPS[1]))
    assert (tmp_path / ZIPS[0]).read_bytes() == good


def test_without_a_server_a_changed_version_is_not_forgotten(server, tmp_path):
    download(server, tmp_path)
    rewrite(tmp_path / MOA_CSV, (tmp_path / MOA_CSV).read_bytes())
    content = server.files[MOA_CSV].content
    server.files[MOA_CSV] = Served(content, always=503, head=503)
    assert download(server, tmp_path).kept == FILES
    server.files[MOA_CSV] = Served(other_moas(content), etag='"two"')
    assert download(server, tmp_path).fetched == (MOA_CSV,)


def test_another_server_with_the_same_files_is_as_good(server, release, tmp_path):
    download(server, tmp_path)
    with serve() as mirror:
        for path in release[1].iterdir():
            mirror.files[path.name] = Served(path.read_bytes(), etag='"mirror"')
        assert download(mirror, tmp_path).kept == FILES


def test_a_shorter_file_is_gone_on_with(server, tmp_path):
    good = server.files[ZIPS[0]].content
    (tmp_path / ZIPS[0]).write_bytes(good[:-7000])
    download(server, tmp_path)
    assert server.sent[ZIPS[0]] == 7000
    assert (tmp_path / ZIPS[0]).read_bytes() == good


@pytest.mark.parametrize("longer", [True, False])
def test_another_file_of_that_name_is_left_alone(server, tmp_path, longer):
    path = tmp_path / (ZIPS[0] if longer else MOA_CSV)
    if longer:
        path.write_bytes(server.files[ZIPS[0]].content + b"more")
    else:
        write_csv(path, ["compound", "concentration", "moa"], MOA[:2])
    before = path.read_bytes()
    message = (
        rf"{path} has {len(before):,} bytes, {server.url}/{path.name} has "
        rf"{len(server.files[path.name].content):,}: it is another file; move it away"
    )
    with pytest.raises(BadData, match=message):
        download(server, tmp_path)
    assert path.read_bytes() == before


def test_without_a_server_what_is_there_will_do(server, tmp_path):
    download(server, tmp_path)
    with serve() as gone:
        pass
    result = download(gone, tmp_path)
    assert (result.fetched, result.kept) == ((), FILES)
    # Also where it was brought by other means, and nothing is written down.
    (tmp_path / "download.json").unlink()
    assert download(gone, tmp_path).kept == FILES
    record = json.loads((tmp_path / "download.json").read_text())
    assert sorted(record["files"]) == sorted(FILES)
    (tmp_path / ZIPS[0]).unlink()
    (tmp_path / ZIPS[1]).write_bytes(damaged((tmp_path / ZIPS[1]).read_bytes()) + b"more")
    # Once no connection came about, nothing else is tried for as long.
    message = rf"2 of 2 .*{ZIPS[0]}: .* no connection .*\(3 tries\); {ZIPS[1]}: not tried: no conn"
    with pytest.raises(BadData, match=message):
        download(gone, tmp_path, parallel=1)


def test_a_busy_server_is_not_waited_for_about_what_is_there(server, tmp_path, capsys):
    download(server, tmp_path)
    for served in server.files.values():
        served.always, served.retry_after = 503, "600"
    server.asked.clear()
    assert download(server, tmp_path, parallel=1, show=True).kept == FILES
    assert len(server.asked) == 2
    assert "answers 503" in capsys.readouterr().err


@pytest.mark.parametrize("record", ["", "{", "[]", '{"files": 3}', '{"files": {"a": 3}}'])
def test_a_damaged_record_is_none(server, tmp_path, record):
    download(server, tmp_path)
    (tmp_path / "download.json").write_text(record)
    assert download(server, tmp_path).kept == FILES


def test_want_of_space_is_told_before_anything_comes(server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**9))
    with pytest.raises(BadData, match=r"1\.1 GB are needed, with 1 GB to spare, and 1\.0 GB are"):
        download(server, tmp_path)
    assert server.sent == {}


def test_progress_in_a_log_is_lines_and_can_be_left_out(server, tmp_path, capsys):
    server.files[ZIPS[0]].statuses = [503]
    download(server, tmp_path / "told", show=True)
    shown = capsys.readouterr().err
    assert "\r" not in shown
    last = shown.splitlines()[-1]
    assert re.fullmatch(r"1\.55MB/1\.55MB of 2 files fetched, .*B/s, 00:00 left", last)
    download(server, tmp_path / "silent")
    assert capsys.readouterr().err == ""


@pytest.fixture
def held(server):
    """A server that stops in the middle of the first zip, and how much it sends before."""
    served = server.files[ZIPS[0]]
    served.gate, served.gate_after = threading.Event(), 131_072
    assert len(served.content) > 2 * served.gate_after
    return server, served.gate_after


def start(server, folder):
    command = [sys.executable, "-c", PROGRAM, str(folder), server.url]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_download_goes_on_where_it_was(held, tmp_path):
    server, size = held
    part = tmp_path / f"{ZIPS[0]}.part"
    process = start(server, tmp_path)
    wait_until(lambda: part.exists() and part.stat().st_size == size, process)
    process.kill()
    process.wait()
    assert part.stat().st_size == size
    server.files[ZIPS[0]].gate = None
    server.sent.clear()
    result = download(server, tmp_path)
    assert (result.kept, result.fetched) == (FILES[:2], ZIPS)
    assert server.sent[ZIPS[0]] == len(server.files[ZIPS[0]].content) - size
    assert there(tmp_path) == sorted([*FILES, "download.json"])
    with zipfile.ZipFile(tmp_path / ZIPS[0]) as archive:
        assert archive.testzip() is None


def test_a_download_that_is_interrupted_says_how_to_go_on(held, tmp_path):
    server, size = held
    part = tmp_path / f"{ZIPS[0]}.part"
    process = start(server, tmp_path)
    wait_until(lambda: part.exists() and part.stat().st_size == size, process)
    process.send_signal(signal.SIGINT)
    # The server says nothing for as long as this takes: nobody waits for it.
    _, told = process.communicate(timeout=50)
    assert process.returncode == 130
    lines = told.splitlines()
    assert lines[-2:] == [
        f"stopped: {tmp_path} keeps what has come, and the same command goes on with it",
        "error: interrupted",
    ]
    assert part.stat().st_size == size
