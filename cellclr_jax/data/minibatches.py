"""Reads minibatches from a dataset: order of an epoch, share of a process, prefetch by Grain.

The order depends only on (seed, epoch). The state of an iterator is therefore one number, and a
run gets the same global minibatches with any number of processes.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pandas as pd

from cellclr_jax.data import dataset
from cellclr_jax.data.columns import CONTROL
from cellclr_jax.data.splits import epoch_cells, epoch_order
from cellclr_jax.errors import BadUse

# Minibatches to read ahead of the current one; each may take hundreds of megabytes.
_PREFETCHED = 4
_READ_THREADS = 4


@dataclass(frozen=True)
class Cells:
    """A dataset opened for reading.

    Attributes:
      directory: of the dataset.
      images: random access to crops by row.
      table: one row per cell, in the same order (see `dataset.read_cells`).
      manifest: settings and counts of the build.
      per_cell: arrays [N, …] to include in each minibatch besides the image, e.g. the percentiles
        of the cell's plate.
    """

    directory: Path
    images: dataset.ImageSource
    table: pd.DataFrame
    manifest: Mapping[str, Any]
    per_cell: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of a crop."""
        height, width, channels = self.manifest["image"]["shape"]
        return height, width, channels

    @property
    def image_dtype(self) -> np.dtype:
        """Type of a pixel: uint8 or uint16."""
        return np.dtype(self.manifest["image"]["dtype"])

    @property
    def channels(self) -> list[str]:
        """Names of the channels of a crop, in order."""
        return list(self.manifest["image"]["channels"])

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Reads cells into one minibatch: `image` [b, H, W, C] and the arrays `per_cell` [b, …]."""
        images = self.images.read(rows)
        return {"image": images} | {name: values[rows] for name, values in self.per_cell.items()}


def open_cells(
    data_dir: str | Path, name: str, access: str = "shards", *, progress: bool = True
) -> Cells:
    """Opens a dataset.

    Args:
      data_dir: value of `--data_dir` in the build.
      name: annotated, all or <builder>/<config> (see `dataset.find_dataset`).
      access: how crops are read (see `dataset.open_images`).
      progress: shows progress while images are unpacked.

    Raises:
      BadUse: the dataset was not built (the message says how to build it), or unknown access.
      BadData: a part of it cannot be read.
    """
    directory = dataset.find_dataset(data_dir, name)
    return Cells(
        directory=directory,
        images=dataset.open_images(directory, access, progress=progress),
        table=dataset.read_cells(directory),
        manifest=dataset.read_manifest(directory),
    )


def training_minibatches(
    cells: Cells,
    rows: np.ndarray,
    *,
    minibatch_size: int,
    epochs: int,
    seed: int,
    sampling: str = "uniform",
    control: str = CONTROL,
    process: tuple[int, int] = (0, 1),
) -> grain.IterDataset:
    """Iterates over the minibatches of a run, which threads read ahead.

    Args:
      cells: the dataset.
      rows: [N] int, the cells to train on.
      minibatch_size: cells of a global minibatch; an epoch drops an incomplete last one.
      epochs: number of epochs.
      seed: of the order.
      sampling: how an epoch chooses its cells (see `splits.epoch_order`).
      control: the controls' compound.
      process: (index, count) of this process; it reads its contiguous share of each minibatch.

    Returns:
      A Grain dataset of epochs · steps minibatches (see `Cells.read`). `get_state` and `set_state`
      of its iterator resume at any minibatch.

    Raises:
      BadUse: the minibatch is larger than an epoch or not divisible among the processes; or as
        `splits.epoch_cells`.
    """
    part, count = process
    if minibatch_size % count:
        raise BadUse(f"a minibatch of {minibatch_size} cells cannot be shared by {count} processes")
    local = minibatch_size // count
    groups, size = epoch_cells(cells.table.iloc[rows], sampling, control)
    steps = steps_per_epoch(size, minibatch_size)

    @lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        """Rows in the order of an epoch."""
        return rows[epoch_order(groups, seed=seed, epoch=epoch, sampling=sampling, count=size)]

    def read(number: int) -> dict[str, np.ndarray]:
        """This process's share of a minibatch."""
        epoch, step = divmod(number, steps)
        start = step * minibatch_size + part * local
        return cells.read(order(epoch)[start : start + local])

    return _prefetched(steps * epochs, read)


def sequential_minibatches(
    cells: Cells, rows: np.ndarray, *, minibatch_size: int, process: tuple[int, int] = (0, 1)
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Visits each row once, in order; pads the last minibatch with its first row.

    Args:
      cells: the dataset.
      rows: [N] int.
      minibatch_size: rows of a global minibatch, divisible by the number of processes.
      process: (index, count) of this process.

    Yields:
      (rows of the global minibatch without the padding, this process's padded share of it).
    """
    part, count = process
    local = minibatch_size // count
    starts = range(0, len(rows), minibatch_size)

    def read(number: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Reads a minibatch; returns its rows, and this process's share of the padded minibatch."""
        real = rows[starts[number] : starts[number] + minibatch_size]
        padded = np.concatenate([real, np.repeat(real[:1], minibatch_size - len(real))])
        return real, cells.read(padded[part * local : (part + 1) * local])

    return iter(_prefetched(len(starts), read))


def _prefetched(count: int, read: Callable[[int], Any]) -> grain.IterDataset:
    """`read(0)` to `read(count - 1)`, read ahead by threads."""
    options = grain.ReadOptions(num_threads=_READ_THREADS, prefetch_buffer_size=_PREFETCHED)
    return grain.MapDataset.range(count).map(read).to_iter_dataset(options)


def steps_per_epoch(cells: int, minibatch_size: int) -> int:
    """Number of full minibatches in an epoch.

    Raises:
      BadUse: there is none, or a minibatch has fewer than 2 cells.
    """
    if minibatch_size < 2 or cells < minibatch_size:
        raise BadUse(
            f"a minibatch of {minibatch_size} cells does not fit an epoch of {cells}: set "
            f"--config.minibatch_size to a number from 2 to {cells}"
        )
    return cells // minibatch_size
