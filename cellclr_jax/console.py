"""Messages, progress bars and counts in words, for every binary."""

import sys
import threading
import time
from collections.abc import Mapping

from tqdm import tqdm

# If the console is a file, a line is printed for each such part of the work.
_PROGRESS_LINES = 10


def say(message: str) -> None:
    """Prints a line without breaking a bar."""
    tqdm.write(message, file=sys.stderr)


class Progress:
    """Shows a bar over units of work, or lines if the console is a file.

    Args:
      total: units of work.
      show: whether anything is shown.
      unit: name of one, e.g. field.
      task: what is done with them, e.g. simulated.
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
        """Counts finished units, and the cells that they gave if those are not the units."""
        before = _parts(self._done, self._total)
        self._done += units
        self._cells += cells
        if self._cells:
            self._bar.set_postfix_str(f"{self._cells:,} cells", refresh=False)
        self._bar.update(units)
        if self._lines and _parts(self._done, self._total) > before:
            rate = self._done / max(time.monotonic() - self._began, 1e-9)
            left = tqdm.format_interval(round((self._total - self._done) / rate))
            found = f"{self._cells:,} cells, " if self._cells else ""
            print(
                f"{self._done:,}/{self._total:,} {self._what}, {found}"
                f"{rate:,.1f} {self._unit}s/s, {left} left",
                file=sys.stderr,
                flush=True,
            )


class FilesProgress:
    """Shows a bar over the bytes of all files and one for each, or lines if the console is a file.

    Threads may call it, each for its own files.

    Args:
      sizes: bytes of each file; 0 if unknown.
      there: bytes of each that exist already and do not count for the rate.
      show: whether anything is shown.
      task: what is done with the files.
    """

    def __init__(
        self, sizes: Mapping[str, int], there: Mapping[str, int], show: bool, *, task: str
    ) -> None:
        terminal = sys.stderr.isatty()
        self._bars, self._lines = show and terminal, show and not terminal
        self._sizes, self._reached = dict(sizes), dict(there)
        self._task = task
        self._total = max(sum(sizes.values()), 1)
        self._before = self._most = sum(there.values())
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._all = self._bar(f"{len(sizes)} files {task}", self._total, self._before, keep=True)
        self._each: dict[str, tqdm] = {}

    def __enter__(self) -> "FilesProgress":
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            for bar in (*self._each.values(), self._all):
                bar.close()

    def reach(self, name: str, size: int) -> None:
        """Sets how many bytes a file has now; fewer than before if it was started again."""
        with self._lock:
            if name not in self._each:
                self._each[name] = self._bar(name, self._sizes[name], self._reached[name])
            more = size - self._reached[name]
            self._reached[name] = size
            self._each[name].update(more)
            self._all.update(more)
            self._print_line()

    def end(self, name: str) -> None:
        """Removes the bar of a finished file."""
        with self._lock:
            if name in self._each:
                self._each.pop(name).close()

    def _bar(self, name: str, total: int, there: int, keep: bool = False) -> tqdm:
        return tqdm(
            total=total or None,
            initial=there,
            desc=name,
            unit="B",
            unit_scale=True,
            leave=keep,
            disable=not self._bars,
        )

    def _print_line(self) -> None:
        """Prints a line when a further part of the work is done."""
        done = sum(self._reached.values())
        before, self._most = self._most, max(self._most, done)
        if not self._lines or _parts(self._most, self._total) == _parts(before, self._total):
            return
        rate = (done - self._before) / max(time.monotonic() - self._began, 1e-9)
        left = tqdm.format_interval(round(max(self._total - done, 0) / max(rate, 1e-9)))
        print(
            f"{tqdm.format_sizeof(done)}B/{tqdm.format_sizeof(self._total)}B of "
            f"{len(self._sizes)} files {self._task}, {tqdm.format_sizeof(rate)}B/s, {left} left",
            file=sys.stderr,
            flush=True,
        )


def _parts(done: int, total: int) -> int:
    """Returns how many parts of the work are done."""
    return done * _PROGRESS_LINES // total


def plural(count: int, what: str) -> str:
    """Returns e.g. '1 cell', '2,000 cells'."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
