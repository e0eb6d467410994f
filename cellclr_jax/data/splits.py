"""Chooses training and validation cells, and the order in which an epoch visits cells."""

import hashlib
from collections.abc import Iterable

import numpy as np
import pandas as pd

from cellclr_jax.data.columns import is_control
from cellclr_jax.errors import BadUse

# A checksum such as CRC is unsuitable: similar ids have similar checksums, which biases the share.
_HASH_BYTES = 4
SAMPLING = ("uniform", "balanced", "weighted")


def training_rows(
    table: pd.DataFrame, *, validation_fraction: float, control_fraction: float, control: str
) -> tuple[np.ndarray, np.ndarray]:
    """Divides the cells of a dataset into training and validation cells.

    Args:
      table: of cells; without a column `compound` it has no controls.
      validation_fraction: expected share of validation cells, in [0, 1].
      control_fraction: expected share of the control cells to use at all, in [0, 1]; treated cells
        are all used.
      control: the controls' compound.

    Returns:
      ([N] training rows, [M] validation rows).

    Raises:
      BadUse: a fraction is outside [0, 1], there are no controls to take a share of, or no
        training cell is left.
    """
    held_out = hashed_share(table["cell_id"], validation_fraction, "validation_fraction")
    used = np.ones(len(table), bool)
    if control_fraction != 1:
        # The salt makes this choice independent of the choice of validation cells.
        salted = ("control " + cell for cell in table["cell_id"])
        used = hashed_share(salted, control_fraction, "control_fraction")
        compounds = table.get("compound", pd.Series("", table.index))
        controls = is_control(compounds.fillna(""), control).to_numpy()
        if not controls.any():
            raise BadUse(
                f"config.control_fraction is {control_fraction}, but no cell has the controls' "
                f"compound {control!r}: set --config.control to its name"
            )
        used |= ~controls
    rows = np.flatnonzero(used & ~held_out), np.flatnonzero(used & held_out)
    if not len(rows[0]):
        raise BadUse(
            f"config.validation_fraction {validation_fraction} and config.control_fraction "
            f"{control_fraction} leave no cell to train on"
        )
    return rows


def hashed_share(cell_ids: Iterable[str], fraction: float, setting: str) -> np.ndarray:
    """Chooses cells by a hash of their id.

    The choice of a cell depends neither on the other cells nor on their order. A larger fraction
    includes the cells of a smaller one.

    Args:
      cell_ids: [N] strings.
      fraction: expected share of True, in [0, 1].
      setting: name of the fraction in the error message.

    Returns:
      [N] bool.

    Raises:
      BadUse: the fraction is outside [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise BadUse(f"config.{setting} is {fraction}: a number from 0 to 1 was expected")
    digests = (
        hashlib.blake2b(cell.encode(), digest_size=_HASH_BYTES).digest() for cell in cell_ids
    )
    hashes = np.frombuffer(b"".join(digests), "<u4")
    return hashes < fraction * 256**_HASH_BYTES


def epoch_cells(table: pd.DataFrame, sampling: str, control: str) -> tuple[np.ndarray, int]:
    """Groups the cells for sampling, and counts the cells of an epoch.

    Args:
      table: of N cells.
      sampling: one of `SAMPLING`. With `uniform` there is one group; otherwise a group is a
        treatment (compound and, if known, concentration), or a label if there are no compounds.
      control: the controls' compound.

    Returns:
      [N] int group of each cell, in order of first appearance, and the cells an epoch visits: N;
      with `weighted`, as in the published code, the treated cells and, for each group of controls,
      as many as a treatment has on average, but at most N.

    Raises:
      BadUse: unknown sampling, or the table has neither compounds nor labels.
    """
    if sampling not in SAMPLING:
        raise BadUse(f"sampling {sampling!r}: one of {', '.join(SAMPLING)} was expected")
    if sampling == "uniform":
        return np.zeros(len(table), np.int64), len(table)
    columns = [name for name in ("compound", "concentration") if name in table]
    if "compound" not in columns:
        columns = ["label"]
    if columns[0] not in table:
        raise BadUse(
            f"sampling {sampling!r} needs a dataset with compounds or labels: set "
            "--config.sampling=uniform"
        )
    groups = table.groupby(columns, sort=False, dropna=False).ngroup().to_numpy()
    if sampling == "balanced" or "compound" not in table:
        return groups, len(table)
    controls = is_control(table["compound"].fillna(""), control).to_numpy()
    if controls.all():
        return groups, len(table)
    treated, control_groups = groups[~controls], len(np.unique(groups[controls]))
    size = int(len(treated) * (1 + control_groups / len(np.unique(treated))))
    return groups, min(size, len(groups))


def epoch_order(
    groups: np.ndarray,
    *,
    seed: int,
    epoch: int,
    sampling: str = "uniform",
    count: int | None = None,
) -> np.ndarray:
    """Draws the order in which an epoch visits its cells.

    Args:
      groups: [N] int, group of each cell (see `epoch_cells`).
      seed: of the run.
      epoch: from 0; every epoch has another order.
      sampling: `uniform` visits each cell once. `balanced` visits every group equally often and
        cycles through the cells of a group: cells of a frequent group are left out, cells of a
        rare group are repeated. `weighted`, as in the published code, draws `count` cells without
        replacement, with weights under which the first draw has the same probability for every
        group. Rare groups run out first, after which frequent groups fill the rest: groups are
        equally frequent only while all of them last.
      count: with `weighted`, cells to draw, at most N; None: N.

    Returns:
      [N] or [count] int64 indices into `groups`.
    """
    rng = np.random.default_rng((seed, epoch))
    if sampling == "uniform":
        return rng.permutation(len(groups))
    _, codes, counts = np.unique(groups, return_inverse=True, return_counts=True)
    if sampling == "weighted":
        # Efraimidis & Spirakis 2006: sorting exponentials divided by weights gives such draws.
        waits = rng.exponential(size=len(groups)) * counts[codes]
        return np.argsort(waits)[:count]
    members = np.split(np.argsort(codes, kind="stable"), np.cumsum(counts)[:-1])
    share, rest = divmod(len(groups), len(members))
    with_one_more = set(rng.permutation(len(members))[:rest])
    drawn = [_cycle(rng, group, share + (i in with_one_more)) for i, group in enumerate(members)]
    return rng.permutation(np.concatenate(drawn))


def _cycle(rng: np.random.Generator, group: np.ndarray, count: int) -> np.ndarray:
    """Draws `count` members in random order; repeats none before all were drawn."""
    rounds = -(-count // len(group))
    return np.concatenate([rng.permutation(group) for _ in range(rounds)])[:count]
