"""Reads image files: the channels of a field, images of single cells."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from cellclr_jax.data.readers import formats, tiff
from cellclr_jax.data.readers.find_files import CellFile, ImageFile, check_regular
from cellclr_jax.data.readers.formats import WHOLE, Selection, Stored
from cellclr_jax.errors import BadData

# How the channels of a cell lie in its file: along an axis, or as tiles from left to right.
LAYOUTS = ("stacked", "side_by_side")
SUFFIXES = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".npy": ".npy array"}
"""Ends of the names of image files, and what messages call them."""
# An axis of more pixels is none of channels.
MOST_CHANNELS = 8
# What claims to be larger is damaged or made to fill the memory. A channel of BBBC021 has 2.6 MB,
# and a whole camera of 100 million pixels 200 MB; eight channels of 2,048 by 2,048 pixels of 16
# bits are more than any image of one cell.
_MOST_BYTES, _MOST_CELL_BYTES = 256 << 20, 64 << 20
# Headers that are read to find out what most images are like: a folder may hold a million.
_HEADERS_READ = 1000

_READERS = {
    "PNG": (formats.png_header, formats.png_pixels),
    ".npy array": (formats.npy_header, formats.npy_pixels),
}

Header = TypeVar("Header")
Item = TypeVar("Item")


class CellShape(NamedTuple):
    """What a header says of a cell's image.

    Attributes:
      height, width: in pixels.
      channels: without opacity.
      dtype: 'uint8' or 'uint16'.
      alpha: whether a channel of opacity is left out.
      note: the axes in the file and which planes of them are taken.
    """

    height: int
    width: int
    channels: int
    dtype: str
    alpha: bool = False
    note: str = ""


def read_planes(files: tuple[ImageFile, ...], z: str = "") -> np.ndarray:
    """Reads the channels of a field, a TIFF each.

    Args:
      files: one file a channel, of which only its own plane is read.
      z: the plane of those with a z axis (see `Selection`).

    Returns:
      [H, W, C] uint16.

    Raises:
      BadData: a file is absent, broken, or not one 16-bit greyscale plane of the others' shape.
    """
    planes: list[np.ndarray] = []
    for file in files:
        _, plane = _open(file, Selection(z=z, own_pages=True), _MOST_BYTES)
        if plane.ndim != 2 or plane.dtype != np.uint16:
            raise BadData(f"{file.where}: {plane.dtype} {plane.shape}, uint16 (H, W) was expected")
        if planes and plane.shape != planes[0].shape:
            raise BadData(
                f"{file.where}: {plane.shape} pixels, {files[0].name} has {planes[0].shape}"
            )
        planes.append(plane)
    return np.stack(planes, axis=-1)


def cell_shape(
    file: ImageFile, *, layout: str, channels: int = 0, selection: Selection = WHOLE
) -> CellShape:
    """Reads the shape of a cell's image from its file's header, which costs no pixels.

    An image is [H, W, C], [H, W] of one channel, or [C, H, W]. The metadata of a TIFF name its
    axes. Of an array, the axis that has `channels` entries is that of the channels, otherwise the
    shorter of the first and the last, in doubt the last. A channel of opacity (alpha) is left out,
    unless `channels` counts it.

    Args:
      file: .png, .tif, .tiff or .npy.
      layout: one of `LAYOUTS`; 'side_by_side' has square tiles.
      channels: how many are expected; 0: unknown.
      selection: how one image is taken from a file that holds more.

    Raises:
      BadData: absent, broken, larger than any image of a cell, or of another shape or type.
    """
    selection = selection._replace(channels=channels)
    stored, _ = _open(file, selection, _MOST_CELL_BYTES, pixels=False)
    return _cell_shape(file, stored, layout, channels)


def _cell_shape(file: ImageFile, stored: Stored, layout: str, channels: int) -> CellShape:
    height, width = stored.shape[:2]
    count, alpha = 1, False
    if layout == "side_by_side":
        count, rest = divmod(width, height)
        if len(stored.shape) != 2 or rest:
            raise _unlike(file, stored, "grey square tiles from left to right")
        width = height
    elif len(stored.shape) == 3:
        axis = _channel_axis(stored, channels)
        count = stored.shape[axis]
        height, width = (side for at, side in enumerate(stored.shape) if at != axis)
        alpha = stored.alpha and count != channels
        count -= alpha
    if count > MOST_CHANNELS:
        raise _unlike(file, stored, f"at most {MOST_CHANNELS} channels")
    return CellShape(height, width, count, stored.dtype.name, alpha, stored.note)


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
    for file in _sample(files):
        try:
            found.append((file, read(file)))
        except BadData as error:
            broken.append(error)
    if not found:
        raise BadData(f"none of {len(broken)} {what} can be used: {broken[0]}")
    return found


def read_cell(
    file: ImageFile, *, channels: int, layout: str, dtype: str, selection: Selection = WHOLE
) -> np.ndarray:
    """Reads the image of one cell.

    Args:
      file: .png, .tif, .tiff or .npy (see `cell_shape` for its axes).
      channels: C.
      layout: one of `LAYOUTS`.
      dtype: of its pixels, 'uint8' or 'uint16'; another one is not converted.
      selection: how one image is taken from a file that holds more.

    Returns:
      [H, W, C] of that type; [H, H, C] where they lie side by side.

    Raises:
      BadData: absent, broken, larger than any image of a cell, or of another shape or type.
    """
    selection = selection._replace(channels=channels)
    stored, image = _open(file, selection, _MOST_CELL_BYTES)
    shape = _cell_shape(file, stored, layout, channels)
    if (shape.channels, shape.dtype) != (channels, dtype):
        tiles = " grey square tiles from left to right" * (layout == "side_by_side")
        raise _unlike(file, stored, f"{dtype} of {channels} channels{tiles}")
    if layout == "side_by_side":
        image = image.reshape(shape.height, channels, shape.height).swapaxes(1, 2)
    elif image.ndim == 3:
        image = np.moveaxis(image, _channel_axis(stored, channels), 2)[..., :channels]
    return np.ascontiguousarray(image.reshape(*image.shape[:2], channels), dtype)


def without_parts_of_sets(files: Sequence[CellFile]) -> list[CellFile]:
    """Leaves out each TIFF whose channels are read from another file of its OME set.

    A sample of the files decides whether there are such sets: reading all headers takes long.

    Args:
      files: images of cells.

    Returns:
      The others in their order; the first file of each set knows the other ones.
    """
    tiffs = [one for one in files if SUFFIXES[_suffix(one.file)] == "TIFF"]
    if not any(tiff.set_files(one.file) != () for one in _sample(tiffs)):
        return list(files)
    kept = []
    for one in files:
        parts = tiff.set_files(one.file) if SUFFIXES[_suffix(one.file)] == "TIFF" else ()
        if parts is not None:
            kept.append(dataclasses.replace(one, file=dataclasses.replace(one.file, parts=parts)))
    return kept


def images_in(file: ImageFile, selection: Selection) -> list[ImageFile]:
    """The images of a file, each as a file that is read alone: several with --pages=cells."""
    several = selection.pages == "cells" and SUFFIXES[_suffix(file)] == "TIFF"
    count = tiff.count_images(file) if several else 1
    return [dataclasses.replace(file, number=number) for number in range(count)]


def _sample(items: Sequence[Item]) -> Sequence[Item]:
    """At most `_HEADERS_READ` items, spread over all."""
    return items[:: math.ceil(len(items) / _HEADERS_READ) or 1]


def _suffix(file: ImageFile) -> str:
    return Path(file.member or file.path).suffix.lower()


def _open(
    file: ImageFile, selection: Selection, most: int, *, pixels: bool = True
) -> tuple[Stored, np.ndarray]:
    """Reads the header of an image file and its pixels, if wanted; otherwise no pixel.

    Raises:
      BadData: that is no image, or its pixels are not what the header says.
    """
    if not file.path:
        raise BadData(f"no file {file.name}")
    if _suffix(file) not in SUFFIXES:
        raise BadData(f"{file.where}: a file {', '.join(SUFFIXES)} was expected")
    kind, image = SUFFIXES[_suffix(file)], np.empty(0)
    try:
        if kind == "TIFF":
            stored, image = tiff.read(file, selection, most, pixels=pixels)
        else:
            if selection.z not in ("", "1", "max"):
                raise BadData(f"it has no z axis, of which --z={selection.z} takes a plane")
            check_regular(file.path)
            header, read = _READERS[kind]
            stored = header(Path(file.path), most)
            image = read(Path(file.path)) if pixels else image
    except MemoryError:
        raise
    except BadData as error:
        raise BadData(f"{file.where}: {error}") from error
    except Exception as error:
        # A damaged file makes its decoders raise anything at all.
        raise BadData(f"{file.where}: not a readable {kind} ({error})") from error
    wrong = len(stored.shape) not in (2, 3) or min(stored.shape) < 1
    if wrong or stored.dtype.newbyteorder("=") not in (np.uint8, np.uint16):
        raise _unlike(file, stored, "uint8 or uint16 [H, W], [H, W, C] or [C, H, W]")
    if pixels and (image.shape, image.dtype) != (stored.shape, stored.dtype):
        raise BadData(
            f"{file.where}: not a readable {kind} ({image.dtype} {image.shape} in it, its "
            f"header says {stored.dtype} {stored.shape})"
        )
    return stored._replace(dtype=stored.dtype.newbyteorder("=")), image


def _channel_axis(stored: Stored, channels: int) -> int:
    """The axis of three that has `channels` entries, else the shortest of those it may be."""
    fitting = [axis for axis in stored.axes if stored.shape[axis] == channels]
    return min(fitting or stored.axes, key=lambda axis: stored.shape[axis])


def _unlike(file: ImageFile, stored: Stored, expected: str) -> BadData:
    """The error for an image of another kind."""
    return BadData(f"{file.where}: {stored.dtype} {stored.shape}, {expected} was expected")
