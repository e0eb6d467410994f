"""The work directory of a run: its config, its dataset, the commit that made it."""

import contextlib
import json
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import ml_collections
from etils import epath

from cellclr_jax import default_config
from cellclr_jax.console import plural
from cellclr_jax.data.minibatches import Cells
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.training.checkpoints import (
    CHECKPOINTS,
    Checkpoints,
)

CONFIG = "config.json"
# May differ when a run is taken up again: they decide where things lie and what is told, no number.
_FREE = ("data_dir", "data_access", "log_every", "online", "checkpoint", "evaluation")
# What a run does not name here it does without; elsewhere it was made before there was a choice.
_AS_NAMED = "views"


def check_config(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """Checks that a work directory is empty or holds a run of the same config.

    Raises:
      BadUse: it holds a run of another one; the message names the differences.
      BadData: its config cannot be read.
    """
    if (workdir / CONFIG).exists():
        check_same(_read(workdir / CONFIG), config, workdir)


def check_same(old: Mapping[str, Any], config: ml_collections.ConfigDict, run: object) -> None:
    """Checks that a run goes on with the settings that it began with.

    Args:
      old: settings of the run, as in `config.json`. One that is not there has the default of
        today: whoever adds a setting gives it a default that changes nothing.
      config: what is asked for.
      run: how the message names the run.

    Raises:
      BadUse: they differ; the message names the differences.
    """
    if differences := _differences(_completed(old), _completed(as_json(config))):
        raise BadUse(
            f"{run} holds a run of another config ({'; '.join(differences)}): "
            "choose another --workdir, or the same settings"
        )


def write_config(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """Writes `config.json`, whole or not at all."""
    workdir.mkdir(parents=True, exist_ok=True)
    temporary = workdir / f"{CONFIG}.tmp"
    temporary.write_text(json.dumps(as_json(config), indent=2) + "\n")
    temporary.replace(workdir / CONFIG)


def read_config(workdir: epath.Path) -> ml_collections.ConfigDict:
    """Reads the config of a run; a setting that is not there has the default of today.

    Raises:
      BadUse: the directory holds no run.
      BadData: its config cannot be read.
    """
    path = workdir / CONFIG
    if not path.exists():
        raise BadUse(f"no run in {workdir}: {CONFIG} is missing. Train first, or mend --workdir")
    return ml_collections.ConfigDict(_completed(_read(path)))


def evaluation_settings(workdir: epath.PathLike) -> dict[str, Any]:
    """What the config of a run says of its evaluation, and what the controls are.

    Raises:
      BadUse, BadData: see `read_config`.
    """
    config = read_config(epath.Path(workdir))
    return {**config.evaluation, "control": config.control}


def as_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """A config as a JSON object."""
    plain: dict[str, Any] = json.loads(config.to_json())
    return plain


def _read(path: epath.Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadData(f"{path}: not a readable config ({error})") from error
    if not isinstance(content, dict):
        raise BadData(f"{path}: not a readable config (no JSON object)")
    return content


def _completed(old: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run, those that it does not name with their defaults."""
    return _filled(as_json(default_config.get_config()), old)


def _filled(defaults: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    both = {**defaults, **old}
    for name, default in defaults.items():
        if isinstance(default, dict) and isinstance(both[name], dict) and name != _AS_NAMED:
            both[name] = _filled(default, both[name])
    return both


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Settings that differ; those that decide no number are passed over."""
    if path in _FREE or old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for name in sorted(old.keys() | new.keys())
            for line in _differences(
                old.get(name), new.get(name), f"{path}.{name}" if path else name
            )
        ]
    return [f"{path}: {old!r} there, {new!r} here"]


CONVERTED = "converted"
"""In the progress of weights that came from elsewhere: their file, its sha256, layout, channels."""


def describe_dataset(cells: Cells) -> dict[str, Any]:
    """What goes into a checkpoint's progress: the dataset's fingerprint, its channels in order."""
    return {"dataset": cells.manifest["fingerprint"], "channels": cells.channels}


def converted_from(progress: Mapping[str, Any]) -> str | None:
    """Such as "weights converted from resnet50.pth"; None where a run has trained them."""
    if CONVERTED not in progress:
        return None
    return f"weights converted from {progress[CONVERTED]['file']}"


def origin_of(progress: Mapping[str, Any]) -> str:
    """The fingerprint of the dataset that was trained on, or what `converted_from` says."""
    return converted_from(progress) or str(progress["dataset"])


def channel_count(progress: Mapping[str, Any]) -> int | None:
    """How many channels the images have that an encoder takes; None where that is not told."""
    if CONVERTED in progress:
        return int(progress[CONVERTED]["channels"])
    return len(progress.get("channels") or ()) or None


def refuse_conversion(workdir: epath.Path) -> None:
    """Checks that no weights from elsewhere are in a work directory that is to be trained in.

    Raises:
      BadUse: there are; the message says how training begins with them.
    """
    if (workdir / CHECKPOINTS).is_dir():
        with Checkpoints((workdir / CHECKPOINTS).resolve(), read_only=True) as checkpoints:
            _refuse_conversion(checkpoints.newest_progress() or {}, workdir)


def _refuse_conversion(progress: Mapping[str, Any], run: object) -> None:
    if source := converted_from(progress):
        raise BadUse(
            f"{run} holds {source}, no run to go on with: train in a --workdir of its own, with "
            "--config.init.workdir naming this one"
        )


def check_channels(progress: Mapping[str, Any], cells: Cells, run: object) -> None:
    """Checks that an encoder meets the channels that it was trained on, in their order.

    Args:
      progress: of a checkpoint; one that tells no channels fits any.
      cells: the dataset.
      run: how the message names the run.

    Raises:
      BadUse: the dataset has others; the message says what to do.
    """
    taken, given = channel_count(progress) or 0, cells.image_shape[-1]
    if CONVERTED in progress and taken != given:
        raise BadUse(
            f"{run} has {converted_from(progress)}, for images of {plural(taken, 'channel')}; "
            f"{cells.directory} has {given}: build a dataset of {taken}, or take other weights"
        )
    trained, there = progress.get("channels"), cells.channels
    if trained is None or list(trained) == there:
        return
    raise BadUse(
        f"{run} was trained on the channels {', '.join(trained)} in this order; "
        f"{cells.directory} has {', '.join(there)}: plates are built in that order by "
        f"--channels={','.join(trained)}, images of single cells have to be put into it; or train "
        "on the dataset in a --workdir of its own"
    )


def check_dataset(progress: Mapping[str, Any], cells: Cells, run: object) -> None:
    """Checks that a run goes on with the dataset that it began with.

    Args:
      progress: of a checkpoint.
      cells: the dataset.
      run: how the message names the run.

    Raises:
      BadUse: it is another one.
    """
    _refuse_conversion(progress, run)
    check_channels(progress, cells, run)
    fingerprint = cells.manifest["fingerprint"]
    if progress["dataset"] != fingerprint:
        raise BadUse(
            f"{run} was trained on another dataset ({progress['dataset'][:12]}, here "
            f"{fingerprint[:12]}): give its --config.data_dir"
        )


_PACKAGES = ("cellclr_jax", "flax", "jax", "jaxlib", "numpy", "pandas", "pyarrow", "scikit-learn")
_GIT_SECONDS = 10


def environment() -> dict[str, Any]:
    """{"versions": of Python and packages by name, "commit": see `commit`}."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(packages.PackageNotFoundError):
            versions[name] = packages.version(name)
    return {"versions": versions, "commit": commit()}


def commit() -> str | None:
    """The commit of this package, ending in -dirty where files differ; None where it is unknown."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():  # or it would be that of a repository around it
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=_GIT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
