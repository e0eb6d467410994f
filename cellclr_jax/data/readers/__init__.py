"""Reads image files: the channels of a field, images of single cells."""

import io
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from cellclr_jax.data.readers.find_files import ImageFile, check_regular, read_member
from cellclr_jax.data.readers.formats import FORMATS, Stored, check_bytes, check_tiff
from cellclr_jax.errors import BadData

# How the channels of a cell lie in its file: along an axis, or as tiles from left to right.
LAYOUTS = ("stacked", "side_by_side")
# An axis of more pixels is none of channels.
MOST_CHANNELS = 8
# What claims to be larger is damaged or made to fill the memory: a channel of BBBC021 has 2.6 MB,
# and a whole camera of 100 million pixels 200 MB.
_MOST_BYTES = 256 << 20
# So many headers tell what most images are like: a folder may hold a million.
_HEADERS_READ = 1000

Header = TypeVar("Header")


class CellShape(NamedTuple):
    """What a header says of a cell's image: sides in pixels, channels, 'uint8' or 'uint16'."""

    height: int
    width: int
    channels: int
    dtype: str


def read_planes(files: tuple[ImageFile, ...]) -> np.ndarray:
    """Reads the channels of a field, a TIFF each.

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


def cell_shape(file: ImageFile, *, layout: str, channels: int = 0) -> CellShape:
    """Reads the shape of a cell's image from its file's header, which costs no pixels.

    An image is [H, W, C], [H, W] of one channel, or [C, H, W]: the axis that has `channels`
    entries is that of the channels, otherwise the shorter of the first and the last. A TIFF may
    say which it is; in one whose first and last axis are alike, the first is (its pages), in
    other files the last. An alpha channel that is opaque everywhere is no channel, unless
    `channels` counts it: for that, pixels are read.

    Args:
      file: .png, .tif, .tiff or .npy.
      layout: one of `LAYOUTS`; 'side_by_side' has square tiles.
      channels: how many are expected; 0: unknown.

    Raises:
      BadData: absent, broken, larger than any image of a cell, or of another shape or type.
    """
    stored = _header(file)
    height, width = stored.shape[:2]
    count = 1
    if layout == "side_by_side":
        count, rest = divmod(width, height)
        if len(stored.shape) != 2 or rest:
            raise _unlike(file, stored, "grey square tiles from left to right")
        width = height
    elif len(stored.shape) == 3:
        axis = _channel_axis(stored, channels)
        count = stored.shape[axis]
        height, width = (side for at, side in enumerate(stored.shape) if at != axis)
        if stored.alpha and count != channels and _is_opaque(_pixels(file, stored)):
            count -= 1
    if count > MOST_CHANNELS:
        raise _unlike(file, stored, f"at most {MOST_CHANNELS} channels")
    return CellShape(height, width, count, stored.dtype.name)


def read_some(
    files: Sequence[ImageFile], read: Callable[[ImageFile], Header], what: str
) -> list[tuple[ImageFile, Header]]:
    """Reads the headers of a sample of files, spread over all.

    Args:
      files: at least one.
      read: reads a file's header; files for which it raises BadData are passed over.
      what: the files are, for the message.

    Raises:
      BadData: it raises for all of them.
    """
    found: list[tuple[ImageFile, Header]] = []
    broken = []
    for file in files[:: math.ceil(len(files) / _HEADERS_READ)]:
        try:
            found.append((file, read(file)))
        except BadData as error:
            broken.append(error)
    if not found:
        raise BadData(f"none of {len(broken)} {what} can be used: {broken[0]}")
    return found


def read_cell(file: ImageFile, *, channels: int, layout: str, dtype: str) -> np.ndarray:
    """Reads the image of one cell.

    Args:
      file: .png, .tif, .tiff or .npy (see `cell_shape` for its axes).
      channels: C.
      layout: one of `LAYOUTS`.
      dtype: of its pixels, 'uint8' or 'uint16'; another one is not converted.

    Returns:
      [H, W, C] of that type; [H, H, C] where they lie side by side.

    Raises:
      BadData: absent, broken, larger than any image of a cell, or of another shape or type; an
        alpha channel besides `channels` channels that is not opaque everywhere.
    """
    stored = _header(file)
    if stored.dtype.name != dtype:
        raise _unlike(file, stored, f"{dtype} of {channels} channels")
    if layout == "side_by_side":
        if stored.shape != (stored.shape[0], channels * stored.shape[0]):
            raise _unlike(file, stored, f"{channels} grey square tiles from left to right")
        side = stored.shape[0]
        image = _pixels(file, stored).reshape(side, channels, side).swapaxes(1, 2)
    elif stored.shape[2:] == (channels + 1,) and stored.alpha:
        image = _pixels(file, stored)
        if not _is_opaque(image):
            raise BadData(
                f"{file.where}: {channels} channels and an alpha channel that is not opaque; "
                f"{channels + 1} names in --channels keep it"
            )
        image = image[..., :channels]
    elif len(stored.shape) == 2 and channels == 1:
        image = _pixels(file, stored)[..., None]
    elif len(stored.shape) == 3 and stored.shape[_channel_axis(stored, channels)] == channels:
        image = np.moveaxis(_pixels(file, stored), _channel_axis(stored, channels), 2)
    else:
        raise _unlike(file, stored, f"{dtype} of {channels} channels")
    return np.ascontiguousarray(image, dtype)


def crop_shape(file: ImageFile) -> tuple[int, int, int]:
    """The shape (S, S, C) of a crop of 16 bits, from its header; BadData for another image."""
    shape = cell_shape(file, layout="stacked")
    if shape.dtype != "uint16" or shape.height != shape.width:
        height, width, depth, dtype = shape
        raise BadData(f"{file.where}: {dtype} {(height, width, depth)}, uint16 (S, S, C) expected")
    return shape.height, shape.width, shape.channels


def _header(file: ImageFile) -> Stored:
    """What a cell's file says of its pixels; BadData where that is no image."""
    if not file.path:
        raise BadData(f"no file {file.name}")
    suffix = Path(file.path).suffix.lower()
    if suffix not in FORMATS:
        raise BadData(f"{file.where}: a file {', '.join(FORMATS)} was expected")
    try:
        check_regular(file.path)
        stored = FORMATS[suffix].read_header(Path(file.path))
    except MemoryError:
        raise
    except Exception as error:
        # A damaged file makes its parsers raise anything at all.
        raise BadData(f"{file.where}: not a readable {FORMATS[suffix].name} ({error})") from error
    wrong = len(stored.shape) not in (2, 3) or min(stored.shape) < 1
    if wrong or stored.dtype.newbyteorder("=") not in (np.uint8, np.uint16):
        raise _unlike(file, stored, "uint8 or uint16 [H, W], [H, W, C] or [C, H, W]")
    return stored._replace(dtype=stored.dtype.newbyteorder("="))


def _pixels(file: ImageFile, stored: Stored) -> np.ndarray:
    """The pixels of a cell's file; BadData where they are not what its header says."""
    form = FORMATS[Path(file.path).suffix.lower()]
    try:
        image = form.read_pixels(Path(file.path))
    except MemoryError:
        raise
    except Exception as error:
        # A damaged file makes its decoders raise anything at all.
        raise BadData(f"{file.where}: not a readable {form.name} ({error})") from error
    if image.shape != stored.shape or image.dtype.newbyteorder("=") != stored.dtype:
        raise BadData(
            f"{file.where}: not a readable {form.name} ({image.dtype} {image.shape} in it, its "
            f"header says {stored.dtype} {stored.shape})"
        )
    return image


def _channel_axis(stored: Stored, channels: int) -> int:
    """The axis of three that has `channels` entries, else the shortest of those it may be."""
    fitting = [axis for axis in stored.axes if stored.shape[axis] == channels]
    return min(fitting or stored.axes, key=lambda axis: stored.shape[axis])


def _is_opaque(image: np.ndarray) -> bool:
    """Whether the last channel is at its type's highest value everywhere."""
    return bool((image[..., -1] == np.iinfo(image.dtype).max).all())


def _unlike(file: ImageFile, stored: Stored, expected: str) -> BadData:
    """The error for an image of another kind."""
    return BadData(f"{file.where}: {stored.dtype} {stored.shape}, {expected} was expected")


def _read_tiff(file: ImageFile) -> np.ndarray:
    """The pixels of a TIFF, whatever its shape and type."""
    import tifffile

    # tifffile reports a broken file on the console as well; the error below names it once.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    if not file.path:
        raise BadData(f"no file {file.name}")
    source: str | io.BytesIO = file.path
    try:
        if file.member:
            check_bytes(file.member_bytes, _MOST_BYTES)
            source = io.BytesIO(read_member(file))
        else:
            check_regular(file.path)
        with tifffile.TiffFile(source) as tiff:
            check_tiff(tiff, _MOST_BYTES)
            # Many processes read at once: a decoder of its own for each strip would not help.
            image = np.asarray(tiff.asarray(maxworkers=1))
        if not image.size:
            raise ValueError("no image in it")
    except MemoryError:
        raise
    except Exception as error:
        # A damaged file makes its decoders raise anything at all.
        raise BadData(f"{file.where}: not a readable TIFF ({error})") from error
    return image
