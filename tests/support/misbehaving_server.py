"""A web server on this machine that misbehaves as it is told, path by path, and counts bytes."""

import contextlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_BLOCK = 4096


@dataclass
class Served:
    """What a path gives, and how.

    Lists are used up from their start, an entry a GET (`statuses`: a request of any kind); after
    their end the server behaves.

    Attributes:
      content: the whole file.
      etag, modified: sent where they are not empty.
      ranges: whether parts are given; `careless`: also of another version than that asked for.
      head: what a HEAD is answered: 200, another status, or 0 to hang up.
      statuses: answered instead of the file.
      always: the same, for ever; 0: none.
      retry_after: goes with a status of those.
      cuts: bytes of the body after which the connection ends; None: not.
      cut_always: the same, for ever.
      claims: added to the length that is announced.
      content_range: sent instead of the true one.
      headers: further ones.
      chunked: sends no length.
      then: takes the place of this after the first GET of more than a byte.
      gate: a GET waits for it after `gate_after` bytes of its body.
      location: a redirect to it.
    """

    content: bytes
    etag: str = '"one"'
    modified: str = "Mon, 03 Jun 2013 10:00:00 GMT"
    ranges: bool = True
    careless: bool = False
    head: int = 200
    statuses: list[int] = field(default_factory=list)
    always: int = 0
    retry_after: str = ""
    cuts: list[int | None] = field(default_factory=list)
    cut_always: int | None = None
    claims: int = 0
    content_range: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    chunked: bool = False
    then: "Served | None" = None
    gate: threading.Event | None = None
    gate_after: int = 0
    location: str = ""


@dataclass(frozen=True)
class Asked:
    """A request as it came."""

    method: str
    path: str
    range: str
    if_range: str


class Server:
    """The running server.

    Attributes:
      files: what each path gives, by its name without the slash.
      asked: all requests.
      sent: bytes of bodies by name.
      most_at_once: bodies that were under way together.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.files: dict[str, Served] = {}
        self.asked: list[Asked] = []
        self.sent: dict[str, int] = {}
        self.most_at_once = 0
        self.at_once = 0
        self.lock = threading.Lock()

    def gets(self, name: str) -> list[Asked]:
        """The GETs of a file that ask for more than its first byte."""
        return [
            asked
            for asked in self.asked
            if asked.path == f"/{name}" and asked.method == "GET" and asked.range != "bytes=0-0"
        ]


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    """A server on a free port of this machine, for as long as the block takes."""

    class Handler(_Handler):
        """Knows its server."""

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    server = Handler.state = Server(f"http://127.0.0.1:{listening.server_address[1]}")
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        for served in server.files.values():
            if served.gate is not None:
                served.gate.set()
        listening.shutdown()
        listening.server_close()


class _Handler(BaseHTTPRequestHandler):
    state: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        served = self._served()
        if served is None or self._answers_status(served):
            return
        if served.head == 0:
            self._hang_up()
        elif served.head != 200:
            self._send(served.head, {"Content-Length": "0"})
        else:
            self._send(200, self._length(served, len(served.content)) | _version(served))

    def do_GET(self) -> None:
        served = self._served()
        if served is None or self._answers_status(served):
            return
        size = len(served.content)
        start, end = 0, size
        headers = _version(served) | served.headers
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range", "")
        valid = served.careless or condition in ("", served.etag, served.modified)
        status = 200
        if asked and served.ranges and valid:
            start, end = int(asked[1]), min(int(asked[2] or size) + bool(asked[2]), size)
            if start >= size:
                headers |= {"Content-Range": f"bytes */{size}", "Content-Length": "0"}
                self._send(416, headers)
                return
            status = 206
            true = f"bytes {start}-{end - 1}/{size}"
            headers["Content-Range"] = served.content_range or true
        self._send(status, headers | self._length(served, end - start))
        self._send_body(served, served.content[start:end])

    def _served(self) -> Served | None:
        """What the path gives; 404 where it gives nothing."""
        state, name = self.state, self.path.removeprefix("/")
        with state.lock:
            headers = self.headers
            state.asked.append(
                Asked(
                    self.command, self.path, headers.get("Range", ""), headers.get("If-Range", "")
                )
            )
            served = state.files.get(name)
            if served is None:
                self._send(404, {"Content-Length": "0"})
                return None
            one_byte = self.headers.get("Range") == "bytes=0-0"
            if self.command == "GET" and not one_byte and served.then is not None:
                state.files[name] = served.then
        return served

    def _answers_status(self, served: Served) -> bool:
        """Whether the path answers with a status alone."""
        if served.location:
            self._send(302, {"Location": served.location, "Content-Length": "0"})
            return True
        with self.state.lock:
            status = served.statuses.pop(0) if served.statuses else served.always
        if status:
            after = {"Retry-After": served.retry_after} if served.retry_after else {}
            self._send(status, {"Content-Length": "0", **after})
        return bool(status)

    def _length(self, served: Served, size: int) -> dict[str, str]:
        if served.chunked:
            return {"Transfer-Encoding": "chunked"}
        return {"Content-Length": str(size + served.claims)}

    def _send(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True

    def _send_body(self, served: Served, body: bytes) -> None:
        """Sends it, as far as the path does."""
        state, name = self.state, self.path.removeprefix("/")
        with state.lock:
            cut = served.cuts.pop(0) if served.cuts else served.cut_always
            state.at_once += 1
            state.most_at_once = max(state.most_at_once, state.at_once)
        left = body if cut is None else body[:cut]
        try:
            done = 0
            while done < len(left):
                if served.gate is not None and done >= served.gate_after:
                    served.gate.wait()
                block = left[done : done + _BLOCK]
                # Before they go: whoever got the last of them counts them at once.
                with state.lock:
                    state.sent[name] = state.sent.get(name, 0) + len(block)
                if served.chunked:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(block), block))
                else:
                    self.wfile.write(block)
                self.wfile.flush()
                done += len(block)
            if served.chunked and cut is None:
                self.wfile.write(b"0\r\n\r\n")
        except OSError:
            pass  # the other side is gone
        finally:
            with state.lock:
                state.at_once -= 1
        if cut is not None:
            self._hang_up()

    def _hang_up(self) -> None:
        """Ends the connection."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(2)


def _version(served: Served) -> dict[str, str]:
    told = {"ETag": served.etag, "Last-Modified": served.modified}
    return {name: value for name, value in told.items() if value}
