"""Walks through folders: links followed once, hidden things left out, nothing else unnoticed."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from cellclr_jax.cli import BadData


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
