"""Handles signals that ask a run to save and end, at a step that all its processes agree on."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C", signal.SIGHUP: "SIGHUP"}


class Interrupted(Exception):
    """Raised after a signal, when the state is saved.

    Attributes:
      number: of the signal.
    """

    def __init__(self, number: signal.Signals, step: int) -> None:
        super().__init__(f"{_NAMES[number]}: saved step {step}; the same command resumes there")
        self.number = number


@contextlib.contextmanager
def stop_signals_noted() -> Iterator[Callable[[int], signal.Signals | None]]:
    """Notes SIGTERM, Ctrl-C and SIGHUP (a closed terminal) instead of ending the run at once.

    A second Ctrl-C ends it at once.

    Yields:
      A function that every process calls after each step, with its number: the signal for which
      the run must end now, or None. If another process received it, SIGTERM.
    """
    came: list[signal.Signals] = []
    several = jax.process_count() > 1

    def note(number: int, frame: FrameType | None) -> None:
        if not came:
            when = "at a step that all processes agree on" if several else "after this step"
            with contextlib.suppress(OSError):  # nobody reads it
                os.write(2, f"\n{_NAMES[signal.Signals(number)]}: saving {when}\n".encode())
            if several:  # JAX's handler, only of SIGTERM, informs the others
                signal.raise_signal(signal.SIGTERM)
        came.append(signal.Signals(number))
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def asked(step: int) -> signal.Signals | None:
        if several and not multihost_utils.reached_preemption_sync_point(step):
            return None
        if came:
            return came[0]
        return signal.SIGTERM if several else None

    own = set(_NAMES) - {signal.SIGTERM} if several else set(_NAMES)
    # A job in the background ignores Ctrl-C, which is meant for another one.
    handled = [number for number in own if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in handled}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
