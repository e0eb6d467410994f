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

    @property
    def image_dtype(self) -> np.dtype:
        """Of a crop: uint8 or uint16."""
        return np.dtype(self.manifest["image"]["dtype"])

    @property
    def channels(self) -> list[str]:
        """Names of a crop's channels in their order."""
        return list(self.manifest["image"]["channels"])

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Reads cells into one minibatch: `image` [b, H, W, C] and what goes with it."""
        images = self.images.read(rows)
        return {"image": images} | {name: values[rows] for name, values in self.per_cell.items()}


def open_cells(
    data_dir: str | Path, name: str, access: str = "shards", *, progress: bool = True
) -> Cells:
    """Opens a dataset.

    Args:
      data_dir: what `--data_dir` was in the build.
      name: annotated, all or <builder>/<config> (see `index.find_dataset`).
      access: how crops are read (see `index.open_images`).
      progress: shows how far it is, where opening takes its time.

    Raises:
      BadUse: it was not built, the message says how to; or there is no such access.
      BadData: a part of it cannot be read.
    """
    directory = index.find_dataset(data_dir, name)
    return Cells(
        directory=directory,
        images=index.open_images(directory, access, progress=progress),
        table=index.read_cells(directory),
        manifest=index.read_manifest(directory),
    )


def balanced_groups(table: pd.DataFrame, sampling: str) -> np.ndarray:
    """The group of each cell, of which `balanced` sampling visits all equally often.

    Args:
      table: of cells.
      sampling: `uniform` knows one group alone; `balanced` takes treatments (compound and, where
        it is told, concentration), or labels where there are no compounds.

    Returns:
      [N] int, groups numbered as they come.

    Raises:
      BadUse: an unknown sampling, or the table has neither compounds nor labels.
    """
    if sampling not in SAMPLING:
        raise BadUse(f"sampling {sampling!r}: one of {', '.join(SAMPLING)} was expected")
    if sampling == "uniform":
        return np.zeros(len(table), np.int64)
    columns = [name for name in ("compound", "concentration") if name in table]
    if "compound" not in columns:
        columns = ["label"]
    if columns[0] not in table:
        raise BadUse(
            "sampling 'balanced' needs a dataset with compounds or labels: set "
            "--config.sampling=uniform"
        )
    return table.groupby(columns, sort=False, dropna=False).ngroup().to_numpy()


def epoch_order(
    groups: np.ndarray, *, seed: int, epoch: int, sampling: str = "uniform"
) -> np.ndarray:
    """The order in which an epoch visits its cells.

    Args:
      groups: [N] int, each cell's (see `balanced_groups`); used by `balanced` alone.
      seed: of the run.
      epoch: from 0; every epoch has another order.
      sampling: `uniform`: each cell once; `balanced`: every group equally often, its cells in
        turn, so that a frequent group's are left out and a rare one's come again.

    Returns:
      [N] int64 indices into `groups`.

    Raises:
      BadUse: for an unknown sampling.
    """
    rng = np.random.default_rng((seed, epoch))
    size = len(groups)
    if sampling == "uniform":
        return rng.permutation(size)
    if sampling != "balanced":
        raise BadUse(f"sampling {sampling!r}: one of {', '.join(SAMPLING)} was expected")
    _, codes = np.unique(groups, return_inverse=True)
    members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    share, rest = divmod(size, len(members))
    lucky = set(rng.permutation(len(members))[:rest])
    drawn = [_cycle(rng, group, share + (i in lucky)) for i, group in enumerate(members)]
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
      sampling: see `balanced_groups`.
      process: (index, count) of this process; it reads its contiguous share of each minibatch.

    Returns:
      A Grain dataset of epochs · steps minibatches (see `Cells.read`); its iterator's `get_state`
      and `set_state` continue anywhere.

    Raises:
      BadUse: the minibatch is larger than the set, or not divisible among processes; or as
        `balanced_groups`.
    """
    steps = steps_per_epoch(len(rows), minibatch_size)
    part, count = process
    if minibatch_size % count:
        raise BadUse(f"a minibatch of {minibatch_size} cells cannot be shared by {count} processes")
    local = minibatch_size // count
    groups = balanced_groups(cells.table.iloc[rows], sampling)

    @lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        return rows[epoch_order(groups, seed=seed, epoch=epoch, sampling=sampling)]

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
