"""Messages, progress bars and counts in words, for every binary."""

import sys
import time
from collections.abc import Iterable

from tqdm import tqdm

# If the console is a file, a line is printed for each such part of the work.
_PROGRESS_LINES = 10
QUICK_S = 2.0
"""`Progress.delay` of work that may be done before anyone waits."""


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
      scaled: whether amounts are written as 1.20M instead of 1,200,000.
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
        """Counts units that are done, and their cells if those are no units.

        A negative number takes back earlier work, such as a download that begins anew.
        """
        before = max(_parts(self._done, self._total), 0)
        self._done += units
        self._cells += cells
        if self._cells:
            self._bar.set_postfix_str(f"{self._cells:,} cells", refresh=False)
        self._bar.update(units)
        took = time.monotonic() - self._began
        if self._lines and took >= self._delay and _parts(self._done, self._total) > before:
            rate = self._done / max(took, 1e-9)
            left = tqdm.format_interval(round((self._total - self._done) / rate))
            found = f"{self._cells:,} cells, " if self._cells else ""
            print(
                f"{self._amount(self._done)}/{self._amount(self._total)} {self._what}, {found}"
                f"{self._amount(rate)} {self._unit}s/s, {left} left",
                file=sys.stderr,
                flush=True,
            )


def _with_commas(amount: float) -> str:
    return f"{amount:,}" if isinstance(amount, int) else f"{amount:,.1f}"


def _parts(done: int, total: int) -> int:
    """How many of the parts with a line of their own are done."""
    return done * _PROGRESS_LINES // max(total, 1)


def plural(count: int, what: str) -> str:
    """Such as '1 cell', '2,000 cells'."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def listed(names: Iterable[object], most: int = 3, separator: str = ", ") -> str:
    """The first few distinct names and how many more there are, such as 'a, b, c and 2 more'."""
    distinct = list(dict.fromkeys(map(str, names)))
    more = f" and {len(distinct) - most:,} more" if len(distinct) > most else ""
    return separator.join(distinct[:most]) + more
