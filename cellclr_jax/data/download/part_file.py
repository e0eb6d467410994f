"""A file that has not come whole: its bytes as `<name>.part`, what it is a part of beside it."""

import contextlib
import errno
import io
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cellclr_jax.errors import BadData


@dataclass(frozen=True)
class Remote:
    """What a server tells of a file.

    Attributes:
      size: bytes; None where it does not tell.
      etag: its version, as the server writes it (`ETag`); '' where it does not tell.
      modified: since when it has been as it is (`Last-Modified`); '' likewise.
    """

    size: int | None = None
    etag: str = ""
    modified: str = ""

    @property
    def validator(self) -> str:
        """What names this version to the server (`If-Range`); '' where nothing does.

        A weak tag (W/…) does not: its bytes may differ from those of an equal one.
        """
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified

    def may_be(self, other: "Remote") -> bool:
        """Whether nothing that is told of the two makes them different versions of the file."""
        if self.etag and other.etag:
            return self.etag.removeprefix("W/") == other.etag.removeprefix("W/")
        return not (self.modified and other.modified) or self.modified == other.modified


class PartFile:
    """What has come of a file; each method raises BadData where the disk does not take it.

    Args:
      final: where it lies once it is whole and checked.
    """

    def __init__(self, final: Path) -> None:
        self._final = final
        self.path = final.with_name(f"{final.name}.part")
        self._memory = final.with_name(f"{final.name}.part.json")

    @property
    def size(self) -> int:
        """Bytes that are there."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def is_of(self, remote: Remote) -> bool:
        """Whether it can be gone on with: nothing says that it is a part of something else."""
        # Without a memory, or with a damaged one, nobody knows what the bytes are of.
        memory = read_object(self._memory)
        try:
            mine = Remote(**memory)
            size = mine.size if remote.size is None else remote.size
            same = bool(memory) and mine.may_be(remote) and mine.size in (None, size)
            return same and (size is None or self.size <= size)
        except (TypeError, AttributeError):
            return False

    def begin(self, remote: Remote) -> None:
        """Empties it: what comes now is a part of this."""
        with _writing(self.path):
            # In this order, so that old bytes never lie beside a new memory.
            self.path.write_bytes(b"")
            write_object(self._memory, asdict(remote))

    @contextlib.contextmanager
    def end(self) -> Iterator[io.FileIO]:
        """Its open end, for `append`."""
        with _writing(self.path):
            file = io.FileIO(self.path, "ab")
        with file:
            yield file

    def append(self, file: io.FileIO, block: bytes) -> None:
        """Writes a block to its end; unbuffered, so that it outlives a kill."""
        rest = memoryview(block)
        with _writing(self.path):
            while rest:
                rest = rest[file.write(rest) :]

    def adopt(self, remote: Remote) -> None:
        """Makes the part of what has the final name and is a part of this."""
        with _writing(self.path):
            write_object(self._memory, asdict(remote))
            os.replace(self._final, self.path)

    def drop(self) -> None:
        """Deletes it."""
        with _writing(self.path):
            self.path.unlink(missing_ok=True)
            self._memory.unlink(missing_ok=True)

    def finish(self) -> None:
        """Gives it the final name, for good even where the machine fails in the next moment."""
        with _writing(self.path):
            _sync(self.path)
            os.replace(self.path, self._final)
            _sync(self._final.parent)
            self._memory.unlink(missing_ok=True)


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object; an empty one where there is none or it cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def write_object(path: Path, value: dict[str, Any]) -> None:
    """Writes a JSON object, whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=2, sort_keys=True), encoding="utf-8")
    _sync(temporary)
    os.replace(temporary, path)


def _sync(path: Path) -> None:
    """Brings a file, or the names in a folder, to the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Says in one line what the disk does not take."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise BadData(
            f"{path}: it cannot be written ({error.strerror})"
            f"{'; what has come is kept: free some space' if full else ''}"
        ) from error
