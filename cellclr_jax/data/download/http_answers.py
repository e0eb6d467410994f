"""Asks servers over HTTP, again where that helps, and says in one line what they fail in."""

import contextlib
import email.utils
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cellclr_jax.data.download.part_file import Remote
from cellclr_jax.errors import BadData

if TYPE_CHECKING:
    import requests

# What a server answers that has no time now; so does any number from 500.
_BUSY = (408, 425, 429)
_GONE = (404, 410)
CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18}|\*)")


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for.

    Attributes:
      connect: seconds until a connection stands.
      read: seconds without a byte.
      wait: seconds before the second try; before each further one twice as many, and anything
        from half to all of it, so that not all files come back at once.
      longest_wait: seconds, also where the server asks for more.
      tries: in a row that bring no new byte.
    """

    connect: float = 20.0
    read: float = 60.0
    wait: float = 1.0
    longest_wait: float = 60.0
    tries: int = 10


class Unreachable(BadData):
    """No connection comes about, however often it is tried."""


class Stopped(Exception):
    """Somebody asked for an end."""


class Failure(Exception):
    """What may go well another time.

    Args:
      reason: what went wrong.
      after: seconds that the server asks to wait.
      connected: whether there was a connection at all.
    """

    def __init__(self, reason: str, *, after: float = 0.0, connected: bool = True) -> None:
        super().__init__(reason)
        self.after, self.connected = after, connected


@dataclass(frozen=True)
class Http:
    """How servers are asked.

    Attributes:
      patience: with servers.
      stop: set, it ends everything with `Stopped`, at the next block at the latest.
      tell: called with a line about each try that failed.
    """

    patience: Patience
    stop: threading.Event
    tell: Callable[[str], None]

    def ask(self, url: str) -> Remote:
        """Asks what a file is, without fetching it.

        Raises:
          Unreachable: no connection comes about.
          BadData: the server does not have it or does not give it.
          Stopped: see `stop`.
        """
        tries = Tries(self, url)
        method = "HEAD"
        while True:
            try:
                if (remote := self._ask_once(method, url)) is not None:
                    return remote
            except Failure as failure:
                tries.again(failure)
            # Some servers refuse a HEAD, answer it with nothing, or hang up.
            method = "GET"

    def _ask_once(self, method: str, url: str) -> Remote | None:
        """What a file is; None where a HEAD does not tell."""
        # The first byte comes with the size of the whole, and none is read of what else comes.
        headers = {} if method == "HEAD" else {"Range": "bytes=0-0"}
        with self.answer(method, url, headers) as answer:
            if method == "GET":
                check_status(answer, url, (200, 206, 416))
                return told(answer, url)
            if answer.status_code in _GONE or answer.status_code == 200:
                check_status(answer, url, (200,))
                remote = told(answer, url)
                return remote if remote.size else None
            return None

    @contextlib.contextmanager
    def answer(
        self, method: str, url: str, headers: Mapping[str, str]
    ) -> "Iterator[requests.Response]":
        """The answer to a request, its body yet to be read.

        Raises:
          BadData: the address is none, or the server cannot prove to be itself.
          Failure: everything else that goes wrong on the way, also while the body is read.
        """
        import requests
        from urllib3.exceptions import HTTPError

        if self.stop.is_set():
            raise Stopped
        # Without its own compression: sizes and ranges are those of the file. A connection for
        # each request: what a server sends too much of one must not be taken for the next.
        sent = {"Accept-Encoding": "identity", "Connection": "close", "User-Agent": "cellclr_jax"}
        timeouts = (self.patience.connect, self.patience.read)
        try:
            with (
                requests.Session() as session,
                session.request(
                    method,
                    url,
                    headers=sent | dict(headers),
                    timeout=timeouts,
                    stream=True,
                    allow_redirects=True,
                ) as answer,
            ):
                yield answer
        except (ValueError, requests.exceptions.TooManyRedirects) as error:
            # An address that is none, or leads to none or to another kind than http(s).
            raise BadData(f"{url}: {error}") from error
        except (requests.exceptions.RequestException, HTTPError) as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise BadData(f"{url}: the server's certificate is not valid ({error})") from error
            raise _failure(error, self.patience) from error


class Tries:
    """Counts the tries in a row that brought nothing, and waits between them."""

    def __init__(self, http: Http, url: str) -> None:
        self._http, self._url = http, url
        self._failed = 0

    def succeed(self) -> None:
        """There was progress: the count begins anew."""
        self._failed = 0

    def again(self, failure: Failure) -> None:
        """Waits before another try.

        Raises:
          Unreachable, BadData: that was the last one.
          Stopped: while it waited.
        """
        self._failed += 1
        patience = self._http.patience
        if self._failed >= patience.tries:
            times = f"{self._failed} tries" if self._failed > 1 else "1 try"
            kind = BadData if failure.connected else Unreachable
            raise kind(f"{self._url}: {failure} ({times})") from failure
        wait = min(patience.wait * 2 ** (self._failed - 1), patience.longest_wait)
        wait *= random.uniform(0.5, 1.0)
        wait = max(wait, min(failure.after, patience.longest_wait))
        self._http.tell(f"{self._url}: {failure}; trying again in {wait:.0f} s")
        if self._http.stop.wait(wait):
            raise Stopped


def told(answer: "requests.Response", url: str) -> Remote:
    """What an answer tells of the file."""
    encoding = answer.headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity":
        raise BadData(f"{url}: the server packs it ({encoding[:20]}) though it was asked not to")
    if answer.status_code == 200:
        length = answer.headers.get("Content-Length", "")
        size = int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None
    else:
        match = CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        size = int(match[3]) if match and match[3] != "*" else None
    return Remote(size, answer.headers.get("ETag", ""), answer.headers.get("Last-Modified", ""))


def check_status(answer: "requests.Response", url: str, expected: tuple[int, ...]) -> None:
    """Raises what an answer means that is none of those expected."""
    if answer.status_code in expected:
        return
    reason = f"the server answers {answer.status_code} {(answer.reason or '')[:60]}".strip()
    if answer.status_code in _BUSY or answer.status_code >= 500:
        raise Failure(reason, after=_seconds(answer.headers.get("Retry-After", "")))
    raise BadData(f"{url}: {reason}")


def _seconds(after: str) -> float:
    """The seconds of a Retry-After, which may be a date; 0 where it is neither."""
    if re.fullmatch(r"[0-9]{1,9}", after):
        return float(after)
    try:
        return max(email.utils.parsedate_to_datetime(after).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _failure(error: Exception, patience: Patience) -> Failure:
    """What went wrong on the way, in few words.

    Args:
      error: of requests, which holds one of urllib3, or of urllib3.
      patience: that came to its end.
    """
    import requests
    from urllib3.exceptions import NewConnectionError, ReadTimeoutError

    held = error
    if isinstance(error, requests.exceptions.RequestException) and error.args:
        held = getattr(error.args[0], "reason", error.args[0])
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return Failure(f"no connection within {patience.connect:g} s", connected=False)
    if isinstance(held, NewConnectionError):
        return Failure(f"no connection ({str(held).rpartition(': ')[2]})", connected=False)
    if isinstance(held, ReadTimeoutError):
        return Failure(f"nothing came for {patience.read:g} s")
    return Failure("the connection broke off")
