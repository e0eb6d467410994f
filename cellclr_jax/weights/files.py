"""Reads and writes files of weights: .pth, .pt, .safetensors."""

import importlib
import io
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from cellclr_jax.console import listed
from cellclr_jax.errors import BadData, BadUse
from cellclr_jax.files import atomic_write
from cellclr_jax.training.checkpoints import first_line

SAFETENSORS = ".safetensors"
WRITTEN = (".pth", ".pt", SAFETENSORS)
# NumPy's types by the names that safetensors has for them; bfloat16 is converted by hand.
_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
# Names under which training programs save the state dict, and how deep these are nested at most.
_WRAPPERS = ("state_dict", "model", "model_state_dict")
_DEEPEST = 4
# Tensors may share or repeat their numbers, so that a small file becomes as large as it likes. As
# float32, numbers of 8 bits grow to four times their bytes, and some layers share theirs.
_MOST_GROWTH, _ANY_SIZE = 16, 1 << 24


def read_entries(path: Path) -> dict[str, np.ndarray]:
    """Reads a state dict, also one that lies in a training checkpoint.

    Args:
      path: a .safetensors file, or one that torch.save wrote, whatever its name.

    Returns:
      Arrays by name, their axes in PyTorch's order; floating-point ones as float32, infinite where
      a number is too large for it; integers and booleans as they are.

    Raises:
      BadUse: there is no such file, or no library that reads it.
      BadData: it is something else, damaged, or holds more than plain tensors.
    """
    if not path.is_file():
        raise BadUse(f"--input={path}: {'no file' if path.exists() else 'no such file'}")
    return _read_safetensors(path) if path.suffix == SAFETENSORS else _read_torch(path)


def write_entries(
    path: Path, entries: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes a state dict atomically.

    Args:
      path: one that `check_output` admits.
      entries: contiguous arrays by name.
      metadata: what a safetensors file says of itself.

    Raises:
      BadUse: there is no library that writes it.
      BadData: the disk is full, or the folder takes no file.
    """
    content = io.BytesIO()
    if path.suffix == SAFETENSORS:
        save = _library("safetensors.numpy").save
        content.write(save(dict(entries), metadata={"format": "pt", **metadata}))
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
    """The error for a file or folder that could not be written."""
    # The message of a system's error names the temporary file.
    why = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
    return BadData(
        f"{path} could not be written: {why}; once that is mended, run the same command again"
    )


def check_output(path: Path) -> None:
    """Checks where weights are to be written, before they are read.

    Raises:
      BadUse: the name has another ending, the file exists, or its folder does not.
    """
    if path.suffix not in WRITTEN:
        raise BadUse(f"--output={path}: a name in {', '.join(WRITTEN)} was expected")
    if path.exists():
        raise BadUse(f"--output={path} exists: take another name, or remove it")
    if not path.parent.is_dir():
        raise BadUse(f"--output={path}: no such folder: {path.parent}")
    _library("safetensors.numpy" if path.suffix == SAFETENSORS else "torch")


def _library(name: str) -> Any:
    """Imports an optional dependency."""
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
        return {name: _array(content) for name, content in found}
    except (library.SafetensorError, ValueError) as error:
        raise BadData(
            f"{path} is no safetensors file, or cut off ({first_line(error)}): a header that names "
            "the tensors and then their bytes were expected"
        ) from error


def _array(content: Mapping[str, Any]) -> np.ndarray:
    """An entry of a safetensors file; ValueError for a type that NumPy does not have."""
    kind, data = content["dtype"], content["data"]
    if kind == "BF16":  # the upper half of a float32
        array = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    elif kind in _DTYPES:
        array = np.frombuffer(data, _DTYPES[kind])
    else:
        raise ValueError(f"numbers of the type {kind}")
    if np.issubdtype(array.dtype, np.floating):
        with np.errstate(over="ignore"):  # infinite numbers are reported by name later
            array = array.astype(np.float32)
    return array.reshape(content["shape"])


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    """Reads what torch.save wrote; only tensors are unpickled, no code runs."""
    torch = _library("torch")
    try:
        if zipfile.is_zipfile(path):
            _check_unpacked(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's about its own older files
            content = torch.load(path, map_location="cpu", weights_only=True)
        entries = _unwrapped(path, content)
        _check_size(path, 4 * sum(tensor.numel() for tensor in entries.values()))
        return {
            name: np.asarray((t.float() if t.is_floating_point() else t).detach().numpy())
            for name, t in entries.items()
        }
    except (BadData, MemoryError):
        raise
    except Exception as error:  # a damaged archive or pickle raises whatever it runs into
        cause = re.search(r"GLOBAL [\w.]+|Unsupported operand \d+", str(error))
        raise BadData(
            f"{path} cannot be read ({cause[0] if cause else first_line(error)}): damaged, cut "
            "off, or more than plain tensors, which is never loaded, since it could run code; "
            "what torch.save(model.state_dict(), …) writes was expected"
        ) from error


def _unwrapped(path: Path, content: object) -> dict[str, Any]:
    """The state dict, a dict of tensors, in the content of a file.

    Raises:
      BadData: there is none, there are several, or it holds something else.
    """
    for _ in range(_DEEPEST):
        if not isinstance(content, Mapping):
            raise BadData(f"{path} holds a {type(content).__name__}: a state dict was expected")
        inner = [name for name in _WRAPPERS if isinstance(content.get(name), Mapping)]
        if len(inner) > 1:
            raise BadData(f"{path} holds several state dicts: {', '.join(inner)}; one was expected")
        if not inner:
            break
        content = content[inner[0]]
    assert isinstance(content, Mapping)
    odd = [f"{k} ({type(v).__name__})" for k, v in content.items() if not hasattr(v, "numel")]
    if odd:
        raise BadData(f"{path}: no plain tensors: {listed(odd)}: save model.state_dict() only")
    return {str(name): value for name, value in content.items()}


def _check_unpacked(path: Path) -> None:
    """Raises BadData if a zip archive is compressed: torch.save does not do that."""
    with zipfile.ZipFile(path) as archive:
        _check_size(path, sum(member.file_size for member in archive.infolist()))


def _check_size(path: Path, wanted: int) -> None:
    """Raises BadData if a small file would take an unreasonable number of bytes in memory."""
    size = path.stat().st_size
    if wanted > _MOST_GROWTH * size + _ANY_SIZE:
        raise BadData(
            f"{path}: its {size:,} bytes would be {wanted:,} in memory: save model.state_dict() "
            "only"
        )
