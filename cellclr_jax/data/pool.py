"""Work on many items in many processes: results in order, and no process that outlives its parent.

Imports nothing heavy, so that a worker sets its number of threads before NumPy counts the cores.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from cellclr_jax.cli import BadData
from cellclr_jax.data.memory import available_bytes

# Items at work or waiting for their turn, for each worker: enough that none idles behind a slow
# item, few enough that memory holds the results (the cells of a field are about 8 MB).
_AHEAD = 3
# What the numerical libraries read as they are loaded. There is a process for each core already.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")

# What a worker may take: three channels of BBBC021 need a quarter of it, whole-camera images all.
WORKER_BYTES = 1 << 30

Item = TypeVar("Item")
Result = TypeVar("Result")


def usable_cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux, where a container may hold fewer than the machine
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usable_workers() -> int:
    """The number of processes that cores and free memory allow."""
    return max(1, min(usable_cores(), available_bytes() // WORKER_BYTES))


def map_in_order(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[Result]:
    """`map` in many processes, a few items ahead of whoever takes the results.

    Args:
      work: a function that can be pickled, as are its items and results.
      items: what to work on.
      workers: processes; 1 works in this one. They end with this one, even when it is killed.

    Yields:
      One result an item, in their order.

    Raises:
      BadData: a worker process was killed.
      Whatever `work` raises.
    """
    workers = min(workers, len(items))
    if workers <= 1:
        yield from map(work, items)
        return
    # A spawned process inherits no threads, locks or open files, whatever this one has started.
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    try:
        yield from _in_order(pool, work, items, _AHEAD * workers)
    except BrokenProcessPool as error:
        raise BadData(
            "a worker process was killed, most likely for want of memory: use fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor,
    work: Callable[[Item], Result],
    items: Sequence[Item],
    ahead: int,
) -> Iterator[Result]:
    """`map` with at most `ahead` items handed out whose result has not been taken."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _start_worker() -> None:
    """Takes one thread, leaves Ctrl-C to the parent, and ends with it even when it is killed."""
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
