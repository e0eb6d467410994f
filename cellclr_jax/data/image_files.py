"""Finds and reads image files, loose or inside a zip; nothing is ever unpacked to the disk."""

import functools
import io
import logging
import math
import os
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NoReturn

import numpy as np

from cellclr_jax.cli import BadData

_TIFF = (".tif", ".tiff")
# A plate's zip is called so; where its entries have no folder, the rest of its name is the plate.
_ZIP_PREFIX = "BBBC021_v1_images_"
# Fields come sorted by plate, so a process has few zips in use at a time.
_OPEN_ZIPS = 4
# What claims to be larger is damaged or made to fill the memory: a channel of BBBC021 has 2.6 MB,
# and a whole camera of 100 million pixels 200 MB.
_MOST_BYTES = 256 << 20
# All that `zipfile` raises on a zip that is damaged, encrypted or of a newer kind.
_ZIP_ERRORS = (zipfile.BadZipFile, OSError, NotImplementedError, ValueError, struct.error)


@dataclass(frozen=True)
class ImageFile:
    """One file: `path` in the file system ('' where it is absent), `member` where it is a zip.

    `member_bytes` is the member's unpacked size.
    """

    name: str
    path: str = ""
    member: str = ""
    member_bytes: int = 0

    @property
    def where(self) -> str:
        """How an error names it."""
        return f"{self.path or self.name}{f'[{self.member}]' if self.member else ''}"


def find_tiffs(root: Path) -> Iterator[tuple[str, ImageFile]]:
    """Lists every TIFF under a folder, or in a zip, with the name of the folder it lies in.

    Args:
      root: a folder (of plates, of zips, or a plate) or one zip. Links are followed, once.

    Yields:
      (plate folder, file), loose files before those in zips.

    Raises:
      BadData: a folder or zip cannot be read, or an entry of a zip leads out of it.
    """
    if root.is_file():
        yield from _zip_tiffs(root)
        return
    zips = []
    for folder, names in _folders(root):
        for name in sorted(names):
            # Names with a leading dot are a file system's own notes (such as ._x.tif).
            if name.lower().endswith(_TIFF) and not name.startswith("."):
                yield Path(folder).absolute().name, ImageFile(name, str(Path(folder, name)))
            elif name.lower().endswith(".zip") and not name.startswith("."):
                zips.append(Path(folder, name))
    for path in zips:
        yield from _zip_tiffs(path)


def _folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """(folder, names of its files) of all folders under a root, sorted."""
    seen = set()
    for place, below, names in os.walk(root, followlinks=True, onerror=_unreadable):
        folder = Path(place)
        status = folder.stat()
        # A link may lead back to a folder above it. By its name as well: plates are found by their
        # folder's name, and a link may give a folder a second one.
        key = (status.st_dev, status.st_ino, folder.absolute().name)
        if key in seen:
            below.clear()
            continue
        seen.add(key)
        below.sort()
        yield folder, names


def _unreadable(error: OSError) -> NoReturn:
    """A folder that is left out silently would be cells that are missing silently."""
    raise BadData(f"{error.filename}: the folder cannot be read ({error.strerror})") from error


def _zip_tiffs(path: Path) -> Iterator[tuple[str, ImageFile]]:
    """(plate folder, file) of every TIFF in a zip."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except _ZIP_ERRORS as error:
        raise BadData(f"{path}: not a readable zip ({error})") from error
    for member in members:
        name = member.filename
        entry = PurePosixPath(name.replace("\\", "/"))
        if not entry.parts:
            continue
        if entry.is_absolute() or ".." in entry.parts or ":" in entry.parts[0]:
            raise BadData(f"{path}: entry {name!r} leads out of the zip: not a plate of images")
        if member.is_dir() or entry.name.startswith(".") or not name.lower().endswith(_TIFF):
            continue
        plate = entry.parent.name or path.stem.removeprefix(_ZIP_PREFIX)
        yield plate, ImageFile(entry.name, str(path), name, member.file_size)


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
        source = io.BytesIO(_zip(file.path).read(file.member))
    with tifffile.TiffFile(source) as tiff:
        _check_bytes(sum(series.nbytes for series in tiff.series))
        # Many processes read at once: a decoder of its own for each strip would not help.
        return np.asarray(tiff.asarray(maxworkers=1))


def _check_bytes(count: int) -> None:
    """Raises ValueError for more than any image of a field takes."""
    if count > _MOST_BYTES:
        raise ValueError(f"it unpacks to {count:,} bytes, more than the {_MOST_BYTES:,} allowed")


@functools.lru_cache(maxsize=_OPEN_ZIPS)
def _zip(path: str) -> zipfile.ZipFile:
    """An open zip, kept for the next field."""
    return zipfile.ZipFile(path)
