"""Single cells as DeepProfiler exports them: a PNG for each cell, its channels side by side.

`export-sc` writes `sc-metadata.csv` and, below the same folder, the images that its column
`Image_Name` names: '<plate>/<well>/<site>/<target>@<x>x<y>.png'. `Class_Name` is a cell's class and
`Target` its number among the sorted classes; newer versions name the former after the metadata
('Treatment'). Each crop is stretched to 8 bits by its own extremes, so that brightness cannot be
compared between cells.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from cellclr_jax.data.names import Names
from cellclr_jax.data.readers.find_files import list_cells
from cellclr_jax.data.sources.single_cells import tabled_source
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
_PLACE = ("plate", "well", "site")
# Without such columns, the folders of an image name its place, or the parts of its name in a single
# folder, such as P1-B02-3@117x230.png.
_FLAT_NAME = re.compile(
    r"(?P<plate>.+)-(?P<well>[A-Za-z]{1,2}\d{1,2})-(?P<site>[A-Za-z]?\d+)(?:\D.*)?"
)
_SITE = re.compile(r"[A-Za-z]?(\d{1,9})")


def deepprofiler_fields(request: Request) -> Source:
    """Cells of DeepProfiler's exports; the label is their class.

    Plate, well and site are read from columns, otherwise from the images' names; compound,
    concentration and other metadata from columns if they exist. A repeated row, of a cell that was
    sampled twice, counts once.

    Args:
      request: its inputs, channels and plates.

    Raises:
      BadUse: an input is not such an export; the images have another number of channels, or more
        than 8; a plate does not exist.
      BadData: images of 8 and of 16 bits, or none is readable; a table is unreadable, or does not
        fit the images or the table of another input.
    """
    paths = [root / _TABLE for root in request.inputs]
    files, left_out = list_cells(request.inputs, (".png",), paths)
    names = request.names()
    tables = [_read_table(path, names) for path in paths]
    _check_columns(tables)
    numbers = [f" {number}" for number in range(1, len(paths) + 1)] if len(paths) > 1 else [""]
    return tabled_source(
        request,
        tables,
        files,
        repeats=True,
        layout="side_by_side",
        tables={f"cell table{n}": str(path) for n, path in zip(numbers, paths, strict=True)},
        notes=names.notes,
        left_out=left_out,
    )


def _read_table(path: Path, names: Names) -> CellTable:
    """Reads the table of an export, with plates, wells and sites from columns or image paths."""
    if not path.is_file():
        raise BadUse(
            f"{path.parent}: no {_TABLE} in it; a folder that DeepProfiler exported to was expected"
        )
    table = read_cell_table(path, _SYNONYMS, names=names)
    found = [_place(name) for name in table.files]
    places = dict(zip(_PLACE, zip(*found, strict=True), strict=True)) if all(found) else {}
    return dataclasses.replace(table, columns={**places, **table.columns})


def _check_columns(tables: Sequence[CellTable]) -> None:
    """Raises BadData if the tables differ in their metadata."""
    first = tables[0]
    for other in tables[1:]:
        odd = sorted(first.metadata.keys() ^ other.metadata.keys())
        if odd:
            raise BadData(f"{first.path} and {other.path}: {odd[0]} is only in one of them")


def _place(name: str) -> tuple[str, str, int] | None:
    """Plate, well and site in the path of an image, None if it does not name them."""
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
