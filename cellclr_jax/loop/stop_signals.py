"""Signals that ask a run to save and to end, at a step that all of its processes agree on."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C", signal.SIGHUP: "SIGHUP"}


class Interrupted(Exception):
    """A signal asked for an end; the state was saved.

    Attributes:
      number: of the signal.
    """

    def __init__(self, number: signal.Signals, step: int) -> None:
        super().__init__(
            f"{_NAMES[number]}: saved step {step}; the same command goes on from there"
        )
        self.number = number


@contextlib.contextmanager
def stop_signals_noted() -> Iterator[Callable[[int], signal.Signals | None]]:
    """Keeps SIGTERM, and in a run of one process Ctrl-C and SIGHUP, from ending it at once.

    A second Ctrl-C does. SIGHUP comes where a terminal is closed.

    Yields:
      A function that every process calls after each step, with its number: the signal that came to
      one of them, since which the run is to end now, or None.
    """
    if jax.process_count() > 1:  # JAX has a handler of its own, for SIGTERM alone
        reached = multihost_utils.reached_preemption_sync_point
        yield lambda step: signal.SIGTERM if reached(step) else None
        return
    came: list[signal.Signals] = []

    def note(number: int, frame: FrameType | None) -> None:
        if not came:
            told = f"\n{_NAMES[signal.Signals(number)]}: saving after this step\n"
            with contextlib.suppress(OSError):  # nobody reads it
                os.write(2, told.encode())
        came.append(signal.Signals(number))
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    # A job in the background ignores Ctrl-C, which is meant for another one.
    heard = [number for number in _NAMES if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in heard}
    try:
        yield lambda step: came[0] if came else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
