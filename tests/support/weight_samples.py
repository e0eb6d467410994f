"""Makes networks and files of their weights, and compares them, for the tests of `weights/`."""

import functools
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.drawn_weights import drawn

from cellclr_jax import default_config
from cellclr_jax.weights.import_export import import_weights
from cellclr_jax.weights.torch_names import Network, slots, to_entries, to_variables

ROOT = Path(__file__).parents[2]
SMALL = Network("cnn", 3, "published", (8, 8), "batch", (8, 16))
NETWORKS = {
    "resnet": Network("resnet18", 3, "torchvision"),
    "resnet_head": Network("resnet18", 3, "published", head=(96, 24)),
    "cnn": Network("cnn", 5, "published", (16, 32, 64, 64), "none", (64, 64)),
    "cnn_batch": Network("cnn", 3, "published", (8, 24), "batch"),
}
ENDINGS = (".pth", ".safetensors")


@functools.cache
def entries_of(network):
    """Draws random entries of a network, including its counters."""
    plain = drawn({name: slot.shape for name, slot in slots(network).items()})
    return to_entries(to_variables(plain, network), network)


def write(path, entries):
    """Writes entries to a file; PyTorch also writes other content."""
    if path.suffix == ".safetensors":
        save_file(entries, path)
    else:
        torch = pytest.importorskip("torch")
        tensors = {
            name: torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
            for name, value in entries.items()
        }
        torch.save(tensors, path)
    return path


def read(path):
    """Reads entries with the library of the file's format."""
    if path.suffix == ".safetensors":
        return load_file(path)
    loaded = pytest.importorskip("torch").load(path, weights_only=True)
    return {name: tensor.numpy() for name, tensor in loaded.items()}


def convert(source, workdir, config=None):
    named = config is not None
    import_weights(source, workdir, config or default_config.get_config(), named=named)
    return Path(workdir)


def refusal(error, call, *arguments, **named):
    with pytest.raises(error) as caught:
        call(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(one, other):
    """Checks whether two files hold the same entries, bit for bit."""
    assert one.keys() == other.keys()
    return all(
        one[name].dtype == other[name].dtype and one[name].tobytes() == other[name].tobytes()
        for name in one
    )
