"""Random access to the images of a dataset: from its shards, or from a mapped file of pixels."""

import abc
import functools
import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import numpy as np

from cellclr_jax.errors import BadData, BadUse

# Records that are read at the same time: they wait for the disk, or are unpacked outside the
# interpreter's lock. All readers of a process share the threads, which start when they are needed.
_THREADS = 16
_POOL = ThreadPoolExecutor(_THREADS, thread_name_prefix="images")
# Records of one task: to hand over a single one would take a share of the time to read it.
_RECORDS_A_TASK = 16

Rows = Sequence[int] | np.ndarray


class ImageSource(abc.ABC):
    """Random access to the images of a dataset; a row is that of `cells.parquet`.

    Where the pixels come from changes nothing but the time it takes.

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
          IndexError: there is no such row.
          BadData: an image cannot be read.
        """

    @abc.abstractmethod
    def masks(self, rows: Rows) -> np.ndarray:
        """Reads masks.

        Args:
          rows: [b] int, in any order.

        Returns:
          [b, S, S] uint8: 2 in the nucleus, 1 in the cell's territory, 0 elsewhere.

        Raises:
          IndexError: there is no such row.
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
        """The rows as int64."""
        array = np.asarray(rows)
        if not array.size:
            return np.empty(0, np.int64)
        if array.dtype.kind not in "iu" or array.ndim != 1:
            raise TypeError(f"rows [b] int were expected, not {array.dtype} {array.shape}")
        if array.min() < 0 or array.max() >= len(self):
            raise IndexError(f"rows {array.min()} to {array.max()} of {len(self)} images")
        return array.astype(np.int64, copy=False)


class ShardImages(ImageSource):
    """Images as the shards hold them, each unpacked when it is read.

    It can be pickled into a spawned process. In a process that was forked after a first read,
    array_record hangs.
    """

    def __init__(self, dataset_dir: str | Path) -> None:
        """Opens a dataset; its files are opened when they are first read.

        Raises:
          FileNotFoundError: there is no such file.
          Whatever TFDS raises for a description that it cannot read.
        """
        import tensorflow_datasets as tfds
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self._directory = str(dataset_dir)
        info = tfds.builder_from_directory(self._directory).info
        image, shards = info.features["image"], info.splits["train"].file_instructions
        for shard in shards:
            # They are opened when first read, which may be hours into a training.
            if not Path(shard.filename).is_file():
                raise FileNotFoundError(f"no file {shard.filename}")
        # It would otherwise start threads of its own, which one record has no use for.
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
        """Reads one feature of records, several tasks at a time."""
        starts = range(0, len(rows), _RECORDS_A_TASK)
        tasks = [slice(start, start + _RECORDS_A_TASK) for start in starts]
        work = functools.partial(self._unpack_task, name)
        if len(tasks) == 1:
            work(rows, out)
        else:
            parts = ((rows[task], out[task]) for task in tasks)
            # The list waits for all, and raises what a task has raised.
            list(_POOL.map(lambda part: work(*part), parts))

    def _unpack_task(self, name: str, rows: np.ndarray, out: np.ndarray) -> None:
        """Reads one record after the other, each into its place.

        Memory that one record has filled and left is still in the processor's cache when the next
        one takes it; many records at once would need new memory, which costs as much as to unpack
        them.
        """
        from tensorflow_datasets.proto import tf_example_pb2

        for row, place in zip(rows.tolist(), out, strict=True):
            try:
                example = tf_example_pb2.Example.FromString(self._records[row])
                pixels = example.features.feature[name].bytes_list.value[0]
                place[...] = np.frombuffer(pixels, place.dtype).reshape(place.shape)
            except MemoryError:
                raise
            except Exception as error:  # of the reader's C++ or of the record's parser
                raise BadData(
                    f"{self._directory}: a shard is damaged, record {row} cannot be read "
                    f"({error}); build it again with --overwrite"
                ) from error


class MappedImages(ImageSource):
    """Images that lie unpacked in a file; the system caches as much as fits into memory."""

    def __init__(self, shards: ShardImages, path: Path) -> None:
        """Opens an `.npy` file of the images of `shards`.

        Raises:
          OSError: it cannot be opened.
          ValueError: it is no `.npy` file, or holds something else than these images.
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
        # Next to what is read lies nothing that will be: the system is not to read ahead.
        self._map.madvise(mmap.MADV_RANDOM)

    def read_into(self, rows: Rows, out: np.ndarray) -> None:
        """See `ImageSource`."""
        rows = self._checked(rows)
        size = self._array[0].nbytes
        for row in rows.tolist():
            # The disk gets to know all images of a minibatch at once. Otherwise it would fetch one
            # page after the other, at the moment it is touched.
            start = self._offset + row * size
            page = start - start % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, page, start + size - page)
        # 'raise' would have NumPy write into an array of its own first; the rows are checked.
        np.take(self._array, rows, axis=0, out=out, mode="clip")

    def masks(self, rows: Rows) -> np.ndarray:
        """See `ImageSource`."""
        return self._shards.masks(rows)
