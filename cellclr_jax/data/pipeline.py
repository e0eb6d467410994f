"""From shards to minibatches in memory: order of an epoch, share of a process, prefetch by Grain.

The order is a function of (seed, epoch) alone, so that an iterator's state is one number and a run
with any number of processes sees the same global minibatches.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pandas as pd

from cellclr_jax.cli import BadUse
from cellclr_jax.data import index

SAMPLING = ("uniform", "balanced")

# Minibatches that are read ahead of the one in use; each may hold hundreds of megabytes.
_PREFETCHED = 4
_READ_THREADS = 4


@dataclass(frozen=True)
class Cells:
    """A dataset opened for reading.

    Attributes:
      directory: of the dataset.
      images: random access to crops by row.
      table: one row a cell, in the same order (see `index.read_cells`).
      manifest: settings and counts of the build.
      per_cell: arrays [N, …] that go with each minibatch beside the image, e.g. the percentiles of
        the cell's plate.
    """

    directory: Path
    images: index.ImageSource
    table: pd.DataFrame
    manifest: Mapping[str, Any]
    per_cell: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of a crop."""
        height, width, channels = self.manifest["image"]["shape"]
        return height, width, channels

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Reads cells into one minibatch: `image` [b, H, W, C] uint16 and what goes with it."""
        records = self.images.__getitems__([int(row) for row in rows])
        images = np.stack([record["image"] for record in records])
        return {"image": images} | {name: values[rows] for name, values in self.per_cell.items()}


def open_cells(data_dir: str | Path, name: str) -> Cells:
    """Opens the dataset `name` (annotated or all) in `data_dir`.

    Raises:
      BadUse: it was not built; the message says how to.
      BadData: a part of it cannot be read.
    """
    directory = index.find_dataset(data_dir, name)
    return Cells(
        directory=directory,
        images=index.open_images(directory),
        table=index.read_cells(directory),
        manifest=index.read_manifest(directory),
    )


def epoch_order(
    treatments: np.ndarray, *, seed: int, epoch: int, sampling: str = "uniform"
) -> np.ndarray:
    """The order in which an epoch visits its cells.

    Args:
      treatments: [N] int, the treatment's number of each cell; used by `balanced` alone.
      seed: of the run.
      epoch: from 0; every epoch has another order.
      sampling: `uniform`: each cell once; `balanced`: every treatment equally often, its cells in
        turn, so that a frequent treatment's are left out and a rare one's come again.

    Returns:
      [N] int64 indices into `treatments`.

    Raises:
      BadUse: for an unknown sampling.
    """
    rng = np.random.default_rng((seed, epoch))
    size = len(treatments)
    if sampling == "uniform":
        return rng.permutation(size)
    if sampling != "balanced":
        raise BadUse(f"sampling {sampling!r}: one of {', '.join(SAMPLING)} was expected")
    _, codes = np.unique(treatments, return_inverse=True)
    groups = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    share, rest = divmod(size, len(groups))
    lucky = set(rng.permutation(len(groups))[:rest])
    drawn = [_cycle(rng, group, share + (i in lucky)) for i, group in enumerate(groups)]
    return rng.permutation(np.concatenate(drawn))


def training_minibatches(
    cells: Cells,
    rows: np.ndarray,
    *,
    minibatch_size: int,
    epochs: int,
    seed: int,
    sampling: str = "uniform",
    process: tuple[int, int] = (0, 1),
) -> grain.IterDataset:
    """The minibatches of a whole run, read ahead by threads.

    Args:
      cells: the dataset.
      rows: [N] int, the cells to train on.
      minibatch_size: cells of a global minibatch; the cells that are left over at an epoch's end
        are left out of that epoch.
      epochs: how many times all cells are visited.
      seed: of the order.
      sampling: see `epoch_order`.
      process: (index, count) of this process; it reads its contiguous share of each minibatch.

    Returns:
      A Grain dataset of epochs · steps minibatches (see `Cells.read`); its iterator's `get_state`
      and `set_state` continue anywhere.

    Raises:
      BadUse: the minibatch is larger than the set, or not divisible among processes.
    """
    steps = steps_per_epoch(len(rows), minibatch_size)
    part, count = process
    if minibatch_size % count:
        raise BadUse(f"a minibatch of {minibatch_size} cells cannot be shared by {count} processes")
    local = minibatch_size // count
    compound, dose = cells.table["compound"].to_numpy(), cells.table["concentration"].to_numpy()
    treatments = pd.MultiIndex.from_arrays([compound[rows], dose[rows]]).factorize()[0]

    @lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        return rows[epoch_order(treatments, seed=seed, epoch=epoch, sampling=sampling)]

    def read(number: int) -> dict[str, np.ndarray]:
        epoch, step = divmod(number, steps)
        start = step * minibatch_size + part * local
        return cells.read(order(epoch)[start : start + local])

    options = grain.ReadOptions(num_threads=_READ_THREADS, prefetch_buffer_size=_PREFETCHED)
    return grain.MapDataset.range(steps * epochs).map(read).to_iter_dataset(options)


def sequential_minibatches(
    cells: Cells, rows: np.ndarray, *, minibatch_size: int, process: tuple[int, int] = (0, 1)
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Visits each row once, in order; the last minibatch is filled up with its first row.

    Args:
      cells: the dataset.
      rows: [N] int.
      minibatch_size: rows of a global minibatch, divisible by the number of processes.
      process: (index, count) of this process.

    Yields:
      (rows of the global minibatch without the filling, this process's share of it with it).
    """
    part, count = process
    local = minibatch_size // count
    starts = range(0, len(rows), minibatch_size)

    def read(number: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        real = rows[starts[number] : starts[number] + minibatch_size]
        filled = np.concatenate([real, np.repeat(real[:1], minibatch_size - len(real))])
        return real, cells.read(filled[part * local : (part + 1) * local])

    options = grain.ReadOptions(num_threads=_READ_THREADS, prefetch_buffer_size=_PREFETCHED)
    return iter(grain.MapDataset.range(len(starts)).map(read).to_iter_dataset(options))


def steps_per_epoch(cells: int, minibatch_size: int) -> int:
    """Whole minibatches of an epoch.

    Raises:
      BadUse: there is none.
    """
    if minibatch_size < 2 or cells < minibatch_size:
        raise BadUse(
            f"a minibatch of {minibatch_size} cells does not fit a training set of {cells}: "
            "set --config.minibatch_size to between 2 and that"
        )
    return cells // minibatch_size


def _cycle(rng: np.random.Generator, group: np.ndarray, count: int) -> np.ndarray:
    """Takes `count` members of a group in random order, all once before any comes again."""
    rounds = -(-count // len(group))
    return np.concatenate([rng.permutation(group) for _ in range(rounds)])[:count]
