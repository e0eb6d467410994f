"""How an epoch chooses its cells: each once, or some more often than others."""

import numpy as np
import pandas as pd

from cellclr_jax.cli import BadUse
from cellclr_jax.data.tables.controls import is_control

SAMPLING = ("uniform", "balanced", "weighted")


def balanced_groups(table: pd.DataFrame, sampling: str) -> np.ndarray:
    """The group of each cell, by which all but `uniform` sampling weighs it.

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


def epoch_cells(table: pd.DataFrame, sampling: str, control: str) -> tuple[np.ndarray, int]:
    """The groups [N] of cells (see `balanced_groups`) and how many an epoch has (`epoch_size`)."""
    groups = balanced_groups(table, sampling)
    controls = None
    if "compound" in table:
        controls = is_control(table["compound"].fillna(""), control).to_numpy()
    return groups, epoch_size(groups, sampling, controls)


def epoch_size(groups: np.ndarray, sampling: str, controls: np.ndarray | None = None) -> int:
    """How many cells an epoch visits.

    Args:
      groups: [N] int, each cell's (see `balanced_groups`).
      sampling: `uniform` and `balanced`: N. `weighted`, as the published code: the treated cells
        and, for each group of controls, as many as a treatment has on average.
      controls: [N] bool, which cells are controls; None: none is.
    """
    _check(sampling)
    if sampling != "weighted" or controls is None or controls.all():
        return len(groups)
    treated, control_groups = groups[~controls], len(np.unique(groups[controls]))
    size = int(len(treated) * (1 + control_groups / len(np.unique(treated))))
    return min(size, len(groups))


def epoch_order(
    groups: np.ndarray,
    *,
    seed: int,
    epoch: int,
    sampling: str = "uniform",
    count: int | None = None,
) -> np.ndarray:
    """The order in which an epoch visits its cells.

    Args:
      groups: [N] int, each cell's (see `balanced_groups`); `uniform` does without.
      seed: of the run.
      epoch: from 0; every epoch has another order.
      sampling: `uniform`: each cell once; `balanced`: every group equally often, its cells in
        turn, so that a frequent group's are left out and a rare one's come again; `weighted`, as
        the published code: `count` cells are drawn without replacement, by weights under which the
        first is of any group alike. Rare groups are soon used up, and then frequent ones make up
        the rest: groups come equally often only as long as all last.
      count: of `weighted`, at most N; None: N (see `epoch_size`).

    Returns:
      [N] or [count] int64 indices into `groups`.

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
        return np.argsort(waits)[:count]
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
