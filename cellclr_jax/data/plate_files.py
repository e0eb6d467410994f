"""Finds the image files of plates, loose or inside zips, and opens what lies in a zip.

Nothing is ever unpacked to the disk. A zip is hostile until proven otherwise.
"""

import functools
import os
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn

from cellclr_jax.cli import BadData

_TIFF = (".tif", ".tiff")
# A plate's zip is called so; where its entries have no folder, the rest of its name is the plate.
_ZIP_PREFIX = "BBBC021_v1_images_"
# Fields come sorted by plate, so a process has few zips in use at a time.
_OPEN_ZIPS = 4
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


def read_member(file: ImageFile) -> bytes:
    """The unpacked bytes of a file in a zip; raises whatever `zipfile` does."""
    return _zip(file.path).read(file.member)


@functools.lru_cache(maxsize=_OPEN_ZIPS)
def _zip(path: str) -> zipfile.ZipFile:
    """An open zip, kept for the next field."""
    return zipfile.ZipFile(path)
