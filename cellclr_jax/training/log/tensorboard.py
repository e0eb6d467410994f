"""Writes TensorBoard's event files; the only module that imports tensorboardX.

Records are written in the calling thread: an error such as a full disk is then raised in the
training loop, instead of ending a thread for which the program waits later.
"""

import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

from cellclr_jax.training.log.metrics_file import Names

TENSORBOARD = "tensorboard"
_SECONDS_BETWEEN_FLUSHES = 10.0
_FILE = re.compile(r"events\.out\.tfevents\.(\d+)\.")


class TensorBoard:
    """Appends scalars, texts and pictures to a new event file.

    Args:
      folder: folder of the run; files are written to its subfolder `tensorboard`.
      first_step: later steps in earlier files are hidden.
      names: tags and titles of the metrics.
    """

    def __init__(self, folder: Path, first_step: int, names: Names) -> None:
        self._names = names
        directory = folder / TENSORBOARD
        directory.mkdir(parents=True, exist_ok=True)
        self._records = RecordWriter(str(directory / _file_name(directory)))
        self._flushed = time.monotonic()
        self._described: set[str] = set()
        self._write(Event(file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._write(Event(session_log=start, step=first_step + 1))
        layout = {title: ["Multiline", list(tags)] for title, tags in names.charts.items()}
        self._write(Event(summary=summary.custom_scalars({"Overview": layout})))
        self.flush()

    def scalars(self, step: int, row: Mapping[str, float]) -> None:
        """Adds the values of a row, each in its section."""
        for name, value in row.items():
            # TensorBoard reads the description of the first value of each file.
            title = "" if name in self._described else self._names.title(name)
            self._described.add(name)
            point = summary.scalar(self._names.tag(name), value, summary_description=title)
            self._write(Event(summary=point, step=step))
        if time.monotonic() - self._flushed >= _SECONDS_BETWEEN_FLUSHES:
            self.flush()

    def text(self, step: int, name: str, message: str) -> None:
        """Adds a text in Markdown."""
        self._write(Event(summary=summary.text(name, message), step=step))
        self.flush()

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds a picture [H, W, 3] uint8."""
        self._write(Event(summary=summary.image(name, image, dataformats="HWC"), step=step))
        self.flush()

    def flush(self) -> None:
        """Writes buffered records to the file."""
        self._flushed = time.monotonic()
        self._records.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        try:
            self.flush()
        finally:
            self._records.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())


def _file_name(directory: Path) -> str:
    """Returns a name that sorts after existing ones, even if the clock was set back.

    TensorBoard reads files in the order of their names, which start with the time in seconds.
    """
    stamps = [int(found[1]) for path in directory.iterdir() if (found := _FILE.match(path.name))]
    stamp = max([int(time.time()), *(earlier + 1 for earlier in stamps)])
    return f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}"
