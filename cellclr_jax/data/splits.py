"""Which cells train, which validate, and which an epoch draws."""

import hashlib
from collections.abc import Iterable

import numpy as np
import pandas as pd

from cellclr_jax.data.columns import is_control
from cellclr_jax.errors import BadUse

# A checksum (CRC) will not do here: similar ids have similar ones, and the share comes out wrong.
_HASH_BYTES = 4


def training_rows(
    table: pd.DataFrame, *, validation_fraction: float, control_fraction: float, control: str
) -> tuple[np.ndarray, np.ndarray]:
    """Divides the cells of a dataset.

    Args:
      table: of cells; without a column `compound` there are no controls.
      validation_fraction: the expected share of cells held out, in [0, 1].
      control_fraction: the expected share of control cells that take part at all, in [0, 1]; all
        treated cells do.
      control: the controls' compound.

    Returns:
      ([N] rows to train on, [M] rows held out).

    Raises:
      BadUse: a fraction is not in [0, 1], there are no controls of which to take some, or no cell
        is left to train on.
    """
    held_out = hashed_share(table["cell_id"], validation_fraction, "validation_fraction")
    taken = np.ones(len(table), bool)
    if control_fraction != 1:
        # A salt: what takes part is not to depend on what is held out.
        salted = ("control " + cell for cell in table["cell_id"])
        taken = hashed_share(salted, control_fraction, "control_fraction")
        compounds = table.get("compound", pd.Series("", table.index))
        controls = is_control(compounds.fillna(""), control).to_numpy()
        if not controls.any():
            raise BadUse(
                f"config.control_fraction is {control_fraction}, and no cell is of the controls "
                f"{control!r}: name their compound by --config.control=…"
            )
        taken |= ~controls
    rows = np.flatnonzero(taken & ~held_out), np.flatnonzero(taken & held_out)
    if not len(rows[0]):
        raise BadUse(
            f"config.validation_fraction {validation_fraction} and config.control_fraction "
            f"{control_fraction} leave no cell to train on"
        )
    return rows


def hashed_share(cell_ids: Iterable[str], fraction: float, setting: str) -> np.ndarray:
    """Chooses cells by a hash of their id.

    A cell's choice depends on neither the others nor their order, and a larger fraction holds a
    smaller one.

    Args:
      cell_ids: [N] strings.
      fraction: the expected share of True, in [0, 1].
      setting: how the message names the fraction.

    Returns:
      [N] bool.

    Raises:
      BadUse: the fraction is not in [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise BadUse(f"config.{setting} is {fraction}: a number from 0 to 1 was expected")
    digests = (
        hashlib.blake2b(cell.encode(), digest_size=_HASH_BYTES).digest() for cell in cell_ids
    )
    hashes = np.frombuffer(b"".join(digests), "<u4")
    return hashes < fraction * 256**_HASH_BYTES


SAMPLING = ("uniform", "balanced", "weighted")


def balanced_groups(table: pd.DataFrame, sampling: str) -> np.ndarray:
    """The group of each cell, by which all but `uniform` sampling weighs it.

    Args:
      table: of cells.
      sampling: `uniform` has only one group; the others take treatments (compound and, if
        known, concentration), or labels where there are no compounds.

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

    """
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


def _cycle(rng: np.random.Generator, group: np.ndarray, count: int) -> np.ndarray:
    """Takes `count` members of a group in random order, all once before any comes again."""
    rounds = -(-count // len(group))
    return np.concatenate([rng.permutation(group) for _ in range(rounds)])[:count]
