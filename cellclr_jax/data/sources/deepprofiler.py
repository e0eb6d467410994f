"""Single cells as DeepProfiler exports them: a PNG a cell, its channels side by side, and a table.

`export-sc` writes `sc-metadata.csv` and, below the same folder, the images that its column
`Image_Name` names: '<plate>/<well>/<site>/<target>@<x>x<y>.png'. `Class_Name` is a cell's class and
`Target` its number among the sorted classes; newer versions call the former as the metadata that
it is taken from ('Treatment'). Each crop is stretched to 8 bits by its own extremes: brightness
does not compare between cells.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from cellclr_jax.data.names import Names
from cellclr_jax.data.readers.find_files import cell_ids, list_cells
from cellclr_jax.data.sources.single_cells import Cell, check_plates, make_source, tabled_cells
from cellclr_jax.data.sources.source import Request, Source
from cellclr_jax.data.tables.cells import CELL_COLUMNS, CellTable, read_cell_table
from cellclr_jax.errors import BadData, BadUse

_TABLE = "sc-metadata.csv"
_SYNONYMS = {
    **CELL_COLUMNS,
    "file": ("image_name", *CELL_COLUMNS["file"]),
    "label": ("class_name", "label", "class", "treatment", "metadata_treatment", "target"),
    "x": ("nuclei_location_center_x",),
    "y": ("nuclei_location_center_y",),
}
# Where only its image's name gives the place of a cell: in folders, or in one with the parts
# joined, such as P1-B02-3@117x230.png.
_PLACE = ("plate", "well", "site")
_FLAT_NAME = re.compile(
    r"(?P<plate>.+)-(?P<well>[A-Za-z]{1,2}\d{1,2})-(?P<site>[A-Za-z]?\d+)(?:\D.*)?"
)
_SITE = re.compile(r"[A-Za-z]?(\d{1,9})")


def deepprofiler_fields(request: Request) -> Source:
    """Cells of DeepProfiler's export; the label is their class.

    Plate, well and site come from columns or else from the images' names, compound, concentration
    and other metadata from columns if there are any. A row that comes again, as sampling may have
    drawn a cell twice, counts once.

    Args:
      request: its inputs, channels and plates.

    Raises:
      BadUse: an input is no such export; the channels declared are not as many as the images
        have, or more than 8; a plate that is not there.
      BadData: images of 8 and of 16 bits, or none that can be read; a table that cannot be read,
        or does not fit the images or the table of another input.
    """
    paths = [root / _TABLE for root in request.inputs]
    files, left_out = list_cells(request.inputs, (".png",), paths)
    names = cell_ids(files)
    shared = request.names()
    tables = [_with_places(_read_table(root, shared)) for root in request.inputs]
    columns = _common_columns(tables)
    check_plates(request, tables)
    cells: list[Cell] = []
    about: dict[str, Any] = {
        "problems": [],
        "lost": 0,
        "absent_plates": [],
        "notes": shared.notes,
        "left_out": left_out,
    }
    for root, table in enumerate(tables):
        own = [(file, name) for file, name in zip(files, names, strict=True) if file.root == root]
        found = tabled_cells(request, table, own, repeats=True)
        cells += found.cells
        about["problems"] += found.problems
        about["lost"] += found.lost
        about["absent_plates"] += found.absent_plates
    about["tables"] = {
        "cell table" if len(paths) == 1 else f"cell table {number}": str(path)
        for number, path in enumerate(paths, 1)
    }
    return make_source(request, cells, columns, layout="side_by_side", **about)


def _read_table(root: Path, names: Names) -> CellTable:
    """The table of an export."""
    path = root / _TABLE
    if not path.is_file():
        raise BadUse(
            f"{root}: no {_TABLE} in it; the folder that DeepProfiler exported to was expected"
        )
    return read_cell_table(path, _SYNONYMS, names=names)


def _common_columns(tables: Sequence[CellTable]) -> tuple[str, ...]:
    """The metadata that all tables have; BadData where they differ."""
    first = tables[0]
    for other in tables[1:]:
        odd = sorted(set(first.metadata) ^ set(other.metadata))
        if odd:
            raise BadData(f"{first.path} and {other.path}: {odd[0]} is only in one of them")
    return tuple(first.metadata)


def _with_places(table: CellTable) -> CellTable:
    """The table with plates, wells and sites, if they are in columns or in all images' names."""
    found = [_place(name) for name in table.files]
    places = dict(zip(_PLACE, zip(*found, strict=True), strict=True)) if all(found) else {}
    return dataclasses.replace(table, columns={**places, **table.columns})


def _place(name: str) -> tuple[str, str, int] | None:
    """Plate, well and site of an image, None where its name does not tell."""
    path = PurePosixPath(name.replace("\\", "/"))
    if len(path.parts) > len(_PLACE):
        plate, well, site = path.parts[-4:-1]
    else:
        match = _FLAT_NAME.fullmatch(path.name)
        if match is None:
            return None
        plate, well, site = match.group(*_PLACE)
    number = _SITE.fullmatch(site)
    return (plate, well, int(number[1])) if number else None
