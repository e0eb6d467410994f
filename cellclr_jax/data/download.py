"""Downloads BBBC021, or a release with the same files: two tables, then a zip for each plate.

A file gets its name once it is complete and sound; until then it is `<name>.part`, which the next
call resumes.
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

from cellclr_jax.console import Progress, listed, say
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
"""How often a request is repeated, and how long to wait in between."""
# Seconds until a connection stands, and without a byte.
_TIMEOUTS = (20, 60)
# Bytes that are written at once, and lost by a kill.
_BLOCK = 64 << 10
# Bytes that stay free on the disk: other programs write as well.
_MARGIN = 1 << 30
# A plate's name becomes part of a file's.
_PLATE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")

# Reads a file in full; raises BadData if it is not sound.
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
      parallel: files at once.
      show: shows a bar, or lines if the console is a file.
      retry: of requests; its total also limits the interruptions in a row without a new byte.

    Returns:
      The names of the downloaded files.

    Raises:
      BadUse: no such address or plate, or another process downloads into the folder.
      BadData: the disk is too small, or files cannot be downloaded, each named with the reason;
        the others are complete, and parts are kept.
    """
    base = _checked_url(url)
    if parallel < 1:
        raise BadUse(f"{parallel} files at once: at least one was expected")
    with locked(folder, ".downloading", "downloading into it"):
        downloader = _Downloader(folder, base, parallel, show, retry)
        try:
            tables = {IMAGE_CSV: bbbc021.read_image_csv, MOA_CSV: bbbc021.read_moa_csv}
            for name in tables:
                # They have no checksum that would find the halves of two versions.
                (folder / f"{name}.part").unlink(missing_ok=True)
            fetched = downloader.fetch(tables)
            wanted = _wanted_plates(folder / IMAGE_CSV, plates)
            zips = {f"{ZIP_PREFIX}{plate}.zip": check_zip for plate in wanted}
            return fetched + downloader.fetch(zips)
        except _Unreachable as error:
            raise BadData(f"{error}; the same command tries again and resumes") from error
        except KeyboardInterrupt:
            say(f"stopped: {folder} keeps what has come, and the same command resumes")
            raise
        finally:
            downloader.stop()


def _checked_url(url: str) -> str:
    """The address without a slash at its end; BadUse if it is not that of a folder on the web."""
    try:
        parts = urlsplit(url)
        host, user = parts.hostname, parts.username
    except ValueError:
        host = user = None
    if user is not None:
        # Every message would show the password.
        raise BadUse(
            f"https://…@{host}: write user and password into ~/.netrc, not into the address"
        )
    if not host or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
        raise BadUse(f"{url}: http://… or https://… was expected, the folder of a release")
    return url.rstrip("/")


def _wanted_plates(image_csv: Path, plates: Sequence[str]) -> list[str]:
    """The requested plates, in the order of the image table."""
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
    """No request gets an answer: other files need not be tried."""


class _Downloader:
    """Fetches files of one server into one folder, several at once."""

    def __init__(self, folder: Path, url: str, parallel: int, show: bool, retry: Retry) -> None:
        self._folder, self._url, self._parallel, self._show = folder, url, parallel, show
        self._retry = retry
        self._stopped, self._lock = threading.Event(), threading.Lock()
        self._session = requests.Session()
        # Sizes and ranges have to be those of the file, not of a compressed transfer.
        self._session.headers.update({"Accept-Encoding": "identity", "User-Agent": "cellclr_jax"})
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=parallel, max_retries=retry))

    def stop(self) -> None:
        """Ends transfers that still run, at their next block."""
        self._stopped.set()
        self._session.close()

    def fetch(self, checks: Mapping[str, Check]) -> list[str]:
        """Downloads the files that the folder lacks.

        Args:
          checks: by the file's name.

        Returns:
          Their names.

        Raises:
          BadData: naming each file that could not be downloaded.
          _Unreachable: there is no connection.
        """
        missing = [name for name in checks if not (self._folder / name).exists()]
        problems: dict[str, str] = {}
        # Its threads are daemons: Ctrl-C does not wait for a server that says nothing.
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
                f"{len(problems)} of {len(checks)} files did not come: {reasons}; the same command "
                "tries again, and resumes files that came in part"
            )
        return list(fetched)

    def _size(self, name: str) -> int:
        """The bytes that the server announces for a file."""
        with self._open("HEAD", name) as answer:
            length = answer.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise BadData(f"{answer.url}: the server does not say how large the file is")
        return int(length)

    def _check_space(self, needed: int) -> None:
        """Raises BadData if the disk has no room for so many bytes."""
        free = shutil.disk_usage(self._folder).free
        if needed + _MARGIN > free:
            raise BadData(
                f"{self._folder}: {(needed + _MARGIN) / 1e9:.1f} GB are needed, with "
                f"{_MARGIN / 1e9:.0f} GB to spare, and {free / 1e9:.1f} GB are free: free some, "
                "fetch fewer --plates, or into another --input"
            )

    def _get(self, name: str, size: int, check: Check) -> None:
        """Downloads a file and checks it; once again if it came damaged."""
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
            # The name promises a sound file, also after a power cut.
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(self._folder / name)
            return
        raise BadData(f"what comes is damaged, twice: {damage}; nothing of it is kept")

    def _transfer(self, name: str, part: Path, size: int) -> None:
        """Appends to a part until it has `size` bytes; repeats interrupted requests."""
        if _bytes(part) > size:  # of another version of the file
            self._discard(part)
        part.touch()
        failures = 0
        while (before := _bytes(part)) < size:
            headers = {"Range": f"bytes={before}-"} if before else {}
            with self._open("GET", name, headers) as answer:
                if answer.status_code == 200:  # the whole file: the server knows no ranges
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
        """Writes what comes to the end of a part, until the connection ends or breaks off."""
        try:
            with part.open("ab") as file:
                # As it comes: what waits for a full block is lost if the connection breaks off.
                while block := answer.raw.read1(_BLOCK, decode_content=False):
                    if self._stopped.is_set():
                        raise BadData("stopped")
                    if file.tell() + len(block) > size:
                        raise BadData(f"{answer.url}: more than the announced {size:,} bytes come")
                    file.write(block)
                    file.flush()
                    self._count(len(block))
        except HTTPError:
            pass  # the caller sees how much came
        except OSError as error:
            raise BadData(
                f"{part} cannot be written ({error.strerror}); what has come is kept"
            ) from error

    def _open(
        self, method: str, name: str, headers: Mapping[str, str] | None = None
    ) -> requests.Response:
        """Sends a request; the body is not read yet.

        Raises:
          BadData: the server does not give the file.
          _Unreachable: it does not answer.
        """
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
        """Deletes a part, so that the file begins anew."""
        self._count(-_bytes(part))
        part.unlink(missing_ok=True)

    def _count(self, count: int) -> None:
        with self._lock:
            self._progress.step(units=count)


def _map(
    pool: ThreadPool, work: Callable[[str], Any], names: Iterable[str], problems: dict[str, str]
) -> dict[str, Any]:
    """Results of `work` by name; BadData that it raises goes into `problems` instead."""

    def attempt(name: str) -> Any:
        try:
            return work(name)
        except BadData as error:
            return error

    results = dict(zip(names, pool.imap(attempt, names), strict=True))
    problems |= {name: str(e) for name, e in results.items() if isinstance(e, BadData)}
    return {name: found for name, found in results.items() if name not in problems}


def _bytes(path: Path) -> int:
    """The size of a file; 0 if there is none."""
    return path.stat().st_size if path.exists() else 0


def _cause(error: requests.RequestException) -> str:
    """The last clause of an error of requests, such as "[Errno 111] Connection refused"."""
    cause = error.args[0] if error.args else error
    return str(getattr(cause, "reason", cause)).rpartition(": ")[2]
