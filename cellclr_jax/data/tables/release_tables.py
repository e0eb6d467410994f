"""What the tables of a release say about its fields, and which of them a build asks for."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cellclr_jax.cli import BadData, BadUse
from cellclr_jax.data.fields import COLUMNS, Field, Request
from cellclr_jax.data.images.plate_files import ImageFile
from cellclr_jax.data.tables import metadata
from cellclr_jax.data.tables.controls import is_control
from cellclr_jax.data.tables.release_names import IMAGE_CSV, MOA_CSV

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


def check_inputs(inputs: Sequence[Path]) -> None:
    """Raises BadUse where an input is named that does not exist, or none is."""
    if not inputs:
        raise BadUse(
            "--input=DIR is needed: the folder (or zip) that holds the images; "
            "--source=raw --download fetches those of BBBC021"
        )
    for path in inputs:
        if not path.exists():
            raise BadUse(f"{path}: no such folder or zip (--input)")


def annotated_table(request: Request) -> tuple[pd.DataFrame, dict[str, str]]:
    """Reads the tables that are named, or lie beside or above an input.

    Returns:
      `read_image_csv`'s table with MoAs, sorted by plate, well and site, concentrations rounded
      so that they can be grouped; the paths of the tables, 'image table' and 'MoA table' if any.

    Raises:
      BadUse: a table cannot be found, or a plate that is asked for is not in it.
      BadData: a table cannot be read, or the two do not fit together.
    """
    image_csv = _table_path(request.image_csv, IMAGE_CSV, request.inputs)
    if image_csv is None:
        raise BadUse(f"no {IMAGE_CSV} in {named(request.inputs)} or above: name it, --image_csv")
    moa_csv = _table_path(request.moa_csv, MOA_CSV, request.inputs)
    if moa_csv is None and request.annotated:
        raise BadUse(
            f"no {MOA_CSV} in {named(request.inputs)} or above: name it with --moa_csv, or "
            "build all wells with --config=all"
        )
    table = metadata.read_image_csv(image_csv)
    rounded = metadata.round_concentrations(table["concentration"])
    table = _with_moa(table.assign(concentration=rounded), image_csv, moa_csv)
    unknown = sorted(set(request.plates) - set(table["plate"]))
    if unknown:
        raise BadUse(f"--plates={','.join(unknown)}: not in {image_csv}")
    table = table.sort_values(["plate", "well", "site"], kind="stable")
    tables = {"image table": str(image_csv)} | ({"MoA table": str(moa_csv)} if moa_csv else {})
    return table, tables


def _with_moa(table: pd.DataFrame, image_csv: Path, moa_csv: Path | None) -> pd.DataFrame:
    """Adds the mechanism of action; '' everywhere where there is no table of them."""
    if moa_csv is None:
        return table.assign(moa="")
    moa = metadata.read_moa_csv(moa_csv)
    try:
        annotated = metadata.annotate(table, moa)
    except BadData as error:
        raise BadData(f"{image_csv} and {moa_csv}: {error}") from error
    metadata.require_imaged(moa, table, moa_csv, image_csv)
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
        raise BadUse(f"--plates={','.join(absent)}: no file of it in {named(request.inputs)}")


def _table_path(given: Path | None, name: str, inputs: Sequence[Path]) -> Path | None:
    """The table named by a flag, else beside or above an input, else None."""
    if given is not None:
        return given
    places = [place / name for root in inputs for place in (root, root.absolute().parent)]
    return next((path for path in places if path.is_file()), None)


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table by column name."""
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def new_field(
    row: dict[str, Any], files: tuple[ImageFile, ...], numbers: Sequence[int] = ()
) -> Field:
    """A field '<plate>/<well>/s<site>' from a row of the image table.

    Args:
      row: of `annotated_table`.
      files: its channels, or crops.
      numbers: of the crops; empty where nuclei have yet to be found.
    """
    metadata = {name: COLUMNS[name](row[name]) for name in RELEASE_COLUMNS}
    name = f"{metadata['plate']}/{metadata['well']}/s{metadata['site']}"
    return Field(name, metadata, files, tuple(f"{name}/{number}" for number in numbers))


def named(paths: Sequence[Path]) -> str:
    """Paths in an error."""
    return ", ".join(str(path) for path in paths)


def some_of(names: Sequence[str], most: int = 3) -> str:
    """The first few names."""
    counted = list(Counter(names))
    return ", ".join(counted[:most]) + (", …" if len(counted) > most else "")
