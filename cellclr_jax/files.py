"""Robust files and folders: atomic writes, locks, digests, JSON records and their differences.

Everything that writes a result uses these, so that a killed process or a full disk never leaves an
incomplete file under its final name.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from cellclr_jax.errors import BadData, BadUse

TRAINING = ".training"
"""Name of the lock file of a work directory."""
IN_USE = "training in it, or converting weights into it"
"""The activity of the lock's owner, for messages."""

_DIGEST_BYTES = 16
# Errors of a folder without permission to write, or of a file system such as /proc.
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT)
# `pathlib.Path`, or epath's for buckets, which has the same methods.
AnyPath = TypeVar("AnyPath", bound=Any)


@contextlib.contextmanager
def atomic_write(path: AnyPath) -> Iterator[AnyPath]:
    """Yields a temporary path in the same folder, and renames the file written there to `path`.

    If the body raises, or writes no file, `path` stays as it was and no temporary file remains.

    Args:
      path: a `pathlib` or `epath` path; its folder exists.

    Example:
      >>> with atomic_write(folder / "table.csv") as part:
      ...     table.to_csv(part)
    """
    # The process number keeps two processes apart; by the suffix writers choose a format.
    part = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    try:
        yield part
        if part.exists():
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Any, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Any, value: object) -> None:
    """Writes a JSON value atomically, indented; raises ValueError for NaN and infinity."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Any, what: str) -> dict[str, Any]:
    """Reads a JSON object; `what` names its content in messages, e.g. "config".

    Raises:
      BadData: the file cannot be read, or is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadData(f"{path}: not a readable {what} ({error})") from error
    if not isinstance(content, dict):
        raise BadData(f"{path}: not a readable {what} (no JSON object)")
    return content


def is_local(path: Any) -> bool:
    """Whether a path is a file of this machine, not of a bucket (gs://…)."""
    return "://" not in str(path)


def make_writable(folder: Path, flag: str) -> None:
    """Creates a folder with its parents and checks that files can be written there.

    `flag` names the folder in messages, e.g. "--out".

    Raises:
      BadUse: the folder cannot be created or written to.
      OSError: another reason, such as a full disk.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (FileExistsError, NotADirectoryError):
        raise  # explained by `cli.run`
    except OSError as error:
        if error.errno not in _NOT_ALLOWED:
            raise
        raise BadUse(f"{flag}={folder} cannot be written to: {error.strerror}") from error


@contextlib.contextmanager
def locked(folder: Path, name: str, doing: str) -> Iterator[None]:
    """Holds the lock file `name` in a folder, which is created if missing.

    The operating system releases the lock when the process ends, however it ends.

    Raises:
      BadUse: another process holds the lock; `doing` names what it does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadUse(f"{folder}: another process is {doing}") from error
        yield


def digest(*parts: str | bytes) -> str:
    """Returns the BLAKE2b digest of texts and bytes in order, 32 hexadecimal digits.

    Parts are delimited: ("ab", "c") and ("a", "bc") differ.
    """
    blake = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        blake.update(len(content).to_bytes(8, "little") + content)
    return blake.hexdigest()


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's content, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differences(
    old: object, new: object, *, ignored: Collection[str] = (), path: str = ""
) -> list[str]:
    """Lists the settings that differ between two JSON-like values.

    Args:
      old: nested mappings of settings, as recorded.
      new: nested mappings of the requested settings; tuples equal lists, as in JSON.
      ignored: dotted names of settings, or groups of settings, that may differ.
      path: dotted name of the compared values.

    Returns:
      One phrase for each difference, sorted by name: "a.b: was 1, now 2".
    """
    if path in ignored:
        return []
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for name in sorted(old.keys() | new.keys()):
            inner = f"{path}.{name}" if path else name
            found += differences(old.get(name), new.get(name), ignored=ignored, path=inner)
        return found
    old, new = _plain(old), _plain(new)
    return [] if old == new else [f"{path}: was {old!r}, now {new!r}"]


def _plain(value: object) -> object:
    """Makes lists of tuples, as JSON does."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
