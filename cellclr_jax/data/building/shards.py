"""Streams records into one array_record file."""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# One record a chunk: random access reads no neighbour. The lowest level of zstd packs noisy
# 16-bit pixels as small as the higher ones (and as zlib), in a third of the time.
_SHARD_OPTIONS = "group_size:1,zstd:1"


class ShardWriter:
    """Writes an array_record file, which is made with its first record.

    Use it as a context: the file is complete after it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: Any = None

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with _disk_errors(self._path):
                writer.close()

    def write(self, records: Sequence[bytes]) -> None:
        """Appends records; OSError where the disk is full."""
        from array_record.python import array_record_module

        with _disk_errors(self._path):
            if self._writer is None and records:
                self._writer = array_record_module.ArrayRecordWriter(
                    str(self._path), _SHARD_OPTIONS
                )
            for record in records:
                self._writer.write(record)


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """array_record reports a full disk as a RuntimeError or a ValueError."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        free = shutil.disk_usage(path.parent).free / 1e9
        raise OSError(f"cannot write to {path.parent} ({free:.1f} GB free): {error}") from error
