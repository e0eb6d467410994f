"""Folder locks."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from cellclr_jax.errors import BadUse

TRAINING = ".training"
"""The lock of a work directory, of who fills it."""
IN_USE = "training in it, or converting weights into it"


@contextlib.contextmanager
def alone(folder: Path, name: str, doing: str) -> Iterator[None]:
    """Keeps other processes that ask for the same lock out of a folder.

    The system lets go of it when the process ends, however it ends.

    Args:
      folder: made where it is missing.
      name: of the lock's file in it.
      doing: what the holder does there, for the message to the others.

    Raises:
      BadUse: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadUse(f"{folder}: another process is {doing}") from error
        yield
