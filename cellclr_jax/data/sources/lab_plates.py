"""Plates of any lab, from an image table (see `layouts`)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cellclr_jax.console import listed, plural
from cellclr_jax.data.columns import COLUMNS, SYNONYMS, plain_name, set_controls
from cellclr_jax.data.names import Names, fold, is_missing, well_position
from cellclr_jax.data.readers import plane_type, read_plane
from cellclr_jax.data.readers.find_files import ImageFile
from cellclr_jax.data.sources.layouts import KEY, ImageTable, read_layout
from cellclr_jax.data.sources.source import Field, Request, Source
from cellclr_jax.data.tables.csv import amount_or_nan, parse, read_text_table
from cellclr_jax.errors import BadData, BadUse

MOST_CHANNELS = 16
_NUCLEI = re.compile(r"dna|dapi|hoechst", re.IGNORECASE)
# Fields whose files are opened to find the type of the pixels.
_FIELDS_OPENED = 20


@dataclass(frozen=True)
class PlateField(Field):
    """A field of view with one file, or one for each plane of a z axis, for each channel.

    Attributes:
      planes: the files of each channel; several are projected to their maximum.
      dtype: of a pixel, 'uint8' or 'uint16'.
      problem: why the field cannot be read, known from the image table; '' if nothing is wrong.
    """

    planes: tuple[tuple[ImageFile, ...], ...]
    dtype: str = "uint16"
    problem: str = ""

    @property
    def absent(self) -> str:
        """The problem, or the missing files."""
        missing = [file.name for files in self.planes for file in files if not file.path]
        return self.problem or (f"no file {listed(missing)}" if missing else "")

    @property
    def file_names(self) -> tuple[str, ...]:
        """The names of all files."""
        return tuple(file.name for files in self.planes for file in files)

    def fingerprint(self) -> str:
        """Names, sizes and times of the files, by channel."""
        return "\n".join(" ".join(file.stamp() for file in files) for files in self.planes)

    def contents(self) -> tuple[str, ...]:
        """Names and sizes of the files."""
        return tuple(f"{file.name} {file.size()}" for files in self.planes for file in files)

    def read(self) -> np.ndarray:
        """See `Field`; [H, W, C] of `dtype`."""
        channels: list[np.ndarray] = []
        for files in self.planes:
            plane = read_plane(files[0])
            for file in files[1:]:
                other = read_plane(file)
                _check_shape(other, plane, file)
                plane = np.maximum(plane, other)
            if channels:
                _check_shape(plane, channels[0], files[0])
            if plane.dtype.itemsize > np.dtype(self.dtype).itemsize:
                raise BadData(f"{files[0].where}: {plane.dtype}, {self.dtype} was expected")
            channels.append(plane.astype(self.dtype, copy=False))
        return np.stack(channels, axis=-1)


def _check_shape(plane: np.ndarray, first: np.ndarray, file: ImageFile) -> None:
    """Raises BadData if two planes of a field differ in size."""
    if plane.shape != first.shape:
        raise BadData(f"{file.where}: {plane.shape} pixels, another channel has {first.shape}")


def plate_fields(request: Request) -> Source:
    """Fields of plates in any layout that `layouts` reads."""
    table, columns, notes = _described(request)
    channels = _choose_channels(table.images, request.channels)
    images = _take_planes(table.images, request.z)
    fields = [
        _field(key, group, channels, columns)
        for key, group in images.groupby(list(KEY), sort=False)
    ]
    fields.sort(key=lambda field: (field.plate, *_order(field)))
    dtype, opened = _pixel_type(fields)
    fields = [_with_type(field, dtype) for field in fields]
    names = tuple(name for name in COLUMNS if name in fields[0].metadata)
    return Source(
        fields,
        names,
        tuple(channels),
        nuclei=_nuclei_channel(tuple(channels), str(request.options.get("nuclei") or "")),
        dtype=dtype,
        tables=dict(table.tables),
        notes=[*table.notes, *notes],
        left_out=table.left_out,
        planes=opened,
    )


def _choose_channels(images: pd.DataFrame, chosen: Sequence[str]) -> dict[str, str]:
    """The channels in stored order, by their new names.

    Args:
      images: the image table.
      chosen: names, or <new>=<old>; empty: all in the order of the table.

    Raises:
      BadUse: a channel that the plates do not have, or more than 16.
    """
    found = {fold(name): name for name in images["channel"].drop_duplicates()}
    if not chosen:
        named = {name: name for name in found.values()}
    else:
        named = {}
        for text in chosen:
            new, _, old = text.partition("=")
            key = fold(old or new)
            match = found.get(key) or found.get(key.removeprefix("orig"))
            if match is None:
                raise BadUse(f"--channels={text}: the plates have {listed(list(found.values()))}")
            named[new] = match
    if len(named) > MOST_CHANNELS:
        raise BadUse(
            f"{len(named)} channels ({listed(list(named))}), at most {MOST_CHANNELS} are stored: "
            "choose some by --channels"
        )
    return named


def _nuclei_channel(channels: tuple[str, ...], chosen: str) -> str:
    """The channel in which nuclei are found; BadUse if it is not certain."""
    if chosen:
        match = next((name for name in channels if fold(name) == fold(chosen)), None)
        if match is None:
            raise BadUse(f"--nuclei={chosen}: there is no such channel, but {listed(channels)}")
        return match
    stains = [name for name in channels if _NUCLEI.search(name)]
    if len(stains) != 1:
        raise BadUse(
            f"--nuclei=CHANNEL is needed: which of {listed(channels)} shows nuclei is unknown"
        )
    return stains[0]


def _take_planes(images: pd.DataFrame, z: str) -> pd.DataFrame:
    """The images of one plane, or of all with --z=max; BadUse if there are several and no --z."""
    planes = sorted(set(images["z"]))
    several = images.groupby([*KEY, "channel"])["z"].nunique().max() > 1
    if z and z != "max":
        if int(z) not in planes:
            raise BadUse(f"--z={z}: the plates have the planes {listed(list(map(str, planes)))}")
        return images[images["z"] == int(z)]
    if several and not z:
        raise BadUse(
            f"{len(planes)} planes of a z axis ({planes[0]} to {planes[-1]}): choose one by --z=N, "
            "or --z=max"
        )
    return images


def _field(
    key: tuple[str, ...], group: pd.DataFrame, channels: Mapping[str, str], columns: pd.DataFrame
) -> PlateField:
    """A field of view with its files and metadata."""
    metadata = dict(columns.loc[key])
    metadata = {name: metadata[name] for name in columns.columns}
    name = "_".join(str(part) for part in key if part)
    planes, problem = [], ""
    for old in channels.values():
        rows = group[group["channel"] == old].sort_values("z")
        files = tuple(_image_file(row) for row in rows.itertuples())
        if not files:
            problem = problem or f"no image of channel {old}"
        elif rows["z"].duplicated().any():
            problem = problem or (
                f"two images of channel {old}: {files[0].name} and {files[1].name}; keep one"
            )
        planes.append(files or (ImageFile(f"channel {old}"),))
    return PlateField(name, metadata, tuple(planes), problem=problem)


def _image_file(row: Any) -> ImageFile:
    """The file of a row of the image table; without a path if it does not exist."""
    path = Path(row.path)
    exists = path.is_dir() if row.index >= 0 else path.is_file()
    return ImageFile(path.name, str(path) if exists else "", number=max(row.index, 0))


def _order(field: PlateField) -> tuple[Any, ...]:
    """Sorts fields of a plate by well and site, numbers by their value."""
    well, site = str(field.metadata.get("well", "")), str(field.metadata.get("site", ""))
    return (*(well_position(well) or (0, 0)), well, site.zfill(9))


def _pixel_type(fields: Sequence[PlateField]) -> tuple[str, str]:
    """The type of stored pixels, the widest of some fields, and a description of the planes."""
    types, errors = set(), []
    whole = [field for field in fields if not field.absent]
    if not whole:
        raise BadData(
            f"none of {plural(len(fields), 'field')} is complete: {fields[0].name}: "
            f"{fields[0].absent}"
        )
    for field in whole[:: -(-len(whole) // _FIELDS_OPENED)]:
        for files in field.planes:
            try:
                types.add(plane_type(files[0]))
            except BadData as error:
                errors.append(error)
    if not types:
        raise errors[0]
    most = max(len(files) for files in whole[0].planes)
    planes = "one plane" if most == 1 else f"maximum of up to {most} planes"
    return ("uint16" if "uint16" in types else "uint8"), planes


def _with_type(field: PlateField, dtype: str) -> PlateField:
    return PlateField(field.name, field.metadata, field.planes, dtype, field.problem)
