"""Weights of PyTorch give the same embeddings in PyTorch and JAX, in both modes."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from support.drawn_weights import drawn, images

from cellclr_jax.models import make_model
from cellclr_jax.weights.torch_names import Network, recognise, slots, to_variables

RECORDED = Path(__file__).parents[1] / "support" / "recorded" / "torch_embeddings.npz"
TOLERANCE = 1e-4
WIDTHS = (16, 32, 64, 64)
NETWORKS = {
    "resnet18": Network("resnet18", 3, "torchvision"),
    "resnet50": Network("resnet50", 3, "torchvision"),
    "resnet101": Network("resnet101", 3, "torchvision"),
    "cnn": Network("cnn", 3, "published", WIDTHS, "none"),
    "cnn_batch": Network("cnn", 3, "published", WIDTHS, "batch"),
}
# The slow cases differ only in the number of blocks.
CASES = [
    ("resnet18", "evaluation"),
    ("resnet18", "training"),
    ("cnn", "evaluation"),
    ("cnn_batch", "evaluation"),
    ("cnn_batch", "training"),
    pytest.param("resnet50", "evaluation", marks=pytest.mark.slow),
    pytest.param("resnet50", "training", marks=pytest.mark.slow),
    pytest.param("resnet101", "evaluation", marks=pytest.mark.slow),
    pytest.param("resnet101", "training", marks=pytest.mark.slow),
]


def entries_of(network):
    """Drawn entries of a network."""
    return drawn({name: slot.shape for name, slot in slots(network).items()})


@functools.cache
def embedded(name, mode):
    """Embeddings [4, D] of the drawn images by the drawn weights."""
    entries = entries_of(NETWORKS[name])
    network = recognise(entries)
    assert network == NETWORKS[name]
    settings = {"widths": WIDTHS, "norm": network.norm} if network.encoder == "cnn" else {}
    model = make_model(network.encoder, encoder_settings=settings, head_settings={"depth": 0})

    def apply(variables, pictures):
        train = mode == "training"
        return model.apply(variables, pictures, train=train, mutable=["batch_stats"])[0][0]

    return np.asarray(jax.jit(apply)(to_variables(entries, network), images()))


def relative_errors(got, want):
    """Error by norm, and largest difference relative to the largest value."""
    difference = got - want
    by_norm = np.linalg.norm(difference) / np.linalg.norm(want)
    return by_norm, np.abs(difference).max() / np.abs(want).max()


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_embeddings_equal_recorded_ones_of_torchvision(name, mode):
    with np.load(RECORDED, allow_pickle=False) as recorded:
        want = recorded[f"{name}/{mode}"]
    got = embedded(name, mode)
    got = got[:, :: got.shape[1] // want.shape[1]]
    assert np.std(want) > 0.1
    assert max(relative_errors(got, want)) < TOLERANCE


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_embeddings_equal_those_of_torch(name, mode):
    pytest.importorskip("torch")
    from support import torch_models

    if NETWORKS[name].encoder == "cnn":
        layers, features = torch_models.cnn(WIDTHS, NETWORKS[name].norm)
        model = torch_models.Published(layers, features, None)
    else:
        model = torch_models.ResNet(name)
    torch_models.with_drawn_weights(model)
    want = torch_models.embed(model, images(), train=mode == "training")
    assert max(relative_errors(embedded(name, mode), want)) < TOLERANCE


def test_projections_equal_those_of_the_published_model():
    pytest.importorskip("torch")
    from support import torch_models

    layers = list(torch_models.ResNet("resnet18").children())
    published = torch_models.with_drawn_weights(torch_models.Published(layers, 512, (96, 24)))
    entries = {n: t.numpy() for n, t in published.state_dict().items() if "num_batches" not in n}
    network = recognise(entries)
    assert network == Network("resnet18", 3, "published", head=(96, 24))
    model = make_model("resnet18", head_settings={"hidden": 96, "width": 24})
    found = jax.jit(lambda v, x: model.apply(v, x, train=False))(
        to_variables(entries, network), images()
    )
    for got, want in zip(found, torch_models.embed(published, images(), train=False), strict=True):
        assert max(relative_errors(np.asarray(got), want)) < TOLERANCE


def test_a_transposed_kernel_is_detected():
    entries = entries_of(NETWORKS["cnn"])
    turned = {n: np.swapaxes(a, -1, -2).copy() if a.ndim == 4 else a for n, a in entries.items()}
    model = make_model("cnn", head_settings={"depth": 0})
    h, _ = jax.jit(lambda v, x: model.apply(v, x, train=False))(
        to_variables(turned, NETWORKS["cnn"]), images()
    )
    assert min(relative_errors(np.asarray(h), embedded("cnn", "evaluation"))) > 100 * TOLERANCE
