"""A folder that files of a release are fetched into, each whole and sound or not at all."""

import os
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cellclr_jax.data.download.http_answers import Http, Unreachable
from cellclr_jax.data.download.http_files import fetch
from cellclr_jax.data.download.part_file import PartFile, Remote, read_object, write_object
from cellclr_jax.errors import BadData

# What was found sound in a folder, so that it need not be read in full again.
RECORD = "download.json"
# Room that stays free beside what is fetched: other programs write as well.
_MARGIN = 1 << 30
# A server that does not even say what it has is not waited for as long as one that breaks off.
_ASKING_TRIES = 4


@dataclass(frozen=True)
class ReleaseFile:
    """A file of a release.

    Attributes:
      url: where from.
      path: where to.
      most_bytes: what has more is none.
      check: reads it in full; raises BadData where it is not sound.
    """

    url: str
    path: Path
    most_bytes: int
    check: Callable[[Path], object]

    @property
    def name(self) -> str:
        """As an error names it."""
        return self.path.name


@dataclass(frozen=True)
class Found:
    """What there is of a file.

    Attributes:
      missing: what the server tells of it where it, or a part of it, has to be fetched; None where
        it is there.
      doubt: why the server could not be asked about what is there; '' where it could.
    """

    missing: Remote | None
    doubt: str = ""


class ReleaseFolder:
    """Looks for files in a folder and fetches them into it; threads may share it.

    Args:
      folder: that is there.
      http: how servers are asked.
    """

    def __init__(self, folder: Path, http: Http) -> None:
        self._folder, self._http = folder, http
        tries = min(http.patience.tries, _ASKING_TRIES)
        self._asking = replace(http, patience=replace(http.patience, tries=tries))
        self._glancing = replace(http, patience=replace(http.patience, tries=1))
        # Set once no connection came about: nothing else is tried for as long again.
        self._lost = threading.Event()
        # Why the server was no use for what is there and sound: it is not asked about more of it.
        self._doubt = ""
        self._lock = threading.Lock()
        sound = read_object(folder / RECORD).get("files")
        self._sound: dict[str, Any] = sound if isinstance(sound, dict) else {}

    def look(self, file: ReleaseFile) -> Found:
        """Finds out what there is of a file. A damaged one is deleted.

        Raises:
          BadData: the server does not have it, or what is there is something else.
        """
        there = file.path.exists()
        written_down = there and self._is_written_down(file, file.path.stat())
        if written_down and self._doubt:
            return Found(None, self._doubt)
        try:
            remote = self._ask(file, self._glancing if written_down else self._asking)
        except BadData as error:
            if not there or not self._is_sound(file):
                raise
            if written_down:
                self._doubt = str(error)
            return Found(None, str(error))
        return self._compare(file, remote) if there else Found(remote)

    def _compare(self, file: ReleaseFile, remote: Remote) -> Found:
        """What is missing of a file that is there; BadData where it is something else."""
        size = file.path.stat().st_size
        if not self._recorded(file, size).may_be(remote):
            # The older version stays until the newer one is there.
            self._http.tell(f"{file.path}: the server has another version, which is fetched")
            return Found(remote)
        if remote.size in (None, size):
            if self._is_sound(file, remote):
                return Found(None)
            self._http.tell(f"{file.path}: it is damaged and fetched anew")
            file.path.unlink()
            return Found(remote)
        # What is shorter and sound is no part of the file: somebody put it there.
        if size > (remote.size or 0) or self._is_sound(file):
            raise BadData(
                f"{file.path} has {size:,} bytes, {file.url} has {remote.size:,}: it is another "
                "file; move it away (or delete it) and run the same command again"
            )
        PartFile(file.path).adopt(remote)
        return Found(remote)

    def get(self, file: ReleaseFile, remote: Remote, reach: Callable[[int], None]) -> None:
        """Fetches a file, and anew where it comes damaged.

        Args:
          file: that is not there, or there in an older version, which it takes the place of.
          remote: what `look` found to be missing.
          reach: called with the bytes that are there, after each block.

        Raises:
          BadData: it cannot be fetched, and what has come of it is kept as a part; or it came
            damaged twice, and nothing of it is kept.
        """
        part = PartFile(file.path)
        if damage := self._fetch(file, part, remote, reach):
            self._http.tell(f"{damage}; it is fetched anew")
            if damage := self._fetch(file, part, remote, reach):
                raise BadData(
                    f"{file.url}: what comes is damaged, twice: {damage}; nothing of it is kept"
                )

    def _fetch(
        self, file: ReleaseFile, part: PartFile, remote: Remote, reach: Callable[[int], None]
    ) -> str:
        """Fetches a file; why it is not sound, and deleted, or ''."""
        self._check_connection()
        try:
            came = fetch(
                self._http, file.url, part, remote, most_bytes=file.most_bytes, reach=reach
            )
        except Unreachable:
            self._lost.set()
            raise
        try:
            file.check(part.path)
        except BadData as error:
            part.drop()
            return str(error)
        part.finish()
        self._write_down(file, file.path.stat(), came)
        return ""

    def parts(self, missing: Mapping[ReleaseFile, Remote]) -> dict[str, int]:
        """The bytes that can be gone on with, by a file's name."""
        parts = {file.name: (PartFile(file.path), remote) for file, remote in missing.items()}
        return {
            name: part.size if part.is_of(remote) else 0 for name, (part, remote) in parts.items()
        }

    def check_space(self, needed: int) -> None:
        """Raises BadData where the disk has no room for so many bytes."""
        free = shutil.disk_usage(self._folder).free
        if needed + _MARGIN > free:
            raise BadData(
                f"{self._folder}: {(needed + _MARGIN) / 1e9:.1f} GB are needed, with "
                f"{_MARGIN / 1e9:.0f} GB to spare, and {free / 1e9:.1f} GB are free: free some, "
                "fetch fewer --plates, or into another --input"
            )

    def _ask(self, file: ReleaseFile, http: Http) -> Remote:
        """What the server tells of a file."""
        self._check_connection()
        try:
            return http.ask(file.url)
        except Unreachable:
            if http is self._asking:
                self._lost.set()
            raise

    def _check_connection(self) -> None:
        """Raises where no connection came about before."""
        if self._lost.is_set():
            raise Unreachable("not tried: no connection to the server came about before")

    def _is_sound(self, file: ReleaseFile, remote: Remote | None = None) -> bool:
        """Whether a file that is there is sound; that is written down, so that it is read once."""
        # Before it is read: what is written meanwhile is another file.
        status = file.path.stat()
        if self._is_written_down(file, status):
            return True
        try:
            file.check(file.path)
        except BadData:
            return False
        self._write_down(file, status, remote or self._recorded(file, status.st_size))
        return True

    def _is_written_down(self, file: ReleaseFile, status: os.stat_result) -> bool:
        """Whether a file that is there was found sound before, and nobody wrote to it since."""
        entry = self._entry(file)
        there = (status.st_size, status.st_mtime_ns)
        return (entry.get("size"), entry.get("mtime_ns")) == there

    def _recorded(self, file: ReleaseFile, size: int) -> Remote:
        """What the server told of a file of that size; nothing where it was another server."""
        entry = self._entry(file)
        if (entry.get("url"), entry.get("size")) != (file.url, size):
            return Remote()
        return Remote(None, str(entry.get("etag", "")), str(entry.get("modified", "")))

    def _entry(self, file: ReleaseFile) -> dict[str, Any]:
        """What is written down of a file; empty where nothing is."""
        entry = self._sound.get(file.name)
        return entry if isinstance(entry, dict) else {}

    def _write_down(self, file: ReleaseFile, status: os.stat_result, remote: Remote) -> None:
        """Records that a file is sound, and what the server told of it."""
        entry = {
            "url": file.url,
            "size": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "etag": remote.etag,
            "modified": remote.modified,
        }
        with self._lock:
            self._sound[file.name] = entry
            write_object(self._folder / RECORD, {"files": self._sound})
