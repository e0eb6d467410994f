"""Finds and reads image files, loose or inside a zip; nothing is ever unpacked to the disk."""

import functools
import io
import logging
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from os import walk
from pathlib import Path, PurePosixPath

import numpy as np

from cellclr_jax.cli import BadData

_TIFF = (".tif", ".tiff")
# A plate's zip is called so; where its entries have no folder, the rest of its name is the plate.
_ZIP_PREFIX = "BBBC021_v1_images_"
# Fields come sorted by plate, so a process has few zips in use at a time.
_OPEN_ZIPS = 4


@dataclass(frozen=True)
class ImageFile:
    """One file: `path` in the file system ('' where it is absent), `member` where it is a zip."""

    name: str
    path: str = ""
    member: str = ""

    @property
    def where(self) -> str:
        """How an error names it."""
        return f"{self.path or self.name}{f'[{self.member}]' if self.member else ''}"


def find_tiffs(root: Path) -> Iterator[tuple[str, ImageFile]]:
    """Lists every TIFF under a folder, or in a zip, with the name of the folder it lies in.

    Args:
      root: a folder (of plates, of zips, or a plate) or one zip. Links are followed.

    Yields:
      (plate folder, file), loose files before those in zips.

    Raises:
      BadData: a zip cannot be read, or one of its entries leads out of it.
    """
    if root.is_file():
        yield from _zip_tiffs(root)
        return
    zips = []
    for folder, below, names in walk(root, followlinks=True):
        below.sort()
        for name in sorted(names):
            # Names with a leading dot are a file system's own notes (such as ._x.tif).
            if name.lower().endswith(_TIFF) and not name.startswith("."):
                yield Path(folder).absolute().name, ImageFile(name, str(Path(folder, name)))
            elif name.lower().endswith(".zip") and not name.startswith("."):
                zips.append(Path(folder, name))
    for path in zips:
        yield from _zip_tiffs(path)


def _zip_tiffs(path: Path) -> Iterator[tuple[str, ImageFile]]:
    """(plate folder, file) of every TIFF in a zip."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise BadData(f"{path}: not a readable zip ({error})") from error
    for name in names:
        entry = PurePosixPath(name.replace("\\", "/"))
        if entry.is_absolute() or ".." in entry.parts or ":" in entry.parts[0]:
            raise BadData(f"{path}: entry {name!r} leads out of the zip: not a plate of images")
        if name.lower().endswith(_TIFF) and not entry.name.startswith("."):
            plate = entry.parent.name or path.stem.removeprefix(_ZIP_PREFIX)
            yield plate, ImageFile(entry.name, str(path), name)


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


def read_crop(file: ImageFile) -> np.ndarray:
    """Reads one crop.

    Returns:
      [S, S, C] uint16.

    Raises:
      BadData: not a .npy file, or not of that shape and type.
    """
    try:
        crop = np.load(file.path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BadData(f"{file.where}: not a readable .npy array ({error})") from error
    # An .npz also loads, as something else than an array.
    if not isinstance(crop, np.ndarray):
        raise BadData(f"{file.where}: not a single .npy array")
    if crop.ndim != 3 or crop.shape[0] != crop.shape[1] or crop.dtype != np.uint16:
        raise BadData(f"{file.where}: {crop.dtype} {crop.shape}, uint16 (S, S, C) was expected")
    return crop


def _read_tiff(file: ImageFile) -> np.ndarray:
    """The pixels of a TIFF, whatever its shape and type."""
    import tifffile

    # It reports a broken file on the console as well; the error below names it once.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    if not file.path:
        raise BadData(f"no file {file.name}")
    try:
        source: str | io.BytesIO = file.path
        if file.member:
            source = io.BytesIO(_zip(file.path).read(file.member))
        # Many processes read at once: a decoder of its own for each strip would not help.
        image = np.asarray(tifffile.imread(source, maxworkers=1))
    except Exception as error:
        # A damaged file makes its decoders raise anything at all.
        raise BadData(f"{file.where}: not a readable TIFF ({error})") from error
    if not image.size:
        raise BadData(f"{file.where}: not a readable TIFF (no image in it)")
    return image


@functools.lru_cache(maxsize=_OPEN_ZIPS)
def _zip(path: str) -> zipfile.ZipFile:
    """An open zip, kept for the next field."""
    return zipfile.ZipFile(path)
