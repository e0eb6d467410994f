"""Robust files and folders: atomic writes, locks, digests, JSON records, what differs in two.

Everything that writes a result uses these, so that a killed process or a full disk never leaves a
file that looks finished.
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
"""The lock of a work directory."""
IN_USE = "training in it, or converting weights into it"

_DIGEST_BYTES = 16
# Errors of a folder that may not be written to: no permission, or a file system such as /proc.
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT)
# `Path`, or epath's for buckets, which has the same methods.
AnyPath = TypeVar("AnyPath", bound=Any)


@contextlib.contextmanager
def atomic_write(path: AnyPath) -> Iterator[AnyPath]:
    """Yields a temporary path next to `path`, and moves the file written there to `path`.

    If the body raises, or writes no file, `path` stays as it was and no other file remains.

    Args:
      path: a `pathlib` or `epath` path; its folder exists.

    Example:
      >>> with atomic_write(folder / "table.csv") as part:
      ...     table.to_csv(part)
    """
    # With the process's number, so that two processes do not write into one file, and with the
    # suffix, by which writers choose a format.
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
    """Writes a JSON value atomically, indented; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Any, what: str) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
      path: of the file.
      what: it is expected to be, for the message, e.g. "config".

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
    """Whether a path is in a file system of this machine, not in a bucket (gs://…)."""
    return "://" not in str(path)


def make_writable(folder: Path, flag: str) -> None:
    """Creates a folder and checks that files can be written there, before hours of work.

    Args:
      folder: created with its parents if missing.
      flag: that names it, for the message, e.g. "--out".

    Raises:
      BadUse: the folder cannot be created or written to.
      OSError: for another reason, such as a full disk.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (FileExistsError, NotADirectoryError):
        raise  # `cli.run` explains them
    except OSError as error:
        if error.errno not in _NOT_ALLOWED:
            raise
        raise BadUse(f"{flag}={folder} cannot be written to: {error.strerror}") from error


@contextlib.contextmanager
def locked(folder: Path, name: str, doing: str) -> Iterator[None]:
    """Holds a lock in a folder, which one process at a time can have.

    The operating system releases it when the process ends, however it ends.

    Args:
      folder: created if missing.
      name: of the lock file in it.
      doing: what the holder does there, for the message to others.

    Raises:
      BadUse: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadUse(f"{folder}: another process is {doing}") from error
        yield


def digest(*parts: str | bytes) -> str:
    """BLAKE2b digest of texts and bytes in order, 32 hexadecimal digits.

    Parts are delimited: ("ab", "c") and ("a", "bc") differ.
    """
    found = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        found.update(len(content).to_bytes(8, "little"))
        found.update(content)
    return found.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differences(
    old: object, new: object, *, ignored: Collection[str] = (), path: str = ""
) -> list[str]:
    """Lists the settings that differ between two JSON-like values.

    Args:
      old: nested mappings of settings, as they were recorded.
      new: as they are asked for now; tuples equal lists, as in JSON.
      ignored: dotted names of settings, or groups of settings, that may differ.
      path: dotted name of the values themselves.

    Returns:
      One phrase for each difference, sorted by name: "a.b: 1 there, 2 here".
    """
    if path in ignored:
        return []
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            line
            for name in sorted(old.keys() | new.keys())
            for line in differences(
                old.get(name),
                new.get(name),
                ignored=ignored,
                path=f"{path}.{name}" if path else name,
            )
        ]
    if _plain(old) == _plain(new):
        return []
    return [f"{path}: {_plain(old)!r} there, {_plain(new)!r} here"]


def _plain(value: object) -> object:
    """Tuples as lists, which JSON makes of them."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
