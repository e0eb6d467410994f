"""Reads how a lab stores its plates into one image table: a row for each image of a channel.

A layout is a table of files (CellProfiler's LoadData, or a tall one), a pattern of file names, the
index of an Opera Phenix, or an OME-Zarr plate. `read_layout` chooses the
reader. To add a layout, write a function that returns an `ImageTable` and call it there.
"""

import itertools
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from xml.etree import ElementTree

import pandas as pd

from cellclr_jax.console import listed, plural
from cellclr_jax.data.columns import SYNONYMS, plain_name
from cellclr_jax.data.names import fold, is_missing
from cellclr_jax.data.readers.find_files import walk_folders
from cellclr_jax.data.tables.csv import read_text_table
from cellclr_jax.errors import BadData, BadUse

KEY = ("plate", "well", "site", "time")
"""Columns that distinguish fields of view."""
_COLUMNS = [*KEY, "channel", "z", "path", "place", "line"]
_IMAGE = re.compile(r"\.(tiff?|png)$", re.IGNORECASE)
_NOT_IMAGES = re.compile(r"_thumb|(^|/)thumbs?(/|\.db$)", re.IGNORECASE)
# Folders that microscopes put between a plate and its images.
_INNER_FOLDERS = re.compile(r"images?|timepoint_\d+|z_?step_\d+", re.IGNORECASE)

_WELL = r"[A-Za-z]{1,2}[-_ ]?\d{1,2}|[Rr]\d{1,2}[Cc]\d{1,2}"
_FIELDS = {
    "plate": r"[^/]+?",
    "well": _WELL,
    "row": r"[A-Za-z]{1,2}|\d{1,2}",
    "column": r"\d{1,2}",
    "site": r"\d+|[^/_.]+",
    "channel": r"\d+|[^/_.]+|[^/]+?",
    "z": r"\d+",
    "time": r"\d+",
}
"""Names that a pattern may have in braces, and the regular expressions that replace them."""
PRESETS = {
    "imagexpress": r"(?:.*_)?(?P<well>[A-Z]\d\d)(?:_s(?P<site>\d+))?_w(?P<channel>\d)[^/]*\.tiff?",
    "phenix": r"r(?P<row>\d+)c(?P<column>\d+)f(?P<site>\d+)p(?P<z>\d+)-ch(?P<channel>\d+)"
    r"(?:sk(?P<time>\d+))?[^/]*\.tiff?",
    "cellvoyager": r".*_(?P<well>[A-Z]\d\d)_T(?P<time>\d+)F(?P<site>\d+)L\d+A\d+Z(?P<z>\d+)"
    r"C(?P<channel>\d+)\.(?:tiff?|png)",
    "cytation": r"(?P<well>[A-Z]{1,2}\d{1,2})_\d+_\d+_(?P<site>\d+)_(?P<channel>[^_/]+)"
    r"_(?P<time>\d+)\.tiff?",
}
"""Patterns of the names that microscopes give their files."""


@dataclass(frozen=True)
class ImageTable:
    """The images of plates.

    Attributes:
      images: one row for each image: plate, well, site, time, channel (str), z (int, 0 if there is
        one plane), path (str), place (tuple, of the plane within a Zarr array; () for a file) and
        line (int, of the table; 0 if there is none).
      metadata: one row for each field: plate, well, site, time and further columns (str) of the
        table; their names as they are in the file. None if the layout has none.
      pixel_size: µm per pixel, if all images have the same; NaN if unknown.
      left_out: descriptions of files that belong to no field.
      notes: on what was assumed.
      tables: path of each table that was read, by its kind.
    """

    images: pd.DataFrame
    metadata: pd.DataFrame | None = None
    pixel_size: float = math.nan
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tables: Mapping[str, str] = field(default_factory=dict)


def _image_rows(rows: Sequence[Mapping[str, Any]], where: str) -> pd.DataFrame:
    """Makes a table of images with all columns; BadData if there is no image."""
    if not rows:
        raise BadData(f"{where}: no image of a plate in it")
    table = pd.DataFrame(rows)
    defaults: dict[str, Any] = {"plate": "", "well": "", "site": "", "time": "", "z": 0, "line": 0}
    for name, value in defaults.items():
        if name not in table:
            table[name] = value
    if "place" not in table:
        table["place"] = [()] * len(table)
    return table[_COLUMNS]


# Patterns of file names


def compile_pattern(text: str) -> re.Pattern[str]:
    """Translates a pattern of file names.

    Args:
      text: a path with {plate}, {well} or {row} and {column}, {site}, {channel}, {z} and {time};
        `*` stands for any characters except a slash. {channel:[0-9]} gives the texts a name stands
        for as a regular expression.

    Raises:
      BadUse: an unknown or repeated name in braces, no channel or no well, or a wrong expression.
    """
    parts, named = [], []
    for literal, name, _, expression in re.findall(
        r"([^{}*]+)|\{(\w+)(:((?:[^{}]|\{\d+(?:,\d*)?\})+))?\}|\*", text
    ):
        if literal:
            parts.append(re.escape(literal))
        elif not name:
            parts.append("[^/]*?")
        elif name not in _FIELDS or name in named:
            reason = (
                "is named twice" if name in named else f"one of {', '.join(_FIELDS)} was expected"
            )
            raise BadUse(f"--images={text}: {{{name}}}: {reason}")
        else:
            named.append(name)
            parts.append(f"(?P<{name}>{expression or _FIELDS[name]})")
    if "channel" not in named or not ("well" in named or {"row", "column"} <= {*named}):
        raise BadUse(
            f"--images={text}: {{channel}} and {{well}}, or {{row}} and {{column}}, needed"
        )
    try:
        return re.compile("".join(parts), re.IGNORECASE)
    except re.error as error:
        raise BadUse(f"--images={text}: {error}") from error


def match_files(pattern: str, roots: Sequence[Path]) -> ImageTable:
    """Lists the files below some folders whose paths match a pattern.

    The pattern is matched against the end of a path, from a folder's name on. Without {plate}, the
    plate is the name of the folder with the files.

    Args:
      pattern: see `compile_pattern`, or a key of `PRESETS`. Folders before the first brace or star
        are added to the roots.
      roots: folders; none: the current one.

    Raises:
      BadUse: a wrong pattern, or a folder does not exist.
      BadData: no file matches, or a folder cannot be read.
    """
    if pattern.lower() in PRESETS:
        expression, fixed = re.compile(PRESETS[pattern.lower()], re.IGNORECASE), ""
    else:
        fixed, pattern = _fixed_folder(pattern)
        expression = compile_pattern(pattern)
    folders = [root / fixed for root in roots or [Path()]]
    rows: list[dict[str, Any]] = []
    unmatched: list[str] = []
    thumbnails = 0
    for path in _files_below(folders):
        if _NOT_IMAGES.search(path):
            thumbnails += 1
        elif found := _match_end(expression, path):
            rows.append({**_named(found, path), "path": path})
        else:
            unmatched.append(path)
    where = listed([str(folder) for folder in folders])
    if not rows:
        examples = f": {listed(unmatched)}" if unmatched else ""
        raise BadData(
            f"{where}: none of {plural(len(unmatched), 'file')} matches --images={pattern}"
            + examples
        )
    left_out = [f"{plural(thumbnails, 'thumbnail')}"] * bool(thumbnails)
    if unmatched:
        left_out.append(
            f"{plural(len(unmatched), 'file')} that match nothing ({listed(unmatched)})"
        )
    return ImageTable(_image_rows(rows, where), left_out=left_out)


def _fixed_folder(pattern: str) -> tuple[str, str]:
    """Splits a pattern into the folders before its first brace or star, and the rest."""
    start = re.search(r"[{*]", pattern)
    cut = pattern.rfind("/", 0, start.start() if start else len(pattern)) + 1
    return pattern[:cut], pattern[cut:]


def _files_below(folders: Sequence[Path]) -> Iterator[str]:
    """Paths of all files below some folders, hidden ones excepted."""
    seen: set[tuple[object, ...]] = set()
    for root in folders:
        if not root.is_dir():
            raise BadUse(f"{root}: no such folder (--images, --input)")
        for folder, names in walk_folders(root, seen):
            yield from (f"{folder.as_posix()}/{name}" for name in names)


def _match_end(expression: re.Pattern[str], path: str) -> re.Match[str] | None:
    """Matches the end of a path that begins with the name of a folder or file."""
    start = len(path)
    while start > 0:
        start = path.rfind("/", 0, start - 1) + 1
        if found := expression.fullmatch(path, start):
            return found
        start -= 1
    return None


def _named(found: re.Match[str], path: str) -> dict[str, Any]:
    """Returns the metadata of an image that its path contains."""
    named = {name: text for name, text in found.groupdict().items() if text is not None}
    if "row" in named:
        row, column = named.pop("row"), named.pop("column")
        named["well"] = f"r{row}c{column}" if row.isdigit() else f"{row}{column}"
    if "plate" not in named:
        named["plate"] = plate_folder(path)
    return {**named, "z": int(named.get("z", 0))}


def plate_folder(path: str) -> str:
    """Returns the name of a plate's folder, such as 'P1' of 'P1/Images/a.tif'."""
    folders = PurePosixPath(os.path.abspath(path)).parts[:-1]
    names = [name for name in folders if not _INNER_FOLDERS.fullmatch(name)]
    return names[-1]


# Tables of files


def read_image_table(path: Path, root: Path | None = None) -> ImageTable:
    """Reads a table of image files: CellProfiler's LoadData, or one with a row for each image.

    A LoadData table has columns FileName_<channel> with PathName_<channel>, or URL_<channel>, with
    or without `Image_` before and `Orig` before the channel; columns of illumination functions and
    outlines are no channels. A tall table has columns path (or file name), channel, well and
    perhaps plate, site, z.

    Args:
      path: CSV, .csv.gz, TSV or Parquet file.
      root: the folder of the images, in place of folders of another machine: the longest end of a
        path that exists below it is taken. None: paths are relative to the table's folder.

    Raises:
      BadUse: there is no such file.
      BadData: it is unreadable, or has no columns of images and wells.
    """
    table = read_text_table(path)
    channels = _load_data_channels(list(map(str, table)), path)
    plain = {plain_name(name): name for name in reversed(table.columns)}
    found = {what: _first(plain, names) for what, names in _TALL.items()}
    if not found["well"]:
        raise BadData(f"{path}, line 1: no column of wells (Metadata_Well, well, …)")
    places = _Places(root if root else path.parent, strict=root is not None)
    rows = (
        _wide_rows(table, channels, places) if channels else _tall_rows(table, found, places, path)
    )
    if not rows:
        raise BadData(f"{path}: no image on any row")
    images = pd.DataFrame(rows, columns=["at", "channel", "z", "path"])
    at = images.pop("at").to_numpy()
    columns = {what: table[found[what]] if found[what] else "" for what in KEY}
    key = pd.DataFrame(columns, index=table.index)
    notes = []
    if not found["plate"]:
        # The first image of a row decides.
        first = images.groupby(at)["path"].first()
        key["plate"] = first.map(plate_folder).reindex(key.index, fill_value="")
        notes.append(f"plate: no column of {path} names it; the folder of the images does")
    images = pd.concat([key.iloc[at].reset_index(drop=True), images], axis=1)
    images["line"] = table["row"].to_numpy()[at]
    images["place"] = [()] * len(images)
    names = [str(name) for name in table if name not in {*found.values(), "row"}]
    further = [name for name in names if not _FILE_COLUMN.match(name)]
    metadata = pd.concat([key, table[further]], axis=1).drop_duplicates(list(KEY))
    return ImageTable(
        images[_COLUMNS],
        metadata=metadata.reset_index(drop=True),
        notes=notes,
        tables={"image table": str(path)},
    )


_Rows = list[tuple[int, str, int, str]]
"""Images of a table: number of the row, channel, z, path."""


def _wide_rows(
    table: pd.DataFrame, channels: Mapping[str, tuple[str, str]], places: "_Places"
) -> _Rows:
    """Lists the images of a LoadData table; empty file names are left out."""
    rows: _Rows = []
    for channel, (name, folder) in channels.items():
        folders = table[folder] if folder else [""] * len(table)
        for number, (file, place) in enumerate(zip(table[name], folders, strict=True)):
            if not is_missing(file):
                rows.append((number, channel, 0, places.find(place, file)))
    return rows


def _tall_rows(
    table: pd.DataFrame, found: Mapping[str, str], places: "_Places", path: Path
) -> _Rows:
    """Lists the images of a table with one row per image.

    Raises:
      BadData: it has no columns of paths and channels, or a plane is no number.
    """
    if not (found["path"] and found["channel"]):
        raise BadData(
            f"{path}, line 1: neither columns FileName_<channel> or URL_<channel> nor path and "
            f"channel; the header has {listed(list(table.columns), 15)}"
        )
    planes = table[found["z"]] if found["z"] else ["0"] * len(table)
    rows: _Rows = []
    for number, (file, channel, z) in enumerate(
        zip(table[found["path"]], table[found["channel"]], planes, strict=True)
    ):
        if not z.isdecimal():
            raise BadData(f"{path}, line {table['row'].iloc[number]}: z {z!r} is no number")
        rows.append((number, channel, int(z), places.find("", file)))
    return rows


_TALL = {
    "plate": SYNONYMS["plate"],
    "well": SYNONYMS["well"],
    "site": (*SYNONYMS["site"], "fieldid", "fov"),
    "time": ("time", "timepoint", "timepointid"),
    "path": ("path", "filepath", "imagepath", "file", "filename", "url"),
    "channel": ("channel", "channelname", "stain"),
    "z": ("z", "plane", "planeid"),
}
_CHANNEL_COLUMN = re.compile(r"(?:Image_)?(FileName|PathName|URL)_(?:Orig)?(.+)", re.IGNORECASE)
_FILE_COLUMN = re.compile(r"(?:Image_)?(FileName|PathName|URL|MD5Digest)_", re.IGNORECASE)
_NO_CHANNEL = re.compile(r"illum|outlines$", re.IGNORECASE)


def _load_data_channels(header: Sequence[str], path: Path) -> dict[str, tuple[str, str]]:
    """Columns of (file name or URL, folder or '') of each channel of a LoadData table.

    Raises:
      BadData: two columns have the files of one channel.
    """
    columns: dict[str, dict[str, str]] = {}
    for name in header:
        found = _CHANNEL_COLUMN.fullmatch(name)
        if found and not _NO_CHANNEL.search(found[2]):
            other = columns.setdefault(found[2], {}).setdefault(found[1].lower(), name)
            if other != name:
                raise BadData(f"{path}, line 1: columns {other} and {name} mean the same; keep one")
    return {
        channel: (kinds.get("filename") or kinds["url"], kinds.get("pathname", ""))
        if "filename" in kinds
        else (kinds["url"], "")
        for channel, kinds in columns.items()
        if "filename" in kinds or "url" in kinds
    }


def _first(plain: Mapping[str, str], names: Sequence[str]) -> str:
    """Finds the first of some plain names that a table has, as in its header; '' if none."""
    return next((plain[name] for name in names if name in plain), "")


class _Places:
    """Finds the files of a table below a folder.

    Args:
      root: of the files.
      strict: whether all files lie below it, whatever folders the table names.
    """

    def __init__(self, root: Path, *, strict: bool) -> None:
        self._root, self._strict = root, strict
        self._exist: dict[str, str] = {}

    def find(self, folder: str, name: str) -> str:
        """Finds a file of the table; returns its path, or the expected one if it does not exist."""
        text = f"{folder.rstrip('/')}/{name}" if folder else name
        if text.startswith("file:"):
            text = text.removeprefix("file:").lstrip("/").join(["/", ""])
        parts = PureWindowsPath(text).parts if "\\" in text else PurePosixPath(text).parts
        parts = tuple(part for part in parts if part not in (".", "/"))
        if not self._strict:
            return str(self._root / text) if "\\" not in text else str(Path(self._root, *parts))
        if ".." in parts:
            raise BadData(f"{text}: a path with '..' in the image table")
        place = self._folder(parts[:-1])
        return f"{place}/{parts[-1]}"

    def _folder(self, parts: tuple[str, ...]) -> str:
        """Finds the existing folder below the root whose path is the longest end of `parts`."""
        key = "/".join(parts)
        if key not in self._exist:
            ends = (parts[start:] for start in range(len(parts) + 1))
            paths = (self._root.joinpath(*end) for end in ends)
            self._exist[key] = str(next((path for path in paths if path.is_dir()), self._root))
        return self._exist[key]


# Opera Phenix and Operetta


def read_opera_index(path: Path) -> ImageTable:
    """Reads the index of a plate of an Opera Phenix or Operetta, Index.idx.xml or Index.xml.

    Args:
      path: the index; the images lie in its folder.

    Raises:
      BadData: it is not such a file, or names files in other folders.
    """
    rows: list[dict[str, Any]] = []
    plate, sizes = "", set()
    entries: dict[str, dict[str, str]] = {}
    try:
        for _, element in ElementTree.iterparse(path, events=("end",)):
            tag = _tag(element)
            if tag == "Plate":
                texts = _texts(element)
                plate = texts.get("Name") or texts.get("PlateID") or plate
            elif tag == "Entry" and element.get("ChannelID"):
                # Newer versions describe a channel once for all of its images.
                entries.setdefault(element.get("ChannelID", ""), {}).update(_texts(element))
            elif tag == "Image" and len(element):
                texts = _texts(element)
                texts = {**entries.get(texts.get("ChannelID", ""), {}), **texts}
                rows.append(_opera_row(texts))
                sizes.add(texts.get("ImageResolutionX", ""))
                element.clear()
    except ElementTree.ParseError as error:
        raise BadData(f"{path}: not a readable index of an Opera plate ({error})") from error
    except KeyError as error:
        raise BadData(f"{path}: an Image without {error.args[0]}") from error
    for row in rows:
        row["plate"] = plate or plate_folder(str(path))
        if PurePosixPath(row["path"]).name != row["path"]:
            raise BadData(f"{path}: the image {row['path']!r} is not in the folder of the index")
        row["path"] = str(path.parent / row["path"])
    size = sizes.pop() if len(sizes) == 1 else ""
    return ImageTable(
        _image_rows(rows, str(path)),
        pixel_size=float(size) * 1e6 if size else math.nan,
        tables={"image table": str(path)},
    )


def _opera_row(texts: Mapping[str, str]) -> dict[str, Any]:
    """Makes a row of the image table from an entry of Opera's index."""
    return {
        "well": f"r{texts['Row']}c{texts['Col']}",
        "site": texts["FieldID"],
        "time": texts.get("TimepointID", ""),
        "channel": texts.get("ChannelName") or texts["ChannelID"],
        "z": int(texts.get("PlaneID", 0)),
        "path": texts["URL"],
    }


def _tag(element: ElementTree.Element) -> str:
    """Returns an element's name without its namespace."""
    return element.tag.rpartition("}")[2]


def _texts(element: ElementTree.Element) -> dict[str, str]:
    """Returns the texts of an element's children by name."""
    return {_tag(child): (child.text or "").strip() for child in element}


# OME-Zarr


def read_zarr_plate(path: Path, level: int = 0) -> ImageTable:
    """Lists the images of an OME-Zarr plate (NGFF 0.4 and 0.5, Zarr v2 and v3).

    Args:
      path: the plate's folder.
      level: of resolution; 0 is the full one.

    Returns:
      Paths lead to arrays; `place` is the index on the leading axes of an array; z counts planes
      from 1 (0 if the array has no z axis).

    Raises:
      BadUse: an image has no such level.
      BadData: it is no plate, or its metadata are not those of NGFF.
    """
    import zarr

    rows: list[dict[str, Any]] = []
    sizes = set()
    try:
        group = zarr.open_group(str(path), mode="r")
        plate = _ome(group)["plate"]
        name = str(plate.get("name") or path.name.removesuffix(".zarr"))
        for well in plate["wells"]:
            wanted = _inside(well["path"])
            for image in _ome(group[wanted])["well"]["images"]:
                folder = f"{wanted}/{_inside(image['path'])}"
                described = _describe_image(group[folder], level)
                sizes.add(described["pixel_size"])
                row = {"plate": name, "well": wanted.replace("/", ""), "site": image["path"]}
                array = f"{path}/{folder}/{described['array']}"
                for place, plane in described["planes"].items():
                    rows.append({**row, **plane, "path": array, "place": place})
    except BadUse:
        raise
    except Exception as error:  # damaged metadata raise exceptions of many types
        raise BadData(f"{path}: not an OME-Zarr plate ({type(error).__name__}: {error})") from error
    return ImageTable(
        _image_rows(rows, str(path)),
        pixel_size=sizes.pop() if len(sizes) == 1 else math.nan,
        tables={"image table": str(path)},
    )


def _ome(group: Any) -> Mapping[str, Any]:
    """NGFF's metadata of a group: below 'ome' since version 0.5."""
    attributes = group.attrs.asdict()
    metadata: Mapping[str, Any] = attributes.get("ome", attributes)
    return metadata


def _inside(text: str) -> str:
    """Normalises a path of the metadata; ValueError if it leads out of the plate."""
    parts = PurePosixPath(text).parts
    if not parts or ".." in parts or text.startswith("/"):
        raise ValueError(f"path {text!r}")
    return "/".join(parts)


def _describe_image(group: Any, level: int) -> dict[str, Any]:
    """Axes, channels and pixel size (µm) of an image of a plate."""
    metadata = _ome(group)
    described = metadata["multiscales"][0]
    axes = [axis["name"] for axis in described["axes"]]
    datasets = described["datasets"]
    if level >= len(datasets):
        raise BadUse(f"--level={level}: the plate has {plural(len(datasets), 'level')}, from 0")
    dataset = datasets[level]
    array = group[_inside(dataset["path"])]
    counts = dict(zip(axes, array.shape, strict=True))
    if axes[-2:] != ["y", "x"] or not {*axes[:-2]} <= {"t", "c", "z"}:
        raise ValueError(f"axes {axes}")
    channels = [str(one.get("label", "")) for one in metadata.get("omero", {}).get("channels", [])]
    if len(channels) != counts.get("c", 1) or not all(channels):
        channels = [f"c{number}" for number in range(counts.get("c", 1))]
    scales = [one["scale"] for one in dataset["coordinateTransformations"] if "scale" in one]
    unit = described["axes"][-1].get("unit", "")
    micrometres = {"micrometer": 1.0, "nanometer": 1e-3, "millimeter": 1e3}.get(unit, math.nan)
    planes = {}
    leading = [axis for axis in axes if axis not in "yx"]
    for place in itertools.product(*(range(counts[axis]) for axis in leading)):
        at = dict(zip(leading, place, strict=True))
        planes[place] = {
            "channel": channels[at.get("c", 0)],
            "z": at.get("z", 0) + 1 if counts.get("z", 1) > 1 else 0,
            "time": str(at.get("t", 0)) if counts.get("t", 1) > 1 else "",
        }
    return {
        "array": _inside(dataset["path"]),
        "planes": planes,
        "pixel_size": scales[0][-1] * micrometres if scales else math.nan,
    }


def read_layout(
    images: str, inputs: Sequence[Path], root: Path | None = None, level: int = 0
) -> ImageTable:
    """Reads the layout that flags name.

    Args:
      images: a table, a pattern of file names or a preset; '': `inputs` name an index or a plate.
      inputs: folders for a pattern; otherwise an Opera index or an OME-Zarr plate.
      root: see `read_image_table`.
      level: see `read_zarr_plate`.

    Raises:
      BadUse, BadData: nothing of that kind is there, or it cannot be read.
    """
    if images and Path(images).is_file():
        return read_image_table(Path(images), root)
    if images.lower() in PRESETS or re.search(r"[{*]", images):
        return match_files(images, [root] if root else inputs)
    if images:
        presets = ", ".join(PRESETS)
        raise BadUse(f"--images={images}: no such table, no pattern with {{…}}, none of {presets}")
    tables = [_read_input(path, level) for path in inputs]
    if not tables:
        raise BadUse("--source=plates needs --images=TABLE, --images=PATTERN or --input=INDEX|ZARR")
    if len(tables) == 1:
        return tables[0]
    sizes = {table.pixel_size for table in tables}
    return ImageTable(
        pd.concat([table.images for table in tables], ignore_index=True),
        pixel_size=sizes.pop() if len(sizes) == 1 else math.nan,
        tables={f"image table {number}": str(path) for number, path in enumerate(inputs, 1)},
    )


def _read_input(path: Path, level: int) -> ImageTable:
    """Reads an index of an Opera plate or an OME-Zarr plate, which may lie in a folder."""
    if path.is_dir():
        if any((path / name).exists() for name in ("zarr.json", ".zattrs", ".zgroup")):
            return read_zarr_plate(path, level)
        inner = [path / name for name in _INDEXES if (path / name).is_file()]
        inner += [path / "Images" / name for name in _INDEXES if (path / "Images" / name).is_file()]
        if inner:
            return read_opera_index(inner[0])
    elif path.is_file() and fold(path.name).endswith(".xml"):
        return read_opera_index(path)
    elif not path.exists():
        raise BadUse(f"{path}: no such file or folder (--input)")
    raise BadUse(
        f"{path}: neither an Index.idx.xml or Index.xml nor an OME-Zarr plate; name files by "
        "--images=TABLE or --images=PATTERN, such as '{plate}/{well}_s{site}_w{channel}*.tif'"
    )


_INDEXES = ("Index.idx.xml", "Index.xml")
