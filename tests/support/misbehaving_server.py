"""A local web server that misbehaves as configured for each path, and counts bytes."""

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
    """The response of a path.

    Attributes:
      content: the whole file.
      status: HTTP status of every response, instead of the file; 0: the file is sent.
      statuses: HTTP statuses of the first responses, instead of the file.
      cuts: bytes of the body after which the first connections end.
      cut_always: the same, for every connection.
      ranges: whether ranges are supported.
      claims: added to Content-Length.
      gate: event that a GET awaits after `gate_after` bytes of its body.
    """

    content: bytes
    status: int = 0
    statuses: list[int] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    cut_always: int | None = None
    ranges: bool = True
    claims: int = 0
    gate: threading.Event | None = None
    gate_after: int = 0


class Server:
    """The running server.

    Attributes:
      files: responses by path, without the slash.
      requests: (method, name) of all requests.
      sent: bytes of bodies by name.
      most_at_once: largest number of bodies sent at the same time.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.files: dict[str, Served] = {}
        self.requests: list[tuple[str, str]] = []
        self.sent: dict[str, int] = {}
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    """Runs a server on a free port of this machine."""
    listening = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    listening.daemon_threads = True
    server = Server(f"http://127.0.0.1:{listening.server_address[1]}")
    listening.state = server  # type: ignore[attr-defined]
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
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Prints nothing."""

    def do_HEAD(self) -> None:
        if served := self._served():
            self._send(200, len(served.content) + served.claims)

    def do_GET(self) -> None:
        served = self._served()
        if served is None:
            return
        size, start = len(served.content), 0
        requested = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if requested and served.ranges:
            start = int(requested[1])
            if start >= size:
                self._send(416, 0)
                return
            headers = {"Content-Range": f"bytes {start}-{size - 1}/{size}"}
            self._send(206, size - start + served.claims, headers)
        else:
            self._send(200, size + served.claims)
        self._send_body(served, served.content[start:])

    def _served(self) -> Served | None:
        """Returns the file of the path; None if a status was sent instead."""
        state, name = self.server.state, self.path.removeprefix("/")  # type: ignore[attr-defined]
        with state.lock:
            state.requests.append((self.command, name))
            served = state.files.get(name)
            if served is None:
                status = 404
            else:
                status = served.statuses.pop(0) if served.statuses else served.status
        if status:
            self._send(status, 0)
            return None
        return served

    def _send(self, status: int, length: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        more = {"Content-Length": str(length), "Connection": "close", **(headers or {})}
        for name, value in more.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True

    def _send_body(self, served: Served, body: bytes) -> None:
        """Sends a body, up to its cut."""
        state, name = self.server.state, self.path.removeprefix("/")  # type: ignore[attr-defined]
        with state.lock:
            cut = served.cuts.pop(0) if served.cuts else served.cut_always
            state.at_once += 1
            state.most_at_once = max(state.most_at_once, state.at_once)
        body = body[:cut]
        with contextlib.suppress(OSError):  # the client has disconnected
            for done in range(0, len(body), _BLOCK):
                if served.gate is not None and done >= served.gate_after:
                    served.gate.wait()
                block = body[done : done + _BLOCK]
                # Counted before they are sent: a test reads the count after the last byte.
                with state.lock:
                    state.sent[name] = state.sent.get(name, 0) + len(block)
                self.wfile.write(block)
                self.wfile.flush()
        with state.lock:
            state.at_once -= 1
