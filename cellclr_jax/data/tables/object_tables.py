"""Tables of objects as CellProfiler and DeepProfiler write them: a row an object.

CellProfiler's ExportToSpreadsheet writes several objects side by side into one table on demand; its
header has two rows then, of the objects' names and of the measurements'.
"""

import functools
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cellclr_jax.cli import BadData
from cellclr_jax.data.tables.csv_rows import stream_rows

_CENTER = re.compile(r"(?:(.+)_)?(location|areashape)_center_([xy])")
# An image table may hold such columns for the mean of an image's objects: no nucleus lies there.
_AGGREGATES = ("mean", "median", "stdev")
# A header of CellProfiler's has hundreds of names; an error shows as many.
_NAMES_SHOWN = 15


@dataclass(frozen=True)
class ObjectTable:
    """A CSV file of which the header is read.

    Attributes:
      path: of the file.
      names: of the columns in lower case; `<object>_<measurement>` where the header has two rows.
      rows: (line, values) of what follows the header, read as they are asked for.
      combined: whether the header has two rows.
    """

    path: Path
    names: list[str]
    rows: Iterator[tuple[int, list[str]]]
    combined: bool = False

    def column(self, names: Sequence[str]) -> int | None:
        """Where the first of some names is that the header has."""
        return next((self.names.index(name) for name in names if name in self.names), None)

    def bad_header(self, reason: str) -> BadData:
        """The error that says what is wrong with the header, and what it has."""
        header = ", ".join(self.names[:_NAMES_SHOWN])
        return BadData(f"{self.path}, line 1: {reason}; the header has {header}")

    def require_centers(self) -> None:
        """Raises BadData where the header names no centre, or those of several objects."""
        _ = self._axes

    def center(self, values: Sequence[str]) -> tuple[float, float] | None:
        """The centre of a row's nucleus.

        Returns:
          (row, column) in pixels from 0; None where a row of several objects has no nucleus.

        Raises:
          BadData: as `require_centers`.
          ValueError: a coordinate is no number of at least 0.
        """
        x, y = (values[column] for column in self._axes)
        # Where another object has more members than the nuclei, their columns are filled up.
        if self.combined and not _is_number(x) and not _is_number(y):
            return None
        return _coordinate("y", y), _coordinate("x", x)

    @functools.cached_property
    def _axes(self) -> tuple[int, int]:
        """The columns of x and y."""
        found: dict[str, dict[str, int]] = {}
        kinds = dict.fromkeys(("location", "areashape"))
        for kind, (column, name) in itertools.product(kinds, enumerate(self.names)):
            match = _CENTER.fullmatch(name)
            if match and match[2] == kind:
                # Either kind will do: the first is taken.
                found.setdefault(match[1] or "", {}).setdefault(match[3], column)
        whole = {
            name: axes
            for name, axes in found.items()
            if len(axes) == 2 and name.split("_")[0] not in _AGGREGATES
        }
        nuclei = [name for name in whole if "nucle" in name] or list(whole)
        if not nuclei:
            raise self.bad_header(
                "no columns Location_Center_X and Location_Center_Y (in any case, an object's name "
                "may come before them)"
            )
        if len(nuclei) > 1:
            raise self.bad_header(
                f"centres of several objects ({', '.join(sorted(nuclei))}), those of nuclei were "
                "expected"
            )
        return whole[nuclei[0]]["x"], whole[nuclei[0]]["y"]


def open_table(path: Path) -> ObjectTable:
    """Reads the header of a table.

    Raises:
      BadUse, BadData: see `csv_rows.stream_rows`; the rows raise BadData as they are read.
    """
    rows = stream_rows(path)
    names = [name.strip().lower() for name in next(rows)[1]]
    if names[0] != "image":
        return ObjectTable(path, names, rows)
    second = next(rows, None)
    if second is None:
        return ObjectTable(path, names, rows)
    below = [name.strip().lower() for name in second[1]]
    if not any(map(_CENTER.fullmatch, below)):
        return ObjectTable(path, names, itertools.chain([second], rows))
    joined = [f"{above}_{name}" for above, name in zip(names, below, strict=True)]
    return ObjectTable(path, joined, rows, combined=True)


def _coordinate(axis: str, text: str) -> float:
    """A finite number of at least 0."""
    value = float(text) if _is_number(text) else math.nan
    if not 0 <= value < math.inf:
        raise ValueError(f"{axis} {text.strip()!r}: a number of at least 0 was expected")
    return value


def _is_number(text: str) -> bool:
    try:
        return not math.isnan(float(text))
    except ValueError:
        return False
