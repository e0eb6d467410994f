"""Finds image files in folders and zip archives."""

import contextlib
import functools
import itertools
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
# Fields are sorted by plate, so a process reads from few archives at a time.
_OPEN_ZIPS = 4
# Limits on an archive of images. The largest expected one holds the 450,000 cells of BBBC021 as one
# file each; all of BBBC021 unpacks to 104 GB.
_MOST_ENTRIES = 500_000
_MOST_UNPACKED = 512 << 30
# Camera noise limits compression to a third, a blank background to a twentieth. A decompression
# bomb reaches a thousandth. So does a blank image, therefore `_HARMLESS` bytes are always accepted.
_MOST_PACKED = 200
_HARMLESS = 256 << 20
_ENCRYPTED = 0x1  # a flag of an entry
_LOCAL_HEADER = 30  # bytes before the name of an entry, at least
_BLOCK = 1 << 20

# Reduced copies for browsing: folders such as Thumbs/, files such as c1_thumb.png or, with a GUID,
# c1_thumb0A3F.tif.
_THUMBNAIL = re.compile(
    r"(?i:(?:^|/)thumb(?:nail)?s?/)|(?i:(?:^|[_\-. /])thumb(?:nail)?s?)(?![a-z])[^/]*$"
)


@dataclass(frozen=True)
class ImageFile:
    """An image in a file.

    Attributes:
      name: identifies it.
      path: in the file system; '' if the file is missing.
      member: name in the zip `path`; '' outside zips.
      member_bytes, member_crc: unpacked size and CRC-32 of the member.
      number: index of the image in a file of several.
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
        """The location for error messages."""
        return f"{self.path or self.name}{f'[{self.member}]' if self.member else ''}"

    def stamp(self) -> str:
        """Changes when the pixels may have changed: checksum in a zip, otherwise size and time."""
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
        """Total unpacked bytes of its files; -1 if one is missing (reported when read)."""
        if self.member:
            return self.member_bytes
        try:
            return sum(os.stat(path).st_size for path in (self.path, *self.parts))
        except OSError:
            return -1


@dataclass(frozen=True, slots=True)
class CellFile:
    """The image of one cell.

    Attributes:
      file: its name is its path below the inputs, preceded by the input if there are several.
      below: path below its input, with '/'.
      root: index of its input.
    """

    file: ImageFile
    below: str
    root: int

    @property
    def folder(self) -> str:
        """The folder of the file below its input; '' if that is the input itself."""
        return self.below.rpartition("/")[0]


def find_tiffs(root: Path) -> Iterator[tuple[str, ImageFile]]:
    """Lists the TIFFs in a folder and its zips, or in one zip, with the folder that holds each.

    Args:
      root: a folder (of plates, of zips, or a plate) or a zip. Links are followed once.

    Yields:
      (plate folder, file), loose files before those in zips.

    Raises:
      BadData: a folder or zip cannot be read, or a zip is not one of images: an entry leaves it, is
        a link, encrypted, repeated or overlaps another, or it unpacks to too many bytes.
    """
    if root.is_file():
        yield from _zip_tiffs(root)
        return
    zips = []
    # A plate is found by the name of its folder, and a link may give a folder a second name.
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
    for member in filter(_is_tiff, members):
        entry = _entry(member)
        plate = entry.parent.name or path.stem.removeprefix(ZIP_PREFIX)
        yield plate, ImageFile(entry.name, str(path), member.filename, member.file_size, member.CRC)


def check_zip(path: Path) -> None:
    """Reads a zip in blocks and compares each entry with its checksum.

    Raises:
      BadData: an entry is damaged, no entry is a TIFF, or `find_tiffs` would refuse the zip.
    """
    with _open_zip(path) as archive:
        if not any(map(_is_tiff, archive.infolist())):
            raise BadData(f"{path}: no TIFF in it: not a plate of images")
        for member in archive.infolist():
            try:
                with archive.open(member) as opened:
                    while opened.read(_BLOCK):
                        pass
            except Exception as error:  # decompressors raise exceptions of many types
                raise BadData(f"{path}: entry {member.filename!r} is damaged ({error})") from error


def read_member(file: ImageFile) -> bytes:
    """Unpacks a file of a zip; raises any exception of `zipfile`."""
    archive = _zip(file.path)
    member = archive.getinfo(file.member)
    # `_check_members` has only seen the zip that was listed.
    if (member.file_size, member.CRC) != (file.member_bytes, file.member_crc):
        raise zipfile.BadZipFile("the zip has changed since it was listed")
    return archive.read(member)


@functools.lru_cache(maxsize=_OPEN_ZIPS)
def _zip(path: str) -> zipfile.ZipFile:
    """Keeps archives open between fields."""
    return zipfile.ZipFile(path)


@contextlib.contextmanager
def _open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens a zip of images; BadData if it cannot be read or holds anything else."""
    with contextlib.ExitStack() as stack:
        try:
            check_regular(path)
            archive = stack.enter_context(zipfile.ZipFile(path))
        except Exception as error:  # a damaged directory raises exceptions of many types
            hint = ""
            if isinstance(error, zipfile.BadZipFile):
                hint = ": truncated or damaged, download it again (--download)"
            raise BadData(f"{path}: not a readable zip ({error}){hint}") from error
        _check_members(path, archive.infolist())
        yield archive


def _entry(member: zipfile.ZipInfo) -> PurePosixPath:
    """Returns the path of an entry; some programs on Windows write backslashes."""
    return PurePosixPath(member.filename.replace("\\", "/"))


def _is_tiff(member: zipfile.ZipInfo) -> bool:
    """Whether an entry is a TIFF that is not hidden."""
    name = _entry(member).name
    return not _is_folder(member) and name.lower().endswith(_TIFF) and not name.startswith(".")


def _is_folder(member: zipfile.ZipInfo) -> bool:
    """`ZipInfo.is_dir` that accepts an empty name and backslashes."""
    return member.filename.endswith(("/", "\\"))


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Raises BadData if a zip holds entries that no plate of images has, or too many bytes."""
    seen: set[PurePosixPath] = set()
    for member in members:
        if reason := _refusal(member, seen):
            raise BadData(f"{path}: entry {member.filename!r} {reason}")
        if not _is_folder(member):
            seen.add(_entry(member))
    places = sorted(members, key=lambda member: member.header_offset)
    for one, other in itertools.pairwise(places):
        if one.header_offset + _LOCAL_HEADER + one.compress_size > other.header_offset:
            raise BadData(
                f"{path}: entries {one.filename!r} and {other.filename!r} overlap: not a plate of "
                "images"
            )
    if len(members) > _MOST_ENTRIES:
        raise BadData(
            f"{path}: {len(members):,} entries, at most {_MOST_ENTRIES:,} are allowed (entry "
            f"{members[_MOST_ENTRIES].filename!r} is the first beyond)"
        )
    unpacked, packed = sum(member.file_size for member in members), path.stat().st_size
    if unpacked > max(_HARMLESS, min(_MOST_PACKED * packed, _MOST_UNPACKED)):
        most = max(members, key=lambda member: member.file_size / max(member.compress_size, 1))
        raise BadData(
            f"{path}: its {packed:,} bytes unpack to {unpacked:,}, more than images can (entry "
            f"{most.filename!r}: {most.compress_size:,} to {most.file_size:,})"
        )


def _refusal(member: zipfile.ZipInfo, seen: set[PurePosixPath]) -> str:
    """Returns the reason to refuse an entry; '' if there is none."""
    entry, kind = _entry(member), stat.S_IFMT(member.external_attr >> 16)
    if entry.is_absolute() or ".." in entry.parts or ":" in "".join(entry.parts[:1]):
        return "leads out of the zip: not a plate of images"
    if kind == stat.S_IFLNK:
        return "is a link: zip the images themselves"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a special file: not a plate of images"
    if member.flag_bits & _ENCRYPTED:
        return "is encrypted: zip the images without a password"
    return "occurs twice" if entry in seen else ""


def walk_folders(
    root: Path, seen: set[tuple[object, ...]], *, by_name: bool = False
) -> Iterator[tuple[Path, list[str]]]:
    """Visits a folder and its subfolders; hidden folders and files are skipped.

    Args:
      root: the first folder.
      seen: keys of visited folders, which are not visited again; extended in place.
      by_name: counts a folder that a link gives another name as another folder.

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


def _unreadable(error: OSError) -> NoReturn:
    """Raises BadData: cells of a skipped folder would be missing without a message."""
    raise BadData(f"{error.filename}: the folder cannot be read ({error.strerror})") from error


def check_regular(path: str | Path) -> None:
    """Raises ValueError for anything but a regular file: reading a named pipe would block."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is not a regular file")


def list_cells(
    inputs: Sequence[Path], suffixes: Iterable[str], tables: Iterable[str | Path] = ()
) -> tuple[list[CellFile], list[str]]:
    """Lists the images in some folders; hidden files and folders are skipped.

    Links are followed. A folder that is reached twice counts only once, at its first path: the same
    cell under two labels would be two cells.

    Args:
      inputs: folders, none of them inside another.
      suffixes: ends of image names, in lower case.
      tables: other files that are read, so not reported as left out.

    Returns:
      The images in the order of the inputs, each sorted by path; descriptions of the files left
      out, such as "12 thumbnails (c0_thumb.png, …)".

    Raises:
      BadUse: an input is not a folder or lies in another one, or no input holds an image.
      BadData: a folder cannot be read, or a name is not UTF-8.
    """
    _check_folders(inputs)
    seen: set[tuple[object, ...]] = set()
    cells: list[CellFile] = []
    thumbnails: list[str] = []
    others: Counter[str] = Counter()
    table_paths = set(map(os.path.abspath, tables))
    for number, (root, prefix) in enumerate(zip(inputs, _prefixes(inputs), strict=True)):
        for folder, names in walk_folders(root, seen):
            place = "" if folder == root else folder.relative_to(root).as_posix() + "/"
            for name in names:
                below, path = place + name, os.path.join(folder, name)
                suffix = os.path.splitext(name)[1].lower()
                if suffix not in suffixes:
                    others[suffix or name] += os.path.abspath(path) not in table_paths
                elif _THUMBNAIL.search(below):
                    thumbnails.append(below)
                elif path.encode(errors="replace").decode() != path:
                    raise BadData(f"{path!a}: the name is not UTF-8; rename it")
                else:
                    cells.append(CellFile(ImageFile(prefix + below, path), below, number))
    left_out = [f"{plural(len(thumbnails), 'thumbnail')} ({listed(thumbnails)})"] * any(thumbnails)
    if kinds := listed([f"{count} {kind}" for kind, count in others.most_common() if count]):
        left_out.append(f"other files ({kinds})")
    if not cells:
        reason = "".join(f"; left out: {one}" for one in left_out)
        raise BadUse(f"{listed(inputs)}: no image ({', '.join(suffixes)}) in it{reason}")
    return cells, left_out


def cell_ids(cells: Sequence[CellFile]) -> list[str]:
    """Lists the id of each cell: its file's name, without suffix if all ids stay distinct."""
    names = [cell.file.name for cell in cells]
    short = [os.path.splitext(name)[0] for name in names]
    return short if len(set(short)) == len(short) else names


def _check_folders(inputs: Sequence[Path]) -> None:
    """Raises BadUse if an input is not a folder, or lies in another input."""
    check_inputs(inputs)
    for path in inputs:
        if not path.is_dir():
            raise BadUse(f"{path}: a folder of images was expected (--input)")
    real = [path.resolve() for path in inputs]
    for path, other in itertools.combinations(real, 2):
        if path == other or path in other.parents or other in path.parents:
            raise BadUse(f"--input: {path} and {other} overlap; name each folder once")


def _prefixes(inputs: Sequence[Path]) -> list[str]:
    """Finds the shortest distinct ends of the inputs' paths; '' for a single input."""
    if len(inputs) == 1:
        return [""]
    paths = [path.absolute().parts for path in inputs]
    length = 1
    while len({parts[-length:] for parts in paths}) < len(paths):
        length += 1
    return ["/".join((*parts[-length:], "")) for parts in paths]


def check_inputs(inputs: Sequence[Path]) -> None:
    """Raises BadUse if there is no input, or one does not exist."""
    if not inputs:
        raise BadUse(
            "--input=DIR is needed: the folder (or zip) that holds the images; "
            "--download fetches those of BBBC021"
        )
    for path in inputs:
        if not path.exists():
            raise BadUse(f"{path}: no such folder or zip (--input)")
