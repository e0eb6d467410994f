"""Plates in BBBC021's layout, public or simulated."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from cellclr_jax.console import listed, plural
from cellclr_jax.data.columns import COLUMNS, is_control
from cellclr_jax.data.names import fold
from cellclr_jax.data.readers.find_files import ImageFile, check_inputs, find_tiffs
from cellclr_jax.data.readers.formats import Selection
from cellclr_jax.data.sources.source import Field, FieldFiles, Request, Source
from cellclr_jax.data.tables import bbbc021
from cellclr_jax.data.tables.bbbc021 import CHANNELS, IMAGE_CSV, MOA_CSV
from cellclr_jax.data.tables.nuclei import read_centers
from cellclr_jax.errors import BadData, BadUse

NUCLEI = "dna"
"""The channel in which nuclei are found."""

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
"""The metadata of every field of a release."""

# Files by folder and name, both as `fold` gives them.
_Found = dict[tuple[str, str], list[ImageFile]]


def raw_fields(request: Request) -> Source:
    """Fields of plates in folders of TIFFs or zips; files are found by plate folder and name."""
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
    fields: list[Field] = []
    present = set()
    for row in table.to_dict("records"):
        name, metadata = name_and_metadata(row)
        files = tuple(_locate(row[f"{one}_file"], row["plate"], found) for one in channels)
        fields.append(FieldFiles(name, metadata, files, selection=Selection(z=request.z)))
        if any(file.path for file in files):
            present.add(row["plate"])
    # A plate without a single file was not fetched; one with a gap has lost something.
    absent = sorted(set(table["plate"]) - present)
    check_plates(request, table, present)
    if not present:
        raise BadData(
            f"{listed(request.inputs)}: none of its folders "
            f"({listed([folder for folder, _ in found])}) holds a wanted file of "
            f"{tables['image table']}, such as "
            f"{table['dna_file'].iloc[0] if len(table) else 'none: no row is wanted'}"
        )
    fields = [field for field in fields if field.plate in present]
    problems: list[tuple[str, str]] = []
    if request.centers is not None:
        fields, problems, about_centers = read_centers(request.centers, fields)
        notes = [*notes, *about_centers]
        tables["centres"] = str(request.centers)
    return Source(
        fields,
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
    """Lists the TIFFs of the inputs."""
    found: _Found = {}
    for root in request.inputs:
        for folder, file in find_tiffs(root):
            found.setdefault((fold(folder), fold(file.name)), []).append(file)
    if not found:
        raise BadUse(f"{listed(request.inputs)}: no TIFF and no zip of a plate in it")
    return found


def _locate(name: str, plate: str, found: _Found) -> ImageFile:
    """Finds the file of a table's '<PathName>/<FileName>' by its name and the name of its folder.

    The folder is the last of <PathName>, or the plate. Of several files, one at exactly that path
    is preferred, then one outside zips.

    Raises:
      BadData: several files with different content remain.
    """
    path = PurePosixPath(name)
    folders = dict.fromkeys((path.parent.name, plate))
    files = next(filter(None, (found.get((fold(one), fold(path.name))) for one in folders)), None)
    if not files:
        return ImageFile(name)
    loose = [file for file in files if not file.member]
    exact = [
        file for file in loose if PurePosixPath(file.path).parts[-len(path.parts) :] == path.parts
    ]
    best = exact or loose or files
    if (
        len({(file.member_bytes, file.member_crc) if file.member else file.path for file in best})
        > 1
    ):
        raise BadData(f"two files of one channel: {best[0].where} and {best[1].where}; keep one")
    return best[0]


def _unlisted(table: pd.DataFrame, found: _Found, image_csv: str) -> list[str]:
    """Describes the TIFFs in the table's plates that are on none of its rows."""
    paths = (path for name in CHANNELS for path in table[f"{name}_file"])
    listed_names = {fold(PurePosixPath(path).name) for path in paths}
    plates = set(map(fold, table["plate"]))
    strays = [
        files[0].where
        for (folder, name), files in found.items()
        if folder in plates and name not in listed_names
    ]
    if not strays:
        return []
    return [f"{plural(len(strays), 'TIFF')} on no row of {image_csv} ({listed(strays)})"]


def annotated_table(request: Request) -> tuple[pd.DataFrame, dict[str, str], list[str]]:
    """Reads the image and MoA tables that flags name, or that lie in or above an input.

    Returns:
      `read_image_csv`'s table with column moa, sorted by plate, well and site; the paths of
      'image table' and, if any, 'MoA table'; notes on names in them.

    Raises:
      BadUse: a table or a requested plate does not exist.
      BadData: a table is unreadable, or the two do not belong together.
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
    if moa_csv is None:
        table["moa"] = ""
    else:
        moa = bbbc021.read_moa_csv(moa_csv, names)
        try:
            table = bbbc021.annotate(table, moa)
        except BadData as error:
            raise BadData(f"{image_csv} and {moa_csv}: {error}") from error
        bbbc021.require_imaged(moa, table, moa_csv, image_csv)
    unknown = sorted(set(request.plates) - set(table["plate"]))
    if unknown:
        raise BadUse(f"--plates={','.join(unknown)}: not in {image_csv}")
    table = table.sort_values(["plate", "well", "site"], kind="stable")
    tables = {"image table": str(image_csv)} | ({"MoA table": str(moa_csv)} if moa_csv else {})
    return table, tables, names.notes


def wanted_rows(table: pd.DataFrame, request: Request) -> pd.DataFrame:
    """Selects rows of the request's plates (default: all); if annotated, with MoA or controls."""
    if request.plates:
        table = table[table["plate"].isin(request.plates)]
    if request.annotated:
        table = table[(table["moa"] != "") | is_control(table["compound"])]
    return table


def check_plates(request: Request, wanted: pd.DataFrame, found: set[str]) -> None:
    """Raises BadUse if a requested plate has no row in `wanted_rows`'s table, or no file.

    Args:
      request: its `plates` are checked.
      wanted: `wanted_rows`'s table.
      found: the plates with a file.
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


def _table_path(flag: Path | None, name: str, inputs: Sequence[Path]) -> Path | None:
    """Finds the table that a flag names, otherwise the first one in or above an input."""
    if flag is not None:
        return flag
    places = [place / name for root in inputs for place in (root, root.absolute().parent)]
    return next((path for path in places if path.is_file()), None)


def name_and_metadata(row: Mapping[Any, Any]) -> tuple[str, dict[str, Any]]:
    """Returns the name '<plate>/<well>/s<site>' and the metadata of a row of `annotated_table`."""
    metadata = {name: COLUMNS[name](row[name]) for name in RELEASE_COLUMNS}
    return f"{metadata['plate']}/{metadata['well']}/s{metadata['site']}", metadata
