"""Runs the pieces of a build in processes or with Apache Beam."""

import contextlib
import io
import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from cellclr_jax.errors import BadData, BadUse

# Items at work or waiting for their turn, for each worker: enough that none idles behind a slow
# item, few enough that memory holds the results (the cells of a field are about 8 MB).
_AHEAD = 3
# What the numerical libraries read as they are loaded. There is a process for each core already.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")

# What a worker may take: three channels of BBBC021 need a quarter of it, whole-camera images all.
WORKER_BYTES = 1 << 30

_MEMINFO = Path("/proc/meminfo")
_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")
# Where nothing tells (not Linux).
_ASSUMED = 8 << 30

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


def available_bytes() -> int:
    """Bytes that can be taken without swapping, within the limits of a container."""
    if not _MEMINFO.exists():
        return _ASSUMED
    lines = _numbers(_MEMINFO.read_text().replace(":", ""))
    return max(0, min([lines["MemAvailable"] << 10, *_group_rooms()]))


def _group_rooms() -> Iterator[int]:
    """What each control group (version 2) of this process, and each around it, has left."""
    for line in _OWN_GROUPS.read_text().splitlines() if _OWN_GROUPS.exists() else ():
        own = _GROUPS / line.split(":", 2)[2].lstrip("/")
        for folder in (own, *own.parents):
            try:
                left = int((folder / "memory.max").read_text())
                left -= int((folder / "memory.current").read_text())
                held = _numbers((folder / "memory.stat").read_text())
            except (OSError, ValueError):  # no such group, or no limit
                continue
            # Pages of files count as taken, and are given back when they are needed.
            yield left + sum(held.get(f"{kind}_file", 0) for kind in ("active", "inactive"))


def _numbers(text: str) -> dict[str, int]:
    """The first number of each line by its first word."""
    parts = (line.split() for line in text.splitlines())
    return {part[0]: int(part[1]) for part in parts if len(part) > 1}


def map_in_order(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[Result]:
    """`map` in many processes, a few items ahead of the consumer of the results.

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


def pipeline_options(flags: Sequence[str]) -> Any:
    """Beam's options from flags such as `--project=p`.

    Raises:
      BadUse: Apache Beam is not installed.
    """
    # While it is loaded, Beam warns of every cloud service whose client is not installed.
    logging.disable(logging.WARNING)
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise BadUse(
            f"--beam_runner needs Apache Beam ({error}): pip install 'cellclr_jax[beam]'"
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    return PipelineOptions(list(flags))


def map_on_beam(
    work: Callable[[Item], Result], items: Sequence[Item], *, runner: str, options: Any
) -> Iterator[Result]:
    """`map` on a cluster, whose machines see the same folders under the same paths.

    Args:
      work: a function that leaves its result in a file and finds it there the next time; it can be
        pickled, as can its items.
      items: what to work on.
      runner: of Beam: DirectRunner, DataflowRunner, FlinkRunner, SparkRunner, …
      options: `pipeline_options`.

    Yields:
      One result an item, in their order, when all of them are there.

    Raises:
      BadUse: an unknown runner.
      BadData: the pipeline failed.
    """
    import apache_beam as beam

    # Its parser explains wrong options at length and ends the process; a failure is reported
    # once, below, not by each of its workers.
    logging.disable(logging.CRITICAL)
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            pipeline = beam.Pipeline(runner=runner, options=options)
            # Reshuffled: the items would otherwise stay with their source, on one machine.
            _ = pipeline | beam.Create(items) | beam.Reshuffle() | beam.Map(work)
            running = pipeline.run()
        running.wait_until_finish()
    except SystemExit as error:
        reason = output.getvalue().strip().rpartition("error: ")[2]
        raise BadUse(f"--beam_option: {reason}") from error
    except Exception as error:
        # In front of what the runner says of its own steps.
        reason = str(error).partition(" [while running")[0]
        if "runner" in reason and isinstance(error, ValueError | ImportError | AttributeError):
            raise BadUse(f"--beam_runner={runner}: {reason}") from error
        raise BadData(f"--beam_runner={runner}: the pipeline failed ({reason})") from error
    finally:
        logging.disable(logging.NOTSET)
    yield from map(work, items)
