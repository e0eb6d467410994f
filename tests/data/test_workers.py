"""Work in many processes: order of results, one thread each, a killed worker, free memory."""

import os
import subprocess
import sys
import time

import psutil
import pytest
from threadpoolctl import threadpool_info

from cellclr_jax.data.building import workers
from cellclr_jax.data.building.workers import map_in_order
from cellclr_jax.errors import BadData


def slow_when_early(number: int) -> tuple[int, int]:
    """Returns the number and the process; takes longer for a smaller number."""
    time.sleep(0.02 * max(0, 5 - number))
    return number, os.getpid()


def threads(_: int) -> list[int]:
    """The threads of each numerical library that the process has loaded."""
    import numpy as np

    np.ones((2, 2)) @ np.ones((2, 2))
    return [library["num_threads"] for library in threadpool_info()]


def die_at_two(number: int) -> int:
    """Kills its process as the system does when memory runs out."""
    if number == 2:
        os.kill(os.getpid(), 9)
    return number


@pytest.mark.parametrize("workers", [1, 2])
def test_results_are_in_order(workers: int) -> None:
    numbers, processes = zip(*map_in_order(slow_when_early, range(8), workers), strict=True)
    assert numbers == tuple(range(8))
    assert (os.getpid() in processes) == (workers == 1)
    assert list(map_in_order(slow_when_early, [], workers)) == []


def test_worker_takes_one_thread() -> None:
    counts = [count for found in map_in_order(threads, [0, 1], 2) for count in found]
    assert counts
    assert set(counts) == {1}


def test_killed_worker_is_bad_data() -> None:
    with pytest.raises(BadData, match="killed, most likely because memory ran out"):
        list(map_in_order(die_at_two, range(8), 2))


def test_workers_end_when_their_parent_is_killed() -> None:
    code = (
        "import time\n"
        "from cellclr_jax.data.building.workers import map_in_order\n"
        "if __name__ == '__main__':\n"
        "    results = map_in_order(time.sleep, [0, 600, 600], 2)\n"
        "    next(results)\n"
        "    print('working', flush=True)\n"
        "    next(results)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"working\n"
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert len(workers) >= 2
    assert not psutil.wait_procs(workers, timeout=600)[1]


GIB = 1 << 30


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with 16 GiB free and a process in a group within a group."""
    (tmp_path / "meminfo").write_text("MemTotal: 33554432 kB\nMemAvailable: 16777216 kB\n")
    (tmp_path / "own").write_text("0::/slice/job\n")
    monkeypatch.setattr(workers, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(workers, "_PROCESS_GROUPS", tmp_path / "own")
    monkeypatch.setattr(workers, "_GROUPS", tmp_path / "groups")
    return tmp_path


def group(folder, limit, used, cached=0):
    folder.mkdir(parents=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\nactive_file {cached}\ninactive_file 0\n")


def test_without_limits_the_memory_of_the_machine_counts(machine):
    assert workers.available_bytes() == 16 * GIB
    group(machine / "groups" / "slice" / "job", "max", 3 * GIB)
    assert workers.available_bytes() == 16 * GIB


def test_the_smallest_limit_counts_and_cached_files_are_free_memory(machine):
    group(machine / "groups" / "slice" / "job", 8 * GIB, 7 * GIB, cached=2 * GIB)
    assert workers.available_bytes() == 3 * GIB
    (machine / "groups" / "slice" / "memory.max").write_text(f"{4 * GIB}")
    (machine / "groups" / "slice" / "memory.current").write_text(f"{3 * GIB}")
    (machine / "groups" / "slice" / "memory.stat").write_text("")
    assert workers.available_bytes() == GIB
