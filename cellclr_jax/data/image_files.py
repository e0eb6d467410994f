"""Reads image files: the channels of a field, single-cell crops."""

import io
import logging
import math
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cellclr_jax.cli import BadData
from cellclr_jax.data.plate_files import ImageFile, read_member

# What claims to be larger is damaged or made to fill the memory: a channel of BBBC021 has 2.6 MB,
# and a whole camera of 100 million pixels 200 MB.
_MOST_BYTES = 256 << 20


def read_field(files: tuple[ImageFile, ...]) -> np.ndarray:
    """Reads the channels of a field.

    Args:
      files: one file a channel.

    Returns:
      [H, W, C] uint16.

    Raises:
      BadData: a file is absent, broken, or not a 16-bit greyscale image of the others' shape.
    """
    planes: list[np.ndarray] = []
    for file in files:
        plane = _read_tiff(file)
        if plane.ndim != 2 or plane.dtype != np.uint16:
            raise BadData(f"{file.where}: {plane.dtype} {plane.shape}, uint16 (H, W) was expected")
        if planes and plane.shape != planes[0].shape:
            raise BadData(
                f"{file.where}: {plane.shape} pixels, {files[0].name} has {planes[0].shape}"
            )
        planes.append(plane)
    return np.stack(planes, axis=-1)


def crop_shape(file: ImageFile) -> tuple[int, int, int]:
    """Reads the shape of a crop from its file's header, which costs no pixels.

    Returns:
      (S, S, C).

    Raises:
      BadData: not a .npy file, not of that shape and type, or shorter than its header says.
    """
    try:
        with Path(file.path).open("rb") as opened:
            shape, dtype = _npy_header(opened)
            there = os.fstat(opened.fileno()).st_size - opened.tell()
    except MemoryError:
        raise
    except Exception as error:
        # A damaged header makes its parser raise anything at all.
        raise BadData(f"{file.where}: not a readable .npy array ({error})") from error
    if len(shape) != 3 or shape[0] != shape[1] or min(shape) < 1 or dtype != np.uint16:
        raise BadData(f"{file.where}: {dtype} {shape}, uint16 (S, S, C) was expected")
    # What is claimed is taken from memory before it is read from the file.
    needed = math.prod(shape) * dtype.itemsize
    if there < needed:
        raise BadData(f"{file.where}: {there} bytes of pixels, its header claims {needed}")
    return shape[0], shape[1], shape[2]


def _npy_header(opened: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """The shape and type that an .npy file claims; the file is left at its first pixel."""
    version = np.lib.format.read_magic(opened)
    # Version 3 exists for the names of structured types alone: an image never needs it.
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"version {version[0]}.{version[1]} of the format")
    shape, _, dtype = readers[version](opened)
    return shape, dtype


def read_crop(file: ImageFile) -> np.ndarray:
    """Reads one crop.

    Returns:
      [S, S, C] uint16.

    Raises:
      BadData: not a .npy file, or not of that shape and type.
    """
    crop_shape(file)
    try:
        return np.asarray(np.load(file.path, allow_pickle=False))
    except MemoryError:
        raise
    except Exception as error:
        raise BadData(f"{file.where}: not a readable .npy array ({error})") from error


def _read_tiff(file: ImageFile) -> np.ndarray:
    """The pixels of a TIFF, whatever its shape and type."""
    # tifffile reports a broken file on the console as well; the error below names it once.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    if not file.path:
        raise BadData(f"no file {file.name}")
    try:
        image = _decode_tiff(file)
    except MemoryError:
        raise
    except Exception as error:
        # A damaged file makes its decoders raise anything at all.
        raise BadData(f"{file.where}: not a readable TIFF ({error})") from error
    if not image.size:
        raise BadData(f"{file.where}: not a readable TIFF (no image in it)")
    return image


def _decode_tiff(file: ImageFile) -> np.ndarray:
    """Reads a TIFF, or raises whatever its decoders do, and ValueError where it is too large."""
    import tifffile

    source: str | io.BytesIO = file.path
    if file.member:
        _check_bytes(file.member_bytes)
        source = io.BytesIO(read_member(file))
    with tifffile.TiffFile(source) as tiff:
        _check_bytes(sum(series.nbytes for series in tiff.series))
        # Many processes read at once: a decoder of its own for each strip would not help.
        return np.asarray(tiff.asarray(maxworkers=1))


def _check_bytes(count: int) -> None:
    """Raises ValueError for more than any image of a field takes."""
    if count > _MOST_BYTES:
        raise ValueError(f"it unpacks to {count:,} bytes, more than the {_MOST_BYTES:,} allowed")
