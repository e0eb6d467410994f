"""Messages, progress bars and counts in words, for every binary."""

import sys
import time
from collections.abc import Iterable

from tqdm import tqdm

# Lines printed in total if the console is a file.
_PROGRESS_LINES = 10
QUICK_S = 2.0
"""`Progress.delay` for work that often takes less."""


def echo(message: str) -> None:
    """Prints a line to stderr, above a progress bar if there is one."""
    tqdm.write(message, file=sys.stderr)


class Progress:
    """Shows a progress bar, or lines if the console is a file.

    Args:
      total: units of work.
      show: False shows nothing.
      unit: name of a unit, e.g. field.
      task: what is done with the units, e.g. simulated.
      scaled: writes amounts as 1.20M instead of 1,200,000.
      delay: seconds before anything is shown.
    """

    def __init__(
        self,
        total: int,
        show: bool,
        *,
        unit: str = "field",
        task: str = "",
        scaled: bool = False,
        delay: float = 0.0,
    ) -> None:
        terminal = sys.stderr.isatty()
        self._lines = show and not terminal
        self._unit, self._what = unit, f"{unit}s {task}".strip()
        self._amount = tqdm.format_sizeof if scaled else _with_commas
        self._bar = tqdm(
            total=total,
            desc=task or None,
            unit=unit,
            unit_scale=scaled,
            disable=not (show and terminal),
            delay=delay,
        )
        self._began, self._delay = time.monotonic(), delay
        self._total = total
        self._done = self._cells = 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def step(self, *, units: int = 1, cells: int = 0) -> None:
        """Adds finished units of work, and the cells found in them.

        Negative units subtract earlier work, e.g. of a download that starts again.
        """
        lines_before = max(self._done * _PROGRESS_LINES // max(self._total, 1), 0)
        self._done += units
        self._cells += cells
        if self._cells:
            self._bar.set_postfix_str(f"{self._cells:,} cells", refresh=False)
        self._bar.update(units)
        seconds = time.monotonic() - self._began
        lines = self._done * _PROGRESS_LINES // max(self._total, 1)
        if self._lines and seconds >= self._delay and lines > lines_before:
            rate = self._done / max(seconds, 1e-9)
            left = tqdm.format_interval(round((self._total - self._done) / rate))
            cells_found = f"{self._cells:,} cells, " if self._cells else ""
            echo(
                f"{self._amount(self._done)}/{self._amount(self._total)} {self._what}, "
                f"{cells_found}{self._amount(rate)} {self._unit}s/s, {left} left"
            )


def _with_commas(amount: float) -> str:
    return f"{amount:,}" if isinstance(amount, int) else f"{amount:,.1f}"


def plural(count: int, what: str) -> str:
    """Returns a count with its noun, e.g. '1 cell' or '2,000 cells'."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def listed(names: Iterable[object], most: int = 3, separator: str = ", ") -> str:
    """Joins the first distinct names and the number of the others, e.g. 'a, b, c and 2 more'."""
    distinct = list(dict.fromkeys(map(str, names)))
    more = f" and {len(distinct) - most:,} more" if len(distinct) > most else ""
    return separator.join(distinct[:most]) + more
