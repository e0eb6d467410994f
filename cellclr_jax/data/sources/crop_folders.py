"""Folders of single-cell crops as they are published: one .npy file a cell."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from cellclr_jax.console import listed, plural
from cellclr_jax.data.readers import crop_shape, read_some
from cellclr_jax.data.readers.find_files import ImageFile, check_inputs
from cellclr_jax.data.sources.plates import (
    RELEASE_COLUMNS,
    annotated_table,
    check_plates,
    name_and_metadata,
    records,
    wanted_rows,
)
from cellclr_jax.data.sources.source import CellFiles, Request, Source
from cellclr_jax.errors import BadData, BadUse

# The order that published crop folders state; crops in another order need --channels.
CROP_CHANNELS = ("dna", "actin", "tubulin")
_CROP_NAME = re.compile(r"(?P<stem>.+)_(?P<number>\d+)\.npy")


def crop_fields(request: Request) -> Source:
    """Fields of a folder of crops `<stem>_<n>.npy`; `<stem>` is a DNA file of the image table."""
    check_inputs(request.inputs)
    channels = request.channels or CROP_CHANNELS
    crops = _list_crops(request.inputs)
    table, tables = annotated_table(request)
    image_csv = tables["image table"]
    rows = _rows_of_stems(table, set(crops), image_csv)
    table = wanted_rows(table, request)
    wanted = set(table["row"])
    depth = len(channels)
    fields = [
        _new_group(rows[stem], files, depth)
        for stem, files in crops.items()
        if stem in rows and rows[stem]["row"] in wanted
    ]
    fields.sort(key=lambda one: [one.metadata[name] for name in ("plate", "well", "site")])
    problems = [
        (f"{stem}_*.npy", f"{image_csv} has no row with DNA file {stem}.tif")
        for stem in crops
        if stem not in rows
    ]
    check_plates(request, table, {field.plate for field in fields})
    if not fields:
        raise BadData(
            f"{listed(request.inputs)}: no crop belongs to a wanted row of {image_csv}: "
            f"{listed([what for what, _ in problems]) or 'all are filtered out'}"
        )
    size, _, found = _usual_shape([file for group in fields for file in group.files])
    if found != depth:
        raise BadUse(
            f"the crops in {listed(request.inputs)} have {plural(found, 'channel')}, "
            f"--channels={','.join(channels)} names {depth}"
        )
    return Source(
        fields,
        RELEASE_COLUMNS,
        channels,
        crop_size=size,
        tables=tables,
        problems=problems,
    )


def _new_group(row: dict[str, Any], files: dict[int, ImageFile], channels: int) -> CellFiles:
    """The crops, by number, of one row of the image table."""
    name, metadata = name_and_metadata(row)
    numbers = sorted(files)
    cells = tuple(f"{name}/{number}" for number in numbers)
    return CellFiles(name, metadata, cells, tuple(files[n] for n in numbers), channels)


def _usual_shape(files: Sequence[ImageFile]) -> tuple[int, int, int]:
    """The shape that most crops have; those that differ or are broken are skipped when read."""
    shapes = Counter(shape for _, shape in read_some(files, crop_shape, "crops"))
    return shapes.most_common(1)[0][0]


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
