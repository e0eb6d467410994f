"""Fetches BBBC021, or a release that is laid out like it: the tables, then a zip for each plate.

Whatever ends it, the same call goes on where it was.
"""

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from cellclr_jax.console import (
    FilesProgress,
    Progress,
    say,
)
from cellclr_jax.data.download.http_answers import Http, Patience, Stopped
from cellclr_jax.data.download.part_file import Remote
from cellclr_jax.data.download.release_folder import Found, ReleaseFile, ReleaseFolder
from cellclr_jax.data.download.threads import map_in_threads
from cellclr_jax.data.readers.find_files import check_zip
from cellclr_jax.data.sources.plates import some_of
from cellclr_jax.data.tables import bbbc021
from cellclr_jax.data.tables.bbbc021 import IMAGE_CSV, MOA_CSV, RELEASE_URL, ZIP_PREFIX
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.files import locked

# A table is read into memory; BBBC021's has 3.7 MB. Its plates have 0.75 GB each.
_TABLE_BYTES = 256 << 20
_ZIP_BYTES = 64 << 30
# A plate's name becomes part of a file's.
_PLATE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
# So many files are asked for in more than a moment: a bar tells of it.
_MANY = 10
_PATIENCE = Patience()


@dataclass(frozen=True)
class Download:
    """A release, or some plates of it, in a folder.

    Attributes:
      folder: that holds it.
      plates: those asked for, in the order of the image table.
      fetched: names of the files that came, or the rest of them.
      kept: names of those that were there.
    """

    folder: Path
    plates: tuple[str, ...]
    fetched: tuple[str, ...]
    kept: tuple[str, ...]


def download_release(
    folder: Path,
    *,
    plates: Sequence[str] = (),
    url: str = RELEASE_URL,
    parallel: int = 4,
    show: bool = True,
    patience: Patience = _PATIENCE,
) -> Download:
    """Fetches what is missing in a folder of a release's tables and of its plates' zips.

    Args:
      folder: made where it is missing.
      plates: names of the plates; empty: all of the image table.
      url: of the folder that holds the release, http or https.
      parallel: files at once.
      show: shows bars, or lines where the console is a file.
      patience: with the server.

    Raises:
      BadUse: no such address or plate, or another process downloads into the folder.
      BadData: files did not come, each named with the reason; what did come is kept.
    """
    base = _checked_url(url)
    if parallel < 1:
        raise BadUse(f"{parallel} files at once: at least one was expected")
    with locked(folder, ".downloading", "downloading into it"):
        run = _Run(folder, parallel, show, patience)
        try:
            run.settle(
                [
                    ReleaseFile(f"{base}/{name}", folder / name, _TABLE_BYTES, check)
                    for name, check in (
                        (IMAGE_CSV, bbbc021.read_image_csv),
                        (MOA_CSV, bbbc021.read_moa_csv),
                    )
                ]
            )
            wanted = _wanted_plates(folder / IMAGE_CSV, plates)
            names = [f"{ZIP_PREFIX}{plate}.zip" for plate in wanted]
            run.settle(
                [
                    ReleaseFile(f"{base}/{quote(name)}", folder / name, _ZIP_BYTES, run.check_zip)
                    for name in names
                ]
            )
        except KeyboardInterrupt:
            say(f"stopped: {folder} keeps what has come, and the same command goes on with it")
            raise
        return Download(folder, wanted, tuple(run.fetched), tuple(run.kept))


def _checked_url(url: str) -> str:
    """The address without a slash at its end; BadUse where it is none of a folder on the web."""
    try:
        parts = urlsplit(url)
        host, user = parts.hostname, parts.username
    except ValueError:
        host = user = None
    if user is not None:
        # Every message would tell the password.
        raise BadUse(
            f"https://…@{host}: write user and password into ~/.netrc, not into the address"
        )
    if not host or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
        raise BadUse(f"{url}: http://… or https://… was expected, the folder of a release")
    return url.rstrip("/")


def _wanted_plates(image_csv: Path, plates: Sequence[str]) -> tuple[str, ...]:
    """Those of the image table that are asked for."""
    known = list(dict.fromkeys(bbbc021.read_image_csv(image_csv)["plate"]))
    if unknown := sorted(set(plates) - set(known)):
        raise BadUse(
            f"--plates={','.join(unknown)}: not in {image_csv}, which has {len(known)} plates: "
            f"{some_of(known)}"
        )
    wanted = tuple(plate for plate in known if not plates or plate in plates)
    for plate in wanted:
        if not _PLATE.fullmatch(plate):
            raise BadData(f"{image_csv}: plate {plate!r} cannot be part of a file's name")
    return wanted


class _Run:
    """One call of `download_release`.

    Attributes:
      fetched, kept: names of files, as in `Download`.
    """

    def __init__(self, folder: Path, parallel: int, show: bool, patience: Patience) -> None:
        self._parallel, self._show = parallel, show
        self._stop = threading.Event()
        self._folder = ReleaseFolder(folder, Http(patience, self._stop, self._tell))
        self.fetched: list[str] = []
        self.kept: list[str] = []

    def check_zip(self, path: Path) -> None:
        """Raises BadData where a zip is not sound."""

        def go_on() -> None:
            if self._stop.is_set():
                raise Stopped

        check_zip(path, go_on)

    def settle(self, files: Sequence[ReleaseFile]) -> None:
        """Keeps what is there and fetches the rest.

        Raises:
          BadData: naming each file that did not come.
        """
        shows = self._show and len(files) >= _MANY
        with Progress(len(files), shows, unit="file", task="looked for") as shown:
            looked = map_in_threads(
                self._folder.look, files, self._parallel, self._stop, shown.step
            )
        results = list(zip(files, looked, strict=True))
        found = {file: result for file, result in results if isinstance(result, Found)}
        missing = {file: kind.missing for file, kind in found.items() if kind.missing is not None}
        self.kept += [file.name for file in found if file not in missing]
        if doubts := [kind.doubt for kind in found.values() if kind.doubt]:
            self._tell(f"{doubts[0]}: {len(doubts)} files are kept that were found sound before")
        problems = {
            file.name: str(error) for file, error in results if isinstance(error, Exception)
        }
        if missing:
            problems |= self._fetch(missing)
        if problems:
            raise BadData(_summary(problems, len(files)))

    def _fetch(self, missing: Mapping[ReleaseFile, Remote]) -> dict[str, str]:
        """Fetches files; what went wrong with some."""
        sizes = {file.name: remote.size or 0 for file, remote in missing.items()}
        there = self._folder.parts(missing)
        self._folder.check_space(sum(sizes.values()) - sum(there.values()))
        with FilesProgress(sizes, there, self._show, task="fetched") as shown:

            def get(file: ReleaseFile) -> None:
                try:
                    self._folder.get(file, missing[file], lambda size: shown.reach(file.name, size))
                finally:
                    shown.end(file.name)

            files = list(missing)
            ends = map_in_threads(get, files, self._parallel, self._stop)
        problems = {
            file.name: str(end) for file, end in zip(files, ends, strict=True) if end is not None
        }
        self.fetched += [file.name for file in files if file.name not in problems]
        return problems

    def _tell(self, message: str) -> None:
        """Shows a line."""
        if self._show:
            say(message)


def _summary(problems: Mapping[str, str], count: int) -> str:
    """What did not come, and why; files of one reason together."""
    names: dict[str, list[str]] = {}
    for name, reason in problems.items():
        names.setdefault(reason, []).append(name)
    told = "; ".join(f"{', '.join(together)}: {reason}" for reason, together in names.items())
    return (
        f"{len(problems)} of {count} files did not come: {told}; the same command tries "
        "again, and goes on where a part has come"
    )
