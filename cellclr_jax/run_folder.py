"""The work directory of a run: config, checks before it is resumed, origin of its weights."""

import contextlib
import copy
import json
import platform
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import ml_collections
from etils import epath

from cellclr_jax import default_config
from cellclr_jax.augment import OPERATIONS, defaults_of
from cellclr_jax.console import plural
from cellclr_jax.data.minibatches import Cells
from cellclr_jax.errors import BadUse
from cellclr_jax.files import (
    IN_USE,
    TRAINING,
    differences,
    is_local,
    locked,
    make_writable,
    read_json,
    write_json,
)
from cellclr_jax.training.checkpoints import CHECKPOINTS, Checkpoints, unranked

CONFIG = "config.json"
# These may change when a run is resumed: they do not change its results.
_FREE = ("data_dir", "data_access", "log_every", "online", "checkpoint", "evaluation")
# Operations missing in a recorded config are not applied; other missing settings have defaults.
_VIEWS = "views"
CONVERTED = "converted"
"""Key in the progress of converted weights: their file, its sha256, layout and channels."""


@dataclass(frozen=True)
class RunFolder:
    """A work directory for training (see `open_run`).

    Attributes:
      path: path of the directory, which need not exist.
      config: requested config, without operations that an existing run does not have.
      progress: saved progress of the newest readable checkpoint; {} without one.
      resumes: whether there is a checkpoint to resume from.
      notes: lines to print on differences from the requested config.
    """

    path: epath.Path
    config: ml_collections.ConfigDict
    progress: Mapping[str, Any]
    resumes: bool
    notes: tuple[str, ...] = ()

    def check_dataset(self, cells: Cells) -> None:
        """Raises BadUse if the run to resume was trained on another dataset."""
        if not self.progress:
            return
        run = f"the run in {self.path}"
        check_channels(self.progress, cells, run)
        fingerprint = cells.manifest["fingerprint"]
        if self.progress["dataset"] != fingerprint:
            raise BadUse(
                f"{run} was trained on another dataset (was {self.progress['dataset'][:12]}, now "
                f"{fingerprint[:12]}): set --config.data_dir to that of the run"
            )

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Creates the directory and holds its lock, except in a bucket.

        Raises:
          BadUse: the directory cannot be written to, or another process trains in it.
        """
        if not is_local(self.path):
            yield
            return
        folder = Path(self.path)
        make_writable(folder, "--workdir")
        with locked(folder, TRAINING, IN_USE):
            yield


def open_run(workdir: epath.PathLike, config: ml_collections.ConfigDict) -> RunFolder:
    """Checks that a work directory is new, or holds a run with the requested config.

    A setting that the recorded config lacks has its default: defaults of new settings change
    nothing. An operation of `views` that the record lacks, and that is requested with its default
    settings, was added to the defaults since the run began: the run continues without it.

    Writes nothing.

    Args:
      workdir: folder or bucket (gs://…), which need not exist.
      config: requested config.

    Raises:
      BadUse: it holds converted weights, or a run with another config.
      BadData: its config cannot be read.
    """
    workdir = epath.Path(workdir)
    directory = workdir.resolve() / CHECKPOINTS
    progress, resumes = {}, False
    if directory.is_dir():
        with Checkpoints(directory, read_only=True) as checkpoints:
            progress = checkpoints.newest_progress() or {}
            resumes = bool(set(checkpoints.steps()) - set(unranked(directory)))
    if source := converted_from(progress):
        raise BadUse(
            f"{workdir} holds {source}, not a run: choose another --workdir and set "
            f"--config.init.workdir={workdir}"
        )
    notes: list[str] = []
    # config.json may be missing, and a checkpoint may be copied from another run.
    records = {directory: progress.get("config")}
    if (workdir / CONFIG).exists():
        records = {workdir: read_json(workdir / CONFIG, "config"), **records}
    for path, recorded in records.items():
        if recorded:
            config, added = _without_added_operations(config, recorded)
            notes += [f"note: views.{name} is left out: the run began without it" for name in added]
            check_same(recorded, config, path)
    return RunFolder(workdir, config, progress, resumes, tuple(notes))


def _without_added_operations(
    config: ml_collections.ConfigDict, recorded: Mapping[str, Any]
) -> tuple[ml_collections.ConfigDict, list[str]]:
    """Removes operations with default settings that a recorded config lacks; returns the names."""
    defaults, requested = (as_json(c)[_VIEWS] for c in (default_config.get_config(), config))
    missing = requested.keys() - recorded.get(_VIEWS, requested).keys()
    added = [
        name for name in requested if name in missing and requested[name] == defaults.get(name)
    ]
    if added:
        config = copy.deepcopy(config)
        with config.unlocked():
            for name in added:
                del config[_VIEWS][name]
    return config, added


def check_same(old: Mapping[str, Any], config: ml_collections.ConfigDict, run: object) -> None:
    """Raises BadUse, with the differences, unless a config equals the recorded one of a run.

    A missing setting of the record has its current default; `run` names the run in the message.
    """
    if found := differences(_comparable(old), _comparable(as_json(config)), ignored=_FREE):
        raise BadUse(
            f"{run} holds a run of another config ({'; '.join(found)}): "
            "choose another --workdir, or the same settings"
        )


def write_config(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """Writes `config.json` atomically."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / CONFIG, as_json(config))


def read_config(workdir: epath.Path) -> ml_collections.ConfigDict:
    """Reads the config of a run; a missing setting has its current default.

    Raises:
      BadUse: the directory holds no run.
      BadData: its config cannot be read.
    """
    path = workdir / CONFIG
    if not path.exists():
        raise BadUse(f"no run in {workdir}: {CONFIG} is missing. Train first, or correct --workdir")
    return ml_collections.ConfigDict(_completed(read_json(path, "config")))


def evaluation_settings(workdir: epath.PathLike) -> dict[str, Any]:
    """Reads the evaluation settings and the controls' name from the config of a run.

    Raises:
      BadUse, BadData: see `read_config`.
    """
    config = read_config(epath.Path(workdir))
    return {**config.evaluation, "control": config.control}


def as_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns a config as a JSON object."""
    plain: dict[str, Any] = json.loads(config.to_json())
    return plain


def _completed(old: Mapping[str, Any]) -> dict[str, Any]:
    """Adds defaults for settings that a recorded run lacks, except settings of views."""
    defaults = as_json(default_config.get_config())
    return _filled({**defaults, _VIEWS: {}}, {_VIEWS: defaults[_VIEWS], **old})


def _comparable(old: Mapping[str, Any]) -> dict[str, Any]:
    """Completes settings, including those of each operation with the operation's own defaults."""
    settings = _completed(old)
    for name in settings[_VIEWS].keys() & OPERATIONS.keys():
        defaults = json.loads(json.dumps(defaults_of(name)))  # tuples become lists, as in a record
        settings[_VIEWS][name] = {**defaults, **(settings[_VIEWS][name] or {})}
    return settings


def _filled(defaults: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """Adds missing settings, in nested groups as well."""
    both = {**defaults, **old}
    for name, default in defaults.items():
        if isinstance(default, dict) and isinstance(both[name], dict):
            both[name] = _filled(default, both[name])
    return both


def describe_dataset(cells: Cells) -> dict[str, Any]:
    """Returns the entries of a checkpoint's progress for a dataset: fingerprint and channels."""
    return {"dataset": cells.manifest["fingerprint"], "channels": cells.channels}


def converted_from(progress: Mapping[str, Any]) -> str | None:
    """Returns e.g. "weights converted from resnet50.pth"; None for a checkpoint of a run."""
    if CONVERTED not in progress:
        return None
    return f"weights converted from {progress[CONVERTED]['file']}"


def origin_of(progress: Mapping[str, Any]) -> str:
    """Returns the fingerprint of the training dataset, or the text of `converted_from`."""
    return converted_from(progress) or str(progress["dataset"])


def channel_count(progress: Mapping[str, Any]) -> int | None:
    """Returns the number of channels of the encoder's input; None if it is not recorded."""
    if CONVERTED in progress:
        return int(progress[CONVERTED]["channels"])
    return len(progress.get("channels") or ()) or None


def check_channels(progress: Mapping[str, Any], cells: Cells, run: object) -> None:
    """Raises BadUse unless a dataset has the channels of an encoder's training, in the same order.

    The progress of a checkpoint without recorded channels fits any dataset; `run` names the run in
    the message.
    """
    expected, found = channel_count(progress) or 0, cells.image_shape[-1]
    if CONVERTED in progress and expected != found:
        raise BadUse(
            f"{run} has {converted_from(progress)}, for images of {plural(expected, 'channel')}; "
            f"{cells.directory} has {found}: build a dataset of {expected}, or use other weights"
        )
    trained = progress.get("channels")
    if trained is None or list(trained) == cells.channels:
        return
    raise BadUse(
        f"{run} was trained on the channels {', '.join(trained)} in this order; "
        f"{cells.directory} has {', '.join(cells.channels)}: build plates again with "
        f"--channels={','.join(trained)}, reorder the channels of images of single cells, or train "
        "on this dataset in another --workdir"
    )


_PACKAGES = ("cellclr_jax", "flax", "jax", "jaxlib", "numpy", "pandas", "pyarrow", "scikit-learn")
_GIT_SECONDS = 60


def environment() -> dict[str, Any]:
    """Returns {"versions": of Python and packages by name, "commit": see `commit`}."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(packages.PackageNotFoundError):
            versions[name] = packages.version(name)
    return {"versions": versions, "commit": commit()}


def commit() -> str | None:
    """Returns the commit of this package, with -dirty if files differ; None if unknown."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():  # git would use a repository further up
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=_GIT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
