"""Rows of metrics.jsonl; sections and titles of metrics for charts."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cellclr_jax.files import write_text
from cellclr_jax.objectives import Metric

METRICS_LOG = "metrics.jsonl"
VALIDATION, ONLINE = "validation_", "online_"

# Metrics of the loop, for any objective.
_SECTIONS = {
    "optimizer": ("lr", "gradient_norm", "parameter_norm", "update_norm"),
    "speed": ("cells_per_second", "input_wait"),
    "representation": ("collapse_warning",),
}
_TITLES = {
    "input_wait": "share of the time in which the devices waited for the next minibatch",
    "cells_per_second": "without compilation, validation and saving",
    "update_norm": "norm of the optimiser's update",
    "nsc": "accuracy of the MoA of the nearest treatment of another compound, subset of the cells",
    "nscb": "the same for another compound and another batch",
}


class Names:
    """Tags, titles and charts of an objective's metrics for TensorBoard and Weights & Biases."""

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
        """Tags of metrics that share a chart, by the chart's title."""
        self.charts["online scores"] = ("online/.*",)

    def tag(self, name: str) -> str:
        """'validation_loss' → 'validation/loss'; a metric without a section is in 'train'."""
        for prefix in (VALIDATION, ONLINE):
            if name.startswith(prefix):
                return f"{prefix.rstrip('_')}/{name.removeprefix(prefix)}"
        return f"{self._sections.get(name, 'train')}/{name}"

    def title(self, name: str) -> str:
        """Returns one line that explains a metric, or ''."""
        return self._titles.get(name.removeprefix(VALIDATION).removeprefix(ONLINE), "")


def keep_rows(path: Path, last_step: int) -> list[dict[str, Any]]:
    """Removes incomplete lines and rows of steps after `last_step`, which will be trained again.

    Both are left by a run that was killed after its last checkpoint. Returns the remaining rows.
    """
    if not path.exists():
        return []
    rows, lines = [], []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, TypeError, LookupError):
            row = json.loads(line)
            if row["step"] <= last_step:
                lines.append(as_line(row))
                rows.append(row)
    write_text(path, "".join(lines))
    return rows


def as_line(row: Mapping[str, Any]) -> str:
    """Returns a row as a line of JSON; raises ValueError for a number that is not finite."""
    return json.dumps(row, allow_nan=False) + "\n"
