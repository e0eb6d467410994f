"""The folder of an evaluation: its files appear whole, and one with other settings is kept."""

import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from cellclr_jax.errors import BadUse
from cellclr_jax.profiling.evaluation import METRICS
from cellclr_jax.profiling.measures import MEASURES

REPORT = "report.html"
UNFINISHED = ".evaluating"
# Where evaluations with other settings are kept, in folders that are numbered from 1 on.
EARLIER = "earlier"
# Files of an evaluation that it may do without.
_OPTIONAL = (
    "wells.*",
    "treatments.*",
    "cells.*",
    "neighbours.csv",
    *(f"{name}.csv" for name in MEASURES),
    "confusion_*.png",
    "tsne_*.png",
)
# Of what is told of single cells.
_OF_CELLS = ("label_column", "grouped_by")
# Of what is told of a run: how its checkpoint was asked for; the step tells which it is.
_NO_SETTING = ("checkpoint",)
# Such as all MoAs that are left out.
_LONGEST = 60


def make_room(out: Path, metrics: Mapping[str, Any], files: Collection[str]) -> str | None:
    """Takes what an earlier evaluation has written to a folder out of the way of another one.

    With the same settings it is replaced: its metrics.json goes first, and what else the new one
    will not write. With others it is kept, in <out>/earlier/<number>. What an evaluation that was
    killed has left is removed. From now on until `close_room` the folder is marked as unfinished.

    Args:
      out: the folder.
      metrics: what will be written to metrics.json.
      files: names of what else will be written.

    Returns:
      A note that says what differs and where the earlier one is, if it was kept.

    Raises:
      BadUse: files are in the way that no evaluation has written; nothing is changed then.
    """
    written = [path for pattern in _OPTIONAL for path in sorted(out.glob(pattern))]
    there, unfinished = (out / METRICS).exists(), (out / UNFINISHED).exists()
    if not there and not unfinished:
        _refuse_foreign(out, {*files, REPORT})
    orphans = _orphans(out / EARLIER)
    different = _differences(out / METRICS, metrics) if there else []
    note = None
    if different or orphans:
        kept = _keep([out / REPORT, *written, out / METRICS], out / EARLIER, orphans)
        told = "; ".join(different) or "and its keeping was interrupted"
        note = f"an earlier evaluation with other settings ({told}) is now in {kept}"
    (out / UNFINISHED).touch()
    # Where there is a metrics.json, all that it speaks of is there too: it goes first.
    stale = [path for path in written if unfinished or there]
    for path in (out / METRICS, *(path for path in stale if path.name not in files)):
        path.unlink(missing_ok=True)
    return note


def close_room(out: Path) -> None:
    """Takes the mark of an unfinished evaluation away, when metrics.json is written."""
    (out / UNFINISHED).unlink(missing_ok=True)


def _refuse_foreign(out: Path, files: Collection[str]) -> None:
    """Raises BadUse where a file would be overwritten that no evaluation has written."""
    taken = sorted(name for name in files if (out / name).exists())
    if taken:
        raise BadUse(
            f"{out / taken[0]} is there, and no {METRICS}: it is no evaluation's; take another "
            "--out"
        )


def _orphans(folder: Path) -> list[Path]:
    """Folders into which a process that is gone was moving an evaluation."""
    found = [path for path in folder.glob(".*") if path.name[1:].isdigit()]
    return [path for path in found if not _is_running(int(path.name[1:]))]


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process != os.getpid()


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Has a file written beside its place, then moves it there.

    Args:
      path: its place.
      write: writes the file that it is given.
    """
    # The process in the name: two evaluations of one step do not write into one file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _keep(paths: Collection[Path], folder: Path, orphans: Collection[Path]) -> Path:
    """Moves files that there are, and those of orphans, into the first free number of a folder."""
    place = folder / f".{os.getpid()}"
    place.mkdir(parents=True, exist_ok=True)
    for orphan in orphans:
        for path in orphan.iterdir():
            path.rename(place / path.name)
        orphan.rmdir()
    for path in paths:
        if path.exists():
            shutil.move(path, place / path.name)
    number = 1
    while (folder / str(number)).exists():
        number += 1
    return place.rename(folder / str(number))


def _differences(path: Path, metrics: Mapping[str, Any]) -> list[str]:
    """Such as ["standardize was none, is controls"]; what the older one does not tell is passed."""
    try:
        older = json.loads(path.read_text(encoding="utf-8"))
        there, here = _settings(older), _settings(json.loads(json.dumps(metrics)))
    except (OSError, ValueError, AttributeError, TypeError):
        return [f"its {METRICS} cannot be read"]
    for part, what in (("protocol", "treatment"), ("cells", "single cell")):
        if (part in older) != (part in metrics):
            return [f"{what}s were scored" if part in older else f"no {what} was scored"]
    return [
        f"{name} was {_short(value)}, is {_short(here.get(name))}"
        for name, value in there.items()
        if here.get(name) != value
    ]


def _settings(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What decides an evaluation, by name."""
    cells = metrics.get("cells", {})
    described = {
        **metrics.get("run", {}),
        **metrics.get("protocol", {}),
        **{name: cells[name] for name in _OF_CELLS if name in cells},
    }
    return {name: value for name, value in described.items() if name not in _NO_SETTING}


def _short(value: object) -> str:
    """A setting in a message."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
