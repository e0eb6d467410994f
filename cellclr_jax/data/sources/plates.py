"""Plates in BBBC021's layout, public or simulated."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from cellclr_jax.console import listed, plural
from cellclr_jax.data.columns import COLUMNS, is_control
from cellclr_jax.data.names import Names, fold
from cellclr_jax.data.readers.find_files import ImageFile, check_inputs, find_tiffs
from cellclr_jax.data.readers.formats import Selection
from cellclr_jax.data.sources.source import Field, FieldFiles, Request, Source
from cellclr_jax.data.tables import bbbc021
from cellclr_jax.data.tables.bbbc021 import CHANNELS, IMAGE_CSV, MOA_CSV
from cellclr_jax.data.tables.nuclei import read_centers
from cellclr_jax.errors import BadData, BadUse

NUCLEI = "dna"
"""The channel in which nuclei are found."""

# The files of one name in folders of one name, as `fold` gives both.
_Found = dict[tuple[str, str], list[ImageFile]]


def raw_fields(request: Request) -> Source:
    """Fields of raw plates: folders of TIFFs or zips, found by plate folder and file name."""
    check_inputs(request.inputs)
    channels = request.channels or CHANNELS
    if NUCLEI not in channels or not set(channels) <= set(CHANNELS):
        raise BadUse(
            f"--channels={','.join(channels)}: some of {', '.join(CHANNELS)} were expected, "
            f"{NUCLEI} among them (nuclei are found in it)"
        )
    everything, tables, notes = annotated_table(request)
    table = wanted_rows(everything, request)
    found = _find(request)
    fields = [_new_field(row, channels, found, request.z) for row in records(table)]
    # A plate without a single file was not fetched; one with a gap has lost something.
    present = {field.plate for field in fields if any(file.path for file in field.files)}
    absent = sorted({field.plate for field in fields} - present)
    check_plates(request, table, present)
    if not present:
        raise BadData(
            f"{listed(request.inputs)}: none of its folders "
            f"({listed([folder for folder, _ in found])}) holds a wanted file of "
            f"{tables['image table']}, such as "
            f"{table['dna_file'].iloc[0] if len(table) else 'none: no row is wanted'}"
        )
    kept: list[Field] = [field for field in fields if field.plate in present]
    problems: list[tuple[str, str]] = []
    if request.centers is not None:
        kept, problems, about = read_centers(request.centers, kept)
        notes = [*notes, *about]
        tables["centres"] = str(request.centers)
    return Source(
        kept,
        RELEASE_COLUMNS,
        channels,
        nuclei=NUCLEI,
        tables=tables,
        problems=problems,
        absent_plates=absent,
        notes=notes,
        left_out=_unlisted(everything, found, tables["image table"]),
        planes=f"of a z axis: --z={request.z}" if request.z else "one plane",
    )


def _find(request: Request) -> _Found:
    """The TIFFs of the inputs."""
    found: _Found = {}
    for root in request.inputs:
        for folder, file in find_tiffs(root):
            found.setdefault((fold(folder), fold(file.name)), []).append(file)
    if not found:
        raise BadUse(f"{listed(request.inputs)}: no TIFF and no zip of a plate in it")
    return found


def _locate(name: str, plate: str, found: _Found) -> ImageFile:
    """The file of a table's '<PathName>/<FileName>': same file name, in a folder of that plate."""
    path = PurePosixPath(name)
    for folder in dict.fromkeys((path.parent.name, plate)):
        if files := found.get((fold(folder), fold(path.name))):
            return _only(files, path)
    return ImageFile(name)


def _only(files: list[ImageFile], path: PurePosixPath) -> ImageFile:
    """The one of some files of one name that is meant.

    A loose file is preferred to its zip, and one at the very path that the table gives to others.

    Raises:
      BadData: several are as good, and not the same.
    """
    loose = [file for file in files if not file.member]
    there = [
        file for file in loose if PurePosixPath(file.path).parts[-len(path.parts) :] == path.parts
    ]
    best = there or loose or files
    different = {
        (file.member_bytes, file.member_crc) if file.member else file.path for file in best
    }
    if len(different) > 1:
        raise BadData(f"two files of one channel: {best[0].where} and {best[1].where}; keep one")
    return best[0]


def _unlisted(table: pd.DataFrame, found: _Found, image_csv: str) -> list[str]:
    """Says how many TIFFs of the table's plates are on none of its rows."""
    columns = [f"{name}_file" for name in CHANNELS]
    known = {fold(PurePosixPath(path).name) for name in columns for path in table[name]}
    plates = set(map(fold, table["plate"]))
    strays = [
        files[0].where
        for (folder, name), files in found.items()
        if folder in plates and name not in known
    ]
    if not strays:
        return []
    return [f"{plural(len(strays), 'TIFF')} on no row of {image_csv} ({listed(strays)})"]


# The metadata of every field of a release.
RELEASE_COLUMNS = (
    "plate",
    "well",
    "site",
    "batch",
    "compound",
    "concentration",
    "moa",
    "replicate",
)


def annotated_table(request: Request) -> tuple[pd.DataFrame, dict[str, str], list[str]]:
    """Reads the tables that are named, or lie in or above an input.

    Returns:
      `read_image_csv`'s table with MoAs, sorted by plate, well and site; the paths of the tables,
      'image table' and 'MoA table' if any; notes on names in them.

    Raises:
      BadUse: a table cannot be found, or a plate that is asked for is not in it.
      BadData: a table cannot be read, or the two do not fit together.
    """
    image_csv = _table_path(request.image_csv, IMAGE_CSV, request.inputs)
    if image_csv is None:
        raise BadUse(f"no {IMAGE_CSV} in {listed(request.inputs)} or above: name it, --image_csv")
    moa_csv = _table_path(request.moa_csv, MOA_CSV, request.inputs)
    if moa_csv is None and request.annotated:
        raise BadUse(
            f"no {MOA_CSV} in {listed(request.inputs)} or above: name it with --moa_csv, or "
            "build all wells with --config=all"
        )
    names = request.names()
    table = bbbc021.read_image_csv(image_csv, names)
    names.note_missing("compound", (table["compound"] == "").to_numpy())
    names.note_missing("concentration", table["concentration"].isna().to_numpy())
    table = _with_moa(table, image_csv, moa_csv, names)
    unknown = sorted(set(request.plates) - set(table["plate"]))
    if unknown:
        raise BadUse(f"--plates={','.join(unknown)}: not in {image_csv}")
    table = table.sort_values(["plate", "well", "site"], kind="stable")
    tables = {"image table": str(image_csv)} | ({"MoA table": str(moa_csv)} if moa_csv else {})
    return table, tables, names.notes


def _with_moa(
    table: pd.DataFrame, image_csv: Path, moa_csv: Path | None, names: Names
) -> pd.DataFrame:
    """Adds the mechanism of action; '' everywhere where there is no table of them."""
    if moa_csv is None:
        return table.assign(moa="")
    moa = bbbc021.read_moa_csv(moa_csv, names)
    try:
        annotated = bbbc021.annotate(table, moa)
    except BadData as error:
        raise BadData(f"{image_csv} and {moa_csv}: {error}") from error
    bbbc021.require_imaged(moa, table, moa_csv, image_csv)
    return annotated


def wanted_rows(table: pd.DataFrame, request: Request) -> pd.DataFrame:
    """The rows that the configuration and `plates` ask for."""
    kept = table["plate"].isin(request.plates) if request.plates else table["plate"].notna()
    if request.annotated:
        kept &= (table["moa"] != "") | is_control(table["compound"])
    return table[kept]


def check_plates(request: Request, wanted: pd.DataFrame, found: set[str]) -> None:
    """Checks that what --plates names is there.

    Args:
      request: its `plates` are checked.
      wanted: `wanted_rows`'s table.
      found: the plates that files were found of.

    Raises:
      BadUse: a plate has no wanted well, or no file.
    """
    unwanted = sorted(set(request.plates) - set(wanted["plate"]))
    if unwanted:
        raise BadUse(
            f"--plates={','.join(unwanted)}: no well on it has a mechanism of action or is a "
            "control; --config=all takes all wells"
        )
    absent = sorted(set(request.plates) - found)
    if absent:
        raise BadUse(f"--plates={','.join(absent)}: no file of it in {listed(request.inputs)}")


def _table_path(given: Path | None, name: str, inputs: Sequence[Path]) -> Path | None:
    """The table named by a flag, else in or above an input, else None."""
    if given is not None:
        return given
    places = [place / name for root in inputs for place in (root, root.absolute().parent)]
    return next((path for path in places if path.is_file()), None)


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table by column name."""
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def _new_field(row: dict[str, Any], channels: Sequence[str], found: _Found, z: str) -> FieldFiles:
    """A field of a row of the image table, with its files."""
    files = (_locate(row[f"{name}_file"], row["plate"], found) for name in channels)
    return FieldFiles(*name_and_metadata(row), tuple(files), selection=Selection(z=z))


def name_and_metadata(row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name '<plate>/<well>/s<site>' and the metadata of a row of `annotated_table`."""
    metadata = {name: COLUMNS[name](row[name]) for name in RELEASE_COLUMNS}
    return f"{metadata['plate']}/{metadata['well']}/s{metadata['site']}", metadata
