"""Where cells come from: plates of TIFFs, folders of crops, the simulator.

A source is a list of fields, each with its metadata and the files that hold it. Finding is done
here, once; reading is done elsewhere, by many processes.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from cellclr_jax.cli import BadData, BadUse
from cellclr_jax.data.fields import Field, Request, Source
from cellclr_jax.data.image_files import ImageFile, find_tiffs, read_crop

if TYPE_CHECKING:
    import pandas as pd

IMAGE_CSV = "BBBC021_v1_image.csv"
MOA_CSV = "BBBC021_v1_moa.csv"
RAW_CHANNELS = ("dna", "tubulin", "actin")
# The order that published crop folders state; crops in another order need --channels.
CROP_CHANNELS = ("dna", "actin", "tubulin")
CONTROL = "DMSO"
_CROP_NAME = re.compile(r"(?P<stem>.+)_(?P<number>\d+)\.npy")


def open_source(name: str, request: Request) -> Source:
    """Finds the fields of a source.

    Args:
      name: a key of `SOURCES`.
      request: where and what.

    Raises:
      BadUse: an unknown source, plate or channel, an input that does not exist.
      BadData: tables or files that do not fit together.
    """
    if name not in SOURCES:
        raise BadUse(f"unknown source {name!r}: one of {', '.join(SOURCES)}")
    return SOURCES[name](request)


def default_channels(name: str) -> tuple[str, ...]:
    """The channels of a source when none are declared, in the order they are stored."""
    return CROP_CHANNELS if name == "crops" else RAW_CHANNELS


def raw_fields(request: Request) -> Source:
    """Fields of raw plates: folders of TIFFs or zips, found by plate folder and file name."""
    _check_inputs(request.inputs)
    channels = request.channels or RAW_CHANNELS
    if "dna" not in channels or not set(channels) <= set(RAW_CHANNELS):
        raise BadUse(
            f"--channels={','.join(channels)}: some of {', '.join(RAW_CHANNELS)} were expected, "
            "dna among them (nuclei are found in it)"
        )
    table, image_csv, moa_csv = _annotated_table(request)
    table = _wanted(table, request)
    found: dict[tuple[str, str], ImageFile] = {}
    for root in request.inputs:
        for folder, file in find_tiffs(root):
            found.setdefault((folder, file.name), file)
    if not found:
        raise BadUse(f"{_names(request.inputs)}: no TIFF and no zip of a plate in it")
    fields = [
        _field(row, tuple(_locate(row[f"{name}_file"], row["plate"], found) for name in channels))
        for row in _records(table)
    ]
    # A plate without a single file was not fetched; one with a gap has lost something.
    present = {field.plate for field in fields if any(file.path for file in field.files)}
    absent = sorted({field.plate for field in fields} - present)
    if not present:
        raise BadData(
            f"{_names(request.inputs)}: none of its folders "
            f"({_some([folder for folder, _ in found])}) holds a wanted file of {image_csv}, such "
            f"as {table['dna_file'].iloc[0] if len(table) else 'none: no row is wanted'}"
        )
    kept = [field for field in fields if field.plate in present]
    return Source(kept, channels, None, image_csv, moa_csv, absent_plates=absent)


def crop_fields(request: Request) -> Source:
    """Fields of a folder of crops `<stem>_<n>.npy`; `<stem>` is a DNA file of the image table."""
    _check_inputs(request.inputs)
    channels = request.channels or CROP_CHANNELS
    crops = _list_crops(request.inputs)
    table, image_csv, moa_csv = _annotated_table(request)
    rows = _rows_of_stems(table, set(crops), image_csv)
    wanted = set(_wanted(table, request)["row"])
    fields = [
        _field(rows[stem], tuple(f for _, f in sorted(files.items())), tuple(sorted(files)))
        for stem, files in crops.items()
        if stem in rows and rows[stem]["row"] in wanted
    ]
    fields.sort(key=lambda one: (one.plate, one.well, one.site))
    problems = [
        (f"{stem}_*.npy", f"{image_csv} has no row with DNA file {stem}.tif")
        for stem in crops
        if stem not in rows
    ]
    if not fields:
        raise BadData(
            f"{_names(request.inputs)}: no crop belongs to a wanted row of {image_csv}: "
            f"{_some([what for what, _ in problems]) or 'all are filtered out'}"
        )
    shape = read_crop(fields[0].files[0]).shape
    if shape[2] != len(channels):
        raise BadUse(
            f"{fields[0].files[0].where} has {shape[2]} channels, "
            f"--channels={','.join(channels)} names {len(channels)}"
        )
    return Source(fields, channels, shape[0], image_csv, moa_csv, problems)


def simulated_fields(request: Request) -> Source:
    """Writes a simulated release into the input folder, unless it is there, and reads it."""
    from cellclr_jax.data import simulator

    if len(request.inputs) != 1:
        raise BadUse("--source=simulated writes into one --input folder")
    settings = simulator.SimulatorSettings(**request.simulation)
    simulator.simulate_release(request.inputs[0], settings, workers=request.workers)
    return raw_fields(request)


SOURCES: dict[str, Callable[[Request], Source]] = {
    "raw": raw_fields,
    "crops": crop_fields,
    "simulated": simulated_fields,
}


def _check_inputs(inputs: Sequence[Path]) -> None:
    """Raises BadUse where an input is named that does not exist, or none is."""
    if not inputs:
        raise BadUse("--input=DIR is needed: the folder (or zip) that holds the images")
    for path in inputs:
        if not path.exists():
            raise BadUse(f"{path}: no such folder or zip (--input)")


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
        raise BadUse(f"{_names(inputs)}: no crop (.npy) in it")
    return crops


def _rows_of_stems(
    table: "pd.DataFrame", stems: set[str], image_csv: str
) -> dict[str, dict[str, Any]]:
    """The row of the image table that each stem (a DNA file's name without .tif) belongs to."""
    rows: dict[str, dict[str, Any]] = {}
    for row in _records(table):
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


def _annotated_table(request: Request) -> "tuple[pd.DataFrame, str, str]":
    """The image table with MoAs, sorted by plate, well and site, and the two tables' paths."""
    from cellclr_jax.data import metadata

    image_csv = _table_path(request.image_csv, IMAGE_CSV, request.inputs)
    if image_csv is None:
        raise BadUse(f"no {IMAGE_CSV} in {_names(request.inputs)} or above: name it, --image_csv")
    moa_csv = _table_path(request.moa_csv, MOA_CSV, request.inputs)
    if moa_csv is None and request.annotated:
        raise BadUse(
            f"no {MOA_CSV} in {_names(request.inputs)} or above: name it with --moa_csv, or "
            "build all wells with --config=all"
        )
    table = metadata.read_image_csv(image_csv)
    if moa_csv is None:
        table = table.assign(moa="")
    else:
        try:
            table = metadata.annotate(table, metadata.read_moa_csv(moa_csv))
        except BadData as error:
            raise BadData(f"{image_csv} and {moa_csv}: {error}") from error
    unknown = sorted(set(request.plates) - set(table["plate"]))
    if unknown:
        raise BadUse(f"--plates={','.join(unknown)}: not in {image_csv}")
    table = table.sort_values(["plate", "well", "site"], kind="stable")
    return table, str(image_csv), str(moa_csv or "")


def _wanted(table: "pd.DataFrame", request: Request) -> "pd.DataFrame":
    """The rows that the configuration and `plates` ask for."""
    kept = table["plate"].isin(request.plates) if request.plates else table["plate"].notna()
    if request.annotated:
        kept &= (table["moa"] != "") | (table["compound"].str.upper() == CONTROL)
    return table[kept]


def _table_path(given: Path | None, name: str, inputs: Sequence[Path]) -> Path | None:
    """The table named by a flag, else beside or above an input, else None."""
    if given is not None:
        return given
    places = [place / name for root in inputs for place in (root, root.absolute().parent)]
    return next((path for path in places if path.is_file()), None)


def _records(table: "pd.DataFrame") -> list[dict[str, Any]]:
    """The rows of a table by column name."""
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def _field(
    row: dict[str, Any], files: tuple[ImageFile, ...], numbers: tuple[int, ...] = ()
) -> Field:
    """A field from a row of the image table."""
    return Field(
        plate=row["plate"],
        well=row["well"],
        site=int(row["site"]),
        batch=row["batch"],
        compound=row["compound"],
        concentration=float(row["concentration"]),
        replicate=int(row["replicate"]),
        moa=row["moa"],
        files=files,
        numbers=numbers,
    )


def _locate(name: str, plate: str, found: dict[tuple[str, str], ImageFile]) -> ImageFile:
    """The file of a table's '<PathName>/<FileName>': same file name, in a folder of that plate."""
    path = PurePosixPath(name)
    folders = dict.fromkeys((path.parent.name, plate))
    files = (found.get((folder, path.name)) for folder in folders)
    return next((file for file in files if file is not None), ImageFile(name))


def _names(paths: Sequence[Path]) -> str:
    """Paths in an error."""
    return ", ".join(str(path) for path in paths)


def _some(names: Sequence[str], most: int = 3) -> str:
    """The first few names."""
    counted = list(Counter(names))
    return ", ".join(counted[:most]) + (", …" if len(counted) > most else "")
