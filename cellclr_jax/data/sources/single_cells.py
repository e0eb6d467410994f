"""Makes a source of single-cell images: groups them by metadata, joins them with their table."""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

from cellclr_jax.console import listed, plural
from cellclr_jax.data.readers import MOST_CHANNELS, CellShape, images_in, sample_shapes
from cellclr_jax.data.readers.find_files import CellFile, ImageFile, cell_ids
from cellclr_jax.data.readers.formats import Selection
from cellclr_jax.data.sources.source import CellFiles, CellGroup, Request, Source
from cellclr_jax.data.tables.cells import CellTable
from cellclr_jax.errors import BadData, BadUse

# Cells of a group are read together and lost together; smaller groups would cost more time than
# their cells.
_GROUP = 64
_DRIVE = re.compile(r"[A-Za-z]:")
_AMBIGUOUS = -1  # instead of the index of an image: several have that name

_Item = TypeVar("_Item")


class Cell(NamedTuple):
    """One cell: metadata in the order of its source's columns, id, image, nucleus (row, column)."""

    metadata: tuple[str | int | float, ...]
    name: str
    file: ImageFile
    center: tuple[float, float] | None = None


def make_source(
    request: Request,
    cells: Sequence[Cell],
    columns: Sequence[str],
    *,
    layout: str,
    cut: bool = False,
    lost: int = 0,
    **attributes: Any,
) -> Source:
    """Groups cells of equal metadata; most images decide the number of channels and the dtype.

    Args:
      request: its channels are checked, and that each of its plates has a cell.
      cells: at least one if no plates are requested.
      columns: of their metadata; the plate is the first if plates are requested.
      cut: whether they are crops of one size.
      lost: number of files and rows without counterpart; each counts as a cell.
      layout, **attributes: of their images, and of the source.

    Raises:
      BadUse: the number of channels is not that of `request`, or more than an image may have; or a
        plate has no image.
      BadData: images of 8 and of 16 bits, or none is readable; crops are not square.
    """
    _check_plates_and_channels(request, cells)
    selection = Selection(pages=request.pages, z=request.z)
    cells = [one for cell in cells for one in _images_of(cell, selection)]
    kind = _usual_kind([cell.file for cell in cells], layout, len(request.channels), selection)
    channels = _channel_names(request, kind.channels, layout)
    if cut and kind.height != kind.width:
        raise BadData(f"crops of {kind.height}x{kind.width} pixels: squares were expected")
    fields = _group(cells, columns, kind, layout, selection)
    source = Source(
        fields,
        tuple(columns),
        channels,
        crop_size=kind.height if cut else None,
        dtype=kind.dtype,
        lost=lost * len(fields) / max(1, len(cells)),
        planes=kind.note,
        **attributes,
    )
    if kind.alpha:
        source.left_out.append("the alpha channel (opacity)")
        source.notes.append(
            "the images' alpha channel (opacity) is dropped; "
            f"{len(channels) + 1} names in --channels keep it"
        )
    return source


def _channel_names(request: Request, count: int, layout: str) -> tuple[str, ...]:
    """Returns the requested or default names; BadUse if the number of channels differs."""
    channels = request.channels or tuple(f"channel_{i + 1}" for i in range(count))
    if count != len(channels):
        hint = " (a mask of the cell may be the last)" if layout == "side_by_side" else ""
        raise BadUse(
            f"the images in {listed(request.inputs)} have {plural(count, 'channel')}{hint}, "
            f"--channels={','.join(channels)} names {len(channels)}"
        )
    return channels


def _images_of(cell: Cell, selection: Selection) -> list[Cell]:
    """Makes a cell for each image of a file, named '<name>/<number>' if there are several."""
    images = images_in(cell.file, selection)
    if len(images) == 1:
        return [cell]
    return [
        cell._replace(name=f"{cell.name}/{number}", file=image)
        for number, image in enumerate(images, 1)
    ]


def _check_plates_and_channels(request: Request, cells: Sequence[Cell]) -> None:
    """Raises BadUse if a plate has no cell, or too many channels are named."""
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
    """Finds the commonest shape of a sample of images; any other shape is an error at reading.

    Its note has the axes of all images of the sample, with their numbers.
    """
    shapes = sample_shapes(files, layout=layout, channels=channels, selection=selection)
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
    """Groups at most `_GROUP` cells of equal metadata, sorted by metadata.

    A group is named such as 'plate/well/s1/label'; further groups of that name are numbered.
    """
    groups: dict[tuple[str | int | float, ...], list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell.metadata].append(cell)
    fields: list[CellGroup] = []
    numbers: Counter[str] = Counter()
    # An unknown concentration, NaN, comes after all others of its compound.
    for values in sorted(groups, key=lambda key: [(value != value, value) for value in key]):
        metadata = dict(zip(columns, values, strict=True))
        site = f"s{metadata['site']}" if "site" in metadata else ""
        parts = (metadata.get("plate"), metadata.get("well"), site, metadata.get("label"))
        name = "/".join(str(part) for part in parts if part) or "cells"
        for part in _chunks(groups[values]):
            numbers[name] += 1
            centers = tuple(cell.center for cell in part if cell.center is not None)
            fields.append(
                CellFiles(
                    f"{name}/{numbers[name]}" if numbers[name] > 1 else name,
                    metadata,
                    tuple(cell.name for cell in part),
                    tuple(cell.file for cell in part),
                    kind.channels,
                    kind.dtype,
                    layout,
                    selection=selection,
                    # Some of several exports may have no centres.
                    centers=centers if len(centers) == len(part) else None,
                )
            )
    return fields


def tabled_source(
    request: Request,
    cell_tables: Sequence[CellTable],
    files: Sequence[CellFile],
    *,
    repeats: bool = False,
    **attributes: Any,
) -> Source:
    """Makes a source of the cells that are rows of tables.

    Args:
      request: only cells of its plates are taken.
      cell_tables: a single one for all inputs, or one for each input; all have the same columns.
      files: the images.
      repeats: accepts a row that is repeated without change; it counts once.
      **attributes: of the source, and `layout`.

    Raises:
      BadUse: see `make_source`; also if no table has a requested plate.
      BadData: see `make_source`; also if two rows name one image, a row names one outside the
        inputs, or no row of a table names any.
    """
    plates = {plate for table in cell_tables for plate in table.metadata.get("plate", ())}
    for plate in request.plates:
        if plate not in plates:
            reason = f"has no plate {plate}" if plates else "has no column of plates"
            where = f"--plates={','.join(request.plates)}: {listed([t.path for t in cell_tables])}"
            raise BadUse(f"{where} {reason}")
    names = cell_ids(files)
    cells: list[Cell] = []
    problems, absent_plates, lost = [], [], 0
    for number, table in enumerate(cell_tables):
        own = [
            (file, name)
            for file, name in zip(files, names, strict=True)
            if len(cell_tables) == 1 or file.root == number
        ]
        row_of, missing = _rows_of_files(table, [file for file, _ in own], request.inputs, repeats)
        cells += _cells_of_rows(table, own, row_of, set(request.plates))
        unlisted = [file.below for (file, _), row in zip(own, row_of, strict=True) if row is None]
        # A plate without a single image was not fetched; one with a gap has lost something.
        plate_of = table.metadata.get("plate", [""] * len(table.files))
        wanted = set(request.plates or plate_of)
        present = wanted & {plate_of[row] for row in row_of if row is not None}
        absent_plates += sorted({plate_of[row] for row in missing} & wanted - present)
        gaps = [row for row in missing if plate_of[row] in present]
        problems += _problems(table, unlisted, gaps)
        lost += len(unlisted) + len(gaps)
    attributes |= {"problems": problems, "lost": lost, "absent_plates": absent_plates}
    return make_source(request, cells, tuple(cell_tables[0].metadata), **attributes)


def _cells_of_rows(
    table: CellTable,
    files: Sequence[tuple[CellFile, str]],
    row_of: Sequence[int | None],
    plates: set[str],
) -> list[Cell]:
    """Lists the cells of some plates (empty: all) that have a row in their table."""
    rows = list(zip(*table.metadata.values(), strict=True)) or [()] * len(table.files)
    plate_of, centers = table.metadata.get("plate"), table.centers
    return [
        Cell(rows[row], name, file.file, centers[row] if centers else None)
        for (file, name), row in zip(files, row_of, strict=True)
        if row is not None and (plate_of is None or not plates or plate_of[row] in plates)
    ]


def _problems(
    table: CellTable, unlisted: Sequence[str], gaps: Sequence[int]
) -> list[tuple[str, str]]:
    """(what, reason) of images without a row and of rows without an image, `_GROUP` at a time."""

    def count(part: Sequence[Any], what: str) -> str:
        return f" ({len(part)} {what})" if len(part) > 1 else ""

    problems = [
        (listed(part), f"no row of {table.path}{count(part, 'images')}")
        for part in _chunks(unlisted)
    ]
    for part in _chunks(gaps):
        lines = listed([table.lines[row] for row in part])
        reason = f"{table.path}, line {lines}: no such image{count(part, 'rows')}"
        problems.append((listed([table.files[row] for row in part]), reason))
    return problems


def _rows_of_files(
    table: CellTable, files: Sequence[CellFile], inputs: Sequence[Path], repeats: bool
) -> tuple[list[int | None], list[int]]:
    """Assigns rows to files; returns the row of each file, or None, and the rows without a file."""
    find = _finder(files, table.path, inputs)
    row_of: list[int | None] = [None] * len(files)
    missing = []
    for row, (text, line) in enumerate(zip(table.files, table.lines, strict=True)):
        try:
            number = find(text)
        except ValueError as error:
            raise BadData(f"{table.path}, line {line}: {error}") from error
        if number is None:
            missing.append(row)
            continue
        other = row_of[number]
        if other is None:
            row_of[number] = row
        elif not (repeats and all(v[other] == v[row] for v in table.columns.values())):
            raise BadData(
                f"{table.path}, line {line}: image {text!r} is also on line {table.lines[other]}"
            )
    if len(missing) == len(table.files):
        raise BadData(
            f"{table.path}: none of its {len(missing)} rows names an image in {listed(inputs)}: "
            f"the first is {table.files[0]!r}, the images are called "
            f"{listed([file.below for file in files])}"
        )
    return row_of, missing


def _finder(
    files: Sequence[CellFile], table: str, inputs: Sequence[Path]
) -> Callable[[str], int | None]:
    """Makes a function that finds the index of the image that a row names; None without one.

    A row may give a path below an input or below the table's folder, an absolute path within an
    input, or a name that only one image has, in any Unicode form. For any other name the function
    raises ValueError.
    """
    folder = os.path.join(os.path.abspath(Path(table).parent), "")
    # An input may be a link, and the table may name its target.
    roots = [(_nfc(os.path.abspath(root)), _nfc(os.path.realpath(root))) for root in inputs]
    places = [os.path.abspath(one.file.path) for one in files]
    numbers: dict[str, int] = {}
    for names in (  # a later list replaces equal names of an earlier one
        [PurePosixPath(one.below).name for one in files],
        [place.removeprefix(folder) for place in places],
        [one.below for one in files],
        [os.path.join(roots[one.root][1], one.below) for one in files],
        places,
    ):
        names = list(map(_nfc, names))
        counts = Counter(names)
        numbers |= {
            name: number if counts[name] == 1 else _AMBIGUOUS for number, name in enumerate(names)
        }

    def find(text: str) -> int | None:
        path = PurePosixPath(_nfc(text.replace("\\", "/")))
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
        if number == _AMBIGUOUS:
            raise ValueError(f"{text!r} may be any of several images; a path was expected")
        return number

    return find


def _nfc(path: str) -> str:
    """Unicode form NFC: macOS stores 'é' as two characters (NFD), tables mostly as one."""
    return unicodedata.normalize("NFC", path)


def _chunks(items: Sequence[_Item]) -> list[Sequence[_Item]]:
    return [items[start : start + _GROUP] for start in range(0, len(items), _GROUP)]
