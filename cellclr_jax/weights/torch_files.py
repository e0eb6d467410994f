"""Files of torch.save, read without running what they hold."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cellclr_jax.checkpoint_files import first_line
from cellclr_jax.cli import BadData
from cellclr_jax.weights.torch_layout import listed

# Under which training programs put the weights beside what else they save.
_WRAPPERS = ("state_dict", "model", "model_state_dict")
# More of them around each other than any program makes; a dict may hold itself.
_DEEPEST = 8
# Of PyTorch's, which can be told in float32 or are NumPy's; others are packed or quantised.
_DTYPES = (
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
    if (kind := str(value.dtype).removeprefix("torch.")) not in _DTYPES:
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
