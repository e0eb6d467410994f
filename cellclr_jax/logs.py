"""What a run tells: `metrics.jsonl`, TensorBoard, and progress on the console.

The only file that imports a TensorBoard writer.
"""

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import tensorboardX
from etils import epath
from tqdm import tqdm

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
# Without a terminal a line every so many seconds tells that the run is alive.
_SECONDS_BETWEEN_LINES = 10.0


def say(message: str) -> None:
    """Prints a line without breaking a progress bar."""
    tqdm.write(message, file=sys.stderr)


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
    """

    def __init__(
        self, workdir: epath.Path | None, *, first_step: int, total_steps: int, minibatch_size: int
    ) -> None:
        self._minibatch_size = minibatch_size
        self._total = total_steps
        self._clock = (time.monotonic(), first_step)
        self._last_line = time.monotonic()
        self._file = self._writer = None
        if workdir is None:
            self._bar = tqdm(disable=True)
            return
        self._workdir = workdir
        self._local = _local_folder(workdir)
        _drop_rows_after(self._local / METRICS, first_step)
        self._file = (self._local / METRICS).open("a", encoding="utf-8")
        self._writer = tensorboardX.SummaryWriter(
            str(self._local / TENSORBOARD), purge_step=first_step + 1, flush_secs=10
        )
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            unit="step",
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )

    def advance(self) -> None:
        """Moves the bar by one step."""
        self._bar.update()

    def restart_clock(self, step: int) -> None:
        """Leaves what happened until now (compilation, validation, saving) out of the rate."""
        self._clock = (time.monotonic(), step)

    def record(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Writes a row of training metrics with the rate since the last one.

        Args:
          step: optimiser steps taken.
          epoch: the running epoch, from 1.
          metrics: Python floats by name, each finite.
        """
        now = time.monotonic()
        seconds, steps = now - self._clock[0], step - self._clock[1]
        self._clock = (now, step)
        rate = steps * self._minibatch_size / seconds if seconds > 0 else 0.0
        self._write(step, {"epoch": epoch, **metrics, "cells_per_second": round(rate, 1)})
        self._bar.set_postfix_str(f"loss {metrics['loss']:.3f}, {rate:,.0f} cells/s")
        if self._bar.disable and now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            left = (self._total - step) * self._minibatch_size / rate if rate else float("inf")
            self._print(
                f"step {step}/{self._total}  epoch {epoch}  loss {metrics['loss']:.4f}  "
                f"accuracy {metrics['contrastive_accuracy']:.1%}  {rate:,.0f} cells/s  "
                f"{tqdm.format_interval(left) if left < float('inf') else '?'} left"
            )

    def record_epoch(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Writes a row of validation metrics, their names prefixed, and prints a line."""
        named = {f"validation_{name}": value for name, value in metrics.items()}
        self._write(step, {"epoch": epoch, **named})
        self._print(
            f"epoch {epoch}  step {step}/{self._total}  validation loss {metrics['loss']:.4f}  "
            f"accuracy {metrics['contrastive_accuracy']:.1%}"
        )
        self._publish()

    def close(self) -> None:
        """Flushes and closes all files."""
        self._bar.close()
        if self._file is not None and self._writer is not None:
            self._file.close()
            self._writer.close()
            self._publish()

    def _write(self, step: int, row: Mapping[str, float]) -> None:
        if self._file is None or self._writer is None:
            return
        self._file.write(json.dumps({"step": step, **row}, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)

    def _publish(self) -> None:
        """Copies what was written to the work directory where that is a bucket."""
        if self._file is None or is_local(self._workdir):
            return
        for path in (self._local / METRICS, *(self._local / TENSORBOARD).iterdir()):
            target = self._workdir / path.relative_to(self._local)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())

    def _print(self, message: str) -> None:
        if self._file is not None:
            say(message)


def is_local(path: epath.Path) -> bool:
    """Whether a path lies in a file system of this machine."""
    return "://" not in str(path)


def _local_folder(workdir: epath.Path) -> Path:
    """Where files are appended to: the work directory, or a folder with a copy of its metrics."""
    if is_local(workdir):
        return Path(workdir)
    local = Path(tempfile.mkdtemp(prefix="cellclr_"))
    if (workdir / METRICS).exists():
        (local / METRICS).write_bytes((workdir / METRICS).read_bytes())
    return local


def _drop_rows_after(path: Path, step: int) -> None:
    """Removes rows of later steps and a line cut off by a crash."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row["step"] <= step:
            kept.append(line + "\n")
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)
