"""Embeds a dataset by a run's encoder: every cell into a table in parts, then wells and treatments.

One chunk of cells is in memory. What is done stays: the same call goes on with the parts that are
missing, and no part depends on where the others were computed.
"""

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from cellclr_jax import sharding
from cellclr_jax.cli import BadData, BadUse
from cellclr_jax.data import index
from cellclr_jax.data.building.manifest import differences
from cellclr_jax.data.counting import plural
from cellclr_jax.embedding import restore, visit_chunks
from cellclr_jax.embedding_folder import (
    Parts,
    PartWriter,
    cell_metadata,
    wells_of,
    write_profiles,
)
from cellclr_jax.embedding_record import (
    add_environment,
    forget_changed,
    sizes,
    take_up,
    write_record,
)
from cellclr_jax.encoding import Encoding, make_encoding
from cellclr_jax.lock import alone
from cellclr_jax.logs import is_local, say
from cellclr_jax.profiling.exports import check_formats
from cellclr_jax.provenance import environment
from cellclr_jax.run_config import as_json, read_config
from cellclr_jax.train_step import Variables
from cellclr_jax.trained_on import converted_from, describe_dataset, origin_of

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
            stack.enter_context(alone(out, _LOCK, "embedding into it"))
        encoding, mesh = make_encoding(config), sharding.make_mesh()
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
        index.find_dataset(data_dir, of_run)
        return of_run
    there = []
    for path in sorted(Path(data_dir).glob("*/*")):
        name = f"{path.parent.name}/{path.name}"
        with contextlib.suppress(BadUse):
            index.find_dataset(data_dir, name)
            there.append(name)
    if len(there) > 1:
        raise BadUse(
            f"{data_dir} has no dataset of the run's name, {of_run}, and several others: choose by "
            f"--dataset one of {', '.join(there)}"
        )
    if not there:
        index.find_dataset(data_dir, of_run)  # says how to build it
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
        there = index.read_manifest(index.find_dataset(*trained_in))
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
