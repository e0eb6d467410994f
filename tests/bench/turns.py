"""Programs that take turns at the same machine, some of them in a process of their own."""

import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

# Of glibc 2.35 and newer: its `malloc` asks the system for large pages.
TUNABLES = "GLIBC_TUNABLES"
LARGE_PAGES = "glibc.malloc.hugetlb=1"


# One run of the program, ended when it returns.
Step = Callable[[], object]
# Runs a program so many times; seconds a run.
Timer = Callable[[int], float]
# Makes a program of some arguments: (the program, seconds from nothing to its first result).
Maker = Callable[..., tuple[Step, float]]

# Runs in one turn last about so long together, so that a turn is no single hiccup.
TURN_SECONDS = 1.0


def seconds(run: Step, repeats: int) -> float:
    """Seconds a run, over some of them."""
    began = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - began) / repeats


def take_turns(timers: dict[str, Timer], turns: int) -> dict[str, list[float]]:
    """Seconds a run of each program in each turn.

    Each turn begins with a run that is not timed: while the others ran, the system took back the
    memory that this one had used.
    """
    repeats = {name: max(1, round(TURN_SECONDS / timer(2))) for name, timer in timers.items()}
    taken: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(turns):
        for name, timer in timers.items():
            timer(1)
            taken[name].append(timer(repeats[name]))
    return taken


class Elsewhere:
    """A process in which programs are made and timed; a context manager.

    Args:
      maker: of the programs, a function of a module.
      large_pages: whether its C library asks the system for large pages (a setting of glibc).
    """

    def __init__(self, maker: Maker, *, large_pages: bool = False) -> None:
        context = multiprocessing.get_context("spawn")
        self._calls, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, maker))
        self._tunables = LARGE_PAGES if large_pages else ""

    def __enter__(self) -> "Elsewhere":
        with mock.patch.dict(os.environ, {TUNABLES: self._tunables}):
            self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._calls.send(None)
        self._process.join()

    def make(self, *arguments: Any) -> tuple[Timer, float]:
        """(a timer of the program that the maker makes of these, seconds to its first result).

        Raises:
          RuntimeError: where it cannot be made.
        """
        number, first = self._ask("make", arguments)
        return lambda repeats: self._ask(number, repeats), first

    def _ask(self, *call: Any) -> Any:
        self._calls.send(call)
        answer = self._calls.recv()
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer


def _serve(calls: Connection, maker: Maker) -> None:
    """Does what the process that started this one asks for."""
    runs: list[Step] = []
    while (call := calls.recv()) is not None:
        try:
            if call[0] == "make":
                run, first = maker(*call[1])
                runs.append(run)
                calls.send((len(runs) - 1, first))
            else:
                calls.send(seconds(runs[call[0]], call[1]))
        except Exception as error:  # torch.compile needs a C++ compiler, and fails in many ways
            calls.send(f"{type(error).__name__}: {error}".strip().splitlines()[0])
