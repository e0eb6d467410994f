"""Folders of single-cell crops as they are published: one .npy file a cell."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from cellclr_jax.console import listed
from cellclr_jax.data.readers.find_files import ImageFile, check_inputs
from cellclr_jax.data.sources.plates import (
    RELEASE_COLUMNS,
    annotated_table,
    check_plates,
    name_and_metadata,
    records,
    wanted_rows,
)
from cellclr_jax.data.sources.single_cells import Cell, make_source
from cellclr_jax.data.sources.source import Request, Source
from cellclr_jax.errors import BadData, BadUse

# The order that published crop folders state; crops in another order need --channels.
CROP_CHANNELS = ("dna", "actin", "tubulin")
_CROP_NAME = re.compile(r"(?P<stem>.+)_(?P<number>\d+)\.npy")


def crop_fields(request: Request) -> Source:
    """Fields of a folder of crops `<stem>_<n>.npy`; `<stem>` is a DNA file of the image table."""
    check_inputs(request.inputs)
    crops = _list_crops(request.inputs)
    table, tables, notes = annotated_table(request)
    image_csv = tables["image table"]
    rows = _rows_of_stems(table, set(crops), image_csv)
    table = wanted_rows(table, request)
    wanted, cells = set(table["row"]), []
    for stem, files in crops.items():
        if stem in rows and rows[stem]["row"] in wanted:
            name, metadata = name_and_metadata(rows[stem])
            values = tuple(metadata.values())
            cells += [Cell(values, f"{name}/{n}", file) for n, file in sorted(files.items())]
    strays = [stem for stem in crops if stem not in rows]
    problems = [
        (f"{stem}_*.npy", f"{image_csv} has no row with DNA file {stem}.tif") for stem in strays
    ]
    check_plates(request, table, {str(cell.metadata[0]) for cell in cells})
    if not cells:
        raise BadData(
            f"{listed(request.inputs)}: no crop belongs to a wanted row of {image_csv}: "
            f"{listed([what for what, _ in problems]) or 'all are filtered out'}"
        )
    return make_source(
        dataclasses.replace(request, channels=request.channels or CROP_CHANNELS),
        cells,
        RELEASE_COLUMNS,
        layout="stacked",
        cut=True,
        lost=sum(len(crops[stem]) for stem in strays),
        tables=tables,
        problems=problems,
        notes=notes,
    )


def _list_crops(inputs: Sequence[Path]) -> dict[str, dict[int, ImageFile]]:
    """The crops in some folders: stem -> number -> file."""
    crops: dict[str, dict[int, ImageFile]] = {}
    for root in inputs:
        for path in sorted(root.glob("*.npy")):
            match = _CROP_NAME.fullmatch(path.name)
            if match is None:
                raise BadData(f"{path}: a name <stem>_<number>.npy was expected")
            numbers = crops.setdefault(match["stem"], {})
            other = numbers.setdefault(int(match["number"]), ImageFile(path.name, str(path)))
            if other.path != str(path):
                raise BadData(f"{path}: the same crop as {other.path}")
    if not crops:
        raise BadUse(f"{listed(inputs)}: no crop (.npy) in it")
    return crops


def _rows_of_stems(
    table: pd.DataFrame, stems: set[str], image_csv: str
) -> dict[str, dict[str, Any]]:
    """The row of the image table that each stem (a DNA file's name without .tif) belongs to."""
    rows: dict[str, dict[str, Any]] = {}
    for row in records(table):
        stem = PurePosixPath(row["dna_file"]).stem
        if stem not in stems:
            continue
        if stem in rows:
            raise BadData(
                f"{image_csv}, line {row['row']}: the DNA file of crops {stem}_*.npy is also on "
                f"line {rows[stem]['row']}"
            )
        rows[stem] = row
    return rows
