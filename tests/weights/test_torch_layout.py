"""Entries of PyTorch are recognised by name and shape; wrong entries are named."""

import functools
import re

import numpy as np
import pytest
from support.drawn_weights import drawn

from cellclr_jax.errors import BadData
from cellclr_jax.weights.torch_names import (
    Network,
    bare,
    recognise,
    slots,
    split_classifier,
    to_entries,
    to_variables,
)

RESNET = Network("resnet18", 3, "torchvision")
NETWORKS = [
    RESNET,
    Network("resnet18", 5, "published", head=(96, 24)),
    Network("resnet50", 1, "published"),
    Network("resnet101", 3, "torchvision", head=(2048, 128)),
    Network("cnn", 4, "published", (16, 32, 64, 64), "none", (64, 64)),
    Network("cnn", 3, "published", (8, 24), "batch"),
]


@functools.cache
def entries_of(network):
    return drawn({name: slot.shape for name, slot in slots(network).items()})


@functools.cache
def zeros_of(network):
    """Entries that take no memory."""
    zero = np.float32(0)
    return {name: np.broadcast_to(zero, slot.shape) for name, slot in slots(network).items()}


@pytest.fixture(scope="module")
def resnet():
    return entries_of(RESNET)


def changed(entries, **arrays):
    """Entries with some replaced, added, or (None) left out; a double underscore is a dot."""
    both = {**entries, **{name.replace("__", "."): a for name, a in arrays.items()}}
    return {name: array for name, array in both.items() if array is not None}


def refusal(entries):
    """The error message for entries, one line."""
    with pytest.raises(BadData) as caught:
        to_variables(entries, recognise(entries))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_a_network_is_recognised_whatever_the_order_of_its_entries(network):
    entries = zeros_of(network)
    assert recognise(entries) == network
    assert recognise(dict(reversed(entries.items()))) == network


@pytest.mark.parametrize("network", [NETWORKS[1], *NETWORKS[4:]], ids=str)
def test_conversions_are_inverse_bit_for_bit(network):
    entries = entries_of(network)
    back = to_entries(to_variables(entries, network), network)
    counters = {name for name in back if name.endswith(".num_batches_tracked")}
    assert back.keys() - counters == entries.keys()
    assert len(counters) == sum(name.endswith("running_var") for name in entries)
    assert all(back[name].tobytes() == array.tobytes() for name, array in entries.items())
    assert all(back[name] == 0 and back[name].dtype == np.int64 for name in counters)


def test_axes_are_moved_as_a_loop_would():
    network = NETWORKS[4]
    entries, variables = entries_of(network), to_variables(entries_of(network), network)
    kernel, matrix = entries["features.3.weight"], entries["l2.weight"]
    ours = variables["params"]
    for o, i, y, x in [(0, 0, 0, 0), (31, 2, 1, 0), (5, 15, 0, 2)]:
        assert ours["encoder"]["conv2"]["kernel"][y, x, i, o] == kernel[o, i, y, x]
    for o, i in [(0, 0), (63, 5), (7, 60)]:
        assert ours["head"]["l2"]["kernel"][i, o] == matrix[o, i]


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "encoder.", "module.encoder.module."])
def test_prefixes_are_removed(resnet, prefix):
    wrapped = {prefix + name: array for name, array in resnet.items()}
    wrapped[f"{prefix}bn1.num_batches_tracked"] = np.zeros((), np.int64)
    assert bare(wrapped).keys() == resnet.keys()


def test_a_prefix_of_only_some_entries_is_kept(resnet):
    wrapped = {f"backbone.{name}": array for name, array in resnet.items()}
    wrapped["l1.weight"] = np.zeros((2, 2), np.float32)
    assert bare(wrapped).keys() == wrapped.keys()
    assert "backbone.conv1.weight" in refusal(bare(wrapped))


def test_two_entries_with_the_same_name_are_refused(resnet):
    with pytest.raises(BadData, match=r"with and without 'module\.': conv1\.weight$"):
        bare(changed(resnet, module__conv1__weight=np.zeros(3)))


def test_a_classifier_is_separated(resnet):
    rest, left_out = split_classifier(changed(resnet, fc__weight=np.zeros((9, 512))))
    assert rest.keys() == resnet.keys()
    assert left_out == ["fc.weight"]


def test_missing_superfluous_and_misshapen_entries_are_named(resnet):
    odd = changed(
        resnet,
        layer2__0__bn1__bias=None,
        extra__weight=np.zeros(3, np.float32),
        conv1__weight=np.zeros((64, 3, 3, 3), np.float32),
    )
    message = refusal(odd)
    assert "missing: layer2.0.bn1.bias;" in message
    assert "superfluous: extra.weight;" in message
    assert "of another shape: conv1.weight (64, 3, 3, 3), (64, 3, 7, 7) expected" in message


def test_entries_that_are_not_finite_floats_are_named(resnet):
    bad = resnet["bn1.bias"].copy()
    bad[3] = np.nan
    message = refusal(changed(resnet, bn1__bias=bad, bn1__running_var=np.ones(64, np.int64)))
    assert "no floating-point numbers: bn1.running_var (int64)" in message
    assert message.endswith("not finite: bn1.bias")


def resized(network, name, shape):
    return zeros_of(network) | {name: np.zeros(shape, np.float32)}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {n: a for n, a in zeros_of(RESNET).items() if not n.startswith("layer4.1.")},
            r"a ResNet of BasicBlock \(2, 2, 2, 1\): one of resnet18 \(BasicBlock",
        ),
        (
            resized(NETWORKS[3], "layer1.0.conv2.weight", (128, 4, 3, 3)),  # as of a ResNeXt
            r"a resnet101 .* layer1.0.conv2.weight \(128, 4, 3, 3\), \(64, 64, 3, 3\) expected",
        ),
        (
            resized(RESNET, "layer1.0.se.fc1.weight", (4, 64, 1, 1)),
            "superfluous: layer1.0.se.fc1.weight",
        ),
        (resized(RESNET, "conv1.weight", (64, 0, 7, 7)), r"empty entries: conv1\.weight"),
        (
            {f"features.{3 * i}.weight": np.zeros((8, 8, 3, 3)) for i in range(13)},
            "a CNN of 13 layers: at most 12",
        ),
    ],
    ids=["depth", "grouped", "squeezed", "empty", "deep"],
)
def test_another_architecture_is_described(entries, message):
    assert re.search(message, refusal(entries))


def test_entries_of_no_network_are_listed():
    message = refusal({f"blocks.{i}.attn.qkv.weight": np.zeros((3, 3)) for i in range(12)})
    assert "blocks.0.attn.qkv.weight, blocks.1" in message
    assert "and 9 more" in message
    assert "are missing" in refusal({})


def test_half_a_head_is_refused(resnet):
    message = refusal(changed(resnet, l1__weight=np.zeros((9, 512), np.float32)))
    assert "missing: l1.bias, l2.bias, l2.weight" in message
