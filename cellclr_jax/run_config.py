"""`config.json` of a work directory: written, compared, read."""

import json
from typing import Any

import ml_collections
from etils import epath

from cellclr_jax.cli import BadData, BadUse

CONFIG = "config.json"
# May differ when a run is taken up again: they decide where things lie and what is told, no number.
_FREE = ("data_dir", "data_access", "log_every", "online", "checkpoint")


def check_config(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """Checks that a work directory is empty or holds a run of the same config.

    Raises:
      BadUse: it holds a run of another one; the message names the differences.
      BadData: its config cannot be read.
    """
    if not (workdir / CONFIG).exists():
        return
    if differences := _differences(_read(workdir / CONFIG), _as_json(config)):
        raise BadUse(
            f"{workdir} holds a run of another config ({'; '.join(differences)}): "
            "choose another --workdir, or the same settings"
        )


def write_config(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """Writes `config.json`, whole or not at all."""
    workdir.mkdir(parents=True, exist_ok=True)
    temporary = workdir / f"{CONFIG}.tmp"
    temporary.write_text(json.dumps(_as_json(config), indent=2) + "\n")
    temporary.replace(workdir / CONFIG)


def read_config(workdir: epath.Path) -> ml_collections.ConfigDict:
    """Reads the config of a run.

    Raises:
      BadUse: the directory holds no run.
      BadData: its config cannot be read.
    """
    path = workdir / CONFIG
    if not path.exists():
        raise BadUse(f"no run in {workdir}: {CONFIG} is missing. Train first, or mend --workdir")
    return ml_collections.ConfigDict(_read(path))


def _read(path: epath.Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise BadData(f"{path}: not a readable config ({error})") from error
    return content


def _as_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(config.to_json())
    return plain


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
