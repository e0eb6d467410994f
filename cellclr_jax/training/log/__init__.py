"""Writes each row of metrics to all log backends: console, metrics.jsonl, TensorBoard, W&B."""

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from etils import epath

from cellclr_jax.files import is_local
from cellclr_jax.objectives import Metric
from cellclr_jax.training.log import metrics_file
from cellclr_jax.training.log.console import Console
from cellclr_jax.training.log.metrics_file import METRICS_LOG, Names
from cellclr_jax.training.log.tensorboard import TENSORBOARD, TensorBoard
from cellclr_jax.training.log.wandb import WandB, check_installed

# In the row for which `advice` had a warning.
_WARNED = "collapse_warning"


class RunLog:
    """Writes the metrics of a run and shows its progress.

    Args:
      workdir: of the run; None shows and writes nothing (processes other than the first). Files
        in a bucket (gs://…) cannot be appended to: they are written to a temporary folder and
        copied to the bucket at each epoch's end.
      metrics: of the objective; they come first in each row, in this order.
      advice: looks at each row of training metrics, in order, and returns a warning or None. The
        first warning of a run is printed, and the row is marked by "collapse_warning": 1.
      first_step: where the run starts or resumes; rows of later steps, left by a run that was
        killed after its last checkpoint, are dropped.
      total_steps: of the whole run.
      minibatch_size: cells of a step, for the rate.
      steps_per_epoch: optimiser steps.
      wandb: a project of Weights & Biases that gets the same; None for none.

    Raises:
      BadUse: `wandb` is asked for and not installed, on every process.
    """

    def __init__(
        self,
        workdir: epath.Path | None,
        *,
        metrics: Sequence[Metric] = (),
        advice: Callable[[Mapping[str, float]], str | None] | None = None,
        first_step: int,
        total_steps: int,
        minibatch_size: int,
        steps_per_epoch: int,
        wandb: str | None = None,
    ) -> None:
        if wandb:
            check_installed()
        self._minibatch_size, self._total = minibatch_size, total_steps
        self._clock: tuple[float, int] | None = None
        self._start: tuple[float, int] | None = None
        self._waited = 0.0
        self._first = [metric.name for metric in metrics if metric.better]
        self._first += ["lr", "cells_per_second", "input_wait"]
        self._workdir, self._folder = workdir, None if workdir is None else _local(workdir)
        self._rows: TextIO | None = None
        self._kept: list[dict[str, Any]] = []
        self._charts: list[TensorBoard | WandB] = []
        if workdir is not None and self._folder is not None:
            names, path = Names(metrics), self._folder / METRICS_LOG
            self._kept = metrics_file.keep_rows(path, first_step)
            self._rows = path.open("a", encoding="utf-8")
            self._charts.append(TensorBoard(self._folder, first_step, names))
            if wandb:
                self._charts.append(WandB(wandb, workdir, self._folder, names))
        self._advice, self._warned = advice, False
        for row in self._kept:
            self._warned |= _WARNED in row
            if "loss" in row:
                self._warning(row)
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
        """Leaves what happened until now (compilation, validation, saving) out of the rate.

        Args:
          step: that was just done; after the first call, everything is compiled.
        """
        self._clock = (time.monotonic(), step)
        self._waited = 0.0
        if self._start is None:
            self._start = self._clock
            self._console.compiled()

    def waited(self, seconds: float) -> None:
        """Counts time in which the loop stood still for want of the next minibatch."""
        self._waited += seconds

    def record(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Writes a row of training metrics with the rate since the last one.

        A rate that was not measured, because the clock was started after this very step, is left
        out.

        Args:
          step: optimiser steps taken.
          epoch: the running epoch, from 1.
          metrics: Python floats by name, `loss` among them; one that is not finite is left out.
        """
        speed, seconds_left = self._measure(step)
        row: dict[str, float] = {**metrics, **speed}
        if warning := self._warning(metrics):
            self._warned = True
            row[_WARNED] = 1
        self._write(step, epoch, {name: row[name] for name in self._first if name in row} | row)
        self._console.row(step, epoch, row, seconds_left)
        if warning:
            self._console.line(f"warning: {warning}")
            for chart in self._charts:
                chart.text(step, "warnings", warning)

    def record_epoch(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Writes a row of validation metrics, their names prefixed, and prints a line."""
        named = {metrics_file.VALIDATION + name: value for name, value in metrics.items()}
        self._write(step, epoch, named)
        self._console.validation(step, epoch, metrics)
        self._publish()

    def record_scores(self, step: int, epoch: int, scores: Mapping[str, float]) -> None:
        """Writes a row of online scores, their names prefixed, and prints a line.

        Args:
          step: optimiser steps taken.
          epoch: that just ended.
          scores: shares in [0, 1] by name (see `online_scores.OnlineScore`); nothing is written
            without scores, nor where there is a row of this step already.
        """
        of_step = (row for row in self._kept if row["step"] == step)
        if not scores or any(
            name.startswith(metrics_file.ONLINE) for row in of_step for name in row
        ):
            return
        named = {metrics_file.ONLINE + name: value for name, value in scores.items()}
        self._write(step, epoch, named)
        self._console.scores(step, epoch, scores)
        self._publish()

    def pictures(self, name: str, image: np.ndarray, step: int) -> None:
        """Shows a picture [H, W, 3] uint8 wherever pictures are shown."""
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
        """Measures the speed since the row before, and starts the clock anew.

        Returns:
          ({"cells_per_second", "input_wait": share of the time in which the loop waited for the
          next minibatch}, {} if it was not measured; seconds left of the run, None likewise).
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

    def _warning(self, row: Mapping[str, float]) -> str | None:
        """The warning that a row deserves, unless the run has had one."""
        found = None if self._advice is None else self._advice(row)
        return None if self._warned else found

    def _publish(self) -> None:
        """Copies the files to the work directory if that is in a bucket."""
        if self._workdir is None or self._folder is None or is_local(self._workdir):
            return
        files = [self._folder / METRICS_LOG, *(self._folder / TENSORBOARD).iterdir()]
        for file in files:
            target = self._workdir / file.relative_to(self._folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())


def _local(workdir: epath.Path) -> Path:
    """Returns a folder for files that grow: the work directory, or for a bucket a temporary one."""
    if is_local(workdir):
        return Path(workdir)
    folder = Path(tempfile.mkdtemp(prefix="cellclr_"))
    if (workdir / METRICS_LOG).exists():
        (folder / METRICS_LOG).write_bytes((workdir / METRICS_LOG).read_bytes())
    return folder
