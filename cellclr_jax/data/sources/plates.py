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
from cellclr_jax.data.names import Names, fold, well_position
from cellclr_jax.data.readers import MOST_CHANNELS, plane_type, read_plane
from cellclr_jax.data.readers.find_files import ImageFile
from cellclr_jax.data.readers.zarr_planes import ZarrPlane
from cellclr_jax.data.sources.layouts import KEY, ImageTable, read_layout
from cellclr_jax.data.sources.source import Field, Request, Source
from cellclr_jax.data.tables.bbbc021 import reject_mixed_wells
from cellclr_jax.data.tables.csv import amount_or_nan, parse, read_text_table
from cellclr_jax.errors import BadData, BadUse

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

    planes: tuple[tuple[ImageFile | ZarrPlane, ...], ...]
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


def _check_shape(plane: np.ndarray, first: np.ndarray, file: ImageFile | ZarrPlane) -> None:
    """Raises BadData if two planes of a field differ in size."""
    if plane.shape != first.shape:
        raise BadData(f"{file.where}: {plane.shape} pixels, another channel has {first.shape}")


def plate_fields(request: Request) -> Source:
    """Fields of plates in any layout that `layouts` reads."""
    table, columns, notes = _described(request)
    channels = _choose_channels(table.images, request.channels)
    images = _take_planes(table.images, request.z)
    found: dict[tuple[str, ...], dict[str, list[tuple[int, ImageFile | ZarrPlane]]]] = {}
    places = zip(images["path"], images["place"], strict=True)
    numbers = zip(images["channel"], images["z"].tolist(), strict=True)
    keys = images[list(KEY)].itertuples(index=False, name=None)
    for key, (channel, z), (path, place) in zip(keys, numbers, places, strict=True):
        images_of = found.setdefault(tuple(map(str, key)), {})
        images_of.setdefault(str(channel), []).append((z, _image_file(Path(path), place)))
    fields = [_field(key, files, channels, columns[key]) for key, files in found.items()]
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


def describe(source: Source) -> str:
    """Lists the plates, wells, sites, channels and assumptions of a source, for `--dry_run`."""
    fields = [field for field in source.fields if isinstance(field, PlateField)]
    plates = sorted({field.plate for field in fields})
    wells = {(field.plate, field.metadata["well"]) for field in fields}
    sites = sorted({str(field.metadata["site"]) for field in fields}, key=lambda s: s.zfill(9))
    incomplete = [f"{field.name} ({field.absent})" for field in fields if field.absent]
    first = fields[0]
    lines = [
        f"{plural(len(plates), 'plate')}: {listed(plates)}",
        f"{plural(len(wells), 'well')}, {plural(len(fields), 'field')}; sites {listed(sites)}",
        f"{plural(len(source.channels), 'channel')}: {', '.join(source.channels)}; nuclei in "
        f"{source.nuclei}",
        f"planes: {source.planes}; pixels: {source.dtype}",
        f"the first field, {first.name}:",
    ]
    for channel, files in zip(source.channels, first.planes, strict=True):
        lines.append(f"  {channel}: {', '.join(file.where for file in files)}")
    known = {name: value for name, value in first.metadata.items() if value == value}
    lines.append("  " + ", ".join(f"{name} {value!r}" for name, value in known.items()))
    if incomplete:
        lines.append(f"{plural(len(incomplete), 'incomplete field')}: {listed(incomplete)}")
    lines += [f"left out: {text}" for text in source.left_out]
    return "\n".join([*lines, *(f"note: {note}" for note in source.notes)])


def _choose_channels(images: pd.DataFrame, chosen: Sequence[str]) -> dict[str, str]:
    """Returns the channels' names in the plates by their new names, in stored order.

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
            if new in named or not new:
                raise BadUse(f"--channels={','.join(chosen)}: each channel needs a name of its own")
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
    """Chooses the channel in which nuclei are found; BadUse if it is not certain."""
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
    """Selects the images of a plane, or of all with --z=max; BadUse for several without --z."""
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
    key: tuple[str, ...],
    found: Mapping[str, list[tuple[int, ImageFile | ZarrPlane]]],
    channels: Mapping[str, str],
    metadata: Mapping[str, Any],
) -> PlateField:
    """Makes a field of view from its files, (z, file) of each channel, and metadata."""
    planes, problem = [], ""
    for old in channels.values():
        numbered = sorted(found.get(old, []), key=lambda pair: pair[0])
        files = tuple(file for _, file in numbered)
        if not files:
            problem = problem or f"no image of channel {old}"
        elif len({z for z, _ in numbered}) < len(numbered):
            problem = problem or (
                f"two images of channel {old}: {files[0].name} and {files[1].name}; keep one"
            )
        planes.append(files or (ImageFile(f"channel {old}"),))
    name = "_".join(part for part in key[:3] if part)
    return PlateField(name, metadata, tuple(planes), problem=problem)


def _image_file(path: Path, place: tuple[int, ...]) -> ImageFile | ZarrPlane:
    """Returns the file of an image, without a path if it does not exist."""
    if place or path.is_dir():
        name = f"{'/'.join(path.parts[-4:])}{list(place)}"
        return ZarrPlane(name, str(path) if path.is_dir() else "", place)
    return ImageFile(path.name, str(path) if path.is_file() else "")


def _order(field: PlateField) -> tuple[Any, ...]:
    """Sorts fields of a plate by well and site, numbers by their value."""
    well, site = str(field.metadata.get("well", "")), str(field.metadata.get("site", ""))
    return (*(well_position(well) or (0, 0)), well, site.zfill(9))


def _pixel_type(fields: Sequence[PlateField]) -> tuple[str, str]:
    """Reads the widest pixel type of a sample of fields; returns it and describes the planes."""
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


def _described(
    request: Request,
) -> tuple[ImageTable, dict[tuple[str, ...], dict[str, Any]], list[str]]:
    """Reads the layout and what is known of its wells.

    Returns:
      The image table, wells as 'A01'; by plate, well, site and time, the values of the columns of
      `COLUMNS` that are known; notes.

    Raises:
      BadUse: a setting does not fit the plates.
      BadData: an image without a well, or tables that contradict each other.
    """
    names, options = request.names(), request.options
    root = Path(options["root"]) if options.get("root") else None
    layout = read_layout(str(options.get("images") or ""), request.inputs, root, options["level"])
    _reject_shared_images(layout.images)
    images = _with_names(layout.images, names)
    nameless = images[images["well"] == ""]
    if len(nameless):
        raise BadData(f"{nameless['path'].iloc[0]}: the well is unknown")
    if request.plates:
        wanted = {fold(plate) for plate in request.plates}
        images = images[[fold(plate) in wanted for plate in images["plate"]]]
        if lacking := wanted - set(map(fold, images["plate"])):
            raise BadUse(f"--plates={listed(sorted(lacking))}: there is no such plate")
    images = _take_time(images, str(options.get("time") or ""))
    fields = images[list(KEY)].drop_duplicates().reset_index(drop=True)
    if layout.metadata is not None:
        further = _with_names(layout.metadata, names).drop_duplicates(list(KEY))
        fields = fields.merge(further, on=list(KEY), how="left")
    if options.get("platemap"):
        fields = _join_platemap(fields, Path(options["platemap"]), options, names)
    columns, notes = _typed(fields, names)
    tables = [*layout.tables.values(), *filter(None, [options.get("platemap")])]
    reject_mixed_wells(columns.assign(row=0), listed(tables) or "the plates")
    kinds = {name: COLUMNS[str(name)] for name in columns}
    keys = fields[list(KEY)].itertuples(index=False, name=None)
    keyed = {
        key: {str(name): kinds[name](value) for name, value in row.items()}
        for key, row in zip(keys, columns.to_dict("records"), strict=True)
    }
    table = ImageTable(
        images,
        pixel_size=layout.pixel_size,
        left_out=layout.left_out,
        tables=dict(layout.tables),
    )
    return table, keyed, [*layout.notes, *names.notes, *notes]


def _reject_shared_images(images: pd.DataFrame) -> None:
    """Raises BadData where one image belongs to two fields, channels or planes."""
    shared = images[images.duplicated(["path", "place"], keep=False)]
    if len(shared):
        first, second = shared[shared["path"] == shared["path"].iloc[0]].iloc[:2].to_dict("records")
        where = [
            f"{row['plate']} {row['well']} {row['site']} {row['channel']}"
            + (f" (line {row['line']})" if row["line"] else "")
            for row in (first, second)
        ]
        raise BadData(
            f"{first['path']} is named for two images, {where[0]} and {where[1]}: is --root the "
            "folder of all plates?"
        )


def _take_time(images: pd.DataFrame, time: str) -> pd.DataFrame:
    """Selects the images of one time point; BadUse if there are several and none is chosen."""
    times = sorted(set(images["time"]), key=lambda text: text.zfill(9))
    if time:
        chosen = images[images["time"].str.lstrip("0") == time.lstrip("0")]
        if chosen.empty:
            raise BadUse(f"--time={time}: the plates have the time points {listed(times, 9)}")
        return chosen
    if len(times) > 1:
        raise BadUse(f"{len(times)} time points ({listed(times, 9)}): choose one by --time")
    return images


def _with_names(table: pd.DataFrame, names: Names) -> pd.DataFrame:
    """Gives plates one spelling, wells the form 'A01', and numbers of sites no leading zeros."""
    return table.assign(
        site=[str(int(site)) if site.isdecimal() else site for site in table["site"]],
        plate=names.merge("plate", table["plate"]),
        well=[_well_name(name) for name in names.merge("well", table["well"])],
    )


def _well_name(text: str) -> str:
    """Formats a well as 'A01' or 'AF48'; other names stay unchanged."""
    position = well_position(text)
    if position is None:
        return text
    row, column = position
    letters = (chr(ord("A") + row // 26 - 1) if row >= 26 else "") + chr(ord("A") + row % 26)
    return f"{letters}{column + 1:02d}"


def _join_platemap(
    fields: pd.DataFrame, path: Path, options: Mapping[str, Any], names: Names
) -> pd.DataFrame:
    """Adds the columns of a plate map, by plate and well, or by well if it has no plates.

    Raises:
      BadUse: there is no such file or column.
      BadData: it names no well, a well twice, or none of the plates'.
    """
    table = read_text_table(path)
    lines = table.pop("row")
    plain = {plain_name(name): name for name in reversed(table.columns)}
    for text in options.get("platemap_columns") or ():
        new, _, old = text.partition("=")
        if old not in table:
            raise BadUse(
                f"--platemap_columns={text}: {path} has no such column, but {listed(list(table))}"
            )
        table = table.rename(columns={old: new})
    well = next((plain[name] for name in SYNONYMS["well"] if name in plain), "")
    if well:
        wells = table.pop(well)
    elif {"row", "column"} <= plain.keys():
        wells = table.pop(plain["row"]) + table.pop(plain["column"])
    else:
        raise BadData(f"{path}, line 1: no column of wells (well, or row and column)")
    table["well"] = [_well_name(name) for name in names.merge("well", wells)]
    plate = next((plain[name] for name in SYNONYMS["plate"] if plain.get(name) in table), "")
    by = ["well"]
    if plate:
        table["plate"] = names.merge(
            "plate", table.pop(plate) if plate != "plate" else table[plate]
        )
        by = ["plate", "well"]
    repeated = table.duplicated(by)
    if repeated.any():
        at = int(np.flatnonzero(repeated)[0])
        raise BadData(f"{path}, line {lines.iloc[at]}: well {table['well'].iloc[at]} occurs twice")
    joined = fields.drop(columns=[name for name in table if name in fields and name not in by])
    joined = joined.merge(table, on=by, how="left", indicator=True)
    if not (joined["_merge"] == "both").any():
        raise BadData(
            f"{path}: none of its wells (such as {table['well'].iloc[0]}) is one of the plates', "
            f"such as {fields['well'].iloc[0]} of plate {fields['plate'].iloc[0]}"
        )
    without = joined[joined["_merge"] != "both"].drop_duplicates(["plate", "well"])
    if len(without):
        missing = listed([f"{row.plate} {row.well}" for row in without.itertuples()])
        names.notes.append(f"{plural(len(without), 'well')} on no row of {path}: {missing}")
    return joined.drop(columns="_merge")


# What tables of screens call a column, beyond `columns.SYNONYMS`.
_SCREEN_NAMES = {
    "compound": ("pertiname", "broadsample", "jcp2022", "pertname", "compoundname"),
    "concentration": ("mmolesperliter", "dose", "doseum", "concentrationum"),
    "moa": ("moas", "mechanismofaction", "moalist"),
    "batch": ("batchid", "experiment"),
}


def _typed(fields: pd.DataFrame, names: Names) -> tuple[pd.DataFrame, list[str]]:
    """Columns of `COLUMNS` with their types, then further ones that are constant in each well.

    Returns:
      The columns, and notes on what is assumed.
    """
    plain = {plain_name(name): name for name in reversed(fields.columns)}
    found: dict[str, str] = {}
    for what in ("batch", "compound", "concentration", "moa", "replicate"):
        candidates = (*SYNONYMS[what], *_SCREEN_NAMES.get(what, ()))
        found[what] = next((plain[name] for name in candidates if name in plain), "")
    notes = [f"{what}: unknown" for what in ("compound", "concentration", "moa") if not found[what]]
    if not found["batch"]:
        notes.append("batch: unknown; each plate counts as one")
    if not found["concentration"] or "mmoles" in plain_name(found["concentration"]):
        notes += ["concentration: mmoles_per_liter is taken as µM"] * bool(found["concentration"])
    count = len(fields)
    lines = list(range(1, count + 1))
    text = {
        what: names.merge(what, fields[found[what]].fillna("")) if found[what] else [""] * count
        for what in ("batch", "compound", "moa")
    }
    doses = fields[found["concentration"]].fillna("") if found["concentration"] else [""] * count
    amounts = parse(
        doses, lines, lambda value: amount_or_nan("concentration", value), "concentration"
    )
    columns = pd.DataFrame(
        {
            "plate": fields["plate"],
            "well": fields["well"],
            "site": _site_numbers(fields, notes),
            "batch": np.where(np.asarray(text["batch"]) == "", fields["plate"], text["batch"]),
            "compound": text["compound"],
            "concentration": set_controls(amounts, pd.Series(text["compound"])),
            "moa": text["moa"],
        }
    )
    return columns, notes


def _site_numbers(fields: pd.DataFrame, notes: list[str]) -> list[int]:
    """Sites as numbers; 1 if unknown, names numbered in their order."""
    sites = fields["site"].fillna("")
    if (sites == "").all():
        notes.append("site: unknown; each well has one, 1")
        return [1] * len(fields)
    if all(site.isdecimal() for site in sites):
        return [int(site) for site in sites]
    order = {name: number for number, name in enumerate(sorted(set(sites)), 1)}
    notes.append(f"site: names are numbered, {listed([f'{k} = {v}' for k, v in order.items()])}")
    return [order[site] for site in sites]
