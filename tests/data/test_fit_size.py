"""Resizing and padding of single-cell images, compared to naive loops."""

import numpy as np
import pytest

from cellclr_jax.data.crops import extract_crops
from cellclr_jax.data.readers.formats import fit
from cellclr_jax.errors import BadData

SHAPES = [(40, 40), (41, 29), (1, 40), (1, 1), (96, 95), (7, 200)]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def noise(rng, shape, channels=3, dtype=np.uint16):
    return rng.integers(0, np.iinfo(dtype).max + 1, (*shape, channels)).astype(dtype)


def area_weights(source, target):
    """[target, source]: the share of each new pixel that an old one covers."""
    weights = np.zeros((target, source))
    for new in range(target):
        for old in range(source):
            end = min((new + 1) * source, (old + 1) * target)
            weights[new, old] = max(0, end - max(new * source, old * target)) / source
    return weights


def line_weights(source, target):
    """[target, source]: how much of each old pixel there is halfway between two of them."""
    weights = np.zeros((target, source))
    for new in range(target):
        place = min(max((new + 0.5) * source / target - 0.5, 0), source - 1)
        low = int(place)
        weights[new, low] += 1 - (place - low)
        weights[new, min(low + 1, source - 1)] += place - low
    return weights


def naive_resize(image, size):
    """In float64, before the rounding, with np.pad and slices."""
    longer = max(image.shape[:2])
    result = image.astype(np.float64)
    for axis in (0, 1):
        source = image.shape[axis]
        target = max(1, int(np.floor(source * size / longer + 0.5)))
        weights = area_weights if target < source else line_weights
        result = np.moveaxis(np.tensordot(weights(source, target), result, (1, axis)), 0, axis)
    return naive_pad(result, size)


def naive_pad(image, size):
    for axis in (0, 1):
        side = image.shape[axis]
        before, lacking = size // 2 - side // 2, size - side
        if lacking > 0:
            width = [(0, 0)] * 3
            width[axis] = (before, lacking - before)
            image = np.pad(image, width, mode="edge")
        else:
            image = np.take(image, np.arange(-before, -before + size), axis)
    return image


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [1, 8, 33, 96])
@pytest.mark.parametrize("shape", SHAPES)
def test_resizing_equals_a_plain_loop(rng, shape, size, dtype):
    image = noise(rng, shape, dtype=dtype)
    fitted = fit(image, size, "resize")
    assert fitted.dtype == dtype
    assert fitted.shape == (size, size, 3)
    # Half up; in float64 a half may be a hair less.
    np.testing.assert_allclose(fitted, np.floor(naive_resize(image, size) + 0.5 + 1e-6), atol=0)


def test_a_half_is_rounded_up_and_nothing_overflows():
    image = np.array([[0, 1], [1, 0]], np.uint16)[..., None]
    assert fit(image, 1, "resize").item() == 1
    white = np.full((201, 301, 2), 65535, np.uint16)
    assert (fit(white, 96, "resize") == 65535).all()
    assert (fit(white, 400, "resize") == 65535).all()


@pytest.mark.parametrize("how", ["resize", "pad"])
def test_channels_are_independent_and_rotation_commutes(rng, how):
    image = noise(rng, (64, 64), 4)
    fitted = fit(image, 20, how)
    for channel in range(4):
        only_channel = fit(image[..., channel : channel + 1], 20, how)
        np.testing.assert_array_equal(only_channel, fitted[..., channel : channel + 1])
    np.testing.assert_array_equal(fit(np.rot90(image), 20, how), np.rot90(fitted))


@pytest.mark.parametrize("size", [1, 30, 41, 97])
@pytest.mark.parametrize("shape", SHAPES)
def test_padding_equals_numpys(rng, shape, size):
    image = noise(rng, shape)
    fitted = fit(image, size, "pad")
    assert fitted.dtype == np.uint16
    np.testing.assert_array_equal(fitted, naive_pad(image, size))


@pytest.mark.parametrize("size", [40, 41, 60, 61])
def test_the_middle_is_that_of_crops_of_a_field(rng, size):
    field = noise(rng, (200, 200))
    wide, narrow = (
        extract_crops(field, np.array([[90.0, 110.0]]), size=side)[0] for side in (81, size)
    )
    np.testing.assert_array_equal(fit(wide, size, "pad"), narrow)


@pytest.mark.parametrize("how", ["resize", "pad", "exact"])
def test_an_image_of_the_size_stays_as_it_is(rng, how):
    image = noise(rng, (24, 24), 8)
    np.testing.assert_array_equal(fit(image, 24, how), image)


def test_exact_refuses_another_size(rng):
    with pytest.raises(BadData, match="24x23 pixels, 24x24 were expected"):
        fit(noise(rng, (24, 23)), 24, "exact")
