"""Downloads BBBC021, or a release with the same files: two tables, then a zip for each plate.

A file is called `<name>.part` until it is complete and verified; the next call resumes it.
"""

import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from cellclr_jax.console import Progress, echo, listed
from cellclr_jax.data.readers.find_files import check_zip
from cellclr_jax.data.tables import bbbc021
from cellclr_jax.data.tables.bbbc021 import IMAGE_CSV, MOA_CSV, RELEASE_URL, ZIP_PREFIX
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.files import locked

RETRY = Retry(
    total=6,  # with the waits below about a minute
    backoff_factor=1,
    backoff_max=60,
    status_forcelist=(408, 429, 500, 502, 503, 504),
    raise_on_status=False,
)
"""Number of repetitions of a request, and the waits between them."""
# Seconds to wait for a connection, and for a byte.
_TIMEOUTS = (20, 60)
# Bytes of a write.
_BLOCK = 64 << 10
# Bytes of the disk to leave free for other programs.
_MARGIN = 1 << 30
# A plate's name becomes part of a file's.
_PLATE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")

# Reads a complete file; raises BadData if it is damaged.
Check = Callable[[Path], object]


def download_release(
    folder: Path,
    *,
    plates: Sequence[str] = (),
    url: str = RELEASE_URL,
    parallel: int = 4,
    show: bool = True,
    retry: Retry = RETRY,
) -> list[str]:
    """Downloads the tables and zips that are missing in a folder; existing files are kept.

    Args:
      folder: created if missing.
      plates: names of the plates; empty: all of the image table.
      url: of the folder that holds the release, http or https.
      parallel: number of simultaneous files.
      show: shows a bar, or lines if the console is a file.
      retry: of requests; its total also limits consecutive interruptions without a new byte.

    Returns:
      The names of the downloaded files.

    Raises:
      BadUse: a wrong address or plate, or another process downloads into the folder.
      BadData: the disk is too small, or files cannot be downloaded, each with the reason; the
        others are complete, and parts are kept.
    """
    base = _checked_url(url)
    if parallel < 1:
        raise BadUse(f"{parallel} files at once: at least one was expected")
    with locked(folder, ".downloading", "downloading into it"):
        downloader = _Downloader(folder, base, parallel, show, retry)
        try:
            tables = {IMAGE_CSV: bbbc021.read_image_csv, MOA_CSV: bbbc021.read_moa_csv}
            for name in tables:
                # Without a checksum, a resumed table could be a mixture of two versions.
                (folder / f"{name}.part").unlink(missing_ok=True)
            fetched = downloader.fetch(tables)
            wanted = _wanted_plates(folder / IMAGE_CSV, plates)
            zips = {f"{ZIP_PREFIX}{plate}.zip": check_zip for plate in wanted}
            return fetched + downloader.fetch(zips)
        except _Unreachable as error:
            raise BadData(f"{error}; run the same command again to resume") from error
        except KeyboardInterrupt:
            echo(f"stopped; run the same command again to resume the files in {folder}")
            raise
        finally:
            downloader.stop()


def _checked_url(url: str) -> str:
    """Checks the address of a folder on the web (BadUse); returns it without its last slash."""
    try:
        parts = urlsplit(url)
        host, user = parts.hostname, parts.username
    except ValueError:
        host = user = None
    if user is not None:
        # Messages must not show the password.
        raise BadUse(
            f"https://…@{host}: write user and password into ~/.netrc, not into the address"
        )
    if not host or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
        raise BadUse(f"{url}: http://… or https://… was expected, the folder of a release")
    return url.rstrip("/")


def _wanted_plates(image_csv: Path, plates: Sequence[str]) -> list[str]:
    """Lists the requested plates in the order of the image table."""
    known = list(dict.fromkeys(bbbc021.read_image_csv(image_csv)["plate"]))
    if unknown := sorted(set(plates) - set(known)):
        raise BadUse(
            f"--plates={','.join(unknown)}: not in {image_csv}, which has {len(known)} plates: "
            f"{listed(known)}"
        )
    wanted = [plate for plate in known if not plates or plate in plates]
    for plate in wanted:
        if not _PLATE.fullmatch(plate):
            raise BadData(f"{image_csv}: plate {plate!r} cannot be part of a file's name")
    return wanted


class _Unreachable(Exception):
    """The server does not answer: there is no point in requesting other files."""


class _Downloader:
    """Fetches files of one server into one folder, several at once."""

    def __init__(self, folder: Path, url: str, parallel: int, show: bool, retry: Retry) -> None:
        self._folder, self._url, self._parallel, self._show = folder, url, parallel, show
        self._retry = retry
        self._stopped, self._lock = threading.Event(), threading.Lock()
        self._session = requests.Session()
        # Sizes and ranges must be those of the file, not of a compressed transfer.
        self._session.headers.update({"Accept-Encoding": "identity", "User-Agent": "cellclr_jax"})
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=parallel, max_retries=retry))

    def stop(self) -> None:
        """Ends running transfers at their next block."""
        self._stopped.set()
        self._session.close()

    def fetch(self, checks: Mapping[str, Check]) -> list[str]:
        """Downloads the missing ones of some files, given with their checks; returns their names.

        Raises:
          BadData: files cannot be downloaded, each with the reason.
          _Unreachable: there is no connection.
        """
        missing = [name for name in checks if not (self._folder / name).exists()]
        problems: dict[str, str] = {}
        # Its threads are daemons: Ctrl-C does not wait for a server that sends nothing.
        with ThreadPool(self._parallel) as pool:
            sizes = _map(pool, self._size, missing, problems)
            rest = sum(sizes.values()) - sum(_bytes(self._part(name)) for name in sizes)
            self._check_space(rest)
            bar = Progress(rest, self._show, unit="byte", task="downloaded", scaled=True)
            with bar as self._progress:
                fetched = _map(
                    pool, lambda name: self._get(name, sizes[name], checks[name]), sizes, problems
                )
        if problems:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in problems.items())
            raise BadData(
                f"{len(problems)} of {len(checks)} files could not be downloaded: {reasons}; run "
                "the same command again to resume"
            )
        return list(fetched)

    def _size(self, name: str) -> int:
        """Requests the size of a file: the server's Content-Length."""
        with self._open("HEAD", name) as answer:
            length = answer.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise BadData(f"{answer.url}: the server sends no Content-Length")
        return int(length)

    def _check_space(self, needed: int) -> None:
        """Raises BadData if the disk has less free space than needed."""
        free = shutil.disk_usage(self._folder).free
        if needed + _MARGIN > free:
            raise BadData(
                f"{self._folder}: {(needed + _MARGIN) / 1e9:.1f} GB are needed, with "
                f"{_MARGIN / 1e9:.0f} GB to spare, and {free / 1e9:.1f} GB are free: free some, "
                "fetch fewer --plates, or into another --input"
            )

    def _get(self, name: str, size: int, check: Check) -> None:
        """Downloads and checks a file; repeats it once if it is damaged."""
        part = self._part(name)
        damage = None
        for _ in range(2):
            self._transfer(name, part, size)
            try:
                check(part)
            except BadData as error:
                damage = error
                self._discard(part)
                continue
            # A file with its final name must be complete even after a power failure.
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(self._folder / name)
            return
        raise BadData(f"downloaded twice, both times damaged: {damage}; deleted")

    def _transfer(self, name: str, part: Path, size: int) -> None:
        """Appends to a part until it has `size` bytes; repeats interrupted requests."""
        if _bytes(part) > size:  # of another version of the file
            self._discard(part)
        part.touch()
        failures = 0
        while (before := _bytes(part)) < size:
            headers = {"Range": f"bytes={before}-"} if before else {}
            with self._open("GET", name, headers) as answer:
                if answer.status_code == 200:  # the server ignores ranges and sends all
                    self._discard(part)
                self._append(answer, part, size)
            if (after := _bytes(part)) < size:
                failures = 0 if after > before else failures + 1
                if failures > (self._retry.total or 0):
                    raise BadData(
                        f"{answer.url}: the connection broke off at {after:,} of {size:,} bytes "
                        f"({failures} times without a new byte)"
                    )
                wait = self._retry.backoff_factor * 2**failures
                self._stopped.wait(min(wait, self._retry.backoff_max))

    def _append(self, answer: requests.Response, part: Path, size: int) -> None:
        """Appends the body to a part until the connection ends or breaks off."""
        try:
            with part.open("ab") as file:
                # Any number of bytes is written at once, so that little is lost by an interruption.
                while block := answer.raw.read1(_BLOCK, decode_content=False):
                    if self._stopped.is_set():
                        raise BadData("stopped")
                    if file.tell() + len(block) > size:
                        raise BadData(f"{answer.url}: the server sends more than {size:,} bytes")
                    file.write(block)
                    file.flush()
                    self._count(len(block))
        except HTTPError:
            pass  # the caller compares sizes
        except OSError as error:
            raise BadData(f"{part} cannot be written ({error.strerror}); it is kept") from error

    def _open(
        self, method: str, name: str, headers: Mapping[str, str] | None = None
    ) -> requests.Response:
        """Sends a request and reads the headers; BadData if the status is not 200 or 206."""
        url = f"{self._url}/{quote(name)}"
        try:
            answer = self._session.request(
                method, url, headers=headers, timeout=_TIMEOUTS, stream=True, allow_redirects=True
            )
        except requests.RequestException as error:
            raise _Unreachable(f"{url}: no connection to the server ({_cause(error)})") from error
        if answer.status_code not in (200, 206):
            answer.close()
            raise BadData(f"{url}: the server answers {answer.status_code} {answer.reason}")
        return answer

    def _part(self, name: str) -> Path:
        return self._folder / f"{name}.part"

    def _discard(self, part: Path) -> None:
        """Deletes a part, to restart the file."""
        self._count(-_bytes(part))
        part.unlink(missing_ok=True)

    def _count(self, count: int) -> None:
        with self._lock:
            self._progress.step(units=count)


def _map(
    pool: ThreadPool, work: Callable[[str], Any], names: Iterable[str], problems: dict[str, str]
) -> dict[str, Any]:
    """Results of `work` by name; messages of BadData are added to `problems`."""

    def attempt(name: str) -> Any:
        try:
            return work(name)
        except BadData as error:
            return error

    results = dict(zip(names, pool.imap(attempt, names), strict=True))
    problems |= {name: str(e) for name, e in results.items() if isinstance(e, BadData)}
    return {name: found for name, found in results.items() if name not in problems}


def _bytes(path: Path) -> int:
    """Returns the size of a file; 0 if it does not exist."""
    return path.stat().st_size if path.exists() else 0


def _cause(error: requests.RequestException) -> str:
    """Returns the last clause of an error, such as "[Errno 111] Connection refused"."""
    cause = error.args[0] if error.args else error
    return str(getattr(cause, "reason", cause)).rpartition(": ")[2]
