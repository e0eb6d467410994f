"""Reads and writes files of weights: .pth, .pt, .safetensors."""

import codecs
import errno
import hashlib
import importlib
import io
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.files import atomic_write
from cellclr_jax.training.checkpoints import first_line
from cellclr_jax.weights.torch_names import listed

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
        with atomic_write(path) as part:
            part.write_bytes(content.getbuffer())
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


# Under which training programs put the weights beside what else they save.
_WRAPPERS = ("state_dict", "model", "model_state_dict")
# More of them around each other than any program makes; a dict may hold itself.
_DEEPEST = 8
# Of PyTorch's, which can be told in float32 or are NumPy's; others are packed or quantised.
_TORCH_DTYPES = (
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2",
    "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool",
)  # fmt: skip
# From 8 bits to 32 numbers grow to four times their bytes, and some layers share theirs.
_MOST_GROWTH, _ANY_SIZE = 16, 1 << 24
# NumPy has had no more; the weights of a network have four.
_MOST_AXES = 32
# What PyTorch says of pickles that name functions or classes, and of programs.
_MORE_THAN_TENSORS = re.compile(r"GLOBAL [\w.]+|Unsupported (global|class)|Trying to|TorchScript")


def read_state_dict(path: Path, torch: Any) -> dict[str, np.ndarray]:
    """Reads a state dict of plain tensors, out of a training checkpoint where it lies in one.

    Args:
      path: a zip archive or a pickle.
      torch: the library, which is installed on demand.

    Returns:
      As `weight_files.read_entries`.

    Raises:
      BadData: it is damaged, wrapped in too much, or holds more than plain tensors.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch about its own older files
            content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged archive or pickle raises whatever it runs into
        raise BadData(_why_not_loaded(path, error)) from error
    entries = _unwrapped(path, content)
    # Of all, before the numbers of any are touched.
    told = {name: _oddity(torch, value) for name, value in entries.items()}
    if odd := [f"{name} ({why})" for name, why in told.items() if why]:
        raise BadData(f"{path}: no plain tensors: {listed(odd)}")
    _check_size(path, entries)
    return {name: _of_tensor(torch, tensor) for name, tensor in entries.items()}


def _why_not_loaded(path: Path, error: Exception) -> str:
    """Why PyTorch refused a file, in its shortest form."""
    text = str(error)
    if _MORE_THAN_TENSORS.search(text):
        named = re.search(r"GLOBAL ([\w.]+)", text)
        return (
            f"{path} holds more than tensors{f' ({named[1]})' if named else ''}, which is never "
            "loaded, since it could run code: save model.state_dict() alone"
        )
    operand = re.search(r"Unsupported operand \d+", text)
    why = operand[0] if operand else first_line(error)
    return (
        f"{path} cannot be read ({why}): damaged, cut off, or more than tensors? What "
        "torch.save(model.state_dict(), …) writes was expected"
    )


def _unwrapped(path: Path, content: object) -> dict[str, Any]:
    """The state dict within what a file holds.

    Raises:
      BadData: there is none, or several, or none within reach.
    """
    for _ in range(_DEEPEST):
        if not isinstance(content, Mapping):
            raise BadData(f"{path} holds a {type(content).__name__}: a state dict was expected")
        inner = [name for name in _WRAPPERS if isinstance(content.get(name), Mapping)]
        if not inner:
            return {str(name): value for name, value in content.items()}
        if len(inner) > 1:
            raise BadData(f"{path} holds several state dicts: {', '.join(inner)}; one was expected")
        content = content[inner[0]]
    raise BadData(
        f"{path}: its state dict is wrapped too deep, in {_DEEPEST} others or more: save "
        "model.state_dict() alone"
    )


def _oddity(torch: Any, value: Any) -> str | None:
    """Why a value is no plain tensor, told without a look at its numbers; None where it is one."""
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    if value.is_nested or value.layout != torch.strided:
        return "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
    if value.device.type != "cpu":
        return f"without numbers, on the device {value.device.type}"
    if (kind := str(value.dtype).removeprefix("torch.")) not in _TORCH_DTYPES:
        return kind
    if value.is_neg():
        return "a view of the negative of another"
    if value.dim() > _MOST_AXES:
        return f"of {value.dim()} axes"
    held, claimed = value.untyped_storage().nbytes(), value.numel() * value.element_size()
    return f"{claimed:,} bytes, of which the file has {held:,}" if held < claimed else None


def _check_size(path: Path, entries: Mapping[str, Any]) -> None:
    """Raises BadData where a small file would become large, by many entries of the same numbers."""
    storages = [tensor.untyped_storage() for tensor in entries.values()]
    held = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    wanted = sum(4 * tensor.numel() for tensor in entries.values())
    if wanted > _MOST_GROWTH * held + _ANY_SIZE:
        raise BadData(
            f"{path}: its {len(entries):,} entries share {held:,} bytes, and would be {wanted:,} "
            "as float32: save model.state_dict() alone"
        )


def _of_tensor(torch: Any, tensor: Any) -> np.ndarray:
    tensor = tensor.detach()
    wide = tensor.to(torch.float32) if tensor.is_floating_point() else tensor
    return np.asarray(wide.numpy())
