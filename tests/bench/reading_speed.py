"""Compares reading rates of a dataset and of one image file per cell, on one core and on two.

    python tests/bench/reading_speed.py [--minibatch=256] [--cells=3000]

Simulates two plates in a temporary folder and builds their 96×96×3 uint16 cells; random minibatches
are read from shards, mapped and from memory as in training: by Grain, with a thread for each core.
The loader for comparison opens one 16-bit image file a cell, in the usual size of exported crops,
and resizes it. All files are in the page cache.

Two rates are upper bounds: only zstd decompression of the same pixels, and only copying.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import grain
import imagecodecs
import numpy as np
import skimage.transform
import tifffile
from simulated_cells import build_simulated

from cellclr_jax.data import dataset as datasets

SIDE, FILE_SIDE = 96, 110
SECONDS = 2.0  # shortest measurement of a rate
REPEATS = 3
# Minibatches that Grain reads ahead, as in training.
AHEAD = 4

Read = Callable[[np.ndarray], np.ndarray]


def read_png(path: Path) -> np.ndarray:
    """Reads a PNG as [H, W, C] uint16."""
    return imagecodecs.png_decode(path.read_bytes())


def read_tiff(path: Path) -> np.ndarray:
    """Reads a TIFF as [H, W, C] uint16."""
    return tifffile.imread(path)


def write_files(images: np.ndarray, folder: Path) -> None:
    """Writes one PNG and one TIFF of each image."""
    for number, image in enumerate(images):
        (folder / f"{number}.png").write_bytes(imagecodecs.png_encode(image))
        tifffile.imwrite(folder / f"{number}.tif", image, photometric="rgb")


def from_files(folder: Path, suffix: str, resize: bool) -> Read:
    """Makes a function that reads a minibatch from files, one per cell."""
    load = {"png": read_png, "tif": read_tiff}[suffix]

    def read_one(row: int) -> np.ndarray:
        image = load(folder / f"{row}.{suffix}")
        if not resize:
            return image
        small = skimage.transform.resize(
            image, (SIDE, SIDE), order=1, anti_aliasing=True, preserve_range=True
        )
        return small.astype(np.uint16)

    return lambda rows: np.stack([read_one(row) for row in rows.tolist()])


def unpacking(images: np.ndarray) -> Read:
    """Makes a function that only decompresses the pixels of cells."""
    packed = [imagecodecs.zstd_encode(image.tobytes(), level=1) for image in images]
    out = bytearray(images[0].nbytes)

    def read(rows: np.ndarray) -> np.ndarray:
        for row in rows.tolist():
            imagecodecs.zstd_decode(packed[row], out=out)
        return rows

    return read


def rate(read: Read, cells: int, minibatch: int, threads: int) -> float:
    """Measures the highest rate of cells a second in random order."""
    rng, best = np.random.default_rng(0), 0.0
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=AHEAD)
    orders = [rng.integers(0, cells, minibatch) for _ in range(1000)]
    dataset = grain.MapDataset.range(len(orders)).map(lambda i: read(orders[i])).repeat()
    for _ in range(REPEATS):
        minibatches = iter(dataset.to_iter_dataset(options))
        next(minibatches)
        done, began = 0, time.perf_counter()
        while (seconds := time.perf_counter() - began) < SECONDS / REPEATS:
            next(minibatches)
            done += minibatch
        best = max(best, done / seconds)
        minibatches.close()
    return best


def rates(dataset: Path, files: Path, cores: int, cells: int, minibatch: int) -> dict[str, float]:
    """Measures all rates in this process, limited to `cores` cores."""
    # Set before any thread starts, since a thread keeps its set of cores.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:])
    sources = {
        access: datasets.open_images(dataset, access, progress=False) for access in datasets.ACCESS
    }
    memory = sources["mapped"].read(np.arange(cells))
    readers: dict[str, Read] = {name: source.read for name, source in sources.items()}
    readers["only zstd"] = unpacking(memory)
    readers["only copying"] = lambda rows: memory[rows]
    for suffix, name in (("png", "PNG"), ("tif", "TIFF")):
        readers[f"{name} files"] = from_files(files, suffix, resize=False)
        readers[f"{name} files, resized"] = from_files(files, suffix, resize=True)
    return {name: rate(read, cells, minibatch, cores) for name, read in readers.items()}


def in_own_process(dataset: Path, files: Path, cores: int, *sizes: int) -> dict[str, float]:
    """Runs `rates` in a separate process."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(rates, dataset, files, cores, *sizes).result()


def show(one: dict[str, float], more: dict[str, float], cores: int) -> None:
    """Prints the table."""
    last = f"{cores} cores"
    print(f"{'cells a second':22s} {'1 core':>10s} {last:>10s}   1 core over a loader of")
    print(f"{'':22s} {'':10s} {'':10s} {'PNG':>9s} {'TIFF':>9s}")
    for name, value in one.items():
        over = [value / one[f"{kind} files, resized"] for kind in ("PNG", "TIFF")]
        print(f"{name:22s} {value:10,.0f} {more[name]:10,.0f} {over[0]:8.1f}× {over[1]:8.1f}×")


def main() -> None:
    """Builds, measures, prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minibatch", type=int, default=256)
    parser.add_argument("--cells", type=int, default=3000)
    settings = parser.parse_args()
    cores = min(2, len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = datasets.find_dataset(build_simulated(folder, SIDE))
        exported = datasets.open_images(datasets.find_dataset(build_simulated(folder, FILE_SIDE)))
        cells = min(
            settings.cells, len(exported), datasets.read_manifest(dataset)["counts"]["cells"]
        )
        files = folder / "files"
        files.mkdir()
        write_files(exported.read(np.arange(cells)), files)
        print(
            f"{cells:,} cells of {SIDE}×{SIDE}×3 uint16 in minibatches of {settings.minibatch}; "
            f"files of {FILE_SIDE}×{FILE_SIDE}×3"
        )
        sizes = (cells, settings.minibatch)
        show(*(in_own_process(dataset, files, n, *sizes) for n in (1, cores)), cores)


if __name__ == "__main__":
    main()
