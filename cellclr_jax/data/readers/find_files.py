"""Finds image files in folders and zips."""

import contextlib
import functools
import os
import re
import stat
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn

from cellclr_jax.console import listed, plural
from cellclr_jax.data.tables.bbbc021 import ZIP_PREFIX
from cellclr_jax.errors import BadData, BadUse

_TIFF = (".tif", ".tiff")
# Fields come sorted by plate, so a process has few zips in use at a time.
_OPEN_ZIPS = 4
# What an archive of images stays below: the largest one to be expected holds all 450,000 cells of
# BBBC021 as files of their own.
_MOST_ENTRIES = 500_000
# All of BBBC021 unpacks to 104 GB.
_MOST_UNPACKED = 512 << 30
# Noise keeps the images of a camera from being packed to less than a third; with a background that
# is blank it is a twentieth. An archive of packed zeros, a bomb, comes to a thousandth. So does one
# blank image, but what unpacks to no more than an image may take (see `image_files`) does no harm.
_MOST_PACKED = 200
_HARMLESS = 256 << 20
_ENCRYPTED = 0x1  # a flag of an entry
_BLOCK = 1 << 20


@dataclass(frozen=True)
class ImageFile:
    """An image in a file.

    Attributes:
      name: identifies it.
      path: in the file system; '' if it is absent.
      member: its name in the zip `path`; '' outside zips.
      member_bytes, member_crc: unpacked size and checksum (CRC-32) of the member.
      number: of the image, in a file of several.
      parts: paths of the other files of its OME file set.
    """

    name: str
    path: str = ""
    member: str = ""
    member_bytes: int = 0
    member_crc: int = 0
    number: int = 0
    parts: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """How an error names it."""
        return f"{self.path or self.name}{f'[{self.member}]' if self.member else ''}"

    def stamp(self) -> str:
        """What changes when the pixels do: the checksum in a zip, else time and size."""
        if self.member:
            return f"{self.name} {self.member_bytes} {self.member_crc:08x}"
        stamps = [self.name, str(self.number)] if self.number else [self.name]
        for path in (self.path, *self.parts):
            try:
                status = os.stat(path)
                stamps += [str(status.st_size), str(status.st_mtime_ns)]
            except OSError:
                stamps.append("absent")
        return " ".join(stamps)

    def size(self) -> int:
        """Bytes of its files, unpacked; -1 if one has gone (it is skipped when it is read)."""
        if self.member:
            return self.member_bytes
        try:
            return sum(os.stat(path).st_size for path in (self.path, *self.parts))
        except OSError:
            return -1


def find_tiffs(root: Path) -> Iterator[tuple[str, ImageFile]]:
    """Lists every TIFF under a folder, or in a zip, with the name of the folder it lies in.

    Args:
      root: a folder (of plates, of zips, or a plate) or one zip. Links are followed, once.

    Yields:
      (plate folder, file), loose files before those in zips.

    Raises:
      BadData: a folder or zip cannot be read, or a zip is none of images: an entry leads out of
        it, is a link, encrypted or there twice, or it would unpack without bounds.
    """
    if root.is_file():
        yield from _zip_tiffs(root)
        return
    zips = []
    # Plates are found by their folder's name, and a link may give a folder a second one.
    for folder, names in walk_folders(root, set(), by_name=True):
        for name in names:
            if name.lower().endswith(_TIFF):
                yield folder.absolute().name, ImageFile(name, str(folder / name))
            elif name.lower().endswith(".zip"):
                zips.append(folder / name)
    for path in zips:
        yield from _zip_tiffs(path)


def _zip_tiffs(path: Path) -> Iterator[tuple[str, ImageFile]]:
    """(plate folder, file) of every TIFF in a zip."""
    with _open_zip(path) as archive:
        members = archive.infolist()
    for member in members:
        if not _is_tiff(member):
            continue
        entry = _entry(member)
        plate = entry.parent.name or path.stem.removeprefix(ZIP_PREFIX)
        file = ImageFile(entry.name, str(path), member.filename, member.file_size, member.CRC)
        yield plate, file


def check_zip(path: Path) -> None:
    """Reads all of a zip, with little memory, and compares each entry with its checksum.

    Args:
      path: of the zip.

    Raises:
      BadData: an entry is damaged, no entry is a TIFF, or `find_tiffs` would refuse the zip.
    """
    with _open_zip(path) as archive:
        if not any(_is_tiff(member) for member in archive.infolist()):
            raise BadData(f"{path}: no TIFF in it: not a plate of images")
        for member in archive.infolist():
            try:
                with archive.open(member) as opened:
                    while opened.read(_BLOCK):
                        pass
            except Exception as error:
                # A damaged entry makes its decompressors raise anything at all.
                raise BadData(f"{path}: entry {member.filename!r} is damaged ({error})") from error


def read_member(file: ImageFile) -> bytes:
    """The unpacked bytes of a file in a zip; raises whatever `zipfile` does."""
    archive = _zip(file.path)
    member = archive.getinfo(file.member)
    # What was checked when it was listed holds only for that file.
    if (member.file_size, member.CRC) != (file.member_bytes, file.member_crc):
        raise zipfile.BadZipFile("the zip has changed since it was listed")
    return archive.read(member)


@functools.lru_cache(maxsize=_OPEN_ZIPS)
def _zip(path: str) -> zipfile.ZipFile:
    """An open zip, kept for the next field."""
    return zipfile.ZipFile(path)


@contextlib.contextmanager
def _open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """An open zip of images; BadData where it cannot be read or is none."""
    with contextlib.ExitStack() as stack:
        try:
            check_regular(path)
            archive = stack.enter_context(zipfile.ZipFile(path))
        except Exception as error:
            # So does a damaged zip its reader.
            hint = ""
            if isinstance(error, zipfile.BadZipFile):
                hint = ": cut short or damaged, download it again (--download)"
            raise BadData(f"{path}: not a readable zip ({error}){hint}") from error
        _check_members(path, archive.infolist())
        yield archive


def _entry(member: zipfile.ZipInfo) -> PurePosixPath:
    """An entry's path; Windows writes the separators of some zips as its own."""
    return PurePosixPath(member.filename.replace("\\", "/"))


def _is_tiff(member: zipfile.ZipInfo) -> bool:
    """Whether an entry is an image of a plate; hidden ones are none."""
    name = _entry(member).name
    return not _is_folder(member) and name.lower().endswith(_TIFF) and not name.startswith(".")


def _is_folder(member: zipfile.ZipInfo) -> bool:
    """Whether an entry is none of a file (`is_dir` fails on an empty name)."""
    return member.filename.endswith(("/", "\\"))


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Raises BadData where a zip holds something else, or more, than the images of a plate."""
    seen = set()
    for member in members:
        entry, kind = _entry(member), stat.S_IFMT(member.external_attr >> 16)
        reason = ""
        if entry.is_absolute() or ".." in entry.parts or ":" in "".join(entry.parts[:1]):
            reason = "leads out of the zip: not a plate of images"
        elif kind == stat.S_IFLNK:
            reason = "is a link: zip the images themselves"
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            reason = "is a special file: not a plate of images"
        elif member.flag_bits & _ENCRYPTED:
            reason = "is encrypted: zip the images without a password"
        elif entry in seen:
            reason = "is there twice"
        if reason:
            raise BadData(f"{path}: entry {member.filename!r} {reason}")
        if not _is_folder(member):
            seen.add(entry)
    if len(members) > _MOST_ENTRIES:
        raise BadData(
            f"{path}: {len(members):,} entries, more than the {_MOST_ENTRIES:,} allowed (entry "
            f"{members[_MOST_ENTRIES].filename!r} is the first beyond)"
        )
    unpacked = sum(member.file_size for member in members)
    there = path.stat().st_size
    if unpacked <= max(_HARMLESS, min(_MOST_PACKED * there, _MOST_UNPACKED)):
        return
    most = max(members, key=lambda member: member.file_size / max(member.compress_size, 1))
    raise BadData(
        f"{path}: its {there:,} bytes unpack to {unpacked:,}, which no images do (entry "
        f"{most.filename!r}: {most.compress_size:,} to {most.file_size:,})"
    )


def walk_folders(
    root: Path, seen: set[tuple[object, ...]], *, by_name: bool = False
) -> Iterator[tuple[Path, list[str]]]:
    """Visits a folder and all below it.

    Args:
      root: where to begin.
      seen: what was visited, which is not visited again; added to.
      by_name: whether a folder that a link gives another name is another folder.

    Yields:
      (folder, names of its files), both in sorted order.

    Raises:
      BadData: a folder cannot be read.
    """
    for place, below, names in os.walk(root, followlinks=True, onerror=_unreadable):
        status = os.stat(place)
        # A link may lead back to a folder above it.
        key = (status.st_dev, status.st_ino, *([Path(place).absolute().name] if by_name else []))
        if key in seen:
            below.clear()
            continue
        seen.add(key)
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield Path(place), sorted(name for name in names if not name.startswith("."))


def check_regular(path: str | Path) -> None:
    """Raises ValueError for what is no regular file, and OSError where there is nothing.

    A pipe that is called as an image would be waited for without an end.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is no regular file")


def _unreadable(error: OSError) -> NoReturn:
    """A folder that is left out silently would be cells that are missing silently."""
    raise BadData(f"{error.filename}: the folder cannot be read ({error.strerror})") from error


# Names of reduced copies for browsing, such as c1_thumb.png or (with a GUID) c1_thumb0A3F.tif, and
# of folders of them.
_THUMBNAIL = re.compile(r"(?i:(?:^|[_\-. ])thumb(?:nail)?s?)(?![a-z])")
_THUMBNAIL_FOLDERS = {"thumb", "thumbs", "thumbnail", "thumbnails"}


@dataclass(frozen=True, slots=True)
class CellFile:
    """The image of one cell.

    Attributes:
      file: its name is its path below the inputs; with several inputs it begins with which.
      below: its path below its own input, with '/'.
      root: the number of its input.
    """

    file: ImageFile
    below: str
    root: int

    @property
    def folder(self) -> str:
        """The folder that it lies in, below its input; '' where that is the input itself."""
        return self.below.rpartition("/")[0]


def list_cells(
    inputs: Sequence[Path], suffixes: Iterable[str], tables: Iterable[str | Path] = ()
) -> tuple[list[CellFile], list[str]]:
    """Lists the images under some folders; hidden files and folders are passed over.

    Links are followed. A folder that is reached twice counts once, where it is met first: a cell
    that appears twice, under two labels maybe, would be two cells.

    Args:
      inputs: folders, none of them in another.
      suffixes: ends of the images' names, in lower case.
      tables: files that are read as well, and not reported as left out.

    Returns:
      The images, in the inputs' order, each sorted by path; and what is left out, such as
      "12 thumbnails (c0_thumb.png, …)".

    Raises:
      BadUse: an input is no folder, lies in another one, or none holds an image.
      BadData: a folder cannot be read, or a name is not UTF-8.
    """
    _check_folders(inputs)
    prefixes = _prefixes(inputs)
    seen: set[tuple[object, ...]] = set()
    cells: list[CellFile] = []
    thumbnails: list[str] = []
    known = set(map(os.path.abspath, tables))
    others: Counter[str] = Counter()
    for number, (root, prefix) in enumerate(zip(inputs, prefixes, strict=True)):
        for folder, names in walk_folders(root, seen):
            place = "" if folder == root else folder.relative_to(root).as_posix() + "/"
            small = not _THUMBNAIL_FOLDERS.isdisjoint(place.lower().split("/"))
            for name in names:
                suffix = os.path.splitext(name)[1].lower()
                if suffix not in suffixes:
                    others[suffix or name] += os.path.abspath(folder / name) not in known
                elif small or _THUMBNAIL.search(name):
                    thumbnails.append(place + name)
                else:
                    path = os.path.join(folder, name)
                    if path.encode(errors="replace").decode() != path:
                        raise BadData(f"{path!a}: a name that is not UTF-8; rename it")
                    file = ImageFile(f"{prefix}{place}{name}", path)
                    cells.append(CellFile(file, f"{place}{name}", number))
    left_out = [f"{plural(len(thumbnails), 'thumbnail')} ({listed(thumbnails)})"] * any(thumbnails)
    if kinds := listed([f"{count} {kind}" for kind, count in others.most_common() if count]):
        left_out.append(f"other files ({kinds})")
    if not cells:
        raise BadUse(
            f"{listed(inputs)}: no image ({', '.join(suffixes)}) in it"
            + "".join(f"; left out: {one}" for one in left_out)
        )
    return cells, left_out


def cell_ids(cells: Sequence[CellFile]) -> list[str]:
    """An id for each cell: its file's name, without its suffix unless two would be called alike."""
    names = [cell.file.name for cell in cells]
    short = [os.path.splitext(name)[0] for name in names]
    return short if len(set(short)) == len(short) else names


def _check_folders(inputs: Sequence[Path]) -> None:
    """Raises BadUse where an input is no folder, or holds another."""
    check_inputs(inputs)
    for path in inputs:
        if not path.is_dir():
            raise BadUse(f"{path}: a folder of images was expected (--input)")
    real = [path.resolve() for path in inputs]
    for number, path in enumerate(real):
        for other in real[:number]:
            if path == other or path in other.parents or other in path.parents:
                raise BadUse(f"--input names {path} twice: {other} is it, in it or around it")


def _prefixes(inputs: Sequence[Path]) -> list[str]:
    """What the paths below each input begin with: as much of its path as tells it from others."""
    if len(inputs) == 1:
        return [""]
    paths = [path.absolute().parts for path in inputs]
    length = 1
    while len({parts[-length:] for parts in paths}) < len(paths):
        length += 1
    return ["/".join((*parts[-length:], "")) for parts in paths]


def check_inputs(inputs: Sequence[Path]) -> None:
    """Raises BadUse where an input is named that does not exist, or none is."""
    if not inputs:
        raise BadUse(
            "--input=DIR is needed: the folder (or zip) that holds the images; "
            "--download fetches those of BBBC021"
        )
    for path in inputs:
        if not path.exists():
            raise BadUse(f"{path}: no such folder or zip (--input)")
