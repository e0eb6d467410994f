"""The picture of cells and their views has the views of the step, for any number of channels."""

import json

import jax
import numpy as np
import pytest
from support.tiny_dataset import SIDE, random_images, write_dataset
from support.tiny_run import get_config

from cellclr_jax import devices
from cellclr_jax.augment import two_views
from cellclr_jax.devices import stream
from cellclr_jax.encoder.preprocessing import normalized
from cellclr_jax.training import view_pictures
from cellclr_jax.training.setup import make_experiment

# Crop, two views of the step, four further views.
COLUMNS = 7


@pytest.fixture
def experiment(tmp_path):
    """Makes an experiment on cells of a number of channels."""

    def make(channels=3, views=None, images=None):
        images = random_images(channels=channels) if images is None else images
        folder = write_dataset(tmp_path, images)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["image"]["channels"] = [f"stain {i}" for i in range(images.shape[-1])]
        (folder / "manifest.json").write_text(json.dumps(manifest))
        config = get_config()
        config.update(data_dir=str(tmp_path), dataset="single_cells/all", image_size=SIDE)
        config.minibatch_size = 16
        if views is not None:
            config.views = views
        return make_experiment(config)

    return make


def grid(experiment, count=2):
    mesh = devices.make_mesh(count)
    minibatch = devices.to_global(mesh, experiment.encoder.cells.read(np.arange(16)))
    key = jax.jit(lambda: jax.random.key(5), out_shardings=devices.replicated(mesh))()
    with jax.transfer_guard("disallow"):  # as in the training loop
        picture = view_pictures.view_grid(experiment, mesh, minibatch, key)
    return picture, minibatch, key


@pytest.mark.parametrize(("channels", "rows"), [(2, 8), (8, 6)])
def test_any_number_of_channels_is_shown(experiment, channels, rows):
    picture = grid(experiment(channels))[0]
    # Views of 12 pixels are enlarged to 96; cells and groups of tiles are separated by 10 pixels.
    cells = rows // -(-channels // 3)
    assert picture.shape == (20 + rows * (96 + 2) + cells * 10, COLUMNS * 96 + 5 * 2 + 2 * 10, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 10


def test_the_views_are_those_of_the_first_step(experiment, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        view_pictures, "_picture", lambda crops, views, n: drawn.update(crops=crops, views=views)
    )
    made = experiment(views={"add_noise": {"deviation": (0.1, 0.2)}})
    _, minibatch, key = grid(made)
    images = normalized(minibatch, made.encoder.preprocessing)
    at_step = two_views(stream(key, "augment", 0), images, made.augmentations)
    np.testing.assert_allclose(drawn["crops"], images[:8], atol=1e-6)
    np.testing.assert_allclose(drawn["views"][:, :2], at_step[:8], atol=1e-5)
    flat = drawn["views"].reshape(8, COLUMNS - 1, -1)
    assert all(len(np.unique(views, axis=0)) == COLUMNS - 1 for views in flat)


def test_any_number_of_devices_draws_the_same(experiment):
    made = experiment()
    first, _, _ = grid(made, count=2)
    second, _, _ = grid(made, count=4)
    assert np.abs(first.astype(int) - second).max() <= 1
