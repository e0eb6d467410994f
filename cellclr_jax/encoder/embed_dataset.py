"""Embeds a dataset: resumable tables of cells, wells and treatments."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from cellclr_jax import devices
from cellclr_jax.console import echo, plural
from cellclr_jax.data import dataset
from cellclr_jax.data.columns import CELL_ID, CELL_NAMES, COLUMNS
from cellclr_jax.encoder.apply import restore, visit
from cellclr_jax.encoder.load import CellEncoder, Variables, make_cell_encoder
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.files import (
    differences,
    digest,
    is_local,
    locked,
    make_writable,
    read_json,
    write_json,
)
from cellclr_jax.profiling import profiles
from cellclr_jax.profiling.exports import check_formats, write_table
from cellclr_jax.run_folder import (
    as_json,
    converted_from,
    describe_dataset,
    environment,
    origin_of,
    read_config,
)

CHUNK_CELLS = 50_000
RECORD = "embedding.json"
PARTS, WELLS, TREATMENTS = "cells", "wells", "treatments"
_LOCK = ".embedding"
# Tables of an embedding, and temporary files of a killed process (see `files.atomic_write`).
_TABLES = (f"{PARTS}/part-*", f"{WELLS}.*", f"{TREATMENTS}.*")
_UNFINISHED = (f"{PARTS}/.part-*", f".{WELLS}.*", f".{TREATMENTS}.*", f".{RECORD}.*")
# Name of the encoder among the variables of a checkpoint.
_ENCODER = "trained"
# Settings of a run that determine embeddings, besides the weights.
_OF_ENCODER = ("model", "normalization", "image_size")
# Settings of a build that determine the pixels of a crop.
_OF_CROPS = ("crop_size", "border", "illumination", "masks")
# Position of a cell in its field, in pixels.
_POSITION = {"x": "Metadata_X", "y": "Metadata_Y"}
# Cells that are summed at a time, as float64.
_BLOCK = 4096
_WELL = ["Metadata_Plate", "Metadata_Well"]
# Values of missing columns, as in `profiles.sites_of`.
_UNKNOWN: dict[str, str | float] = {
    "Metadata_Batch": "",
    "Metadata_MoA": "",
    "Metadata_Concentration": np.nan,
}


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
    overwrite: bool = False,
) -> None:
    """Embeds every cell of a dataset, or resumes an earlier call with the missing parts.

    Args:
      workdir: of the run.
      out: folder of `cells/part-00000.parquet` …, one row a cell in the order of the dataset;
        `wells.parquet` if plates and wells are known, `treatments.parquet` if compounds are;
        `embedding.json` with "finished": true once all files exist.
      data_dir: of the dataset; None takes the run's.
      dataset: its name (see `dataset.find_dataset`); None: see `choose_dataset`.
      step: `last`, `best` (by validation loss) or a number.
      data_access: how crops are read (see `dataset.open_images`), whatever the run used.
      formats: of `exports.FORMATS`, for every table; Parquet is always written.
      chunk_cells: cells of a part.
      overwrite: replaces an embedding with other settings.

    Raises:
      BadUse: no such run, checkpoint, dataset or format; `out` is in use or holds other results.
      BadData: a file cannot be read, metadata are contradictory, or an embedding is not finite.
    """
    check_formats(formats)
    if not is_local(epath.Path(out)):
        raise BadUse(f"--out={out} is no folder of this machine")
    workdir, out, writes = epath.Path(workdir), Path(out), jax.process_index() == 0
    config = read_config(workdir)
    trained_in = (config.data_dir, config.dataset)
    config.update(data_dir=str(data_dir or config.data_dir), data_access=data_access)
    config.dataset = choose_dataset(config.data_dir, config.dataset, dataset)
    with contextlib.ExitStack() as stack:
        if writes:
            make_writable(out, "--out")
            stack.enter_context(locked(out, _LOCK, "embedding into it"))
        encoding, mesh = make_cell_encoder(config), devices.make_mesh()
        number, variables, progress = restore(workdir, step, encoding, mesh)
        _print_notes(encoding, progress, trained_in)
        kinds = (*(kind for kind in dict.fromkeys(formats) if kind != "parquet"), "parquet")
        parts = Parts(out, cell_metadata(encoding.cells.table), chunk_cells, kinds, writes=writes)
        settings = {"step": number, "trained_on": origin_of(progress)}
        _embed(encoding, mesh, {_ENCODER: variables[_ENCODER]}, parts, settings, overwrite)


def cell_metadata(cells: pd.DataFrame) -> pd.DataFrame:
    """Renames the metadata of cells to `Metadata_*` columns.

    Args:
      cells: [N] rows of a dataset (see `dataset.read_cells`).

    Returns:
      [N] rows in the same order: Metadata_CellId, the existing columns of `columns.COLUMNS` with
      missing text as '', and Metadata_X, Metadata_Y (pixels of the field) if any is known.
    """
    texts = [name for name, kind in COLUMNS.items() if kind is str and name in cells]
    table = cells.assign(**{name: cells[name].fillna("").astype(str) for name in texts})
    names = {name: new for name, new in CELL_NAMES.items() if name in table}
    if table[list(_POSITION)].notna().any(axis=None):
        names |= _POSITION
    return table[list(names)].rename(columns=names).reset_index(drop=True)


@dataclass
class Parts:
    """Writes and reads the cells of an embedding in parts, `cells/part-00000.parquet` and so on.

    Attributes:
      out: the folder of the embedding.
      metadata: [N] rows, one a cell (see `cell_metadata`).
      chunk_cells: cells of a part; the last may have fewer.
      formats: of `exports.FORMATS`, `parquet` last: a part with that file is complete.
      writes: whether this process writes.
    """

    out: Path
    metadata: pd.DataFrame
    chunk_cells: int
    formats: Sequence[str]
    writes: bool = True
    _collected: list[np.ndarray] = field(default_factory=list, init=False)

    @property
    def count(self) -> int:
        """Number of parts."""
        return math.ceil(len(self.metadata) / self.chunk_cells)

    def path(self, number: int) -> Path:
        """Returns the path of a part without the suffix."""
        return self.out / PARTS / f"part-{number:05d}"

    def missing(self) -> np.ndarray:
        """Finds incomplete parts, [parts] bool: those that lack the file of a format."""
        complete = [
            all(Path(f"{self.path(number)}.{kind}").is_file() for kind in self.formats)
            for number in range(self.count)
        ]
        return ~np.array(complete, bool)

    def add(self, rows: np.ndarray, features: Mapping[str, np.ndarray]) -> None:
        """Collects a minibatch, and writes the part that it completes.

        Args:
          rows: [b] of one part, following those of the previous minibatch.
          features: [b, D] float32 by the encoder's name.

        Raises:
          BadData: a feature is not finite; the message names the cell.
          OSError: the part cannot be written.
        """
        values = features[_ENCODER]
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            cell = self.metadata[CELL_ID].iloc[rows[int(np.argmin(finite))]]
            raise BadData(
                f"the embedding of cell {cell!r} holds NaN or an infinite value: inspect its image "
                "and the intensities of its plate"
            )
        self._collected.append(values)
        number = int(rows[0]) // self.chunk_cells
        start = number * self.chunk_cells
        cells = self.metadata[start : start + self.chunk_cells].reset_index(drop=True)
        if rows[-1] + 1 == start + len(cells):
            part, self._collected = np.concatenate(self._collected), []
            if self.writes:
                columns = pd.DataFrame(part, columns=profiles.feature_names(part.shape[1]))
                write_table(pd.concat([cells, columns], axis=1), self.path(number), self.formats)

    def read(self, number: int) -> np.ndarray:
        """Reads the features [n, D] float32 of a part; BadData if it is damaged."""
        path = f"{self.path(number)}.parquet"
        try:
            cells = pd.read_parquet(path)
        except (OSError, ValueError) as error:  # of which pyarrow's are subclasses
            raise BadData(
                f"{path}: cannot be read ({error}); remove it and run the same command again"
            ) from error
        return cells.drop(columns=list(self.metadata)).to_numpy()


def wells_of(metadata: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray] | None:
    """Groups cells into wells.

    Args:
      metadata: [N] rows, one a cell (see `cell_metadata`).

    Returns:
      (one row a well, sorted by plate and well, with the metadata that its cells share and
      Metadata_CellCount; [N] int: the row of each cell's well, -1 if it has none). None if no cell
      has a plate and a well.

    Raises:
      BadData: a well has two compounds, concentrations, MoAs or batches, or a treatment two MoAs.
    """
    known = (metadata.reindex(columns=_WELL, fill_value="") != "").all(axis=1).to_numpy()
    if not known.any():
        return None
    of_cells = [CELL_ID, *_POSITION.values()]
    cells = metadata[known].drop(columns=of_cells, errors="ignore")
    if "Metadata_Compound" in cells:
        for name, value in _UNKNOWN.items():
            cells[name] = cells[name].fillna(value) if name in cells else value
    wells = profiles.aggregate_wells(cells, features=[])
    treatments_of(wells, [])
    index = np.full(len(metadata), -1)
    index[known] = cells.groupby(_WELL, sort=True).ngroup().to_numpy()
    return wells, index


def treatments_of(wells: pd.DataFrame, features: Sequence[str]) -> pd.DataFrame | None:
    """Computes the median of each treatment's wells; None if no well has a compound.

    Raises:
      BadData: a treatment has two MoAs.
    """
    if "Metadata_Compound" not in wells or not (wells["Metadata_Compound"] != "").any():
        return None
    treated = wells[wells["Metadata_Compound"] != ""]
    return profiles.treatment_profiles(treated, features=features)


def write_profiles(parts: Parts, wells: tuple[pd.DataFrame, np.ndarray] | None) -> dict[str, int]:
    """Writes well profiles (means of cells) and treatment profiles (medians of wells).

    Sums are float64 over the parts as read from disk, so that they do not depend on interruptions.

    Args:
      parts: all of them exist.
      wells: see `wells_of`; None writes nothing.

    Returns:
      The number of rows of each table, by its name.

    Raises:
      BadData: a part cannot be read.
    """
    if wells is None:
        return {}
    rows_of_wells, index = wells
    accumulator, start = None, 0
    for number in range(parts.count):
        features = parts.read(number)
        names = profiles.feature_names(features.shape[1])
        accumulator = accumulator or profiles.WellAccumulator(rows_of_wells, names)
        for i in range(0, len(features), _BLOCK):
            block = features[i : i + _BLOCK]
            accumulator.add(block, index[start : start + len(block)])
            start += len(block)
    assert accumulator is not None
    tables = {WELLS: accumulator.table()}
    treatments = treatments_of(tables[WELLS], accumulator.features)
    if treatments is not None:
        tables[TREATMENTS] = treatments
    for name, table in tables.items():
        write_table(table, parts.out / name, parts.formats)
    return {name: len(table) for name, table in tables.items()}


def choose_dataset(data_dir: str | Path, of_run: str, named: str | None) -> str:
    """Finds the name of the dataset to embed.

    Args:
      data_dir: the folder of datasets.
      of_run: the name of the run's dataset.
      named: the requested name; None takes the run's if it exists, else the only dataset.

    Raises:
      BadUse: there is none, or there are several; the message lists them.
    """

    def exists(name: str) -> bool:
        with contextlib.suppress(BadUse):
            dataset.find_dataset(data_dir, name)
            return True
        return False

    if named is not None or exists(of_run):
        return named or of_run
    found = sorted(f"{path.parent.name}/{path.name}" for path in Path(data_dir).glob("*/*"))
    found = [name for name in found if exists(name)]
    if len(found) > 1:
        raise BadUse(
            f"{data_dir} has no dataset of the run's name, {of_run}, and several others: choose by "
            f"--dataset one of {', '.join(found)}"
        )
    if not found:
        dataset.find_dataset(data_dir, of_run)  # raises, with the command that builds it
    return found[0]


def _embed(
    encoding: CellEncoder,
    mesh: Mesh,
    encoder: Mapping[str, Variables],
    parts: Parts,
    settings: dict[str, Any],
    overwrite: bool,
) -> None:
    """Embeds the cells of the missing parts, and writes the profiles of all parts."""
    settings |= _settings(encoding, encoder, parts)
    wells = wells_of(parts.metadata)
    missing = np.zeros(parts.count, bool)
    if parts.writes:
        _open_record(parts.out, settings, overwrite=overwrite)
        missing = parts.missing()
        if not missing.all():
            echo(f"resuming: {np.sum(~missing)} of {len(missing)} parts exist")
    missing = np.asarray(multihost_utils.broadcast_one_to_all(missing))
    rows = np.flatnonzero(np.repeat(missing, parts.chunk_cells)[: len(parts.metadata)])
    visit(
        encoding, mesh, encoder, rows, parts.add, intensities=False, chunk_cells=parts.chunk_cells
    )
    if parts.writes:
        counts = {"cells": len(parts.metadata), **write_profiles(parts, wells)}
        record = {"settings": settings, "finished": True, "counts": counts}
        write_json(parts.out / RECORD, record | {"environment": environment()})
        counted = ", ".join(plural(n, what.removesuffix("s")) for what, n in counts.items())
        print(f"{counted}: written to {parts.out}")


def _open_record(out: Path, settings: Mapping[str, Any], *, overwrite: bool) -> None:
    """Writes the record of a new embedding, or checks that an existing one has the same settings.

    Args:
      out: the folder, locked by the caller.
      settings: everything that determines features and files.
      overwrite: removes the tables of an embedding with other settings.

    Raises:
      BadUse: the folder holds an embedding with other settings, or files of something else.
      BadData: the record cannot be read.
    """
    path = out / RECORD
    tables = [found for name in _TABLES for found in out.glob(name)]
    if path.exists():
        if changed := _changes(path, settings):
            if not overwrite:
                raise BadUse(
                    f"{out} holds an embedding {changed}: take another --out, or --overwrite to "
                    "replace it"
                )
            for found in tables:
                found.unlink()
    elif tables:
        raise BadUse(
            f"{tables[0]} exists, but no {RECORD}: it is not part of an embedding; take another "
            "--out"
        )
    for pattern in _UNFINISHED:
        for unfinished in out.glob(pattern):
            unfinished.unlink()
    write_json(path, {"settings": settings, "finished": False})
    (out / PARTS).mkdir(exist_ok=True)


def _changes(path: Path, settings: Mapping[str, Any]) -> str:
    """Describes how recorded settings differ from the requested ones; '' if they do not."""
    recorded = read_json(path, "record of an embedding").get("settings")
    if not isinstance(recorded, Mapping) or recorded.keys() != settings.keys():
        return f"of another version of this program, by its {RECORD}"
    changed = differences(recorded, settings)
    return f"with other settings ({'; '.join(changed)})" if changed else ""


def _settings(
    encoding: CellEncoder, encoder: Mapping[str, Variables], parts: Parts
) -> dict[str, Any]:
    """Collects everything that determines features and files, except the checkpoint's step."""
    config = as_json(encoding.config)
    cells = encoding.cells
    return {
        "weights": _digest_of_arrays(encoder),
        "encoder": {name: config[name] for name in _OF_ENCODER},
        "dataset_name": "/".join(cells.directory.parts[-3:]),
        **describe_dataset(cells),
        "metadata": digest(parts.metadata.to_csv(index=False)),
        "chunk_cells": parts.chunk_cells,
        "formats": list(parts.formats),
    }


def _print_notes(
    encoding: CellEncoder, progress: Mapping[str, Any], trained_in: tuple[str, str]
) -> None:
    """Prints how the crops differ from those that the encoder was trained on."""
    cells = encoding.cells
    side, size = cells.image_shape[0], encoding.config.image_size
    source = converted_from(progress)
    is_same = source is None and progress["dataset"] == cells.manifest["fingerprint"]
    if is_same or jax.process_index() > 0:
        return
    echo(f"note: {source or 'this is not the dataset that the run was trained on'}")
    if side != size:
        echo(f"note: crops of {side} pixels are resized to the encoder's {size}")
    with contextlib.suppress(BadUse, BadData):  # that dataset may not exist any more
        trained_on = dataset.read_manifest(dataset.find_dataset(*trained_in))
        found = differences(_of_crops(trained_on), _of_crops(cells.manifest))
        if found and trained_on["fingerprint"] == progress.get("dataset"):
            echo(f"note: crops differ from those that were trained on: {'; '.join(found)}")


def _of_crops(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a dataset that determine the pixels of a crop."""
    settings, image = manifest["settings"], manifest["image"]
    existing = {name: settings[name] for name in _OF_CROPS if name in settings}
    return {"side": image["shape"][0], "dtype": image["dtype"], **existing}


def _digest_of_arrays(tree: Any) -> str:
    """Digest of the arrays of a tree, with their paths, types and shapes."""
    contents: list[str | bytes] = []
    for path, array in jax.tree_util.tree_leaves_with_path(jax.device_get(tree)):
        contents += [f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}", array.tobytes()]
    return digest(*contents)
