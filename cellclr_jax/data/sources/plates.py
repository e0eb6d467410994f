"""Fields of whole plates: TIFFs in folders or zips, or a simulated release."""

from pathlib import PurePosixPath

import pandas as pd

from cellclr_jax.cli import BadData, BadUse
from cellclr_jax.data.fields import Request, Source
from cellclr_jax.data.images.plate_files import ImageFile, find_tiffs
from cellclr_jax.data.tables.nuclei_tables import read_centers
from cellclr_jax.data.tables.release_tables import (
    RELEASE_COLUMNS,
    annotated_table,
    check_inputs,
    check_plates,
    named,
    new_field,
    records,
    some_of,
    wanted_rows,
)

RAW_CHANNELS = ("dna", "tubulin", "actin")

# The files of one name in folders of one name.
_Found = dict[tuple[str, str], list[ImageFile]]


def raw_fields(request: Request) -> Source:
    """Fields of raw plates: folders of TIFFs or zips, found by plate folder and file name."""
    check_inputs(request.inputs)
    channels = request.channels or RAW_CHANNELS
    if "dna" not in channels or not set(channels) <= set(RAW_CHANNELS):
        raise BadUse(
            f"--channels={','.join(channels)}: some of {', '.join(RAW_CHANNELS)} were expected, "
            "dna among them (nuclei are found in it)"
        )
    everything, tables = annotated_table(request)
    table = wanted_rows(everything, request)
    found = _find(request)
    fields = [
        new_field(
            row, tuple(_locate(row[f"{name}_file"], row["plate"], found) for name in channels)
        )
        for row in records(table)
    ]
    # A plate without a single file was not fetched; one with a gap has lost something.
    present = {field.plate for field in fields if any(file.path for file in field.files)}
    absent = sorted({field.plate for field in fields} - present)
    check_plates(request, table, present)
    if not present:
        raise BadData(
            f"{named(request.inputs)}: none of its folders "
            f"({some_of([folder for folder, _ in found])}) holds a wanted file of "
            f"{tables['image table']}, such as "
            f"{table['dna_file'].iloc[0] if len(table) else 'none: no row is wanted'}"
        )
    kept = [field for field in fields if field.plate in present]
    problems: list[tuple[str, str]] = []
    if request.centers is not None:
        kept, problems = read_centers(request.centers, kept)
        tables["centres"] = str(request.centers)
    return Source(
        kept,
        RELEASE_COLUMNS,
        channels,
        tables=tables,
        problems=problems,
        absent_plates=absent,
        notes=_unlisted(everything, found, tables["image table"]),
    )


def simulated_fields(request: Request) -> Source:
    """Writes a simulated release into the input folder, unless it is there, and reads it."""
    from cellclr_jax.data import simulator

    if len(request.inputs) != 1:
        raise BadUse("--source=simulated writes into one --input folder")
    settings = simulator.SimulatorSettings(**request.simulation)
    simulator.simulate_release(
        request.inputs[0], settings, workers=request.workers, overwrite=request.overwrite
    )
    return raw_fields(request)


def _find(request: Request) -> _Found:
    """The TIFFs of the inputs."""
    found: _Found = {}
    for root in request.inputs:
        for folder, file in find_tiffs(root):
            found.setdefault((folder, file.name), []).append(file)
    if not found:
        raise BadUse(f"{named(request.inputs)}: no TIFF and no zip of a plate in it")
    return found


def _locate(name: str, plate: str, found: _Found) -> ImageFile:
    """The file of a table's '<PathName>/<FileName>': same file name, in a folder of that plate."""
    path = PurePosixPath(name)
    for folder in dict.fromkeys((path.parent.name, plate)):
        if files := found.get((folder, path.name)):
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
    columns = [f"{name}_file" for name in RAW_CHANNELS]
    listed = {PurePosixPath(path).name for name in columns for path in table[name]}
    plates = set(table["plate"])
    strays = [
        files[0].where
        for (folder, name), files in found.items()
        if folder in plates and name not in listed
    ]
    if not strays:
        return []
    return [f"{len(strays)} TIFFs are on no row of {image_csv}, such as {some_of(strays)}"]
