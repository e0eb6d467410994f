"""Tables of nuclei found by CellProfiler or DeepProfiler."""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path, PurePosixPath

from cellclr_jax.data.columns import SYNONYMS
from cellclr_jax.data.names import fold, is_missing, well_key
from cellclr_jax.data.sources.source import Field
from cellclr_jax.data.tables.csv import amount, find_columns, some_names, stream_rows
from cellclr_jax.errors import BadData

_CENTER = re.compile(r"(?:(.+)_)?(location|areashape)_center_([xy])")
# Prefixes of columns for the mean position of an image's objects, which is not a nucleus.
_AGGREGATES = ("mean", "median", "stdev")


@dataclass(frozen=True)
class ObjectTable:
    """An open CSV file behind its header.

    Attributes:
      path: of the file.
      names: of the columns in lower case; `<object>_<measurement>` if the header has two rows.
      rows: (line, values) behind the header, read lazily.
      combined: whether the header has two rows.
    """

    path: Path
    names: list[str]
    rows: Iterator[tuple[int, list[str]]]
    combined: bool = False

    def column(self, names: Sequence[str]) -> int | None:
        """Finds the index of the first of some names that the header has; None if it has none."""
        return next(iter(find_columns(self.names, names)), None)

    def bad_header(self, reason: str) -> BadData:
        """Makes the error for a wrong header."""
        return BadData(f"{self.path}, line 1: {reason}; the header has {some_names(self.names)}")

    def center(self, values: Sequence[str]) -> tuple[float, float] | None:
        """Parses the centre (row, column) of a row's nucleus in pixels from 0; None if missing.

        Raises:
          BadData: see `axes`.
          ValueError: a coordinate is not a number of at least 0.
        """
        x, y = (values[column].strip() for column in self.axes)
        if is_missing(x) and is_missing(y):
            return None
        return amount("y", y), amount("x", x)

    @cached_property
    def axes(self) -> tuple[int, int]:
        """The columns of x and y; BadData if there are none, or those of several objects."""
        found: dict[str, dict[str, int]] = {}
        kinds = dict.fromkeys(("location", "areashape"))
        for kind, (column, name) in itertools.product(kinds, enumerate(self.names)):
            match = _CENTER.fullmatch(name)
            if match and match[2] == kind:
                # Location_Center is preferred to AreaShape_Center.
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
      BadUse, BadData: see `csv.stream_rows`; the rows raise BadData as they are read.
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


_PLACE_COLUMNS = ("plate", "well", "site")
_NUMBERS = (("tablenumber", "image_tablenumber"), ("imagenumber", "image_imagenumber"))
_FILE = re.compile(r"(?:image_)?filename_.+")
_LOCATIONS = re.compile(r"(.+)-([^-]+)-nuclei\.csv", re.IGNORECASE)
# `f01`, `s1`, `1` and `1.0` are the same site.
_SITE_NAME = re.compile(r"[a-z]*0*(\d+)(?:\.0*)?", re.IGNORECASE)
_EXPECTED = (
    "columns Metadata_Plate, Metadata_Well and Metadata_Site, or FileName_<channel>, or "
    "ImageNumber and a table *Image.csv next to it were expected"
)

# (plate, well, site) in a form that compares equal for equal places.
_Place = tuple[str, str, str]
# Finds the index of a row's field; None if it has none. Raises ValueError for a contradiction.
_Locate = Callable[[list[str]], int | None]


def read_centers(
    path: Path, fields: Sequence[Field]
) -> tuple[list[Field], list[tuple[str, str]], list[str]]:
    """Sets the centres of fields to the nuclei that another program has found.

    Rows of other fields are skipped: a build may take a few wells of a plate. Centres are compared
    with the size of the image when that is read.

    Args:
      path: DeepProfiler's `locations` folder, or the folder that holds it: a table
        `<plate>/<well>-<site>-Nuclei.csv` for each field. Or a table of CellProfiler with a row for
        each nucleus: `[<Object>_]Location_Center_X` and `..._Y` (or `AreaShape_Center_`), and its
        field: `Metadata_Plate`, `Metadata_Well` and `Metadata_Site`, or the name of one of its
        image files in a column `FileName_<channel>`, or `ImageNumber`, with a table `*Image.csv`
        in the same folder that has these columns. Names match in any case.
      fields: fields of view.

    Returns:
      The fields in the tables, in their order, with `centers` in the order of the rows: () if a
      table is empty, or the image table lists a field without nuclei.
      (name, reason) of each field that is not in the tables.
      Notes: the number of nuclei that are left out because their centre is missing.

    Raises:
      BadUse: there is no such file or folder.
      BadData: a table is unreadable, names no field for a row or two, has a coordinate that is not
        a number of at least 0, or a centre twice; or it has no field, or no nucleus has a centre.
    """
    finder = _Fields(fields)
    if path.is_dir():
        _read_locations(path, finder)
    else:
        table = open_table(path)
        finder.collect(table, finder.locator(table) or _by_image_number(table, finder))
    found, missing = finder.centers, finder.missing
    if fields and not found:
        raise BadData(f"{path}: has none of the {len(fields)} fields, {fields[0].name} first")
    if missing and not any(found.values()):
        raise BadData(
            f"{path}: none of its {len(missing):,} nuclei has a centre, {missing[0]} first"
        )
    filled = [replace(fields[index], centers=tuple(found[index])) for index in sorted(found)]
    problems = [
        (field.name, f"nothing of it in {path}")
        for index, field in enumerate(fields)
        if index not in found
    ]
    count = f"nuclei without a centre, left out: {len(missing):,}"
    notes = [f"{count}, first {missing[0]}"] if missing else []
    return filled, problems, notes


def _read_locations(path: Path, finder: "_Fields") -> None:
    """Collects the centres of DeepProfiler's tables, one for each field."""
    inside = (path / "inputs" / "locations", path / "locations")
    root = next((folder for folder in inside if folder.is_dir()), path)
    plates = {plate for plate, _, _ in finder.places}
    read: dict[int, str] = {}
    for folder in sorted(root.iterdir()):
        if not folder.is_dir() or fold(folder.name) not in plates:
            continue
        for file in sorted(folder.iterdir()):
            match = _LOCATIONS.fullmatch(file.name)
            index = finder.places.get(_place(folder.name, *match.groups())) if match else None
            if index is None:
                continue
            if index in read:
                raise BadData(f"{file}: the same field as {read[index]}")
            read[index] = file.name
            finder.centers[index] = {}
            finder.collect(open_table(file), partial(_constant, index))


def _constant(index: int, _: list[str]) -> int:
    return index


class _Fields:
    """Finds the fields of rows by plate, well and site, or by their files; collects centres.

    Attributes:
      places: the index of each field.
      centers: by the index of a field, the line of each centre (row, column), in table order.
      missing: table and line of nuclei without a centre.
    """

    def __init__(self, fields: Sequence[Field]) -> None:
        self.places = {
            _place(field.plate, str(field.metadata["well"]), str(field.metadata["site"])): index
            for index, field in enumerate(fields)
        }
        self.centers: dict[int, dict[tuple[float, float], int]] = {}
        self.missing: list[str] = []
        self._names = [field.name for field in fields]
        self._place_of = {index: place for place, index in self.places.items()}
        # By (plate, file), and ('', file) for tables without plates: several fields may have it.
        self._files: dict[tuple[str, str], set[int]] = {}
        for place, index in self.places.items():
            for file in fields[index].file_names:
                for plate in ("", place[0]):
                    self._files.setdefault((plate, _file_name(file)), set()).add(index)

    def collect(self, table: ObjectTable, locate: _Locate) -> None:
        """Adds the centres of a table."""
        _ = table.axes  # an empty table must have them, too
        for line, values in table.rows:
            try:
                index = locate(values)
                if index is None:
                    continue
                lines = self.centers.setdefault(index, {})
                center = table.center(values)
            except ValueError as error:
                raise BadData(f"{table.path}, line {line}: {error}") from error
            if center is None:
                # If another object has more rows than nuclei, the columns of nuclei are padded.
                if not table.combined:
                    self.missing.append(f"{table.path}, line {line}")
            elif lines.setdefault(center, line) != line:
                raise BadData(
                    f"{table.path}, line {line}: repeats the centre of line {lines[center]}; each "
                    "nucleus was expected once"
                )

    def locator(self, table: ObjectTable) -> _Locate | None:
        """Makes the function that finds a row's field; None if the table has no column for it."""
        place = [table.column(SYNONYMS[name]) for name in _PLACE_COLUMNS]
        files = [i for i, name in enumerate(table.names) if _FILE.fullmatch(name)]
        if None in place and not files:
            return None
        cache: dict[tuple[str, ...], int | None] = {}

        def locate(values: list[str]) -> int | None:
            key = tuple(values[i].strip() if i is not None else "" for i in (*place, *files))
            if key not in cache:
                texts = ["" if is_missing(text) else text for text in key]
                cache[key] = self._find(texts[:3], texts[3:])
            return cache[key]

        return locate

    def _find(self, place: Sequence[str], files: Sequence[str]) -> int | None:
        """Finds the index of a field; ValueError if place and files fit several or contradict."""
        wanted = _place(*place)
        index = self.places.get(wanted)
        for name in files:
            fields = self._files.get((wanted[0], _file_name(name)), set())
            if len(fields) > 1 and index is None:
                raise ValueError(
                    f"{len(fields)} fields have a file {name!r}: a column Metadata_Plate was "
                    "expected to distinguish them"
                )
            if not fields or index in fields:
                continue
            other = next(iter(fields))
            its = self._place_of[other]
            if any(part not in ("", its[number]) for number, part in enumerate(wanted)):
                mine = ", ".join(filter(None, place)) if index is None else self._names[index]
                raise ValueError(
                    f"the row is of {mine}, but its file {name!r} of {self._names[other]}: correct "
                    "one of them"
                )
            index, wanted = other, its
        return index


def _by_image_number(table: ObjectTable, finder: _Fields) -> _Locate:
    """Finds the field of each row by its image number. A field may have no nuclei."""
    images = open_table(_image_table(table))
    locate = finder.locator(images)
    pairs = [(table.column(names), images.column(names)) for names in _NUMBERS]
    shared = [(own, its) for own, its in pairs if own is not None and its is not None]
    if locate is None or None in pairs[-1]:
        raise BadData(f"{table.path} and {images.path}: no column for a row's field; {_EXPECTED}")
    fields: dict[tuple[str, ...], int | None] = {}
    lines: dict[int, int] = {}
    for line, values in images.rows:
        key = tuple(_site(values[its]) for _, its in shared)
        try:
            index = locate(values)
        except ValueError as error:
            raise BadData(f"{images.path}, line {line}: {error}") from error
        if key in fields:
            raise BadData(f"{images.path}, line {line}: repeats ImageNumber {key[-1]}")
        fields[key] = index
        if index is not None and lines.setdefault(index, line) != line:
            raise BadData(f"{images.path}, line {line}: repeats the field of line {lines[index]}")

    def numbered(values: list[str]) -> int | None:
        key = tuple(_site(values[own]) for own, _ in shared)
        if key not in fields:
            raise ValueError(f"ImageNumber {key[-1]!r} is not in {images.path}")
        return fields[key]

    finder.centers |= {index: {} for index in lines}
    return numbered


def _image_table(table: ObjectTable) -> Path:
    """Finds the image table of the same export: MyExpt_Image.csv for MyExpt_Nuclei.csv."""
    if table.column(_NUMBERS[-1]) is None:
        raise table.bad_header(f"no column for a row's field: {_EXPECTED}")
    folder, name = table.path.parent, table.path.name.lower()
    others = [path for path in sorted(folder.iterdir()) if path.name.lower().endswith("image.csv")]
    # The longest common beginning of both names is that of the export.
    same = [path for path in others if name.startswith(path.name.lower().removesuffix("image.csv"))]
    if not same and len(others) != 1:
        raise BadData(f"{table.path}: no table *Image.csv of its export next to it; {_EXPECTED}")
    return max(same or others, key=lambda path: len(path.name))


def _place(plate: str, well: str, site: str) -> _Place:
    return fold(plate), well_key(well), _site(site)


def _site(text: str) -> str:
    """Returns the number of a site or an image."""
    match = _SITE_NAME.fullmatch(text.strip())
    return match[1] if match else text.strip()


def _file_name(path: str) -> str:
    return fold(PurePosixPath(path.replace("\\", "/")).name)
