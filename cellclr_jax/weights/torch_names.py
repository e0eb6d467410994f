"""Maps PyTorch's names of weights to ours, and recognises which network a file holds."""

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
"""An entry of each batch normalisation that says nothing about its weights."""

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
# A CNN of more would need images of more than 4,096 pixels.
_MOST_LAYERS = 12
# PyTorch's name of each of Flax's arrays.
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# Side of the images that a ResNet is traced with; its variables do not depend on it.
_SIDE = 32


@dataclass(frozen=True)
class Network:
    """A network that a file of weights belongs to.

    Attributes:
      encoder: cnn, resnet18, resnet50 or resnet101.
      channels: of the images.
      layout: how the encoder's entries are named; a CNN's are `features` in either.
      widths: of the CNN's layers.
      norm: of the CNN, `none` or `batch`.
      head: (hidden, width) of two linear layers `l1` and `l2`, or None; a hidden width of None is
        that of the embedding.
    """

    encoder: str
    channels: int
    layout: Layout
    widths: tuple[int, ...] = ()
    norm: str = "none"
    head: tuple[int | None, int] | None = None


class Slot(NamedTuple):
    """The place of one of PyTorch's entries among Flax's variables.

    Attributes:
      path: in {"params": …, "batch_stats": …}; its last name says how axes are ordered.
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
    """Lists the slot of each entry of a network, by its name in the network's layout."""
    return {
        _torch_name(path, network): Slot(path, _to_torch(path, leaf.shape))
        for path, leaf in flatten_dict(shapes_of(network)).items()
    }


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
    flat = {
        slot.path: np.ascontiguousarray(
            entries[name].transpose(_to_flax(slot.path, range(len(slot.shape)))), np.float32
        )
        for name, slot in wanted.items()
    }
    return {"batch_stats": {}, **unflatten_dict(flat)}


def to_entries(variables: Mapping[str, Any], network: Network) -> dict[str, np.ndarray]:
    """Converts Flax's variables of a network to PyTorch's entries, the inverse of `to_variables`.

    Args:
      variables: as `to_variables` returns them; others are ignored.
      network: also gives the layout of the names.

    Returns:
      Arrays float32 by name, contiguous; a counter of zero, int64, for each batch normalisation.
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
    """PyTorch's name of one of Flax's variables, such as `layer1.0.downsample.1.weight`."""
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
    """Axes, or their lengths, in Flax's order: of a kernel the inner ones, inputs, outputs."""
    if path[-1] != "kernel":
        return tuple(axes)
    outputs, inputs, *inner = axes
    return (*inner, inputs, outputs)


def _to_torch(path: tuple[str, ...], axes: Sequence[int]) -> tuple[int, ...]:
    """Axes, or their lengths, in PyTorch's order: of a kernel outputs, inputs, the inner ones."""
    if path[-1] != "kernel":
        return tuple(axes)
    *inner, inputs, outputs = axes
    return (outputs, inputs, *inner)


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
    if empty := [name for name, shape in shapes.items() if 0 in shape]:
        raise BadData(f"without numbers: {listed(empty)}")
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
        hidden, width = ((*shapes.get(f"l{i}.weight", ()), None)[0] for i in (1, 2))
        network = replace(network, head=(hidden, width or 1))
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
    block = Bottleneck if bottleneck else BasicBlock
    name = next((name for name, own in RESNETS.items() if own == (block, depths)), None)
    if name is None:
        known = ", ".join(f"{name} ({of.__name__} {deep})" for name, (of, deep) in RESNETS.items())
        raise BadData(f"a ResNet of {block.__name__} {depths}: one of {known} was expected")
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
    if len(widths) > _MOST_LAYERS:
        raise BadData(f"a CNN of {len(widths)} layers: at most {_MOST_LAYERS} were expected")
    return Network("cnn", kernels[0][1][1], "published", widths, norm)
