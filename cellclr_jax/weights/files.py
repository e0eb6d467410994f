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
# NumPy's types by safetensors' names; NumPy has no bfloat16.
_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
# Keys under which training programs save the state dict, and the deepest nesting.
_WRAPPERS = ("state_dict", "model", "model_state_dict")
_DEEPEST = 4
# Tensors may share or repeat their storage, so that a small file can need any amount of memory.
# Weights may need `_MOST_GROWTH` times the file's bytes (8-bit numbers become float32, and layers
# may share weights) plus `_ANY_SIZE`.
_MOST_GROWTH, _ANY_SIZE = 16, 1 << 24


def read_entries(path: Path) -> dict[str, np.ndarray]:
    """Reads a state dict, also one in a training checkpoint.

    Args:
      path: a .safetensors file; any other name is read as a file of torch.save.

    Returns:
      Arrays by name, with PyTorch's order of axes; floating-point ones as float32, infinite if a
      number is too large for it; integers and booleans unchanged.

    Raises:
      BadUse: there is no such file, or the library that reads it is not installed.
      BadData: the file is damaged, of another kind, or holds more than plain tensors.
    """
    if not path.is_file():
        raise BadUse(f"--input={path}: {'no file' if path.exists() else 'no such file'}")
    return _read_safetensors(path) if path.suffix == SAFETENSORS else _read_torch(path)


def write_entries(
    path: Path, entries: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes a state dict atomically.

    Args:
      path: checked by `check_output`.
      entries: contiguous arrays by name.
      metadata: of a safetensors file.

    Raises:
      BadUse: the library that writes the file is not installed.
      BadData: the file cannot be written, e.g. to a full disk.
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
    """Returns the error for a file or folder that could not be written."""
    # `strerror`, because the whole message of an OSError names the temporary file.
    why = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
    return BadData(
        f"{path} could not be written: {why}; once that is fixed, run the same command again"
    )


def check_output(path: Path) -> None:
    """Checks the output file before the weights are read.

    Raises:
      BadUse: an unknown suffix, an existing file, a missing folder or library.
    """
    if path.suffix not in WRITTEN:
        raise BadUse(f"--output={path}: a name in {', '.join(WRITTEN)} was expected")
    if path.exists():
        raise BadUse(f"--output={path} exists: take another name, or remove it")
    if not path.parent.is_dir():
        raise BadUse(f"--output={path}: no such folder: {path.parent}")
    _library("safetensors.numpy" if path.suffix == SAFETENSORS else "torch")


def _library(name: str) -> Any:
    """Imports an optional dependency; BadUse if it is not installed."""
    try:
        found: ModuleType = importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        other = SAFETENSORS if package == "torch" else ".pth"
        raise BadUse(
            f"{package} is not installed: pip install 'cellclr_jax[convert]', or use a {other} file"
        ) from error
    return found


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    library = _library("safetensors")
    try:
        found = library.deserialize(path.read_bytes())
        return {name: _array(content) for name, content in found}
    except (library.SafetensorError, ValueError) as error:
        raise BadData(
            f"{path} is no safetensors file, or cut off ({first_line(error)}): a header with the "
            "tensors' names, then their bytes, were expected"
        ) from error


def _array(content: Mapping[str, Any]) -> np.ndarray:
    """Decodes an entry of a safetensors file; ValueError for a type that NumPy lacks."""
    kind, data = content["dtype"], content["data"]
    if kind == "BF16":  # the upper 16 bits of a float32
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
    """Reads a file of torch.save; unpickles only tensors, so that no code runs."""
    torch = _library("torch")
    try:
        if zipfile.is_zipfile(path):
            _check_unpacked(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch about older files
            content = torch.load(path, map_location="cpu", weights_only=True)
        entries = _unwrapped(path, content)
        _check_size(path, 4 * sum(tensor.numel() for tensor in entries.values()))
        return {
            name: np.asarray((t.float() if t.is_floating_point() else t).detach().numpy())
            for name, t in entries.items()
        }
    except (BadData, MemoryError):
        raise
    except Exception as error:  # a damaged archive or pickle may raise any error
        cause = re.search(r"GLOBAL [\w.]+|Unsupported operand \d+", str(error))
        raise BadData(
            f"{path} cannot be read ({cause[0] if cause else first_line(error)}): it is damaged, "
            "cut off, or holds more than plain tensors, which is never loaded, since it could run "
            "code; a file of torch.save(model.state_dict(), …) was expected"
        ) from error


def _unwrapped(path: Path, content: object) -> dict[str, Any]:
    """Finds the state dict, a dict of tensors, in the content of a file.

    Raises:
      BadData: there is none, there are several, or it holds other objects than tensors.
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
    """Raises BadData if an archive is much larger unpacked; torch.save does not compress."""
    with zipfile.ZipFile(path) as archive:
        _check_size(path, sum(member.file_size for member in archive.infolist()))


def _check_size(path: Path, needed: int) -> None:
    """Raises BadData if a file needs far more bytes in memory than on disk."""
    size = path.stat().st_size
    if needed > _MOST_GROWTH * size + _ANY_SIZE:
        raise BadData(
            f"{path}: its {size:,} bytes need {needed:,} in memory: save model.state_dict() only"
        )
