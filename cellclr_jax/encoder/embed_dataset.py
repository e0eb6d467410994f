"""Embeds a dataset: resumable tables of cells, wells and treatments."""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from pyarrow import parquet

from cellclr_jax import devices
from cellclr_jax.console import plural, say
from cellclr_jax.data import dataset
from cellclr_jax.data.building.manifest import differences
from cellclr_jax.data.columns import COLUMNS, NAMES
from cellclr_jax.encoder.apply import (
    restore,
    visit_chunks,
)
from cellclr_jax.encoder.load import (
    Encoding,
    make_encoding,
)
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.files import locked, write_text
from cellclr_jax.profiling import profiles
from cellclr_jax.profiling.exports import CELL_ID, check_formats, write_table
from cellclr_jax.profiling.feature_columns import own_features
from cellclr_jax.run_folder import (
    as_json,
    converted_from,
    describe_dataset,
    environment,
    origin_of,
    read_config,
)
from cellclr_jax.training.log import is_local
from cellclr_jax.training.step import Variables

PARTS = "cells"
WELLS, TREATMENTS = "wells", "treatments"
# What is told of a cell beside `fields.COLUMNS`: its name and where it lies in its field.
_CELL = {"cell_id": CELL_ID, **NAMES, "label": "Metadata_Label"}
_PLACE = {"x": "Metadata_X", "y": "Metadata_Y"}
# Cells that are read back together.
_BLOCK = 4096
_AGAIN = "remove it and run the same command again"
_WELL = ["Metadata_Plate", "Metadata_Well"]
# As `sites.sites_of` fills them: a batch that is not told is none, and so on.
_UNTOLD: dict[str, str | float] = {
    "Metadata_Batch": "",
    "Metadata_MoA": "",
    "Metadata_Concentration": 0.0,
}


def cell_metadata(cells: pd.DataFrame) -> pd.DataFrame:
    """What is known of each cell as `Metadata_*` columns.

    Args:
      cells: [N] rows of a dataset (see `index.read_cells`).

    Returns:
      [N] rows in their order: Metadata_CellId, the columns of `fields.COLUMNS` that there are, text
      that is missing as '', and Metadata_X, Metadata_Y (pixels of the field) where one is known.
    """
    texts = [name for name, kind in COLUMNS.items() if kind is str and name in cells]
    table = cells.assign(**{name: cells[name].fillna("").astype(str) for name in texts})
    names = {name: new for name, new in _CELL.items() if name in table}
    if table[list(_PLACE)].notna().any(axis=None):
        names |= _PLACE
    return table[list(names)].rename(columns=names).reset_index(drop=True)


@dataclass(frozen=True)
class Parts:
    """The cells of an embedding in parts: `cells/part-00000.parquet` and so on.

    Attributes:
      out: the folder of the embedding.
      metadata: [N] rows, one a cell (see `cell_metadata`).
      chunk_cells: cells of a part; the last may have fewer.
      formats: of `exports.FORMATS`; `parquet`, which others are read back from, is the last.
    """

    out: Path
    metadata: pd.DataFrame = field(repr=False)
    chunk_cells: int
    formats: Sequence[str]

    @property
    def chunks(self) -> list[np.ndarray]:
        """The rows of each part."""
        rows = np.arange(len(self.metadata))
        return [rows[i : i + self.chunk_cells] for i in range(0, len(rows), self.chunk_cells)]

    def path(self, number: int) -> Path:
        """Of a part, without the suffix."""
        return self.out / PARTS / f"part-{number:05d}"

    def missing(self) -> list[int]:
        """The numbers of the parts that are not there, or not with all their cells."""
        numbers = enumerate(self.chunks)
        return [number for number, rows in numbers if not self._is_whole(number, rows)]

    def write(self, number: int, features: np.ndarray) -> None:
        """Writes a part: features [n, D] float32 of its cells."""
        rows = self.metadata.iloc[self.chunks[number]].reset_index(drop=True)
        columns = pd.DataFrame(features, columns=profiles.feature_names(features.shape[1]))
        write_table(pd.concat([rows, columns], axis=1), self.path(number), self.formats)

    def read(self, number: int) -> Iterator[pd.DataFrame]:
        """The features of a part, some cells after the other: [b, D] float32 each.

        Raises:
          BadData: it cannot be read.
        """
        path = f"{self.path(number)}.parquet"
        try:
            file = parquet.ParquetFile(path)
            names = [name for name in file.schema_arrow.names if not name.startswith("Metadata_")]
            for cells in file.iter_batches(batch_size=_BLOCK, columns=names):
                yield cells.to_pandas()
        except (OSError, ValueError) as error:  # pyarrow's own are of these kinds
            raise BadData(f"{path}: cannot be read ({error}); {_AGAIN}") from error

    def _is_whole(self, number: int, rows: np.ndarray) -> bool:
        """Whether all files of a part are there and tell the cells that they should."""
        if not all(Path(f"{self.path(number)}.{kind}").is_file() for kind in self.formats):
            return False
        try:
            told = pd.read_parquet(f"{self.path(number)}.parquet", columns=[CELL_ID])
        except (OSError, ValueError, KeyError):
            return False
        return told[CELL_ID].tolist() == self.metadata[CELL_ID].iloc[rows].tolist()


class PartWriter:
    """Collects the features of cells as they come, and writes each part when it is complete.

    Args:
      parts: of the embedding.
      numbers: of the parts whose cells come, in this order.
      feature: the name of the features that are kept.
      writes: whether this process is the one that writes.
    """

    def __init__(
        self, parts: Parts, numbers: Sequence[int], feature: str, *, writes: bool = True
    ) -> None:
        self._parts, self._feature, self._writes = parts, feature, writes
        self._chunks = parts.chunks
        self._rest = list(numbers)
        self._filled = 0
        self._values = np.empty((0, 0), np.float32)

    def add(self, rows: np.ndarray, features: Mapping[str, np.ndarray]) -> None:
        """Takes a minibatch of one part: rows [b], features [b, D] by name.

        Raises:
          BadData: a feature is not finite; the message names the cell.
          OSError: the part cannot be written.
        """
        values = features[self._feature]
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            cell = self._parts.metadata[CELL_ID].iloc[rows[int(np.argmin(finite))]]
            raise BadData(
                f"the embedding of cell {cell!r} holds NaN or an infinite value: look at its image "
                "and its plate's intensities"
            )
        number = self._rest[0]
        if not self._filled:
            # Column by column, as tables and files hold it.
            shape = (values.shape[1], len(self._chunks[number]))
            self._values = np.empty(shape, np.float32).T
        self._values[self._filled : self._filled + len(rows)] = values
        self._filled += len(rows)
        if self._filled == len(self._values):
            if self._writes:
                self._parts.write(number, self._values)
            self._rest, self._filled = self._rest[1:], 0


def wells_of(metadata: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray] | None:
    """The wells of a dataset; a compound, where one is known, makes them part of a treatment.

    Args:
      metadata: [N] rows, one a cell (see `cell_metadata`).

    Returns:
      (one row a well, sorted by plate and well, with what its cells have in common and
      Metadata_CellCount; [N] int: the row of each cell's well, -1 where it is in none). None where
      no cell has a plate and a well.

    Raises:
      BadData: a well has two compounds, concentrations, MoAs or batches, or a treatment two MoAs.
    """
    if not set(_WELL) <= set(metadata):
        return None
    known = (metadata[_WELL] != "").all(axis=1).to_numpy()
    if not known.any():
        return None
    own = [CELL_ID, *_PLACE.values()]
    cells = metadata[known].drop(columns=own, errors="ignore")
    if "Metadata_Compound" in cells:
        for name, value in _UNTOLD.items():
            cells[name] = cells[name].fillna(value) if name in cells else value
    wells = profiles.aggregate_wells(cells, features=[])
    treatments_of(wells, [])
    index = np.full(len(metadata), -1)
    index[known] = cells.groupby(_WELL, sort=True).ngroup().to_numpy()
    return wells, index


def treatments_of(wells: pd.DataFrame, features: Sequence[str]) -> pd.DataFrame | None:
    """Medians of the wells of each treatment; None where no well has a compound.

    Raises:
      BadData: a treatment has two MoAs.
    """
    if "Metadata_Compound" not in wells or not (wells["Metadata_Compound"] != "").any():
        return None
    treated = wells[wells["Metadata_Compound"] != ""]
    return profiles.treatment_profiles(treated, features=features)


def write_profiles(parts: Parts, wells: tuple[pd.DataFrame, np.ndarray] | None) -> dict[str, int]:
    """Writes well profiles (means of cells) and treatment profiles (medians of wells).

    Sums are float64 and are taken part by part, as the parts are read from disk: they are the same
    wherever the embedding was interrupted.

    Args:
      parts: all of them are there.
      wells: see `wells_of`; None writes nothing.

    Returns:
      How many rows each table has, by its name.

    Raises:
      BadData: a part cannot be read.
    """
    if wells is None:
        return {}
    rows_of_wells, index = wells
    accumulator, first = None, 0
    for number in range(len(parts.chunks)):
        for features in parts.read(number):
            if accumulator is None:
                accumulator = profiles.WellAccumulator(rows_of_wells, own_features(features))
            if list(features) != accumulator.features:
                raise BadData(f"{parts.path(number)}.parquet has other features; {_AGAIN}")
            accumulator.add(features.to_numpy(), index[first : first + len(features)])
            first += len(features)
    assert accumulator is not None
    tables = {WELLS: accumulator.table()}
    treatments = treatments_of(tables[WELLS], accumulator.features)
    if treatments is not None:
        tables[TREATMENTS] = treatments
    for name, table in tables.items():
        write_table(table, parts.out / name, parts.formats)
    return {name: len(table) for name, table in tables.items()}


CHUNK_CELLS = 50_000
_LOCK = ".embedding"
# What the encoder is called among the variables of a checkpoint.
_ENCODER = "trained"
# Settings of a run that decide what its encoder makes of a crop, beside the weights.
_OF_ENCODER = ("model", "normalization", "image_size")
# Settings of a build that decide what a crop looks like.
_OF_CROPS = ("crop_size", "border", "illumination", "masks")


def embed_run(
    workdir: epath.PathLike,
    *,
    out: str | Path,
    data_dir: str | Path | None = None,
    dataset: str | None = None,
    step: str = "last",
    data_access: str = "shards",
    formats: Sequence[str] = ("parquet",),
    chunk_cells: int = CHUNK_CELLS,
) -> None:
    """Embeds every cell of a dataset, or goes on where an earlier call was stopped.

    Of several processes each embeds its share of every minibatch; the first alone writes, and
    says what is wrong with the folder, which ends the others, too.

    Args:
      workdir: of the run.
      out: the folder that is written to: `cells/part-00000.parquet` …, one row a cell in the order
        of the dataset; `wells.parquet` where plates and wells are known, `treatments.parquet`
        where compounds are; `embedding.json`, whose "finished" is true when all of them are there.
      data_dir: where the dataset lies; None takes the run's.
      dataset: its name (see `index.find_dataset`); None: see `choose_dataset`.
      step: `last`, `best` (by validation loss) or a number.
      data_access: how crops are read (see `index.open_images`), whatever the run took.
      formats: of `exports.FORMATS`, for every table; Parquet is written in any case.
      chunk_cells: cells of a part.

    Raises:
      BadUse: there is no such run, checkpoint, dataset or format; the folder holds an embedding
        with other settings, or another process is writing into it.
      BadData: one of them cannot be read; wells or treatments contradict themselves; the embedding
        of a cell is not finite.
    """
    check_formats(formats)
    if not is_local(epath.Path(out)):
        raise BadUse(f"--out={out} is no folder of this machine")
    if chunk_cells < 1:
        raise BadUse(f"--chunk_cells={chunk_cells}: at least 1 was expected")
    workdir, out = epath.Path(workdir), Path(out)
    config = read_config(workdir)
    trained_in = (config.data_dir, config.dataset)
    if data_dir is not None:
        config.data_dir = str(data_dir)
    config.dataset = choose_dataset(config.data_dir, config.dataset, dataset)
    config.data_access = data_access
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            stack.enter_context(locked(out, _LOCK, "embedding into it"))
        encoding, mesh = make_encoding(config), devices.make_mesh()
        number, variables, progress = restore(workdir, step, encoding, mesh)
        if jax.process_index() == 0:
            for note in _notes(encoding, progress, trained_in):
                say(f"note: {note}")
        metadata = cell_metadata(encoding.cells.table)
        parts = Parts(out, metadata, chunk_cells, _parquet_last(formats))
        encoder = {_ENCODER: variables[_ENCODER]}
        told = {"step": number, "trained_on": origin_of(progress)}
        _embed(encoding, mesh, encoder, parts, told)


def choose_dataset(data_dir: str | Path, of_run: str, named: str | None) -> str:
    """The name of the dataset that is embedded.

    Args:
      data_dir: where datasets lie.
      of_run: the name of the run's.
      named: the name that is asked for; None takes the run's where it is there, else the only one.

    Raises:
      BadUse: there is none, or there are several; the message lists them.
    """
    if named is not None:
        return named
    with contextlib.suppress(BadUse):
        dataset.find_dataset(data_dir, of_run)
        return of_run
    there = []
    for path in sorted(Path(data_dir).glob("*/*")):
        name = f"{path.parent.name}/{path.name}"
        with contextlib.suppress(BadUse):
            dataset.find_dataset(data_dir, name)
            there.append(name)
    if len(there) > 1:
        raise BadUse(
            f"{data_dir} has no dataset of the run's name, {of_run}, and several others: choose by "
            f"--dataset one of {', '.join(there)}"
        )
    if not there:
        dataset.find_dataset(data_dir, of_run)  # says how to build it
    return there[0]


def _embed(
    encoding: Encoding,
    mesh: Mesh,
    encoder: Mapping[str, Variables],
    parts: Parts,
    told: Mapping[str, Any],
) -> None:
    """Embeds the cells of the parts that are missing, and writes what is made of all of them."""
    wells = wells_of(parts.metadata)
    first = jax.process_index() == 0
    record: dict[str, Any] = {}
    whole = False
    missing = np.zeros(len(parts.chunks), bool)
    if first:
        record = take_up(parts.out, _settings(encoding, encoder, parts, told))
        whole = forget_changed(parts.out, record)
        missing[parts.missing()] = True
        if missing.any():
            _begin(record, mesh, parts.out)
            if not missing.all():
                say(f"going on: {np.sum(~missing)} of {len(missing)} parts are there")
    numbers = np.flatnonzero(multihost_utils.broadcast_one_to_all(missing)).tolist()
    writer = PartWriter(parts, numbers, _ENCODER, writes=first)
    chunks = [parts.chunks[number] for number in numbers]
    visit_chunks(encoding, mesh, encoder, chunks, writer.add, intensities=False)
    if not first:
        return
    made = bool(numbers) or not record["finished"] or not whole
    if made:
        counts = write_profiles(parts, wells)
        record |= {"finished": True, "counts": {"cells": len(parts.metadata), **counts}}
        record["files"] = sizes(parts.out)
        write_record(parts.out, record)
    counted = ", ".join(plural(n, what.removesuffix("s")) for what, n in record["counts"].items())
    print(f"{counted}: {'written to' if made else 'all there in'} {parts.out}")


def _begin(record: dict[str, Any], mesh: Mesh, out: Path) -> None:
    """Says in the record that it is not finished, and what computes."""
    if note := add_environment(record, _environment(mesh)):
        say(f"note: {note}")
    write_record(out, record | {"finished": False})


def _parquet_last(formats: Sequence[str]) -> tuple[str, ...]:
    """The formats that are written: where a part's Parquet file is, its others are, too."""
    return (*(kind for kind in dict.fromkeys(formats) if kind != "parquet"), "parquet")


def _settings(
    encoding: Encoding, encoder: Mapping[str, Variables], parts: Parts, told: Mapping[str, Any]
) -> dict[str, Any]:
    """What decides the features, and the files that they are in."""
    config = as_json(encoding.config)
    cells = encoding.cells
    return {
        **told,
        "weights": _digest_of_arrays(encoder),
        "encoder": {name: config[name] for name in _OF_ENCODER},
        "dataset_name": "/".join(cells.directory.parts[-3:]),
        **describe_dataset(cells),
        "metadata": _digest(parts.metadata.to_csv(index=False).encode()),
        "chunk_cells": parts.chunk_cells,
        "formats": list(parts.formats),
    }


def _environment(mesh: Mesh) -> dict[str, Any]:
    """What computes: packages, the commit of this one where it is known, devices."""
    device = mesh.devices.flat[0]
    devices = f"{mesh.size} × {device.device_kind} ({device.platform})"
    return {**environment(), "devices": devices}


def _notes(
    encoding: Encoding, progress: Mapping[str, Any], trained_in: tuple[str, str]
) -> list[str]:
    """What differs between the crops that are embedded and those that were trained on."""
    cells = encoding.cells
    side, seen = cells.image_shape[0], encoding.config.image_size
    here = cells.manifest
    source = converted_from(progress)
    if source is None and progress["dataset"] == here["fingerprint"]:
        return []
    notes = [source or "this is not the dataset that the run was trained on"]
    if side != seen:
        notes.append(f"crops of {side} pixels are resized to the {seen} that the encoder sees")
    if source is not None:
        return notes
    try:
        there = dataset.read_manifest(dataset.find_dataset(*trained_in))
    except (BadUse, BadData):
        there = None
    if there is None or there["fingerprint"] != progress["dataset"]:
        notes.append(
            f"the one it was trained on is not at {trained_in[0]}: whether crops are alike in size "
            "and intensity cannot be told"
        )
    elif told := differences(_of_crops(there), _of_crops(here)):
        notes.append(f"crops differ from those that were trained on: {'; '.join(told)} here")
    return notes


def _of_crops(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What decides how a crop of a dataset looks."""
    settings, image = manifest["settings"], manifest["image"]
    told = {name: settings[name] for name in _OF_CROPS if name in settings}
    return {"side": image["shape"][0], "dtype": image["dtype"], **told}


def _digest_of_arrays(tree: Any) -> str:
    """A digest of all arrays of a tree, their places in it and their types."""
    digest = hashlib.blake2b(digest_size=16)
    for place, array in jax.tree_util.tree_leaves_with_path(jax.device_get(tree)):
        values = np.ascontiguousarray(array)
        digest.update(f"{jax.tree_util.keystr(place)} {values.dtype} {values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


RECORD = "embedding.json"
# What a process that was killed was about to write.
_UNFINISHED = re.compile(r"\.(part-\d+|wells|treatments|embedding)\.\w+\.\d+")


def take_up(out: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Begins the record of an embedding, or goes on with the one that is there.

    Args:
      out: the folder; the caller is alone in it.
      settings: what decides the features and their files.

    Returns:
      The record: "finished", "settings", "environments" (see `add_environment`).

    Raises:
      BadUse: the folder holds an embedding with other settings, or files of something else.
      BadData: the record cannot be read.
    """
    path = out / RECORD
    for place in (out, out / PARTS):
        for left in place.glob(".*"):
            if _UNFINISHED.fullmatch(left.name):
                left.unlink()
    if not path.exists():
        _refuse_foreign(out)
        write_record(out, {"finished": False, "settings": settings, "environments": []})
    (out / PARTS).mkdir(exist_ok=True)
    record = _read_record(path)
    if told := differences(record["settings"], dict(settings)):
        raise BadUse(
            f"{out} holds an embedding with other settings ({'; '.join(told)}): take another "
            "--out, or the same settings"
        )
    return record


def add_environment(record: dict[str, Any], environment: dict[str, Any]) -> str | None:
    """Adds to a record what computes from now on: packages, commit, devices.

    Returns:
      A note, where others have computed before; the last digits of features may differ then.
    """
    known: list[dict[str, Any]] = record["environments"]
    if environment in known:
        return None
    known.append(environment)
    if len(known) == 1:
        return None
    changed = "; ".join(differences(known[0], environment))
    return f"begun with other programs or devices ({changed}): features may differ in last digits"


def sizes(out: Path) -> dict[str, int]:
    """Bytes of every table of an embedding, by its path within the folder."""
    tables = [*out.glob(f"{PARTS}/*"), *out.glob(f"{WELLS}.*"), *out.glob(f"{TREATMENTS}.*")]
    return {str(path.relative_to(out)): path.stat().st_size for path in sorted(tables)}


def forget_changed(out: Path, record: Mapping[str, Any]) -> bool:
    """Removes the parts of a finished embedding of which a table is not as it was written.

    Returns:
      Whether all tables are as they were.
    """
    there = sizes(out)
    changed = [name for name, size in record.get("files", {}).items() if there.get(name) != size]
    for name in (name for name in changed if name.startswith(f"{PARTS}/")):
        (out / name).with_suffix(".parquet").unlink(missing_ok=True)
    return not changed


def write_record(out: Path, record: Mapping[str, Any]) -> None:
    """Writes embedding.json, whole or not at all."""
    write_text(out / RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kinds = {"finished": bool, "settings": dict, "environments": list}
        if record["finished"]:
            kinds |= {"counts": dict, "files": dict}
        if not all(isinstance(record[name], kind) for name, kind in kinds.items()):
            raise TypeError("of another form")
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise BadData(f"{path}: not a readable record ({error}): take another --out") from error
    return record


def _refuse_foreign(out: Path) -> None:
    """Raises BadUse where files are in the way that no embedding has written."""
    for name in (PARTS, f"{WELLS}.*", f"{TREATMENTS}.*"):
        for found in out.glob(name):
            raise BadUse(f"{found} is there, and no {RECORD}: take another --out")
