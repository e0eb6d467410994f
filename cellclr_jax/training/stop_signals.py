"""Handles signals to save and end a run, at a step that all of its processes agree on."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C", signal.SIGHUP: "SIGHUP"}


class Interrupted(Exception):
    """Raised after a signal, when the state is saved; `number` is that of the signal."""

    def __init__(self, number: signal.Signals, step: int) -> None:
        super().__init__(f"{_NAMES[number]}: saved step {step}; the same command resumes there")
        self.number = number


@contextlib.contextmanager
def stop_signals_noted() -> Iterator[Callable[[int], signal.Signals | None]]:
    """Records SIGTERM, Ctrl-C and SIGHUP (a closed terminal) instead of ending the run at once.

    A second Ctrl-C ends the run at once.

    Yields:
      A function that every process calls with the number of each finished step. It returns the
      signal for which the run must end now (SIGTERM if another process received it), or None.
    """
    came: list[signal.Signals] = []
    several = jax.process_count() > 1

    def note(number: int, frame: FrameType | None) -> None:
        if not came:
            when = "at a step that all processes agree on" if several else "after this step"
            with contextlib.suppress(OSError):  # a closed terminal
                os.write(2, f"\n{_NAMES[signal.Signals(number)]}: saving {when}\n".encode())
            if several:  # JAX's handler of SIGTERM informs the other processes
                signal.raise_signal(signal.SIGTERM)
        came.append(signal.Signals(number))
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def should_stop(step: int) -> signal.Signals | None:
        if several and not multihost_utils.reached_preemption_sync_point(step):
            return None
        if came:
            return came[0]
        return signal.SIGTERM if several else None

    numbers = set(_NAMES) - {signal.SIGTERM} if several else set(_NAMES)
    # A job in the background ignores Ctrl-C, which is meant for the program in the foreground.
    handled = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in handled}
    try:
        yield should_stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
