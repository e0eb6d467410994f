"""The record of an embedding, `embedding.json`: what it is of, by what, and whether it is finished.

It is there before the first table, so that nothing goes on with the tables of another embedding.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cellclr_jax.cli import BadData, BadUse
from cellclr_jax.data.building.manifest import differences
from cellclr_jax.embedding_folder import PARTS, TREATMENTS, WELLS
from cellclr_jax.profiling.reporting.evaluation_folder import write_file

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
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    write_file(out / RECORD, lambda path: path.write_text(text, encoding="utf-8"))


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
