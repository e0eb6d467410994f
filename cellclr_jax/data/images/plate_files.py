"""Finds the image files of plates, loose or inside zips, and opens what lies in a zip.

Nothing is ever unpacked to the disk. A zip is hostile until proven otherwise.
"""

import contextlib
import functools
import io
import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cellclr_jax.cli import BadData
from cellclr_jax.data.images.folders import check_regular, walk_folders
from cellclr_jax.data.tables.release_names import ZIP_PREFIX

_TIFF = (".tif", ".tiff")
# Fields come sorted by plate, so a process has few zips in use at a time.
_OPEN_ZIPS = 4
# All that `zipfile` raises on a zip that is damaged or of a newer kind, and, of an entry, what its
# decompressors do.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    OSError,
    NotImplementedError,
    ValueError,
    OverflowError,
    struct.error,
)
_ENTRY_ERRORS = (*_ZIP_ERRORS, RuntimeError, EOFError, zlib.error, lzma.LZMAError)
# What an archive of images stays below. The largest one to be expected holds all cells of BBBC021
# as files of their own: 450,000. Its directory takes some 160 bytes for each, and is read at once.
_MOST_ENTRIES = 500_000
_MOST_DIRECTORY = 80 << 20
# All of BBBC021 unpacks to 104 GB.
_MOST_UNPACKED = 512 << 30
# Noise keeps the images of a camera from being packed to less than a third; with a background that
# is blank it is a twentieth. An archive of packed zeros, a bomb, comes to a thousandth. So does one
# blank image, but what unpacks to no more than an image may take (see `image_files`) does no harm.
_MOST_PACKED = 200
_HARMLESS = 256 << 20
# Of an entry: its header before its name, the flag of encryption.
_HEADER_BYTES = 30
_ENCRYPTED = 0x1
_BLOCK = 1 << 20


class _CutShort(BadData):
    """A zip that begins as one and has no readable end."""


@dataclass(frozen=True)
class ImageFile:
    """One file: `path` in the file system ('' where it is absent), `member` where it is a zip.

    `member_bytes` is the member's unpacked size, `member_crc` its checksum (CRC-32).
    """

    name: str
    path: str = ""
    member: str = ""
    member_bytes: int = 0
    member_crc: int = 0

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
    try:
        with _open_zip(path) as archive:
            members = archive.infolist()
    except _CutShort as error:
        raise BadData(f"{error}; repeat its download (--download continues it)") from error
    for member in members:
        if not _is_tiff(member):
            continue
        entry = _entry(member)
        plate = entry.parent.name or path.stem.removeprefix(ZIP_PREFIX)
        file = ImageFile(entry.name, str(path), member.filename, member.file_size, member.CRC)
        yield plate, file


def check_zip(path: Path, between: Callable[[], None] = lambda: None) -> None:
    """Reads all of a zip, with little memory, and compares each entry with its checksum.

    Args:
      path: of the zip.
      between: called after each block; what it raises ends the reading.

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
                        between()
            except _ENTRY_ERRORS as error:
                raise BadData(f"{path}: entry {member.filename!r} is damaged ({error})") from error


def read_member(file: ImageFile) -> bytes:
    """The unpacked bytes of a file in a zip; raises whatever `zipfile` does."""
    archive = _zip(file.path)
    member = archive.getinfo(file.member)
    # What was checked when it was listed holds for that file alone.
    if (member.file_size, member.CRC) != (file.member_bytes, file.member_crc):
        raise zipfile.BadZipFile("the zip has changed since it was listed")
    return archive.read(member)


@functools.lru_cache(maxsize=_OPEN_ZIPS)
def _zip(path: str) -> zipfile.ZipFile:
    """An open zip, kept for the next field."""
    return zipfile.ZipFile(path)


class _BoundedFile(io.BufferedReader):
    """A file of which no more is read at once than the directory of a zip may take."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to `size` bytes; ValueError where more are asked for than may be."""
        if size is not None and size > _MOST_DIRECTORY:
            raise ValueError(f"its directory takes {size:,} bytes")
        return super().read(size)


@contextlib.contextmanager
def _open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """An open zip of images; BadData where it cannot be read or is none."""
    with contextlib.ExitStack() as stack:
        try:
            check_regular(path)
            file = stack.enter_context(_BoundedFile(io.FileIO(path)))
            archive = stack.enter_context(zipfile.ZipFile(file))
        except _ZIP_ERRORS as error:
            reason = f"{path}: not a readable zip ({error})"
            if _begins_as_zip(path, error):
                raise _CutShort(f"{reason}: it was cut short or damaged") from error
            raise BadData(reason) from error
        members = archive.infolist()
        for member in members:
            if reason := _refusal(member):
                raise BadData(f"{path}: entry {member.filename!r} {reason}")
        _check_names(path, members)
        _check_sizes(path, members)
        _check_places(path, members, archive.start_dir)
        yield archive


def _begins_as_zip(path: Path, error: Exception) -> bool:
    """Whether what cannot be read as a zip begins as one: it has no readable end."""
    if not isinstance(error, zipfile.BadZipFile):
        return False
    with path.open("rb") as opened:
        return opened.read(4) == b"PK\x03\x04"


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


def _refusal(member: zipfile.ZipInfo) -> str:
    """Why a zip with this entry is refused; '' where it is not."""
    entry = _entry(member)
    if entry.is_absolute() or ".." in entry.parts or ":" in "".join(entry.parts[:1]):
        return "leads out of the zip: not a plate of images"
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "is a link: zip the images themselves"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a special file: not a plate of images"
    if member.flag_bits & _ENCRYPTED:
        return "is encrypted: zip the images without a password"
    return ""


def _check_names(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Raises BadData where a file is there twice: which of the two is the image?"""
    seen = set()
    for member in members:
        entry = _entry(member)
        if entry in seen:
            raise BadData(f"{path}: entry {member.filename!r} is there twice")
        if not _is_folder(member):
            seen.add(entry)


def _check_sizes(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Raises BadData where there is more in a zip than images take."""
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


def _check_places(path: Path, members: list[zipfile.ZipInfo], end: int) -> None:
    """Raises BadData where entries share bytes: a small zip would unpack to any size.

    Args:
      path: of the zip.
      members: its entries.
      end: where its directory begins.
    """
    ordered = sorted(members, key=lambda member: member.header_offset)
    following = [*(member.header_offset for member in ordered), end][1:]
    for member, after in zip(ordered, following, strict=True):
        # At least so many: the name may take several bytes a letter, and more may follow it.
        takes = _HEADER_BYTES + len(member.orig_filename) + member.compress_size
        if member.header_offset < 0 or member.header_offset + takes > after:
            raise BadData(
                f"{path}: entry {member.filename!r} overlaps what comes after it: not a plate of "
                "images"
            )
