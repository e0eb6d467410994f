"""Reads PNG and NPY files of one image; fits a cell's image to the size of crops."""

import math
import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from scipy import ndimage

from cellclr_jax.errors import BadData

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# The signature and the first chunk: 4 bytes of length, 4 of its name, 13 of content, 4 of checksum.
_PNG_HEADER = 33
# Limit on chunks before the pixels. A chunk is a length, a name, content and a checksum.
_PNG_MOST_CHUNKS = 1000
_PNG_PIXELS = b"IDAT"
# Chunks that change the meaning of the pixels.
_PNG_REFUSED = {
    b"tRNS": "one of its colours means transparent (tRNS); save it without",
    b"acTL": "it is an animation of several images (acTL); save each as a file",
}
# Channels by PNG's number of a colour type: grey, RGB, grey and alpha, RGBA.
_PNG_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}
_PNG_ALPHA = (4, 6)
_PNG_PALETTE = 3
_ROUNDING = 1e-6  # a computed half may be smaller by this much
PALETTE = "its numbers are those of a palette; save it as grey or RGB"


class Selection(NamedTuple):
    """Settings that select one image from a file that may contain more.

    Attributes:
      channels: their expected number; 0: unknown.
      pages: meaning of several images or unnamed pages: 'channels', 'cells', '' if unknown.
      z: the plane of a z axis, from '1', or 'max' for the maximum; '': there is no such axis.
      own_pages: each file is one channel; other files of its OME file set are not read.
    """

    channels: int = 0
    pages: str = ""
    z: str = ""
    own_pages: bool = False


WHOLE = Selection()
"""For files of one image each."""


class Stored(NamedTuple):
    """An array in a file.

    Attributes:
      shape: without leading axes of length 1 beyond three axes.
      dtype: of a pixel.
      axes: candidates for the channel axis of three, the likelier first.
      alpha: the last channel is opacity.
      note: the axes in the file and the planes that are taken.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    axes: tuple[int, ...] = (2, 0)
    alpha: bool = False
    note: str = "one plane"


def read_npy_header(opened: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """Reads shape and type from the header of an .npy file, up to its first pixel."""
    version = np.lib.format.read_magic(opened)
    # Version 3 only adds names of structured types, which images do not have.
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"version {version[0]}.{version[1]} of the format")
    shape, _, dtype = readers[version](opened)
    return shape, dtype


def check_bytes(count: int, most: int) -> None:
    """Raises ValueError for more bytes than allowed."""
    if count > most:
        raise ValueError(f"it unpacks to {count:,} bytes, more than the {most:,} allowed")


def npy_header(path: Path, most: int) -> Stored:
    """Reads the header of an array; ValueError if the file is shorter or longer than it claims."""
    with path.open("rb") as opened:
        shape, dtype = read_npy_header(opened)
        actual = os.fstat(opened.fileno()).st_size - opened.tell()
    claimed = math.prod(shape) * dtype.itemsize
    check_bytes(claimed, most)
    if actual != claimed:
        raise ValueError(f"{actual} bytes of pixels, its header claims {claimed}")
    return Stored(_without_ones(shape), dtype)


def npy_pixels(path: Path) -> np.ndarray:
    """Reads an array without leading axes of length 1."""
    image = np.asarray(np.load(path, allow_pickle=False))
    return image.reshape(_without_ones(image.shape))


def png_header(path: Path, most: int) -> Stored:
    """Reads the header of a PNG; ValueError unless its pixels are brightness or RGB."""
    with path.open("rb") as opened:
        head = opened.read(_PNG_HEADER)
        check_bytes(os.fstat(opened.fileno()).st_size, most)
        refused = _refused_chunk(opened)
    if len(head) < _PNG_HEADER or not head.startswith(_PNG_SIGNATURE + b"\0\0\0\x0dIHDR"):
        raise ValueError("it does not start with the header of a PNG")
    width, height, depth, color = struct.unpack(">IIBB", head[16:26])
    # The headers of a sample decide the kind of all images, so a damaged one must not count.
    if zlib.crc32(head[12:29]) != int.from_bytes(head[29:], "big"):
        raise ValueError("the checksum of its header is wrong")
    if color == _PNG_PALETTE:
        raise ValueError(PALETTE)
    if color not in _PNG_CHANNELS or depth not in (8, 16):
        raise ValueError(f"{depth} bits a channel, 8 or 16 were expected")
    if refused:
        raise ValueError(_PNG_REFUSED[refused])
    channels = _PNG_CHANNELS[color]
    check_bytes(height * width * channels * depth // 8, most)
    shape = (height, width) if channels == 1 else (height, width, channels)
    return Stored(shape, np.dtype(f"u{depth // 8}"), (2,), color in _PNG_ALPHA)


def _refused_chunk(opened: BinaryIO) -> bytes:
    """Searches the second chunk up to the pixels of a PNG for a refused one; b'' if none is."""
    for _ in range(_PNG_MOST_CHUNKS):
        head = opened.read(8)
        if len(head) < 8 or head[4:] == _PNG_PIXELS:
            return b""
        if head[4:] in _PNG_REFUSED:
            return head[4:]
        opened.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    raise ValueError(f"more than {_PNG_MOST_CHUNKS:,} chunks before its pixels")


def png_pixels(path: Path) -> np.ndarray:
    """Decodes a PNG."""
    import imagecodecs

    # Unlike Pillow, imagecodecs keeps 16 bits of every colour type.
    return np.asarray(imagecodecs.png_decode(path.read_bytes()))


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Drops leading axes of length 1 while more than three axes remain."""
    while len(shape) > 3 and shape[0] == 1:
        shape = shape[1:]
    return tuple(shape)


def fit(image: np.ndarray, size: int, how: str) -> np.ndarray:
    """Resizes, pads or cuts an image to S x S pixels, each channel separately.

    'resize' scales the longer side to S pixels, the other by the same factor to keep the cell's
    shape, and pads the shorter side. Shrinking takes the mean over the area of each new pixel,
    which preserves the image's mean and needs no blur before; growing is bilinear between the
    centres of pixels. 'pad' keeps the scale, and so the cell's size: it centres a smaller image and
    cuts the middle out of a larger one.

    Padding repeats the border: the background of a microscope's image is not zero, and a black
    frame would be its sharpest edge.

    Args:
      image: [H, W, C] unsigned integers of at most 16 bits.
      size: side S in pixels, at least 1.
      how: 'resize', 'pad' or 'exact', which takes only S x S pixels.

    Returns:
      [S, S, C] of the image's type, rounded to the nearest (a half up); the same array if it has
      that size already.

    Raises:
      BadData: with 'exact', an image of another size.

    >>> fit(np.array([[[1], [2]], [[3], [4]]], np.uint8), 1, "resize").item()
    3
    """
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    if how == "exact":
        raise BadData(f"{height}x{width} pixels, {size}x{size} were expected")
    return _centered(_scaled(image, size) if how == "resize" else image, size)


def _scaled(image: np.ndarray, size: int) -> np.ndarray:
    """Scales the longer side to `size` pixels, the other in proportion to at least 1."""
    from skimage.transform import resize_local_mean

    longer, pixels = max(image.shape[:2]), image.astype(np.float64)
    target = tuple(max(1, (2 * side * size + longer) // (2 * longer)) for side in image.shape[:2])
    if longer > size:
        pixels = resize_local_mean(pixels, target, preserve_range=True, channel_axis=-1)
    else:
        zoom = [new / old for new, old in zip(target, image.shape[:2], strict=True)]
        pixels = ndimage.zoom(pixels, (*zoom, 1), order=1, mode="nearest", grid_mode=True)
    # A half is rounded up on every machine.
    return np.floor(pixels + 0.5 + _ROUNDING).astype(image.dtype)


def _centered(image: np.ndarray, size: int) -> np.ndarray:
    """Cuts [S, S, C] around pixel [H // 2, W // 2], as crops of a field are; repeats the border."""
    rows, columns = (
        np.clip(np.arange(size) - size // 2 + side // 2, 0, side - 1) for side in image.shape[:2]
    )
    return image[rows[:, None], columns]
