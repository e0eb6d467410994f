"""SIGTERM asks a run to save and to end, at a step that all of its processes agree on."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def sigterm_noted() -> Iterator[Callable[[int], bool]]:
    """Keeps SIGTERM from ending this process.

    Yields:
      A function that every process calls after each step, with its number: whether to end now,
      since the signal came to one of them.
    """
    if jax.process_count() > 1:  # JAX has a handler of its own
        yield lambda step: bool(multihost_utils.reached_preemption_sync_point(step))
        return
    came = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda step: came
    finally:
        signal.signal(signal.SIGTERM, before)
