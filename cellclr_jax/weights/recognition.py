"""What network the entries of a file are the weights of, told by their names and shapes."""

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from cellclr_jax.cli import BadData
from cellclr_jax.weights.torch_layout import (
    COUNTER,
    PUBLISHED,
    RESNETS,
    STAGE_WIDTHS,
    Entries,
    Layout,
    Network,
    listed,
    slots,
)

# What others are called, that a file may hold as well.
_OTHERS: Mapping[tuple[str, tuple[int, ...]], str] = {
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (2, 2, 2, 2)): "resnet26",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
    ("bottleneck", (3, 24, 36, 3)): "resnet200",
}
_CLASSIFIER = ("fc.weight", "fc.bias")
# What only a batch normalisation has, beside which alone a counter is one of batches.
_VARIANCE = "running_var"
# Taken off wherever it is, and those that are taken off where every entry has them.
_PARALLEL, _PREFIXES = "module.", ("backbone.", "encoder.")
_MOST_PREFIXES = 8


def bare(entries: Entries) -> dict[str, np.ndarray]:
    """Entries by names without the prefixes of wrapping modules, without counters of batches.

    Args:
      entries: arrays by name; `module.` is taken off any, `backbone.` and `encoder.` where all
        have it; a counter that is no batch normalisation's stays.

    Raises:
      BadData: two of them would have one name; there are more prefixes than any program makes.
    """
    named = dict(entries)
    turns = 0
    while prefix := _prefix_of(named):
        if (turns := turns + 1) > _MOST_PREFIXES:
            raise BadData(f"wrapped in more than {_MOST_PREFIXES} modules: {listed(named)}")
        shorter = {name.removeprefix(prefix): array for name, array in named.items()}
        if len(shorter) < len(named):
            twice = [name for name in named if prefix + name in named]
            raise BadData(f"with and without {prefix!r} there are {listed(twice)}")
        named = shorter
    return {name: array for name, array in named.items() if not _is_counter(name, named)}


def split_classifier(entries: Entries) -> tuple[dict[str, np.ndarray], list[str]]:
    """Entries without those of a classification layer, and the names of these."""
    left_out = [name for name in _CLASSIFIER if name in entries]
    return {name: a for name, a in entries.items() if name not in left_out}, left_out


def recognise(entries: Entries) -> Network:
    """What network entries are of, by their names and shapes.

    Args:
      entries: by bare names (see `bare`), without a classifier.

    Raises:
      BadData: they are of none that is known here; the message says what they seem to be.
    """
    shapes = {name: array.shape for name, array in entries.items()}
    if empty := [f"{name} {shape}" for name, shape in shapes.items() if 0 in shape]:
        raise BadData(f"without a single number: {listed(empty)}")
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


def _is_counter(name: str, entries: Mapping[str, object]) -> bool:
    module, _, last = name.rpartition(".")
    return last == COUNTER and f"{module}.{_VARIANCE}" in entries


def _prefix_of(named: Mapping[str, object]) -> str | None:
    """A prefix that is to be taken off."""
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
    """The ResNet that shapes by torchvision's names are of, or that is nearest to them."""
    found = [re.match(r"layer([1-4])\.(\d{1,4})\.", name) for name in shapes]
    blocks = {(int(match[1]), int(match[2])) for match in found if match}
    depths = tuple(len({i for s, i in blocks if s == stage}) for stage in (1, 2, 3, 4))
    bottleneck = any(name.endswith(".conv3.weight") for name in shapes)
    kind = "bottleneck" if bottleneck else "basic"
    stem = shapes.get("conv1.weight", ())
    channels = stem[1] if len(stem) == 4 else 3
    if told := _foreign(shapes, kind, depths):
        raise BadData(f"seems to be {told}: one of {', '.join(RESNETS)} was expected")

    def alike(name: str) -> float:
        names = slots(Network(name, channels, "torchvision")).keys()
        return len(names & shapes.keys()) / len(names | shapes.keys())

    return Network(max(RESNETS, key=alike), channels, layout)


def _foreign(
    shapes: Mapping[str, tuple[int, ...]], kind: str, depths: tuple[int, ...]
) -> str | None:
    """What a ResNet seems to be that is none of those here."""
    size = next((n.removeprefix("resnet") for n, of in RESNETS.items() if of == (kind, depths)), "")
    if any(re.match(r"conv1\.\d+\.", name) for name in shapes):
        return f"a resnet{size}d or its like, whose first layer is several convolutions"
    if any(".se." in name for name in shapes):
        return f"a seresnet{size}, whose blocks weigh their channels"
    middle = shapes.get("layer1.0.conv2.weight", ())
    if kind == "bottleneck" and len(middle) == 4 and middle[0] != middle[1]:
        return f"a resnext{size}, whose convolutions are grouped"
    if kind == "bottleneck" and len(middle) == 4 and middle[0] > STAGE_WIDTHS[0]:
        return f"a wide_resnet{size}, whose blocks have {middle[0]} channels inside"
    return _OTHERS.get((kind, depths))


def _recognise_cnn(shapes: Mapping[str, tuple[int, ...]]) -> Network:
    """The CNN whose convolutions are the entries of four axes, in their order."""
    found = [(re.fullmatch(r"features\.(\d{1,4})\.weight", name), s) for name, s in shapes.items()]
    kernels = sorted((int(match[1]), shape) for match, shape in found if match and len(shape) == 4)
    if not kernels:
        raise BadData(f"no convolution among its entries: {listed(shapes)}")
    norm = "batch" if any(name.endswith(".running_mean") for name in shapes) else "none"
    widths = tuple(shape[0] for _, shape in kernels)
    return Network("cnn", kernels[0][1][1], "published", widths, norm)


def _length(shape: tuple[int, ...]) -> int:
    return shape[0] if shape else 0
