"""BBBC021's image and MoA tables."""

import math
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pandas as pd

from cellclr_jax.data.columns import SYNONYMS, set_controls
from cellclr_jax.data.names import Names, is_missing
from cellclr_jax.data.tables.csv import (
    amount_or_nan,
    parse,
    read_columns,
    reject_duplicates,
    require_text,
    whole,
)
from cellclr_jax.errors import BadData

CHANNELS = ("dna", "tubulin", "actin")
"""Channels in the order of the image table."""
IMAGE_CSV = "BBBC021_v1_image.csv"
MOA_CSV = "BBBC021_v1_moa.csv"
# Beginning of the names of zips; the plate follows.
ZIP_PREFIX = "BBBC021_v1_images_"
RELEASE_URL = "https://data.broadinstitute.org/bbbc/BBBC021"

# Names of each column in lower case, BBBC021's first.
_IMAGE_COLUMNS = {
    "dna_name": ("image_filename_dapi", "image_filename_dna"),
    "dna_path": ("image_pathname_dapi", "image_pathname_dna"),
    "tubulin_name": ("image_filename_tubulin",),
    "tubulin_path": ("image_pathname_tubulin",),
    "actin_name": ("image_filename_actin",),
    "actin_path": ("image_pathname_actin",),
    **{name: SYNONYMS[name] for name in ("plate", "well", "compound", "concentration")},
}
_OPTIONAL_IMAGE_COLUMNS = {name: SYNONYMS[name] for name in ("replicate", "site", "batch")}
_MOA_COLUMNS = {name: SYNONYMS[name] for name in ("compound", "concentration", "moa")}
_SITE = re.compile(r"_s(\d+)_", re.IGNORECASE)


def read_image_csv(path: str | Path, names: Names | None = None) -> pd.DataFrame:
    """Reads the image table: one row for each field of view.

    Args:
      path: BBBC021_v1_image.csv or a file with its columns (names match in any case; `Replicate`,
        `Metadata_Site` and `Metadata_Batch` may be missing).
      names: register of the tables that are read together; None: only this one.

    Returns:
      Columns plate, well, batch, compound (str, '' if unknown), site, replicate (int),
      concentration (float, µM, >= 0, rounded to be grouped; if unknown 0 for controls, otherwise
      NaN), dna_file, tubulin_file, actin_file ('<PathName>/<FileName>') and row (the line of the
      file, from 1). Without their columns, the batch is the plate's name up to its first
      underscore, and the site the number in `_s<n>_` of the DNA file's name.

    Raises:
      BadUse: there is no such file.
      BadData: a column or value is missing or unparsable, a field or a DNA file is listed twice,
        or two fields of a well differ in their treatment.
    """
    names = names or Names()
    table = read_columns(path, _IMAGE_COLUMNS, _OPTIONAL_IMAGE_COLUMNS)
    for column in ("plate", "well", "compound"):
        table[column] = names.merge(column, table[column])
    for column in ("plate", "well", "dna_name"):
        require_text(table, column, path)
    rows = table["row"].tolist()
    images = pd.DataFrame(
        {
            "plate": table["plate"],
            "well": table["well"],
            "site": _sites(table, path),
            "batch": names.merge("batch", _batches(table, path)),
            "compound": table["compound"],
            "concentration": set_controls(_amounts(table, path), table["compound"]),
            "replicate": parse(table["replicate"], rows, _replicate, path),
            **{f"{channel}_file": _files(table, channel) for channel in CHANNELS},
            "row": rows,
        }
    )
    reject_duplicates(images, ["plate", "well", "site"], path)
    # Cells of an image in two fields would occur twice, under two names.
    reject_duplicates(images, ["dna_file"], path)
    reject_mixed_wells(images, path)
    return images


def read_moa_csv(path: str | Path, names: Names | None = None) -> pd.DataFrame:
    """Reads the MoA table: one row for each treatment (compound and concentration).

    Args:
      path: BBBC021_v1_moa.csv or a file with columns compound, concentration, moa.
      names: register of the tables that are read together; None: only this one.

    Returns:
      Columns compound, moa (str), concentration (float, µM, >= 0; if unknown 0 for controls,
      otherwise NaN) and row (the line of the file). Rows without an MoA are left out.

    Raises:
      BadUse: there is no such file.
      BadData: a column or compound is missing, a concentration unparsable, or a treatment is
        listed with two MoAs.
    """
    names = names or Names()
    table = read_columns(path, _MOA_COLUMNS, {})
    for column in ("compound", "moa"):
        table[column] = names.merge(column, table[column])
    require_text(table, "compound", path)
    table["concentration"] = set_controls(_amounts(table, path), table["compound"])
    table = table[table["moa"] != ""].drop_duplicates(["compound", "concentration", "moa"])
    reject_duplicates(table, ["compound", "concentration"], path)
    return table.reset_index(drop=True)


def annotate(images: pd.DataFrame, moa: pd.DataFrame) -> pd.DataFrame:
    """Adds the mechanism of action to each row by compound and concentration.

    Args:
      images: any table with columns compound (str) and concentration (float).
      moa: `read_moa_csv`'s table.

    Returns:
      A copy of `images`, rows in the same order, with column moa ('' where not annotated).

    Raises:
      BadData: no row's treatment is in the MoA table (the two files do not belong together).
    """
    names = dict(zip(_treatments(moa), moa["moa"], strict=True))
    found = [names.get(treatment, "") for treatment in _treatments(images)]
    if len(images) and not any(found):
        first = images.iloc[0]
        raise BadData(
            f"none of the {len(images)} rows has a treatment of the MoA table: the first is "
            f"{first['compound']!r} at {first['concentration']:g}, the MoA table begins with "
            f"{moa['compound'].iloc[0]!r} at {moa['concentration'].iloc[0]:g}"
            if len(moa)
            else "the MoA table is empty"
        )
    return images.assign(moa=found)


def require_imaged(
    moa: pd.DataFrame, images: pd.DataFrame, moa_csv: str | Path, image_csv: str | Path
) -> None:
    """Raises BadData if a treatment of the MoA table is not in the image table.

    The wells of a misspelt one would otherwise be lost.

    Args:
      moa: `read_moa_csv`'s table, of the file `moa_csv`.
      images: `read_image_csv`'s table, of the file `image_csv`.
    """
    imaged = set(_treatments(images))
    for row, (compound, dose) in zip(moa["row"], _treatments(moa), strict=True):
        if (compound, dose) in imaged:
            continue
        doses = sorted(value for name, value in imaged if name == compound and value is not None)
        found = " at any concentration"
        if doses:
            found = f" (its concentrations there are {', '.join(f'{value:g}' for value in doses)})"
        at = "no concentration" if dose is None else f"{dose:g}"
        raise BadData(
            f"{moa_csv}, line {row}: compound {compound!r} at {at} is on no row of "
            f"{image_csv}{found}"
        )


def _amounts(table: pd.DataFrame, path: str | Path) -> list[float]:
    """Parses the concentrations; NaN if unknown."""
    read = partial(amount_or_nan, "concentration")
    return parse(table["concentration"], table["row"].tolist(), read, path)


def _replicate(text: str) -> int:
    """Parses a replicate's whole number; 1 if it is missing."""
    return 1 if is_missing(text) else whole("replicate", text)


def _sites(table: pd.DataFrame, path: str | Path) -> list[int]:
    """Parses the sites from their column, or from the `_s<n>_` of the DNA file's name."""

    def from_name(name: str) -> int:
        match = _SITE.search(name)
        if match is None:
            raise ValueError(
                f"no site in the file name {name!r}: '_s<number>_' or a column Metadata_Site "
                "was expected"
            )
        return int(match.group(1))

    if (table["site"] == "").all():
        return parse(table["dna_name"], table["row"].tolist(), from_name, path)
    return parse(table["site"], table["row"].tolist(), lambda text: whole("site", text), path)


def _batches(table: pd.DataFrame, path: str | Path) -> list[str]:
    """Returns the batches from their column, or the plates' names up to the first underscore."""

    def from_plate(plate: str) -> str:
        batch, underscore, _ = plate.partition("_")
        if not (batch and underscore):
            raise ValueError(
                f"plate {plate!r} has no batch in its name: '<batch>_<plate>' or a column "
                "Metadata_Batch was expected"
            )
        return batch

    if (table["batch"] == "").all():
        return parse(table["plate"], table["row"].tolist(), from_plate, path)
    require_text(table, "batch", path)
    return table["batch"].tolist()


def _files(table: pd.DataFrame, channel: str) -> list[str]:
    """'<PathName>/<FileName>' with forward slashes."""
    paths = (path.replace("\\", "/").rstrip("/") for path in table[f"{channel}_path"])
    names = table[f"{channel}_name"]
    return [f"{path}/{name}" if path else name for path, name in zip(paths, names, strict=True)]


def _treatments(table: pd.DataFrame) -> Iterable[tuple[str, float | None]]:
    """(compound, concentration) of each row; None for an unknown concentration."""
    doses = (None if math.isnan(dose) else dose for dose in table["concentration"])
    return zip(table["compound"], doses, strict=True)


def reject_mixed_wells(images: pd.DataFrame, path: str | Path) -> None:
    """Raises BadData if two fields of a well differ in their treatment.

    Args:
      images: plate, well, compound, concentration, and row, the line of the table; 0 if unknown.
      path: the table, for the message.
    """
    treatment = images.drop_duplicates(["plate", "well", "compound", "concentration"])
    mixed = treatment[treatment.duplicated(["plate", "well"])]
    if len(mixed):
        row = mixed.iloc[0]
        line = f", line {row['row']}" if row["row"] else ""
        raise BadData(
            f"{path}{line}: well {row['well']} of plate "
            f"{row['plate']} has {row['compound']!r} at {row['concentration']:g}, and another "
            "treatment in an earlier field"
        )
