"""Measures how fast plates are built into shards, and the time of each step.

  python tests/bench/build_speed.py [--sites=2] [--workers=2]

Simulates plates of 1024×1280×3 16-bit fields as TIFFs in a temporary folder, builds them with
illumination, segmentation and quality measures, and prints fields a second, the largest memory of a
worker, and the time for the 13,200 fields of BBBC021 at that rate; then the time of each step on
one core.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from cellclr_jax.data import crops, segmentation
from cellclr_jax.data.building.extraction import CropSettings, extract_field
from cellclr_jax.data.illumination import block_means, estimate_light
from cellclr_jax.data.quality.measures import measure_images
from cellclr_jax.data.sources import open_source
from cellclr_jax.data.sources.bbbc021_plates import RELEASE_COLUMNS
from cellclr_jax.data.sources.source import Request
from cellclr_jax.data.tables.bbbc021 import CHANNELS
from cellclr_jax.simulation import SimulatorSettings, simulate_release

BBBC021_FIELDS = 13_200
STEPS_REPEATED = 10


def main() -> None:
    """Simulates, builds, measures, prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    settings = SimulatorSettings(weeks=2, plates_per_week=1, sites=options.sites)
    with tempfile.TemporaryDirectory() as folder:
        release = Path(folder, "release")
        simulate_release(release, settings)
        fields = len(list(release.glob("ground_truth/*/*.npz")))
        for workers in sorted({1, options.workers}):
            build(release, Path(folder, f"data{workers}"), fields, workers)
        print_steps(release)


def build(release: Path, data_dir: Path, fields: int, workers: int) -> None:
    """Runs the build command and prints the rate."""
    command = [
        sys.executable,
        "-m",
        "cellclr_jax.build",
        "--source=raw",
        "--illumination=regression",
    ]
    command += [f"--input={release}", f"--data_dir={data_dir}", f"--workers={workers}"]
    began = time.monotonic()
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    largest = 0
    while process.poll() is None:
        largest = max(largest, *worker_memory(process))
        time.sleep(0.05)
    seconds = time.monotonic() - began
    assert process.returncode == 0, "the build failed"
    hours = BBBC021_FIELDS / (fields / seconds) / 3600
    print(
        f"{workers} workers: {fields} fields in {seconds:.1f} s, {fields / seconds:.2f} fields/s "
        f"(including start and quality page), at most {largest / 2**20:.0f} MiB a process; "
        f"{BBBC021_FIELDS:,} fields: {hours:.2f} h",
        flush=True,
    )


def worker_memory(process: psutil.Process) -> list[int]:
    """Lists the bytes of a process and each of its children."""
    sizes = [0]
    try:
        for one in [process, *process.children(recursive=True)]:
            sizes.append(one.memory_info().rss)
    except psutil.NoSuchProcess:
        pass
    return sizes


def print_steps(release: Path) -> None:
    """Prints the milliseconds that each step takes for one field."""
    fields = open_source("raw", Request((release,))).fields[:STEPS_REPEATED]
    settings = CropSettings(96, CHANNELS, RELEASE_COLUMNS)
    images = [field.read() for field in fields]
    blocks = [block_means(image) for image in images]
    light = estimate_light(blocks, images[0].shape[:2], CHANNELS)
    labels = [segmentation.segment_nuclei(image[..., 0]) for image in images]
    centers = [crops.nucleus_centers(one) for one in labels]
    print(f"cells a field: {np.mean([len(one) for one in centers]):.0f}; ms a field on one core:")
    print_time("read three zlib TIFFs", lambda i: fields[i].read())
    print_time("means for the light", lambda i: block_means(images[i]))
    print_time("correct the light", lambda i: light.apply(images[i]))
    print_time("measure quality", lambda i: measure_images(images[i][None], CHANNELS))
    print_time("find nuclei", lambda i: segmentation.segment_nuclei(images[i][..., 0]))
    print_time("cut crops", lambda i: crops.extract_crops(images[i], centers[i]))
    print_time("all, light corrected", lambda i: extract_field(fields[i], settings, light))


def print_time(name: str, step: Callable[[int], object]) -> None:
    """Prints the mean milliseconds of a step over the fields."""
    step(0)
    began = time.perf_counter()
    for i in range(STEPS_REPEATED):
        step(i)
    print(f"  {name:<36}{(time.perf_counter() - began) / STEPS_REPEATED * 1e3:8.1f}")


if __name__ == "__main__":
    main()
