"""Reads planes of OME-Zarr arrays (Zarr v2 and v3)."""

import functools
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cellclr_jax.data.readers.formats import check_bytes
from cellclr_jax.errors import BadData

if TYPE_CHECKING:
    import zarr

# Arrays that stay open for the next plane of their field.
_OPEN_ARRAYS = 16


@dataclass(frozen=True)
class ZarrPlane:
    """A plane [H, W] of an array whose last two axes are y and x.

    Attributes:
      name: identifies it.
      path: of the array; '' if it does not exist.
      place: index on each leading axis.
    """

    name: str
    path: str
    place: tuple[int, ...] = ()

    @property
    def where(self) -> str:
        """The location for error messages."""
        return f"{self.path}{list(self.place)}" if self.path else self.name

    def stamp(self) -> str:
        """Name, and size and time of the newest chunk and of the metadata; reads no pixels."""
        return " ".join([self.name, repr(self.place), *map(str, _newest(self.path))])

    def size(self) -> int:
        """Bytes of the files of the whole array; -1 if it does not exist."""
        return _newest(self.path)[0]

    def dtype(self) -> str:
        """Reads the type of a pixel; BadData unless it is uint8 or uint16."""
        kind = np.dtype(self._array().dtype)
        if kind.newbyteorder("=") not in (np.uint8, np.uint16):
            raise BadData(f"{self.where}: {kind}, uint8 or uint16 was expected")
        return kind.newbyteorder("=").name

    def read(self, most: int) -> np.ndarray:
        """Reads [H, W] of at most `most` bytes.

        Raises:
          BadData: a chunk is damaged, or the array is not of uint8 or uint16.
        """
        kind, array = self.dtype(), self._array()
        try:
            check_bytes(math.prod(array.shape[-2:]) * np.dtype(kind).itemsize, most)
            check_bytes(math.prod(array.chunks) * np.dtype(kind).itemsize, most)
            return np.asarray(array[self.place], kind)
        except Exception as error:  # codecs of a damaged chunk raise exceptions of many types
            raise BadData(f"{self.where}: not a readable plane ({error})") from error

    def _array(self) -> "zarr.Array[Any]":
        if not self.path:
            raise BadData(f"no array {self.name}")
        try:
            return _opened(self.path)
        except Exception as error:  # damaged metadata raise exceptions of many types
            raise BadData(f"{self.path}: not a readable Zarr array ({error})") from error


@functools.lru_cache(maxsize=_OPEN_ARRAYS)
def _opened(path: str) -> "zarr.Array[Any]":
    import zarr

    return zarr.open_array(path, mode="r")


@functools.lru_cache(maxsize=_OPEN_ARRAYS)
def _newest(path: str) -> tuple[int, int]:
    """Bytes of all files of an array, and time of the newest in nanoseconds; -1, 0 if absent."""
    total, newest = -1, 0
    for folder, _, names in os.walk(path):
        for name in names:
            status = os.stat(os.path.join(folder, name))
            total, newest = max(total, 0) + status.st_size, max(newest, status.st_mtime_ns)
    return total, newest
