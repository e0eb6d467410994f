"""metrics.jsonl, and what is known of each metric by its name."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cellclr_jax.files import write_text
from cellclr_jax.objectives import Metric

METRICS = "metrics.jsonl"
VALIDATION, ONLINE = "validation_", "online_"


# What the loop measures, whatever the objective.
_SECTIONS = {
    "optimizer": ("lr", "gradient_norm", "parameter_norm", "update_norm"),
    "speed": ("cells_per_second", "input_wait"),
    "representation": ("collapse_warning",),
}
_TITLES = {
    "input_wait": "share of the time in which the loop waited for the next minibatch",
    "cells_per_second": "without compilation, validation and saving",
    "update_norm": "length of the step that the optimiser took",
    "nsc": "MoA of the nearest treatment of another compound, of a subset of the cells",
    "nscb": "the same, of another compound and another batch",
}


class Names:
    """Tags, titles and charts of metrics for TensorBoard and Weights & Biases.

    Args:
      metrics: of the objective.
    """

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._titles = _TITLES | {metric.name: metric.title for metric in metrics}
        self._sections = {name: section for section, names in _SECTIONS.items() for name in names}
        self._sections |= {
            metric.name: "train" if metric.console else "representation" for metric in metrics
        }
        self.charts: dict[str, tuple[str, ...]] = {
            metric.name.replace("_", " "): (f"train/{metric.name}", f"validation/{metric.name}")
            for metric in metrics
            if metric.console
        }
        """Charts that lie over each other what belongs together: tags by title."""
        self.charts["online scores"] = ("online/.*",)

    def tag(self, name: str) -> str:
        """'validation_loss' → 'validation/loss'; a metric without a section goes to 'train'."""
        for prefix in (VALIDATION, ONLINE):
            if name.startswith(prefix):
                return f"{prefix.rstrip('_')}/{name.removeprefix(prefix)}"
        return f"{self._sections.get(name, 'train')}/{name}"

    def title(self, name: str) -> str:
        """One line on what a number says, or ''."""
        return self._titles.get(name.removeprefix(VALIDATION).removeprefix(ONLINE), "")


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
            write_text(path, "".join(_line(row) for row in self.kept))
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
    """Reads the rows until a step; skips lines that are no row."""
    if not path.exists():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            if row["step"] <= last_step:
                _line(row)  # raises for a number that is not finite
                kept.append(row)
        except (ValueError, TypeError, LookupError):
            continue
    return kept
