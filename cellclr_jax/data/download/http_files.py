"""Fetches one file over HTTP: goes on where it was cut, and believes no server."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from cellclr_jax.data.download.http_answers import Failure, Http, Stopped, Tries, check_status, told
from cellclr_jax.data.download.part_file import PartFile, Remote
from cellclr_jax.errors import BadData

if TYPE_CHECKING:
    import requests

# The most bytes that are written at once, and that a kill loses.
_BLOCK = 64 << 10
# A server may replace a file while it is fetched, but not again and again.
_MOST_CHANGES = 3
_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(?:\d{1,18}|\*)")


def fetch(
    http: Http,
    url: str,
    part: PartFile,
    remote: Remote,
    *,
    most_bytes: int,
    reach: Callable[[int], None] = lambda size: None,
) -> Remote:
    """Fetches a file, or what is missing of it, until the part is whole.

    Args:
      http: how the server is asked.
      url: of the file.
      part: gone on with where nothing says that it is of another file or version; else begun anew.
      remote: what `http.ask` told of the file.
      most_bytes: what has more is refused.
      reach: called with the bytes that are there, after each block.

    Returns:
      What was told of the file as it came, with its size.

    Raises:
      Unreachable: no connection comes about.
      BadData: the server does not give it, contradicts itself or changes it again and again; or
        the disk does not take it.
      Stopped: see `Http.stop`.
    """
    return _Transfer(http, url, part, remote, most_bytes, reach).run()


class _Transfer:
    """One file on its way, in as many requests as it takes."""

    def __init__(
        self,
        http: Http,
        url: str,
        part: PartFile,
        remote: Remote,
        most_bytes: int,
        reach: Callable[[int], None],
    ) -> None:
        self._http, self._url, self._part, self._reach = http, url, part, reach
        self._most_bytes = most_bytes
        self._tries = Tries(http, url)
        self._expect(remote)
        if not part.is_of(remote):
            part.begin(remote)
        # The most that was ever there. A server that sends a file from its start each time, and is
        # cut at the same place each time, makes no progress.
        self._furthest = part.size
        self._changes = 0
        self._ended = False
        # Whether the next request is for all of it: the answer to one for the rest was no use.
        self._from_start = False

    def run(self) -> Remote:
        """Fetches until all is there."""
        self._reach(self._part.size)
        while not (self._ended or self._part.size == self._remote.size):
            try:
                self._request()
            except Failure as failure:
                self._tries.again(failure)
        return replace(self._remote, size=self._part.size)

    def _expect(self, remote: Remote) -> None:
        """From now on the file is this."""
        if remote.size is not None and remote.size > self._most_bytes:
            raise BadData(
                f"{self._url}: the server announces {remote.size:,} bytes, more than the "
                f"{self._most_bytes:,} that such a file may have"
            )
        self._remote = remote

    def _request(self) -> None:
        """Asks for what is missing and takes what comes."""
        start = 0 if self._from_start else self._part.size
        headers = {"Range": f"bytes={start}-"} if start else {}
        if start and self._remote.validator:
            headers["If-Range"] = self._remote.validator
        with self._http.answer("GET", self._url, headers) as answer:
            check_status(answer, self._url, (200, 206, 416) if start else (200,))
            now = told(answer, self._url)
            if answer.status_code == 416:
                self._past_the_end(now, start)
            elif answer.status_code == 200:
                # All of it: the server has another version than before, or knows no ranges.
                self._begin(now)
                self._take(answer)
            elif self._continues(answer, now, start):
                self._take(answer)

    def _begin(self, now: Remote) -> None:
        """Takes the file from its start."""
        if not now.may_be(self._remote):
            self._count_change()
        else:
            self._check_size(now)
            now = replace(now, size=self._remote.size if now.size is None else now.size)
        self._expect(now)
        self._part.begin(now)
        self._from_start = False

    def _check_size(self, now: Remote) -> None:
        """Raises BadData where a file has two sizes."""
        before = self._remote.size
        if before is not None and now.size is not None and now.size != before:
            raise BadData(
                f"{self._url}: the server announces {before:,} bytes and then {now.size:,} of the "
                "same file; try again later, or fetch it by other means"
            )

    def _count_change(self) -> None:
        """The file on the server is another one now: what came of the old one is no progress."""
        self._changes += 1
        if self._changes > _MOST_CHANGES:
            raise BadData(f"{self._url}: it changes while it is fetched; try again later")
        self._furthest = 0

    def _past_the_end(self, now: Remote, start: int) -> None:
        """The server has nothing after the part, which is whole or of another version."""
        if now.size == start:
            self._check_size(now)
            self._ended = True
            return
        self._count_change()
        self._from_start = True

    def _continues(self, answer: "requests.Response", now: Remote, start: int) -> bool:
        """Whether an answer is the rest of the part; where not, the next request is for all."""
        if not now.may_be(self._remote):
            self._count_change()
            self._from_start = True
            return False
        match = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        sizes = {now.size, self._remote.size} - {None}
        if match is None or int(match[1]) != start or len(sizes) > 1:
            self._from_start = True
            raise Failure(
                f"the server was asked for what follows byte {start:,} and sends "
                f"{answer.headers.get('Content-Range', 'no range')[:60]!r}"
            )
        if self._remote.size is None:
            self._expect(replace(self._remote, size=now.size))
        return True

    def _take(self, answer: "requests.Response") -> None:
        """Writes what comes behind what is there."""
        known = self._remote.size
        most = self._most_bytes if known is None else known
        size = self._part.size
        with self._part.end() as end:
            # As it comes: what waits for a full block is lost where the connection breaks off.
            while block := answer.raw.read1(_BLOCK, decode_content=False):
                if self._http.stop.is_set():
                    raise Stopped
                size += len(block)
                if size > most:
                    self._part.drop()
                    raise BadData(f"{self._url}: more comes than the {most:,} bytes there may be")
                self._part.append(end, block)
                if size > self._furthest:
                    self._furthest = size
                    self._tries.succeed()
                self._reach(size)
        if known is None:
            self._ended = True
        elif size < known:
            raise Failure(f"the connection ended at {size:,} of {known:,} bytes")
