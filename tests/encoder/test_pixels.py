"""Principal components of pixels equal those that scikit-learn computes of the crops."""

import jax
import numpy as np
import pytest
from sklearn.decomposition import PCA
from support import tiny_run
from support.tiny_dataset import random_images, write_dataset

from cellclr_jax.encoder import baselines
from cellclr_jax.encoder.load import make_cell_encoder
from cellclr_jax.encoder.preprocessing import normalized


@pytest.fixture
def config(tmp_path):
    """A dataset of crops that differ mostly along five directions."""
    rng = np.random.default_rng(0)
    noise = random_images()
    patterns = rng.normal(size=(5, *noise.shape[1:]))
    strengths = rng.normal(size=(len(noise), 5)) * [9, 7, 5, 4, 3]
    images = 20_000 + 300 * np.tensordot(strengths, patterns, 1)
    write_dataset(tmp_path, (images + noise / 100).clip(0, 65535).astype(np.uint16))
    config = tiny_run.get_config()
    config.update(data_dir=str(tmp_path), dataset="single_cells/all")
    return config


def test_components_are_those_of_the_crops_and_the_same_each_time(config):
    encoding = make_cell_encoder(config)
    rows = np.arange(len(encoding.cells.table))
    images = np.asarray(
        jax.jit(lambda c: normalized(c, encoding.preprocessing))(encoding.cells.read(rows))
    )
    found = baselines.fit_pixel_components(encoding)
    flat = np.asarray(baselines._flat(images))
    count = min(baselines.COMPONENTS, len(flat))
    exact = PCA(count, svd_solver="full").fit(flat)
    features = np.asarray(baselines.pixel_features(images, found))
    assert features.shape == (len(images), count)
    # Up to signs; the last components of a randomised decomposition are approximate.
    expected = exact.transform(flat)
    for k in range(5):
        agreement = np.corrcoef(features[:, k], expected[:, k])[0, 1]
        assert abs(agreement) > 0.999
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-3)
    again = baselines.fit_pixel_components(encoding)
    np.testing.assert_array_equal(found.directions, again.directions)


def test_large_crops_are_made_small():
    images = np.random.default_rng(0).random((6, 80, 80, 2)).astype(np.float32)
    flat = baselines._flat(images)
    assert flat.shape == (6, 32 * 32 * 2)
    np.testing.assert_allclose(flat.mean(), images.mean(), atol=5e-3)
