"""Makes a source of single-cell images: what kind they are, and which belong together."""

import functools
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

from cellclr_jax.console import listed, plural
from cellclr_jax.data.readers import (
    MOST_CHANNELS,
    CellShape,
    cell_shape,
    images_in,
    read_some,
)
from cellclr_jax.data.readers.find_files import CellFile, ImageFile
from cellclr_jax.data.readers.formats import Selection
from cellclr_jax.data.sources.source import CellFiles, CellGroup, Request, Source
from cellclr_jax.data.tables.cells import CellTable
from cellclr_jax.errors import BadData, BadUse

# Cells that are read together. Whoever waits for one waits for all of them, and one that is broken
# costs the others; many small groups would cost more time than their cells.
_GROUP = 64


_DRIVE = re.compile(r"[A-Za-z]:")
# Instead of a number: several images have that name.
_SEVERAL = -1

_Item = TypeVar("_Item")


class Cell(NamedTuple):
    """One cell: its metadata in its source's order, its id, image and nucleus (row, column)."""

    metadata: tuple[str | int | float, ...]
    name: str
    file: ImageFile
    center: tuple[float, float] | None = None


class TabledCells(NamedTuple):
    """Cells of a table: themselves, (what, reason) of files and rows that have no
    counterpart, how many those are, and the plates that have no image at all.
    """

    cells: list[Cell]
    problems: list[tuple[str, str]]
    lost: int
    absent_plates: list[str]


def make_source(
    request: Request,
    cells: Sequence[Cell],
    columns: Sequence[str],
    *,
    layout: str,
    cut: bool = False,
    lost: int = 0,
    **about: Any,
) -> Source:
    """Groups cells of equal metadata; channels and type of a pixel are those of most images.

    Args:
      request: its channels are checked, and that each of its plates has a cell.
      cells: at least one where no plates are asked for.
      columns: of their metadata; the plate is the first where plates are asked for.
      layout: of their images.
      cut: whether they are crops of one size.
      lost: how many files and rows have no counterpart; each weighs as much as a cell.
      **about: what else the source holds.

    Raises:
      BadUse: another number of channels is declared than there is, or more than an image may
        have; or a plate has no image.
      BadData: images of 8 and of 16 bits, or none that can be read; crops that are no squares.
    """
    _check_plates_and_channels(request, cells)
    selection = Selection(pages=request.pages, z=request.z)
    cells = [one for cell in cells for one in _divided(cell, selection)]
    kind = _usual_kind([cell.file for cell in cells], layout, len(request.channels), selection)
    channels = request.channels or tuple(f"channel_{i + 1}" for i in range(kind.channels))
    if kind.channels != len(channels):
        hint = " (a mask of the cell may be the last)" if layout == "side_by_side" else ""
        raise BadUse(
            f"the images in {listed(request.inputs)} have {plural(kind.channels, 'channel')}{hint},"
            f" --channels={','.join(channels)} names {len(channels)}"
        )
    if cut and kind.height != kind.width:
        raise BadData(f"crops of {kind.height}x{kind.width} pixels: squares were expected")
    if kind.alpha:
        about["left_out"] = [*about.get("left_out", ()), "the alpha channel (opacity)"]
        about["notes"] = [
            *about.get("notes", ()),
            "the images' alpha channel (opacity) is dropped; "
            f"{len(channels) + 1} names in --channels keep it",
        ]
    fields = _group(cells, columns, kind, layout, selection)
    return Source(
        fields,
        tuple(columns),
        channels,
        crop_size=kind.height if cut else None,
        dtype=kind.dtype,
        lost=lost * len(fields) / max(1, len(cells)),
        planes=kind.note,
        **about,
    )


def _divided(cell: Cell, selection: Selection) -> list[Cell]:
    """A cell for each image of a file, '<name>/<number>' if there are several."""
    images = images_in(cell.file, selection)
    if len(images) == 1:
        return [cell]
    return [
        cell._replace(name=f"{cell.name}/{number}", file=image)
        for number, image in enumerate(images, 1)
    ]


def _check_plates_and_channels(request: Request, cells: Sequence[Cell]) -> None:
    """Raises BadUse where a plate has no cell, or more channels are named than there may be."""
    plates = {str(cell.metadata[0]) for cell in cells} if request.plates else set()
    for plate in request.plates:
        if plate not in plates:
            raise BadUse(
                f"--plates={','.join(request.plates)}: no image of {plate} in "
                f"{listed(request.inputs)}"
            )
    if len(request.channels) > MOST_CHANNELS:
        raise BadUse(
            f"--channels={','.join(request.channels)} names {len(request.channels)}: images of "
            f"cells have 1 to {MOST_CHANNELS} channels"
        )


def _usual_kind(
    files: Sequence[ImageFile], layout: str, channels: int, selection: Selection
) -> CellShape:
    """What most images are like; others are named when they are read.

    Its note has the axes of all images that were looked at, with their numbers.
    """
    read = functools.partial(cell_shape, layout=layout, channels=channels, selection=selection)
    shapes = read_some(files, read, "images")
    first = {shape.dtype: file for file, shape in reversed(shapes)}
    if len(first) > 1:
        kinds = " and ".join(f"{dtype} ({file.where})" for dtype, file in sorted(first.items()))
        raise BadData(f"images of {kinds}: all were expected to be of one type")
    usual = Counter(shape[:3] for _, shape in shapes).most_common(1)[0][0]
    depth = Counter(shape.channels for _, shape in shapes).most_common(1)[0][0]
    notes = Counter(shape.note for _, shape in shapes).most_common()
    note = notes[0][0] if len(notes) == 1 else listed([f"{note} ({n})" for note, n in notes])
    alpha = any(shape.alpha for _, shape in shapes)
    return CellShape(*usual[:2], depth, next(iter(first)), alpha, note)


def _group(
    cells: Sequence[Cell],
    columns: Sequence[str],
    kind: CellShape,
    layout: str,
    selection: Selection,
) -> list[CellGroup]:
    """Groups of at most `_GROUP` cells of equal metadata, in its order, those of a plate first."""
    groups: dict[tuple[str | int | float, ...], list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell.metadata].append(cell)
    fields: list[CellGroup] = []
    numbers: Counter[str] = Counter()
    # An unknown concentration, NaN, comes after all others of its compound.
    for values in sorted(groups, key=lambda key: [(value != value, value) for value in key]):
        metadata = dict(zip(columns, values, strict=True))
        name = _group_name(metadata)
        for part in _lots(groups[values]):
            numbers[name] += 1
            number = f"/{numbers[name]}" if numbers[name] > 1 else ""
            centers = tuple(cell.center for cell in part if cell.center is not None)
            fields.append(
                CellFiles(
                    f"{name}{number}",
                    metadata,
                    tuple(cell.name for cell in part),
                    tuple(cell.file for cell in part),
                    kind.channels,
                    kind.dtype,
                    layout,
                    selection=selection,
                    # Of several exports, some may have no centres.
                    centers=centers if len(centers) == len(part) else None,
                )
            )
    return fields


def _group_name(metadata: Mapping[str, str | int | float]) -> str:
    """Such as 'plate/well/s1/label'; a further group of one name is numbered."""
    site = f"s{metadata['site']}" if "site" in metadata else ""
    parts = (metadata.get("plate"), metadata.get("well"), site, metadata.get("label"))
    return "/".join(str(part) for part in parts if part) or "cells"


def check_plates(request: Request, tables: Sequence[CellTable]) -> None:
    """Raises BadUse where a plate is asked for that no table names."""
    known = {plate for table in tables for plate in table.metadata.get("plate", ())}
    for plate in request.plates:
        if plate not in known:
            raise BadUse(
                f"--plates={','.join(request.plates)}: "
                f"{listed([table.path for table in tables])} "
                + (f"has no plate {plate}" if known else "does not tell the images' plates")
            )


def tabled_cells(
    request: Request,
    table: CellTable,
    files: Sequence[tuple[CellFile, str]],
    *,
    repeats: bool = False,
) -> TabledCells:
    """Joins images and the rows of their table.

    Args:
      request: only its plates are kept.
      table: with a row a cell.
      files: the cells' images, each with its id.
      repeats: whether a row may come again unchanged; it counts once.

    Raises:
      BadData: two rows name one image, a row names one outside the folder, or no row names any.
    """
    row_of, lost = _rows_of_files(table, [file for file, _ in files], request.inputs, repeats)
    if all(row is None for row in row_of):
        raise BadData(
            f"{table.path}: none of its {len(table.files)} rows names an image in "
            f"{listed(request.inputs)}: the first is {table.files[0]!r}, the images are called "
            f"{listed([file.below for file, _ in files])}"
        )
    plates = table.metadata.get("plate", [""] * len(table.files))
    wanted = set(request.plates or plates)
    present = {plates[row] for row in row_of if row is not None}
    rows = list(zip(*table.metadata.values(), strict=True)) or [()] * len(table.files)
    centers = table.centers
    cells = [
        Cell(rows[row], name, file.file, centers[row] if centers else None)
        for (file, name), row in zip(files, row_of, strict=True)
        if row is not None and plates[row] in wanted
    ]
    unlisted = [file.below for (file, _), row in zip(files, row_of, strict=True) if row is None]
    # A plate without a single image was not fetched; one with a gap has lost something.
    absent = sorted({plates[row] for row in lost} & wanted - present)
    there = wanted & present
    gaps = [row for row in lost if plates[row] in there]
    problems = [
        (listed(lot), f"no row of {table.path}{_count(lot, 'images')}") for lot in _lots(unlisted)
    ]
    for lot in _lots(gaps):
        lines = listed([str(table.lines[row]) for row in lot])
        reason = f"{table.path}, line {lines}: no such image{_count(lot, 'rows')}"
        problems.append((listed([table.files[row] for row in lot]), reason))
    return TabledCells(cells, problems, len(unlisted) + len(gaps), absent)


def _rows_of_files(
    table: CellTable, files: Sequence[CellFile], inputs: Sequence[Path], repeats: bool
) -> tuple[list[int | None], list[int]]:
    """The row of each file, None where it has none; the rows without a file."""
    find = _finder(files, table.path, inputs)
    row_of: list[int | None] = [None] * len(files)
    lost = []
    for row, (text, line) in enumerate(zip(table.files, table.lines, strict=True)):
        try:
            number = find(text)
        except ValueError as error:
            raise BadData(f"{table.path}, line {line}: {error}") from error
        if number is None:
            lost.append(row)
            continue
        other = row_of[number]
        if other is None:
            row_of[number] = row
        elif not (repeats and all(v[other] == v[row] for v in table.columns.values())):
            raise BadData(
                f"{table.path}, line {line}: image {text!r} is also on line {table.lines[other]}"
            )
    return row_of, lost


def _finder(
    files: Sequence[CellFile], table: str, inputs: Sequence[Path]
) -> Callable[[str], int | None]:
    """Makes a function that gives the number of the image that a row names, None without one.

    A row may give a path below an input or below the table's folder, an absolute path within an
    input, or a name that only one image has; composed and decomposed letters (NFC, NFD) are the
    same. The function raises ValueError for any other name.
    """
    folder = os.path.join(os.path.abspath(Path(table).parent), "")
    # An input may be a link, and the table name what it leads to.
    roots = [
        (_composed(os.path.abspath(root)), _composed(os.path.realpath(root))) for root in inputs
    ]
    places = [os.path.abspath(one.file.path) for one in files]
    numbers: dict[str, int] = {}
    for names in (  # a later one of equal names is meant
        [PurePosixPath(one.below).name for one in files],
        [place.removeprefix(folder) for place in places],
        [one.below for one in files],
        [os.path.join(roots[one.root][1], one.below) for one in files],
        places,
    ):
        names = [_composed(name) for name in names]
        counts = Counter(names)
        numbers |= {
            name: number if counts[name] == 1 else _SEVERAL for number, name in enumerate(names)
        }

    def find(text: str) -> int | None:
        path = PurePosixPath(_composed(text.replace("\\", "/")))
        if not path.parts:
            raise ValueError("the name of the image is empty")
        if ".." in path.parts:
            raise ValueError(
                f"{text!r} leads out of the images' folder; a path below it was expected"
            )
        absolute = path.is_absolute() or _DRIVE.match(text)
        if absolute and not any(path.is_relative_to(root) for pair in roots for root in pair):
            raise ValueError(
                f"{text!r} is an absolute path outside the input; a path below it was expected"
            )
        number = numbers.get(str(path))
        if number == _SEVERAL:
            raise ValueError(f"{text!r} may be any of several images; a path was expected")
        return number

    return find


def _composed(path: str) -> str:
    """Composes the letters of a path: macOS stores 'é' as two characters, tables as one."""
    return unicodedata.normalize("NFC", path)


def _lots(items: Sequence[_Item]) -> list[Sequence[_Item]]:
    """Some at a time, for messages: there may be a million."""
    return [items[start : start + _GROUP] for start in range(0, len(items), _GROUP)]


def _count(lot: Sequence[Any], what: str) -> str:
    """Such as ' (12 rows)'."""
    return f" ({len(lot)} {what})" if len(lot) > 1 else ""
