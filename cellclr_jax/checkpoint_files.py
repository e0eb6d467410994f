"""Checkpoints as folders: what loss one was saved with, how one is put aside, what it said."""

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable

from etils import epath

METRIC = "validation_loss"
"""What ranks a checkpoint."""
# Orbax writes a file of this name in a folder of this name.
_METRICS = "metrics"
# An error of TensorStore holds pages of its internals.
_MESSAGE_LENGTH = 240


def loss_of(checkpoint: epath.Path) -> float | None:
    """The validation loss that a checkpoint was saved with; None where it is not ranked.

    Raises:
      ValueError: it cannot be read. That a file is out of reach is another error, and may pass.
    """
    file = checkpoint / _METRICS / _METRICS
    if not file.parent.exists():
        return None
    try:
        loss = json.loads(file.read_text())[METRIC]
    except (FileNotFoundError, ValueError, TypeError, LookupError) as error:
        raise ValueError(f"{file} cannot be read") from error
    if not isinstance(loss, int | float):
        raise ValueError(f"{file} holds no number")
    return float(loss)


def known_losses(directory: epath.Path, steps: Iterable[int]) -> dict[int, float]:
    """The validation losses, by step, of the checkpoints that are ranked and tell theirs."""
    losses = {}
    for step in steps:
        with contextlib.suppress(ValueError):
            if (loss := loss_of(directory / str(step))) is not None:
                losses[step] = loss
    return losses


def move_aside(path: epath.Path, aside: epath.Path) -> None:
    """Moves a folder into another one, under a name that is not yet taken there."""
    aside.mkdir(parents=True, exist_ok=True)
    name = path.name
    names = itertools.chain([name], (f"{name}.{number}" for number in itertools.count(1)))
    path.rename(next(aside / free for free in names if not (aside / free).exists()))


def move_unranked_aside(directory: epath.Path, aside: epath.Path) -> list[int]:
    """Moves checkpoints aside whose loss cannot be read, which would be deleted; their steps."""
    moved = []
    for folder in [path for path in directory.iterdir() if path.name.isdigit()]:
        try:
            loss_of(folder)
        except ValueError:
            move_aside(folder, aside)
            moved.append(int(folder.name))
    return moved


def first_line(error: Exception) -> str:
    """The first line of a message; of a long one both ends, since the reason often comes last."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    half = _MESSAGE_LENGTH // 2
    return lines[0] if len(lines[0]) <= 2 * half else f"{lines[0][:half]} … {lines[0][-half:]}"


def not_written(folder: str, error: Exception) -> str:
    """What is said of a checkpoint that could not be written."""
    free = f"{shutil.disk_usage(folder).free / 1e6:.0f} MB free" if os.path.isdir(folder) else "?"
    return (
        f"a checkpoint could not be written to {folder} ({free}): {first_line(error)}; "
        "once that is mended, the same command goes on from the newest one"
    )
