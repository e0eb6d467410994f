"""Masks mark the pixels of each cell, in the windows of the crops."""

import numpy as np
import pytest

from cellclr_jax.data.crops import crop_masks, fits, nucleus_centers

# The last one touches its neighbour; two are at the field's border.
NUCLEI = [(20, 20, 6), (24, 40, 5), (2, 60, 5), (45, 75, 6), (48, 30, 4), (44, 38, 4)]
SIZES = [(s, b) for s in (15, 24) for b in ("drop", "pad", "shift")]


@pytest.fixture
def labels():
    rows, columns = np.mgrid[:60, :80]
    field = np.zeros((60, 80), np.int32)
    for number, (row, column, radius) in enumerate(NUCLEI, start=1):
        field[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = number
    return field


@pytest.fixture
def centers(labels):
    return nucleus_centers(labels)


def distances(labels):
    """[N, H, W]: from each pixel to the nearest pixel of each nucleus, one by one."""
    pixels = np.stack(np.mgrid[: labels.shape[0], : labels.shape[1]], axis=-1)
    found = []
    for number in range(1, labels.max() + 1):
        nucleus = np.argwhere(labels == number)
        apart = pixels[:, :, None, :] - nucleus[None, None]
        found.append(np.sqrt((apart**2).sum(axis=-1)).min(axis=-1))
    return np.stack(found)


@pytest.mark.parametrize(("size", "border"), SIZES)
@pytest.mark.parametrize("radius", [0, 3.5, 20])
def test_masks_equal_distances_pixel_by_pixel(labels, centers, size, border, radius):
    apart = distances(labels)
    numbers = np.arange(1, len(centers) + 1)
    masks = crop_masks(labels, numbers, centers, size=size, border=border, radius=radius)
    kept = fits(centers, labels.shape, size) if border == "drop" else np.full(len(centers), True)
    assert masks.dtype == np.uint8
    assert masks.shape == (kept.sum(), size, size)
    for mask, number, center in zip(masks, numbers[kept], centers[kept], strict=True):
        corner = np.floor(center.astype(float) + 0.5).astype(int) - size // 2
        if border == "shift":
            corner = np.clip(corner, 0, np.array(labels.shape) - size)
        for i, j in np.ndindex(size, size):
            row, column = corner[0] + i, corner[1] + j
            if not (0 <= row < labels.shape[0] and 0 <= column < labels.shape[1]):
                assert mask[i, j] == 0
                continue
            own = apart[number - 1, row, column]
            others = np.delete(apart[:, row, column], number - 1).min()
            if labels[row, column] == number:
                assert mask[i, j] == 2
            elif own > radius or others < own:
                assert mask[i, j] == 0
            elif own < others:
                assert mask[i, j] == 1
            else:  # as far from two nuclei: either's, but not both's
                assert mask[i, j] in (0, 1)


def test_no_pixel_has_two_owners(labels, centers):
    owned = np.zeros(labels.shape, int)
    for number, center in enumerate(centers, start=1):
        (mask,) = crop_masks(labels, [number], center, size=59, border="shift", radius=30)
        corner = np.clip(np.floor(center + 0.5).astype(int) - 29, 0, np.array(labels.shape) - 59)
        owned[corner[0] : corner[0] + 59, corner[1] : corner[1] + 59] += mask > 0
    assert owned.max() == 1


def test_a_cell_without_a_window_claims_its_pixels(labels, centers):
    only_first = crop_masks(labels, [1], centers[:1], size=40, border="shift", radius=30)
    every = crop_masks(labels, range(1, 7), centers, size=40, border="shift", radius=30)
    np.testing.assert_array_equal(only_first[0], every[0])
    # Without the neighbour in the labels, its pixels belong to the first cell.
    without = np.where(labels == 2, 0, labels)
    wider = crop_masks(without, [1], centers[:1], size=40, border="shift", radius=30)
    assert (wider > 0).sum() > (only_first > 0).sum()
