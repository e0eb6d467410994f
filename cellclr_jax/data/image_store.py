"""Random access to the images of a dataset, from its shards or from a memory-mapped file.

The mapped file holds the pixels of all images uncompressed. It is written on first use.
"""

import abc
import contextlib
import errno
import fcntl
import functools
import math
import mmap
import os
import re
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from cellclr_jax.console import Progress
from cellclr_jax.errors import BadData, BadUse

# Number of records that are read at the same time. Reading waits for the disk or decompresses
# outside the interpreter's lock. All readers of a process share the threads.
_THREADS = 16
_POOL = ThreadPoolExecutor(_THREADS, thread_name_prefix="images")
# Records of one task: scheduling a task for each record would take a share of the reading time.
_RECORDS_A_TASK = 16

# Size of the buffer between the shards and the mapped file.
_BLOCK_BYTES = 32 << 20
_COPY = re.compile(r"images-[0-9a-f]+\.npy(\.unfinished)?")
_LOCK = ".unpacking"
# The setting's name in each program.
_FLAGS = "(--config.data_access in training, --data_access of eval)"

Rows = Sequence[int] | np.ndarray


class ImageSource(abc.ABC):
    """Random access to the images of a dataset; row i belongs to row i of `cells.parquet`.

    All implementations return the same pixels and differ only in speed.

    Attributes:
      shape: [S, S, C] of an image.
      dtype: uint8 or uint16.
      has_masks: whether `masks` can be read.
    """

    has_masks = False

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, cells: int) -> None:
        self.shape, self.dtype, self._cells = shape, dtype, cells

    @abc.abstractmethod
    def read_into(self, rows: Rows, out: np.ndarray) -> None:
        """Reads images into an array.

        Args:
          rows: [b] int, in any order.
          out: [b, S, S, C] of the images' dtype.

        Raises:
          IndexError: a row is out of range.
          BadData: an image cannot be read.
        """

    @abc.abstractmethod
    def masks(self, rows: Rows) -> np.ndarray:
        """Reads masks.

        Args:
          rows: [b] int, in any order.

        Returns:
          [b, S, S] uint8: 2 in the nucleus, 1 in the rest of the cell, 0 elsewhere.

        Raises:
          IndexError: a row is out of range.
          BadUse: the dataset has no masks.
          BadData: a mask cannot be read.
        """

    def read(self, rows: Rows) -> np.ndarray:
        """Reads images into a new array [b, S, S, C]; otherwise as `read_into`."""
        images = np.empty((len(rows), *self.shape), self.dtype)
        self.read_into(rows, images)
        return images

    def __len__(self) -> int:
        return self._cells

    def _checked(self, rows: Rows) -> np.ndarray:
        """Converts rows to int64; raises an error for an invalid row."""
        array = np.asarray(rows)
        if not array.size:
            return np.empty(0, np.int64)
        if array.dtype.kind not in "iu" or array.ndim != 1:
            raise TypeError(f"rows [b] int were expected, not {array.dtype} {array.shape}")
        if array.min() < 0 or array.max() >= len(self):
            raise IndexError(f"rows {array.min()} to {array.max()} of {len(self)} images")
        return array.astype(np.int64, copy=False)


class ShardImages(ImageSource):
    """Images in the dataset's shards; each is decompressed when it is read.

    It can be pickled into a spawned process. In a process that was forked after a first read,
    array_record hangs.
    """

    def __init__(self, dataset_dir: str | Path) -> None:
        """Opens a dataset; its shards are opened at the first read.

        Raises:
          FileNotFoundError: a shard is missing.
          Any error that TFDS raises for a description that it cannot read.
        """
        import tensorflow_datasets as tfds
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self._directory = str(dataset_dir)
        info = tfds.builder_from_directory(self._directory).info
        image, shards = info.features["image"], info.splits["train"].file_instructions
        for shard in shards:
            # Checked now, since the first read of a shard may come hours into a training.
            if not Path(shard.filename).is_file():
                raise FileNotFoundError(f"no file {shard.filename}")
        # Without the option each reader starts threads, which single records do not need.
        self._records = ArrayRecordDataSource(shards, reader_options={"max_parallelism": "0"})
        self.has_masks = "mask" in info.features
        super().__init__(tuple(image.shape), np.dtype(image.np_dtype), len(self._records))

    def read_into(self, rows: Rows, out: np.ndarray) -> None:
        """See `ImageSource`."""
        self._unpack("image", self._checked(rows), out)

    def masks(self, rows: Rows) -> np.ndarray:
        """See `ImageSource`."""
        if not self.has_masks:
            raise BadUse(f"{self._directory} has no masks: build it with --masks=keep")
        masks = np.empty((len(rows), *self.shape[:2]), np.uint8)
        self._unpack("mask", self._checked(rows), masks)
        return masks

    def _unpack(self, name: str, rows: np.ndarray, out: np.ndarray) -> None:
        """Reads one feature of the records, several tasks at a time."""
        starts = range(0, len(rows), _RECORDS_A_TASK)
        tasks = [slice(start, start + _RECORDS_A_TASK) for start in starts]
        work = functools.partial(self._unpack_task, name)
        if len(tasks) == 1:
            work(rows, out)
        else:
            # `list` waits for all tasks and raises the error of a task.
            list(_POOL.map(work, (rows[task] for task in tasks), (out[task] for task in tasks)))

    def _unpack_task(self, name: str, rows: np.ndarray, out: np.ndarray) -> None:
        """Reads one record after the other into `out`.

        The next record reuses the memory of the last one while it is in the processor's cache;
        many records at once would need new memory, which costs as much time as decompression.
        """
        from tensorflow_datasets.proto import tf_example_pb2

        for row, image in zip(rows.tolist(), out, strict=True):
            try:
                example = tf_example_pb2.Example.FromString(self._records[row])
                pixels = example.features.feature[name].bytes_list.value[0]
                image[...] = np.frombuffer(pixels, image.dtype).reshape(image.shape)
            except MemoryError:
                raise
            except Exception as error:  # of the C++ reader or of the record's parser
                raise BadData(
                    f"{self._directory}: a shard is damaged, record {row} cannot be read "
                    f"({error}); build it again with --overwrite"
                ) from error


class MappedImages(ImageSource):
    """Uncompressed images in a file; the system caches as much of it as fits into memory."""

    def __init__(self, shards: ShardImages, path: Path) -> None:
        """Opens an `.npy` file of the images of `shards`.

        Raises:
          OSError: it cannot be opened.
          ValueError: it is no `.npy` file, or holds other images.
        """
        array = np.lib.format.open_memmap(path, mode="r")  # refuses pickled objects
        expected = (len(shards), *shards.shape)
        if array.shape != expected or array.dtype != shards.dtype or not array.flags.c_contiguous:
            raise ValueError(f"{array.dtype} {array.shape}, not {shards.dtype} {expected}")
        super().__init__(shards.shape, shards.dtype, len(shards))
        self.has_masks = shards.has_masks
        self._shards, self._array = shards, array
        self._offset = array.offset
        self._map = cast(mmap.mmap, array.base)  # NumPy's annotation knows only arrays
        # Rows are read in random order, so reading ahead would load unneeded pages.
        self._map.madvise(mmap.MADV_RANDOM)

    def read_into(self, rows: Rows, out: np.ndarray) -> None:
        """See `ImageSource`."""
        rows = self._checked(rows)
        size = self._array[0].nbytes
        for row in rows.tolist():
            # Announces all images of a minibatch at once; otherwise the disk would fetch one page
            # after the other, each when it is accessed.
            start = self._offset + row * size
            page = start - start % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, page, start + size - page)
        # With 'raise' NumPy would write into a temporary array first; the rows are checked above.
        np.take(self._array, rows, axis=0, out=out, mode="clip")

    def masks(self, rows: Rows) -> np.ndarray:
        """See `ImageSource`."""
        return self._shards.masks(rows)


def map_images(
    shards: ShardImages, dataset_dir: Path, fingerprint: str, *, show: bool
) -> MappedImages:
    """Opens the mapped file of a dataset, `images-<fingerprint>.npy`, and writes it if necessary.

    The file appears only when it is complete. If another process is writing it, waits for that
    process.

    Args:
      shards: the images.
      dataset_dir: folder of the file.
      fingerprint: of the images; files with another fingerprint are deleted.
      show: whether to show progress.

    Raises:
      BadUse: the disk has not enough free space, or the folder is read-only.
      BadData: an image cannot be read.
    """
    path = dataset_dir / f"images-{fingerprint}.npy"
    with contextlib.suppress(OSError, ValueError):
        return MappedImages(shards, path)
    try:
        with (dataset_dir / _LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for {path}, which another process writes", file=sys.stderr)
                fcntl.flock(lock, fcntl.LOCK_EX)
            with contextlib.suppress(OSError, ValueError):
                return MappedImages(shards, path)  # the other process has written it
            _write(shards, path, show)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        raise BadUse(
            f"{path} cannot be written ({error.strerror}): make its folder writable, or use "
            f"data_access=shards {_FLAGS}"
        ) from error
    return MappedImages(shards, path)


def _write(shards: ShardImages, path: Path, show: bool) -> None:
    """Writes all images to a temporary file and renames it when it is complete."""
    for old in path.parent.iterdir():  # of an earlier build or a killed process
        if _COPY.fullmatch(old.name):
            old.unlink()
    needed = len(shards) * math.prod(shards.shape) * shards.dtype.itemsize
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise BadUse(
            f"{path} needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: free some space, "
            f"or use data_access=shards {_FLAGS}"
        )
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        with unfinished.open("xb") as file:
            _write_pixels(shards, file, show)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _write_pixels(shards: ShardImages, file: BinaryIO, show: bool) -> None:
    """Writes the `.npy` format, one block of images at a time.

    It writes to a file instead of to mapped memory, which would be no faster; with mapped memory a
    full disk would kill the process.
    """
    header = {
        "descr": np.lib.format.dtype_to_descr(shards.dtype),
        "fortran_order": False,
        "shape": (len(shards), *shards.shape),
    }
    np.lib.format.write_array_header_1_0(file, header)
    image_bytes = math.prod(shards.shape) * shards.dtype.itemsize
    size = max(1, min(len(shards), _BLOCK_BYTES // image_bytes))
    buffer = np.empty((size, *shards.shape), shards.dtype)
    with Progress(len(shards), show, unit="cell", task="unpacked onto the disk") as progress:
        for start in range(0, len(shards), size):
            rows = np.arange(start, min(start + size, len(shards)))
            part = buffer[: len(rows)]
            shards.read_into(rows, part)
            file.write(part.data)
            progress.step(units=len(rows))
