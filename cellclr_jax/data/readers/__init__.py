"""Reads image files: the channels of a field, images of single cells."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from cellclr_jax.data.readers import formats, tiff
from cellclr_jax.data.readers.find_files import CellFile, ImageFile, check_regular
from cellclr_jax.data.readers.formats import WHOLE, Selection, Stored
from cellclr_jax.data.readers.zarr_planes import ZarrPlane
from cellclr_jax.errors import BadData

# The channels of a cell lie along an axis of its image, or as tiles from left to right.
LAYOUTS = ("stacked", "side_by_side")
SUFFIXES = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".npy": ".npy array"}
"""Suffixes of image files, and the formats' names in messages."""
# A longer axis is not one of channels.
MOST_CHANNELS = 16
# Larger images are damaged or made to fill the memory. A channel of BBBC021 has 2.6 MB, that of a
# camera of 100 million pixels 200 MB. 64 MB are 8 channels of 2,048 x 2,048 pixels of 16 bits.
_MOST_BYTES, _MOST_CELL_BYTES = 256 << 20, 64 << 20
# Headers that are read to find the kind of most images: a folder may hold a million.
_HEADERS_READ = 1000

_READERS = {
    "PNG": (formats.png_header, formats.png_pixels),
    ".npy array": (formats.npy_header, formats.npy_pixels),
}

Item = TypeVar("Item")


class CellShape(NamedTuple):
    """The description of a cell's image in its header.

    Attributes:
      height, width: in pixels.
      channels: without opacity.
      dtype: 'uint8' or 'uint16'.
      alpha: whether a channel of opacity is left out.
      note: the axes in the file and the planes that are taken.
    """

    height: int
    width: int
    channels: int
    dtype: str
    alpha: bool = False
    note: str = ""


def read_planes(files: tuple[ImageFile, ...], z: str = "") -> np.ndarray:
    """Reads the channels of a field, one TIFF each.

    Args:
      files: one file for each channel; other files of its OME set are not read.
      z: the plane of files with a z axis (see `Selection`).

    Returns:
      [H, W, C] uint16.

    Raises:
      BadData: a file is missing, damaged, or not one 16-bit greyscale plane of the others' shape.
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


def read_plane(file: ImageFile | ZarrPlane) -> np.ndarray:
    """Reads one channel of a field, [H, W] uint8 or uint16.

    Raises:
      BadData: a file is missing, damaged, or not one greyscale plane.
    """
    if isinstance(file, ZarrPlane):
        return file.read(_MOST_BYTES)
    stored, plane = _open(file, Selection(own_pages=True), _MOST_BYTES)
    if plane.ndim != 2:
        raise _unlike(file, stored, "one grey plane [H, W]")
    return plane


def plane_type(file: ImageFile | ZarrPlane) -> str:
    """Reads the type of a channel's pixels, 'uint8' or 'uint16', from the header of its file.

    Raises:
      BadData: see `read_plane`.
    """
    if isinstance(file, ZarrPlane):
        return file.dtype()
    stored, _ = _open(file, Selection(own_pages=True), _MOST_BYTES, pixels=False)
    return stored.dtype.name


def cell_shape(
    file: ImageFile, *, layout: str, channels: int = 0, selection: Selection = WHOLE
) -> CellShape:
    """Reads the shape of a cell's image from the header of its file.

    An image is [H, W, C], [H, W] of one channel, or [C, H, W]. The metadata of a TIFF name its
    axes. In an array, the axis with `channels` entries is that of the channels, otherwise the
    shorter of the first and the last, the last if they are equal. A channel of opacity (alpha) is
    left out unless `channels` counts it.

    Args:
      file: .png, .tif, .tiff or .npy.
      layout: one of `LAYOUTS`; 'side_by_side' has square tiles.
      channels: their expected number; 0: unknown.
      selection: how one image is taken from a file that holds more.

    Raises:
      BadData: missing, damaged, larger than any image of a cell, or of another shape or type.
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


def sample_shapes(
    files: Sequence[ImageFile], *, layout: str, channels: int, selection: Selection
) -> list[tuple[ImageFile, CellShape]]:
    """Reads the headers of at most 1,000 images, evenly spaced; skips unreadable ones.

    Args:
      files: at least one; other arguments as of `cell_shape`.

    Raises:
      BadData: none of them is readable.
    """
    found, errors = [], []
    for file in _sample(files):
        try:
            shape = cell_shape(file, layout=layout, channels=channels, selection=selection)
            found.append((file, shape))
        except BadData as error:
            errors.append(error)
    if not found:
        raise BadData(f"none of {len(errors)} images can be used: {errors[0]}")
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
      [H, W, C] of that type; [H, H, C] of tiles side by side.

    Raises:
      BadData: missing, damaged, larger than any image of a cell, or of another shape or type.
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
    """Removes each TIFF that is read as a channel of another file (OME file sets).

    Only if a sample of the files has such sets are the headers of all of them read.

    Args:
      files: images of cells.

    Returns:
      The remaining files in their order; the first file of each set lists the others.
    """
    tiffs = [one for one in files if _format(one.file) == "TIFF"]
    if not any(tiff.set_files(one.file) != () for one in _sample(tiffs)):
        return list(files)
    remaining = []
    for one in files:
        parts = tiff.set_files(one.file) if _format(one.file) == "TIFF" else ()
        if parts is not None:
            file = dataclasses.replace(one.file, parts=parts)
            remaining.append(dataclasses.replace(one, file=file))
    return remaining


def images_in(file: ImageFile, selection: Selection) -> list[ImageFile]:
    """Each image of a file; a TIFF may hold several with --pages=cells."""
    several = selection.pages == "cells" and _format(file) == "TIFF"
    count = tiff.count_images(file) if several else 1
    return [dataclasses.replace(file, number=number) for number in range(count)]


def _sample(items: Sequence[Item]) -> Sequence[Item]:
    """At most `_HEADERS_READ` items, evenly spaced."""
    return items[:: math.ceil(len(items) / _HEADERS_READ) or 1]


def _format(file: ImageFile) -> str:
    """Returns the format of a file by its suffix, a value of `SUFFIXES`; '' if unknown."""
    return SUFFIXES.get(Path(file.member or file.path).suffix.lower(), "")


def _open(
    file: ImageFile, selection: Selection, most: int, *, pixels: bool = True
) -> tuple[Stored, np.ndarray]:
    """Reads the header of an image of at most `most` bytes and, optionally, its pixels.

    Raises:
      BadData: it is not a readable image, or its pixels differ from its header.
    """
    if not file.path:
        raise BadData(f"no file {file.name}")
    kind, image = _format(file), np.empty(0)
    try:
        if not kind:
            raise BadData(f"a file {', '.join(SUFFIXES)} was expected")
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
    except Exception as error:  # decoders of a damaged file raise exceptions of many types
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
    """Finds the axis with `channels` entries, otherwise the shortest possible channel axis."""
    fitting = [axis for axis in stored.axes if stored.shape[axis] == channels]
    return min(fitting or stored.axes, key=lambda axis: stored.shape[axis])


def _unlike(file: ImageFile, stored: Stored, expected: str) -> BadData:
    return BadData(f"{file.where}: {stored.dtype} {stored.shape}, {expected} was expected")
