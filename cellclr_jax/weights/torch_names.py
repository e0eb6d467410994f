"""Maps PyTorch's names of weights to ours, and recognises which network a file holds."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from cellclr_jax.errors import BadData

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
# Names in a message; all entries of another network would hide what it says.
_NAMED = 3


@dataclass(frozen=True)
class Network:
    """A network that a file of weights belongs to.

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
    """The place of one of PyTorch's entries among Flax's variables.

    Attributes:
      path: in {"params": …, "batch_stats": …}; its last name says how axes are ordered.
      shape: of the entry in PyTorch's order of axes.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]


def slots(network: Network) -> dict[str, Slot]:
    """Lists the slot of each entry of a network, by its name in the network's layout."""
    found = {}
    is_cnn = network.encoder == "cnn"
    for name, slot in _cnn_slots(network) if is_cnn else _resnet_slots(network):
        first, _, rest = name.partition(".")
        renamed = network.layout == "published" and not is_cnn
        found[f"{PUBLISHED[first]}.{rest}" if renamed else name] = slot
    if network.head is not None:
        hidden, width = network.head
        found |= _linear("l1", network.features, hidden)
        found |= _linear("l2", hidden, width)
    return found


def to_variables(entries: Entries, network: Network) -> Variables:
    """Converts PyTorch's entries of a network to Flax's variables.

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
    """Computes the shapes, tuples of integers, of the result of `to_variables` for a network."""
    return _tree(slots(network), lambda _, slot: _moved(slot, slot.shape))


def to_entries(variables: Mapping[str, Any], network: Network) -> dict[str, np.ndarray]:
    """Converts Flax's variables of a network to PyTorch's entries, the inverse of `to_variables`.

    Args:
      variables: as `to_variables` returns them; others are ignored.
      network: also gives the layout of the names.

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
    """Flax's nested dicts, with a leaf made of each entry."""
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
    """Slots of a convolution with the kernel (out, in, side)."""
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
    if wrong := "; ".join(f"{kind}: {listed(names)}" for kind, names in kinds.items() if names):
        raise BadData(f"not the weights of a {network.encoder} as expected: {wrong}")


def listed(names: Iterable[str]) -> str:
    """Joins the first few names, and says how many more there are."""
    names = list(names)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


_CLASSIFIER = ("fc.weight", "fc.bias")
# Removed from any entry; removed only if every entry has it.
_PARALLEL, _PREFIXES = "module.", ("backbone.", "encoder.")


def bare(entries: Entries) -> dict[str, np.ndarray]:
    """Removes prefixes of wrapping modules from names, and counters of batches.

    Args:
      entries: arrays by name; `module.` is removed from any, `backbone.` and `encoder.` if all
        have it.

    Raises:
      BadData: two of them would have one name.
    """
    named = dict(entries)
    while prefix := _prefix_of(named):
        shorter = {name.removeprefix(prefix): array for name, array in named.items()}
        if len(shorter) < len(named):
            twice = [name for name in named if prefix + name in named]
            raise BadData(f"with and without {prefix!r} there are {listed(twice)}")
        named = shorter
    return {name: array for name, array in named.items() if name.split(".")[-1] != COUNTER}


def split_classifier(entries: Entries) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the entries without those of a classification layer, and the names of these."""
    left_out = [name for name in _CLASSIFIER if name in entries]
    return {name: a for name, a in entries.items() if name not in left_out}, left_out


def recognise(entries: Entries) -> Network:
    """Finds the network of some entries by their names and shapes.

    Args:
      entries: by bare names (see `bare`), without a classifier.

    Raises:
      BadData: they are of no known network; the message says what they seem to be.
    """
    shapes = {name: array.shape for name, array in entries.items()}
    inner = {_torchvision_name(name): shape for name, shape in shapes.items()}
    if any(re.match(r"layer\d\.\d", name) for name in inner):
        published = any(name.startswith("features.") for name in shapes)
        network = _recognise_resnet(inner, "published" if published else "torchvision")
    elif any(re.fullmatch(r"features\.\d{1,4}\.weight", name) for name in shapes):
        network = _recognise_cnn(shapes)
    else:
        raise BadData(
            f"no ResNet and no CNN of ours: its entries are {listed(shapes) or 'none at all'}; "
            "conv1.weight, layer1.0.conv1.weight … or features.0.weight … were expected"
        )
    if any(name.startswith(("l1.", "l2.")) for name in shapes):
        hidden, width = (_length(shapes.get(f"l{i}.weight", ())) for i in (1, 2))
        network = replace(network, head=(hidden or network.features, width or 1))
    return network


def _prefix_of(named: Mapping[str, object]) -> str | None:
    """A prefix to remove."""
    if any(name.startswith(_PARALLEL) for name in named):
        return _PARALLEL
    common = (p for p in _PREFIXES if named and all(name.startswith(p) for name in named))
    return next(common, None)


def _torchvision_name(name: str) -> str:
    """The name in torchvision's layout of an entry of either layout."""
    for theirs, number in PUBLISHED.items():
        if name.startswith(f"{number}."):
            return theirs + name.removeprefix(number)
    return name


def _recognise_resnet(shapes: Mapping[str, tuple[int, ...]], layout: Layout) -> Network:
    """The ResNet with as many blocks in each stage; shapes are by torchvision's names."""
    found = [re.match(r"layer([1-4])\.(\d{1,4})\.", name) for name in shapes]
    blocks = {(int(match[1]), int(match[2])) for match in found if match}
    depths = tuple(len({i for s, i in blocks if s == stage}) for stage in (1, 2, 3, 4))
    bottleneck = any(name.endswith(".conv3.weight") for name in shapes)
    kind = "bottleneck" if bottleneck else "basic"
    name = next((name for name, own in RESNETS.items() if own == (kind, depths)), None)
    if name is None:
        known = ", ".join(f"{name} ({of} {deep})" for name, (of, deep) in RESNETS.items())
        raise BadData(f"a ResNet of {kind} blocks {depths}: one of {known} was expected")
    stem = shapes.get("conv1.weight", ())
    return Network(name, stem[1] if len(stem) == 4 else 3, layout)


def _recognise_cnn(shapes: Mapping[str, tuple[int, ...]]) -> Network:
    """The CNN whose convolutions are the entries with four axes, in their order."""
    found = [(re.fullmatch(r"features\.(\d{1,4})\.weight", name), s) for name, s in shapes.items()]
    kernels = sorted((int(match[1]), shape) for match, shape in found if match and len(shape) == 4)
    if not kernels:
        raise BadData(f"no convolution among its entries: {listed(shapes)}")
    norm = "batch" if any(name.endswith(".running_mean") for name in shapes) else "none"
    widths = tuple(shape[0] for _, shape in kernels)
    return Network("cnn", kernels[0][1][1], "published", widths, norm)


def _length(shape: tuple[int, ...]) -> int:
    return shape[0] if shape else 0
