"""metrics.jsonl, in a folder or in a bucket."""

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from cellclr_jax.files import is_local

VALIDATION, ONLINE = "validation_", "online_"
_SECTIONS = {
    "train": ("loss", "contrastive_accuracy"),
    "representation": ("alignment", "uniformity", "embedding_spread", "collapse_warning"),
    "optimizer": ("lr", "gradient_norm", "parameter_norm", "update_norm"),
    "speed": ("cells_per_second", "input_wait"),
}
_SECTION_OF = {name: section for section, names in _SECTIONS.items() for name in names}
_MEANINGS = {
    "loss": "NT-Xent, mean over minibatches",
    "contrastive_accuracy": "share of views whose nearest other view is of the same cell",
    "alignment": "mean squared distance of a cell's two projections, 0 to 4; lower is closer",
    "uniformity": "log of the mean Gaussian of distances between cells; 0: all in one point",
    "embedding_spread": "mean standard deviation of an embedding's features over cells",
    "input_wait": "share of the time in which the loop waited for the next minibatch",
    "cells_per_second": "without compilation, validation and saving",
    "update_norm": "length of the step that the optimiser took",
    "nsc": "MoA of the nearest treatment of another compound, of a subset of the cells",
    "nscb": "the same, of another compound and another batch",
}


def tag(name: str) -> str:
    """'validation_loss' → 'validation/loss'; what has no section goes to 'train'."""
    for prefix in (VALIDATION, ONLINE):
        if name.startswith(prefix):
            return f"{prefix.rstrip('_')}/{name.removeprefix(prefix)}"
    return f"{_SECTION_OF.get(name, 'train')}/{name}"


def meaning(name: str) -> str:
    """One line on what a number says, or ''."""
    return _MEANINGS.get(name.removeprefix(VALIDATION).removeprefix(ONLINE), "")


OVERVIEW = {
    "loss": ("train/loss", "validation/loss"),
    "contrastive accuracy": ("train/contrastive_accuracy", "validation/contrastive_accuracy"),
    "online scores": ("online/.*",),
    "representation": ("representation/alignment", "representation/uniformity"),
}
"""Charts that lie over each other what belongs together: regular expressions of tags by title."""


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


class Place:
    """A folder that files can be appended to.

    Args:
      workdir: of the run. What lies in a bucket (gs://…) cannot be appended to: files are written
        into a temporary folder and copied there whole.
      taken_over: names of files that go on where an earlier call of the run left them.

    Attributes:
      workdir: as given.
      folder: of this machine, the work directory itself where that is one.
    """

    def __init__(self, workdir: epath.Path, taken_over: Iterable[str]) -> None:
        self.workdir = workdir
        if is_local(workdir):
            self.folder = Path(workdir)
            return
        self.folder = Path(tempfile.mkdtemp(prefix="cellclr_"))
        for name in taken_over:
            if (workdir / name).exists():
                (self.folder / name).write_bytes((workdir / name).read_bytes())

    def publish(self, names: Iterable[str]) -> None:
        """Copies files and the files of folders to the bucket; nothing where there is none."""
        if is_local(self.workdir):
            return
        for name in names:
            path = self.folder / name
            for source in sorted(path.iterdir()) if path.is_dir() else [path]:
                target = self.workdir / source.relative_to(self.folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes())
