"""Folders of single-cell crops as published: one .npy file for each cell."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from cellclr_jax.console import listed
from cellclr_jax.data.names import fold
from cellclr_jax.data.readers.find_files import ImageFile, check_inputs
from cellclr_jax.data.sources.bbbc021_plates import (
    RELEASE_COLUMNS,
    annotated_table,
    check_plates,
    name_and_metadata,
    wanted_rows,
)
from cellclr_jax.data.sources.single_cells import Cell, make_source
from cellclr_jax.data.sources.source import Request, Source
from cellclr_jax.errors import BadData, BadUse

# The channel order that published crop folders document; others need --channels.
CROP_CHANNELS = ("dna", "actin", "tubulin")
_CROP_NAME = re.compile(r"(?P<stem>.+)_(?P<number>\d+)\.npy")


def crop_fields(request: Request) -> Source:
    """Cells of a folder of crops `<stem>_<n>.npy`; `<stem>` is a DNA file of the image table."""
    check_inputs(request.inputs)
    crops = _list_crops(request.inputs)
    table, tables, notes = annotated_table(request)
    image_csv = tables["image table"]
    table["stem"] = [fold(PurePosixPath(path).stem) for path in table["dna_file"]]
    shown = {stem: next(iter(files.values())).name for stem, files in crops.items()}
    shown = {stem: name.rpartition("_")[0] for stem, name in shown.items()}
    lines: dict[str, int] = {}
    for stem, line in zip(table["stem"], table["row"], strict=True):
        if stem in crops and lines.setdefault(stem, line) != line:
            raise BadData(
                f"{image_csv}, line {line}: the DNA file of crops {shown[stem]}_*.npy is also on "
                f"line {lines[stem]}"
            )
    strays = [stem for stem in crops if stem not in lines]
    problems = [
        (f"{shown[stem]}_*.npy", f"{image_csv} has no row with DNA file {shown[stem]}.tif")
        for stem in strays
    ]
    wanted, cells = wanted_rows(table, request), []
    for row in wanted[wanted["stem"].isin(lines)].to_dict("records"):
        name, metadata = name_and_metadata(row)
        files = sorted(crops[row["stem"]].items())
        cells += [Cell(tuple(metadata.values()), f"{name}/{n}", file) for n, file in files]
    check_plates(request, wanted, {str(cell.metadata[0]) for cell in cells})
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
    """Maps (folded file stem, number of the crop) to the file, for all crops of the inputs."""
    crops: dict[str, dict[int, ImageFile]] = {}
    for root in inputs:
        for path in sorted(root.glob("*.npy")):
            match = _CROP_NAME.fullmatch(path.name)
            if match is None:
                raise BadData(f"{path}: a name <stem>_<number>.npy was expected")
            numbers = crops.setdefault(fold(match["stem"]), {})
            other = numbers.setdefault(int(match["number"]), ImageFile(path.name, str(path)))
            if other.path != str(path):
                raise BadData(f"{path}: the same crop as {other.path}")
    if not crops:
        raise BadUse(f"{listed(inputs)}: no crop (.npy) in it")
    return crops
