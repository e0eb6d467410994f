"""Streams records into array_record shards under TFDS's names."""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# A shard is closed beyond this many bytes of records before compression: few files, and several
# of them even on one plate.
_SHARD_BYTES = 256 << 20
# One record a chunk: random access reads no neighbour. The lowest level of zstd packs noisy
# 16-bit pixels as small as the higher ones (and as zlib), in a third of the time.
_SHARD_OPTIONS = "group_size:1,zstd:1"


class ShardWriter:
    """Streams records into array_record files; their final names need their number."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writer: Any = None
        self._open_bytes = 0
        self._lengths: list[int] = []
        self.total_bytes = 0

    def write(self, records: Sequence[bytes]) -> None:
        """Appends the records of a field; OSError where the disk is full."""
        from array_record.python import array_record_module

        if not records:
            return
        if self._writer is None:
            path = str(self._path(len(self._lengths)))
            with _disk_errors(self._directory):
                self._writer = array_record_module.ArrayRecordWriter(path, _SHARD_OPTIONS)
            self._lengths.append(0)
        with _disk_errors(self._directory):
            for record in records:
                self._writer.write(record)
        self._lengths[-1] += len(records)
        size = sum(map(len, records))
        self._open_bytes += size
        self.total_bytes += size
        if self._open_bytes >= _SHARD_BYTES:
            self.close()

    def close(self) -> None:
        """Ends the open shard."""
        writer, self._writer, self._open_bytes = self._writer, None, 0
        if writer is not None:
            with _disk_errors(self._directory):
                writer.close()

    def name_shards(self, template: Any) -> list[int]:
        """Gives the files TFDS's names and returns their numbers of records."""
        for index in range(len(self._lengths)):
            final = template.sharded_filepath(shard_index=index, num_shards=len(self._lengths))
            self._path(index).rename(final)
        return self._lengths

    def _path(self, index: int) -> Path:
        return self._directory / f"shard-{index:05d}"


@contextlib.contextmanager
def _disk_errors(directory: Path) -> Iterator[None]:
    """array_record reports a full disk as a RuntimeError or a ValueError."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        free = shutil.disk_usage(directory).free / 1e9
        raise OSError(f"cannot write to {directory} ({free:.1f} GB free): {error}") from error
