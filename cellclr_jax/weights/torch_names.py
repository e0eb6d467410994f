"""Maps PyTorch's names of weights to Flax's, and recognises the network of a file."""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cellclr_jax.console import listed
from cellclr_jax.errors import BadData
from cellclr_jax.models import ENCODERS, BasicBlock, Bottleneck, make_model

Layout = Literal["torchvision", "published"]
Entries = Mapping[str, np.ndarray]
Variables = dict[str, Any]

COUNTER = "num_batches_tracked"
"""Name of an unneeded entry of each batch normalisation."""

RESNETS = {
    name: (made.keywords["block"], made.keywords["depths"])
    for name, made in ENCODERS.items()
    if isinstance(made, functools.partial)
}
"""Block and depths of each ResNet."""
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
# With more layers, images would need sides of more than 4,096 pixels.
_MOST_LAYERS = 12
# PyTorch's name of each of Flax's arrays.
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# Side of images to trace a ResNet with; its variables do not depend on it.
_SIDE = 32


@dataclass(frozen=True)
class Network:
    """Architecture of the weights in a file.

    Attributes:
      encoder: cnn, resnet18, resnet50 or resnet101.
      channels: of the images.
      layout: names of the encoder's entries; those of a CNN are `features` in both layouts.
      widths: of the CNN's layers.
      norm: of the CNN, `none` or `batch`.
      head: (hidden, width) of two linear layers `l1` and `l2`, or None; a hidden width of None
        means that of the embedding.
    """

    encoder: str
    channels: int
    layout: Layout
    widths: tuple[int, ...] = ()
    norm: str = "none"
    head: tuple[int | None, int] | None = None


class Slot(NamedTuple):
    """Flax's variable for an entry of PyTorch.

    Attributes:
      path: in {"params": …, "batch_stats": …}; its last name determines the order of axes.
      shape: of the entry in PyTorch's order of axes.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]


@functools.cache
def shapes_of(network: Network) -> Variables:
    """Computes the shapes of a network's variables, {"params": …, "batch_stats": …}."""
    is_cnn = network.encoder == "cnn"
    head: dict[str, int | None] = {"depth": 0}
    if network.head is not None:
        head = {"hidden": network.head[0], "width": network.head[1]}
    model = make_model(
        network.encoder,
        encoder_settings={"widths": network.widths, "norm": network.norm} if is_cnn else {},
        head_settings=head,
    )
    side = 2 ** len(network.widths) if is_cnn else _SIDE
    images = jax.ShapeDtypeStruct((1, side, side, network.channels), jnp.float32)
    init = functools.partial(model.init, train=False)
    found = jax.eval_shape(init, jax.random.key(0), images)
    return {"params": found["params"], "batch_stats": found.get("batch_stats", {})}


def slots(network: Network) -> dict[str, Slot]:
    """Returns the slot of each entry of a network, by its name in the network's layout."""
    return {
        _torch_name(path, network): Slot(path, _to_torch(path, leaf.shape))
        for path, leaf in flatten_dict(shapes_of(network)).items()
    }


def to_variables(entries: Entries, network: Network) -> Variables:
    """Converts PyTorch's entries of a network to Flax's variables.

    Args:
      entries: by names without prefixes (see `bare`), float32 in PyTorch's order of axes: kernels
        [out, in, height, width], matrices [out, in].
      network: their architecture.

    Returns:
      {"params": …, "batch_stats": …} of a `ContrastiveModel`: arrays float32, kernels
      [height, width, in, out], matrices [in, out].

    Raises:
      BadData: entries are missing, superfluous, of other shapes, not floating or not finite; the
        message names the first few of each kind.
    """
    expected = slots(network)
    _check(entries, expected, network)
    flat = {
        slot.path: np.ascontiguousarray(
            entries[name].transpose(_to_flax(slot.path, range(len(slot.shape)))), np.float32
        )
        for name, slot in expected.items()
    }
    return {"batch_stats": {}, **unflatten_dict(flat)}


def to_entries(variables: Mapping[str, Any], network: Network) -> dict[str, np.ndarray]:
    """Converts Flax's variables of a network to PyTorch's entries, the inverse of `to_variables`.

    Args:
      variables: as `to_variables` returns them; others are ignored.
      network: their architecture, and the layout of the names.

    Returns:
      Arrays float32 by name, contiguous, and a counter 0, int64, for each batch normalisation.
    """
    entries: dict[str, np.ndarray] = {}
    flat = flatten_dict(variables)
    for name, slot in slots(network).items():
        axes = _to_torch(slot.path, range(len(slot.shape)))
        entries[name] = np.ascontiguousarray(np.asarray(flat[slot.path]).transpose(axes))
        if slot.path[-1] == "var":
            entries[f"{name.rpartition('.')[0]}.{COUNTER}"] = np.zeros((), np.int64)
    return entries


def _torch_name(path: tuple[str, ...], network: Network) -> str:
    """Returns PyTorch's name of a variable, such as `layer1.0.downsample.1.weight`."""
    part, *modules = path[1:-1]
    leaf = _LEAVES[path[-1]]
    if part == "head":
        return f"{modules[0]}.{leaf}"
    if network.encoder == "cnn":
        number = int(modules[0].removeprefix("conv").removeprefix("bn")) - 1
        module = _CNN_STRIDE[network.norm] * number + modules[0].startswith("bn")
        return f"features.{module}.{leaf}"
    for ours, theirs in (("downsample_conv", "downsample.0"), ("downsample_bn", "downsample.1")):
        modules[-1] = modules[-1].replace(ours, theirs)
    first, *block = modules[0].split("_")  # of layer1_0
    if network.layout == "published":
        first = PUBLISHED[first]
    return ".".join([first, *block, *modules[1:], leaf])


def _to_flax(path: tuple[str, ...], axes: Sequence[int]) -> tuple[int, ...]:
    """Reorders axes, or their lengths: those of a kernel to spatial axes, inputs, outputs."""
    if path[-1] != "kernel":
        return tuple(axes)
    outputs, inputs, *spatial = axes
    return (*spatial, inputs, outputs)


def _to_torch(path: tuple[str, ...], axes: Sequence[int]) -> tuple[int, ...]:
    """Reorders axes, or their lengths: those of a kernel to outputs, inputs, spatial axes."""
    if path[-1] != "kernel":
        return tuple(axes)
    *spatial, inputs, outputs = axes
    return (outputs, inputs, *spatial)


def _check(entries: Entries, expected: Mapping[str, Slot], network: Network) -> None:
    """Raises BadData if entries are not those of a network."""
    both = [name for name in expected if name in entries]
    floating = [name for name in both if np.issubdtype(entries[name].dtype, np.floating)]
    fitting = [name for name in floating if entries[name].shape == expected[name].shape]
    kinds = {
        "missing": [name for name in expected if name not in entries],
        "superfluous": [name for name in entries if name not in expected],
        "of another shape": [
            f"{name} {entries[name].shape}, {expected[name].shape} expected"
            for name in both
            if entries[name].shape != expected[name].shape
        ],
        "no floating-point numbers": [
            f"{name} ({entries[name].dtype})" for name in both if name not in floating
        ],
        "negative": [
            n for n in fitting if expected[n].path[-1] == "var" and (entries[n] < 0).any()
        ],
        "not finite": [name for name in fitting if not np.isfinite(entries[name]).all()],
    }
    if wrong := "; ".join(f"{kind}: {listed(names)}" for kind, names in kinds.items() if names):
        raise BadData(f"not the weights of a {network.encoder} as expected: {wrong}")


_CLASSIFIER = ("fc.weight", "fc.bias")
# `module.` is removed from any entry, the others only if all entries have the same prefix.
_PARALLEL, _PREFIXES = "module.", ("backbone.", "encoder.")


def bare(entries: Entries) -> dict[str, np.ndarray]:
    """Removes prefixes of wrapping modules from names, and removes counters.

    Args:
      entries: arrays by name; `module.` is removed from any, `backbone.` and `encoder.` if all
        have it.

    Raises:
      BadData: two entries would have the same name.
    """
    named = dict(entries)
    while prefix := _prefix_of(named):
        shorter = {name.removeprefix(prefix): array for name, array in named.items()}
        if len(shorter) < len(named):
            twice = [name for name in named if prefix + name in named]
            raise BadData(f"entries exist with and without {prefix!r}: {listed(twice)}")
        named = shorter
    return {name: array for name, array in named.items() if name.split(".")[-1] != COUNTER}


def split_classifier(entries: Entries) -> tuple[dict[str, np.ndarray], list[str]]:
    """Splits entries into those of the encoder and head, and the names of a classifier's."""
    names = [name for name in _CLASSIFIER if name in entries]
    return {name: a for name, a in entries.items() if name not in names}, names


def recognise(entries: Entries) -> Network:
    """Determines the network of entries by their names and shapes.

    Args:
      entries: by names without prefixes (see `bare`), without a classifier.

    Raises:
      BadData: they are of no known network; the message describes them.
    """
    shapes = {name: array.shape for name, array in entries.items()}
    if empty := [name for name, shape in shapes.items() if 0 in shape]:
        raise BadData(f"empty entries: {listed(empty)}")
    inner = {_torchvision_name(name): shape for name, shape in shapes.items()}
    if any(re.match(r"layer\d\.\d", name) for name in inner):
        published = any(name.startswith("features.") for name in shapes)
        network = _recognise_resnet(inner, "published" if published else "torchvision")
    elif any(re.fullmatch(r"features\.\d{1,4}\.weight", name) for name in shapes):
        network = _recognise_cnn(shapes)
    else:
        raise BadData(
            f"neither a ResNet nor the CNN: its entries are {listed(shapes) or 'missing'}; "
            "conv1.weight, layer1.0.conv1.weight … or features.0.weight … were expected"
        )
    if any(name.startswith(("l1.", "l2.")) for name in shapes):
        hidden, width = ((*shapes.get(f"l{i}.weight", ()), None)[0] for i in (1, 2))
        network = replace(network, head=(hidden, width or 1))
    return network


def _prefix_of(named: Mapping[str, object]) -> str | None:
    """Returns a prefix to remove, or None."""
    if any(name.startswith(_PARALLEL) for name in named):
        return _PARALLEL
    common = (p for p in _PREFIXES if named and all(name.startswith(p) for name in named))
    return next(common, None)


def _torchvision_name(name: str) -> str:
    """Returns the name of an entry in torchvision's layout."""
    for theirs, number in PUBLISHED.items():
        if name.startswith(f"{number}."):
            return theirs + name.removeprefix(number)
    return name


def _recognise_resnet(shapes: Mapping[str, tuple[int, ...]], layout: Layout) -> Network:
    """Finds the ResNet with these blocks in each stage; shapes are by torchvision's names."""
    matches = [re.match(r"layer([1-4])\.(\d{1,4})\.", name) for name in shapes]
    blocks = {(int(match[1]), int(match[2])) for match in matches if match}
    depths = tuple(len({i for s, i in blocks if s == stage}) for stage in (1, 2, 3, 4))
    bottleneck = any(name.endswith(".conv3.weight") for name in shapes)
    block = Bottleneck if bottleneck else BasicBlock
    name = next((name for name, found in RESNETS.items() if found == (block, depths)), None)
    if name is None:
        known = ", ".join(f"{name} ({of.__name__} {deep})" for name, (of, deep) in RESNETS.items())
        raise BadData(f"a ResNet of {block.__name__} {depths}: one of {known} was expected")
    stem = shapes.get("conv1.weight", ())
    return Network(name, stem[1] if len(stem) == 4 else 3, layout)


def _recognise_cnn(shapes: Mapping[str, tuple[int, ...]]) -> Network:
    """Determines the CNN: its convolutions are the entries with four axes, in order."""
    found = [(re.fullmatch(r"features\.(\d{1,4})\.weight", name), s) for name, s in shapes.items()]
    kernels = sorted((int(match[1]), shape) for match, shape in found if match and len(shape) == 4)
    if not kernels:
        raise BadData(f"no convolution among its entries: {listed(shapes)}")
    norm = "batch" if any(name.endswith(".running_mean") for name in shapes) else "none"
    widths = tuple(shape[0] for _, shape in kernels)
    if len(widths) > _MOST_LAYERS:
        raise BadData(f"a CNN of {len(widths)} layers: at most {_MOST_LAYERS} were expected")
    return Network("cnn", kernels[0][1][1], "published", widths, norm)
