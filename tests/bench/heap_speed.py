"""Milliseconds of the demo's training step with each way to keep the heap, and the peak memory.

python tests/bench/heap_speed.py [--turns=7]

plain: the C library as it is. large pages: GLIBC_TUNABLES=glibc.malloc.hugetlb=1. kept: freed
memory stays in the process (`cli.keep_freed_memory`), as in every binary. The model and the
minibatch are those of configs/simclr_demo.py, on random crops. Each way has a process of its own;
they take turns, and medians over the turns are compared.
"""

import argparse
import contextlib
import resource
import statistics

from step_speed import CASES, ours
from turns import Elsewhere, Step, take_turns

from cellclr_jax import cli

WAYS = ("plain", "large pages", "kept")
CASE = CASES["demo"]


def make(what: str) -> tuple[Step, float]:
    """Returns the step and its seconds; for "peak" nothing to run and the process's peak in MB."""
    if what == "peak":
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return (lambda: None), peak
    if what == "kept":
        cli.keep_freed_memory()
    from cellclr_jax import devices

    devices.use_all_cores(CASE.cells)
    return ours(CASE, "float32")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=7)
    turns = parser.parse_args().turns
    with contextlib.ExitStack() as stack:
        processes = {
            way: stack.enter_context(Elsewhere(make, large_pages=way == "large pages"))
            for way in WAYS
        }
        timers = {way: process.make(way)[0] for way, process in processes.items()}
        taken = take_turns(timers, turns)
        peaks = {way: process.make("peak")[1] for way, process in processes.items()}
    medians = {way: statistics.median(seconds) for way, seconds in taken.items()}
    for way in WAYS:
        print(
            f"{way:12s} {1000 * medians[way]:7.1f} ms a step, "
            f"{medians['plain'] / medians[way]:.2f} times plain's speed, "
            f"{medians['large pages'] / medians[way]:.2f} times that with large pages, "
            f"peak {peaks[way]:,.0f} MB"
        )


if __name__ == "__main__":
    main()
