"""Work in a few threads that never keep a process from ending: for waiting, not for computing."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from cellclr_jax.errors import BadData

# Seconds that threads have to end in after Ctrl-C; then they are left to the end of the process.
_GRACE = 1.0
# Seconds after which Ctrl-C is noticed at the latest.
_GLANCE = 0.5

Item = TypeVar("Item")
Result = TypeVar("Result")
# The numbers of items and what became of them.
_Outcomes = queue.SimpleQueue[tuple[int, Any]]


def map_in_threads(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    threads: int,
    stop: threading.Event,
    done: Callable[[], None] = lambda: None,
) -> list[Result | BadData | OSError]:
    """Works on all items, whatever becomes of the others.

    Args:
      work: done in the threads. What it raises of BadData and OSError is a result.
      items: what to work on.
      threads: as many at once.
      stop: set where this ends before its time (Ctrl-C, say): `work` should end soon then, and
        change nothing any more.
      done: called here after each item.

    Returns:
      The result of each item.

    Raises:
      Whatever else `work` raises.
    """
    jobs: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(items)):
        jobs.put(index)
    outcomes: _Outcomes = queue.SimpleQueue()

    def serve() -> None:
        while not stop.is_set():
            try:
                index = jobs.get_nowait()
            except queue.Empty:
                return
            try:
                outcomes.put((index, work(items[index])))
            except Exception as error:
                outcomes.put((index, error))

    # Daemons: a process does not wait for them at its end, where they may wait for a server.
    crew = [threading.Thread(target=serve, daemon=True) for _ in range(min(threads, len(items)))]
    try:
        for thread in crew:
            thread.start()
        results = _collect(outcomes, len(items), done)
    except BaseException:
        stop.set()
        _join(crew)
        raise
    return [results[index] for index in range(len(items))]


def _collect(outcomes: _Outcomes, count: int, done: Callable[[], None]) -> dict[int, Any]:
    """What became of so many items, as it comes; raises what is neither BadData nor OSError."""
    results: dict[int, Any] = {}
    while len(results) < count:
        with contextlib.suppress(queue.Empty):
            index, outcome = outcomes.get(timeout=_GLANCE)
            if isinstance(outcome, Exception) and not isinstance(outcome, BadData | OSError):
                raise outcome
            results[index] = outcome
            done()
    return results


def _join(crew: Sequence[threading.Thread]) -> None:
    """Waits a moment for threads to end."""
    end = time.monotonic() + _GRACE
    for thread in crew:
        if thread.is_alive():
            thread.join(max(end - time.monotonic(), 0.0))
