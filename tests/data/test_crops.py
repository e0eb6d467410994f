import numpy as np
import pytest
from scipy import ndimage

from cellclr_jax.data.crops import extract_crops, fits, nucleus_centers


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def field(rng):
    return rng.integers(0, 65536, (60, 80, 3)).astype(np.uint16)


def test_centers_equal_scipys(rng):
    labels = ndimage.label(rng.random((50, 70)) > 0.7)[0]
    expected = ndimage.center_of_mass(labels > 0, labels, range(1, labels.max() + 1))
    centers = nucleus_centers(labels)
    assert centers.dtype == np.float32
    np.testing.assert_allclose(centers, expected, rtol=1e-5)


# A window of 96 pixels cannot be shifted into a field of 60.
@pytest.mark.parametrize(
    ("size", "border"),
    [(s, b) for s in (7, 8, 96) for b in ("drop", "pad", "shift") if (s, b) != (96, "shift")],
)
def test_crops_equal_a_naive_loop(rng, field, size, border):
    centers = rng.uniform(0, 1, (50, 2)) * [59, 79]
    crops = extract_crops(field, centers, size=size, border=border)
    wide = np.pad(field, ((size, size), (size, size), (0, 0)), mode="reflect")
    expected = []
    for center in centers:
        row, column = (int(np.floor(value + 0.5)) - size // 2 for value in center)
        if border == "drop" and not (0 <= row <= 60 - size and 0 <= column <= 80 - size):
            continue
        if border == "shift":
            row, column = min(max(row, 0), 60 - size), min(max(column, 0), 80 - size)
        expected.append(wide[row + size :, column + size :][:size, :size])
    assert crops.dtype == np.uint16
    assert crops.shape == (len(expected), size, size, 3)
    for crop, naive in zip(crops, expected, strict=True):
        np.testing.assert_array_equal(crop, naive)


def test_fits_marks_the_windows_that_are_not_dropped(rng, field):
    centers = rng.uniform(0, 1, (200, 2)) * [59, 79]
    inside = fits(centers, field.shape, 16)
    assert 0 < inside.sum() < 200
    np.testing.assert_array_equal(
        extract_crops(field, centers, size=16),
        extract_crops(field, centers[inside], size=16, border="shift"),
    )


def test_a_field_smaller_than_the_window_is_refused(field):
    with pytest.raises(ValueError, match="60x80 pixels holds no window of 64"):
        extract_crops(field, np.array([[5, 5]]), size=64, border="shift")
