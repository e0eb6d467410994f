"""Finds images of single cells in folders, and which of them a row of a table means."""

import functools
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from cellclr_jax.cli import BadData, BadUse
from cellclr_jax.data.images.folders import walk_folders
from cellclr_jax.data.images.plate_files import ImageFile
from cellclr_jax.data.tables.release_tables import check_inputs

# Kinds of files that an error lists where no image is found.
_KINDS_NAMED = 3
_DRIVE = re.compile(r"[A-Za-z]:")


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


def list_cells(inputs: Sequence[Path], suffixes: Sequence[str]) -> list[CellFile]:
    """Lists the images under some folders; hidden files and folders are passed over.

    Links are followed. A folder that is reached twice counts once, where it is met first: a cell
    that appears twice, under two labels maybe, would be two cells.

    Args:
      inputs: folders, none of them in another.
      suffixes: ends of the images' names, in lower case.

    Returns:
      In the inputs' order, each sorted by path.

    Raises:
      BadUse: an input is no folder, lies in another one, or none holds an image.
      BadData: a folder cannot be read, or a name is not UTF-8.
    """
    _check_folders(inputs)
    prefixes = _prefixes(inputs)
    seen: set[tuple[object, ...]] = set()
    cells: list[CellFile] = []
    others: Counter[str] = Counter()
    for number, (root, prefix) in enumerate(zip(inputs, prefixes, strict=True)):
        for folder, names in walk_folders(root, seen):
            place = "" if folder == root else folder.relative_to(root).as_posix() + "/"
            for name in names:
                suffix = os.path.splitext(name)[1].lower()
                if suffix not in suffixes:
                    others[suffix or name] += 1
                    continue
                path = os.path.join(folder, name)
                _check_name(path)
                file = ImageFile(f"{prefix}{place}{name}", path)
                cells.append(CellFile(file, f"{place}{name}", number))
    if not cells:
        raise BadUse(
            f"{', '.join(map(str, inputs))}: no image ({', '.join(suffixes)}) in it"
            + "".join(f", {count} {kind}" for kind, count in others.most_common(_KINDS_NAMED))
        )
    return cells


def cell_ids(cells: Sequence[CellFile]) -> list[str]:
    """An id for each cell: its file's name, without its suffix unless two would be called alike."""
    names = [cell.file.name for cell in cells]
    short = [os.path.splitext(name)[0] for name in names]
    return short if len(set(short)) == len(short) else names


class CellFinder:
    """Finds the image that a row names, by any path that a table may give it."""

    def __init__(
        self, cells: Sequence[CellFile], table: str | Path, inputs: Sequence[Path]
    ) -> None:
        """Prepares to find some of `cells`, found below `inputs` and named in `table`."""
        beside = os.path.join(os.path.abspath(Path(table).parent), "")
        places = [os.path.abspath(cell.file.path) for cell in cells]
        self._cells = cells
        # An input may be a link, and the table speak of what it leads to.
        self._roots = [(os.path.abspath(i), os.path.realpath(i)) for i in inputs]
        # In the order in which they are asked: below the input, below the table's own folder.
        self._paths = (
            _numbered(cell.below for cell in cells),
            _numbered(
                Path(place[len(beside) :]).as_posix() if place.startswith(beside) else ""
                for place in places
            ),
        )
        self._names = _numbered(PurePosixPath(cell.below).name for cell in cells)

    def find(self, text: str) -> int | None:
        """The number of the image that a row names.

        Args:
          text: a path below the input or below the table's folder, an absolute one that lies
            within an input, or a file name that one image alone has.

        Returns:
          Its place in the list; None where there is no such image.

        Raises:
          ValueError: nothing is named, more than one image is, or the path leads elsewhere.
        """
        path = PurePosixPath(text.replace("\\", "/"))
        if not path.parts:
            raise ValueError("the name of the image is empty")
        if ".." in path.parts:
            raise ValueError(
                f"{text!r} leads out of the images' folder; a path below it was expected"
            )
        if path.is_absolute() or _DRIVE.match(text):
            return self._places.get(self._place(text, path))
        for index in (*self._paths, self._names) if len(path.parts) == 1 else self._paths:
            number = index.first.get(str(path))
            if number is None:
                continue
            if str(path) in index.second:
                first, second = (
                    self._cells[n].file.path for n in (number, index.second[str(path)])
                )
                raise ValueError(f"{text!r} may be {first} or {second}; a path was expected")
            return number
        return None

    def _place(self, text: str, path: PurePosixPath) -> str:
        """Where an absolute path leads, by the input's own name; no link below it is followed."""
        for named, real in self._roots:
            for root in (named, real):
                if path.is_relative_to(root):
                    return os.path.join(named, path.relative_to(root))
        raise ValueError(
            f"{text!r} is an absolute path outside the input; a path below it was expected"
        )

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        """The number of each image by its absolute path; few tables need it."""
        return {os.path.abspath(cell.file.path): n for n, cell in enumerate(self._cells)}


class _Places(NamedTuple):
    """The first place of each key, and the second of those that have one."""

    first: dict[str, int]
    second: dict[str, int]


def _numbered(keys: Iterable[str]) -> _Places:
    """Where each key is."""
    places = _Places({}, {})
    for number, key in enumerate(keys):
        if places.first.setdefault(key, number) != number:
            places.second.setdefault(key, number)
    return places


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


def _check_name(path: str) -> None:
    """Raises BadData for a name that no table could hold."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise BadData(f"{path!a}: a name that is not UTF-8; rename it") from error
