"""Converts PyTorch's weights to a work directory, and a checkpoint to a file for PyTorch."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from cellclr_jax import devices
from cellclr_jax.console import echo, plural
from cellclr_jax.encoder.load import make_objective, plain
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.files import IN_USE, TRAINING, file_sha256, is_local, locked, make_writable
from cellclr_jax.models import ProjectionHead
from cellclr_jax.run_folder import (
    CONFIG,
    CONVERTED,
    as_json,
    channel_count,
    check_same,
    read_config,
    write_config,
)
from cellclr_jax.training.checkpoints import CHECKPOINTS, Checkpoints
from cellclr_jax.weights.files import check_output, not_written, read_entries, write_entries
from cellclr_jax.weights.torch_names import (
    RESNETS,
    Layout,
    Network,
    bare,
    recognise,
    shapes_of,
    split_classifier,
    to_entries,
    to_variables,
)

_CNN = "cnn"
# For checkpoints that do not record their channels.
_USUAL_CHANNELS = 3
# Temporary folder of a conversion in its work directory.
_UNFINISHED = ".unfinished"


def import_weights(source: Path, workdir: epath.PathLike, config: Any, *, named: bool) -> None:
    """Converts a file of weights into a work directory.

    Args:
      source: file of a state dict (see `files.read_entries`).
      workdir: created; if it holds the same conversion, it stays unchanged.
      config: of the work directory; its encoder and head are set to those of the file.
      named: whether the user chose the config, so that its encoder must be the file's.

    Raises:
      BadUse: the config names another encoder; the work directory holds other files, or another
        process converts into it.
      BadData: the file cannot be read or has no known encoder; the work directory cannot be
        written, and stays empty.
    """
    if not is_local(epath.Path(workdir)):
        raise BadUse(f"--workdir={workdir} is no folder of this machine")
    folder = Path(workdir)
    entries, network, variables = _read(source)
    _configure(config, network, named)
    origin = {
        "file": str(source),
        "sha256": file_sha256(source),
        "layout": network.layout,
        "channels": network.channels,
    }
    if not (exists := _is_converted(folder, origin, config)):
        make_writable(folder, "--workdir")
        with locked(folder.resolve(), TRAINING, IN_USE):
            # Another process may have written it before the lock was acquired.
            if not (exists := _is_converted(folder, origin, config)):
                _write(folder.resolve(), config, variables, {CONVERTED: origin})
    if exists:
        echo(f"{folder} holds these weights already")
        return
    if network.layout == "published" and not named:
        echo(
            "note: the config has the default normalisation; weights of the published code expect "
            f"--config=configs/simclr_paper.py:{network.encoder}"
        )
    head = "head of {} and {}".format(*network.head) if network.head else "no head"
    echo(
        f"{network.encoder} for {plural(network.channels, 'channel')}, {head}: "
        f"{len(entries)} entries of {source} written to {folder}"
    )


def export_weights(
    workdir: epath.PathLike, step: str, output: Path, *, layout: Layout | None
) -> None:
    """Writes the weights of a checkpoint under PyTorch's names.

    Args:
      workdir: of a run.
      step: `last`, `best` (by validation loss) or a number.
      output: .pth, .pt or .safetensors.
      layout: `torchvision`: only the encoder, with a CNN's layers as `features`; `published`:
        encoder and head. None takes `published` for a CNN with a head that fits, otherwise
        `torchvision`.

    Raises:
      BadUse: there is no such run or checkpoint; the layout has no names for its model; the output
        is invalid.
      BadData: the checkpoint cannot be read, or the file cannot be written.
    """
    check_output(output)
    workdir = epath.Path(workdir)
    config = read_config(workdir)
    if config.model.encoder not in (_CNN, *RESNETS):
        raise BadUse(
            f"the encoder {config.model.encoder} of {workdir} has no names in PyTorch: one of "
            f"{', '.join((_CNN, *RESNETS))} was expected"
        )
    head = _published_head(config)
    if layout is None:
        is_cnn = config.model.encoder == _CNN
        layout = "published" if is_cnn and head is not None else "torchvision"
    if layout == "published" and head is None:
        raise BadUse(
            "--layout=published has a head of two linear layers without norm, the run's head "
            f"(objective {config.get('objective', 'nt_xent')}) differs: use --layout=torchvision, "
            "which omits the head"
        )
    number, variables, network = _restore(
        workdir, step, config, layout, head if layout == "published" else None
    )
    entries = to_entries(variables, network)
    write_entries(output, entries, {"layout": layout, "encoder": network.encoder})
    if layout == "torchvision" and (head is None or head.depth):
        echo("note: the head is left out" + ("; --layout=published includes it" if head else ""))
    echo(
        f"{network.encoder} of step {number}, {len(entries)} entries with their counters, "
        f"written to {output}"
    )


def _published_head(config: Any) -> ProjectionHead | None:
    """Builds the head of a run; None if the layout `published` has no names for its layers."""
    head = make_objective(config).head(plain(config.model.head), jnp.float32)
    if not isinstance(head, ProjectionHead):
        return None
    fits = head.depth == 0 or (head.depth == 2 and head.norm == "none" and head.bias)
    return head if fits else None


def _read(source: Path) -> tuple[dict[str, np.ndarray], Network, dict[str, Any]]:
    """Reads a file: its entries without a classifier, their network and the variables."""
    entries = read_entries(source)
    try:
        entries, left_out = split_classifier(bare(entries))
        network = recognise(entries)
        variables = to_variables(entries, network)
    except BadData as error:
        raise BadData(f"{source}: {error}") from error
    if left_out:
        echo(f"note: the classification layer is left out: {', '.join(left_out)}")
    return entries, network, variables


def _configure(config: Any, network: Network, named: bool) -> None:
    """Sets the network of a config, and removes other initial weights.

    Raises:
      BadUse: the user chose the config, and it names another encoder.
    """
    model = config.model
    of_file = {"encoder": network.encoder}
    of_config = {"encoder": model.encoder}
    if network.encoder == _CNN:
        of_file |= {"cnn.widths": str(network.widths), "cnn.norm": network.norm}
        of_config |= {"cnn.widths": str(tuple(model.cnn.widths)), "cnn.norm": model.cnn.norm}
    for name, value in of_file.items():
        if named and of_config[name] != value:
            raise BadUse(
                f"config.model.{name} is {of_config[name]}, that of the file {value}: give "
                f"--config.model.{name}={value!r}, or no --config"
            )
    config.init.workdir, config.init.head = "", False
    model.encoder = network.encoder
    if network.encoder == _CNN:
        model.cnn.widths, model.cnn.norm = network.widths, network.norm
    model.head.depth = 0 if network.head is None else 2
    if network.head is not None:
        model.head.hidden, model.head.width = network.head
        model.head.norm = "none"


def _is_converted(folder: Path, origin: Mapping[str, Any], config: Any) -> bool:
    """Whether a work directory holds the same conversion.

    Raises:
      BadUse: it holds other files.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    # A killed conversion leaves `.unfinished`, and perhaps checkpoints without a config.
    remains = {TRAINING, _UNFINISHED, CHECKPOINTS} if _UNFINISHED in names else {TRAINING}
    if names <= remains and (folder.is_dir() or not folder.exists()):
        return False
    existing: Mapping[str, Any] = {}
    if {CONFIG, CHECKPOINTS} <= names:
        with Checkpoints((folder / CHECKPOINTS).resolve(), read_only=True) as checkpoints:
            existing = (checkpoints.newest_progress() or {}).get(CONVERTED, {})
    if existing.get("sha256") != origin["sha256"]:
        what = f"weights converted from {existing['file']}" if existing else "other files"
        raise BadUse(f"--workdir={folder} holds {what}: choose a new or empty folder")
    check_same(as_json(read_config(epath.Path(folder))), config, folder)
    return True


def _write(
    folder: Path, config: Any, variables: Mapping[str, Any], progress: Mapping[str, Any]
) -> None:
    """Writes a work directory; moves the config last, without which it is no work directory.

    Raises:
      BadData: it cannot be written.
    """
    unfinished = folder / _UNFINISHED
    for remains in (folder / CHECKPOINTS, unfinished):  # of a killed conversion
        shutil.rmtree(remains, ignore_errors=True)
    try:
        state = {"step": jnp.zeros((), jnp.int32), **variables}
        with Checkpoints(unfinished / CHECKPOINTS) as checkpoints:
            checkpoints.save(0, jax.device_put(state, _one_device()), progress)
        write_config(config, epath.Path(unfinished))
        for name in (CHECKPOINTS, CONFIG):
            (unfinished / name).replace(folder / name)
    except (BadData, OSError) as error:
        # The cause, because the message of `Checkpoints` is about resuming a run.
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise not_written(folder, cause) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _restore(
    workdir: epath.Path, step: str, config: Any, layout: Layout, head: ProjectionHead | None
) -> tuple[int, dict[str, Any], Network]:
    """Restores the encoder of a checkpoint, and its head unless `head` is None.

    Returns:
      (step, variables, their network).
    """
    if not (workdir / CHECKPOINTS).is_dir():
        raise BadUse(f"no checkpoint in {workdir / CHECKPOINTS}: train first")
    place = _one_device()
    with Checkpoints((workdir / CHECKPOINTS).resolve(), read_only=True) as checkpoints:
        number = checkpoints.find(step)
        channels = channel_count(checkpoints.progress(number)) or _USUAL_CHANNELS
        network = Network(config.model.encoder, channels, layout)
        if network.encoder == _CNN:
            cnn = config.model.cnn
            network = replace(network, widths=tuple(cnn.widths), norm=cnn.norm)
        if head is not None and head.depth:
            network = replace(network, head=(head.hidden, head.width))
        template = jax.tree.map(lambda leaf: leaf.update(sharding=place), shapes_of(network))
        parts = [f"{kind}/{name}" for kind, tree in template.items() for name in tree]
        variables, _ = checkpoints.restore_part(number, template, parts=parts)
    return number, jax.device_get(variables), network


def _one_device() -> jax.sharding.Sharding:
    """Returns the sharding of a conversion's arrays."""
    return devices.replicated(devices.make_mesh(1))
