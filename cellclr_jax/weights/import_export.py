"""A work directory of weights that came from elsewhere, and the weights of one for elsewhere."""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from cellclr_jax import devices
from cellclr_jax.console import plural, say
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.files import (
    IN_USE,
    TRAINING,
    is_local,
    locked,
)
from cellclr_jax.run_folder import (
    CONFIG,
    CONVERTED,
    as_json,
    channel_count,
    check_same,
    read_config,
    write_config,
)
from cellclr_jax.training.checkpoints import (
    CHECKPOINTS,
    Checkpoints,
)
from cellclr_jax.weights.files import (
    check_output,
    digest,
    not_written,
    read_entries,
    write_entries,
)
from cellclr_jax.weights.torch_names import (
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
# Of a run that does not tell.
_USUAL_CHANNELS = 3
# Where a conversion is made in a work directory, and what it replaces moves to.
_UNFINISHED, _BEFORE = ".unfinished", "before"
# Seconds between looks at a folder that is to be gone, how many have to find it so, and how many
# there are at most.
_PAUSE, _QUIET, _LOOKS = 0.1, 5, 100


def import_weights(source: Path, workdir: epath.PathLike, config: Any, *, named: bool) -> None:
    """Makes a work directory out of a file of weights.

    Args:
      source: of a state dict (see `weight_files.read_entries`).
      workdir: is made; one that holds the same conversion is left as it is.
      config: of the work directory; its encoder and head become those of the file.
      named: whether the config was chosen: its encoder has to be the file's then.

    Raises:
      BadUse: the config names another encoder; something else is in the work directory, or
        another process converts into it.
      BadData: the file is not of a known encoder, or cannot be read; the work directory cannot be
        written, and nothing of it stays but folders above it that were made.
    """
    if not is_local(epath.Path(workdir)):
        raise BadUse(f"--workdir={workdir} is no folder of this machine")
    folder = Path(workdir)
    entries, network, variables = _read(source)
    _configure(config, network, named)
    origin = {
        "file": str(source),
        "sha256": digest(source),
        "layout": network.layout,
        "channels": network.channels,
    }
    there = _is_there(folder, origin, config)
    if not there:
        with _converting(folder.resolve()):
            # Again: another process may have made it until now.
            there = _is_there(folder, origin, config)
            if not there:
                _write(folder.resolve(), config, variables, {CONVERTED: origin})
    if there:
        say(f"{folder} holds these weights already")
        return
    if network.layout == "published" and not named:
        say(
            "note: images are normalised as by default; weights of the published code expect "
            f"--config=configs/simclr_paper.py:{network.encoder}"
        )
    say(
        f"{network.encoder} for {plural(network.channels, 'channel')}, {_described(network)}: "
        f"{len(entries)} entries of {source} written to {folder}"
    )


def export_weights(
    workdir: epath.PathLike, step: str, output: Path, *, layout: Layout | None
) -> None:
    """Writes the weights of a checkpoint as PyTorch names them.

    Args:
      workdir: of a run.
      step: `last`, `best` (by validation loss) or a number.
      output: .pth, .pt or .safetensors.
      layout: `torchvision`: the encoder alone, a CNN's layers as `features`, as torchvision names
        those of networks without blocks; `published`: encoder and head. None takes the first for
        a ResNet, the second for a CNN.

    Raises:
      BadUse: there is no such run or checkpoint; the layout has no place for its model; the file
        cannot be written.
      BadData: the checkpoint cannot be read, or the disk is full.
    """
    check_output(output)
    workdir = epath.Path(workdir)
    config = read_config(workdir)
    layout = layout or ("published" if config.model.encoder == _CNN else "torchvision")
    _check_layout(config, layout)
    number, variables, network = _restore(workdir, step, config, layout)
    entries = to_entries(variables, network)
    write_entries(output, entries, {"layout": layout, "encoder": network.encoder})
    if layout == "torchvision" and config.model.head.depth:
        say("note: the head is left out: --layout=published has it")
    say(
        f"{network.encoder} of step {number}, {len(entries)} entries with their counters, "
        f"written to {output}"
    )


def _read(source: Path) -> tuple[dict[str, np.ndarray], Network, dict[str, Any]]:
    """The entries of a file that are used, the network they are of, and its variables."""
    entries = read_entries(source)
    try:
        entries, left_out = split_classifier(bare(entries))
        network = recognise(entries)
        variables = to_variables(entries, network)
    except BadData as error:
        raise BadData(f"{source}: {error}") from error
    if left_out:
        say(f"note: the classification layer is left out: {', '.join(left_out)}")
    return entries, network, variables


def _described(network: Network) -> str:
    if network.head is None:
        return "no head"
    return f"head of {network.head[0]} and {network.head[1]}"


def _configure(config: Any, network: Network, named: bool) -> None:
    """Has a config name the network, and no other weights to start from.

    Raises:
      BadUse: it was chosen, and names another encoder.
    """
    model = config.model
    wanted = {"encoder": network.encoder}
    here = {"encoder": model.encoder}
    if network.encoder == _CNN:
        wanted |= {"cnn.widths": str(network.widths), "cnn.norm": network.norm}
        here |= {"cnn.widths": str(tuple(model.cnn.widths)), "cnn.norm": model.cnn.norm}
    for name, value in wanted.items():
        if named and here[name] != value:
            raise BadUse(
                f"config.model.{name} is {here[name]}, that of the file {value}: give "
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


def _is_there(folder: Path, origin: Mapping[str, Any], config: Any) -> bool:
    """Whether a work directory holds the same conversion, whole.

    Raises:
      BadUse: it holds something else.
    """
    if not folder.exists():
        return False
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= {TRAINING, _UNFINISHED}:
        return False
    known: Mapping[str, Any] = {}
    if (folder / CHECKPOINTS).is_dir():
        with Checkpoints((folder / CHECKPOINTS).resolve(), read_only=True) as checkpoints:
            known = (checkpoints.newest_progress() or {}).get(CONVERTED, {})
    if known.get("sha256") != origin["sha256"]:
        what = f"weights converted from {known['file']}" if known else "something else"
        raise BadUse(f"--workdir={folder} holds {what}: take one that is new or empty")
    # The config comes last: without it a conversion was ended before.
    if not (folder / CONFIG).exists() or not list((folder / CHECKPOINTS).glob("*/state/*")):
        return False
    check_same(as_json(read_config(epath.Path(folder))), config, folder)
    return True


@contextlib.contextmanager
def _converting(folder: Path) -> Iterator[None]:
    """Keeps other conversions out of a work directory, which goes again where this one fails."""
    is_new = not folder.exists()
    try:
        with locked(folder, TRAINING, IN_USE):
            try:
                yield
            except BaseException:
                (folder / TRAINING).unlink(missing_ok=True)
                raise
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):  # what others have put there stays
                folder.rmdir()
        raise


def _write(
    folder: Path, config: Any, variables: Mapping[str, Any], progress: Mapping[str, Any]
) -> None:
    """Writes a work directory; the config comes last, since without one it is none.

    Raises:
      BadData: it cannot be written; nothing of it stays.
    """
    unfinished = folder / _UNFINISHED
    # Of a conversion that was killed: the lock says that nobody writes there.
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        everywhere = devices.replicated(devices.make_mesh())
        state = {"step": jnp.zeros((), jnp.int32), **variables}
        with Checkpoints(unfinished / CHECKPOINTS) as checkpoints:
            checkpoints.save(0, jax.device_put(state, everywhere), progress)
        write_config(config, epath.Path(unfinished))
    except BaseException as error:
        _remove(unfinished)
        if isinstance(error, BadData | OSError):
            # That of a checkpoint promises to go on from the newest one; here there is none.
            cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
            raise not_written(folder, cause) from error
        raise
    if (folder / CHECKPOINTS).exists():  # of a conversion that was killed, or is damaged
        os.replace(folder / CHECKPOINTS, unfinished / _BEFORE)
    os.replace(unfinished / CHECKPOINTS, folder / CHECKPOINTS)
    os.replace(unfinished / CONFIG, folder / CONFIG)
    shutil.rmtree(unfinished, ignore_errors=True)


def _remove(folder: Path) -> None:
    """Removes a folder for good.

    After a save that failed TensorStore's threads, which nobody can wait for, go on for a moment
    with what they had begun, and make folders anew.
    """
    quiet = 0
    for _ in range(_LOOKS):
        quiet = 0 if folder.exists() else quiet + 1
        if quiet == _QUIET:
            return
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(_PAUSE)


def _check_layout(config: Any, layout: Layout) -> None:
    """Raises BadUse where a layout has no place for a model's head."""
    head = config.model.head
    if layout == "published" and head.depth and (head.depth != 2 or head.norm != "none"):
        raise BadUse(
            "the layout published has a head of two linear layers and no norm; this one has a "
            f"depth of {head.depth} and the norm {head.norm!r}: --layout=torchvision leaves it out"
        )


def _restore(
    workdir: epath.Path, step: str, config: Any, layout: Layout
) -> tuple[int, dict[str, Any], Network]:
    """The step of a checkpoint, those of its variables that the layout has, and what they are."""
    if not (workdir / CHECKPOINTS).is_dir():
        raise BadUse(f"no checkpoint in {workdir / CHECKPOINTS}: train first")
    place = devices.replicated(devices.make_mesh())
    with Checkpoints((workdir / CHECKPOINTS).resolve(), read_only=True) as checkpoints:
        number = checkpoints.find(step)
        channels = channel_count(checkpoints.progress(number)) or _USUAL_CHANNELS
        network = _network(config, channels, layout)
        template = jax.tree.map(
            lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place),
            shapes_of(network),
            is_leaf=lambda node: isinstance(node, tuple),
        )
        parts = [f"{kind}/{name}" for kind, tree in template.items() for name in tree]
        variables, _ = checkpoints.restore_part(number, template, parts=parts)
    return number, jax.device_get(variables), network


def _network(config: Any, channels: int, layout: Layout) -> Network:
    """What is written of a config's model: the encoder, and the head where the layout has one."""
    model = config.model
    network = Network(model.encoder, channels, layout)
    if model.encoder == _CNN:
        network = replace(network, widths=tuple(model.cnn.widths), norm=model.cnn.norm)
    if layout == "published" and model.head.depth:
        head = (model.head.hidden or network.features, model.head.width)
        network = replace(network, head=head)
    return network
