"""Times programs in turns on the same machine, some of them in separate processes."""

import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

# A setting of glibc 2.35 and newer, with which `malloc` requests large pages.
TUNABLES = "GLIBC_TUNABLES"
LARGE_PAGES = "glibc.malloc.hugetlb=1"

# Runs a program once and waits for its end.
Step = Callable[[], object]
# Runs a program a number of times; returns seconds a run.
Timer = Callable[[int], float]
# Makes a program from arguments: (the program, seconds to its first result).
Maker = Callable[..., tuple[Step, float]]

# Approximate length of a turn, so that one disturbance does not determine it.
TURN_SECONDS = 1.0


def seconds(run: Step, repeats: int) -> float:
    """Measures mean seconds of several runs."""
    began = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - began) / repeats


def take_turns(timers: dict[str, Timer], turns: int) -> dict[str, list[float]]:
    """Measures seconds a run of each program in each turn.

    Each turn begins with an untimed run, because the system reclaimed the program's memory while
    the others ran.
    """
    repeats = {name: max(1, round(TURN_SECONDS / timer(2))) for name, timer in timers.items()}
    taken: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(turns):
        for name, timer in timers.items():
            timer(1)
            taken[name].append(timer(repeats[name]))
    return taken


class TimingProcess:
    """A process that makes and times programs; a context manager.

    Args:
      maker: a module-level function that makes the programs.
      large_pages: makes its C library request large pages (a setting of glibc).
    """

    def __init__(self, maker: Maker, *, large_pages: bool = False) -> None:
        context = multiprocessing.get_context("spawn")
        self._calls, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, maker))
        self._tunables = LARGE_PAGES if large_pages else ""

    def __enter__(self) -> "TimingProcess":
        with mock.patch.dict(os.environ, {TUNABLES: self._tunables}):
            self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._calls.send(None)
        self._process.join()

    def make(self, *arguments: Any) -> tuple[Timer, float]:
        """Makes a program from arguments; returns (its timer, seconds to its first result).

        Raises:
          RuntimeError: the program cannot be made.
        """
        number, first = self._request("make", arguments)
        return lambda repeats: self._request(number, repeats), first

    def _request(self, *call: Any) -> Any:
        self._calls.send(call)
        response = self._calls.recv()
        if isinstance(response, str):
            raise RuntimeError(response)
        return response


def _serve(calls: Connection, maker: Maker) -> None:
    """Executes the calls of the parent process."""
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
