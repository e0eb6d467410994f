"""Which cells a run trains on and which validate it, by a hash of their ids."""

import hashlib
from collections.abc import Iterable

import numpy as np
import pandas as pd

from cellclr_jax.cli import BadUse
from cellclr_jax.data.tables.controls import is_control

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
