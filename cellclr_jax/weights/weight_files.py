"""Files of weights: PyTorch's own and safetensors, read without running what they hold."""

import hashlib
import importlib
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from cellclr_jax.checkpoint_files import first_line
from cellclr_jax.cli import BadData, BadUse
from cellclr_jax.profiling.reporting.evaluation_folder import write_file

SAFETENSORS = ".safetensors"
WRITTEN = (".pth", ".pt", SAFETENSORS)
# Under which training programs put the weights beside what else they save.
_WRAPPERS = ("state_dict", "model", "model_state_dict")
# How a zip archive and a pickle begin, the two forms that torch.save has had.
_TORCH_MAGIC = (b"PK\x03\x04", b"\x80")
_FOREIGN_MAGIC = {b"<": "a web page", b"version https://git-lfs": "a pointer of Git LFS"}
_MAGIC_BYTES = 64
# Of numbers that NumPy has, as safetensors calls them; bfloat16 is taken apart by hand.
_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
_NAMED = 3
# What PyTorch says of pickles that name functions or classes, and of programs.
_MORE_THAN_TENSORS = re.compile(r"GLOBAL [\w.]+|Unsupported (global|class)|Trying to|TorchScript")


def read_entries(path: Path) -> dict[str, np.ndarray]:
    """Reads a state dict, out of a training checkpoint where it lies in one.

    Args:
      path: a .safetensors file, or one that torch.save wrote, whatever its name.

    Returns:
      Arrays by name as PyTorch orders axes; floating-point ones of any kind as float32 (infinite
      where a number is too large for it), others as they are.

    Raises:
      BadUse: there is no such file, or no library that reads it.
      BadData: it is something else, damaged, or holds more than tensors.
    """
    if not path.is_file():
        raise BadUse(f"--input={path}: no such file")
    with path.open("rb") as file:
        start = file.read(_MAGIC_BYTES)
    if not start:
        raise BadData(f"{path} is empty: a state dict was expected")
    for magic, what in _FOREIGN_MAGIC.items():
        if start.lstrip().lower().startswith(magic):
            raise BadData(f"{path} is {what}, no weights: the download went wrong")
    if path.suffix == SAFETENSORS:
        return _read_safetensors(path)
    if not start.startswith(_TORCH_MAGIC):
        raise BadData(
            f"{path} is no file of torch.save: neither a zip archive nor a pickle "
            f"(a safetensors file has to be named *{SAFETENSORS})"
        )
    return _read_torch(path)


def write_entries(path: Path, entries: Mapping[str, np.ndarray], told: Mapping[str, str]) -> None:
    """Writes a state dict, whole or not at all.

    Args:
      path: one that `check_output` admits.
      entries: contiguous arrays by name.
      told: what a safetensors file says of itself.

    Raises:
      BadUse: there is no library that writes it.
    """
    write: Callable[[Path], object]
    if path.suffix == SAFETENSORS:
        save = _library("safetensors.numpy").save_file
        write = lambda place: save(dict(entries), place, metadata={"format": "pt", **told})  # noqa: E731
    else:
        torch = _library("torch")
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in entries.items()}
        write = lambda place: torch.save(tensors, place)  # noqa: E731
    write_file(path, write)


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


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    library = _library("safetensors")
    try:
        found = library.deserialize(path.read_bytes())
    except library.SafetensorError as error:
        raise BadData(
            f"{path} is no safetensors file, or cut off ({first_line(error)}): a header that names "
            "the tensors and then their bytes were expected"
        ) from error
    return {name: _array(path, name, content) for name, content in found}


def _array(path: Path, name: str, content: Mapping[str, Any]) -> np.ndarray:
    """An entry of a safetensors file."""
    kind, data = content["dtype"], content["data"]
    if kind == "BF16":  # the upper half of a float32
        wide = np.frombuffer(data, "<u2").astype(np.uint32) << 16
        return wide.view(np.float32).reshape(content["shape"])
    if kind not in _DTYPES:
        raise BadData(f"{path}: {name} is of the type {kind}: floating-point numbers were expected")
    return _float32(np.frombuffer(data, _DTYPES[kind]).reshape(content["shape"]))


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    torch = _library("torch")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch about its own older files
            content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged archive or pickle raises whatever it runs into
        raise BadData(_why_not_loaded(path, error)) from error
    entries = _unwrapped(path, content)
    odd = [
        f"{name} ({type(value).__name__})"
        for name, value in entries.items()
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided
    ]
    if odd:
        more = f" and {len(odd) - _NAMED} more" if len(odd) > _NAMED else ""
        raise BadData(f"{path}: no plain tensors: {', '.join(odd[:_NAMED])}{more}")
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
      BadData: there is none, or several.
    """
    while isinstance(content, Mapping):
        inner = [name for name in _WRAPPERS if isinstance(content.get(name), Mapping)]
        if not inner:
            return {str(name): value for name, value in content.items()}
        if len(inner) > 1:
            raise BadData(f"{path} holds several state dicts: {', '.join(inner)}; one was expected")
        content = content[inner[0]]
    raise BadData(f"{path} holds a {type(content).__name__}: a state dict was expected")


def _of_tensor(torch: Any, tensor: Any) -> np.ndarray:
    tensor = tensor.detach()
    if tensor.is_quantized or tensor.is_complex():
        return np.empty(tuple(tensor.shape), np.complex64)
    wide = tensor.to(torch.float32) if tensor.is_floating_point() else tensor
    return np.asarray(wide.numpy())


def _float32(array: np.ndarray) -> np.ndarray:
    if not np.issubdtype(array.dtype, np.floating):
        return array
    with np.errstate(over="ignore"):  # what is infinite then is told by name
        return array.astype(np.float32)
