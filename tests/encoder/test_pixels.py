"""Principal components of pixels: scikit-learn's on the crops themselves, as features."""

import jax
import numpy as np
from sklearn.decomposition import PCA

from cellclr_jax.encoder import baselines
from cellclr_jax.encoder.load import make_cell_encoder
from cellclr_jax.encoder.preprocessing import normalized


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
    # Up to their signs; the last ones of a randomised decomposition are only near.
    wanted = exact.transform(flat)
    for k in range(5):
        agreement = np.corrcoef(features[:, k], wanted[:, k])[0, 1]
        assert abs(agreement) > 0.999
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-3)
    again = baselines.fit_pixel_components(encoding)
    np.testing.assert_array_equal(found.directions, again.directions)


def test_large_crops_are_made_small(config):
    images = np.random.default_rng(0).random((6, 80, 80, 2)).astype(np.float32)
    flat = baselines._flat(images)
    assert flat.shape == (6, 32 * 32 * 2)
    np.testing.assert_allclose(flat.mean(), images.mean(), atol=5e-3)
