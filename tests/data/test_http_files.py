"""A file comes whole from a server that cuts, lies, changes, refuses and waits; or says why not."""

import errno
import io
import itertools
import json
import threading
import time
from email.utils import formatdate
from pathlib import Path

import numpy as np
import pytest
from support.misbehaving_server import Served, serve

from cellclr_jax.data.download import part_file
from cellclr_jax.data.download.http_answers import Http, Patience, Stopped, Unreachable
from cellclr_jax.data.download.http_files import fetch
from cellclr_jax.data.download.part_file import PartFile, Remote
from cellclr_jax.errors import BadData

# More than one block; no two parts of it are alike.
CONTENT = np.random.default_rng(0).bytes(200_000)
OTHER = np.random.default_rng(1).bytes(180_000)
HASTY = Patience(connect=5.0, read=5.0, wait=0.001, longest_wait=0.01, tries=3)


class Waits(threading.Event):
    """A stop that nobody asks for, and what was waited for it."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def wait(self, timeout=None):
        self.seconds.append(timeout)
        return self.is_set()


@pytest.fixture
def server():
    with serve() as running:
        yield running


@pytest.fixture
def part(tmp_path):
    return PartFile(tmp_path / "file.bin")


def http(patience=HASTY, stop=None):
    return Http(patience, stop or threading.Event(), lambda message: None)


def get(server, part, *, remote=None, most=1 << 20, **settings):
    """Asks for the file, fetches it and returns it."""
    caller = http(**settings)
    url = f"{server.url}/file.bin"
    told = fetch(caller, url, part, remote or caller.ask(url), most_bytes=most)
    content = part.path.read_bytes()
    assert told.size == len(content)
    return content


def leave(part, content, remote):
    """What an earlier call may have left."""
    part.begin(remote)
    part.path.write_bytes(content)


def test_a_file_comes_whole_in_one_request_and_takes_its_name(server, part, tmp_path):
    server.files["file.bin"] = Served(CONTENT)
    assert get(server, part) == CONTENT
    assert server.sent == {"file.bin": len(CONTENT)}
    part.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]


def test_a_cut_file_goes_on_where_it_was_cut(server, part):
    server.files["file.bin"] = Served(CONTENT, cuts=[70_000, 1, 90_000])
    assert get(server, part) == CONTENT
    assert server.sent["file.bin"] == len(CONTENT)
    asked = [(asked.range, asked.if_range) for asked in server.gets("file.bin")]
    starts = (70_000, 70_001, 160_001)
    assert asked == [("", ""), *((f"bytes={start}-", '"one"') for start in starts)]


def test_a_part_of_an_earlier_call_is_gone_on_with(server, part):
    server.files["file.bin"] = Served(CONTENT)
    leave(part, CONTENT[:150_000], http().ask(f"{server.url}/file.bin"))
    assert get(server, part) == CONTENT
    assert server.sent["file.bin"] == 50_000


def test_progress_renews_the_patience(server, part):
    server.files["file.bin"] = Served(CONTENT, cuts=[9_000] * 20)
    assert get(server, part) == CONTENT


@pytest.mark.parametrize(("ranges", "cut"), [(True, 0), (False, 5_000)])
def test_without_progress_the_patience_ends(server, part, ranges, cut):
    server.files["file.bin"] = Served(CONTENT, ranges=ranges, cut_always=cut)
    with pytest.raises(BadData, match=r"file\.bin: the connection broke off \(3 tries\)"):
        get(server, part)
    assert len(server.gets("file.bin")) <= 4


def test_a_server_without_ranges_sends_all_of_it_again(server, part):
    server.files["file.bin"] = Served(CONTENT, ranges=False, cuts=[70_000])
    assert get(server, part) == CONTENT
    assert server.sent["file.bin"] == 70_000 + len(CONTENT)


@pytest.mark.parametrize(
    "other",
    [
        Served(OTHER, etag='"two"'),
        Served(OTHER, etag="", modified="Tue, 04 Jun 2013 10:00:00 GMT"),
        Served(CONTENT[::-1], etag='"two"'),
    ],
)
@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_that_changed_begins_anew(server, part, other, ranges):
    first = Served(CONTENT, etag=other.etag and '"one"', cuts=[70_000], ranges=ranges, then=other)
    server.files["file.bin"] = first
    assert get(server, part) == other.content


def test_a_part_of_another_version_is_not_gone_on_with(server, part):
    server.files["file.bin"] = Served(CONTENT, etag='"new"')
    leave(part, OTHER[:70_000], Remote(len(CONTENT), '"old"'))
    assert get(server, part) == CONTENT
    assert [asked.range for asked in server.gets("file.bin")] == [""]


def test_a_server_that_overlooks_a_change_is_not_believed(server, part):
    careless = Served(OTHER, etag='"two"', careless=True)
    server.files["file.bin"] = Served(CONTENT, cuts=[70_000], then=careless)
    assert get(server, part) == OTHER
    assert [asked.range for asked in server.gets("file.bin")] == ["", "bytes=70000-", ""]


def test_a_file_that_changes_each_time_is_given_up(server, part):
    versions = [Served(CONTENT, etag=f'"{number}"', cuts=[9_000]) for number in range(9)]
    for version, following in itertools.pairwise(versions):
        version.then = following
    server.files["file.bin"] = versions[0]
    with pytest.raises(BadData, match="changes while it is fetched"):
        get(server, part)


def test_a_weak_tag_does_not_name_bytes(server, part):
    served = Served(CONTENT, etag='W/"one"', cuts=[70_000])
    server.files["file.bin"] = served
    assert get(server, part) == CONTENT
    assert server.gets("file.bin")[1].if_range == served.modified


def test_without_a_validator_the_size_must_do(server, part):
    server.files["file.bin"] = Served(CONTENT, etag="", modified="", cuts=[70_000])
    assert get(server, part) == CONTENT
    assert server.sent["file.bin"] == len(CONTENT)
    assert server.gets("file.bin")[1].if_range == ""


def test_a_whole_part_needs_no_request(server, part):
    server.files["file.bin"] = Served(CONTENT)
    leave(part, CONTENT, Remote(len(CONTENT), '"one"'))
    assert get(server, part) == CONTENT
    assert server.gets("file.bin") == []


def test_nothing_after_a_whole_part_of_unknown_size(server, part):
    server.files["file.bin"] = Served(CONTENT)
    leave(part, CONTENT, Remote(None, '"one"'))
    assert get(server, part, remote=Remote(None, '"one"')) == CONTENT
    assert [asked.range for asked in server.gets("file.bin")] == ["bytes=200000-"]


@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_a_part_that_is_too_long_begins_anew(server, part, size):
    server.files["file.bin"] = Served(CONTENT)
    leave(part, CONTENT + b"more", Remote(size, '"one"'))
    assert get(server, part, remote=Remote(size, '"one"')) == CONTENT


@pytest.mark.parametrize(
    "memory", ["", "[]", "{", "{}", '{"size": "x"}', '{"etag": 5}', '{"bytes": 3}', "[" * 9999]
)
@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_a_part_that_nobody_knows_begins_anew(server, part, tmp_path, memory, size):
    server.files["file.bin"] = Served(CONTENT)
    part.path.write_bytes(OTHER[:70_000])
    if memory:
        (tmp_path / "file.bin.part.json").write_text(memory)
    assert get(server, part, remote=Remote(size, '"one"')) == CONTENT


@pytest.mark.parametrize(
    "wrong", ["bytes 0-199999/200000", "bytes 70000-199999/300000", "lines 1-2/3", "bytes */200000"]
)
def test_a_range_that_was_not_asked_for_is_not_taken(server, part, wrong):
    server.files["file.bin"] = Served(CONTENT, cuts=[70_000], content_range=wrong)
    caller = http()
    remote = Remote(len(CONTENT), '"one"')
    assert fetch(caller, f"{server.url}/file.bin", part, remote, most_bytes=1 << 20)
    assert part.path.read_bytes() == CONTENT
    assert [asked.range for asked in server.gets("file.bin")] == ["", "bytes=70000-", ""]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_length_longer_than_the_file_is_a_lie(server, part, ranges):
    server.files["file.bin"] = Served(CONTENT, claims=100, ranges=ranges)
    message = r"announces 200,100 bytes and then 200,000" if ranges else r"\(3 tries\)"
    with pytest.raises(BadData, match=message):
        get(server, part)


def test_a_length_shorter_than_the_file_is_a_lie(server, part):
    server.files["file.bin"] = Served(CONTENT, claims=-100)
    with pytest.raises(BadData, match=r"announces 200,000 bytes and then 199,900"):
        get(server, part, remote=Remote(len(CONTENT), '"one"'))
    # Where it lies the same each time, what comes is as announced: the file's own check is left.
    assert get(server, part) == CONTENT[:-100]


@pytest.mark.parametrize("cuts", [[], [70_000]])
def test_a_file_of_unknown_size_ends_where_it_says(server, part, cuts):
    server.files["file.bin"] = Served(CONTENT, chunked=True, cuts=cuts)
    assert get(server, part, remote=Remote()) == CONTENT


def test_more_than_may_be_is_refused(server, part):
    server.files["file.bin"] = Served(CONTENT)
    with pytest.raises(BadData, match=r"announces 200,000 bytes, more than the 100,000"):
        get(server, part, most=100_000)
    assert server.gets("file.bin") == []
    server.files["file.bin"] = Served(CONTENT, chunked=True)
    with pytest.raises(BadData, match="more comes than the 100,000 bytes"):
        get(server, part, most=100_000, remote=Remote())
    with pytest.raises(BadData, match="more comes than the 150,000 bytes"):
        get(server, part, remote=Remote(150_000))
    assert part.size == 0


def test_a_busy_server_is_waited_for_as_it_asks(server, part):
    stop = Waits()
    server.files["file.bin"] = Served(CONTENT, statuses=[503, 429], retry_after="7")
    patience = Patience(wait=1.0, longest_wait=20.0, tries=3)
    remote = Remote(len(CONTENT))
    assert get(server, part, remote=remote, patience=patience, stop=stop) == CONTENT
    assert stop.seconds == [7.0, 7.0]


@pytest.mark.parametrize(
    ("retry_after", "least", "most"),
    [
        ("9999", 20, 20),
        (formatdate(time.time() + 9999, usegmt=True), 20, 20),
        (formatdate(time.time() - 9999, usegmt=True), 0.5, 1),
        ("soon", 0.5, 1),
        ("-5", 0.5, 1),
        ("", 0.5, 1),
    ],
)
def test_what_a_server_asks_has_bounds(server, part, retry_after, least, most):
    stop = Waits()
    server.files["file.bin"] = Served(CONTENT, statuses=[500], retry_after=retry_after)
    patience = Patience(wait=1.0, longest_wait=20.0, tries=3)
    get(server, part, remote=Remote(len(CONTENT)), patience=patience, stop=stop)
    assert least <= stop.seconds[0] <= most


def test_waits_double_up_to_the_longest(server, part):
    stop = Waits()
    server.files["file.bin"] = Served(CONTENT, always=500)
    patience = Patience(wait=1.0, longest_wait=5.0, tries=6)
    with pytest.raises(BadData, match=r"answers 500 Internal Server Error \(6 tries\)"):
        get(server, part, remote=Remote(), patience=patience, stop=stop)
    for waited, most in zip(stop.seconds, (1, 2, 4, 5, 5), strict=True):
        assert most / 2 <= waited <= most


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 416, 204, 304])
def test_what_a_server_refuses_is_not_asked_again(server, part, status):
    server.files["file.bin"] = Served(CONTENT, always=status)
    with pytest.raises(BadData, match=rf"{server.url}/file\.bin: the server answers {status} "):
        get(server, part, remote=Remote(len(CONTENT)))
    assert len(server.asked) == 1


@pytest.mark.parametrize("head", [405, 403, 501, 503, 0])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_server_that_refuses_a_head_tells_with_a_byte(server, head, ranges):
    served = server.files["file.bin"] = Served(CONTENT, head=head, ranges=ranges)
    told = http().ask(f"{server.url}/file.bin")
    assert told == Remote(len(CONTENT), served.etag, served.modified)
    assert server.gets("file.bin") == []


def test_a_size_that_nobody_tells_is_unknown(server):
    server.files["file.bin"] = Served(CONTENT, chunked=True, ranges=False)
    assert http().ask(f"{server.url}/file.bin").size is None


def test_redirects_are_followed_to_the_web_alone(server, part):
    server.files["real.bin"] = Served(CONTENT)
    server.files["file.bin"] = Served(b"", location=f"{server.url}/real.bin")
    assert get(server, part) == CONTENT
    for location in ("file:///etc/passwd", "ftp://127.0.0.1/a", "http://[bad", "file.bin"):
        server.files["file.bin"] = Served(b"", location=location)
        with pytest.raises(BadData, match=r"file\.bin: "):
            get(server, part)


def test_a_server_that_falls_silent_is_asked_again(server, part):
    silent = Served(CONTENT, gate=threading.Event(), gate_after=80_000, then=Served(CONTENT))
    server.files["file.bin"] = silent
    told = []
    caller = Http(Patience(read=0.2, wait=0.001, tries=2), threading.Event(), told.append)
    url = f"{server.url}/file.bin"
    fetch(caller, url, part, caller.ask(url), most_bytes=1 << 20)
    silent.gate.set()
    assert part.path.read_bytes() == CONTENT
    assert told == [f"{url}: nothing came for 0.2 s; trying again in 0 s"]


def test_where_no_server_is_none_is_reached(server, part):
    with serve() as gone:
        url = gone.url
    with pytest.raises(Unreachable, match=r"no connection \(.*refused\) \(3 tries\)"):
        http().ask(f"{url}/file.bin")
    with pytest.raises(Unreachable):
        fetch(http(), f"{url}/file.bin", part, Remote(), most_bytes=9)


def test_a_stop_ends_it_at_the_next_block_and_while_it_waits(server, part):
    stop = threading.Event()
    server.files["file.bin"] = Served(CONTENT)
    remote = Remote(len(CONTENT), '"one"')

    def reach(size):
        if size:
            stop.set()

    with pytest.raises(Stopped):
        fetch(http(stop=stop), f"{server.url}/file.bin", part, remote, most_bytes=9**9, reach=reach)
    assert 0 < part.size < len(CONTENT)
    assert part.path.read_bytes() == CONTENT[: part.size]
    stop = threading.Event()
    server.files["file.bin"] = Served(CONTENT, always=503)
    caller = Http(Patience(wait=600.0, longest_wait=600.0), stop, lambda message: stop.set())
    with pytest.raises(Stopped):
        caller.ask(f"{server.url}/file.bin")


def test_a_packed_body_is_refused(server, part):
    server.files["file.bin"] = Served(CONTENT, headers={"Content-Encoding": "gzip"})
    with pytest.raises(BadData, match=r"file\.bin: the server packs it \(gzip\)"):
        get(server, part)


@pytest.mark.parametrize(
    ("number", "advice"), [(errno.ENOSPC, "free some space"), (errno.EIO, r"error\)$")]
)
def test_a_full_disk_ends_it_and_keeps_the_part(server, part, monkeypatch, number, advice):
    class Full(io.FileIO):
        """A disk with room for 100,000 bytes."""

        def write(self, block):
            room = 100_000 - self.tell()
            if room <= 0:
                raise OSError(number, "no room" if number == errno.ENOSPC else "error")
            return super().write(block[:room])

    server.files["file.bin"] = Served(CONTENT)
    with monkeypatch.context() as full:
        full.setattr(part_file.io, "FileIO", Full)
        with pytest.raises(BadData, match=rf"file\.bin\.part: it cannot be written.*{advice}"):
            get(server, part)
    assert part.size == 100_000
    assert get(server, part) == CONTENT
    assert server.gets("file.bin")[-1].range == "bytes=100000-"


def test_the_memory_of_a_part_can_be_read(server, part, tmp_path):
    server.files["file.bin"] = Served(CONTENT, cut_always=0)
    with pytest.raises(BadData):
        get(server, part)
    memory = json.loads(Path(tmp_path, "file.bin.part.json").read_text())
    assert memory == {
        "size": 200_000,
        "etag": '"one"',
        "modified": "Mon, 03 Jun 2013 10:00:00 GMT",
    }
