"""Progress of long work on the console: a bar, or lines where the console is a file."""

import sys
import time

from tqdm import tqdm

# Where the console is a file, progress is a line for each such part of the work.
_PROGRESS_LINES = 10


class Progress:
    """A bar over units of work; lines where the console is a file.

    Args:
      total: units of work.
      show: whether anything is shown.
      unit: what they are, e.g. field.
      task: what is done with them where it is not the only thing.
    """

    def __init__(self, total: int, show: bool, *, unit: str = "field", task: str = "") -> None:
        terminal = sys.stderr.isatty()
        self._lines = show and not terminal
        self._unit, self._what = unit, f"{unit}s {task}".strip()
        self._bar = tqdm(total=total, desc=task or None, unit=unit, disable=not (show and terminal))
        self._began = time.monotonic()
        self._total = total
        self._done = self._cells = 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def step(self, *, units: int = 1, cells: int = 0) -> None:
        """Counts units that are done, and the cells that came of them where those are no units."""
        before = self._done * _PROGRESS_LINES // self._total
        self._done += units
        self._cells += cells
        if self._cells:
            self._bar.set_postfix_str(f"{self._cells:,} cells", refresh=False)
        self._bar.update(units)
        if self._lines and self._done * _PROGRESS_LINES // self._total > before:
            rate = self._done / max(time.monotonic() - self._began, 1e-9)
            left = tqdm.format_interval((self._total - self._done) / rate)
            found = f"{self._cells:,} cells, " if self._cells else ""
            print(
                f"{self._done:,}/{self._total:,} {self._what}, {found}"
                f"{rate:,.1f} {self._unit}s/s, {left} left",
                file=sys.stderr,
                flush=True,
            )
