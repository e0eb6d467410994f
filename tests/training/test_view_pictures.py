"""The picture of cells beside their views: of the views that the step sees, for any channels."""

import json

import jax
import numpy as np
import pytest
from support.tiny_dataset import SIDE, random_images, write_dataset
from support.tiny_run import get_config

from cellclr_jax import devices
from cellclr_jax.augment import two_views
from cellclr_jax.training import view_pictures
from cellclr_jax.training.setup import make_experiment
from cellclr_jax.training.step import stream

# Crop, two views of the step, four further ones.
COLUMNS = 7


@pytest.fixture
def experiment(tmp_path):
    """Makes one of cells of so many channels."""

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
    minibatch = devices.to_global(mesh, experiment.cells.read(np.arange(16)))
    key = jax.jit(lambda: jax.random.key(5), out_shardings=devices.replicated(mesh))()
    with jax.transfer_guard("disallow"):  # as in the training loop
        picture = view_pictures.view_grid(experiment, mesh, minibatch, key)
    return picture, minibatch, key


def tiles(picture, rows=8, together=1):
    """[rows, COLUMNS, s, s, 3] tiles of a picture, so many rows for each cell."""
    side = view_pictures._side(SIDE)
    tops = [view_pictures._top(row, side, together) for row in range(rows + 1)]
    lefts = [view_pictures._left(column, side) for column in range(COLUMNS)]
    assert picture.dtype == np.uint8
    assert picture.shape == (tops[-1], lefts[-1] + side, 3)
    return np.array(
        [[picture[top : top + side, left : left + side] for left in lefts] for top in tops[:-1]]
    )


@pytest.mark.parametrize(("channels", "rows"), [(1, 8), (2, 8), (4, 8), (8, 6)])
def test_any_number_of_channels_is_shown(experiment, channels, rows):
    shown = tiles(grid(experiment(channels))[0], rows, together=-(-channels // 3))
    assert shown.std(axis=(2, 3, 4)).min() > 10
    grey = (shown == shown[..., :1]).all(axis=(1, 2, 3, 4))
    alone = {1: [True] * 8, 4: [False, True] * 4}.get(channels, [False] * rows)
    assert grey.tolist() == alone


def test_the_views_are_those_of_the_first_step(experiment, monkeypatch):
    drawn = {}
    picture = view_pictures._picture
    monkeypatch.setattr(
        view_pictures,
        "_picture",
        lambda crops, views: drawn.update(crops=crops, views=views) or picture(crops, views),
    )
    made = experiment(views={"add_noise": {"deviation": (0.1, 0.2)}})
    _, minibatch, key = grid(made)
    images = made.images(minibatch)
    at_step = two_views(stream(key, "augment", 0), images, made.views())
    np.testing.assert_allclose(drawn["crops"], images[:8], atol=1e-6)
    np.testing.assert_allclose(drawn["views"][:, :2], at_step[:8], atol=1e-5)
    flat = drawn["views"].reshape(8, COLUMNS - 1, -1)
    assert all(len(np.unique(views, axis=0)) == COLUMNS - 1 for views in flat)


def test_without_augmentations_all_views_are_the_crop(experiment):
    shown = tiles(grid(experiment(views={}))[0])
    np.testing.assert_array_equal(shown, np.repeat(shown[:, :1], COLUMNS, axis=1))


def test_any_number_of_devices_draws_the_same(experiment):
    made = experiment()
    first, _, _ = grid(made, count=2)
    second, _, _ = grid(made, count=4)
    assert np.abs(first.astype(int) - second).max() <= 1


def test_each_cell_has_its_own_brightness(experiment):
    images = random_images()
    images[1] //= 100
    images[2] = 7  # nothing to see
    shown = tiles(grid(experiment(views={}, images=images))[0])
    assert shown[1].std() > 0.8 * shown[0].std()
    assert shown[2].max() == 0


@pytest.mark.parametrize(("size", "side"), [(12, 96), (48, 96), (64, 128), (96, 96), (224, 160)])
def test_tiles_are_neither_tiny_nor_huge(size, side):
    assert view_pictures._side(size) == side
    assert view_pictures._resize(np.ones((size, size, 2), np.float32), side).shape[:2] == (
        side,
        side,
    )
