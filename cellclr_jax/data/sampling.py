"""How an epoch chooses its cells: each once, or treatments equally often."""

import numpy as np
import pandas as pd

from cellclr_jax.cli import BadUse

SAMPLING = ("uniform", "balanced", "weighted")


def balanced_groups(table: pd.DataFrame, sampling: str) -> np.ndarray:
    """The group of each cell, of which all but `uniform` sampling draws all equally often.

    Args:
      table: of cells.
      sampling: `uniform` knows one group alone; the others take treatments (compound and, where
        it is told, concentration), or labels where there are no compounds.

    Returns:
      [N] int, groups numbered as they come.

    Raises:
      BadUse: an unknown sampling, or the table has neither compounds nor labels.
    """
    _check(sampling)
    if sampling == "uniform":
        return np.zeros(len(table), np.int64)
    columns = [name for name in ("compound", "concentration") if name in table]
    if "compound" not in columns:
        columns = ["label"]
    if columns[0] not in table:
        raise BadUse(
            f"sampling {sampling!r} needs a dataset with compounds or labels: set "
            "--config.sampling=uniform"
        )
    return table.groupby(columns, sort=False, dropna=False).ngroup().to_numpy()


def epoch_size(groups: np.ndarray, sampling: str) -> int:
    """How many cells an epoch visits.

    Args:
      groups: [N] int, each cell's (see `balanced_groups`).
      sampling: `uniform` and `balanced`: N. `weighted`: as many as all groups would have, had the
        largest one (controls) as many as the others have on average, as published.
    """
    _check(sampling)
    _, counts = np.unique(groups, return_counts=True)
    if sampling != "weighted" or len(counts) < 2:
        return len(groups)
    return int((len(groups) - counts.max()) * len(counts) / (len(counts) - 1))


def epoch_order(
    groups: np.ndarray, *, seed: int, epoch: int, sampling: str = "uniform"
) -> np.ndarray:
    """The order in which an epoch visits its cells.

    Args:
      groups: [N] int, each cell's (see `balanced_groups`); `uniform` does without.
      seed: of the run.
      epoch: from 0; every epoch has another order.
      sampling: `uniform`: each cell once; `balanced`: every group equally often, its cells in
        turn, so that a frequent group's are left out and a rare one's come again; `weighted`, as
        published: cells are drawn without replacement, with weights under which each group is
        equally likely to be drawn first, so that rare groups are soon used up.

    Returns:
      [epoch_size(groups, sampling)] int64 indices into `groups`.

    Raises:
      BadUse: for an unknown sampling.
    """
    _check(sampling)
    rng = np.random.default_rng((seed, epoch))
    if sampling == "uniform":
        return rng.permutation(len(groups))
    _, codes, counts = np.unique(groups, return_inverse=True, return_counts=True)
    if sampling == "weighted":
        # Efraimidis & Spirakis 2006: the order of draws is that of exponentials over weights.
        waits = rng.exponential(size=len(groups)) * counts[codes]
        return np.argsort(waits)[: epoch_size(groups, sampling)]
    members = np.split(np.argsort(codes, kind="stable"), np.cumsum(counts)[:-1])
    share, rest = divmod(len(groups), len(members))
    lucky = set(rng.permutation(len(members))[:rest])
    drawn = [_cycle(rng, group, share + (i in lucky)) for i, group in enumerate(members)]
    return rng.permutation(np.concatenate(drawn))


def _check(sampling: str) -> None:
    if sampling not in SAMPLING:
        raise BadUse(f"sampling {sampling!r}: one of {', '.join(SAMPLING)} was expected")


def _cycle(rng: np.random.Generator, group: np.ndarray, count: int) -> np.ndarray:
    """Takes `count` members of a group in random order, all once before any comes again."""
    rounds = -(-count // len(group))
    return np.concatenate([rng.permutation(group) for _ in range(rounds)])[:count]
