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

# Submitted items per worker: enough to keep workers busy behind a slow item, few enough to hold
# the results in memory (the cells of a field are about 8 MB).
_AHEAD = 3
# Environment variables that numerical libraries read when they are loaded. There is one process
# per core, so each needs only one thread.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")

# Memory of a worker: three channels of BBBC021 need a quarter of it, full-camera images all of it.
WORKER_BYTES = 1 << 30

_MEMINFO = Path("/proc/meminfo")
_PROCESS_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")
# Free memory to assume on systems other than Linux.
_ASSUMED = 8 << 30

Item = TypeVar("Item")
Result = TypeVar("Result")


def usable_cores() -> int:
    """Counts the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux; a container may have fewer cores than the machine
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usable_workers() -> int:
    """Computes the number of processes that cores and free memory allow."""
    return max(1, min(usable_cores(), available_bytes() // WORKER_BYTES))


def available_bytes() -> int:
    """Bytes that can be allocated without swapping, within the limits of a container."""
    if not _MEMINFO.exists():
        return _ASSUMED
    lines = _numbers(_MEMINFO.read_text().replace(":", ""))
    return max(0, min([lines["MemAvailable"] << 10, *_group_limits()]))


def _group_limits() -> Iterator[int]:
    """Free bytes of each control group (version 2) of this process and of their parents."""
    for line in _PROCESS_GROUPS.read_text().splitlines() if _PROCESS_GROUPS.exists() else ():
        group = _GROUPS / line.split(":", 2)[2].lstrip("/")
        for folder in (group, *group.parents):
            try:
                free = int((folder / "memory.max").read_text())
                free -= int((folder / "memory.current").read_text())
                used = _numbers((folder / "memory.stat").read_text())
            except (OSError, ValueError):  # no such group, or no limit
                continue
            # Cached pages of files count as used, but are released when memory is needed.
            yield free + sum(used.get(f"{kind}_file", 0) for kind in ("active", "inactive"))


def _numbers(text: str) -> dict[str, int]:
    """Parses lines of a word and a number; returns the numbers by word."""
    parts = (line.split() for line in text.splitlines())
    return {part[0]: int(part[1]) for part in parts if len(part) > 1}


def map_in_order(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[Result]:
    """`map` in many processes, a few items ahead of the consumer of the results.

    Args:
      work: a function; it, its items and its results can be pickled.
      items: arguments of `work`.
      workers: processes; with 1, `work` runs in this process. Workers end when this process ends,
        also when it is killed.

    Yields:
      One result per item, in the order of the items.

    Raises:
      BadData: a worker process was killed.
      Any error that `work` raises.
    """
    workers = min(workers, len(items))
    if workers <= 1:
        yield from map(work, items)
        return
    # Unlike a forked process, a spawned one inherits no threads, locks or open files.
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise BadData(
            "a worker process was killed, most likely because memory ran out: use fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Limits a worker to one thread, ignores Ctrl-C, and ends the worker when its parent ends."""
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        """Waits for the end of the parent."""
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def pipeline_options(flags: Sequence[str]) -> Any:
    """Beam's options from flags such as `--project=p`.

    Raises:
      BadUse: Apache Beam is not installed.
    """
    # On import, Beam warns about every cloud service without an installed client.
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
    """`map` on a cluster of machines that share folders under the same paths.

    Args:
      work: a function that stores its result in a file and returns it from there when called again;
        it and its items can be pickled.
      items: arguments of `work`.
      runner: of Beam: DirectRunner, DataflowRunner, FlinkRunner, SparkRunner, …
      options: `pipeline_options`.

    Yields:
      One result per item, in the order of the items, after all are finished.

    Raises:
      BadUse: an unknown runner.
      BadData: the pipeline failed.
    """
    import apache_beam as beam

    # For a wrong option, its parser prints its usage and ends the process. A failure is reported
    # once below instead of by each worker.
    logging.disable(logging.CRITICAL)
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            pipeline = beam.Pipeline(runner=runner, options=options)
            # Without Reshuffle all items would stay on one machine.
            _ = pipeline | beam.Create(items) | beam.Reshuffle() | beam.Map(work)
            running = pipeline.run()
        running.wait_until_finish()
    except SystemExit as error:
        reason = output.getvalue().strip().rpartition("error: ")[2]
        raise BadUse(f"--beam_option: {reason}") from error
    except Exception as error:
        # Removes the runner's description of its steps.
        reason = str(error).partition(" [while running")[0]
        if "runner" in reason and isinstance(error, ValueError | ImportError | AttributeError):
            raise BadUse(f"--beam_runner={runner}: {reason}") from error
        raise BadData(f"--beam_runner={runner}: the pipeline failed ({reason})") from error
    finally:
        logging.disable(logging.NOTSET)
    yield from map(work, items)
