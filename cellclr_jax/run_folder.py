"""The work directory of a run: its config, whether it may be resumed, its dataset and versions."""

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
# These may differ when a run is resumed: they decide where files are and what is logged, no number.
_FREE = ("data_dir", "data_access", "log_every", "online", "checkpoint", "evaluation")
# Operations that a run does not name are not done; its other missing settings have their default.
_VIEWS = "views"


@dataclass(frozen=True)
class RunFolder:
    """A work directory that may be trained in (see `open_run`).

    Attributes:
      path: of the directory, which need not exist.
      config: of the run: as asked for, but only with the operations that it began with.
      progress: of the newest readable checkpoint, as it was saved; {} without one.
      resumes: whether there is a checkpoint to resume from.
      notes: lines to print on what differs from what was asked for.
    """

    path: epath.Path
    config: ml_collections.ConfigDict
    progress: Mapping[str, Any]
    resumes: bool
    notes: tuple[str, ...] = ()

    def check_dataset(self, cells: Cells) -> None:
        """Checks that a run resumes on the dataset that it began with.

        Raises:
          BadUse: it is another one.
        """
        if not self.progress:
            return
        run = f"the run in {self.path}"
        check_channels(self.progress, cells, run)
        fingerprint = cells.manifest["fingerprint"]
        if self.progress["dataset"] != fingerprint:
            raise BadUse(
                f"{run} was trained on another dataset ({self.progress['dataset'][:12]}, here "
                f"{fingerprint[:12]}): give its --config.data_dir"
            )

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Creates the directory and holds its lock; a bucket has neither.

        Raises:
          BadUse: the directory cannot be written to, or another process is training in it.
        """
        if not is_local(self.path):
            yield
            return
        folder = Path(self.path)
        make_writable(folder, "--workdir")
        with locked(folder, TRAINING, IN_USE):
            yield


def open_run(workdir: epath.PathLike, config: ml_collections.ConfigDict) -> RunFolder:
    """Decides what a work directory is: new, a run to resume, or none to train in.

    A setting that a run's record lacks has its default: whoever adds a setting gives it a default
    that changes nothing. An operation of `views` that the record lacks, and that is asked for as
    by default, was added since the run began: the run continues without it.

    Writes nothing.

    Args:
      workdir: a folder or a bucket (gs://…), which need not exist.
      config: what is asked for.

    Raises:
      BadUse: it holds converted weights, or a run of another config; the message says how to
        train from them, or names the settings that differ.
      BadData: its config cannot be read.
    """
    workdir = epath.Path(workdir)
    directory = workdir.resolve() / CHECKPOINTS
    progress, resumes = {}, False
    if directory.is_dir():
        with Checkpoints(directory, read_only=True) as kept:
            progress = kept.newest_progress() or {}
            resumes = bool(set(kept.steps()) - set(unranked(directory)))
    if source := converted_from(progress):
        raise BadUse(
            f"{workdir} holds {source}, no run to resume: train in a --workdir of its own, "
            "with --config.init.workdir naming this one"
        )
    notes: list[str] = []
    # config.json may be missing, or a checkpoint may have come from elsewhere.
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
    """Removes operations that a config has by default and a recorded one lacks; their names."""
    defaults, asked = (as_json(c)[_VIEWS] for c in (default_config.get_config(), config))
    known = recorded.get(_VIEWS, asked)
    added = [name for name in asked if name not in known and asked[name] == defaults.get(name)]
    if added:
        config = copy.deepcopy(config)
        with config.unlocked():
            for name in added:
                del config[_VIEWS][name]
    return config, added


def check_same(old: Mapping[str, Any], config: ml_collections.ConfigDict, run: object) -> None:
    """Checks that a run resumes with the settings that it began with.

    Args:
      old: settings of the run, as in `config.json`; a missing one has the default of today.
      config: what is asked for.
      run: how the message names the run.

    Raises:
      BadUse: they differ; the message names the differences.
    """
    if found := differences(_comparable(old), _comparable(as_json(config)), ignored=_FREE):
        raise BadUse(
            f"{run} holds a run of another config ({'; '.join(found)}): "
            "choose another --workdir, or the same settings"
        )


def write_config(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """Writes `config.json`, whole or not at all."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / CONFIG, as_json(config))


def read_config(workdir: epath.Path) -> ml_collections.ConfigDict:
    """Reads the config of a run; a missing setting has the default of today.

    Raises:
      BadUse: the directory holds no run.
      BadData: its config cannot be read.
    """
    path = workdir / CONFIG
    if not path.exists():
        raise BadUse(f"no run in {workdir}: {CONFIG} is missing. Train first, or mend --workdir")
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
    """Completes the recorded settings of a run with the defaults, but not those of its views."""
    defaults = as_json(default_config.get_config())
    return _filled({**defaults, _VIEWS: {}}, {_VIEWS: defaults[_VIEWS], **old})


def _comparable(old: Mapping[str, Any]) -> dict[str, Any]:
    """Completes settings, and each operation of the views with the operation's own defaults."""
    settings = _completed(old)
    for name in settings[_VIEWS].keys() & OPERATIONS.keys():
        own = json.loads(json.dumps(defaults_of(name)))  # tuples become lists, as in a record
        settings[_VIEWS][name] = {**own, **(settings[_VIEWS][name] or {})}
    return settings


def _filled(defaults: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    both = {**defaults, **old}
    for name, default in defaults.items():
        if isinstance(default, dict) and isinstance(both[name], dict):
            both[name] = _filled(default, both[name])
    return both


CONVERTED = "converted"
"""Key in the progress of converted weights: their file, its sha256, layout and channels."""


def describe_dataset(cells: Cells) -> dict[str, Any]:
    """Describes a dataset in a checkpoint's progress: its fingerprint, its channels in order."""
    return {"dataset": cells.manifest["fingerprint"], "channels": cells.channels}


def converted_from(progress: Mapping[str, Any]) -> str | None:
    """Returns e.g. "weights converted from resnet50.pth"; None if a run has trained them."""
    if CONVERTED not in progress:
        return None
    return f"weights converted from {progress[CONVERTED]['file']}"


def origin_of(progress: Mapping[str, Any]) -> str:
    """Returns the fingerprint of the training dataset, or what `converted_from` does."""
    return converted_from(progress) or str(progress["dataset"])


def channel_count(progress: Mapping[str, Any]) -> int | None:
    """Returns the number of channels of an encoder's images; None if it is not recorded."""
    if CONVERTED in progress:
        return int(progress[CONVERTED]["channels"])
    return len(progress.get("channels") or ()) or None


def check_channels(progress: Mapping[str, Any], cells: Cells, run: object) -> None:
    """Checks that a dataset has the channels that an encoder was trained on, in their order.

    Args:
      progress: of a checkpoint; one without recorded channels fits any.
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
    """Returns the commit of this package, ending in -dirty if files differ; None if unknown."""
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
