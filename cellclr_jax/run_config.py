"""`config.json` of a work directory: written, compared, read."""

import json
from collections.abc import Mapping
from typing import Any

import ml_collections
from etils import epath

from cellclr_jax import default_config
from cellclr_jax.cli import BadData, BadUse

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
