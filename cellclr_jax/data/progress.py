"""Progress of a build on the console: a bar, or lines where the console is a file."""

import sys
import time

from tqdm import tqdm

# Where the console is a file, progress is a line for each such part of the fields.
_PROGRESS_LINES = 10


class Progress:
    """A bar over the fields with the number of cells; lines where the console is a file."""

    def __init__(self, fields: int, show: bool) -> None:
        terminal = sys.stderr.isatty()
        self._lines = show and not terminal
        self._bar = tqdm(total=fields, unit="field", disable=not (show and terminal))
        self._began = time.monotonic()
        self._fields = fields
        self._done = self._cells = 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def step(self, cells: int) -> None:
        """Counts a field with its cells."""
        self._done += 1
        self._cells += cells
        self._bar.set_postfix_str(f"{self._cells:,} cells", refresh=False)
        self._bar.update()
        tenth = self._done * _PROGRESS_LINES // self._fields
        if self._lines and tenth > (self._done - 1) * _PROGRESS_LINES // self._fields:
            rate = self._done / max(time.monotonic() - self._began, 1e-9)
            left = tqdm.format_interval((self._fields - self._done) / rate)
            print(
                f"{self._done}/{self._fields} fields, {self._cells:,} cells, {rate:.1f} fields/s, "
                f"{left} left",
                file=sys.stderr,
                flush=True,
            )
