"""All crops of a dataset unpacked into a mapped file."""

import contextlib
import errno
import math
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cellclr_jax import files
from cellclr_jax.console import Progress
from cellclr_jax.data.image_store import MappedImages, ShardImages
from cellclr_jax.errors import BadUse

# Unpacked pixels on their way into the file.
_BLOCK_BYTES = 32 << 20
_COPY = re.compile(r"images-[0-9a-f]+\.npy(\.unfinished)?")
_LOCK = ".unpacking"
_WAIT_SECONDS = 1.0
# The setting as either program calls it.
_FLAGS = "(--config.data_access in training, --data_access of eval)"
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def map_images(
    shards: ShardImages, dataset_dir: Path, fingerprint: str, *, show: bool
) -> MappedImages:
    """Opens the file of unpacked images, `images-<fingerprint>.npy`; writes it where it is not.

    It appears whole or not at all. If another process is writing it, waits for it.

    Args:
      shards: the images.
      dataset_dir: where the file lies.
      fingerprint: of the images; a file of another fingerprint is deleted.
      show: whether progress is shown.

    Raises:
      BadUse: there is not enough space on the disk, or the folder cannot be written to.
      BadData: an image cannot be read.
    """
    path = dataset_dir / f"images-{fingerprint}.npy"
    waited = False
    while (images := _opened(shards, path)) is None:
        if _write_alone(shards, path, show):
            return MappedImages(shards, path)  # raises whatever is wrong with it now
        if not waited:
            print(f"waiting for {path}, which another process writes", file=sys.stderr)
        waited = True
        time.sleep(_WAIT_SECONDS)
    return images


def _opened(shards: ShardImages, path: Path) -> MappedImages | None:
    """The file of unpacked images; None where it is not there or not whole."""
    try:
        return MappedImages(shards, path)
    except (OSError, ValueError):
        return None


def _write_alone(shards: ShardImages, path: Path, show: bool) -> bool:
    """Writes the file; False, and nothing is done, where another process is writing it."""
    try:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(files.locked(path.parent, _LOCK, "unpacking its images"))
            except BadUse:
                return False
            if _opened(shards, path) is None:  # the last holder may have written it
                _write(shards, path, show)
            return True
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
        raise BadUse(
            f"{path} cannot be written ({error.strerror}): make "
            f"that folder writable, or take data_access=shards {_FLAGS}"
        ) from error


def _write(shards: ShardImages, path: Path, show: bool) -> None:
    """Writes all images into a file of another name, which gets its own when it is whole."""
    for old in path.parent.iterdir():  # of another build, or of a killed process
        if _COPY.fullmatch(old.name):
            old.unlink()
    needed = len(shards) * _image_bytes(shards)
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise BadUse(
            f"{path} needs {_gb(needed)}, of which {_gb(free)} are free: free some space, or take "
            f"data_access=shards {_FLAGS}"
        )
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        with unfinished.open("xb") as file:
            _write_pixels(shards, file, show)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _write_pixels(shards: ShardImages, file: BinaryIO, show: bool) -> None:
    """Writes the `.npy` format, a block of images at a time."""
    header = {
        "descr": np.lib.format.dtype_to_descr(shards.dtype),
        "fortran_order": False,
        "shape": (len(shards), *shards.shape),
    }
    np.lib.format.write_array_header_1_0(file, header)
    # Written as any file is: to fill a mapped one is no faster, and a full disk then kills the
    # process.
    size = max(1, min(len(shards), _BLOCK_BYTES // _image_bytes(shards)))
    buffer = np.empty((size, *shards.shape), shards.dtype)
    with Progress(len(shards), show, unit="cell", task="unpacked onto the disk") as progress:
        for start in range(0, len(shards), size):
            rows = np.arange(start, min(start + size, len(shards)))
            part = buffer[: len(rows)]
            shards.read_into(rows, part)
            file.write(part.data)
            progress.step(units=len(rows))


def _image_bytes(shards: ShardImages) -> int:
    """Of one image, unpacked."""
    return math.prod(shards.shape) * shards.dtype.itemsize


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
