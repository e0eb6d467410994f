"""Normalisations equal NumPy, for raw integers and constant channels."""

import jax.numpy as jnp
import numpy as np
import pytest

from cellclr_jax.encoder.preprocessing import Preprocessing, normalized, standardize


def normalize(crops, method, **settings):
    """Normalised crops; `low` and `high` of the method `percentile` are arrays [B, C]."""
    minibatch = {"image": crops}
    if method == "percentile":
        minibatch |= {name: settings.pop(name) for name in ("low", "high")}
    return normalized(minibatch, Preprocessing(size=1, method=method, **settings))


@pytest.fixture
def crops():
    rng = np.random.default_rng(0)
    return rng.integers(500, 20_000, size=(5, 12, 12, 3)).astype(np.uint16)


def naive_zscore(x):
    x = x.astype(np.float64)
    out = np.zeros_like(x)
    for i in range(len(x)):
        for c in range(x.shape[-1]):
            channel = x[i, :, :, c]
            out[i, :, :, c] = (channel - channel.mean()) / channel.std()
    return out


def test_zscore_equals_numpy_and_ignores_gain_and_offset(crops):
    got = normalize(crops, "zscore")
    np.testing.assert_allclose(got, naive_zscore(crops), atol=1e-4)
    np.testing.assert_allclose(normalize(crops * 2.0 + 100, "zscore"), got, atol=1e-4)


def test_joint_minmax_scales_all_channels_together(crops):
    got = normalize(crops, "zscore_minmax")
    z = naive_zscore(crops)
    low, high = z.min((1, 2, 3), keepdims=True), z.max((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(got, (z - low) / (high - low), atol=1e-5)
    assert got.min() == 0
    assert float(got.max()) == pytest.approx(1)


def test_percentile_scales_each_crop_by_its_plate(crops):
    low = np.linspace(500, 900, 15).reshape(5, 3)
    high = low + np.linspace(5_000, 9_000, 15).reshape(5, 3)
    got = normalize(crops, "percentile", low=low, high=high)
    for i in range(5):
        want = np.clip((crops[i] - low[i]) / (high[i] - low[i]), 0, 1)
        np.testing.assert_allclose(got[i], want, atol=1e-5)


def test_fixed_numbers_apply_by_channel(crops):
    low, high = np.array([1.0, 2.0, 3.0]), np.array([11.0, 22.0, 33.0])
    got = normalize(crops, "fixed", low=low, high=high)
    np.testing.assert_allclose(got, (crops - low) / (high - low), rtol=1e-5)


CONSTANTS = np.array([0, 0.1, 1 / 3, 700, 1943, 3029, 27497, 65535], np.float32)


@pytest.mark.parametrize("method", ["zscore", "zscore_minmax"])
@pytest.mark.parametrize("side", [1, 95])
def test_a_constant_crop_becomes_zero(method, side):
    crops = np.broadcast_to(CONSTANTS[:, None, None, None], (len(CONSTANTS), side, side, 1))
    for form in (crops, jnp.asarray(crops)):
        np.testing.assert_array_equal(normalize(form, method), 0)


def test_a_bright_crop_of_little_contrast_is_normalised_exactly():
    crop = np.full((1, 95, 95, 1), 65534, np.uint16)
    crop[0, 40:, 20:] += 1
    want = (crop - crop.mean()) / crop.std()
    np.testing.assert_allclose(normalize(crop, "zscore"), want, rtol=1e-5)


def test_a_crop_is_normalised_equally_in_any_minibatch(crops):
    single = normalize(crops[2:3], "zscore_minmax")
    np.testing.assert_allclose(normalize(crops, "zscore_minmax")[2:3], single, atol=1e-6)


def published_crop(crop):
    """8-bit levels of one crop, and as inverted by the published code, in integers."""
    z = naive_zscore(crop[None])[0]
    levels = np.round((z - z.min()) / (z.max() - z.min()) * 255).astype(int)
    inverted = [[[(256 - int(x)) % 256 for x in pixel] for pixel in row] for row in levels]
    return levels, np.array(inverted)


def test_levels_are_those_of_8_bit_crops_and_may_be_inverted_as_published(crops):
    plain = np.asarray(normalize(crops, "zscore_minmax", bits=8)) * 255
    inverted = np.asarray(normalize(crops, "zscore_minmax", bits=8, legacy_invert=True)) * 255
    for i, crop in enumerate(crops):
        levels, want = published_crop(crop)
        np.testing.assert_allclose(plain[i], levels, atol=1e-3)
        np.testing.assert_allclose(inverted[i], want, atol=1e-3)
    # 0 stays 0 instead of 256, which is no 8-bit number.
    assert (inverted[plain == 0] == 0).all()
    np.testing.assert_allclose(inverted[plain > 0], 256 - plain[plain > 0], atol=1e-3)


def test_standardised_images_have_the_mean_and_deviation_of_their_channels(crops):
    images = np.asarray(crops, np.float32)
    mean, deviation = images.mean((0, 1, 2)), images.std((0, 1, 2))
    got = np.asarray(standardize(images, mean, deviation))
    np.testing.assert_allclose(got.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(got.std((0, 1, 2)), 1, rtol=1e-4)
    np.testing.assert_array_equal(standardize(images, (), ()), images)
    views = np.stack([images, images], axis=1)
    np.testing.assert_array_equal(standardize(views, mean, deviation)[:, 1], got)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "zscore_minmax", "bits": 16}, "0 or 8"),
        ({"method": "zscore_minmax", "legacy_invert": True}, "needs bits 8"),
        ({"method": "zscore", "bits": 8}, r"in \[0, 1\]"),
        ({"method": "log"}, "unknown"),
        ({"method": "fixed"}, "need 3 numbers"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(size=1, **settings).check(3)
