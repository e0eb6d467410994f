"""Standard streams that are always there, and a stderr whose reader's end ends nothing."""

import contextlib
import os
import sys
from typing import Any, TextIO, cast


def keep_streams() -> None:
    """Opens standard streams that are closed, and lets errors of stderr's reader pass.

    A file that took the number of a closed stream would get what is printed there; and a terminal
    that was closed, or `… 2>&1 | head`, would end hours of work for the sake of a progress line.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", closefd=False))
    sys.stderr = cast(TextIO, _Forgiving(sys.stderr))


class _Forgiving:
    """A stream that loses what it cannot write, and says nothing of it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """As a text stream's; what does not get through is lost."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As a text stream's."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
