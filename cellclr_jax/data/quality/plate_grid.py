"""Where the wells of all plates lie in one picture: a tile a plate, all of them at a glance."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cellclr_jax.data.quality.look import WIDTH

# Rows and columns of plates of 96, 384 and 1536 wells; fewer wells lie in a corner of the first.
_FORMATS = ((8, 12), (16, 24), (32, 48))
_WELL = re.compile(r"([A-Z]|A[A-F])(\d{1,2})", re.IGNORECASE)
# The side of a well in pixels: no larger on one plate; small enough that all plates are seen at a
# glance, within this height of the page; but never smaller than can be pointed at.
_LARGEST, _SMALLEST = 60.0, 6.0
_HEIGHT = 760.0
# Between plates: columns, and pixels for the name above each.
_GAP, _NAME_HEIGHT = 2, 20.0


@dataclass(frozen=True)
class PlateGrid:
    """The tiles of all plates, from left to right and from top to bottom; the unit is a well.

    Attributes:
      plates: names in their order.
      rows, columns: of a plate.
      across: plates side by side.
      gap_rows: above each plate, for its name.
      side: of a well in pixels.
    """

    plates: tuple[str, ...]
    rows: int
    columns: int
    across: int
    gap_rows: int
    side: float

    @property
    def down(self) -> int:
        """Rows of plates."""
        return math.ceil(len(self.plates) / self.across)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in wells."""
        return self.down * (self.rows + self.gap_rows), self.across * (self.columns + _GAP) - _GAP

    def corner(self, plate: int | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row and column of a plate's first well."""
        down, right = np.divmod(plate, self.across)
        return down * (self.rows + self.gap_rows) + self.gap_rows, right * (self.columns + _GAP)


def parse_wells(names: Sequence[str]) -> np.ndarray:
    """Rows and columns of wells such as 'B02', 'b2' or 'AF48'.

    Returns:
      [N, 2] int, from 0; -1 for what is no well's name.
    """
    places = np.full((len(names), 2), -1)
    for place, name in zip(places, names, strict=True):
        match = _WELL.fullmatch(str(name).strip())
        if match and 1 <= int(match[2]) <= _FORMATS[-1][1]:
            letters = match[1].upper()
            place[:] = ord(letters[-1]) - ord("A") + 26 * (len(letters) - 1), int(match[2]) - 1
    return places


def row_name(row: int) -> str:
    """'A' to 'Z', then 'AA'."""
    return ("A" if row >= 26 else "") + chr(ord("A") + row % 26)


def lay_out(plates: Sequence[str], places: np.ndarray, most: int) -> PlateGrid:
    """Lays out plates of the smallest format that has all wells.

    Args:
      plates: names in the order of the picture, at least one.
      places: [N, 2] int, rows and columns of the wells of all plates, from 0.
      most: wells of the picture, about; plates beyond are left out.
    """
    last = places.max(axis=0)
    rows, columns = next(size for size in _FORMATS if (np.array(size) > last).all())
    shown = tuple(plates[: max(1, most // (rows * columns))])
    grids: list[PlateGrid] = []
    for across in range(1, len(shown) + 1):
        side = min(_LARGEST, WIDTH / (across * (columns + _GAP)))
        if side < _SMALLEST and grids:
            break
        gap_rows = math.ceil(_NAME_HEIGHT / side)
        grids.append(PlateGrid(shown, rows, columns, across, gap_rows, side))
    low_enough = [grid for grid in grids if grid.size[0] * grid.side <= _HEIGHT]
    # The largest wells; of equal ones, the most plates side by side.
    return max(low_enough or grids[-1:], key=lambda grid: (grid.side, grid.across))
