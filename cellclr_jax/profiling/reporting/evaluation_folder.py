"""The folder of an evaluation: its files appear whole, and one with other settings is kept."""

import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from cellclr_jax.profiling.measures import MEASURES

METRICS = "metrics.json"
REPORT = "report.html"
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
# Of what is told of a run: how its checkpoint was asked for; the step tells which it is.
_NO_SETTING = ("checkpoint",)
# Such as all MoAs that are left out.
_LONGEST = 60


def make_room(out: Path, metrics: Mapping[str, Any], files: Collection[str]) -> str | None:
    """Takes what an earlier evaluation has written to a folder out of the way of another one.

    With the same settings it is replaced: its metrics.json goes first, and what else the new one
    will not write. With others it is kept, in <out>/earlier/<number>. Without a metrics.json the
    folder is somebody else's, and is left as it is.

    Args:
      out: the folder.
      metrics: what will be written to metrics.json.
      files: names of what else will be written.

    Returns:
      A note that says what differs and where the earlier one is, if it was kept.
    """
    if not (out / METRICS).exists():
        return None
    different = _differences(out / METRICS, metrics)
    written = [path for pattern in _OPTIONAL for path in sorted(out.glob(pattern))]
    if not different:
        # Where there is a metrics.json, all that it speaks of is there too: it goes first.
        for path in (out / METRICS, *(path for path in written if path.name not in files)):
            path.unlink()
        return None
    kept = _keep([out / METRICS, out / REPORT, *written], out / EARLIER)
    return f"an earlier evaluation with other settings ({'; '.join(different)}) is now in {kept}"


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


def _keep(paths: Collection[Path], folder: Path) -> Path:
    """Moves files that there are into the first free number of a folder."""
    place = folder / f".{os.getpid()}"
    place.mkdir(parents=True, exist_ok=True)
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
    if ("protocol" in older) != ("protocol" in metrics):
        return ["treatments were scored" if "protocol" in older else "no treatment was scored"]
    return [
        f"{name} was {_short(value)}, is {_short(here.get(name))}"
        for name, value in there.items()
        if here.get(name) != value
    ]


def _settings(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What decides an evaluation, by name."""
    described = {**metrics.get("run", {}), **metrics.get("protocol", {})}
    return {name: value for name, value in described.items() if name not in _NO_SETTING}


def _short(value: object) -> str:
    """A setting in a message."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
