"""Writes each row of metrics to all log backends: console, metrics.jsonl, TensorBoard, W&B."""

import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from etils import epath

from cellclr_jax.files import is_local
from cellclr_jax.objectives import Objective
from cellclr_jax.training.log import metrics_file
from cellclr_jax.training.log.console import Console
from cellclr_jax.training.log.metrics_file import METRICS_LOG, Names
from cellclr_jax.training.log.tensorboard import TENSORBOARD, TensorBoard
from cellclr_jax.training.log.wandb import WandB, check_installed

# Marks the row of the printed warning.
_WARNED = "collapse_warning"
# Share of the first row's spread. The spread of a healthy encoder changes by a few times its size
# with the scale of the embeddings; a hundredth of it is rounding of a common offset.
_LEAST_SPREAD = 0.01
# Rows in a row that show a collapse; a single one may be a few steps at the very beginning.
_ROWS = 3


class CollapseWatch:
    """Detects in rows of training metrics, in their order, that the representation collapses.

    Either the spread of the embeddings falls below a hundredth of that of the first row, e.g.
    because a ReLU is never open, or `Objective.sign_of_collapse` sees a collapse in three
    successive rows.
    """

    def __init__(self, objective: Objective, minibatch_size: int) -> None:
        self._objective, self._minibatch_size = objective, minibatch_size
        self._first_spread: float | None = None
        self._signs = 0

    def __call__(self, row: Mapping[str, float]) -> str | None:
        """Returns a warning and what to try, or None."""
        spread = row.get("embedding_spread")
        if self._first_spread is None:
            self._first_spread = spread
        first = self._first_spread
        if spread is not None and first is not None and spread < _LEAST_SPREAD * first:
            reason = f"the embeddings' spread fell from {first:.3g} to {spread:.3g}"
        else:
            reason = self._objective.sign_of_collapse(row, self._minibatch_size)
            self._signs = self._signs + 1 if reason else 0
            if self._signs < _ROWS:
                return None
        return f"the representation may be collapsing: {reason}; {self._objective.advice}"


class RunLog:
    """Writes the metrics of a run and shows its progress.

    The metrics of the objective come first in each row. The first warning of a collapse is printed,
    and its row has "collapse_warning": 1. Files in a bucket (gs://…) cannot be appended to: they
    are written to a temporary folder and copied to the bucket at the end of each epoch.

    Args:
      workdir: work directory; None shows and writes nothing (processes other than the first).
      objective: its metrics are logged, and watched for a collapse.
      first_step: step from which the run starts or resumes; rows of later steps, left by a run that
        was killed after its last checkpoint, are removed.
      total_steps: number of steps of the whole run.
      minibatch_size: cells per step, for the rate.
      steps_per_epoch: steps per epoch.
      wandb: project of Weights & Biases that gets the same rows; None for none.

    Raises:
      BadUse: `wandb` is requested and not installed, on every process.
    """

    def __init__(
        self,
        workdir: epath.Path | None,
        objective: Objective,
        *,
        first_step: int,
        total_steps: int,
        minibatch_size: int,
        steps_per_epoch: int,
        wandb: str | None = None,
    ) -> None:
        if wandb:
            check_installed()
        metrics = objective.reported()
        self._minibatch_size, self._total = minibatch_size, total_steps
        self._clock: tuple[float, int] | None = None
        self._start: tuple[float, int] | None = None
        self._waited = 0.0
        self._first = [metric.name for metric in metrics if metric.better]
        self._first += ["lr", "cells_per_second", "input_wait"]
        self._workdir, self._folder = workdir, None if workdir is None else _local(workdir)
        self._rows: TextIO | None = None
        self._earlier: list[dict[str, Any]] = []
        self._charts: list[TensorBoard | WandB] = []
        if workdir is not None and self._folder is not None:
            names, path = Names(metrics), self._folder / METRICS_LOG
            self._earlier = metrics_file.keep_rows(path, first_step)
            self._rows = path.open("a", encoding="utf-8")
            self._charts.append(TensorBoard(self._folder, first_step, names))
            if wandb:
                self._charts.append(WandB(wandb, workdir, self._folder, names))
        self._watch = CollapseWatch(objective, minibatch_size)
        self._warned = any(_WARNED in row for row in self._earlier)
        for row in self._earlier:
            if "loss" in row:
                self._watch(row)
        self._console = Console(
            workdir is not None,
            metrics,
            first_step=first_step,
            total_steps=total_steps,
            steps_per_epoch=steps_per_epoch,
        )

    def advance(self) -> None:
        """Moves the bar by one step."""
        self._console.advance()

    def restart_clock(self, step: int) -> None:
        """Excludes the time until now, after `step`, from the rate (compilation, saving, …)."""
        self._clock = (time.monotonic(), step)
        self._waited = 0.0
        if self._start is None:
            self._start = self._clock
            self._console.compiled()

    def waited(self, seconds: float) -> None:
        """Adds time in which the devices waited for the next minibatch."""
        self._waited += seconds

    def record(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Writes a row of training metrics with the rate since the last row.

        The rate is left out if the clock was restarted after this step, and so are metrics that
        are not finite.
        """
        speed, seconds_left = self._measure(step)
        row: dict[str, float] = {**metrics, **speed}
        warning = self._watch(metrics)
        is_first = warning is not None and not self._warned
        if is_first:
            self._warned = True
            row[_WARNED] = 1
        self._write(step, epoch, {name: row[name] for name in self._first if name in row} | row)
        self._console.row(step, epoch, row, seconds_left)
        if is_first:
            self._console.line(f"warning: {warning}")
            for chart in self._charts:
                chart.text(step, "warnings", str(warning))

    def record_epoch(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Writes a row of validation metrics, their names prefixed, and prints a line."""
        named = {metrics_file.VALIDATION + name: value for name, value in metrics.items()}
        self._write(step, epoch, named)
        self._console.validation(step, epoch, metrics)
        self._publish()

    def record_scores(self, step: int, epoch: int, scores: Mapping[str, float]) -> None:
        """Writes a row of online scores in [0, 1], their names prefixed, and prints a line.

        Writes nothing without scores, or if there is already a row of scores of this step.
        """
        earlier = [name for row in self._earlier if row["step"] == step for name in row]
        if not scores or any(name.startswith(metrics_file.ONLINE) for name in earlier):
            return
        named = {metrics_file.ONLINE + name: value for name, value in scores.items()}
        self._write(step, epoch, named)
        self._console.scores(step, epoch, scores)
        self._publish()

    def pictures(self, name: str, image: np.ndarray, step: int) -> None:
        """Adds a picture [H, W, 3] uint8 to TensorBoard and Weights & Biases."""
        for chart in self._charts:
            chart.picture(step, name, image)

    def close(self) -> None:
        """Flushes and closes everything."""
        self._console.close()
        if self._rows is not None:
            self._rows.close()
        for chart in self._charts:
            chart.close()
        self._publish()

    def _measure(self, step: int) -> tuple[dict[str, float], float | None]:
        """Measures the speed since the last row and the seconds left, and restarts the clock.

        The speed is {} and the time is None if they were not measured.
        """
        now, speed, left = time.monotonic(), {}, None
        if self._clock is not None and step > self._clock[1] and now > self._clock[0]:
            seconds = now - self._clock[0]
            cells = (step - self._clock[1]) * self._minibatch_size
            speed["cells_per_second"] = round(cells / seconds, 1)
            speed["input_wait"] = round(min(self._waited / seconds, 1.0), 4)
        if self._start is not None and step > self._start[1]:
            left = (self._total - step) * (now - self._start[0]) / (step - self._start[1])
        self._clock, self._waited = (now, step), 0.0
        return speed, left

    def _write(self, step: int, epoch: int, row: Mapping[str, Any]) -> None:
        row = {name: value for name, value in row.items() if math.isfinite(value)}
        if self._rows is not None:
            self._rows.write(metrics_file.as_line({"step": step, "epoch": epoch, **row}))
            self._rows.flush()
        for chart in self._charts:
            chart.scalars(step, row)

    def _publish(self) -> None:
        """Copies the files to the work directory if that is in a bucket."""
        if self._workdir is None or self._folder is None or is_local(self._workdir):
            return
        for file in [self._folder / METRICS_LOG, *(self._folder / TENSORBOARD).iterdir()]:
            target = self._workdir / file.relative_to(self._folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())


def _local(workdir: epath.Path) -> Path:
    """Returns the work directory; for a bucket, a temporary folder with a copy of its metrics."""
    if is_local(workdir):
        return Path(workdir)
    folder = Path(tempfile.mkdtemp(prefix="cellclr_"))
    if (workdir / METRICS_LOG).exists():
        (folder / METRICS_LOG).write_bytes((workdir / METRICS_LOG).read_bytes())
    return folder
