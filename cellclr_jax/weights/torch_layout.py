"""How PyTorch names and lays out the weights of the encoders here, and how Flax does.

Names are those of torchvision's ResNets, or of an nn.Sequential `features` of the same modules.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cellclr_jax.cli import BadData

Layout = Literal["torchvision", "published"]
Entries = Mapping[str, np.ndarray]
Variables = dict[str, Any]

COUNTER = "num_batches_tracked"
"""An entry of each batch normalisation that says nothing about its weights."""

RESNETS = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
}
STAGE_WIDTHS = (64, 128, 256, 512)
# The children of torchvision's ResNet, numbered; ReLU, pooling and the mean have no weights.
PUBLISHED = {
    "conv1": "features.0",
    "bn1": "features.1",
    "layer1": "features.4",
    "layer2": "features.5",
    "layer3": "features.6",
    "layer4": "features.7",
}
# Modules of a layer of the CNN: convolution, ReLU and pooling, or normalisation after the first.
_CNN_STRIDE = {"none": 3, "batch": 4}
# A message that names every entry of another network, or all of a long name, would hide what it
# says.
_NAMED, _LONGEST = 3, 120


@dataclass(frozen=True)
class Network:
    """What the entries of a file are the weights of.

    Attributes:
      encoder: cnn, resnet18, resnet50 or resnet101.
      channels: of the images.
      layout: how the encoder's entries are named; a CNN's are `features` in either.
      widths: of the CNN's layers.
      norm: of the CNN, `none` or `batch`.
      head: (hidden, width) of two linear layers `l1` and `l2`, or None.
    """

    encoder: str
    channels: int
    layout: Layout
    widths: tuple[int, ...] = ()
    norm: str = "none"
    head: tuple[int, int] | None = None

    @property
    def features(self) -> int:
        """The width D of an embedding."""
        if self.encoder == "cnn":
            return self.widths[-1]
        return 512 if RESNETS[self.encoder][0] == "basic" else 2048


@dataclass(frozen=True)
class Slot:
    """Where an entry of PyTorch's belongs.

    Attributes:
      path: in {"params": …, "batch_stats": …}; its last name says how axes are ordered.
      shape: of the entry in PyTorch's order of axes.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]


def slots(network: Network) -> dict[str, Slot]:
    """Where each entry of a network belongs, by its name in the network's layout."""
    encoder = _cnn_slots(network) if network.encoder == "cnn" else _resnet_slots(network)
    found = {}
    for name, slot in encoder:
        first, _, rest = name.partition(".")
        renamed = network.layout == "published" and network.encoder != "cnn"
        found[f"{PUBLISHED[first]}.{rest}" if renamed else name] = slot
    if network.head is not None:
        hidden, width = network.head
        found |= _linear("l1", network.features, hidden)
        found |= _linear("l2", hidden, width)
    return found


def to_variables(entries: Entries, network: Network) -> Variables:
    """Flax's variables of a network.

    Args:
      entries: by bare names, floating ones float32 in PyTorch's order of axes: kernels
        [out, in, height, width], matrices [out, in].
      network: what they are of.

    Returns:
      {"params": …, "batch_stats": …} of a `ContrastiveModel`: arrays float32, kernels
      [height, width, in, out], matrices [in, out].

    Raises:
      BadData: entries are missing, superfluous, of other shapes, not floating or not finite; the
        message names the first few of each kind.
    """
    wanted = slots(network)
    _check(entries, wanted, network)
    return _tree(wanted, lambda name, slot: _to_flax(entries[name], slot))


def shapes_of(network: Network) -> Variables:
    """The shapes, tuples of integers, of what `to_variables` returns for a network."""
    return _tree(slots(network), lambda _, slot: _moved(slot, slot.shape))


def to_entries(variables: Mapping[str, Any], network: Network) -> dict[str, np.ndarray]:
    """PyTorch's entries of a network: what `to_variables` was given, to the bit.

    Args:
      variables: as `to_variables` returns them; what the network does not have is passed over.
      network: what they are of, and in which layout they are named.

    Returns:
      Arrays float32 by name, contiguous; a counter of zero, int64, for each batch normalisation.
    """
    entries: dict[str, np.ndarray] = {}
    for name, slot in slots(network).items():
        leaf: Any = variables
        for part in slot.path:
            leaf = leaf[part]
        array = np.asarray(leaf)
        back = np.argsort(_moved(slot, range(array.ndim)))
        entries[name] = np.ascontiguousarray(array.transpose(back))
        if slot.path[-1] == "var":
            entries[f"{name.rpartition('.')[0]}.{COUNTER}"] = np.zeros((), np.int64)
    return entries


def _tree(wanted: Mapping[str, Slot], leaf: Callable[[str, Slot], Any]) -> Variables:
    """Leaves made of entries, at their places."""
    variables: Variables = {"params": {}, "batch_stats": {}}
    for name, slot in wanted.items():
        place = variables
        for part in slot.path[:-1]:
            place = place.setdefault(part, {})
        place[slot.path[-1]] = leaf(name, slot)
    return variables


def _to_flax(array: np.ndarray, slot: Slot) -> np.ndarray:
    axes = _moved(slot, range(array.ndim))
    return np.ascontiguousarray(array.transpose(axes), np.float32)


def _moved(slot: Slot, axes: Sequence[int]) -> tuple[int, ...]:
    """Axes, or their lengths, in Flax's order: of a kernel the inner ones, inputs, outputs."""
    if slot.path[-1] != "kernel":
        return tuple(axes)
    outputs, inputs, *inner = axes
    return (*inner, inputs, outputs)


def _cnn_slots(network: Network) -> Iterator[tuple[str, Slot]]:
    inside, stride = network.channels, _CNN_STRIDE[network.norm]
    for i, width in enumerate(network.widths):
        plain = network.norm == "none"
        yield from _convolution(f"features.{stride * i}", f"conv{i + 1}", (width, inside, 3), plain)
        if not plain:
            yield from _norm(f"features.{stride * i + 1}", f"bn{i + 1}", width)
        inside = width


def _resnet_slots(network: Network) -> Iterator[tuple[str, Slot]]:
    """By torchvision's names."""
    kind, depths = RESNETS[network.encoder]
    yield from _convolution("conv1", "conv1", (64, network.channels, 7))
    yield from _norm("bn1", "bn1", 64)
    inside = 64
    for stage, (width, depth) in enumerate(zip(STAGE_WIDTHS, depths, strict=True), 1):
        outside = width if kind == "basic" else 4 * width
        for i in range(depth):
            theirs, ours = f"layer{stage}.{i}", f"layer{stage}_{i}"
            kernels = [(width, inside, 3), (width, width, 3)]
            if kind == "bottleneck":
                kernels = [(width, inside, 1), (width, width, 3), (outside, width, 1)]
            for number, kernel in enumerate(kernels, 1):
                yield from _convolution(f"{theirs}.conv{number}", f"{ours}/conv{number}", kernel)
                yield from _norm(f"{theirs}.bn{number}", f"{ours}/bn{number}", kernel[0])
            if i == 0 and (stage > 1 or inside != outside):
                kernel, down = (outside, inside, 1), f"{theirs}.downsample"
                yield from _convolution(f"{down}.0", f"{ours}/downsample_conv", kernel)
                yield from _norm(f"{down}.1", f"{ours}/downsample_bn", outside)
            inside = outside


def _convolution(
    theirs: str, ours: str, kernel: tuple[int, int, int], bias: bool = False
) -> Iterator[tuple[str, Slot]]:
    """Of (out, in, side)."""
    out, inside, side = kernel
    place = ("params", "encoder", *ours.split("/"))
    yield f"{theirs}.weight", Slot((*place, "kernel"), (out, inside, side, side))
    if bias:
        yield f"{theirs}.bias", Slot((*place, "bias"), (out,))


def _norm(theirs: str, ours: str, width: int) -> Iterator[tuple[str, Slot]]:
    names = {
        "weight": ("params", "scale"),
        "bias": ("params", "bias"),
        "running_mean": ("batch_stats", "mean"),
        "running_var": ("batch_stats", "var"),
    }
    for name, (kind, leaf) in names.items():
        yield f"{theirs}.{name}", Slot((kind, "encoder", *ours.split("/"), leaf), (width,))


def _linear(name: str, inside: int, out: int) -> dict[str, Slot]:
    return {
        f"{name}.weight": Slot(("params", "head", name, "kernel"), (out, inside)),
        f"{name}.bias": Slot(("params", "head", name, "bias"), (out,)),
    }


def _check(entries: Entries, wanted: Mapping[str, Slot], network: Network) -> None:
    """Raises BadData for entries that are not what a network has."""
    both = [name for name in wanted if name in entries]
    floating = [name for name in both if np.issubdtype(entries[name].dtype, np.floating)]
    fitting = [name for name in floating if entries[name].shape == wanted[name].shape]
    kinds = {
        "missing": [name for name in wanted if name not in entries],
        "superfluous": [name for name in entries if name not in wanted],
        "of another shape": [
            f"{name} {entries[name].shape}, {wanted[name].shape} expected"
            for name in both
            if entries[name].shape != wanted[name].shape
        ],
        "no floating-point numbers": [
            f"{name} ({entries[name].dtype})" for name in both if name not in floating
        ],
        "negative": [n for n in fitting if wanted[n].path[-1] == "var" and (entries[n] < 0).any()],
        "not finite": [name for name in fitting if not np.isfinite(entries[name]).all()],
    }
    if told := "; ".join(f"{kind}: {listed(names)}" for kind, names in kinds.items() if names):
        raise BadData(f"not the weights of a {network.encoder} as expected: {told}")


def listed(names: Iterable[str]) -> str:
    """The first few names, long ones without their middle, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(_short(name) for name in names[:_NAMED]) + more


def _short(name: str) -> str:
    """A name that fits into a line, whatever a file calls its entries."""
    name = name if name.isprintable() else ascii(name)
    half = _LONGEST // 2
    return name if len(name) <= _LONGEST else f"{name[:half]} … {name[-half:]}"
