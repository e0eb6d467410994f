"""`metrics.jsonl`: a row of numbers a line, appended to, that goes on after a crash."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"


class Rows:
    """Appends rows to `metrics.jsonl`.

    Args:
      folder: that holds it.
      first_step: rows of later steps, left by a run that was killed after its last checkpoint, are
        dropped, and lines that a crash cut off.

    Attributes:
      kept: the rows that were there and stay.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        path = folder / METRICS
        self.kept = _read(path, first_step)
        if path.exists():
            temporary = path.with_suffix(".tmp")
            temporary.write_text("".join(_line(row) for row in self.kept), encoding="utf-8")
            temporary.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends a row; every number in it is finite."""
        self._file.write(_line(row))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _read(path: Path, last_step: int) -> list[dict[str, Any]]:
    """The rows until a step; a line that is no row is passed over."""
    if not path.exists():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            if row["step"] <= last_step:
                _line(row)  # a number that is not finite is none of ours either
                kept.append(row)
        except (ValueError, TypeError, LookupError):
            continue
    return kept
