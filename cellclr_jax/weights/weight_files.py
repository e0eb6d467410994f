"""Files of weights: PyTorch's own and safetensors, read without running what they hold."""

import codecs
import errno
import hashlib
import importlib
import io
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from cellclr_jax.checkpoint_files import first_line
from cellclr_jax.cli import BadData, BadUse
from cellclr_jax.profiling.reporting.evaluation_folder import write_file
from cellclr_jax.weights.torch_files import read_state_dict
from cellclr_jax.weights.torch_layout import listed

SAFETENSORS = ".safetensors"
WRITTEN = (".pth", ".pt", SAFETENSORS)
# How a zip archive and a pickle begin, the two forms that torch.save has had.
_TORCH_MAGIC = (b"PK\x03\x04", b"\x80")
_FOREIGN_MAGIC = {b"<": "a web page", b"version https://git-lfs": "a pointer of Git LFS"}
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_MAGIC_BYTES = 128
# Of numbers that NumPy has, as safetensors calls them; bfloat16 is taken apart by hand.
_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
_FULL = (errno.ENOSPC, errno.EDQUOT)
# The same where a library tells of it in words.
_FULL_WORDS = re.compile(r"no space left|quota exceeded", re.IGNORECASE)


def read_entries(path: Path) -> dict[str, np.ndarray]:
    """Reads a state dict, out of a training checkpoint where it lies in one.

    Args:
      path: a .safetensors file, or one that torch.save wrote, whatever its name.

    Returns:
      Arrays by name as PyTorch orders axes; floating-point ones of 16 to 64 bits (in files of
      torch.save of 8, too) as float32, infinite where a number is too large for it; integers and
      booleans as they are.

    Raises:
      BadUse: there is no such file, or no library that reads it.
      BadData: it is something else, damaged, or holds more than plain tensors.
    """
    if not path.is_file():
        raise BadUse(f"--input={path}: {'no file' if path.exists() else 'no such file'}")
    with path.open("rb") as file:
        start = file.read(_MAGIC_BYTES)
    if not start:
        raise BadData(f"{path} is empty: a state dict was expected")
    if path.suffix == SAFETENSORS:
        return _read_safetensors(path, start)
    if not start.startswith(_TORCH_MAGIC):
        _refuse_foreign(path, start)
        raise BadData(
            f"{path} is no file of torch.save: neither a zip archive nor a pickle "
            f"(a safetensors file has to be named *{SAFETENSORS})"
        )
    return read_state_dict(path, _library("torch"))


def write_entries(path: Path, entries: Mapping[str, np.ndarray], told: Mapping[str, str]) -> None:
    """Writes a state dict, whole or not at all.

    Args:
      path: one that `check_output` admits.
      entries: contiguous arrays by name.
      told: what a safetensors file says of itself.

    Raises:
      BadUse: there is no library that writes it.
      BadData: the disk is full, or the folder takes no file.
    """
    # By the libraries into memory alone: of a full disk they tell each in its own words, or none.
    content = io.BytesIO()
    if path.suffix == SAFETENSORS:
        save = _library("safetensors.numpy").save
        content.write(save(dict(entries), metadata={"format": "pt", **told}))
    else:
        torch = _library("torch")
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in entries.items()}
        torch.save(tensors, content)
    try:
        write_file(path, lambda place: place.write_bytes(content.getbuffer()))
    except OSError as error:
        raise not_written(path, error) from error


def not_written(path: Path, error: Exception) -> BadData:
    """What is raised where a file or folder could not be written, and nothing of it stays."""
    number = error.errno if isinstance(error, OSError) else None
    if number in _FULL or _FULL_WORDS.search(str(error)):
        free = shutil.disk_usage(path.parent).free
        return BadData(
            f"{path} could not be written: no space left on the disk ({free / 1e6:.0f} MB free); "
            "free some space and run the same command again"
        )
    # The message of a system's error names the hidden file that is written first.
    why = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
    return BadData(
        f"{path} could not be written: {why}; once that is mended, run the same command again"
    )


def check_output(path: Path) -> None:
    """Checks where weights are to be written, before they are read.

    Raises:
      BadUse: the name has another ending, something is there, or the folder is not.
    """
    if path.suffix not in WRITTEN:
        raise BadUse(f"--output={path}: a name in {', '.join(WRITTEN)} was expected")
    if path.exists():
        raise BadUse(f"--output={path} is there: take another name, or remove it")
    if not path.parent.is_dir():
        raise BadUse(f"--output={path}: no such folder: {path.parent}")
    _library("safetensors.numpy" if path.suffix == SAFETENSORS else "torch")


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _library(name: str) -> Any:
    """A library that is installed on demand."""
    try:
        found: ModuleType = importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        instead = (
            f", or give a {SAFETENSORS} file" if package == "torch" else ", or use a .pth file"
        )
        raise BadUse(
            f"{package} is not installed: pip install 'cellclr_jax[convert]'{instead}"
        ) from error
    return found


def _refuse_foreign(path: Path, start: bytes) -> None:
    """Raises BadData where a file begins as one does that came in the place of weights."""
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if start.startswith(mark):
            start = start.removeprefix(mark).decode(encoding, "ignore").encode()
    start = start.lstrip().lower()
    for magic, what in _FOREIGN_MAGIC.items():
        if start.startswith(magic):
            raise BadData(f"{path} is {what}, no weights: the download went wrong")


def _read_safetensors(path: Path, start: bytes) -> dict[str, np.ndarray]:
    library = _library("safetensors")
    try:
        found = library.deserialize(path.read_bytes())
    except library.SafetensorError as error:
        # Not before: the length that a good file begins with may be any eight bytes.
        _refuse_foreign(path, start)
        raise BadData(
            f"{path} is no safetensors file, or cut off ({first_line(error)}): a header that names "
            "the tensors and then their bytes were expected"
        ) from error
    return {name: _array(path, name, content) for name, content in found}


def _array(path: Path, name: str, content: Mapping[str, Any]) -> np.ndarray:
    """An entry of a safetensors file."""
    kind, data = content["dtype"], content["data"]
    if kind == "BF16":  # the upper half of a float32
        array = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    elif kind in _DTYPES:
        array = _float32(np.frombuffer(data, _DTYPES[kind]))
    else:
        raise BadData(
            f"{path}: {listed([name])} is of the type {kind}: floating-point numbers of 16 "
            "to 64 bits were expected"
        )
    try:
        return array.reshape(content["shape"])
    except ValueError as error:
        raise BadData(f"{path}: {listed([name])} has a shape that no array has: {error}") from error


def _float32(array: np.ndarray) -> np.ndarray:
    if not np.issubdtype(array.dtype, np.floating):
        return array
    with np.errstate(over="ignore"):  # what is infinite then is told by name
        return array.astype(np.float32)
