"""Writes each row of metrics to all log backends: console, metrics.jsonl, TensorBoard, W&B."""

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from cellclr_jax.files import is_local
from cellclr_jax.training.log import metrics_file
from cellclr_jax.training.log.console import (
    Console,
    Pace,
)
from cellclr_jax.training.log.metrics_file import (
    METRICS,
    Place,
    Rows,
)
from cellclr_jax.training.log.tensorboard import (
    TENSORBOARD,
    TensorBoard,
)
from cellclr_jax.training.log.wandb import (
    WandB,
    check_installed,
)

# What a reader of `metrics.jsonl` looks for first.
_FIRST = ("loss", "lr", "contrastive_accuracy", "cells_per_second", "input_wait")


class RunLog:
    """Writes the metrics of a run and shows its progress; a process that must not write gets None.

    Args:
      workdir: of the run; None shows and writes nothing (processes other than the first). What
        lies in a bucket (gs://…) cannot be appended to: it is written beside and copied there at
        each epoch's end.
      first_step: where the run starts or goes on; rows of later steps, left by a run that was
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
        self._place: Place | None = None
        self._rows: Rows | None = None
        self._charts: list[TensorBoard | WandB] = []
        if workdir is not None:
            self._open(workdir, first_step, wandb)
        self._collapse = CollapseWatch(minibatch_size, self._rows.kept if self._rows else ())
        self._console = Console(
            workdir is not None,
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
        out. The first row that shows a collapse is marked, and a line says what to try.

        Args:
          step: optimiser steps taken.
          epoch: the running epoch, from 1.
          metrics: Python floats by name, `loss` among them; one that is not finite is left out.
        """
        pace = self._measure(step)
        row: dict[str, Any] = dict(metrics)
        if pace.cells_per_second is not None:
            row["cells_per_second"] = round(pace.cells_per_second, 1)
        if pace.input_wait is not None:
            row["input_wait"] = round(pace.input_wait, 4)
        if reason := self._collapse.look(metrics):
            row[FLAG] = 1
        self._write(step, epoch, {name: row[name] for name in _FIRST if name in row} | row)
        self._console.row(step, epoch, metrics, pace)
        if reason:
            self._warn(step, f"the representation may be collapsing: {reason}; {ADVICE}")

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
          scores: shares in [0, 1] by name (see `online.OnlineScore`); nothing is written of none,
            nor where there is a row of this step already.
        """
        if not scores or self._is_scored(step):
            return
        named = {metrics_file.ONLINE + name: value for name, value in scores.items()}
        self._write(step, epoch, named)
        self._console.scores(step, epoch, scores)
        self._publish()

    def _is_scored(self, step: int) -> bool:
        """Whether a run that is gone on with has scores of this step."""
        rows = self._rows.kept if self._rows is not None else ()
        return any(
            row["step"] == step and any(name.startswith(metrics_file.ONLINE) for name in row)
            for row in rows
        )

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

    def _open(self, workdir: epath.Path, first_step: int, wandb: str | None) -> None:
        self._place = Place(workdir, [METRICS])
        self._rows = Rows(self._place.folder, first_step)
        self._charts.append(TensorBoard(self._place.folder, first_step))
        if wandb:
            self._charts.append(WandB(wandb, workdir, self._place.folder))

    def _measure(self, step: int) -> Pace:
        """The pace since the row before; starts the clock anew."""
        now = time.monotonic()
        rate = wait = left = None
        if self._clock is not None and step > self._clock[1] and now > self._clock[0]:
            seconds = now - self._clock[0]
            rate = (step - self._clock[1]) * self._minibatch_size / seconds
            wait = min(self._waited / seconds, 1.0)
        if self._start is not None and step > self._start[1]:
            left = (self._total - step) * (now - self._start[0]) / (step - self._start[1])
        self._clock, self._waited = (now, step), 0.0
        return Pace(rate, wait, left)

    def _write(self, step: int, epoch: int, row: Mapping[str, Any]) -> None:
        row = {name: value for name, value in row.items() if math.isfinite(value)}
        if self._rows is not None:
            self._rows.write({"step": step, "epoch": epoch, **row})
        for chart in self._charts:
            chart.scalars(step, row)

    def _warn(self, step: int, message: str) -> None:
        self._console.tell(f"warning: {message}")
        for chart in self._charts:
            chart.text(step, "warnings", message)

    def _publish(self) -> None:
        if self._place is not None:
            self._place.publish([METRICS, TENSORBOARD])


FLAG = "collapse_warning"
# Of the first row's spread. A healthy encoder's spread changes by a few times its size, with the
# embeddings' scale; what is left at a hundredth is rounding beside a common offset.
_LEAST_SPREAD = 0.01
# A projection without direction in it guesses; twice a guess's share of hits is still luck.
_CHANCES = 2.0
# Uniformity of projections about 13 degrees from each other: log exp(-2 d²) where d² is 0.05.
_ONE_POINT = -0.1
# One row may be a few steps at the very beginning.
_ROWS = 3

ADVICE = (
    "try a lower --config.optimizer.learning_rate, a longer --config.schedule.warmup_epochs, "
    "a higher --config.temperature or --config.model.head.norm=batch"
)


class CollapseWatch:
    """Looks at each row of training metrics and warns once.

    Two signs. The embeddings' spread falls below a hundredth of what the run began with: encoders
    die so, behind a ReLU that is never open. Or three rows running the contrastive accuracy is no
    better than twice chance while uniformity is above -0.1: the projections lie in one point and
    the loss has no way out of it. The second needs both, since a healthy encoder without
    normalisation begins with a uniformity of -0.04, and a healthy one with it with a guess's
    accuracy; and it needs no spread, which too high a learning rate drives up without bound.

    Args:
      minibatch_size: of training, for chance: a view's other view is one of 2B - 1.
      rows: that the run wrote before it was taken up again: its first spread, and whether it
        warned already.
    """

    def __init__(self, minibatch_size: int, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self._chance = 1 / (2 * minibatch_size - 1)
        self._first_spread: float | None = None
        self._in_one_point = 0
        self._warned = False
        for row in rows:
            self._warned |= FLAG in row
            self._begin(row)

    def look(self, metrics: Mapping[str, float]) -> str:
        """What is wrong, the first time something is; '' otherwise."""
        self._begin(metrics)
        reason = "" if self._warned else self._reason(metrics)
        self._warned |= bool(reason)
        return reason

    def _begin(self, metrics: Mapping[str, Any]) -> None:
        spread = metrics.get("embedding_spread")
        if self._first_spread is None and isinstance(spread, int | float):
            self._first_spread = spread

    def _reason(self, metrics: Mapping[str, float]) -> str:
        spread, first = metrics.get("embedding_spread"), self._first_spread
        if spread is not None and first is not None and spread < _LEAST_SPREAD * first:
            return f"the embeddings' spread fell from {first:.3g} to {spread:.3g}"
        if {"contrastive_accuracy", "uniformity"} <= metrics.keys():
            guesses = metrics["contrastive_accuracy"] <= _CHANCES * self._chance
            together = guesses and metrics["uniformity"] > _ONE_POINT
            self._in_one_point = self._in_one_point + 1 if together else 0
        if self._in_one_point < _ROWS:
            return ""
        accuracy, uniformity = metrics["contrastive_accuracy"], metrics["uniformity"]
        return (
            f"contrastive accuracy {accuracy:.2%} is no better than guessing and uniformity is "
            f"{uniformity:.3f}: all cells are projected to one point"
        )


__all__ = ["METRICS", "TENSORBOARD", "RunLog", "is_local"]
